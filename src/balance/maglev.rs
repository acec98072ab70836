//! Maglev hashing (Eisenbud et al., NSDI 2016, §3.4): the client's address is looked up in a table that candidates
//! fill in turns, each in an order of its own. The table follows from names and weights alone, so that every node of
//! a fleet picks alike; removing one candidate moves its clients and very few others.

use super::hash::{mix, of_name};
use super::source_hash::SourceHash;
use super::{Ask, Candidate};

/// Places of the table: prime, so that any step visits them all, and over 100 x 655 candidates for 1 % imbalance.
const PLACES: u32 = 65_537;

#[derive(Debug)]
pub(super) struct Maglev {
    table: Box<[u16]>,
    otherwise: SourceHash,
}

impl Maglev {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        Self { table: table(candidates), otherwise: SourceHash::new(candidates) }
    }

    /// The candidate at the client's place. Where that one is unusable (or there are too many for a table), the client's
    /// order of preference decides: it is stable too, and spreads the clients of one over all the others by weight.
    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        let place = (ask.client % u64::from(PLACES)) as usize;
        match self.table.get(place) {
            Some(&i) if (ask.usable)(usize::from(i)) => Some(usize::from(i)),
            _ => self.otherwise.pick(ask),
        }
    }
}

/// A candidate that is claiming places.
struct Claimant {
    index: u16,
    weight: u32,
    /// Weight gathered in all rounds that it needs before its next claim (Envoy, `maglev_lb.cc`).
    due: u64,
    place: u32,
    step: u32,
}

/// Empty when nobody has a weight, or there are more candidates than places or than an entry can tell apart.
fn table(candidates: &[Candidate<'_>]) -> Box<[u16]> {
    let mut claimants = claimants(candidates);
    let Some(heaviest) = claimants.iter().map(|c| u64::from(c.weight)).max() else { return Box::default() };
    let mut table = vec![None; PLACES as usize];
    let mut free = PLACES;
    let mut gathered = 0;
    loop {
        gathered += 1;
        for claimant in &mut claimants {
            if gathered * u64::from(claimant.weight) < claimant.due {
                continue;
            }
            claimant.due += heaviest;
            while table[claimant.place as usize].is_some() {
                claimant.advance();
            }
            table[claimant.place as usize] = Some(claimant.index);
            free -= 1;
            if free == 0 {
                return table.into_iter().flatten().collect();
            }
        }
    }
}

/// In the order of their names, whatever the order of the file.
fn claimants(candidates: &[Candidate<'_>]) -> Vec<Claimant> {
    if candidates.len() > usize::from(u16::MAX) {
        return Vec::new();
    }
    let mut sorted: Vec<(u16, &Candidate<'_>)> = (0..).zip(candidates).filter(|(_, c)| c.weight.value() > 0).collect();
    sorted.sort_by_key(|(_, c)| c.name);
    let claimant = |(index, candidate): (u16, &Candidate<'_>)| {
        let hash = of_name(candidate.name);
        Claimant {
            index,
            weight: candidate.weight.value(),
            due: 0,
            place: (hash % u64::from(PLACES)) as u32,
            step: (mix(!hash) % u64::from(PLACES - 1)) as u32 + 1,
        }
    };
    sorted.into_iter().map(claimant).collect()
}

impl Claimant {
    fn advance(&mut self) {
        self.place += self.step;
        if self.place >= PLACES {
            self.place -= PLACES;
        }
    }
}
