//! The candidate with the fewest live sessions for its weight (nginx, HAProxy `lb_fwlc.c`). Among the tied the round
//! robin decides where it names one of them, else the lot by weight: an idle pool is spread exactly by weight, and
//! nobody gains from standing behind a busy neighbour.

use std::cmp::Ordering;

use super::draw::Draw;
use super::round_robin::Schedule;
use super::{Ask, Candidate, weights};

#[derive(Debug)]
pub(super) struct LeastConnections {
    schedule: Schedule,
    weights: Box<[u32]>,
}

impl LeastConnections {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        let weights = weights(candidates);
        Self { schedule: Schedule::new(&weights), weights }
    }

    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        let turn = self.schedule.turn(ask.ticket)?;
        let mut turn_is_tied = false;
        let mut tied = Draw::new(ask.ticket);
        let mut fewest = (1, 0); // live sessions and weight of the tied; a weight of 0 stands for infinitely many sessions
        for (i, &weight) in self.weights.iter().enumerate() {
            if weight == 0 || !(ask.usable)(i) {
                continue;
            }
            let load = ((ask.live)(i), weight);
            match compare(load, fewest) {
                Ordering::Greater => continue,
                Ordering::Equal => {}
                Ordering::Less => {
                    fewest = load;
                    turn_is_tied = false;
                    tied.restart();
                }
            }
            turn_is_tied |= i == turn;
            tied.offer(i, weight);
        }
        if turn_is_tied { Some(turn) } else { tied.winner() }
    }
}

/// Compares live sessions per weight, cross-multiplied.
pub(super) fn compare((live_a, weight_a): (u32, u32), (live_b, weight_b): (u32, u32)) -> Ordering {
    (u64::from(live_a) * u64::from(weight_b)).cmp(&(u64::from(live_b) * u64::from(weight_a)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::round_robin::RoundRobin;
    use super::super::testing::{counts, idle, pool, weights_up_to};
    use super::*;

    proptest! {
        #[test]
        fn nobody_usable_has_fewer_for_its_weight(
            weights in weights_up_to(8, 1..=256), live in prop::collection::vec(0u32..1000, 8), usable in 1u8.., ticket: u64,
        ) {
            let fit = |i: usize| usable & (1 << i) != 0;
            let ask = Ask { live: &|i| live[i], usable: &fit, ..idle(ticket) };
            let Some(picked) = LeastConnections::new(&pool(&weights).candidates()).pick(&ask) else { return Ok(()) };
            for i in (0..weights.len()).filter(|&i| fit(i)) {
                let (of_picked, of_other) = (live[picked] * weights[i], live[i] * weights[picked]);
                prop_assert!(of_picked <= of_other, "{picked} rather than {i}");
            }
        }

        #[test]
        fn an_idle_pool_is_served_as_by_round_robin(weights in weights_up_to(8, 1..=20), ticket: u64) {
            let pool = pool(&weights);
            let (fewest, robin) = (LeastConnections::new(&pool.candidates()), RoundRobin::new(&pool.candidates()));
            prop_assert_eq!(fewest.pick(&idle(ticket)), robin.pick(&idle(ticket)));
        }

        #[test]
        fn sessions_that_stay_are_spread_by_weight(weights in weights_up_to(8, 1..=20), first in 0..u64::MAX / 2) {
            let way = LeastConnections::new(&pool(&weights).candidates());
            let mut live = vec![0; weights.len()];
            for ticket in (first..).take(3 * weights.iter().sum::<u32>() as usize) {
                let picked = way.pick(&Ask { live: &|i| live[i], ..idle(ticket) }).unwrap();
                live[picked] += 1;
            }
            prop_assert_eq!(live, weights.iter().map(|w| 3 * w).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_neighbour_of_a_busy_one_gets_no_more_than_the_other_tied() {
        let way = LeastConnections::new(&pool(&[2, 2, 2, 2, 4]).candidates());
        let live = [0, 9, 0, 0, 0];
        let picks = (0..10_000).map(|ticket| way.pick(&Ask { live: &|i| live[i], ..idle(ticket) }).unwrap());
        let counts = counts(5, picks);
        for (i, even) in [(0, 2000), (1, 0), (2, 2000), (3, 2000), (4, 4000)] {
            assert!(counts[i].abs_diff(even) <= even / 20, "{counts:?}");
        }
    }
}
