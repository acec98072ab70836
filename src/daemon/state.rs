//! Keeps the operators' decisions over a restart: in a file of the folder that systemd gives the service to keep state in
//! (`StateDirectory=`). Without one nothing is kept: a daemon that somebody tries out must not take over what was
//! decided for the service. The disk may hang, so that a thread of its own writes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, warn};

use super::event::Decision;
use super::logging::{moment, timestamp};
use super::signals::leave_to_others;
use crate::observe::json;
use crate::words::{AdminState, BackendRef};

const NAME: &str = "overrides.json";
/// The format; another one is not guessed at.
const VERSION: u32 = 1;
/// The longest file that is read, in bytes: some ten thousand decisions.
const MOST_READ: u64 = 4 << 20;

/// What came of the last writing: its number, and the reason where it failed.
pub type Written = (u64, Result<(), String>);

/// The news of it.
pub type News = watch::Receiver<Written>;

/// The way to the disk.
#[derive(Debug)]
pub struct Keeper {
    /// Unbounded, but for the operators who wait for what is in it.
    orders: Sender<(u64, Vec<Decision>)>,
    finished: Receiver<()>,
}

impl Keeper {
    fn start(folder: &Path) -> io::Result<(Self, News, Vec<Decision>)> {
        let path = folder.join(NAME);
        let kept = recall(&path);
        let (orders, taken) = channel();
        let (finish, finished) = channel();
        let (tell, written) = watch::channel((0, Ok(())));
        thread::Builder::new().name("lbd-state".into()).spawn(move || {
            leave_to_others();
            write_all(&path, &taken, &tell);
            let _ = finish.send(());
        })?;
        Ok((Self { orders, finished }, written, kept))
    }

    /// Has decisions written; what comes of it is told.
    pub fn keep(&self, number: u64, decisions: Vec<Decision>) {
        // The thread ends after us.
        let _ = self.orders.send((number, decisions));
    }

    /// Waits until everything is written, but no longer than this.
    pub fn finish(self, patience: Duration) {
        drop(self.orders);
        if self.finished.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            error!("the last decisions of operators are not written down: the disk does not answer");
        }
    }
}

/// Keeps what is decided in this folder, where there is one; returns what was kept there so far, too.
///
/// # Errors
/// No thread can be had.
pub fn keep_in(folder: Option<&Path>) -> io::Result<(Option<Keeper>, News, Vec<Decision>)> {
    match folder {
        Some(folder) => Keeper::start(folder).map(|(keeper, news, kept)| (Some(keeper), news, kept)),
        None => Ok((None, watch::channel((0, Ok(()))).1, Vec::new())),
    }
}

/// The folder, where systemd gives one.
pub fn folder() -> Option<PathBuf> {
    let all = std::env::var_os("STATE_DIRECTORY")?;
    std::env::split_paths(&all).next().filter(|first| !first.as_os_str().is_empty())
}

fn write_all(path: &Path, orders: &Receiver<(u64, Vec<Decision>)>, tell: &watch::Sender<Written>) {
    while let Ok(first) = orders.recv() {
        let (number, decisions) = orders.try_iter().last().unwrap_or(first); // only the last one counts
        let done = write(path, &decisions).map_err(|e| format!("{}: {e}", path.display()));
        if let Err(why) = &done {
            error!("decisions of operators will not survive a restart: {why}");
        }
        let _ = tell.send((number, done));
    }
}

/// Whole or not at all, whatever happens meanwhile.
fn write(path: &Path, decisions: &[Decision]) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let overrides = decisions.iter().map(Entry::from).collect();
    let mut file = File::create(&fresh)?;
    file.write_all(json::pretty(&Document { version: VERSION, overrides }).as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// What was kept. A file that makes no sense is set aside: it must not keep the daemon from starting.
fn recall(path: &Path) -> Vec<Decision> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST_READ).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            warn!(path = %path.display(), "what operators had decided cannot be read: {e}; no backend is drained or disabled");
            return Vec::new();
        }
    }
    let (kept, odd) = match decisions(&text) {
        Ok((kept, 0)) => return kept,
        Ok((kept, odd)) => (kept, format!("{odd} of its entries make no sense")),
        Err(why) => (Vec::new(), why),
    };
    let aside = unused_name(path);
    let failed = fs::copy(path, &aside).err().map_or(String::new(), |e| format!(", which failed: {e}"));
    warn!(
        path = %path.display(),
        "what operators had decided is damaged: {odd}; decisions still in force: {}; the file is set aside as {}{failed}",
        kept.len(),
        aside.display()
    );
    kept
}

/// Where a damaged file goes; earlier ones stay, up to a number.
fn unused_name(path: &Path) -> PathBuf {
    let first = path.with_extension("json.damaged");
    let others = (1..10).map(|n| path.with_extension(format!("json.damaged.{n}")));
    std::iter::once(first.clone()).chain(others).find(|name| !name.exists()).unwrap_or(first)
}

