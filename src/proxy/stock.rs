//! What one worker keeps of spare connections, connections opened ahead of need: how many to each backend, which one
//! goes to the next session, which has become too old. Plain data and its arithmetic; [`super::spare`] opens and closes.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use slab::Slab;

use super::carry::{CarriedSpare, CarriedStock, Unfit};
use super::session::micros;
use super::socket;
use crate::snapshot::{BackendCell, Snapshot};

/// The pause after a spare that could not be had or kept, so that a failing backend is not hammered; microseconds.
pub const PAUSE: u64 = 1_000_000;

/// The spare connections of a worker.
#[derive(Debug, Default)]
pub struct Spares {
    table: Slab<Spare>,
    /// By the address of the cell, to be found by it.
    stocks: Vec<Stock>,
    /// When the worker has to look at them; never, where no pool wants any.
    due: Option<u64>,
}

/// A connection that nobody uses yet. What its backend has said stays in the socket, for the session that gets it.
#[derive(Debug)]
pub struct Spare {
    /// Registered with the worker's epoll.
    pub fd: OwnedFd,
    /// Where it leads. A place is reserved there.
    pub backend: Arc<BackendCell>,
    /// The connect has succeeded.
    pub connected: bool,
    /// When it was connected, or begun to.
    pub since: u64,
}

/// The spares of one backend.
#[derive(Debug)]
pub struct Stock {
    /// Whose.
    pub backend: Arc<BackendCell>,
    /// Connections that it may have, sessions' included.
    pub limit: Option<u32>,
    /// How many this worker should keep.
    wanted: usize,
    /// The longest a connect may take.
    patience: u64,
    /// The longest that one is kept.
    max_idle: u64,
    /// Oldest first.
    keys: VecDeque<usize>,
    /// None is opened before.
    not_before: u64,
    /// That is for want of places, so one that becomes free ends it.
    full: bool,
}

impl Stock {
    /// Its spares, oldest first.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        self.keys.iter().copied()
    }
}

impl Spares {
    /// When the worker has to look at them.
    pub fn due(&self) -> u64 {
        self.due.unwrap_or(u64::MAX)
    }

    /// Makes sure that the worker looks when `at` has come.
    pub fn look_by(&mut self, at: u64) {
        self.due = Some(self.due().min(at));
    }

    /// Takes a snapshot: `share` is this worker's number and how many there are; `None` where it serves nobody.
    /// Returns those that must go.
    pub fn plan(&mut self, snapshot: &Snapshot, share: Option<(usize, usize)>, now: u64) -> Vec<usize> {
        let mut old = std::mem::take(&mut self.stocks);
        let serving = |pool| snapshot.listeners.iter().any(|listener| Arc::ptr_eq(&listener.pool, pool));
        let pools = snapshot.pools.iter().filter(|pool| pool.spare_connections > 0 && share.is_some() && serving(pool));
        for (pool, &position) in pools.flat_map(|pool| pool.eligible.iter().map(move |position| (pool, position))) {
            let backend = &pool.backends[usize::from(position)];
            let kept = old.iter().position(|stock| Arc::ptr_eq(&stock.backend, &backend.cell));
            let kept = kept.map(|at| old.swap_remove(at));
            let (not_before, full) = kept.as_ref().map_or((now, false), |stock| (stock.not_before, stock.full));
            self.stocks.push(Stock {
                backend: Arc::clone(&backend.cell),
                limit: backend.max_connections,
                wanted: share.map_or(0, |share| part_of(pool.spare_connections, share, usize::from(position))),
                patience: micros(pool.connect_timeout),
                max_idle: micros(pool.spare_max_idle),
                keys: kept.map_or_else(VecDeque::new, |stock| stock.keys),
                // A limit may have been raised.
                not_before: if full { now } else { not_before },
                full: false,
            });
        }
        self.stocks.sort_unstable_by_key(|stock| place(&stock.backend));
        self.due = (!self.stocks.is_empty()).then_some(now);
        let surplus = self.stocks.iter().flat_map(|s| s.keys.iter().take(s.keys.len().saturating_sub(s.wanted)));
        surplus.copied().chain(old.into_iter().flat_map(|stock| stock.keys)).collect()
    }

    /// Whether a session could have one of this backend at once.
    pub fn has(&self, backend: &Arc<BackendCell>) -> bool {
        !self.stocks.is_empty() && self.ready(backend).is_some()
    }

