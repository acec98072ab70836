//! Smooth weighted round robin (nginx, `ngx_stream_upstream_round_robin.c`) as a schedule computed once: the session's
//! ticket says whose turn it is, so that workers share the order without a lock and any window of as many tickets as
//! the weights add up to gives each candidate exactly its weight.

use super::draw::Draw;
use super::{Ask, Candidate, weights};

/// Comparisons up to which the schedule is built as nginx picks, which is quadratic; some 5 ms.
const SMOOTH_BOUND: u64 = 4_000_000;

#[derive(Debug)]
pub(super) struct RoundRobin {
    schedule: Schedule,
    weights: Box<[u32]>,
}

impl RoundRobin {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        let weights = weights(candidates);
        Self { schedule: Schedule::new(&weights), weights }
    }

    /// Whose turn it is. Where that one is unusable its turn goes to another by lot and weight: were it the next of the
    /// schedule, always the same neighbour would bear the share of one that is full or dead.
    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        let turn = self.schedule.turn(ask.ticket)?;
        if (ask.usable)(turn) {
            return Some(turn);
        }
        let mut draw = Draw::new(ask.ticket);
        for (i, &weight) in self.weights.iter().enumerate() {
            if (ask.usable)(i) {
                draw.offer(i, weight);
            }
        }
        draw.winner()
    }
}

/// One cycle of turns: each candidate as often as its weight (divided by the common divisor) says.
#[derive(Debug)]
pub(super) struct Schedule(Box<[u32]>);

impl Schedule {
    pub(super) fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().fold(0, |d, &w| common_divisor(d, w)).max(1);
        let weights: Vec<u32> = weights.iter().map(|w| w / divisor).collect();
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        let turns = if weights.iter().all(|&w| w == 1) {
            (0..weights.len() as u32).collect()
        } else if total * weights.len() as u64 <= SMOOTH_BOUND {
            smooth(&weights, total as usize)
        } else {
            merged(&weights, total as usize)
        };
        Self(turns)
    }

    /// Whose turn the ticket is; `None` when nobody has a weight.
    pub(super) fn turn(&self, ticket: u64) -> Option<usize> {
        let place = ticket.checked_rem(self.0.len() as u64)?;
        Some(self.0[place as usize] as usize)
    }
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// nginx's own sequence: each gains its weight, the greatest is picked and pays the total; the first wins a tie.
fn smooth(weights: &[u32], total: usize) -> Box<[u32]> {
    let mut current = vec![0i64; weights.len()];
    let turn = |_| {
        let mut greatest = 0;
        for (i, &weight) in weights.iter().enumerate() {
            current[i] += i64::from(weight);
            if current[i] > current[greatest] {
                greatest = i;
            }
        }
        current[greatest] -= total as i64;
        greatest as u32
    };
    (0..total).map(turn).collect()
}

