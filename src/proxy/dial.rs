//! Chooses a backend for a session and reserves the place there. The choice is the balancer's; this adds
//! what only the moment knows: who is full, and who has already failed this session.

use std::net::IpAddr;
use std::sync::Arc;

use crate::balance::{Ask, client_key};
use crate::snapshot::{Backend, BackendCell, Pool};

/// Places that others may take between a look and the reservation before every backend is asked in its turn.
const RACES: usize = 8;

/// What came of a choice.
#[derive(Debug)]
pub enum Choice {
    /// A place is reserved here.
    Reserved(Arc<BackendCell>),
    /// There is a spare connection to this one, which has its place already.
    Spare(Arc<BackendCell>),
    /// Every eligible backend has failed this session; it may try them again after a pause.
    AllTried,
    /// Every eligible backend that has not failed it is at its limit.
    Full,
    /// No backend is eligible, and the first verdict on one is awaited.
    Wait,
    /// No backend is eligible.
    Nobody,
}

/// Chooses a backend and reserves a place at it, unless it has a spare connection. However many are full, each is looked at once a
/// choice: who is full is not usable, and the balancer is asked again only where another worker was quicker.
pub fn choose(
    pool: &Pool,
    ticket: u64,
    client: Option<IpAddr>,
    random: u64,
    tried: &[Arc<BackendCell>],
    has_spare: impl Fn(&Arc<BackendCell>) -> bool,
) -> Choice {
    if pool.eligible.is_empty() {
        return if pool.awaits_verdict { Choice::Wait } else { Choice::Nobody };
    }
    let backend = |i: usize| -> &Backend { &pool.backends[usize::from(pool.eligible[i])] };
    let tried = Tried::new(tried);
    let usable = |i: usize| {
        let Backend { cell, max_connections, .. } = backend(i);
        !tried.has(cell) && (cell.live.room(*max_connections) > 0 || has_spare(cell))
    };
    let take = |i: usize| {
        let Backend { cell, max_connections, .. } = backend(i);
        if has_spare(cell) {
            return Some(Choice::Spare(Arc::clone(cell)));
        }
        cell.live.reserve(*max_connections).then(|| Choice::Reserved(Arc::clone(cell)))
    };
    let live = |i: usize| backend(i).cell.live.count();
    let ask = Ask { ticket, client: client_key(client, ticket), random, live: &live, usable: &usable };
    for _ in 0..RACES {
        let Some(i) = pool.balancer.pick(&ask) else { break };
        if let Some(choice) = take(i) {
            return choice;
        }
    }
    let count = pool.eligible.len();
    let first = (ticket % count as u64) as usize;
    let mut all_tried = true;
    for i in (first..count).chain(0..first).filter(|&i| !tried.has(&backend(i).cell)) {
        if let Some(choice) = take(i) {
            return choice;
        }
        all_tried = false;
    }
    if all_tried { Choice::AllTried } else { Choice::Full }
}

/// The backends that have failed a session, to be found quickly however many there are.
pub(super) struct Tried(Vec<usize>);

impl Tried {
    pub(super) fn new(tried: &[Arc<BackendCell>]) -> Self {
        let mut addresses: Vec<usize> = tried.iter().map(|cell| Arc::as_ptr(cell).addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Self(addresses)
    }

    pub(super) fn has(&self, cell: &Arc<BackendCell>) -> bool {
        !self.0.is_empty() && self.0.binary_search(&Arc::as_ptr(cell).addr()).is_ok()
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{snapshot, snapshot_of};
    use super::*;
    use crate::words::Health;

    fn file(backends: &str) -> String {
        format!(
            "listeners: {{ l: {{ bind: 127.0.0.1:1, pool: p }} }}\npools: {{ p: {{ backends: {{ {backends} }} }} }}\n"
        )
    }

    /// Takes every place there is for a session that these have failed; whom it got, and what it was told then.
    fn chosen(backends: &str, tried: &[usize]) -> (Vec<String>, String) {
        let (snapshot, _cells) = snapshot(&file(backends), 1);
        let pool = &snapshot.pools[0];
        let tried: Vec<_> = tried.iter().map(|&i| Arc::clone(&pool.backends[i].cell)).collect();
        let mut got = Vec::new();
        for ticket in 0..9 {
            match choose(pool, ticket, None, 1, &tried, |_| false) {
                Choice::Reserved(cell) => got.push(cell.reference.backend.to_string()),
                other => {
                    let live: u32 = pool.backends.iter().map(|b| b.cell.live.count()).sum();
                    assert_eq!(live as usize, got.len(), "what is not given is not reserved");
                    return (got, format!("{other:?}"));
                }
            }
        }
        (got, String::new())
    }

    #[test]
    fn full_and_tried_backends_are_passed_over_and_why_nobody_is_left_is_told() {
        let limited = "a: { address: 10.0.0.1:1, max_connections: 2 }, b: { address: 10.0.0.2:1, max_connections: 1 }";
        for (backends, tried, got, told) in [
            (limited, &[][..], vec!["a", "a", "b"], "Full"),
            (limited, &[1], vec!["a", "a"], "Full"),
            (limited, &[0, 1], vec![], "AllTried"),
            ("a: 10.0.0.1:1", &[0], vec![], "AllTried"),
            ("a: { address: 10.0.0.1:1, max_connections: 1 }, b: 10.0.0.2:1", &[1], vec!["a"], "Full"),
        ] {
            let (mut all, why) = chosen(backends, tried);
            all.sort();
            assert_eq!(
                (all, why.as_str()),
                (got.iter().map(ToString::to_string).collect(), told),
                "{backends} {tried:?}"
            );
        }
    }

    #[test]
    fn a_full_backend_with_a_spare_connection_is_not_full() {
        let (snapshot, _cells) = snapshot(&file("a: { address: 10.0.0.1:1, max_connections: 1 }"), 1);
        let pool = &snapshot.pools[0];
        assert!(pool.backends[0].cell.live.reserve_spare(Some(1)));
        assert!(matches!(choose(pool, 0, None, 1, &[], |_| true), Choice::Spare(_)));
        assert!(matches!(choose(pool, 0, None, 1, &[], |_| false), Choice::Full));
        assert_eq!(pool.backends[0].cell.live.spares(), 1);
    }

    #[test]
    fn where_no_backend_is_fit_nobody_is_chosen() {
        let (snapshot, _cells) =
            snapshot_of(&file("a: 10.0.0.1:1").replace("backends", "health_check: {}, backends"), 1, Health::Down);
        assert!(matches!(choose(&snapshot.pools[0], 0, None, 1, &[], |_| false), Choice::Nobody));
    }
}
