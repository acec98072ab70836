//! Performs what the supervisor decided: the only place that binds, publishes and speaks to the workers.
//! It hardly decides anything; what comes of an action goes back as an event.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::poll_fn;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::{error, warn};

use super::action::{Action, Doors, Exit, Notice};
use super::crew::Crew;
use super::event::{AskId, BackendKey, Event, FileRead, Job};
use super::files::{Files, Read};
use super::in_force::InForce;
use super::logging::Logging;
use super::sockets::Sockets;
use super::stall::{Calls, Outside};
use super::state::Keeper;
use super::systemd::Notifier;
use super::unit;
use super::unix_listener::{Access, Paths, known_group, look_up_group};
use super::upgrade::{Standing, Target};
use super::watch::{Timing, Watcher};
use crate::config::SocketAccess;
use crate::control::server::{answer_late, has_gone};
use crate::control::socket::ControlSocket;
use crate::control::{Reply, Roll};
use crate::probe::{Prober, most_at_a_time};
use crate::proxy::{self, Command, Limits, Line, Unaccepted};
use crate::snapshot::{Publisher, Revision};
use crate::words::{Address, Generation};

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Nowhere: it was made up at the start (`--demo`).
    Demo,
}

impl Source {
    /// How messages name it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Demo => "demo".into(),
        }
    }
}

/// An operator who waits.
pub enum Asker {
    /// Here: the way to the server, and the connection that it answers on.
    Here(oneshot::Sender<Reply>, RawFd),
    /// Since before this program took over.
    Late(UnixStream),
}

impl Asker {
    fn answer(self, reply: Reply) {
        // The asker may have gone.
        match self {
            Self::Here(answer, _) => drop(answer.send(reply)),
            Self::Late(connection) => drop(answer_late(&connection, &reply)),
        }
    }

    /// Whether nobody is there any more.
    pub fn has_gone(&self) -> bool {
        match self {
            // The server may not have noticed yet.
            Self::Here(answer, connection) => answer.is_closed() || has_gone(*connection),
            Self::Late(connection) => has_gone(connection.as_raw_fd()),
        }
    }

    /// The connection.
    pub fn number(&self) -> RawFd {
        match self {
            Self::Here(_, connection) => *connection,
            Self::Late(connection) => connection.as_raw_fd(),
        }
    }
}

/// What acts on the world.
pub struct Effects {
    /// Puts snapshots in force.
    pub publisher: Publisher,
    /// The operator's door.
    pub control: ControlSocket,
    /// The workers.
    pub crew: Crew,
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
    /// What reads the file.
    pub files: Files,
    /// Nobody wants any more what it reads.
    pub forgotten: bool,
    /// The watcher's calls to the file system.
    pub watching: Calls,
    /// Whatever may hang outside.
    pub outside: Vec<Outside>,
    /// Where the watcher says that the file has changed.
    pub changed: mpsc::Sender<()>,
    /// Present while changes of the file are to be applied by themselves.
    pub watcher: Option<Watcher>,
    /// What the file last held.
    pub seen: Vec<u8>,
    /// What was read last to be put in force: that, or what was kept.
    pub read: Vec<u8>,
    /// What was last in force before the start, where that is kept.
    pub kept: Option<InForce>,
    /// What it held when the configuration in force was read.
    pub in_force: (Generation, Vec<u8>),
    /// Operators who wait.
    pub answers: HashMap<AskId, Asker>,
    /// Who is connected to the control socket, and that socket.
    pub connected: (Roll, RawFd),
    /// Where the news of a program that was tried come in.
    pub checked: mpsc::Sender<(AskId, Result<Target, String>)>,
    /// For whom a program is being tried.
    pub trying: Option<(AskId, AbortHandle)>,
    /// The program that this process was started from, as the operator knows it.
    pub installed: PathBuf,
    /// What the process may have.
    pub limits: Arc<Limits>,
    /// Requests so far.
    pub asked: u64,
    /// While the workers stand still.
    pub(super) parked: Option<Standing>,
    /// Where clients are accepted.
    pub sockets: Sockets,
    /// Looks whether those that have a path are still found by it.
    pub paths: Paths,
    /// What writes operators' decisions down, where they are kept.
    pub keeper: Option<Keeper>,
    /// Where the service manager's answer comes in.
    pub job: mpsc::Sender<Job>,
    /// The last turn of all workers that was told of.
    pub turned: u64,
    /// Whether it was tried out if the service manager answers.
    pub manager_asked: bool,
}