    /// The oldest one of a backend that is connected.
    pub fn ready(&self, backend: &Arc<BackendCell>) -> Option<usize> {
        let stock = &self.stocks[self.stock(backend)?];
        stock.keys.iter().copied().find(|key| self.table[*key].connected)
    }

    /// The stock of a backend.
    pub fn stock(&self, backend: &Arc<BackendCell>) -> Option<usize> {
        self.stocks.binary_search_by_key(&place(backend), |stock| place(&stock.backend)).ok()
    }

    /// Every stock.
    pub fn stocks(&self) -> &[Stock] {
        &self.stocks
    }

    /// One of them.
    pub fn spare(&mut self, key: usize) -> Option<&mut Spare> {
        self.table.get_mut(key)
    }

    /// The key that the next one will have.
    pub fn vacant_key(&self) -> usize {
        self.table.vacant_key()
    }

    /// Adds one to a stock.
    pub fn add(&mut self, stock: usize, spare: Spare) -> usize {
        let (since, key) = (spare.since, self.table.insert(spare));
        let stock = &mut self.stocks[stock];
        stock.keys.push_back(key);
        let give_up = since.saturating_add(stock.patience);
        self.look_by(give_up);
        key
    }

    /// Notes that a connect has succeeded.
    pub fn connected(&mut self, key: usize, now: u64) {
        let spare = &mut self.table[key];
        (spare.connected, spare.since) = (true, now);
        if let Some(at) = self.stock(&self.table[key].backend.clone()) {
            self.look_by(now.saturating_add(self.stocks[at].max_idle));
        }
    }

    /// Takes one out, to be given to a session or closed; it is to be replaced in the next turn.
    pub fn take(&mut self, key: usize, now: u64) -> Spare {
        let spare = self.table.remove(key);
        if let Some(at) = self.stock(&spare.backend) {
            self.stocks[at].keys.retain(|k| *k != key);
            // Not in this turn: the bytes of the session that takes it go first.
            self.look_by(now + 1);
        }
        spare
    }

    /// Every one, or those of one backend.
    pub fn keys_of(&self, backend: Option<&Arc<BackendCell>>) -> Vec<usize> {
        let wanted = |spare: &Spare| backend.is_none_or(|backend| Arc::ptr_eq(backend, &spare.backend));
        self.table.iter().filter(|(_, spare)| wanted(spare)).map(|(key, _)| key).collect()
    }

    /// Those that have been connected, or connecting, for too long.
    pub fn overdue(&self, now: u64) -> Vec<usize> {
        let keys = self.stocks.iter().flat_map(|stock| stock.keys.iter().map(move |key| (stock, *key)));
        keys.filter(|(stock, key)| self.ends(stock, *key) <= now).map(|(_, key)| key).collect()
    }

    fn ends(&self, stock: &Stock, key: usize) -> u64 {
        let spare = &self.table[key];
        spare.since.saturating_add(if spare.connected { stock.max_idle } else { stock.patience })
    }

    /// Nothing is opened to a backend for a while, where it fails; or until it has a place, where it is full.
    pub fn pause(&mut self, backend: &Arc<BackendCell>, now: u64, full: bool) {
        if let Some(at) = self.stock(backend) {
            let stock = &mut self.stocks[at];
            (stock.not_before, stock.full) = (now + PAUSE, full);
        }
    }

    /// All there is, as numbers; `name` gives a backend its own.
    pub fn carry(&self, name: &mut dyn FnMut(&Arc<BackendCell>) -> u32) -> (Vec<CarriedSpare>, Vec<CarriedStock>) {
        let spares = self.table.iter().map(|(key, spare)| CarriedSpare {
            key: key as u32,
            fd: spare.fd.as_raw_fd(),
            backend: name(&spare.backend),
            connected: spare.connected,
            since: spare.since,
        });
        let spares: Vec<CarriedSpare> = spares.collect();
        // The table says what there is; a stock gives the order.
        let mut unstocked: BTreeMap<u32, u32> = spares.iter().map(|spare| (spare.key, spare.backend)).collect();
        let stocks = self.stocks.iter().map(|stock| {
            let number = name(&stock.backend);
            let keys = stock.keys.iter().map(|key| *key as u32);
            let keys = keys.filter(|key| unstocked.remove(key).is_some()).collect();
            CarriedStock { backend: number, keys, not_before: stock.not_before, full: stock.full }
        });
        let mut stocks: Vec<CarriedStock> = stocks.collect();
        for (key, backend) in unstocked {
            match stocks.iter_mut().find(|stock| stock.backend == backend) {
                Some(stock) => stock.keys.push(key),
                None => stocks.push(CarriedStock { backend, keys: vec![key], not_before: 0, full: false }),
            }
        }
        (spares, stocks)
    }

