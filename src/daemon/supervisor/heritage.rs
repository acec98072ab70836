//! What the supervisor knows, as plain data, and a supervisor that goes on with it in another program. Moments are
//! microseconds of CLOCK_MONOTONIC, which runs on. What follows from the configuration and the cells is not carried.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Facts, Known, Override, Supervisor, Then, Waiting};
use crate::config::Config;
use crate::control::Reply;
use crate::daemon::event::{AskId, BackendKey, Now, ReloadBy};
use crate::health::Verdict;
use crate::observe::LastReload;
use crate::snapshot::{BackendCell, CarriedCells, Cells, Revision, build};
use crate::words::{Address, AdminState, BackendRef, Generation, Health};

/// A supervisor between two events. New fields have a default: an older program knows nothing of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CarriedSupervisor {
    /// Who asked for the upgrade.
    pub asker: u64,
    /// The version that writes this.
    pub version: String,
    /// What is counted.
    pub cells: CarriedCells,
    upgrades: u64,
    generation: u64,
    revision: u64,
    acknowledged: u64,
    started: u64,
    /// Where the control socket is by the configuration that the process was started with.
    control: Option<PathBuf>,
    /// Addresses as the file has them, and as they are.
    bound: Vec<(String, String)>,
    backends: Vec<CarriedBackend>,
    overrides: Vec<CarriedOverride>,
    keeping: u64,
    last_reload: Option<(LastReload, u64)>,
    waiting: Vec<CarriedWaiting>,
    /// Reloads that were waiting for the file, which is read anew.
    #[serde(default)]
    reloads: Vec<CarriedReload>,
    /// Why the file of the start is not in force.
    #[serde(default)]
    fallback: Option<String>,
    /// Listeners of which it was told that they are at their limit, and when they last had no room.
    #[serde(default)]
    at_limit: Vec<(String, u64)>,
    /// Addresses whose sockets were ended and are not bound anew yet.
    #[serde(default)]
    lost: Vec<String>,
}

