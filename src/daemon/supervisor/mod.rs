//! Decides what follows from what happens: `handle(now, event)` returns actions, [`Supervisor::next_deadline`]
//! says when it wants to be asked again. It reads no clock, file or socket, so that a test can play any history
//! through it. It owns the configuration in force, the cells, the verdicts and the operator's overrides.

mod backends;
mod fallback;
mod heritage;
mod keeping;
mod limits;
mod listening;
mod liveness;
mod operator;
mod pulse;
mod reading;
mod reload;
mod report;
#[cfg(test)]
mod simulation;
mod stop;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::action::{Action, Doors, Notice};
use super::event::{AskId, BackendKey, Decision, Event, Now, ReloadBy};
use crate::config::{Config, ConfigDiff};
use crate::control::Reply;
use crate::observe::LastReload;
use crate::snapshot::{BackendCell, BackendFacts, Cells, Revision, Snapshot, build, update};
use crate::words::{Address, AdminState, BackendRef, Generation, Health, PoolName};

use backends::{Backends, Known};
pub use heritage::CarriedSupervisor;
use keeping::recalled;
use limits::AtLimit;
use listening::{ENDED, Listening};
use liveness::Spell;
use pulse::Pulse;
use reading::Reading;
pub use stop::Stage;
use upgrade::Upgrading;

/// Answers to operators that may be outstanding at a time; one more is refused.
const MOST_WAITING: usize = 64;
/// How long workers may take to acknowledge before the operator is told that one does not.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// How often a counter is read again while somebody waits for it to become zero.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long verdicts are gathered before they are published together: at start they come in hundreds.
const GATHER: Duration = Duration::from_millis(5);
/// So much longer for each backend there is, since a pool that changes is built anew: verdicts that turn all the time cost a
/// few percent of a core, however many backends there are.
const GATHER_EACH: Duration = Duration::from_micros(2);
/// How often systemd's status line is brought up to date.
const STATUS: Duration = Duration::from_secs(1);

/// The facts about the process that the supervisor tells but does not decide.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The user that it runs as.
    pub uid: u32,
    /// Its worker threads.
    pub workers: usize,
    /// Whether what operators decide is written down.
    pub keeps: bool,
    /// How often the service manager wants proof that everything turns; `None`: not at all.
    pub pulse: Option<Duration>,
    /// Whether there is a file that was last in force, beside that of the start.
    pub kept_file: bool,
    /// The file; `None` where there is none (`--demo`).
    pub config_path: Option<String>,
}

/// What decides. One for the process.
#[derive(Debug)]
pub struct Supervisor {
    facts: Facts,
    started: Instant,
    config: Option<Config>,
    /// The one that the process was started with: some keys of a later one wait for the next start.
    first: Option<Config>,
    generation: Generation,
    cells: Cells,
    snapshot: Arc<Snapshot>,
    revision: Revision,
    /// Probes cannot be made.
    unable: Option<Spell>,
    /// Probes of these pools are late.
    late: BTreeMap<PoolName, Spell>,
    /// What is bound: as the file has it, and as it is.
    bound: BTreeMap<Address, Address>,
    backends: Backends,
    /// Probes under way; one of a backend that has gone may meet it come back.
    probing: BTreeSet<BackendKey>,
    overrides: BTreeMap<BackendKey, Override>,
    /// How often they were to be written down.
    keeping: u64,
    /// The last time that this was done, and why it failed, where it did.
    kept: (u64, Result<(), String>),
    listening: Listening,
    at_limit: AtLimit,
    reload: Option<Reload>,
    reading: Reading,
    /// Why the file of the start is not in force, but the one that was kept.
    fallback: Option<String>,
    /// At the last look.
    clocks: Now,
    /// Who asked for a reload while one was under way.
    next_reload: VecDeque<ReloadBy>,
    last_reload: Option<(LastReload, Instant)>,
    /// What the journal has been told of the configuration in force.
    warned: Vec<String>,
    waiting: Vec<Waiting>,
    /// Every worker has this snapshot.
    acknowledged: Revision,
    /// What is known of some backends has changed and is to be published by then.
    publish_at: Option<Instant>,
    /// Of which.
    changed: BTreeSet<BackendKey>,
    status_at: Instant,
    last_status: String,
    stage: Stage,
    upgrading: Option<Upgrading>,
    /// How often another program has taken over in place.
    upgrades: u64,
    /// The service manager has been asked why the daemon is to stop.
    job_asked: bool,
    pulse: Pulse,
    random: u64,
}

