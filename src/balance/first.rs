//! The first candidate of the file that has room: the others stay idle until it is full or away.

use super::{Ask, Candidate, weights};

#[derive(Debug)]
pub(super) struct First {
    weights: Box<[u32]>,
}

impl First {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        Self { weights: weights(candidates) }
    }

    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        (0..self.weights.len()).find(|&i| self.weights[i] > 0 && (ask.usable)(i))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::pool;
    use super::*;

    #[test]
    fn the_first_usable_one_of_the_file_is_picked_whatever_its_load() {
        let first = First::new(&pool(&[1, 0, 5, 1]).candidates());
        for (usable, picked) in [
            ([true, true, true, true], Some(0)),
            ([false, true, true, true], Some(2)),
            ([false, true, false, true], Some(3)),
            ([false, true, false, false], None),
        ] {
            let ask = Ask { ticket: 3, client: 4, random: 5, live: &|i| 9 - i as u32, usable: &|i| usable[i] };
            assert_eq!(first.pick(&ask), picked, "{usable:?}");
        }
    }
}