/// What can be read of it, and how many entries cannot.
fn decisions(text: &[u8]) -> Result<(Vec<Decision>, usize), String> {
    let document: Kept = json::read(text).map_err(|e| e.to_string())?;
    if document.version != VERSION {
        return Err(format!("its version is {}, this lbd knows {VERSION}", document.version));
    }
    let known = |entry: &Loose| match entry {
        Loose::Entry(entry) => entry.decision(),
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
    overrides: Vec<Loose>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Entry(Entry),
    Odd(IgnoredAny),
}

/// As it is written.
#[derive(Serialize)]
struct Document {
    version: u32,
    overrides: Vec<Entry>,
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
    until: Option<String>,
}

impl From<&Decision> for Entry {
    fn from(decision: &Decision) -> Self {
        let (reference, address) = &decision.backend;
        Self {
            pool: reference.pool.to_string(),
            backend: reference.backend.to_string(),
            address: address.to_string(),
            admin: decision.admin.to_string(),
            by: decision.by.clone(),
            reason: decision.reason.clone(),
            since: timestamp(decision.since),
            until: decision.until.map(timestamp),
        }
    }
}

impl Entry {
    fn decision(&self) -> Option<Decision> {
        let reference = BackendRef { pool: self.pool.parse().ok()?, backend: self.backend.parse().ok()? };
        let until = match &self.until {
            Some(text) => Some(moment(text)?),
            None => None,
        };
        Some(Decision {
            backend: (reference, self.address.parse().ok()?),
            admin: AdminState::from_spelling(&self.admin).filter(|admin| *admin != AdminState::Enabled)?,
            by: self.by.clone(),
            reason: self.reason.clone(),
            since: moment(&self.since)?,
            until,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn decision(backend: &str, until: Option<u64>) -> Decision {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7);
        Decision {
            backend: (
                BackendRef { pool: "web".parse().unwrap(), backend: backend.parse().unwrap() },
                "unix:/run/a.sock".parse().unwrap(),
            ),
            admin: AdminState::Draining,
            by: "alice (uid 1000)".into(),
            reason: Some("new \"disk\"\n".into()),
            since: at(1_700_000_000),
            until: until.map(at),
        }
    }

    #[test]
    fn what_is_kept_is_recalled_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (keeper, mut written, kept) = Keeper::start(folder.path()).unwrap();
        assert_eq!(kept, []);
        let decided = vec![decision("a", None), decision("b", Some(1_800_000_000))];
        keeper.keep(1, vec![decision("a", None)]);
        keeper.keep(2, decided.clone());
        keeper.finish(Duration::from_secs(20));
        assert_eq!(*written.borrow_and_update(), (2, Ok(())));
        assert_eq!(Keeper::start(folder.path()).unwrap().2, decided);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(names, [NAME], "nothing else is left");
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_what_comes_next_is_kept() {
        let right = json::pretty(&Document { version: 1, overrides: vec![Entry::from(&decision("a", None))] });
        assert_eq!(decisions(right.as_bytes()).unwrap(), (vec![decision("a", None)], 0));
        let newer = right.replace("\"by\"", "\"key of tomorrow\": 1, \"by\"");
        assert_eq!(decisions(newer.as_bytes()).unwrap(), (vec![decision("a", None)], 0));
        for damaged in [
            String::new(),
            right[..right.len() / 2].to_owned(),
            right.replace("draining", "enabled"),
            right.replace("draining", "gone"),
            right.replace("\"version\": 1", "\"version\": 2"),
            right.replace("web", "w/b"),
            right.replace("2023-", "soon-"),
            right.replace("\"by\"", "\"of\""),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(NAME), &damaged).unwrap();
            let (keeper, _, kept) = Keeper::start(folder.path()).unwrap();
            assert_eq!(kept, [], "{damaged}");
            assert_eq!(fs::read_to_string(folder.path().join("overrides.json.damaged")).unwrap(), damaged);
            keeper.keep(1, vec![decision("b", None)]);
            keeper.finish(Duration::from_secs(20));
            assert_eq!(Keeper::start(folder.path()).unwrap().2, [decision("b", None)]);
        }
    }

    #[test]
    fn an_entry_that_makes_no_sense_takes_no_other_along() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let both = Document {
            version: 1,
            overrides: vec![Entry::from(&decision("a", None)), Entry::from(&decision("b", None))],
        };
        for (n, (from, to)) in [("\"b\"", "\"b/b\""), ("\"backend\": \"b\",", "")].into_iter().enumerate() {
            let text = json::pretty(&both).replace(from, to);
            fs::write(&path, &text).unwrap();
            assert_eq!(recall(&path), [decision("a", None)], "{text}");
            let aside = ["overrides.json.damaged", "overrides.json.damaged.1"][n];
            assert_eq!(fs::read_to_string(folder.path().join(aside)).unwrap(), text);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_told() {
        let (keeper, written, kept) = Keeper::start(Path::new("/proc/nowhere")).unwrap();
        assert_eq!(kept, []);
        keeper.keep(1, Vec::new());
        keeper.finish(Duration::from_secs(20));
        let (number, done) = written.borrow().clone();
        assert!(number == 1 && done.is_err_and(|why| why.contains("/proc/nowhere/overrides.json")));
    }
}