/// An operator's runtime decision, laid over the file.
#[derive(Debug, Clone)]
struct Override {
    admin: AdminState,
    by: String,
    reason: Option<String>,
    since: SystemTime,
    /// It was told that no session is left.
    drained: bool,
    until: Option<Instant>,
}

/// A reload under way.
#[derive(Debug)]
struct Reload {
    by: ReloadBy,
    asked_at: Instant,
    /// Read and checked, while its addresses are being bound; with what the operator should know of it.
    config: Option<(Config, ConfigDiff, Vec<String>)>,
}

/// An answer that somebody waits for.
#[derive(Debug)]
struct Waiting {
    ask: AskId,
    /// First every worker must have this snapshot.
    revision: Revision,
    acknowledged: bool,
    /// And this much of what was decided must be written down.
    kept: u64,
    /// And this look at the listening sockets must have come to an end; 0: none.
    look: u64,
    /// When they are to have acknowledged.
    patience: Instant,
    then: Then,
}

/// What the answer depends on once every worker knows.
#[derive(Debug)]
enum Then {
    /// On nothing more.
    Answer(Reply),
    /// On the end of these backends' sessions.
    Drained { cells: Vec<Arc<BackendCell>>, deadline: Option<Instant> },
}

impl Supervisor {
    /// A supervisor before the first configuration, with what operators decided in a former life. `seed` drives the
    /// jitter of probes.
    pub fn new(facts: Facts, decided: Vec<Decision>, seed: u64, now: Now) -> Self {
        Self {
            cells: Cells::new(facts.workers),
            facts,
            started: now.at,
            config: None,
            first: None,
            generation: Generation::default(),
            snapshot: Arc::new(Snapshot::empty()),
            revision: Revision::default(),
            unable: None,
            late: BTreeMap::new(),
            bound: BTreeMap::new(),
            backends: Backends::default(),
            probing: BTreeSet::new(),
            overrides: recalled(decided, now),
            keeping: 0,
            kept: (0, Ok(())),
            listening: Listening::default(),
            at_limit: AtLimit::new(),
            reload: None,
            reading: Reading::default(),
            fallback: None,
            clocks: now,
            next_reload: VecDeque::new(),
            last_reload: None,
            warned: Vec::new(),
            waiting: Vec::new(),
            acknowledged: Revision::default(),
            publish_at: None,
            changed: BTreeSet::new(),
            status_at: now.at,
            last_status: String::new(),
            stage: Stage::Starting,
            upgrading: None,
            upgrades: 0,
            job_asked: false,
            pulse: Pulse::new(now),
            random: seed | 1,
        }
    }

