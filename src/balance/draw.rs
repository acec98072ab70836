//! A draw by lot in one pass over those offered, each with a chance in proportion to its weight. The lot follows from
//! the seed alone, so that a choice can be repeated; it neither allocates nor knows beforehand how many will come.

use super::hash::{GOLDEN, below, mix};

/// A draw under way (reservoir sampling of one).
pub(super) struct Draw {
    seed: u64,
    offered: u64,
    winner: Option<usize>,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed: mix(seed), offered: 0, winner: None }
    }

    pub(super) fn offer(&mut self, index: usize, weight: u32) {
        let weight = u64::from(weight);
        self.offered += weight;
        let lot = mix(self.seed.wrapping_add((index as u64).wrapping_mul(GOLDEN)));
        if below(lot, self.offered) < weight {
            self.winner = Some(index);
        }
    }

    /// Forgets everyone offered so far.
    pub(super) fn restart(&mut self) {
        self.offered = 0;
        self.winner = None;
    }

    pub(super) fn winner(self) -> Option<usize> {
        self.winner
    }
}
