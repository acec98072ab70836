//! Pools and asks for the tests of every algorithm.

use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::{Ask, Candidate};
use crate::words::Weight;

/// Candidates `backend-0`, `backend-1` and so on.
pub(super) struct Pool(Vec<(String, Weight)>);

pub(super) fn pool(weights: &[u32]) -> Pool {
    let named = |(i, &w): (usize, &u32)| (format!("backend-{i}"), Weight::new(u64::from(w)).unwrap());
    Pool(weights.iter().enumerate().map(named).collect())
}

impl Pool {
    pub(super) fn candidates(&self) -> Vec<Candidate<'_>> {
        self.0.iter().map(|(name, weight)| Candidate { name, weight: *weight }).collect()
    }
}

pub(super) fn weights_up_to(most: usize, weight: RangeInclusive<u32>) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(weight, 1..=most)
}

/// The ask of a session in an idle pool where everybody is usable.
pub(super) fn idle(ticket: u64) -> Ask<'static> {
    Ask {
        ticket,
        client: super::client_key(None, ticket),
        random: super::hash::mix(ticket),
        live: &|_| 0,
        usable: &|_| true,
    }
}

/// How often each of `n` candidates was picked.
pub(super) fn counts(n: usize, picks: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut counts = vec![0; n];
    picks.for_each(|i| counts[i] += 1);
    counts
}