    /// What follows from an event.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let out = &mut actions;
        match event {
            Event::ReloadAsked(by) => self.reload_asked(by, now, out),
            Event::ConfigRead(read) => self.config_read(read, now, out),
            Event::LateReadIsOver => self.late_read_is_over(now, out),
            Event::Bound(bound) => self.bound(bound, now, out),
            Event::NotBound(reasons) => self.not_bound(reasons, now, out),
            Event::SocketEnded(address, worker) => self.socket_ended(address, &[worker], ENDED, now),
            Event::LookedAtSockets(number, missing) => self.looked_at_sockets(number, missing, now),
            Event::Rebound(results) => self.rebound(results, now),
            Event::Asked(ask, request, peer) => self.asked(ask, request, peer, now, out),
            Event::AskerGone(ask) => {
                self.waiting.retain(|w| w.ask != ask);
                self.forget_upgrade_of(ask, out);
            }
            Event::Acknowledged(revision) => self.acknowledged(revision),
            Event::Probed(key, result) => self.probed(&key, result, now),
            Event::NotProbed(key, why) => self.not_probed(&key, why, now),
            Event::ProbeBegan(key, waited) => self.probe_began(&key, waited, now),
            Event::DialFailed(key) => self.dial_failed(&key, now),
            Event::Kept(number, result) if number > self.kept.0 => self.kept = (number, result),
            Event::Kept(..) => {}
            Event::Turned(number) => self.turned(number, out),
            Event::Checked(ask, result, begun) => self.checked(ask, result, begun, out),
            Event::Frozen(result) => self.frozen(result, now, out),
            Event::NotHandedOver(why, lost) => self.not_handed_over(&why, lost, out),
            Event::TookOver(how) => self.took_over(how, now, out),
            Event::StopAsked => self.stop_asked(now, out),
            Event::JobKnown(job) => self.job_known(job, now, out),
            Event::Tick => {}
        }
        if !self.is_frozen() {
            self.whatever_is_due(now, out);
        }
        actions
    }

    /// When `handle` is to be called with a tick at the latest, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let probing = !self.stage.is_stopping();
        let probes = self.backends.next_due().filter(|_| probing);
        let overrides = self.overrides.values().filter_map(|o| o.until);
        let waits = self.waiting.iter().filter_map(|w| match (&w.then, w.acknowledged && w.kept <= self.kept.0) {
            (_, false) => Some(w.patience),
            (Then::Drained { .. }, true) => Some(w.patience), // moved on at each look
            (Then::Answer(_), true) => Some(w.patience).filter(|_| !self.has_looked(w.look)),
        });
        let status = (self.stage == Stage::Serving).then_some(self.status_at);
        let stop = self.stage.next_look();
        let listening = self.next_for_listening();
        let once = [probes, stop, self.publish_at, self.next_pulse(), self.gives_up_reading_at(), listening];
        overrides.chain(waits).chain(status).chain(once.into_iter().flatten()).min()
    }

    fn whatever_is_due(&mut self, now: Now, out: &mut Vec<Action>) {
        self.start_probes(now, out);
        self.feel_the_pulse(now, out);
        self.give_up_reading(now, out);
        self.end_overrides(now, out);
        if self.publish_at.is_some_and(|at| at <= now.at) {
            self.publish_changed(out);
        }
        self.tend_listening(now, out);
        self.answer_waiting(now, out);
        self.go_on_stopping(now, out);
        if self.stage == Stage::Serving && self.status_at <= now.at {
            self.status_at = now.at + STATUS;
            self.follow_the_wall_clock(now, out);
            if self.acknowledged >= self.revision {
                self.cells.forget_empty();
            }
            self.tell_of_drained();
            self.end_spells(now);
            self.tell_of_limits(now);
            let status = self.status_line();
            if status != self.last_status {
                self.last_status.clone_from(&status);
                out.push(Action::Notify(Notice::Status(status)));
            }
        }
    }

    /// Builds the snapshot of how things stand and puts it in force.
    fn publish(&mut self, doors: Doors, out: &mut Vec<Action>) {
        self.publish_at = None;
        self.changed.clear();
        let Some(config) = &self.config else { return };
        self.revision.0 += 1;
        let facts = |cell: &BackendCell| self.facts_of(cell);
        let numbers = (self.generation, self.revision);
        self.snapshot = Arc::new(build(numbers, config, &self.cells, facts, Some(&self.snapshot)));
        out.push(Action::Publish { snapshot: Arc::clone(&self.snapshot), doors });
    }

    /// The same where nothing but what is known of some backends has changed: pools of none of them stay as they are.
    fn publish_changed(&mut self, out: &mut Vec<Action>) {
        self.publish_at = None;
        let changed = std::mem::take(&mut self.changed);
        self.revision.0 += 1;
        let numbers = (self.generation, self.revision);
        let cells = changed.iter().filter_map(|(reference, address)| self.cells.backend(reference, address));
        let facts = |cell: &BackendCell| self.facts_of(cell);
        self.snapshot = Arc::new(update(numbers, cells, facts, &self.snapshot));
        out.push(Action::Publish { snapshot: Arc::clone(&self.snapshot), doors: Doors::default() });
    }

    /// What is known of a backend has changed: publishes it within a moment, together with whatever else changes until then.
    fn publish_soon(&mut self, key: &BackendKey, now: Now) {
        self.changed.insert(key.clone());
        let backends = u32::try_from(self.backends.len()).unwrap_or(u32::MAX);
        self.publish_at.get_or_insert(now.at + GATHER + GATHER_EACH.saturating_mul(backends));
    }

    fn facts_of(&self, cell: &BackendCell) -> BackendFacts {
        let key = (cell.reference.clone(), cell.address.clone());
        BackendFacts { health: self.health_of(&key), admin: self.admin_of(&key) }
    }

    fn health_of(&self, key: &BackendKey) -> Health {
        let pool = self.config.as_ref().and_then(|config| config.pools.get(&key.0.pool));
        if pool.is_some_and(|pool| pool.health_check.is_none()) {
            return Health::Unchecked;
        }
        self.backends.get(key).map_or(Health::Unproven, |known| known.verdict.health())
    }

    fn admin_of(&self, key: &BackendKey) -> AdminState {
        self.overrides.get(key).map_or(AdminState::Enabled, |o| o.admin)
    }

    /// The key of a backend of the configuration in force.
    fn key_of(&self, reference: &BackendRef) -> Option<BackendKey> {
        let pool = self.config.as_ref()?.pools.get(&reference.pool)?;
        let backend = pool.backends.iter().find(|b| b.name == reference.backend)?;
        Some((reference.clone(), backend.address.clone()))
    }

    /// Remembers to answer once every worker has the snapshot that is in force now.
    fn answer_when_known(&mut self, ask: AskId, then: Then, now: Now, out: &mut Vec<Action>) {
        if self.waiting.len() >= MOST_WAITING {
            let text = format!("it is done, but {MOST_WAITING} others wait already; look with lbctl stats");
            out.push(Action::Answer(ask, Reply::TimedOut { message: text, left: self.cells.sessions() }));
            return;
        }
        let patience = now.at + ACKNOWLEDGE;
        let acknowledged = self.acknowledged >= self.revision;
        let (revision, kept) = (self.revision, self.keeping);
        self.waiting.push(Waiting { ask, revision, acknowledged, kept, look: 0, patience, then });
    }

    fn acknowledged(&mut self, revision: Revision) {
        self.acknowledged = revision;
        for waiting in self.waiting.iter_mut().filter(|w| w.revision <= revision) {
            waiting.acknowledged = true;
        }
    }

    fn answer_waiting(&mut self, now: Now, out: &mut Vec<Action>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|waiting| {
            let reply = self.answer_to(waiting, now);
            let waits = reply.is_none();
            out.extend(reply.map(|reply| Action::Answer(waiting.ask, reply)));
            waits
        });
        self.waiting = waiting;
    }

    /// What one who waits is to be told by now.
    fn answer_to(&self, waiting: &mut Waiting, now: Now) -> Option<Reply> {
        let is_taken_back =
            |cell: &BackendCell| cell.removed_since().is_none() && self.facts_of(cell).admin == AdminState::Enabled;
        if let Then::Drained { cells, .. } = &waiting.then
            && let Some(cell) = cells.iter().find(|cell| is_taken_back(cell))
        {
            // Seen at once, or a reload that then removes it would hide it. It has sessions again, or will have:
            // "drained" would be a lie from now on.
            return Some(Reply::refused(format!("{} was enabled again while it was draining", cell.reference)));
        }
        if !waiting.acknowledged {
            let message = format!(
                "the change is in force, but not all of the {} workers have confirmed it within {} s; look at the journal",
                self.facts.workers,
                ACKNOWLEDGE.as_secs()
            );
            return (waiting.patience <= now.at).then_some(Reply::TimedOut { message, left: 0 });
        }
        if (self.kept.0 < waiting.kept || !self.has_looked(waiting.look)) && now.at < waiting.patience {
            return None;
        }
        let (cells, deadline) = match &waiting.then {
            Then::Answer(reply) => return Some(self.with_what_was_kept(reply.clone(), waiting.kept)),
            Then::Drained { cells, deadline } => (cells, *deadline),
        };
        let left: u64 = cells.iter().map(|cell| u64::from(cell.live.count())).sum();
        let names = || cells.iter().map(|cell| cell.reference.to_string()).collect::<Vec<_>>();
        if left == 0 {
            let notes = self.pools_without_backends(cells.iter().map(|cell| &cell.reference.pool));
            let reply = Reply::Drained { generation: self.generation.0, backends: names(), notes };
            return Some(self.with_what_was_kept(reply, waiting.kept));
        }
        if deadline.is_some_and(|d| d <= now.at) {
            let message = format!("{} is still draining", names().join(", "));
            return Some(self.with_what_was_kept(Reply::TimedOut { message, left }, waiting.kept));
        }
        waiting.patience = deadline.map_or(now.at + LOOK_AGAIN, |d| d.min(now.at + LOOK_AGAIN));
        None
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
