//! Performs what the supervisor decided: the only place that binds, publishes and speaks to the workers.
//! It hardly decides anything; what comes of an action goes back as an event.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::action::{Action, Exit, Notice};
use super::event::{AskId, BackendKey, Event, FileRead};
use super::logging::Logging;
use super::systemd::Notifier;
use super::watch::{Timing, Watcher};
use crate::config::Config;
use crate::control::Reply;
use crate::control::socket::ControlSocket;
use crate::probe::Prober;
use crate::proxy::{self, Command, Line};
use crate::snapshot::{Publisher, Revision};
use crate::words::Address;

/// The longest file that is read, in bytes; one byte more tells the parser that it is too long.
const MOST_READ: u64 = 1024 * 1024 + 1;

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Nowhere: it was made up at the start (`--demo`).
    Demo,
}

/// What acts on the world.
pub struct Effects {
    /// Puts snapshots in force.
    pub publisher: Publisher,
    /// The operator's door.
    pub control: ControlSocket,
    /// To each worker.
    pub lines: Vec<Line>,
    /// Makes probes.
    pub prober: Prober<BackendKey>,
    /// Speaks to systemd.
    pub notifier: Notifier,
    /// For changes of its level.
    pub logging: Logging,
    /// Where the configuration comes from.
    pub source: Source,
    /// What was read before there was a supervisor.
    pub first: Option<FileRead>,
    /// Where the watcher says that the file has changed.
    pub changed: mpsc::Sender<()>,
    /// Present while changes of the file are to be applied by themselves.
    pub watcher: Option<Watcher>,
    /// What the file last held.
    pub seen: Vec<u8>,
    /// Operators who wait.
    pub answers: HashMap<AskId, oneshot::Sender<Reply>>,
    /// Bound, and not yet in force.
    pub fresh: BTreeMap<Address, Vec<OwnedFd>>,
    /// What is bound: as asked for, and as it is.
    pub held: BTreeMap<Address, Address>,
}

