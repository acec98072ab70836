//! Chooses a backend for a session and reserves the place there. The choice is the balancer's; this adds
//! what only the moment knows: who is full, and who has already failed this session.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::balance::{Ask, Balancer, client_key};
use crate::snapshot::{Backend, BackendCell, Pool};

/// How often a place that was seen free may be another worker's when it is reserved, until the pool counts as full.
const LOST_RACES: u32 = 32;

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
    /// No backend is eligible, but one may be after its first probe.
    Unproven,
    /// No backend is eligible.
    Nobody,
}

/// Chooses a backend and reserves a place at it, unless it has a spare connection. Looks at each backend a few times at
/// most, whoever is full.
pub fn choose(
    pool: &Pool,
    ticket: u64,
    client: Option<IpAddr>,
    random: u64,
    tried: &[Arc<BackendCell>],
    has_spare: impl Fn(&Arc<BackendCell>) -> bool,
) -> Choice {
    if pool.eligible.is_empty() {
        return if pool.awaits_verdict { Choice::Unproven } else { Choice::Nobody };
    }
    let backend = |i: usize| -> &Backend { &pool.backends[usize::from(pool.eligible[i])] };
    let tried = Tried::new(tried);
    let ask = Ask {
        ticket,
        client: client_key(client, ticket),
        random,
        live: &|i| backend(i).cell.live.count(),
        usable: &|i| !tried.has(&backend(i).cell),
    };
    let has_room = |i: usize| {
        let Backend { cell, max_connections, .. } = backend(i);
        cell.live.room(*max_connections) > 0 || has_spare(cell)
    };
    let reserve = |i: usize| {
        let Backend { cell, max_connections, .. } = backend(i);
        if has_spare(cell) {
            return Some(Choice::Spare(Arc::clone(cell)));
        }
        cell.live.reserve(*max_connections).then(|| Choice::Reserved(Arc::clone(cell)))
    };
    find_place(&pool.balancer, &ask, has_room, reserve)
}

/// Has the balancer choose among those that `ask` calls usable and that have room, and reserves there. Whether there is
/// room is asked of each before it is chosen: a choice costs the balancer a look at every backend, and must not be made
/// once for each that is full.
fn find_place(
    balancer: &Balancer,
    ask: &Ask<'_>,
    has_room: impl Fn(usize) -> bool,
    mut reserve: impl FnMut(usize) -> Option<Choice>,
) -> Choice {
    for _ in 0..LOST_RACES {
        let some_are_full = Cell::new(false);
        let usable = |i: usize| {
            let usable = (ask.usable)(i);
            let room = usable && has_room(i);
            some_are_full.set(some_are_full.get() | (usable && !room));
            room
        };
        match balancer.pick(&Ask { usable: &usable, ..*ask }) {
            Some(i) => {
                if let Some(choice) = reserve(i) {
                    return choice;
                } // another worker was quicker, which its count shows now
            }
            None if some_are_full.get() => return Choice::Full,
            None => return Choice::AllTried,
        }
    }
    Choice::Full
}

/// The backends that have failed a session, to be found quickly however many there are.
pub(super) struct Tried(Vec<usize>);

impl Tried {
    /// Of none, no allocation.
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
    fn where_no_backend_is_fit_nobody_is_chosen_and_a_first_verdict_is_waited_for() {
        let (checked, unchecked) = (file("a: 10.0.0.1:1 }, health_check: {"), file("a: 10.0.0.1:1"));
        let of = |health| snapshot_of(if health == Health::Unchecked { &unchecked } else { &checked }, 1, health).0;
        let choice = |health| choose(&of(health).pools[0], 0, None, 1, &[], |_| false);
        assert!(matches!(choice(Health::Down), Choice::Nobody));
        assert!(matches!(choice(Health::Unproven), Choice::Unproven));
        assert!(matches!(choice(Health::Unchecked), Choice::Reserved(_)));
    }

    #[test]
    fn a_pool_of_full_backends_costs_a_look_at_each_and_no_reservation() {
        use crate::balance::Candidate;
        use crate::words::{Algorithm, Weight};
        const MANY: usize = 1000;
        let names: Vec<String> = (0..MANY).map(|n| format!("b{n}")).collect();
        let candidates: Vec<_> = names.iter().map(|name| Candidate { name, weight: Weight::default() }).collect();
        for &algorithm in Algorithm::ALL {
            let balancer = Balancer::new(algorithm, &candidates);
            let ask = Ask { ticket: 7, client: 8, random: 9, live: &|_| 1, usable: &|_| true };
            let (looks, reserved) = (Cell::new(0), Cell::new(0));
            let count = |n: &Cell<usize>| n.set(n.get() + 1);
            // One has room: found by one choice, whichever it is.
            for free in [None, Some(0), Some(MANY / 2), Some(MANY - 1)] {
                let room = |i| {
                    count(&looks);
                    Some(i) == free
                };
                let choice = find_place(&balancer, &ask, room, |i| {
                    count(&reserved);
                    (Some(i) == free).then_some(Choice::AllTried) // stands for a reservation
                });
                let (looks, reserved) = (looks.take(), reserved.take());
                assert!(looks <= 2 * MANY, "{algorithm}: {looks}");
                assert_eq!(reserved, usize::from(free.is_some()), "{algorithm}");
                assert_eq!(matches!(choice, Choice::Full), free.is_none(), "{algorithm}: {choice:?}");
            }
        }
    }

    #[test]
    fn who_loses_every_race_for_a_place_is_told_that_the_pool_is_full() {
        let (snapshot, _cells) = snapshot(&file("a: 10.0.0.1:1"), 1);
        let ask = Ask { ticket: 0, client: 0, random: 0, live: &|_| 0, usable: &|_| true };
        assert!(matches!(find_place(&snapshot.pools[0].balancer, &ask, |_| true, |_| None), Choice::Full));
    }
}
