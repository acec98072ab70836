//! What outlives a change of configuration: the identity and the counters of each listener, pool and
//! backend. Snapshots and sessions share the cells; [`Cells`], the supervisor's register of them, keeps
//! a removed one until its last session has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::counters::{BackendShard, ListenerShard, Padded};
use super::waiting::Waiting;
use crate::config::Config;
use crate::words::{Address, BackendRef, ListenerName, PoolName};

/// A listener's identity (its name) and counters.
#[derive(Debug)]
pub struct ListenerCell {
    /// Its name.
    pub name: ListenerName,
    /// Sessions accepted here that have not ended.
    pub live: Live,
    /// A shard a worker.
    pub shards: Box<[Padded<ListenerShard>]>,
    /// When a client was last left waiting, for the listener was at its limit: microseconds of CLOCK_MONOTONIC, 0: never.
    full_at: AtomicU64,
    removed: Removed,
}

/// A pool's identity (its name) and what its sessions share.
#[derive(Debug)]
pub struct PoolCell {
    /// Its name.
    pub name: PoolName,
    /// The next session's ticket; shared by all workers, so that weights are exact over them all.
    pub ticket: Padded<AtomicU64>,
    /// Sessions that wait for a place, in all workers.
    pub queued: Padded<AtomicU32>,
    /// Who of them comes first, worker by worker.
    pub waiting: Waiting,
}

/// A backend's identity (its pool, name and address) and counters.
#[derive(Debug)]
pub struct BackendCell {
    /// Its pool and name.
    pub reference: BackendRef,
    /// Where it listens.
    pub address: Address,
    /// Its pool.
    pub pool: Arc<PoolCell>,
    /// Sessions counted from the choice to the end; and spare connections, which take places too.
    pub live: Live,
    /// A shard a worker.
    pub shards: Box<[Padded<BackendShard>]>,
    /// The last connect that failed: microseconds of CLOCK_MONOTONIC in the upper 48 bits, errno in the lower; 0 for none.
    failed: AtomicU64,
    /// When its address was last found not to be this machine's; 0 for never.
    elsewhere: AtomicU64,
    removed: Removed,
}

/// A number of live sessions, exact over all workers, and whether somebody waits for a place. At a backend,
/// spare connections take places as well; they are counted apart, for nobody waits for them to end.
#[derive(Debug, Default)]
pub struct Live(Padded<Places>);

#[derive(Debug, Default)]
struct Places {
    /// Sessions in the lower half, spares in the upper: a spare becomes a session in one step, and no reader ever
    /// sees it as both or neither.
    taken: AtomicU64,
    awaited: AtomicBool,
}

const SESSION: u64 = 1;
const SPARE: u64 = 1 << 32;

impl Live {
    /// Takes a place for a session, unless `limit` are taken.
    pub fn reserve(&self, limit: Option<u32>) -> bool {
        self.take(SESSION, limit)
    }

    /// Takes places for so many sessions that are there already.
    pub fn count_in(&self, sessions: u32) {
        self.0.taken.fetch_add(u64::from(sessions) * SESSION, SeqCst);
    }

    /// Takes a place for a spare connection, unless `limit` are taken.
    pub fn reserve_spare(&self, limit: Option<u32>) -> bool {
        self.take(SPARE, limit)
    }

    /// How many places could be taken now.
    pub fn room(&self, limit: Option<u32>) -> u32 {
        let Some(limit) = limit else { return u32::MAX };
        let taken = self.0.taken.load(SeqCst);
        limit.saturating_sub(sessions(taken).saturating_add(spares(taken)))
    }

    fn take(&self, place: u64, limit: Option<u32>) -> bool {
        let Some(limit) = limit else {
            self.0.taken.fetch_add(place, SeqCst);
            return true;
        };
        let free = |taken| sessions(taken).saturating_add(spares(taken)) < limit;
        // Not add-check-undo: the moment before the undo would make another worker see a full house.
        self.0.taken.fetch_update(SeqCst, SeqCst, |taken| free(taken).then_some(taken + place)).is_ok()
    }

    /// Takes a place or, where there is none, says that one is waited for.
    pub fn reserve_or_wait(&self, limit: Option<u32>) -> bool {
        self.reserve(limit) || {
            self.0.awaited.store(true, SeqCst);
            // Again: a place given back before the store would have told nobody.
            self.reserve(limit)
        }
    }

    /// A spare connection has become a session's.
    pub fn adopt_spare(&self) {
        self.0.taken.fetch_sub(SPARE - SESSION, SeqCst);
    }

