//! What is known of each backend beside the file, by its key and by when its next probe is due: two tables that cannot
//! disagree, since [`Backends::change`] is the only way to either. What is due is found without a look at the others, so that
//! an event costs the logarithm of their number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::daemon::event::BackendKey;
use crate::health::Verdict;

/// What is known of a backend beside the file.
#[derive(Debug)]
pub struct Known {
    pub(super) verdict: Verdict,
    /// When the next probe is due; `None` while one is under way or where the backend is not probed.
    pub(super) next_probe: Option<Instant>,
    pub(super) last_probe: Instant,
    /// How long the backend has kept a probe waiting that an upgrade in place broke off, and is now made again.
    pub(super) waited: Duration,
    pub(super) probes_ok: u64,
    pub(super) probes_failed: u64,
}

impl Known {
    /// Of a backend that has just become known.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            verdict: Verdict::unproven(now),
            next_probe: None,
            last_probe: now,
            waited: Duration::ZERO,
            probes_ok: 0,
            probes_failed: 0,
        }
    }
}

/// The backends of the configuration in force.
#[derive(Debug, Default)]
pub struct Backends {
    known: BTreeMap<BackendKey, Known>,
    /// Exactly those that have a time for their next probe.
    due: BTreeSet<(Instant, BackendKey)>,
}

impl Backends {
    pub(super) fn get(&self, key: &BackendKey) -> Option<&Known> {
        self.known.get(key)
    }

    /// By key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&BackendKey, &Known)> {
        self.known.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Changes what is known of a backend; `None` where there is no such backend.
    pub(super) fn change<R>(&mut self, key: &BackendKey, change: impl FnOnce(&mut Known) -> R) -> Option<R> {
        let known = self.known.get_mut(key)?;
        let before = known.next_probe;
        let result = change(known);
        let after = known.next_probe;
        if before != after {
            if let Some(at) = before {
                self.due.remove(&(at, key.clone()));
            }
            self.due.extend(after.map(|at| (at, key.clone())));
        }
        Some(result)
    }

    /// Adds a backend of which nothing is known, where it is not there yet.
    pub(super) fn add(&mut self, key: BackendKey, now: Instant) {
        self.known.entry(key).or_insert_with(|| Known::new(now));
    }

    /// Forgets those that are not wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&BackendKey) -> bool) {
        self.known.retain(|key, _| wanted(key));
        self.due.retain(|(_, key)| wanted(key));
    }

    /// When the next probe of any is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// One whose probe is due by now, and when it was; it has no time for the next one any more.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Instant, BackendKey)> {
        if self.next_due()? > now {
            return None;
        }
        let (at, key) = self.due.pop_first()?;
        if let Some(known) = self.known.get_mut(&key) {
            known.next_probe = None;
        }
        Some((at, key))
    }
}

#[cfg(test)]
impl std::ops::Index<&BackendKey> for Backends {
    type Output = Known;
    fn index(&self, key: &BackendKey) -> &Known {
        &self.known[key]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u16) -> BackendKey {
        use crate::words::BackendRef;
        let reference = BackendRef { pool: "p".parse().unwrap(), backend: format!("b{n}").parse().unwrap() };
        (reference, format!("127.0.0.1:{}", 1000 + n).parse().unwrap())
    }

    proptest! {
        #[test]
        fn what_is_due_is_found_in_order_whatever_was_changed(
            changes in prop::collection::vec((0u16..9, prop::option::of(0u64..50)), 0..80), gone in 0u16..9, now in 0u64..60,
        ) {
            let start = Instant::now();
            let at = |ms: u64| start + Duration::from_millis(ms);
            let mut backends = Backends::default();
            (0..8).for_each(|n| backends.add(key(n), start));
            let mut expected: BTreeMap<u16, u64> = BTreeMap::new();
            for (n, next) in changes {
                let known = backends.change(&key(n), |known| known.next_probe = next.map(at));
                prop_assert_eq!(known.is_some(), n < 8);
                expected.remove(&n);
                expected.extend(next.filter(|_| n < 8).map(|next| (n, next)));
            }
            backends.retain(|k| *k != key(gone));
            expected.remove(&gone);
            prop_assert_eq!(backends.next_due(), expected.values().min().map(|ms| at(*ms)));
            let mut last = start;
            while let Some((due, k)) = backends.take_due(at(now)) {
                prop_assert!(due >= last && due <= at(now));
                prop_assert_eq!(backends[&k].next_probe, None);
                let n = expected.iter().find(|(n, ms)| key(**n) == k && at(**ms) == due).map(|(n, _)| *n);
                prop_assert!(n.is_some_and(|n| expected.remove(&n).is_some()));
                last = due;
            }
            prop_assert!(expected.values().all(|ms| *ms > now));
        }
    }
}