/// Who asked for a reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum CarriedReload {
    Watcher,
    Signal,
    Operator(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    pool: String,
    name: String,
    address: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CarriedBackend {
    backend: Key,
    health: String,
    since: u64,
    against: u32,
    reason: Option<String>,
    /// `None` also while a probe is under way: it is made again.
    next_probe: Option<u64>,
    last_probe: u64,
    /// How long a probe under way has waited for the backend, in microseconds.
    #[serde(default)]
    waited: u64,
    probes_ok: u64,
    probes_failed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CarriedOverride {
    backend: Key,
    admin: String,
    by: String,
    reason: Option<String>,
    since: SystemTime,
    drained: bool,
    until: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CarriedWaiting {
    ask: u64,
    revision: u64,
    acknowledged: bool,
    /// It waits for a decision to be written down.
    keeps: bool,
    patience: u64,
    then: CarriedThen,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum CarriedThen {
    Answer(Reply),
    Drained { backends: Vec<Key>, deadline: Option<u64> },
}

/// One clock's moments by the other's.
#[derive(Clone, Copy)]
struct Clock(Now);

impl Clock {
    fn micros(self, at: Instant) -> u64 {
        let Now { at: now, micros, .. } = self.0;
        let (ahead, behind) = (at.saturating_duration_since(now), now.saturating_duration_since(at));
        let whole = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        micros.saturating_add(whole(ahead)).saturating_sub(whole(behind))
    }

    fn instant(self, micros: u64) -> Instant {
        let Now { at: now, micros: now_micros, .. } = self.0;
        let ahead = Duration::from_micros(micros.saturating_sub(now_micros));
        let behind = Duration::from_micros(now_micros.saturating_sub(micros));
        now.checked_add(ahead).and_then(|at| at.checked_sub(behind)).unwrap_or(now)
    }
}

impl Key {
    fn of((reference, address): &BackendKey) -> Self {
        let (pool, name) = (reference.pool.to_string(), reference.backend.to_string());
        Self { pool, name, address: address.to_string() }
    }

    fn read(&self) -> Result<BackendKey, String> {
        let reference = BackendRef { pool: word(&self.pool)?, backend: word(&self.name)? };
        Ok((reference, word(&self.address)?))
    }
}

fn word<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("\"{text}\" was carried over, but {e}"))
}

impl Supervisor {
    pub(super) fn carry(&self, asker: AskId, now: Now) -> CarriedSupervisor {
        let clock = Clock(now);
        let backends = self.backends.iter().map(|(key, known)| CarriedBackend {
            backend: Key::of(key),
            health: known.verdict.health().to_string(),
            since: clock.micros(known.verdict.since()),
            against: known.verdict.against(),
            reason: known.verdict.reason().map(str::to_owned),
            next_probe: known.next_probe.map(|at| clock.micros(at)),
            last_probe: clock.micros(known.last_probe),
            waited: self.waited_for(key, known, now).as_micros() as u64,
            probes_ok: known.probes_ok,
            probes_failed: known.probes_failed,
        });
        let overrides = self.overrides.iter().map(|(key, o)| CarriedOverride {
            backend: Key::of(key),
            admin: o.admin.to_string(),
            by: o.by.clone(),
            reason: o.reason.clone(),
            since: o.since,
            drained: o.drained,
            until: o.until.map(|at| clock.micros(at)),
        });
        let waiting = self.waiting.iter().map(|waiting| CarriedWaiting {
            ask: waiting.ask.0,
            revision: waiting.revision.0,
            acknowledged: waiting.acknowledged,
            keeps: waiting.kept > self.kept.0,
            patience: clock.micros(waiting.patience),
            then: match &waiting.then {
                Then::Answer(reply) => CarriedThen::Answer(reply.clone()),
                Then::Drained { cells, deadline } => CarriedThen::Drained {
                    backends: cells.iter().map(|c| Key::of(&(c.reference.clone(), c.address.clone()))).collect(),
                    deadline: deadline.map(|at| clock.micros(at)),
                },
            },
        });
        CarriedSupervisor {
            asker: asker.0,
            version: self.facts.version.clone(),
            cells: self.cells.carry(),
            upgrades: self.upgrades,
            generation: self.generation.0,
            revision: self.revision.0,
            acknowledged: self.acknowledged.0,
            started: clock.micros(self.started),
            control: self.first.as_ref().and_then(|first| first.control.socket.clone()),
            bound: self.bound.iter().map(|(asked, got)| (asked.to_string(), got.to_string())).collect(),
            backends: backends.collect(),
            overrides: overrides.collect(),
            keeping: self.keeping,
            last_reload: self.last_reload.as_ref().map(|(reload, at)| (reload.clone(), clock.micros(*at))),
            waiting: waiting.collect(),
            reloads: self.unfinished_reloads().filter_map(CarriedReload::of).collect(),
            fallback: self.fallback.clone(),
            at_limit: self.at_limit.iter().map(|(name, last)| (name.to_string(), clock.micros(*last))).collect(),
            lost: self.lost_addresses().map(|(address, _)| address.to_string()).collect(),
        }
    }

    /// A supervisor that goes on with this configuration and these cells, which have been made of what is carried. Its first
    /// snapshot is built, and not published.
    ///
    /// # Errors
    /// Something that is carried makes no sense.
    pub fn inherit(
        facts: Facts,
        config: Config,
        mut cells: Cells,
        carried: CarriedSupervisor,
        seed: u64,
        now: Now,
    ) -> Result<Self, String> {
        let clock = Clock(now);
        cells.settle(&config, now.micros);
        let mut it = Self::new(facts, Vec::new(), seed, now);
        it.cells = cells;
        it.upgrades = carried.upgrades;
        it.generation = Generation(carried.generation);
        it.revision = Revision(carried.revision + 1);
        it.acknowledged = Revision(carried.acknowledged);
        it.started = clock.instant(carried.started);
        it.keeping = carried.keeping;
        it.fallback = carried.fallback.clone();
        it.next_reload = carried.reloads.iter().map(CarriedReload::by).collect();
        it.last_reload = carried.last_reload.map(|(reload, at)| (reload, clock.instant(at)));
        for (asked, got) in &carried.bound {
            it.bound.insert(word::<Address>(asked)?, word(got)?);
        }
        it.overrides = carried.overrides.iter().map(|o| o.read(clock)).collect::<Result<_, _>>()?;
        let known: BTreeMap<BackendKey, &CarriedBackend> =
            carried.backends.iter().map(|b| Ok((b.backend.read()?, b))).collect::<Result<_, String>>()?;
        it.know(&config, now);
        for (key, backend) in known {
            let probed = it.backends.get(&key).is_some_and(|known| known.next_probe.is_some());
            let read = backend.read(probed, clock)?;
            it.backends.change(&key, |fresh| *fresh = read);
        }
        for (name, last) in &carried.at_limit {
            it.at_limit.insert(word(name)?, clock.instant(*last));
        }
        let lost: Vec<Address> = carried.lost.iter().map(|address| word(address)).collect::<Result<_, _>>()?;
        it.expect_lost(lost);
        for waiting in &carried.waiting {
            // All decisions are written down anew when this supervisor begins.
            let kept = if waiting.keeps && it.facts.keeps { it.keeping + 1 } else { 0 };
            let waiting = waiting.read(&it.cells, kept, clock)?;
            it.waiting.push(waiting);
        }
        let mut first = config.clone();
        first.control.socket = carried.control;
        let facts = |cell: &BackendCell| it.facts_of(cell);
        it.snapshot = Arc::new(build((it.generation, it.revision), &config, &it.cells, facts, None));
        it.first = Some(first);
        it.config = Some(config);
        Ok(it)
    }

    fn waited_for(&self, key: &BackendKey, known: &Known, now: Now) -> Duration {
        let probing = self.probing.contains(key);
        known.waited + if probing { now.at.saturating_duration_since(known.last_probe) } else { Duration::ZERO }
    }

    /// The cells, for the workers that are made again.
    pub fn cells(&self) -> &Cells {
        &self.cells
    }

    /// The snapshot that is to be in force.
    pub fn snapshot(&self) -> &Arc<crate::snapshot::Snapshot> {
        &self.snapshot
    }
}

impl CarriedReload {
    fn of(by: ReloadBy) -> Option<Self> {
        match by {
            ReloadBy::Start => None,
            ReloadBy::Watcher => Some(Self::Watcher),
            ReloadBy::Signal => Some(Self::Signal),
            ReloadBy::Operator(AskId(ask)) => Some(Self::Operator(ask)),
        }
    }

    fn by(&self) -> ReloadBy {
        match self {
            Self::Watcher => ReloadBy::Watcher,
            Self::Signal => ReloadBy::Signal,
            Self::Operator(ask) => ReloadBy::Operator(AskId(*ask)),
        }
    }
}

impl CarriedOverride {
    fn read(&self, clock: Clock) -> Result<(BackendKey, Override), String> {
        let admin = AdminState::from_spelling(&self.admin);
        let admin = admin.ok_or_else(|| format!("there is no admin state \"{}\"", self.admin))?;
        let over = Override {
            admin,
            by: self.by.clone(),
            reason: self.reason.clone(),
            since: self.since,
            drained: self.drained,
            until: self.until.map(|at| clock.instant(at)),
        };
        Ok((self.backend.read()?, over))
    }
}

impl CarriedBackend {
    /// `probed`: whether it is to be probed at all.
    fn read(&self, probed: bool, clock: Clock) -> Result<Known, String> {
        let health = Health::from_spelling(&self.health);
        let health = health.ok_or_else(|| format!("there is no health \"{}\"", self.health))?;
        let next = self.next_probe.map_or(clock.0.at, |at| clock.instant(at));
        Ok(Known {
            verdict: Verdict::found(health, clock.instant(self.since), self.against, self.reason.clone()),
            next_probe: probed.then_some(next),
            last_probe: clock.instant(self.last_probe),
            waited: Duration::from_micros(self.waited),
            probes_ok: self.probes_ok,
            probes_failed: self.probes_failed,
        })
    }
}

impl CarriedWaiting {
    fn read(&self, cells: &Cells, kept: u64, clock: Clock) -> Result<Waiting, String> {
        let then = match &self.then {
            CarriedThen::Answer(reply) => Then::Answer(reply.clone()),
            CarriedThen::Drained { backends, deadline } => {
                let keys = backends.iter().map(Key::read).collect::<Result<Vec<_>, _>>()?;
                // One that is not there any more has no session left.
                let cells = keys.iter().filter_map(|(reference, address)| cells.backend(reference, address)).cloned();
                Then::Drained { cells: cells.collect(), deadline: deadline.map(|at| clock.instant(at)) }
            }
        };
        Ok(Waiting {
            ask: AskId(self.ask),
            revision: Revision(self.revision),
            acknowledged: self.acknowledged,
            kept,
            look: 0,
            patience: clock.instant(self.patience),
            then,
        })
    }
}