impl Effects {
    /// Performs an action; what comes of it is added to `events`. Returns how the daemon ends, where it does.
    pub fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) -> Option<Exit> {
        match action {
            Action::ReadConfig => events.push_back(Event::ConfigRead(self.read_config())),
            Action::Bind(addresses) => events.push_back(self.bind(addresses)),
            Action::Publish { snapshot, listen, release } => {
                let revision = snapshot.revision;
                self.publisher.publish(snapshot);
                self.hand_over(&listen, &release, revision);
            }
            Action::Cut(which) => self.tell_all(|| Command::Cut(which.clone())),
            Action::Probe(key, spec) => {
                let address = key.1.clone();
                self.prober.start(key, address, spec);
            }
            Action::Answer(ask, reply) => {
                if let Some(answer) = self.answers.remove(&ask) {
                    let _ = answer.send(reply); // the asker may have gone
                }
            }
            Action::SetLogLevel(level) => self.logging.set_level(level),
            Action::SetWatch(on) => self.watch(on),
            Action::SetControl(control) => {
                if let Err(e) = self.control.permit(control.mode, control.group.as_deref()) {
                    error!("{e}");
                }
            }
            Action::Notify(notice) => self.notify(notice),
            Action::Exit(exit) => return Some(exit),
        }
        None
    }

    fn read_config(&mut self) -> FileRead {
        if let Some(first) = self.first.take() {
            return first;
        }
        match &self.source {
            Source::Demo => FileRead::Unreadable("the demo has no file to read; start lbd with --config FILE".into()),
            Source::File(path) => {
                let (read, content) = read_file(path);
                if let Some(watcher) = &self.watcher {
                    watcher.has_read(&content);
                }
                self.seen = content;
                match read {
                    // Everything that can fail is to fail before the swap.
                    FileRead::Right(config) => match self.control.may_permit(config.control.group.as_deref()) {
                        Ok(()) => FileRead::Right(config),
                        Err(e) => FileRead::Unreadable(e.to_string()),
                    },
                    read => read,
                }
            }
        }
    }

    fn bind(&mut self, addresses: Vec<Address>) -> Event {
        let mut fresh = BTreeMap::new();
        let mut bound = BTreeMap::new();
        let mut reasons = Vec::new();
        let held: Vec<Address> = self.held.values().cloned().collect();
        for address in addresses {
            match proxy::bind(&address, self.lines.len(), &held) {
                Ok(door) => {
                    if matches!(address, Address::Unix(_)) && self.lines.len() > 1 {
                        info!(address = %address, "a Unix socket cannot be shared: one worker accepts on it");
                    }
                    bound.insert(address.clone(), door.address);
                    fresh.insert(address, door.sockets);
                }
                Err(e) => reasons.push((address, why_not_bound(&e))),
            }
        }
        if reasons.is_empty() {
            self.held.extend(bound.clone());
            self.fresh = fresh;
            return Event::Bound(bound);
        }
        fresh.keys().for_each(remove_file_of);
        Event::NotBound(reasons)
    }

    /// Gives each worker its share of the new sockets, takes the old ones away, and asks for an acknowledgement.
    fn hand_over(&mut self, listen: &[Address], release: &[Address], revision: Revision) {
        let mut shares: Vec<Vec<(Address, OwnedFd)>> = self.lines.iter().map(|_| Vec::new()).collect();
        for address in listen {
            for (share, socket) in shares.iter_mut().zip(self.fresh.remove(address).unwrap_or_default()) {
                share.push((address.clone(), socket));
            }
        }
        for address in release {
            remove_file_of(address);
            self.held.remove(address);
        }
        for (line, listen) in self.lines.iter().zip(shares) {
            told(line.tell(Command::Change { listen, release: release.to_vec(), revision }));
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.lines.iter().for_each(|line| told(line.tell(command())));
    }

    fn watch(&mut self, on: bool) {
        let Source::File(path) = &self.source else { return };
        self.watcher = None;
        if !on {
            return;
        }
        match Watcher::start(path, &self.seen, self.changed.clone(), Timing::default()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(e) => warn!(path = %path.display(), "the file cannot be watched: {e}; apply changes with lbctl reload"),
        }
    }

    fn notify(&self, notice: Notice) {
        match notice {
            Notice::Ready(status) => self.notifier.ready(&status),
            Notice::Status(status) => self.notifier.status(&status),
            Notice::Reloading => self.notifier.reloading(),
            Notice::Stopping(status) => self.notifier.stopping(&status),
            Notice::Extend(more, status) => {
                self.notifier.extend_timeout(more);
                self.notifier.status(&status);
                self.notifier.watchdog();
            }
        }
    }

    /// The oldest snapshot that a worker works by.
    pub fn acknowledged(&self) -> Revision {
        self.lines.iter().map(Line::acknowledged).min().unwrap_or_default()
    }

    /// Operators who have gone before they were answered.
    pub fn gone(&mut self) -> Vec<AskId> {
        let gone: Vec<AskId> = self.answers.iter().filter(|(_, a)| a.is_closed()).map(|(id, _)| *id).collect();
        gone.iter().for_each(|id| drop(self.answers.remove(id)));
        gone
    }

    /// Leaves nothing behind in the file system.
    pub fn clear_up(&self) {
        self.held.keys().for_each(remove_file_of);
    }
}

fn told(result: Result<(), proxy::Unanswered>) {
    if result.is_err() {
        error!("a worker takes no commands any more; restart lbd");
    }
}

fn remove_file_of(address: &Address) {
    if let Address::Unix(path) = address {
        let _ = fs::remove_file(path); // it may be gone already
    }
}

fn why_not_bound(e: &io::Error) -> String {
    match e.kind() {
        ErrorKind::AddrInUse => "is in use by another process; stop it or choose another port".into(),
        ErrorKind::AddrNotAvailable => "is not an address of this machine; see `ip address`".into(),
        ErrorKind::PermissionDenied => {
            "is not allowed to this user; ports below 1024 need CAP_NET_BIND_SERVICE, paths a writable folder".into()
        }
        ErrorKind::NotFound => "is in a folder that does not exist; create it".into(),
        _ => format!("cannot be bound: {e}"),
    }
}

/// Reads and checks a file; returns its content too.
pub fn read_file(path: &Path) -> (FileRead, Vec<u8>) {
    let name = path.display().to_string();
    match read_some(path) {
        Ok(content) => match Config::parse(&content) {
            Ok(config) => (FileRead::Right(Box::new(config)), content),
            Err(problems) => (FileRead::Wrong(name, problems), content),
        },
        Err(e) => {
            let mend = match e.kind() {
                ErrorKind::NotFound => "; create it, or name another with --config",
                ErrorKind::PermissionDenied => "; let the user that lbd runs as read it",
                _ => "",
            };
            (FileRead::Unreadable(format!("{name}: {e}{mend}")), Vec::new())
        }
    }
}

fn read_some(path: &Path) -> io::Result<Vec<u8>> {
    // A FIFO or a device would keep the reader for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "is no regular file"));
    }
    let mut content = Vec::new();
    fs::File::open(path)?.take(MOST_READ).read_to_end(&mut content)?;
    Ok(content)
}
