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

/// Those of one weight: they claim in the same rounds.
struct Group {
    weight: u32,
    /// Weight gathered in all rounds that each needs before its next claim (Envoy, `maglev_lb.cc`).
    due: u64,
    claimants: Vec<Claimant>,
}

/// A candidate on its way through the places, in its own order.
struct Claimant {
    index: u16,
    place: u32,
    step: u32,
}

/// Empty when nobody has a weight, or there are more candidates than an entry can tell apart.
fn table(candidates: &[Candidate<'_>]) -> Box<[u16]> {
    let mut groups = groups(candidates);
    let Some(heaviest) = groups.last().map(|g| u64::from(g.weight)) else { return Box::default() };
    let mut table = vec![None; PLACES as usize];
    let mut free = PLACES;
    let mut rounds = 0;
    loop {
        rounds += 1;
        for group in &mut groups {
            if rounds * u64::from(group.weight) < group.due {
                continue;
            }
            group.due += heaviest;
            for claimant in &mut group.claimants {
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
}

/// In the order of weights, then names, whatever the order of the file.
fn groups(candidates: &[Candidate<'_>]) -> Vec<Group> {
    if candidates.len() > usize::from(u16::MAX) {
        return Vec::new();
    }
    let mut sorted: Vec<(u16, &Candidate<'_>)> = (0..).zip(candidates).filter(|(_, c)| c.weight.value() > 0).collect();
    sorted.sort_by_key(|(_, c)| (c.weight, c.name));
    let of_one_weight = sorted.chunk_by(|(_, a), (_, b)| a.weight == b.weight);
    let group = |members: &[(u16, &Candidate<'_>)]| Group {
        weight: members[0].1.weight.value(),
        due: 0,
        claimants: members.iter().map(|&(index, candidate)| Claimant::new(index, candidate.name)).collect(),
    };
    of_one_weight.map(group).collect()
}

impl Claimant {
    fn new(index: u16, name: &str) -> Self {
        let hash = of_name(name);
        let step = mix(!hash) % u64::from(PLACES - 1) + 1;
        Self { index, place: (hash % u64::from(PLACES)) as u32, step: step as u32 }
    }

    fn advance(&mut self) {
        self.place += self.step;
        if self.place >= PLACES {
            self.place -= PLACES;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{counts, idle, pool, weights_up_to};
    use super::*;

    /// Places by name, so that tables of different pools compare.
    fn names<'a>(candidates: &[Candidate<'a>]) -> Vec<&'a str> {
        table(candidates).iter().map(|&i| candidates[usize::from(i)].name).collect()
    }

    fn shares(weights: &[u32]) -> Vec<u32> {
        counts(weights.len(), table(&pool(weights).candidates()).iter().map(|&i| usize::from(i)))
    }

    fn moved(before: &[&str], after: &[&str], gone: &str) -> usize {
        before.iter().zip(after).filter(|(b, a)| **b != gone && a != b).count()
    }

    #[test]
    fn equal_ones_differ_by_at_most_one_percent() {
        for n in [1, 2, 3, 10, 100, 655] {
            let shares = shares(&vec![1; n]);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(f64::from(*most) <= f64::from(*least) * 1.011, "{n}: {least} to {most}");
        }
    }

    #[test]
    fn each_has_places_in_proportion_to_its_weight() {
        for weights in [&[1, 2, 3][..], &[256, 1, 1], &[7, 0, 11, 200, 13]] {
            let total: u32 = weights.iter().sum();
            for (share, weight) in shares(weights).iter().zip(weights) {
                let even = f64::from(PLACES * weight) / f64::from(total);
                assert!((f64::from(*share) - even).abs() <= 2.0, "{share} for {even}");
            }
        }
    }

    /// The paper's figure 12: with M = 65537 and few failures, under 1 % of all places move without need.
    #[test]
    fn removing_one_of_many_moves_few_but_its_own() {
        for n in [10, 100, 500] {
            let pool = pool(&vec![1; n]);
            let mut rest = pool.candidates();
            let gone = rest.remove(n / 2).name;
            let moved = moved(&names(&pool.candidates()), &names(&rest), gone);
            assert!(moved * 100 < PLACES as usize, "{n}: {moved}");
        }
    }

    #[test]
    fn a_changed_weight_moves_few_but_the_difference() {
        let (before, after) = (pool(&[10; 20]), pool(&[&[11][..], &[10; 19]].concat()));
        let (before, after) = (names(&before.candidates()), names(&after.candidates()));
        let moved = moved(&before, &after, "");
        assert!(moved * 100 < PLACES as usize, "{moved}"); // of which 0.47 % must
    }

    #[test]
    fn picks_never_change_between_versions() {
        let way = Maglev::new(&pool(&[1, 2, 3, 2]).candidates());
        let picks: Vec<_> = (0..12).filter_map(|client| way.pick(&idle(client))).collect();
        assert_eq!(picks, [2, 1, 2, 2, 0, 2, 1, 0, 1, 0, 3, 1]);
    }

    #[test]
    fn the_clients_of_an_unusable_one_go_to_all_others_by_weight() {
        let way = Maglev::new(&pool(&[5, 1, 2, 3]).candidates());
        let orphans = (0..30_000).filter(|&client| way.pick(&idle(client)) == Some(0));
        let picks: Vec<_> = orphans.map(|c| way.pick(&Ask { usable: &|i| i != 0, ..idle(c) }).unwrap()).collect();
        let counts = counts(4, picks.iter().copied());
        for (i, weight) in [(1, 1), (2, 2), (3, 3)] {
            let even = picks.len() as u32 * weight / 6;
            assert!(counts[i].abs_diff(even) < even / 10, "{counts:?}");
        }
    }

    #[test]
    fn more_candidates_than_an_entry_can_tell_apart_still_serve() {
        let pool = pool(&vec![1; 70_000]);
        let way = Maglev::new(&pool.candidates());
        assert!(way.table.is_empty());
        assert!(way.pick(&idle(1)).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn the_order_of_the_file_does_not_matter(weights in weights_up_to(12, 0..=256), by in 0usize..12) {
            let pool = pool(&weights);
            let mut turned = pool.candidates();
            turned.rotate_left(by % weights.len());
            prop_assert!(names(&pool.candidates()) == names(&turned));
            turned.reverse();
            prop_assert!(names(&pool.candidates()) == names(&turned));
        }
    }
}
