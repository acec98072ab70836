//! The world around the simulated supervisor: a file, sockets, workers, sessions, probes and operators, all made up.
//! It performs actions as the daemon would, late and in any order, and reports what comes of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::chance::{Chance, a_config};
use super::laws;
use super::succession::Ends;
use crate::config::{Config, Problem};
use crate::control::{Peer, Reply, Request};
use crate::daemon::action::{Action, Doors, Exit, Notice};
use crate::daemon::event::{AskId, BackendKey, Event, FileRead, Job, Now, Queues, ReloadBy};
use crate::daemon::supervisor::{Facts, Supervisor, Then};
use crate::proxy::Sessions;
use crate::snapshot::{BackendCell, ListenerCell, Revision, Snapshot};
use crate::words::Address;

pub const WORKERS: usize = 3;

/// What the file holds.
#[derive(Debug, Clone)]
pub enum File {
    Right(Box<Config>),
    Wrong,
    Unreadable,
}

/// Something that will have happened by a time.
#[derive(Debug)]
pub(super) enum Due {
    Event(Event),
    Probe(BackendKey),
    /// A worker takes a snapshot, with all that was told before it.
    Taken(usize, Revision),
}

/// An operator's request and what became of it.
#[derive(Debug)]
pub struct Ask {
    pub what: String,
    pub answers: u32,
    pub gone: bool,
    /// Which snapshot an answer that says "done" must wait for.
    pub revision: Revision,
    /// Whose sessions an answer that says "drained" must wait for.
    pub drains: Vec<Arc<BackendCell>>,
}

pub struct Session {
    pub listener: Arc<ListenerCell>,
    pub backend: Arc<BackendCell>,
}

