//! The load's choices: xorshift64* of the seed, and nothing else.

use std::time::Duration;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that it would never leave; neighbouring seeds are to differ at once.
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| random.0 = random.next() | 1);
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From `least` to below `beyond`.
    pub fn between(&mut self, least: usize, beyond: usize) -> usize {
        least + ((self.next() >> 11) % (beyond - least) as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, share: usize) -> bool {
        self.between(0, 100) < share
    }

    pub fn millis(&mut self, least: usize, beyond: usize) -> Duration {
        Duration::from_millis(self.between(least, beyond) as u64)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len())]
    }
}
