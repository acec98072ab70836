//! Keeps over a restart what the process alone would know: the operators' decisions, and the configuration in force. In files of the
//! folder that systemd gives the service to keep state in (`StateDirectory=`). Without one nothing is kept: a daemon that somebody
//! tries out must not take over what was decided for the service. The disk may hang, so that a thread of its own writes.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, warn};

use super::clock::Moment;
use super::event::Decision;
use super::folder::Folder;
use super::in_force;
use super::logging::{moment, timestamp};
use super::signals::leave_to_others;
use super::stall::{Calls, within};
use crate::observe::json;
use crate::words::{AdminState, BackendRef};

const NAME: &str = "overrides.json";
/// The format; another one is not guessed at.
const VERSION: u32 = 1;
/// The longest file that is read, in bytes: some ten thousand decisions.
const MOST_READ: u64 = 4 << 20;
/// How long the start waits for what was kept.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of the last writing: its number, and the reason where it failed.
pub type Written = (u64, Result<(), String>);

/// The news of it.
pub type News = watch::Receiver<Written>;

/// Something to be written, in place of what was before.
enum Order {
    Decisions(u64, Vec<Decision>, Moment),
    /// The content of the configuration file in force.
    InForce(Vec<u8>),
}

/// The way to the disk.
#[derive(Debug)]
pub struct Keeper {
    /// Unbounded, but for the operators who wait for what is in it, and one configuration a reload.
    orders: Sender<Order>,
    finished: Receiver<()>,
}

impl Keeper {
    /// Keeps in a folder what is decided, and what is in force of the file at `config`; `calls` shows when it is at the disk. Touches
    /// the folder only when there is something to write.
    fn start(folder: Folder, config: PathBuf, calls: Calls) -> io::Result<(Self, News)> {
        let (orders, taken) = channel();
        let (finish, finished) = channel();
        let (tell, written) = watch::channel((0, Ok(())));
        thread::Builder::new().name("lbd-state".into()).spawn(move || {
            leave_to_others();
            write_all(&folder, &config, &taken, &tell, &calls);
            let _ = finish.send(());
        })?;
        Ok((Self { orders, finished }, written))
    }

    /// Has decisions written; what comes of it is told.
    pub fn keep(&self, number: u64, decisions: Vec<Decision>) {
        // The thread ends after us.
        let _ = self.orders.send(Order::Decisions(number, decisions, Moment::now()));
    }

    /// Has the configuration in force written.
    pub fn keep_in_force(&self, content: Vec<u8>) {
        let _ = self.orders.send(Order::InForce(content));
    }

    /// Waits until everything is written, but no longer than this.
    pub fn finish(self, patience: Duration) {
        drop(self.orders);
        if self.finished.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            error!("what was decided or applied last is not written down: the disk does not answer");
        }
    }
}

/// Keeps in this folder, where there is one.
///
/// # Errors
/// No thread can be had.
pub fn keep_in(folder: Option<Folder>, config: &Path, calls: Calls) -> io::Result<(Option<Keeper>, News)> {
    match folder {
        Some(folder) => Keeper::start(folder, config.to_owned(), calls).map(|(keeper, news)| (Some(keeper), news)),
        None => Ok((None, watch::channel((0, Ok(()))).1)),
    }
}

/// What operators had decided before this start; waits for the disk for 10 s at most. An upgrade carries that over
/// instead: it has no time for a disk that does not answer.
///
/// # Errors
/// No thread can be had.
pub fn decided_before(folder: Option<&Folder>) -> io::Result<Vec<Decision>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let its = folder.clone();
    let decided = within(PATIENCE, "lbd-recall", move || recall(&its, &Moment::now()))?;
    Ok(decided.unwrap_or_else(|| {
        warn!(
            path = %folder.path_of(NAME).display(),
            "what operators had decided cannot be read: the disk does not answer; no backend is drained or disabled"
        );
        Vec::new()
    }))
}

fn write_all(folder: &Folder, config: &Path, orders: &Receiver<Order>, tell: &watch::Sender<Written>, calls: &Calls) {
    let mut in_force_now = Vec::new();
    while let Ok(first) = orders.recv() {
        // Only the last one of each counts.
        let (mut decided, mut in_force) = (None, None);
        for order in std::iter::once(first).chain(orders.try_iter()) {
            match order {
                Order::Decisions(number, decisions, at) => decided = Some((number, decisions, at)),
                Order::InForce(content) => in_force = Some(content),
            }
        }
        if let Some((number, decisions, at)) = decided {
            let text = json::pretty(&Document::of(&decisions, &at)) + "\n";
            let done = calls.make(|| replace(folder, NAME, 0o644, text.as_bytes()));
            if let Err(why) = &done {
                error!("decisions of operators will not survive a restart: {why}");
            }
            let _ = tell.send((number, done));
        }
        if let Some(content) = in_force.filter(|content| *content != in_force_now) {
            let kept = in_force::kept(config, &content);
            match calls.make(|| replace(folder, in_force::NAME, in_force::MODE, &kept)) {
                Ok(()) => in_force_now = content,
                Err(why) => error!("a start with an invalid file could not serve by the configuration in force: {why}"),
            }
        }
    }
}