impl Effects {
    /// Performs an action; what comes of it is added to `events`. Returns how the daemon ends, where it does.
    pub fn perform(&mut self, action: Action, events: &mut VecDeque<Event>) -> Option<Exit> {
        match action {
            Action::ReadConfig => events.extend(self.read_config().map(Event::ConfigRead)),
            Action::ReadKept => {
                let read = self.kept.take().map(|InForce { config, content }| {
                    self.read = content;
                    FileRead::Right(Box::new(config), Vec::new())
                });
                let read = read.unwrap_or_else(|| FileRead::Unreadable("nothing is kept".into()));
                events.push_back(Event::ConfigRead(read));
            }
            Action::ForgetRead => self.forgotten = true,
            Action::Bind(addresses, access) => events.push_back(self.bind(addresses, access)),
            Action::Permit(access) => self.sockets.permit(resolved(access)),
            Action::Rebind(lost) => events.push_back(self.rebind(lost)),
            Action::LookAtSockets(number) => self.look_at_sockets(number, events),
            Action::Publish { snapshot, doors } => {
                let revision = snapshot.revision;
                let backends = snapshot.pools.iter().map(|pool| pool.backends.len()).sum();
                if self.in_force.0 != snapshot.generation {
                    self.in_force = (snapshot.generation, self.read.clone());
                    self.keep_in_force();
                }
                self.publisher.publish(snapshot);
                self.change(&doors, revision);
                let probes = most_probes(backends, self.limits.descriptors());
                self.limits.set_aside(self.crew.lines.len(), self.sockets.descriptors(), probes);
            }
            Action::Cut(which) => self.tell_all(|| Command::Cut(which.clone())),
            Action::Probe(key, spec, outlook) => {
                let (pool, address) = (key.0.pool.clone(), key.1.clone());
                self.prober.start(key, &pool, address, spec, outlook, Instant::now());
            }
            Action::Keep(number, decisions) => {
                if let Some(keeper) = &self.keeper {
                    keeper.keep(number, decisions);
                }
            }
            Action::AskTurns(number) => self.tell_all(|| Command::Turn(number)),
            Action::AskJob => self.ask_job(events),
            Action::Answer(ask, mut reply) => {
                if let Reply::Status(status) = &mut reply {
                    status.warnings.extend(self.watcher.as_ref().and_then(Watcher::complaint));
                }
                if let Some(asker) = self.answers.remove(&ask) {
                    asker.answer(reply);
                }
            }
            Action::CheckTarget(ask, program) => self.check_target(ask, program),
            Action::ForgetTarget(ask) => self.forget_target(ask),
            Action::Freeze => events.push_back(Event::Frozen(self.freeze())),
            Action::HandOver(target, supervisor) => {
                let (why, lost) = self.hand_over(&target, *supervisor);
                events.push_back(Event::NotHandedOver(why, lost));
            }
            Action::SetLogLevel(level) => self.logging.set_level(level),
            Action::SetWatch(on) => self.watch(on),
            Action::SetControl(control) => self.files.permit(self.control.permissions(), control),
            Action::Notify(notice) => self.notify(notice),
            Action::Exit(exit) => return Some(exit),
        }
        None
    }

