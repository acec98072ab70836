//! The less loaded of two drawn at random (power of two choices): nearly as even as the fewest of all at a constant
//! cost, and without the herd that all workers, or many balancers, make of one idle backend.

use std::cmp::Ordering;

use super::hash::{GOLDEN, below, mix};
use super::least_connections::compare;
use super::{Ask, Candidate, weights};

/// Draws before all candidates are looked at. A pair drawn blindly and found usable is as likely as any other such
/// pair, so that giving up late or early changes the cost alone.
const BLIND_DRAWS: u32 = 4;

#[derive(Debug)]
pub(super) struct RandomTwo {
    weights: Box<[u32]>,
}

impl RandomTwo {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        Self { weights: weights(candidates) }
    }

    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        let mut bits = Bits(ask.random);
        match self.pair(ask, &mut bits) {
            [Some(a), Some(b)] => Some(self.better(a, b, ask, &mut bits)),
            [one, _] => one,
        }
    }

    /// Two distinct usable candidates, every pair as likely; fewer where there are fewer.
    fn pair(&self, ask: &Ask<'_>, bits: &mut Bits) -> [Option<usize>; 2] {
        let fit = |&i: &usize| self.weights[i] > 0 && (ask.usable)(i);
        let n = self.weights.len();
        for _ in 0..if n < 2 { 0 } else { BLIND_DRAWS } {
            let a = bits.below(n);
            let b = bits.below(n - 1);
            let b = if b >= a { b + 1 } else { b };
            if fit(&a) && fit(&b) {
                return [Some(a), Some(b)];
            }
        }
        let mut pair = [None; 2]; // reservoir sampling of two
        for (seen, i) in (0..n).filter(fit).enumerate() {
            let place = if seen < 2 { seen } else { bits.below(seen + 1) };
            if let Some(place) = pair.get_mut(place) {
                *place = Some(i);
            }
        }
        pair
    }

    /// The less loaded; of two equally loaded each in proportion to its weight, or weights would not count in a pool
    /// that is nearly idle.
    fn better(&self, a: usize, b: usize, ask: &Ask<'_>, bits: &mut Bits) -> usize {
        let (weight_a, weight_b) = (self.weights[a], self.weights[b]);
        let a_wins = match compare(((ask.live)(a), weight_a), ((ask.live)(b), weight_b)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => bits.below((weight_a + weight_b) as usize) < weight_a as usize,
        };
        if a_wins { a } else { b }
    }
}

/// A sequence of random numbers out of one (SplitMix64).
struct Bits(u64);

impl Bits {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(GOLDEN);
        below(mix(self.0), bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{counts, idle, pool, weights_up_to};
    use super::*;

    proptest! {
        #[test]
        fn the_most_loaded_of_several_is_never_picked(
            weights in weights_up_to(8, 1..=256), live in prop::collection::vec(0u32..1000, 8), usable: u8, random: u64,
        ) {
            let fit = |i: usize| usable & (1 << i) != 0;
            let ask = Ask { random, live: &|i| live[i], usable: &fit, ..idle(0) };
            let Some(picked) = RandomTwo::new(&pool(&weights).candidates()).pick(&ask) else { return Ok(()) };
            let mut others = (0..weights.len()).filter(|&i| fit(i) && i != picked).peekable();
            prop_assert!(
                others.peek().is_none() || others.any(|i| live[picked] * weights[i] <= live[i] * weights[picked])
            );
        }
    }

    /// How often each of so many is picked where `usable` are and the lowest index is the least loaded.
    fn ranked(n: usize, usable: &dyn Fn(usize) -> bool) -> Vec<u32> {
        let way = RandomTwo::new(&pool(&vec![1; n]).candidates());
        counts(n, (0..60_000).map(|t| way.pick(&Ask { live: &|i| i as u32, usable, ..idle(t) }).unwrap()))
    }

    /// Of n(n-1)/2 pairs the k-th least loaded is the better of n-1-k.
    #[test]
    fn every_pair_of_usable_ones_is_as_likely() {
        let five = [24_000, 18_000, 12_000, 6_000, 0];
        let near = |counts: &[u32], even: &[u32]| counts.iter().zip(even).all(|(n, even)| n.abs_diff(*even) < 600);
        let all = ranked(5, &|_| true);
        assert!(near(&all, &five), "{all:?}");
        let few = ranked(100, &|i| i % 20 == 7); // so few that blind draws seldom find a pair
        let few: Vec<u32> = few.chunks(20).map(|chunk| chunk[7]).collect();
        assert!(near(&few, &five), "{few:?}");
    }

    #[test]
    fn of_two_idle_ones_each_is_picked_in_proportion_to_its_weight() {
        let way = RandomTwo::new(&pool(&[1, 3]).candidates());
        let counts = counts(2, (0..10_000).map(|ticket| way.pick(&idle(ticket)).unwrap()));
        assert!(counts[0].abs_diff(2500) < 150, "{counts:?}");
    }

    #[test]
    fn sessions_that_stay_are_spread_nearly_evenly() {
        let weights: Vec<u32> = (0..50).map(|i| 1 + i % 2).collect();
        let way = RandomTwo::new(&pool(&weights).candidates());
        let mut live = [0; 50];
        for ticket in 0..7500 {
            let picked = way.pick(&Ask { live: &|i| live[i], ..idle(ticket) }).unwrap();
            live[picked] += 1;
        }
        for (live, weight) in live.iter().zip(weights) {
            assert!(live.abs_diff(100 * weight) <= 6 * weight, "{live} sessions at weight {weight}");
        }
    }
}