/// For large pools: those of one weight take turns in a group, and the k-th of a group's `n` turns belongs at
/// (k + 1/2) / n of the cycle. Groups because the turns of many light ones would all belong at 1/2.
fn merged(weights: &[u32], total: usize) -> Box<[u32]> {
    let mut groups: Vec<(u32, Vec<u32>)> = Vec::new();
    let mut by_weight: Vec<u32> = (0..weights.len() as u32).filter(|&i| weights[i as usize] > 0).collect();
    by_weight.sort_by_key(|&i| weights[i as usize]);
    for i in by_weight {
        let weight = weights[i as usize];
        match groups.last_mut() {
            Some((of, members)) if *of == weight => members.push(i),
            _ => groups.push((weight, vec![i])),
        }
    }
    // The place as a fraction of 2^32, then the group. 2k+1 has the upper 32 bits: 4096 of weight 256 have 2^20 turns.
    let mut places: Vec<u64> = Vec::with_capacity(total);
    for (g, (weight, members)) in (0..).zip(&groups) {
        let turns = u64::from(*weight) * members.len() as u64;
        places.extend((0..turns).map(|k| ((((2 * k + 1) << 32) / (2 * turns)) << 16) | g));
    }
    places.sort_unstable();
    let mut groups: Vec<_> = groups.into_iter().map(|(_, members)| members.into_iter().cycle()).collect();
    places.into_iter().filter_map(|place| groups[(place & 0xffff) as usize].next()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{counts, idle, pool, weights_up_to};
    use super::*;

    fn picks(weights: &[u32], tickets: std::ops::Range<u64>) -> Vec<usize> {
        let way = RoundRobin::new(&pool(weights).candidates());
        tickets.map(|t| way.pick(&idle(t)).unwrap()).collect()
    }

    /// The most turns from one of `i` to its next, around the cycle.
    fn widest_gap(cycle: &[u32], i: usize) -> usize {
        let at: Vec<usize> = (0..cycle.len()).filter(|&p| cycle[p] as usize == i).collect();
        let next = |k: usize| at.get(k + 1).copied().unwrap_or(at[0] + cycle.len());
        (0..at.len()).map(|k| next(k) - at[k]).max().unwrap()
    }

    #[test]
    fn the_order_is_that_of_nginx() {
        for (weights, order) in [
            (&[5, 1, 1][..], "aabacaa"),
            (&[1, 1, 1], "abc"),
            (&[1, 2, 3], "cbacbc"),
            (&[4, 2], "aba"),
            (&[3, 0, 3], "ac"),
            (&[256], "a"),
        ] {
            let picked = picks(weights, 0..order.len() as u64);
            let picked: String = picked.into_iter().map(|i| (b'a' + i as u8) as char).collect();
            assert_eq!(picked, order, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn any_window_of_the_total_gives_each_exactly_its_weight(
            weights in weights_up_to(12, 1..=40), start in 0..u64::MAX / 2,
        ) {
            let total: u32 = weights.iter().sum();
            let picked = picks(&weights, start..start + u64::from(total));
            prop_assert_eq!(counts(weights.len(), picked.into_iter()), weights);
        }

        /// Ahead by less than one: who is picked has the greatest credit, which is above 0, and pays 1. It follows that
        /// nobody comes in a burst.
        #[test]
        fn nobody_is_ever_a_turn_ahead_of_its_share_nor_two_behind(weights in weights_up_to(12, 1..=40)) {
            let total: u32 = weights.iter().sum();
            let mut turns = vec![0; weights.len()];
            for (served, &i) in (1..).zip(&Schedule::new(&weights).0) {
                turns[i as usize] += 1;
                for (turns, weight) in turns.iter().zip(&weights) {
                    let ahead = f64::from(*turns) - f64::from(served * weight) / f64::from(total);
                    prop_assert!(-2.0 < ahead && ahead < 1.0, "{ahead} after {served}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn a_large_pool_is_exact_too_and_without_bursts(
            light in 1u32..50, weights in prop::collection::vec(prop::sample::select(vec![1, 2, 7, 100, 255, 256]), 250..300),
        ) {
            let mut weights = weights;
            weights[7] = light;
            let total: u32 = weights.iter().sum();
            prop_assert!(u64::from(total) * weights.len() as u64 > SMOOTH_BOUND);
            let schedule = Schedule::new(&weights).0;
            for (i, &weight) in weights.iter().enumerate() {
                let gap = widest_gap(&schedule, i);
                let even = total.div_ceil(weight) as usize;
                prop_assert!(gap <= 2 * even + 8, "{gap} for {even}");
            }
            prop_assert_eq!(counts(weights.len(), schedule.iter().map(|&i| i as usize)), weights);
        }
    }

    #[test]
    fn one_heavy_among_thousands_is_not_served_in_a_burst() {
        let weights = [vec![256], vec![1; 4000]].concat();
        let total = 4256;
        let schedule = merged(&weights, total);
        assert_eq!(counts(weights.len(), schedule.iter().map(|&i| i as usize)), weights);
        assert!(widest_gap(&schedule, 0) <= total / 256 + 2);
        assert!(schedule.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn the_turns_of_an_unusable_one_go_to_all_others_by_weight() {
        let way = RoundRobin::new(&pool(&[2, 1, 3, 1]).candidates());
        let picks = (0..7000).map(|ticket| {
            let ask = Ask { usable: &|i| i != 0, ..idle(ticket) };
            way.pick(&ask).unwrap()
        });
        let counts = counts(4, picks);
        for (i, even) in [(0, 0), (1, 1400), (2, 4200), (3, 1400)] {
            assert!(counts[i].abs_diff(even) <= even / 20, "{counts:?}");
        }
    }
}