    /// The same again; each takes its place at its backend. What the snapshot wants of them is for [`Spares::plan`] to say.
    pub fn assemble(
        spares: Vec<CarriedSpare>,
        stocks: Vec<CarriedStock>,
        backend: impl Fn(u32) -> Result<Arc<BackendCell>, Unfit>,
    ) -> Result<Self, Unfit> {
        let cells = spares.iter().map(|spare| backend(spare.backend)).collect::<Result<Vec<_>, _>>()?;
        let stocks = stocks.into_iter().map(|CarriedStock { backend: number, keys, not_before, full }| {
            let keys = keys.into_iter().map(|key| key as usize).collect();
            let (limit, wanted, patience, max_idle) = (None, 0, 0, 0);
            Ok(Stock { backend: backend(number)?, limit, wanted, patience, max_idle, keys, not_before, full })
        });
        let mut stocks = stocks.collect::<Result<Vec<_>, _>>()?;
        stocks.sort_unstable_by_key(|stock| place(&stock.backend));
        let table = spares.into_iter().zip(cells).map(|(CarriedSpare { key, fd, connected, since, .. }, backend)| {
            backend.live.reserve_spare(None);
            (key as usize, Spare { fd: socket::own(fd), backend, connected, since })
        });
        Ok(Self { table: table.collect(), stocks, due: None })
    }

    /// Every one, by key.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Spare)> {
        self.table.iter()
    }

    /// Takes all out, as an exec would.
    #[cfg(test)]
    pub fn drain(&mut self) -> impl Iterator<Item = Spare> {
        self.table.drain()
    }

    /// A backend has a place again.
    pub fn has_room(&mut self, backend: &Arc<BackendCell>, now: u64) {
        if let Some(at) = self.stock(backend).filter(|at| self.stocks[*at].full) {
            (self.stocks[at].not_before, self.stocks[at].full) = (now, false);
            self.look_by(now + 1);
        }
    }

    /// Whether one of this stock is to be opened now.
    pub fn lacks(&self, stock: usize, now: u64) -> bool {
        let stock = &self.stocks[stock];
        stock.keys.len() < stock.wanted && stock.not_before <= now
    }

    /// Says anew when to look at them: when one is overdue, or a pause is over.
    pub fn reckon(&mut self, now: u64) {
        let next = |stock: &Stock| {
            let oldest = stock.keys.iter().map(|key| self.ends(stock, *key)).min();
            let lacking = (stock.keys.len() < stock.wanted).then(|| stock.not_before.max(now + 1));
            oldest.into_iter().chain(lacking).min()
        };
        self.due = self.stocks.iter().filter_map(next).min();
    }
}

/// A worker's part of a number that all have together. What is left over goes to others at each backend.
fn part_of(number: u32, (index, workers): (usize, usize), position: usize) -> usize {
    let number = number as usize;
    number / workers + usize::from((index + position) % workers < number % workers)
}

fn place(backend: &Arc<BackendCell>) -> usize {
    Arc::as_ptr(backend).addr()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Over, pair, snapshot, snapshot_of};
    use super::*;
    use crate::config::Config;
    use crate::snapshot::{BackendFacts, Cells, Revision, build};
    use crate::words::{AdminState, Generation, Health};

    const SECOND: u64 = 1_000_000;
    const WEB: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001, b: 127.0.0.1:9002 }, spare_connections: 3, spare_max_idle: 4s } }