    /// Gives a spare connection's place back.
    pub fn release_spare(&self) {
        self.0.taken.fetch_sub(SPARE, SeqCst);
    }

    /// Gives a session's place back; true where somebody waits for it and must be woken.
    pub fn release(&self) -> bool {
        self.0.taken.fetch_sub(SESSION, SeqCst);
        self.0.awaited.load(SeqCst) && self.0.awaited.swap(false, SeqCst)
    }

    /// How many sessions there are.
    pub fn count(&self) -> u32 {
        sessions(self.0.taken.load(SeqCst))
    }

    /// How many spare connections there are, those that are being opened included.
    pub fn spares(&self) -> u32 {
        spares(self.0.taken.load(SeqCst))
    }

    /// True while no place is taken.
    pub fn is_empty(&self) -> bool {
        self.0.taken.load(SeqCst) == 0
    }
}

fn sessions(taken: u64) -> u32 {
    taken as u32
}

fn spares(taken: u64) -> u32 {
    (taken >> 32) as u32
}

/// When a thing left the configuration: microseconds of CLOCK_MONOTONIC, 0 while it is part of it.
#[derive(Debug, Default)]
struct Removed(AtomicU64);

impl Removed {
    fn since(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|at| *at != 0)
    }

    /// What was removed stays so.
    fn recall(&self, removed: Option<u64>) {
        if let Some(at) = removed {
            self.0.store(at, Relaxed);
        }
    }

    fn set(&self, present: bool, now: u64) {
        let at = if present { 0 } else { self.since().unwrap_or(now.max(1)) };
        self.0.store(at, Relaxed);
    }
}

impl ListenerCell {
    /// Notes that a client was left waiting, for there are as many sessions as there may be.
    pub fn is_full(&self, now: u64) {
        self.full_at.store(now, Relaxed);
    }

    /// When that was last, in microseconds of CLOCK_MONOTONIC; 0: never.
    pub fn last_full(&self) -> u64 {
        self.full_at.load(Relaxed)
    }

    /// When it left the configuration, in microseconds of CLOCK_MONOTONIC.
    pub fn removed_since(&self) -> Option<u64> {
        self.removed.since()
    }
}

impl BackendCell {
    /// When it left the configuration, in microseconds of CLOCK_MONOTONIC.
    pub fn removed_since(&self) -> Option<u64> {
        self.removed.since()
    }

    /// Takes note of a connect that failed.
    pub fn connect_failed(&self, errno: i32, now: u64) {
        self.failed.store(now << 16 | u64::from(errno as u16), Relaxed);
    }

    /// The errno of the last connect that failed, and when that was.
    pub fn last_failure(&self) -> Option<(i32, u64)> {
        let failed = self.failed.load(Relaxed);
        (failed > 0).then_some(((failed & 0xffff) as i32, failed >> 16))
    }

    /// Takes note that its address is not this machine's.
    pub fn found_elsewhere(&self, now: u64) {
        self.elsewhere.store(now, Relaxed);
    }

    /// True where its address was found not to be this machine's after that moment.
    pub fn is_elsewhere(&self, since: u64) -> bool {
        let found = self.elsewhere.load(Relaxed);
        found > 0 && found >= since
    }
}

/// Every cell there is, those that are leaving included.
#[derive(Debug)]
pub struct Cells {
    shards: usize,
    listeners: BTreeMap<ListenerName, Arc<ListenerCell>>,
    pools: BTreeMap<PoolName, Arc<PoolCell>>,
    backends: BTreeMap<(BackendRef, Address), Arc<BackendCell>>,
    /// Nothing has left the configuration that is still here.
    complete: bool,
}

impl Cells {
    /// An empty register for so many workers.
    pub fn new(workers: usize) -> Self {
        let (listeners, pools, backends) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { shards: workers, listeners, pools, backends, complete: true }
    }

    /// The cell of a listener of former days; `removed` says when it left the configuration then in force. To be called
    /// before the register settles.
    pub fn recall_listener(&mut self, name: &ListenerName, removed: Option<u64>) -> &Arc<ListenerCell> {
        self.complete = false;
        let new = || Arc::new(listener(name.clone(), self.shards));
        let cell = self.listeners.entry(name.clone()).or_insert_with(new);
        cell.removed.recall(removed);
        cell
    }

    /// The same of a pool.
    pub fn recall_pool(&mut self, name: &PoolName) -> &Arc<PoolCell> {
        self.pools.entry(name.clone()).or_insert_with(|| Arc::new(pool(name.clone(), self.shards)))
    }

