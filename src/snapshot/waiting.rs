//! Who waits for a place of a pool, over all workers: what each of them shows the others of its queue, so that a place goes to
//! whoever waits longest, wherever it becomes free. Nobody reads or writes this while nobody waits.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Nobody waits.
const NOBODY: u64 = u64::MAX;

/// The queues of a pool, one a worker, as far as others need to know them.
#[derive(Debug)]
pub struct Waiting {
    /// Counts the occasions at which places became free, from 1 on.
    epoch: AtomicU64,
    heads: Box<[Head]>,
}

/// When the first of a worker's queue began to wait, in microseconds of CLOCK_MONOTONIC.
#[derive(Debug)]
struct Head {
    /// Of all.
    first: AtomicU64,
    /// The epoch in which the worker found that its first can have none of the free places; 0: never.
    passed: AtomicU64,
    /// Of those that could, then.
    next: AtomicU64,
}

impl Waiting {
    /// Of so many workers.
    pub fn new(workers: usize) -> Self {
        let head = || Head { first: AtomicU64::new(NOBODY), passed: AtomicU64::new(0), next: AtomicU64::new(NOBODY) };
        Self { epoch: AtomicU64::new(1), heads: (0..workers).map(|_| head()).collect() }
    }

    /// A place has become free: who could have none of those before may have this one.
    pub fn has_room(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    /// To be read before one looks for free places, and given to [`Waiting::pass`].
    pub fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// The first of a worker's queue has changed, or somebody has come to it.
    pub fn show(&self, worker: usize, first: Option<u64>) {
        let Some(head) = self.heads.get(worker) else { return };
        head.first.store(first.unwrap_or(NOBODY), SeqCst);
        head.passed.store(0, SeqCst);
    }

    /// Of the places that are free in this epoch a worker's first can have none; `next` is its first that could.
    pub fn pass(&self, worker: usize, epoch: u64, next: Option<u64>) {
        let Some(head) = self.heads.get(worker) else { return };
        head.next.store(next.unwrap_or(NOBODY), SeqCst);
        head.passed.store(epoch, SeqCst);
    }

    /// Since when the one waits that comes first in any worker but this, and in which.
    pub fn first_of_others(&self, worker: usize) -> Option<(u64, usize)> {
        let epoch = self.epoch();
        let since = |head: &Head| {
            let has_passed = head.passed.load(SeqCst) == epoch;
            if has_passed { head.next.load(SeqCst) } else { head.first.load(SeqCst) }
        };
        let others = self.heads.iter().enumerate().filter(|(index, _)| *index != worker);
        others.map(|(index, head)| (since(head), index)).filter(|(since, _)| *since != NOBODY).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_longest_is_first_until_it_is_found_that_no_free_place_is_for_it() {
        let waiting = Waiting::new(3);
        assert_eq!(waiting.first_of_others(0), None);
        for (worker, since) in [(0, 30), (1, 10), (2, 20)] {
            waiting.show(worker, Some(since));
        }
        assert_eq!((waiting.first_of_others(0), waiting.first_of_others(1)), (Some((10, 1)), Some((20, 2))));
        let epoch = waiting.epoch();
        waiting.pass(1, epoch, Some(25));
        assert_eq!(waiting.first_of_others(0), Some((20, 2)));
        waiting.pass(2, epoch, None);
        assert_eq!(waiting.first_of_others(0), Some((25, 1)));
        waiting.has_room();
        assert_eq!(waiting.first_of_others(0), Some((10, 1)), "the place that is free now may be for it");
        waiting.pass(1, epoch, None);
        assert_eq!(waiting.first_of_others(0), Some((10, 1)), "what was found of former places says nothing");
        waiting.show(1, None);
        assert_eq!(waiting.first_of_others(0), Some((20, 2)));
    }
}
