//! Who gets which client, counted by what the clients were answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::backend::{Backend, echo, named};
use crate::client::{ask, connect, connect_from, echoes, until, who};
use crate::daemon::{Lbd, web, web_of};

#[test]
fn weights_are_exact_over_all_workers_after_any_number_of_earlier_picks() {
    let backends: Vec<Backend> = ["one", "two", "three"].map(|name| Backend::start(named(name))).into();
    let weighted: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(i, b)| format!("b{i}: {{ address: \"{}\", weight: {} }}", b.address, i + 1))
        .collect();
    let lbd = Lbd::start(&web_of(&weighted.join(", "), ""));
    let to = lbd.web();
    for earlier in [7, 4] {
        (0..earlier).for_each(|_| drop(who(to)));
        let answers = crowd(to, 64, 600);
        let wanted = [("one", 100), ("two", 200), ("three", 300)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!(answers, wanted.into(), "after {earlier} more");
    }
}

#[test]
fn least_connections_prefers_who_has_fewest_by_weight() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let backends = format!("a: \"{}\", b: {{ address: \"{}\", weight: 2 }}", a.address, b.address);
    let lbd = Lbd::start(&web_of(&backends, "balance: least_connections"));
    let held: Vec<_> = (0..9).map(|_| connect(lbd.web())).collect();
    held.iter().for_each(|client| echoes(client).unwrap());
    assert_eq!((a.accepted(), b.accepted()), (3, 6));
}

#[test]
fn a_clients_address_decides_where_hashing_is_asked_for() {
    let backends: Vec<(&str, Backend)> = ["a", "b", "c"].map(|name| (name, Backend::start(named(name)))).into();
    let of: Vec<(&str, &Backend)> = backends.iter().map(|(name, b)| (*name, b)).collect();
    for balance in ["source_hash", "maglev"] {
        let lbd = Lbd::start(&web(&of, &format!("balance: {balance}")));
        let to = lbd.web();
        let choice = |n: u8| {
            let from = Some([127, 0, 0, n].into());
            let answers: Vec<String> = (0..3).map(|_| ask(connect_from(from, to).unwrap(), b"?").unwrap()).collect();
            assert!(answers.iter().all(|a| *a == answers[0]), "{balance}: 127.0.0.{n} got {answers:?}");
            answers[0].clone()
        };
        let mut used: Vec<String> = (2..34).map(choice).collect();
        used.sort();
        used.dedup();
        assert_eq!(used, ["a", "b", "c"], "{balance}");
    }
}

#[test]
fn the_first_is_used_while_it_can_be() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], "balance: first"));
    assert_eq!(crowd(lbd.web(), 4, 20), [("a".to_owned(), 20)].into());
}

#[test]
fn a_backup_serves_only_while_no_other_can() {
    let (mut a, spare) = (Backend::start(named("a")), Backend::start(named("spare")));
    let backends = format!("spare: {{ address: \"{}\", backup: true }}, a: \"{}\"", spare.address, a.address);
    let lbd = Lbd::start(&web_of(&backends, "health_check: { interval: 50ms, timeout: 1s, rise: 1, fall: 1 }"));
    lbd.await_backend("web/spare", "health", "up");
    lbd.await_backend("web/a", "health", "up");
    assert_eq!(crowd(lbd.web(), 4, 20), [("a".to_owned(), 20)].into());
    a.stop();
    lbd.await_backend("web/a", "health", "down");
    assert_eq!(crowd(lbd.web(), 4, 20), [("spare".to_owned(), 20)].into());
    a.restart();
    until("the first serves again", || (who(lbd.web()) == "a").then_some(()));
    assert_eq!(crowd(lbd.web(), 4, 20), [("a".to_owned(), 20)].into());
}

/// How often each answer came to so many requests, each on a connection of its own, `clients` at a time.
fn crowd(to: SocketAddr, clients: usize, requests: usize) -> BTreeMap<String, usize> {
    let left = AtomicUsize::new(requests);
    let client = || {
        let mut answers = Vec::new();
        while left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            answers.push(who(to));
        }
        answers
    };
    let answers: Vec<String> = thread::scope(|s| {
        let threads: Vec<_> = (0..clients).map(|_| s.spawn(client)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let mut counts = BTreeMap::new();
    answers.into_iter().for_each(|answer| *counts.entry(answer).or_insert(0) += 1);
    counts
}