pub struct World {
    pub chance: Chance,
    pub supervisor: Supervisor,
    pub now: Instant,
    pub(super) start: Instant,
    pub file: File,
    /// What was read last; it is in force once the generation has risen.
    pub read: Option<Config>,
    pub in_force: Option<Config>,
    pub(super) due: BTreeMap<(Instant, u64), Due>,
    /// What happens before anything else can.
    pub at_once: VecDeque<Event>,
    pub ends: Ends,
    pub(super) numbers: u64,
    pub fresh: BTreeMap<Address, Address>,
    pub held: BTreeSet<Address>,
    pub(super) published: Vec<Arc<Snapshot>>,
    /// The snapshot each worker works by at least, and when the last told one will be taken.
    pub(super) taken: [(Revision, Instant); WORKERS],
    pub asks: BTreeMap<AskId, Ask>,
    pub probes: BTreeSet<BackendKey>,
    pub sessions: Vec<Session>,
    pub reloading: bool,
    /// File systems may be away.
    pub hangs: bool,
    pub stopped_at: Option<Revision>,
    pub exit: Option<Exit>,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let (start, file) = (Instant::now(), File::Right(Box::new(a_config(&mut chance))));
        let facts = Facts {
            version: "0".into(),
            pid: 1,
            uid: 0,
            workers: WORKERS,
            pulse: Some(Duration::from_secs(3)),
            keeps: true,
            kept_file: false,
            config_path: Some("lbd.yaml".into()),
        };
        let mut world = Self {
            supervisor: Supervisor::new(facts, Vec::new(), seed, at(start, start)),
            chance,
            now: start,
            start,
            file,
            read: None,
            in_force: None,
            due: BTreeMap::new(),
            at_once: VecDeque::new(),
            ends: Ends::default(),
            numbers: 0,
            fresh: BTreeMap::new(),
            held: BTreeSet::new(),
            published: vec![Arc::new(Snapshot::empty())],
            taken: [(Revision(0), start); WORKERS],
            asks: BTreeMap::new(),
            probes: BTreeSet::new(),
            sessions: Vec::new(),
            reloading: false,
            hangs: true,
            stopped_at: None,
            exit: None,
            trace: traced.then(Vec::new),
        };
        world.happen(Event::ReloadAsked(ReloadBy::Start));
        world
    }

    /// Tells the supervisor of an event, performs what it decides, and checks every law.
    pub fn happen(&mut self, event: Event) {
        if let Some(trace) = &mut self.trace {
            let what: String = format!("{event:?}").chars().take(200).collect();
            trace.push(format!("{:>9.3} {what}", (self.now - self.start).as_secs_f64()));
        }
        if let Event::Probed(key, _) = &event {
            self.probes.remove(key);
        }
        let before = laws::Before::of(self, &event);
        if let Event::ConfigRead(FileRead::Right(config, _)) = &event {
            self.read = Some((**config).clone());
        }
        let asked = match &event {
            Event::Asked(ask, ..) => Some(*ask),
            _ => None,
        };
        let actions = self.supervisor.handle(at(self.start, self.now), event);
        if let Some((id, ask)) = asked.and_then(|id| Some((id, self.asks.get_mut(&id)?))) {
            ask.revision = self.supervisor.revision;
            if let Some(Then::Drained { cells, .. }) =
                self.supervisor.waiting.iter().find(|w| w.ask == id).map(|w| &w.then)
            {
                ask.drains = cells.clone();
            }
        }
        for action in actions {
            assert_eq!(self.exit, None, "nothing is heard of {action:?} after the exit");
            laws::nothing_is_begun_while_all_stand_still(self, &action);
            self.perform(action, &before);
        }
        laws::hold(self, &before);
        if let Some(next) = self.at_once.pop_front() {
            self.happen(next);
        }
    }

    fn perform(&mut self, action: Action, before: &laws::Before) {
        if let Some(trace) = &mut self.trace {
            let what: String = match &action {
                Action::Publish { snapshot, doors: Doors { listen, release, .. } } => {
                    format!("publish {:?} {:?} +{listen:?} -{release:?}", snapshot.generation, snapshot.revision)
                }
                other => format!("{other:?}").chars().take(160).collect(),
            };
            trace.push(format!("            -> {what}"));
        }
        match action {
            Action::ReadConfig => {
                let read = match &self.file {
                    File::Right(config) => FileRead::Right(config.clone(), Vec::new()),
                    File::Wrong => {
                        let (path, message) = ("pools".into(), "is empty".into());
                        FileRead::Wrong("lbd.yaml".into(), vec![Problem { line: 1, column: 1, path, message }])
                    }
                    File::Unreadable => FileRead::Unreadable("lbd.yaml: no such file".into()),
                };
                let is_reading = |due: &Due| matches!(due, Due::Event(Event::ConfigRead(_) | Event::LateReadIsOver));
                assert!(!self.due.values().any(is_reading), "the thread that reads does one thing at a time");
                // The file system is away for a while; but not at the start.
                if self.published.len() > 1 && self.hangs && self.chance.happens(8) {
                    let back = self.now + self.chance.millis(30_000);
                    return self.later(back, Due::Event(Event::ConfigRead(read)));
                }
                self.soon(Event::ConfigRead(read));
            }
            Action::ReadKept => unreachable!("nothing is kept"),
            Action::ForgetRead => {
                let is_read = |due: &&mut Due| matches!(due, Due::Event(Event::ConfigRead(_)));
                let read = self.due.values_mut().find(is_read).expect("it is under way");
                *read = Due::Event(Event::LateReadIsOver);
            }
            Action::Bind(addresses, _) => {
                laws::only_new_addresses_are_bound(self, &addresses);
                let first = self.published.len() == 1;
                if !first && self.chance.happens(15) {
                    let reason = (addresses[self.chance.below(addresses.len())].clone(), "is in use".into());
                    return self.soon(Event::NotBound(vec![reason]));
                }
                self.fresh = addresses.into_iter().map(|a| (a.clone(), a)).collect();
                self.soon(Event::Bound(self.fresh.clone()));
            }
            Action::LookAtSockets(number) => {
                let lost = self.held.iter().filter(|_| self.chance.happens(5)).cloned();
                let missing = lost.map(|address| (address, "its socket file was removed".into())).collect();
                self.soon(Event::LookedAtSockets(number, missing));
            }
            Action::Rebind(lost) => {
                assert!(lost.keys().all(|address| self.held.contains(address)), "{lost:?} is in force");
                let results = lost.into_keys().map(|address| {
                    let result = if self.chance.happens(30) { Err("is in use".into()) } else { Ok(()) };
                    (address, result)
                });
                let rebound = Event::Rebound(results.collect());
                self.soon(rebound);
            }
            Action::Publish { snapshot, doors: Doors { listen, release, .. } } => {
                laws::a_snapshot_follows(self, self.published.last().expect("there is a first"), &snapshot);
                for address in &listen {
                    assert!(self.fresh.remove(address).is_some(), "{address} is bound before it is accepted on");
                    assert!(self.held.insert(address.clone()), "{address} is accepted on once");
                }
                for address in &release {
                    assert!(self.held.remove(address), "{address} is let go once");
                }
                if !before.stopping && self.supervisor.stage.is_stopping() && self.held.is_empty() {
                    self.stopped_at.get_or_insert(snapshot.revision);
                }
                for worker in 0..WORKERS {
                    let slow = if self.chance.happens(1) { 7000 } else { 30 };
                    let taken = (self.now + self.chance.millis(slow)).max(self.taken[worker].1);
                    self.taken[worker].1 = taken;
                    self.later(taken, Due::Taken(worker, snapshot.revision));
                }
                self.published.push(snapshot);
            }
            Action::Cut(Sessions::All) => self.close_sessions(70, |_| true),
            Action::Cut(Sessions::Of(cell)) => self.close_sessions(100, |s| Arc::ptr_eq(&s.backend, &cell)),
            Action::Probe(key, spec, _) => {
                laws::may_be_probed(self, &key);
                assert!(self.probes.insert(key.clone()), "two probes of {key:?} at a time");
                let done = self.now + self.chance.millis(spec.timeout.as_millis() as u64);
                self.later(done, Due::Probe(key));
            }
            Action::Keep(number, _) => self.soon(Event::Kept(number, Ok(()))),
            Action::AskTurns(number) => self.soon(Event::Turned(number)),
            Action::AskJob => {
                let jobs = [Job::Stop, Job::Restart(Queues::Kept), Job::Restart(Queues::Lost)];
                let job = self.chance.one_of(&jobs);
                self.soon(Event::JobKnown(job));
            }
            Action::Answer(ask, reply) => self.answered(ask, &reply),
            Action::Notify(Notice::Reloading) => self.reloading = true,
            Action::Notify(Notice::Ready(_)) => self.reloading = false,
            Action::SetLogLevel(_)
            | Action::SetWatch(_)
            | Action::SetControl(_)
            | Action::Permit(_)
            | Action::Notify(_) => {}
            Action::CheckTarget(ask, _) => self.try_program(ask),
            Action::ForgetTarget(ask) => self.forget_program(ask),
            Action::Freeze => self.freeze(),
            Action::HandOver(_, carried) => self.hand_over(*carried),
            Action::Exit(exit) => self.exit = Some(exit),
        }
    }

    fn answered(&mut self, ask: AskId, reply: &Reply) {
        let taken = self.all_have_taken();
        let ask = self.asks.get_mut(&ask).expect("who is answered has asked");
        ask.answers += 1;
        assert_eq!(ask.answers, 1, "{} is answered once: {reply:?}", ask.what);
        match reply {
            Reply::Changed { .. } => {
                assert!(taken >= ask.revision, "{}: answered at {taken:?} before {:?}", ask.what, ask.revision);
            }
            Reply::Drained { .. } => {
                assert!(taken >= ask.revision, "{}: answered at {taken:?} before {:?}", ask.what, ask.revision);
                let seen = self.published.iter().rev().take_while(|s| s.revision >= taken);
                laws::are_drained(&ask.drains, seen);
            }
            _ => {}
        }
    }

    pub(super) fn later(&mut self, at: Instant, due: Due) {
        self.numbers += 1;
        self.due.insert((at, self.numbers), due);
    }

    /// At once, as it mostly is; but nothing may depend on it.
    fn soon(&mut self, event: Event) {
        let delay = if self.chance.happens(60) { Duration::ZERO } else { self.chance.millis(200) };
        self.later(self.now + delay, Due::Event(event));
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets the next thing happen that is under way.
    pub fn deliver(&mut self) {
        let Some(((at, _), due)) = self.due.pop_first() else { return };
        self.now = self.now.max(at);
        match due {
            Due::Event(event) => self.happen(event),
            Due::Taken(worker, revision) => {
                self.taken[worker].0 = revision;
                self.happen(Event::Acknowledged(self.all_have_taken()));
            }
            Due::Probe(key) => {
                self.probes.remove(&key);
                match self.chance.below(20) {
                    0 => self.happen(Event::NotProbed(key, "too many open files".into())),
                    1..5 => self.happen(Event::Probed(key, Err("refused".into()))),
                    _ => self.happen(Event::Probed(key, Ok(()))),
                }
            }
        }
    }

    pub fn all_have_taken(&self) -> Revision {
        self.taken.iter().map(|(revision, _)| *revision).min().unwrap_or_default()
    }

    pub fn ask(&mut self, request: Request) {
        self.numbers += 1;
        let ask = AskId(self.numbers);
        let what = if self.trace.is_some() { format!("{ask:?} {request:?}") } else { format!("{ask:?}") };
        self.asks.insert(ask, Ask { what, answers: 0, gone: false, revision: Revision(0), drains: Vec::new() });
        self.happen(Event::Asked(ask, request, Peer { uid: 0, user: None }));
    }

    pub fn somebody_goes(&mut self) -> Option<Event> {
        let waiting: Vec<AskId> =
            self.asks.iter().filter(|(_, a)| a.answers == 0 && !a.gone).map(|(id, _)| *id).collect();
        if waiting.is_empty() {
            return None;
        }
        let ask = waiting[self.chance.below(waiting.len())];
        self.asks.get_mut(&ask).expect("it waits").gone = true;
        Some(Event::AskerGone(ask))
    }

    /// A client comes to a worker, which chooses by any snapshot that it may still see.
    pub fn open_session(&mut self) {
        let (taken, _) = self.taken[self.chance.below(WORKERS)];
        if self.stopped_at.is_some_and(|revision| taken >= revision) {
            return; // it has no door any more
        }
        let seen: Vec<&Arc<Snapshot>> = self.published.iter().rev().take_while(|s| s.revision >= taken).collect();
        let snapshot = Arc::clone(seen[self.chance.below(seen.len())]);
        if snapshot.listeners.is_empty() {
            return;
        }
        let listener = &snapshot.listeners[self.chance.below(snapshot.listeners.len())];
        let pool = &listener.pool;
        if pool.eligible.is_empty() {
            return;
        }
        let chosen = pool.eligible[self.chance.below(pool.eligible.len())];
        let backend = Arc::clone(&pool.backends[usize::from(chosen)].cell);
        let listener = Arc::clone(&listener.cell);
        assert!(listener.live.reserve(None) && backend.live.reserve(None));
        self.sessions.push(Session { listener, backend });
    }

    pub fn close_sessions(&mut self, percent: u64, which: impl Fn(&Session) -> bool) {
        let (chance, sessions) = (&mut self.chance, &mut self.sessions);
        sessions.retain(|session| {
            let closes = which(session) && chance.happens(percent);
            if closes {
                session.listener.live.release();
                session.backend.live.release();
            }
            !closes
        });
    }
}

pub(super) fn at(start: Instant, now: Instant) -> Now {
    Now { at: now, micros: 1 + (now - start).as_micros() as u64, wall: SystemTime::UNIX_EPOCH + (now - start) }
}