";

    /// Opens all that is lacking, connected or not; how many each stock has then.
    fn fill(spares: &mut Spares, connected: bool, now: u64) -> Vec<usize> {
        for stock in 0..spares.stocks().len() {
            while spares.lacks(stock, now) {
                let backend = Arc::clone(&spares.stocks()[stock].backend);
                let fd = pair(Over::Unix).0.fd;
                let key = spares.add(stock, Spare { fd, backend, connected: false, since: now });
                if connected {
                    spares.connected(key, now);
                }
            }
        }
        spares.reckon(now);
        spares.stocks().iter().map(|stock| stock.keys.len()).collect()
    }

    #[test]
    fn the_parts_of_all_workers_are_the_whole() {
        for (number, workers) in [(1, 2), (2, 2), (3, 2), (7, 3), (1, 8), (0, 2), (5, 1)] {
            for position in 0..3 {
                let parts = (0..workers).map(|index| part_of(number, (index, workers), position));
                assert_eq!(parts.sum::<usize>(), number as usize, "{number} over {workers}");
            }
        }
    }

    #[test]
    fn a_session_is_given_the_oldest_connected_one_once() {
        let (snapshot, _cells) = snapshot(WEB, 1);
        let a = &snapshot.pools[0].backends[0].cell;
        let mut spares = Spares::default();
        assert!(spares.plan(&snapshot, Some((0, 1)), 0).is_empty());
        assert_eq!(fill(&mut spares, false, 0), [3, 3]);
        assert!(!spares.has(a), "half open");
        let keys: Vec<_> = spares.keys_of(Some(a));
        spares.connected(keys[1], 5);
        spares.connected(keys[2], 5);
        assert_eq!(spares.ready(a), Some(keys[1]));
        spares.take(keys[1], 6);
        assert_eq!((spares.ready(a), spares.due()), (Some(keys[2]), 7));
        spares.take(keys[2], 6);
        assert!(!spares.has(a));
    }

    #[test]
    fn what_a_snapshot_no_longer_wants_goes_and_the_rest_stays() {
        let few = WEB.replace("spare_connections: 3", "spare_connections: 1");
        let unserved = "listeners: { web: { bind: 127.0.0.1:8080, pool: other } }
pools: { web: { backends: { a: 127.0.0.1:9001 }, spare_connections: 3 }, other: { backends: { a: 127.0.0.1:9001 } } }
";
        let then = |text: &str, cells: &mut Cells| {
            let config = Config::parse(text.as_bytes()).unwrap();
            cells.settle(&config, 1);
            let facts = |_: &_| BackendFacts { health: Health::Up, admin: AdminState::Enabled };
            build((Generation(2), Revision(2)), &config, cells, facts, None)
        };
        for (text, serving, gone, left) in [
            (WEB, true, 0, vec![3, 3]),
            (&few, true, 4, vec![1, 1]),
            (&WEB.replace(", b: 127.0.0.1:9002", ""), true, 3, vec![3]),
            (&WEB.replace("127.0.0.1:9002", "127.0.0.1:9003"), true, 3, vec![3, 3]),
            (&WEB.replace("b: 127.0.0.1:9002", "b: { address: 127.0.0.1:9002, weight: 0 }"), true, 3, vec![3]),
            (unserved, true, 6, vec![]),
            (WEB, false, 6, vec![]),
        ] {
            let (first, mut cells) = snapshot(WEB, 1);
            let mut spares = Spares::default();
            spares.plan(&first, Some((0, 1)), 0);
            fill(&mut spares, true, 0);
            let surplus = spares.plan(&then(text, &mut cells), serving.then_some((0, 1)), 1);
            assert_eq!(surplus.len(), gone, "{text}");
            for key in surplus {
                spares.take(key, 1);
            }
            assert_eq!(fill(&mut spares, true, 2), left, "{text}");
        }
        let (down, _cells) = snapshot_of(&WEB.replace("backends:", "health_check: {}, backends:"), 1, Health::Down);
        let mut spares = Spares::default();
        spares.plan(&down, Some((0, 1)), 0);
        assert_eq!((fill(&mut spares, true, 0), spares.due()), (vec![], u64::MAX));
    }

    #[test]
    fn one_that_is_too_old_or_too_slow_is_found_when_its_time_has_come() {
        let (snapshot, _cells) = snapshot(WEB, 1);
        for (connected, seconds) in [(true, 4), (false, 5)] {
            let mut spares = Spares::default();
            spares.plan(&snapshot, Some((0, 1)), 0);
            fill(&mut spares, connected, SECOND);
            assert_eq!(spares.due(), (1 + seconds) * SECOND);
            assert_eq!(spares.overdue(spares.due() - 1).len(), 0);
            assert_eq!(spares.overdue(spares.due()).len(), 6);
        }
    }

    #[test]
    fn a_backend_that_fails_has_its_pause_and_one_that_was_full_has_not() {
        let (snapshot, _cells) = snapshot(WEB, 1);
        let mut spares = Spares::default();
        spares.plan(&snapshot, Some((0, 1)), 0);
        for (full, at) in [(false, PAUSE), (true, 1)] {
            let backend = Arc::clone(&spares.stocks()[0].backend);
            spares.pause(&backend, 0, full);
            spares.has_room(&backend, 1);
            assert!(!spares.lacks(0, at - 1) && spares.lacks(0, at), "{full}");
        }
    }
}
