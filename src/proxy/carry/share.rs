//! Shares what is carried out among another number of workers. Pure: nothing is registered or unregistered here, for the
//! predecessor's epoll descriptors have to stay as they are until there is no way back to it. So where the numbers
//! differ all workers get new ones, and everything is registered anew: some microseconds a session.

use std::collections::{BTreeMap, HashMap};

use super::names::Renumbered;
use super::{CarriedQueue, CarriedSession, CarriedStock, CarriedWorker};

/// The same sessions, doors and spare connections for `count` workers. The same number changes nothing.
pub fn share_out(workers: Vec<CarriedWorker>, count: usize) -> Vec<CarriedWorker> {
    let count = count.max(1);
    if workers.len() == count {
        return workers;
    }
    let mut shares = empty_shares(&workers, count);
    let mut dealt = 0;
    for (index, worker) in workers.into_iter().enumerate() {
        // Doors stay with their worker where it stays: what the kernel has given it is spread already.
        for mut door in worker.doors {
            let share = &mut shares[index % count];
            door.key = share.doors.len() as u32;
            share.doors.push(door);
        }
        // All names are in every share, under the same numbers.
        let numbers = shares[0].names.merge(&worker.names);
        let mut moved = HashMap::with_capacity(worker.sessions.len());
        for mut session in worker.sessions {
            let share = &mut shares[dealt % count];
            let old = session.key;
            session.key = share.sessions.len() as u32;
            session.renumber(&numbers);
            moved.insert(old, (dealt % count, session.key));
            share.sessions.push(session);
            dealt += 1;
        }
        for (share, key) in worker.again.iter().filter_map(|key| moved.get(key)) {
            shares[*share].again.push(*key);
        }
        for queue in worker.queues {
            for (share, key) in queue.keys.iter().filter_map(|key| moved.get(key)) {
                enqueue(&mut shares[*share].queues, number(&numbers.pools, queue.pool), *key);
            }
        }
        let stocks: BTreeMap<u32, CarriedStock> =
            worker.stocks.into_iter().map(|stock| (number(&numbers.backends, stock.backend), stock)).collect();
        for mut spare in worker.spares {
            let share = &mut shares[index % count]; // where there are doors: another would close it
            spare.key = share.spares.len() as u32;
            spare.backend = number(&numbers.backends, spare.backend);
            let pause = stocks.get(&spare.backend).map_or((0, false), |stock| (stock.not_before, stock.full));
            stock_up(&mut share.stocks, spare.backend, spare.key, pause);
            share.spares.push(spare);
        }
    }
    let names = shares[0].names.clone();
    for share in &mut shares {
        share.names.clone_from(&names);
        put_in_order(share);
    }
    shares
}

/// A number without a name stays without one, which `assemble` finds out.
fn number(all: &[u32], old: u32) -> u32 {
    all.get(old as usize).copied().unwrap_or(u32::MAX)
}

impl CarriedSession {
    pub(super) fn renumber(&mut self, numbers: &Renumbered) {
        self.listener = number(&numbers.listeners, self.listener);
        self.pool = number(&numbers.pools, self.pool);
        self.backend = self.backend.map(|old| number(&numbers.backends, old));
        self.tried.iter_mut().for_each(|tried| *tried = number(&numbers.backends, *tried));
    }
}

fn empty_shares(workers: &[CarriedWorker], count: usize) -> Vec<CarriedWorker> {
    let share = CarriedWorker {
        // A door that is shut for want of descriptors has a worker who knows until when.
        shut_until: workers.iter().filter_map(|worker| worker.shut_until).max(),
        shut_for: workers.iter().map(|worker| worker.shut_for).max().unwrap_or(0),
        sweep_at: workers.iter().map(|worker| worker.sweep_at).min().unwrap_or(u64::MAX),
        ..CarriedWorker::default()
    };
    let mut shares = vec![share; count];
    let epolls = workers.iter().flat_map(|worker| worker.epoll.iter().chain(&worker.retired).copied());
    shares[0].retired = epolls.collect();
    shares
}

fn enqueue(queues: &mut Vec<CarriedQueue>, pool: u32, key: u32) {
    match queues.iter_mut().find(|queue| queue.pool == pool) {
        Some(queue) => queue.keys.push(key),
        None => queues.push(CarriedQueue { pool, keys: vec![key] }),
    }
}

fn stock_up(stocks: &mut Vec<CarriedStock>, backend: u32, key: u32, (not_before, full): (u64, bool)) {
    match stocks.iter_mut().find(|stock| stock.backend == backend) {
        Some(stock) => {
            stock.keys.push(key);
            stock.not_before = stock.not_before.max(not_before);
            stock.full |= full;
        }
        None => stocks.push(CarriedStock { backend, keys: vec![key], not_before, full }),
    }
}

/// Of several workers' rows one: who waits longest is the first, and so is the oldest spare.
fn put_in_order(share: &mut CarriedWorker) {
    let since = |sessions: &[CarriedSession], key: u32| sessions[key as usize].since;
    for queue in &mut share.queues {
        queue.keys.sort_by_key(|key| since(&share.sessions, *key));
    }
    for stock in &mut share.stocks {
        stock.keys.sort_by_key(|key| share.spares[*key as usize].since);
    }
}