fn replace(folder: &Folder, name: &str, mode: u32, content: &[u8]) -> Result<(), String> {
    folder.replace(name, mode, content).map_err(|e| format!("{}: {e}", folder.path_of(name).display()))
}

/// What was kept. A file that makes no sense is set aside: it must not keep the daemon from starting.
fn recall(folder: &Folder, now: &Moment) -> Vec<Decision> {
    let path = folder.path_of(NAME);
    let text = match folder.read(NAME, MOST_READ) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            warn!(path = %path.display(), "what operators had decided cannot be read: {e}; no backend is drained or disabled");
            return Vec::new();
        }
    };
    let (kept, odd) = match decisions(&text, now) {
        Ok((kept, 0)) => return kept,
        Ok((kept, odd)) => (kept, format!("{odd} of its entries make no sense")),
        Err(why) => (Vec::new(), why),
    };
    let (aside, done) = folder.set_aside(NAME, &text);
    let failed = done.err().map_or(String::new(), |e| format!(", which failed: {e}"));
    warn!(
        path = %path.display(),
        "what operators had decided is damaged: {odd}; decisions still in force: {}; the file is set aside as {}{failed}",
        kept.len(),
        aside.display()
    );
    kept
}

/// What can be read of it, and how many entries cannot.
fn decisions(text: &[u8], now: &Moment) -> Result<(Vec<Decision>, usize), String> {
    let document: Kept = json::read(text).map_err(|e| e.to_string())?;
    if document.version != VERSION {
        return Err(format!("its version is {}, this lbd knows {VERSION}", document.version));
    }
    let passed = document.written.as_ref().and_then(At::moment).map(|written| now.since(&written));
    let known = |entry: &Loose| match entry {
        Loose::Entry(entry) => entry.decision(passed, now),
        Loose::Odd(_) => None,
    };
    let all: Vec<Decision> = document.overrides.iter().filter_map(known).collect();
    let odd = document.overrides.len() - all.len();
    Ok((all, odd))
}

/// As it is read: an entry, or a key of one, that another version wrote is no reason to drop the others.
#[derive(Deserialize)]
struct Kept {
    version: u32,
    #[serde(default)]
    written: Option<At>,
    overrides: Vec<Loose>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Entry(Box<Entry>),
    Odd(IgnoredAny),
}

/// As it is written.
#[derive(Serialize)]
struct Document {
    version: u32,
    written: At,
    overrides: Vec<Entry>,
}

impl Document {
    fn of(decisions: &[Decision], at: &Moment) -> Self {
        let overrides = decisions.iter().map(|decision| Entry::of(decision, at)).collect();
        Self { version: VERSION, written: At::of(at), overrides }
    }
}

/// When it was written.
#[derive(Serialize, Deserialize)]
struct At {
    at: String,
    boot: String,
    ms_since_boot: u64,
}

impl At {
    fn of(moment: &Moment) -> Self {
        let ms_since_boot = u64::try_from(moment.since_boot.as_millis()).unwrap_or(u64::MAX);
        Self { at: timestamp(moment.wall), boot: moment.boot.clone(), ms_since_boot }
    }

    fn moment(&self) -> Option<Moment> {
        let since_boot = Duration::from_millis(self.ms_since_boot);
        Some(Moment { wall: moment(&self.at)?, boot: self.boot.clone(), since_boot })
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    pool: String,
    backend: String,
    address: String,
    admin: String,
    by: String,
    reason: Option<String>,
    since: String,
    /// By the wall clock, which may be wrong: for people, and for versions that do not know what is left.
    until: Option<String>,
    /// When it was written.
    #[serde(default)]
    ms_left: Option<u64>,
}

impl Entry {
    fn of(decision: &Decision, at: &Moment) -> Self {
        let (reference, address) = &decision.backend;
        Self {
            pool: reference.pool.to_string(),
            backend: reference.backend.to_string(),
            address: address.to_string(),
            admin: decision.admin.to_string(),
            by: decision.by.clone(),
            reason: decision.reason.clone(),
            since: timestamp(decision.since),
            until: decision.left.and_then(|left| at.wall.checked_add(left)).map(timestamp),
            ms_left: decision.left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// `passed`: since it was written, where that is known.
    fn decision(&self, passed: Option<Duration>, now: &Moment) -> Option<Decision> {
        let reference = BackendRef { pool: self.pool.parse().ok()?, backend: self.backend.parse().ok()? };
        let left = match (self.ms_left, passed, &self.until) {
            (Some(left), Some(passed), _) => Some(Duration::from_millis(left).saturating_sub(passed)),
            (_, _, Some(until)) => Some(moment(until)?.duration_since(now.wall).unwrap_or_default()),
            (_, _, None) => None,
        };
        Some(Decision {
            backend: (reference, self.address.parse().ok()?),
            admin: AdminState::from_spelling(&self.admin).filter(|admin| *admin != AdminState::Enabled)?,
            by: self.by.clone(),
            reason: self.reason.clone(),
            since: moment(&self.since)?,
            left,
        })
    }
}

#[cfg(test)]
mod tests;