    /// The same of a backend, and of its pool.
    pub fn recall_backend(
        &mut self,
        reference: BackendRef,
        address: Address,
        removed: Option<u64>,
    ) -> &Arc<BackendCell> {
        self.complete = false;
        let pool = Arc::clone(self.recall_pool(&reference.pool));
        let new = || Arc::new(backend(reference.clone(), address.clone(), &pool, self.shards));
        let cell = self.backends.entry((reference.clone(), address.clone())).or_insert_with(new);
        cell.removed.recall(removed);
        cell
    }

    /// Makes the register fit a configuration: adds what is new, marks what has left at `now`
    /// (microseconds of CLOCK_MONOTONIC).
    pub fn settle(&mut self, config: &Config, now: u64) {
        for name in config.listeners.keys() {
            self.listeners.entry(name.clone()).or_insert_with(|| Arc::new(listener(name.clone(), self.shards)));
        }
        for (name, asked) in &config.pools {
            let cell = self.pools.entry(name.clone()).or_insert_with(|| Arc::new(pool(name.clone(), self.shards)));
            for asked in &asked.backends {
                let reference = BackendRef { pool: name.clone(), backend: asked.name.clone() };
                let key = (reference.clone(), asked.address.clone());
                self.backends
                    .entry(key)
                    .or_insert_with(|| Arc::new(backend(reference, asked.address.clone(), cell, self.shards)));
            }
        }
        for (name, cell) in &self.listeners {
            cell.removed.set(config.listeners.contains_key(name), now);
        }
        let present: BTreeSet<_> = (config.pools.iter())
            .flat_map(|(name, pool)| pool.backends.iter().map(move |b| (name, &b.name, &b.address)))
            .collect();
        for ((reference, address), cell) in &self.backends {
            cell.removed.set(present.contains(&(&reference.pool, &reference.backend, address)), now);
        }
        self.complete = false;
    }

    /// Forgets what has left and has no session any more. Only once every worker works by a snapshot without it:
    /// until then one may still take clients in for it, and nobody would count them.
    pub fn forget_empty(&mut self) {
        if self.complete {
            return; // asked each second, of thousands
        }
        self.listeners.retain(|_, cell| cell.removed_since().is_none() || !cell.live.is_empty());
        self.backends.retain(|_, cell| cell.removed_since().is_none() || !cell.live.is_empty());
        let pools: BTreeSet<&PoolName> = self.backends.keys().map(|(reference, _)| &reference.pool).collect();
        self.pools.retain(|name, _| pools.contains(name));
        let (listeners, backends) = (self.listeners.values(), self.backends.values());
        self.complete = listeners
            .map(|cell| cell.removed_since())
            .chain(backends.map(|cell| cell.removed_since()))
            .all(|at| at.is_none());
    }

    /// The cell of a listener.
    pub fn listener(&self, name: &ListenerName) -> Option<&Arc<ListenerCell>> {
        self.listeners.get(name)
    }

    /// The cell of a pool.
    pub fn pool(&self, name: &PoolName) -> Option<&Arc<PoolCell>> {
        self.pools.get(name)
    }

    /// The cell of a backend.
    pub fn backend(&self, reference: &BackendRef, address: &Address) -> Option<&Arc<BackendCell>> {
        self.backends.get(&(reference.clone(), address.clone()))
    }

    /// Every listener, by name.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<ListenerCell>> {
        self.listeners.values()
    }

    /// Every pool, by name.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Arc<PoolCell>> {
        self.pools.values()
    }

    /// Every backend, by pool and name.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<BackendCell>> {
        self.backends.values()
    }

    /// Sessions that have not ended.
    pub fn sessions(&self) -> u64 {
        self.listeners.values().map(|cell| u64::from(cell.live.count())).sum()
    }
}

fn listener(name: ListenerName, shards: usize) -> ListenerCell {
    ListenerCell {
        name,
        live: Live::default(),
        shards: (0..shards).map(|_| Padded::default()).collect(),
        full_at: AtomicU64::new(0),
        removed: Removed::default(),
    }
}

fn pool(name: PoolName, workers: usize) -> PoolCell {
    PoolCell { name, ticket: Padded::default(), queued: Padded::default(), waiting: Waiting::new(workers) }
}

fn backend(reference: BackendRef, address: Address, pool: &Arc<PoolCell>, shards: usize) -> BackendCell {
    BackendCell {
        reference,
        address,
        pool: Arc::clone(pool),
        live: Live::default(),
        shards: (0..shards).map(|_| Padded::default()).collect(),
        failed: AtomicU64::new(0),
        elsewhere: AtomicU64::new(0),
        removed: Removed::default(),
    }
}