    /// Has the file read; what is known at once is returned.
    fn read_config(&mut self) -> Option<FileRead> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match &self.source {
            Source::Demo => {
                Some(FileRead::Unreadable("the demo has no file to read; start lbd with --config FILE".into()))
            }
            Source::File(path) if self.files.read(path) => None,
            Source::File(path) => {
                Some(FileRead::Unreadable(format!("{}: its file system does not answer", path.display())))
            }
        }
    }

    /// The file was read.
    pub fn has_read(&mut self, (read, content): Read) -> Event {
        if std::mem::take(&mut self.forgotten) {
            return Event::LateReadIsOver;
        }
        if let Some(watcher) = &self.watcher {
            watcher.has_read(&content);
        }
        self.read.clone_from(&content);
        self.seen = content;
        Event::ConfigRead(read)
    }

    /// Has what is in force now written down, where anything is.
    pub fn keep_in_force(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.keep_in_force(self.in_force.1.clone());
        }
    }

    fn bind(&mut self, addresses: Vec<Address>, access: BTreeMap<Address, SocketAccess>) -> Event {
        match self.sockets.bind(addresses, resolved(access), self.crew.lines.len()) {
            Ok(bound) => Event::Bound(bound),
            Err(reasons) => Event::NotBound(reasons),
        }
    }

    fn rebind(&mut self, lost: BTreeMap<Address, BTreeSet<usize>>) -> Event {
        let results = lost.into_iter().map(|(address, ended)| {
            let bound = self.sockets.rebind(&address, &ended, self.crew.lines.len(), &self.notifier);
            let result = bound.map(|sockets| self.listen_instead(&address, &ended, sockets));
            (address, result)
        });
        Event::Rebound(results.collect())
    }

    /// Has workers accept on these; at a path in place of the socket that nobody finds any more.
    fn listen_instead(&self, address: &Address, ended: &BTreeSet<usize>, sockets: Vec<(usize, OwnedFd)>) {
        let change = |listen, release| Command::Change { listen, release, revision: Revision::default() };
        if matches!(address, Address::Unix(_)) {
            self.tell_all(|| change(Vec::new(), vec![(address.clone(), Unaccepted::Accept)]));
        } else if self.notifier.is_heard() {
            let living = self.crew.lines.iter().enumerate().filter(|(worker, _)| !ended.contains(worker));
            living.for_each(|(_, line)| told(line.tell(Command::LendDoors(address.clone()))));
        }
        for (worker, socket) in sockets {
            if let Some(line) = self.crew.lines.get(worker) {
                told(line.tell(change(vec![(address.clone(), socket)], Vec::new())));
            }
        }
    }

    fn look_at_sockets(&mut self, number: u64, events: &mut VecDeque<Event>) {
        self.tell_all(|| Command::LookAtDoors);
        match self.sockets.paths() {
            paths if paths.is_empty() => events.push_back(Event::LookedAtSockets(number, Vec::new())),
            paths => self.paths.look(number, paths),
        }
    }

    /// Gives each worker its share of the new sockets, takes the old ones away, and asks for an acknowledgement.
    fn change(&mut self, doors: &Doors, revision: Revision) {
        let shares = self.sockets.hand_out(&doors.listen, self.crew.lines.len(), &self.notifier);
        let release = self.sockets.release(&doors.release, doors.unaccepted, &self.notifier);
        for (line, listen) in self.crew.lines.iter().zip(shares) {
            told(line.tell(Command::Change { listen, release: release.clone(), revision }));
        }
        if !doors.listen.is_empty() && self.notifier.is_heard() {
            tokio::spawn(warn_of_a_small_store(self.sockets.count()));
            if !std::mem::replace(&mut self.manager_asked, true) {
                tokio::spawn(warn_of_a_mute_manager());
            }
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.crew.lines.iter().for_each(|line| told(line.tell(command())));
    }

    fn watch(&mut self, on: bool) {
        let Source::File(path) = &self.source else { return };
        self.watcher = None;
        if !on {
            return;
        }
        let watcher = Watcher::start(path, &self.seen, self.changed.clone(), Timing::default(), self.watching.clone());
        match watcher {
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
            }
            Notice::Alive => self.notifier.watchdog(),
        }
    }

    /// The oldest snapshot that a worker works by.
    pub fn acknowledged(&self) -> Revision {
        self.crew.lines.iter().map(Line::acknowledged).min().unwrap_or_default()
    }

    /// Every worker has turned since it was asked to, where that is news.
    pub fn turned(&mut self) -> Option<Event> {
        let turned = self.crew.lines.iter().map(Line::turned).min().unwrap_or_default();
        let is_news = turned > std::mem::replace(&mut self.turned, turned);
        is_news.then_some(Event::Turned(turned))
    }

    /// Tells of what hangs outside, or does no longer.
    pub fn look_outside(&mut self) {
        let now = super::now().micros;
        self.outside.iter_mut().for_each(|outside| outside.look(now));
    }

    fn ask_job(&self, events: &mut VecDeque<Event>) {
        if !self.notifier.is_heard() {
            return events.push_back(Event::JobKnown(Job::Stop));
        }
        let (sockets, job) = (self.sockets.count(), self.job.clone());
        tokio::spawn(async move { job.send(unit::job(sockets).await).await });
    }

    /// Operators who have gone before they were answered.
    pub fn gone(&mut self) -> Vec<AskId> {
        let gone: Vec<AskId> = self.answers.iter().filter(|(_, a)| a.has_gone()).map(|(id, _)| *id).collect();
        gone.iter().for_each(|id| drop(self.answers.remove(id)));
        gone
    }

    /// Leaves nothing behind in the file system.
    pub fn clear_up(&self) {
        self.sockets.clear_up();
    }
}

/// Waits until one of those who wait has gone. Nothing tells of those who wait since before this program took over: they are
/// looked for after each event.
pub async fn somebody_goes(waiting: &mut HashMap<AskId, Asker>) {
    poll_fn(|cx| {
        let mut any = false;
        for asker in waiting.values_mut() {
            if let Asker::Here(answer, _) = asker {
                any |= answer.poll_closed(cx).is_ready(); // each is to wake us
            }
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// As many descriptors as probes take at a time, whatever the checks are; one that is over may still be read to its end.
pub fn most_probes(backends: usize, descriptors: u64) -> usize {
    2 * backends.min(most_at_a_time(descriptors))
}

/// With groups in place of their names. The file was read before, and its groups looked up with it.
fn resolved(access: BTreeMap<Address, SocketAccess>) -> BTreeMap<Address, Access> {
    let resolve = |SocketAccess { mode, group }| Access {
        mode,
        group: group.and_then(|name| known_group(&name).or_else(|| look_up_group(&name).ok()?)),
    };
    access.into_iter().map(|(address, access)| (address, resolve(access))).collect()
}

fn told(result: Result<(), proxy::Unanswered>) {
    if result.is_err() {
        error!("a worker takes no commands any more; restart lbd");
    }
}

/// Where not all are kept, a restart lets go of all in order, and clients are refused until the successor has bound them anew.
async fn warn_of_a_small_store(sockets: usize) {
    if let Some(room) = unit::store_room().await
        && room < sockets
    {
        warn!(
            sockets,
            room,
            "systemd keeps fewer listening sockets over a restart than there are: new clients are refused meanwhile; \
             raise FileDescriptorStoreMax= of the unit"
        );
    }
}

/// At the start, when there is time to mend it.
async fn warn_of_a_mute_manager() {
    if !unit::answers().await {
        warn!(
            "systemd cannot be asked about jobs, so that a restart will be taken for a stop: new clients are then refused for \
             up to drain_timeout; see that D-Bus runs (Debian: the package dbus)"
        );
    }
}
