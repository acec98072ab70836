//! Shares what is carried out among another number of workers. Pure: nothing is registered or unregistered here, for the
//! predecessor's epoll descriptors have to stay as they are until there is no way back to it. So where the numbers
//! differ all workers get new ones, and everything is registered anew: some microseconds a session.

use std::collections::{BTreeMap, HashMap};

use super::assemble::Unfit;
use super::names::Renumbered;
use super::sessions::Writing;
use super::{CarriedDoor, CarriedQueue, CarriedSession, CarriedStock, CarriedWorker};

/// The same sessions, doors and spare connections for `count` workers. The same number changes nothing.
///
/// # Errors
/// The sessions make no sense.
pub fn share_out(workers: Vec<CarriedWorker>, count: usize) -> Result<Vec<CarriedWorker>, Unfit> {
    let count = count.max(1);
    if workers.len() == count {
        return Ok(workers);
    }
    let mut tables: Vec<Vec<CarriedSession>> = vec![Vec::new(); count];
    let mut shares = empty_shares(&workers, count);
    let mut workers = workers;
    deal_doors(workers.iter_mut().flat_map(|worker| worker.doors.drain(..)).collect(), &mut shares);
    let mut dealt = 0;
    for worker in workers {
        // All names are in every share, under the same numbers.
        let numbers = shares[0].names.merge(&worker.names);
        let mut moved = HashMap::new();
        for session in worker.sessions.iter() {
            let mut session = session?;
            let table = &mut tables[dealt % count];
            let old = session.key;
            session.key = table.len() as u32;
            session.renumber(&numbers);
            moved.insert(old, (dealt % count, session.key));
            table.push(session);
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
            spare.backend = number(&numbers.backends, spare.backend);
            let share = who_gets_spare(&mut shares, spare.backend);
            spare.key = share.spares.len() as u32;
            let pause = stocks.get(&spare.backend).map_or((0, false), |stock| (stock.not_before, stock.full));
            stock_up(&mut share.stocks, spare.backend, spare.key, pause);
            share.spares.push(spare);
        }
    }
    let names = shares[0].names.clone();
    for (share, table) in shares.iter_mut().zip(tables) {
        share.names.clone_from(&names);
        put_in_order(share, &table);
        let mut sessions = Writing::with_room_for(table.len());
        table.iter().try_for_each(|session| sessions.add(session)).map_err(|e| Unfit(e.to_string()))?;
        share.sessions = sessions.done();
    }
    Ok(shares)
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
        ..CarriedWorker::default()
    };
    let mut shares = vec![share; count];
    let epolls = workers.iter().flat_map(|worker| worker.epoll.iter().chain(&worker.retired).copied());
    shares[0].retired = epolls.collect();
    shares
}

/// Each address among all, so that none is idle beside one that accepts on two. Where there are fewer of an address than
/// workers, as of a Unix socket's, they go to those who have the fewest of others.
fn deal_doors(mut doors: Vec<CarriedDoor>, shares: &mut [CarriedWorker]) {
    doors.sort_by(|a, b| a.address.0.cmp(&b.address.0)); // stable: by worker within an address
    for mut door in doors {
        let of_it = |share: &CarriedWorker| share.doors.iter().filter(|d| d.address == door.address).count();
        let Some(share) = shares.iter_mut().min_by_key(|share| (of_it(share), share.doors.len())) else { return };
        door.key = share.doors.len() as u32;
        share.doors.push(door);
    }
}

/// Who has doors, and the fewest spares of this backend: one without doors would close it.
fn who_gets_spare(shares: &mut [CarriedWorker], backend: u32) -> &mut CarriedWorker {
    let of_it = |share: &CarriedWorker| {
        let stock = share.stocks.iter().find(|stock| stock.backend == backend);
        (share.doors.is_empty(), stock.map_or(0, |stock| stock.keys.len()))
    };
    let least = (0..shares.len()).min_by_key(|n| of_it(&shares[*n])).unwrap_or(0);
    &mut shares[least]
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
fn put_in_order(share: &mut CarriedWorker, table: &[CarriedSession]) {
    for queue in &mut share.queues {
        queue.keys.sort_by_key(|key| table[*key as usize].since);
    }
    for stock in &mut share.stocks {
        stock.keys.sort_by_key(|key| share.spares[*key as usize].since);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::carry::{CarriedSpare, Names, Spelled};

    fn door(address: &str, fd: i32) -> CarriedDoor {
        CarriedDoor { key: 0, address: Spelled(address.parse().unwrap()), fd, held: None, batch: 1 }
    }

    /// How many doors of each address each worker has.
    fn of(workers: &[CarriedWorker], address: &str) -> Vec<usize> {
        let is_it = |door: &&CarriedDoor| door.address.0 == address.parse().unwrap();
        workers.iter().map(|worker| worker.doors.iter().filter(is_it).count()).collect()
    }

    #[test]
    fn each_worker_has_a_door_of_each_address_whatever_numbers_there_were_before() {
        for numbers in [&[2, 1, 2][..], &[3, 2, 3], &[4, 3, 2, 3, 1, 4], &[5, 2, 4]] {
            let addresses = ["127.0.0.1:80", "[::1]:80", "127.0.0.1:443"];
            let mut workers = vec![CarriedWorker::default(); numbers[0]];
            for (n, worker) in workers.iter_mut().enumerate() {
                worker.doors = addresses.iter().zip(0..).map(|(a, i)| door(a, (n * 3 + i) as i32)).collect();
            }
            for count in &numbers[1..] {
                workers = share_out(workers, *count).unwrap();
                for address in addresses {
                    let each = of(&workers, address);
                    assert!(
                        each.iter().all(|n| (1..=numbers[0].div_ceil(*count)).contains(n)),
                        "{numbers:?}: {each:?}"
                    );
                }
                for worker in &workers {
                    assert!(worker.doors.iter().zip(0..).all(|(door, key)| door.key == key));
                }
            }
        }
    }

    #[test]
    fn doors_that_are_the_only_ones_of_their_address_are_spread_and_spares_go_where_doors_are() {
        let spare = |key| CarriedSpare { key, fd: 9, backend: 0, connected: true, since: 0 };
        let one = CarriedWorker {
            doors: (0..4).map(|n| door(&format!("unix:/run/{n}"), n)).collect(),
            spares: (0..6).map(spare).collect(),
            stocks: vec![CarriedStock { backend: 0, keys: (0..6).collect(), not_before: 0, full: false }],
            names: Names::default(),
            ..CarriedWorker::default()
        };
        let four = share_out(vec![one.clone()], 4).unwrap();
        assert!(four.iter().all(|worker| worker.doors.len() == 1), "{four:?}");
        let six = share_out(vec![one], 6).unwrap();
        assert_eq!(six.iter().map(|worker| worker.doors.len()).collect::<Vec<_>>(), [1, 1, 1, 1, 0, 0]);
        assert!(six[4..].iter().all(|worker| worker.spares.is_empty()));
        assert!(six[..4].iter().all(|worker| (1..=2).contains(&worker.spares.len())), "{six:?}");
    }
}
