//! Which backend comes next. A [`Balancer`] is built from the eligible backends whenever they or their weights change,
//! and is shared by all workers without a lock: what moves (the ticket, live sessions, randomness) comes with each
//! [`Ask`]. Who is eligible is the snapshot's; counting sessions, and what to do when nobody is usable, the data path's.

mod draw;
mod first;
mod hash;
mod least_connections;
mod maglev;
mod random_two;
mod round_robin;
mod source_hash;
#[cfg(test)]
mod testing;

pub use hash::client_key;

use crate::words::{Algorithm, Weight};

/// A backend that may be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name, unique among the candidates. The hashing algorithms depend on it.
    pub name: &'a str,
    /// Its share. A candidate of weight 0 is never chosen.
    pub weight: Weight,
}

/// What one choice depends on, beside the candidates. Indices are those of the slice given to [`Balancer::new`].
pub struct Ask<'a> {
    /// The session's number in its pool: one more a session, the same for its retries.
    pub ticket: u64,
    /// The client, as [`client_key`] has it.
    pub client: u64,
    /// Fresh random bits.
    pub random: u64,
    /// Live sessions of a candidate, those counted whose connect is still under way.
    pub live: &'a dyn Fn(usize) -> u32,
    /// Whether a candidate may be chosen now: not yet tried for this session, and not full.
    pub usable: &'a dyn Fn(usize) -> bool,
}

/// How to choose among certain candidates. Immutable; a pick neither allocates nor locks.
#[derive(Debug)]
pub struct Balancer {
    candidates: usize,
    way: Way,
}

#[derive(Debug)]
enum Way {
    RoundRobin(round_robin::RoundRobin),
    LeastConnections(least_connections::LeastConnections),
    RandomTwo(random_two::RandomTwo),
    SourceHash(source_hash::SourceHash),
    Maglev(maglev::Maglev),
    First(first::First),
}

impl Balancer {
    /// Prepares to choose among `candidates`, in the order of the file. The same input gives the same choices.
    pub fn new(algorithm: Algorithm, candidates: &[Candidate<'_>]) -> Self {
        let way = match algorithm {
            Algorithm::RoundRobin => Way::RoundRobin(round_robin::RoundRobin::new(candidates)),
            Algorithm::LeastConnections => Way::LeastConnections(least_connections::LeastConnections::new(candidates)),
            Algorithm::RandomTwo => Way::RandomTwo(random_two::RandomTwo::new(candidates)),
            Algorithm::SourceHash => Way::SourceHash(source_hash::SourceHash::new(candidates)),
            Algorithm::Maglev => Way::Maglev(maglev::Maglev::new(candidates)),
            Algorithm::First => Way::First(first::First::new(candidates)),
        };
        Self { candidates: candidates.len(), way }
    }

    /// Chooses a usable candidate; `None` only when there is none.
    pub fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        match &self.way {
            Way::RoundRobin(way) => way.pick(ask),
            Way::LeastConnections(way) => way.pick(ask),
            Way::RandomTwo(way) => way.pick(ask),
            Way::SourceHash(way) => way.pick(ask),
            Way::Maglev(way) => way.pick(ask),
            Way::First(way) => way.pick(ask),
        }
    }

    /// How many candidates there are.
    pub fn len(&self) -> usize {
        self.candidates
    }

    /// Whether there is no candidate.
    pub fn is_empty(&self) -> bool {
        self.candidates == 0
    }
}

fn weights(candidates: &[Candidate<'_>]) -> Box<[u32]> {
    candidates.iter().map(|c| c.weight.value()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{pool, weights_up_to};
    use super::*;

    proptest! {
        #[test]
        fn no_unusable_candidate_is_ever_picked_and_nobody_only_when_none_is_usable(
            weights in weights_up_to(12, 0..=6),
            usable in any::<u16>(), live in prop::collection::vec(0u32..5, 12),
            ticket: u64, client: u64, random: u64,
        ) {
            let pool = pool(&weights);
            let fit = |i: usize| usable & (1 << i) != 0;
            let ask = Ask { ticket, client, random, live: &|i| live[i], usable: &fit };
            for &algorithm in Algorithm::ALL {
                match Balancer::new(algorithm, &pool.candidates()).pick(&ask) {
                    Some(i) => prop_assert!(fit(i) && weights[i] > 0, "{algorithm} picked {i}"),
                    None => prop_assert!(!(0..weights.len()).any(|i| fit(i) && weights[i] > 0), "{algorithm}"),
                }
            }
        }
    }

    #[test]
    fn an_empty_pool_has_nobody() {
        let ask = Ask { ticket: 7, client: 7, random: 7, live: &|_| 0, usable: &|_| true };
        for &algorithm in Algorithm::ALL {
            let balancer = Balancer::new(algorithm, &[]);
            assert!(balancer.is_empty() && balancer.pick(&ask).is_none(), "{algorithm}");
        }
    }
}
