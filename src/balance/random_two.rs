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
