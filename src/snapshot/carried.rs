//! The cells as plain data, for a successor of this very process: counters, histograms, tickets and what is leaving.
//! Live counts are not among it; they follow from the sessions. All workers' shards are carried as one sum, for the
//! successor may have another number of them. Refusals and causes go by their names.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use super::cells::{BackendCell, Cells, ListenerCell, PoolCell};
use super::counters::{BackendShard, Count, ListenerShard, Padded};
use super::histogram::Histogram;
use crate::words::{BackendRef, Cause, Refusal};

/// Every cell of a register.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedCells {
    listeners: Vec<CarriedListener>,
    pools: Vec<CarriedPool>,
    backends: Vec<CarriedBackend>,
}

/// The filled buckets of a histogram: which, and how many.
type Buckets = Vec<(u16, u64)>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CarriedListener {
    name: String,
    removed: Option<u64>,
    accepted: u64,
    bytes_in: u64,
    bytes_out: u64,
    retries: u64,
    refused: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    durations: Buckets,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CarriedPool {
    name: String,
    ticket: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CarriedBackend {
    pool: String,
    name: String,
    address: String,
    removed: Option<u64>,
    established: u64,
    bytes_in: u64,
    bytes_out: u64,
    connect_errors: u64,
    retries: u64,
    connect_times: Buckets,
    durations: Buckets,
}

impl Cells {
    /// All of it as it stands. Exact only while no worker runs.
    pub fn carry(&self) -> CarriedCells {
        CarriedCells {
            listeners: self.listeners().map(|cell| listener(cell)).collect(),
            pools: self.pools().map(|cell| pool(cell)).collect(),
            // One that has counted nothing and is not leaving is made anew by the configuration; there may be thousands.
            backends: self.backends().map(|cell| backend(cell)).filter(|it| !it.is_blank()).collect(),
        }
    }

    /// A register for so many workers that goes on where another one was.
    ///
    /// # Errors
    /// Something in it is no name or no address.
    pub fn inherit(carried: &CarriedCells, workers: usize) -> Result<Self, String> {
        let mut cells = Self::new(workers);
        for it in &carried.pools {
            let cell = cells.recall_pool(&it.name.parse().map_err(|e| wrong(&it.name, e))?);
            cell.ticket.store(it.ticket, Relaxed);
        }
        for it in &carried.listeners {
            let cell = cells.recall_listener(&it.name.parse().map_err(|e| wrong(&it.name, e))?, it.removed);
            cell.shards.first().inspect(|shard| it.fill(shard));
        }
        for it in &carried.backends {
            let reference = BackendRef {
                pool: it.pool.parse().map_err(|e| wrong(&it.pool, e))?,
                backend: it.name.parse().map_err(|e| wrong(&it.name, e))?,
            };
            let address = it.address.parse().map_err(|e| wrong(&it.address, e))?;
            let cell = cells.recall_backend(reference, address, it.removed);
            cell.shards.first().inspect(|shard| it.fill(shard));
        }
        Ok(cells)
    }
}

fn wrong(text: &str, why: impl std::fmt::Display) -> String {
    format!("\"{text}\" was carried over, but {why}")
}

fn listener(cell: &ListenerCell) -> CarriedListener {
    let sum = |part: fn(&ListenerShard) -> &Count| total(&cell.shards, part);
    let refused = |r: &Refusal| cell.shards.iter().map(|shard| shard.refused[*r as usize].read()).sum();
    let ended = |c: &Cause| cell.shards.iter().map(|shard| shard.ended[*c as usize].read()).sum();
    CarriedListener {
        name: cell.name.to_string(),
        removed: cell.removed_since(),
        accepted: sum(|s| &s.accepted),
        bytes_in: sum(|s| &s.bytes_in),
        bytes_out: sum(|s| &s.bytes_out),
        retries: sum(|s| &s.retries),
        refused: Refusal::ALL.iter().map(|r| (r.as_str().to_owned(), refused(r))).filter(|(_, n)| *n > 0).collect(),
        ended: Cause::ALL.iter().map(|c| (c.as_str().to_owned(), ended(c))).filter(|(_, n)| *n > 0).collect(),
        durations: Histogram::filled(cell.shards.iter().map(|s| &s.durations)),
    }
}

fn pool(cell: &PoolCell) -> CarriedPool {
    CarriedPool { name: cell.name.to_string(), ticket: cell.ticket.load(Relaxed) }
}

fn backend(cell: &BackendCell) -> CarriedBackend {
    let sum = |part: fn(&BackendShard) -> &Count| total(&cell.shards, part);
    CarriedBackend {
        pool: cell.reference.pool.to_string(),
        name: cell.reference.backend.to_string(),
        address: cell.address.to_string(),
        removed: cell.removed_since(),
        established: sum(|s| &s.established),
        bytes_in: sum(|s| &s.bytes_in),
        bytes_out: sum(|s| &s.bytes_out),
        connect_errors: sum(|s| &s.connect_errors),
        retries: sum(|s| &s.retries),
        connect_times: Histogram::filled(cell.shards.iter().map(|s| &s.connect_times)),
        durations: Histogram::filled(cell.shards.iter().map(|s| &s.durations)),
    }
}

impl CarriedListener {
    /// The worker of the shard has not started: nobody else writes there.
    fn fill(&self, shard: &ListenerShard) {
        shard.accepted.add(self.accepted);
        shard.bytes_in.add(self.bytes_in);
        shard.bytes_out.add(self.bytes_out);
        shard.retries.add(self.retries);
        for refusal in Refusal::ALL {
            shard.refused[*refusal as usize].add(self.refused.get(refusal.as_str()).copied().unwrap_or(0));
        }
        for cause in Cause::ALL {
            shard.ended[*cause as usize].add(self.ended.get(cause.as_str()).copied().unwrap_or(0));
        }
        shard.durations.fill(&self.durations);
    }
}

impl CarriedBackend {
    fn is_blank(&self) -> bool {
        let Self {
            removed, established, bytes_in, bytes_out, connect_errors, retries, connect_times, durations, ..
        } = self;
        removed.is_none()
            && [established, bytes_in, bytes_out, connect_errors, retries].iter().all(|count| **count == 0)
            && connect_times.is_empty()
            && durations.is_empty()
    }

    fn fill(&self, shard: &BackendShard) {
        shard.established.add(self.established);
        shard.bytes_in.add(self.bytes_in);
        shard.bytes_out.add(self.bytes_out);
        shard.connect_errors.add(self.connect_errors);
        shard.retries.add(self.retries);
        shard.connect_times.fill(&self.connect_times);
        shard.durations.fill(&self.durations);
    }
}

fn total<S>(shards: &[Padded<S>], part: fn(&S) -> &Count) -> u64 {
    shards.iter().map(|shard| part(shard).read()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_carried_over_is_the_same_again_whatever_the_number_of_workers() {
        let mut cells = Cells::new(2);
        cells.recall_pool(&"web".parse().unwrap()).ticket.store(41, Relaxed);
        let door = cells.recall_listener(&"door".parse().unwrap(), None);
        door.shards[0].accepted.add(2);
        door.shards[1].accepted.add(3);
        door.shards[1].refused[Refusal::ALL[1] as usize].add(4);
        door.shards[0].ended[Cause::ALL[2] as usize].add(5);
        door.shards[1].durations.record(Duration::from_millis(7));
        let reference = BackendRef { pool: "web".parse().unwrap(), backend: "b".parse().unwrap() };
        let leaving = cells.recall_backend(reference, "127.0.0.1:9001".parse().unwrap(), Some(77));
        leaving.shards[1].bytes_out.add(1 << 40);
        leaving.shards[0].connect_times.record(Duration::from_secs(1));

        let carried = cells.carry();
        for workers in [1, 2, 5] {
            let heir = Cells::inherit(&carried, workers).unwrap();
            assert_eq!(heir.carry(), carried, "{workers}");
            assert_eq!(heir.backends().next().unwrap().removed_since(), Some(77));
        }
        let mut strange = carried;
        strange.pools[0].name = "a b".into();
        assert!(Cells::inherit(&strange, 1).unwrap_err().contains("\"a b\" was carried over, but"));
    }
}
