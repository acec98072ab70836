//! max_connections and the queue: exact over all workers, and nobody waits for a place that is free.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::Socket;

use crate::backend::{Backend, echo, greeting};
use crate::client::{End, connect, echoes, end_of, until};
use crate::daemon::{Lbd, web, web_of};

#[test]
fn a_full_listener_lets_clients_wait_in_the_kernels_queue_and_serves_them_later() {
    let backend = Backend::start(greeting("welcome"));
    let lbd = Lbd::start(&web(&[("a", &backend)], "").replace("pool: web }", "pool: web, max_connections: 10 }"));
    let clients: Vec<Socket> = (0..30).map(|_| connect(lbd.web())).collect();
    backend.await_accepted(10);
    let mut most = 0;
    let (mut waiting, mut served) = (clients, 0);
    while !waiting.is_empty() {
        // Whoever is served says so first; the others' turn comes as those go.
        let next = until("somebody is served", || waiting.iter().position(is_readable));
        welcomed(&waiting.swap_remove(next));
        served += 1;
        let active = lbd.listener("web")["connections_active"].as_u64().unwrap();
        most = most.max(active);
        assert!(active <= 10, "{active} sessions, {served} served");
    }
    assert_eq!((served, most), (30, 10));
    assert_eq!(lbd.listener("web")["refused"], json!({}));
}

#[test]
fn a_full_backend_is_passed_over_and_the_limit_is_exact_under_two_workers() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let backends = format!("a: {{ address: \"{}\", max_connections: 7 }}, b: \"{}\"", a.address, b.address);
    let lbd = Lbd::start(&web_of(&backends, ""));
    let to = lbd.web();
    let held: Vec<Socket> = thread::scope(|s| {
        let threads: Vec<_> = (0..8).map(|_| s.spawn(|| (0..10).map(|_| connect(to)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    held.iter().for_each(|client| echoes(client).unwrap());
    assert_eq!((a.accepted(), b.accepted()), (7, 73));
}

#[test]
fn where_every_backend_is_full_and_there_is_no_queue_a_client_is_refused_at_once() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web_of(&format!("a: {{ address: \"{}\", max_connections: 2 }}", a.address), "queue: off"));
    let held = [connect(lbd.web()), connect(lbd.web())];
    held.iter().for_each(|client| echoes(client).unwrap());
    assert_eq!(end_of(&connect(lbd.web())), End::Reset);
    assert_eq!(lbd.listener("web")["refused"], json!({ "limit": 1 }));
    drop(held);
    lbd.await_backend("web/a", "connections_active", 0);
    echoes(&connect(lbd.web())).unwrap();
    assert_eq!(a.accepted(), 3);
}

#[test]
fn a_queue_hands_free_places_on_in_order_refuses_one_too_many_and_gives_up_in_time() {
    let a = Backend::start(greeting("welcome"));
    let backends = format!("a: {{ address: \"{}\", max_connections: 1 }}", a.address);
    let lbd = Lbd::start(&web_of(&backends, "queue: { max: 2, timeout: 700ms }").replace("workers: 2", "workers: 1"));
    let queued = |n: u64| until("as many wait", || (lbd.stats()["pools"][0]["queued"] == n).then_some(()));
    let first = connect(lbd.web());
    welcomed(&first);
    let second = connect(lbd.web());
    queued(1);
    let start = Instant::now();
    let third = connect(lbd.web());
    queued(2);
    assert_eq!(end_of(&connect(lbd.web())), End::Reset, "one too many");
    drop(first);
    welcomed(&second);
    assert_eq!(end_of(&third), End::Reset, "the place never became free");
    assert!((Duration::from_millis(650)..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
    queued(0);
    assert_eq!(lbd.listener("web")["refused"], json!({ "queue_full": 1, "queue_timeout": 1 }));
}

#[test]
fn a_queue_is_served_whichever_worker_the_place_becomes_free_in() {
    let a = Backend::start(greeting("welcome"));
    let backends = format!("a: {{ address: \"{}\", max_connections: 3 }}", a.address);
    let lbd = Lbd::start(&web_of(&backends, "queue: { max: 1000, timeout: 20s }"));
    let to = lbd.web();
    thread::scope(|s| {
        for _ in 0..30 {
            s.spawn(|| (0..5).for_each(|_| welcomed(&connect(to))));
        }
    });
    assert_eq!((lbd.listener("web")["refused"].clone(), a.accepted()), (json!({}), 150));
    lbd.await_backend("web/a", "connections_active", 0);
    assert_eq!(lbd.stats()["pools"][0]["queued"], 0);
}

/// A connect to a Unix socket fails within the call. A session that had waited for its place then was placed twice,
/// and its first place was lost for ever.
#[test]
fn a_waiting_client_whose_place_turns_out_to_be_at_a_dead_backend_waits_on() {
    let dir = tempfile::tempdir().unwrap();
    let a = Backend::start(greeting("welcome"));
    let mut b = Backend::unix(&dir.path().join("b.sock"), greeting("welcome"));
    let backends = format!(
        "a: {{ address: \"{}\", max_connections: 1 }}, b: {{ address: \"{}\", max_connections: 1 }}",
        a.address, b.address
    );
    let lbd = Lbd::start(&web_of(&backends, "queue: { max: 9, timeout: 20s }").replace("workers: 2", "workers: 1"));
    let queued = |n: u64| until("as many wait", || (lbd.stats()["pools"][0]["queued"] == n).then_some(()));
    let at_a = connect(lbd.web());
    welcomed(&at_a);
    let at_b = connect(lbd.web());
    welcomed(&at_b);
    let waiting = [connect(lbd.web()), connect(lbd.web())];
    queued(2);
    b.stop(); // ends its session, so its place is free, but nobody is there
    assert_eq!(end_of(&at_b), End::Closed);
    drop(at_b);
    until("it is tried", || (lbd.backend("web/b")["connect_errors"].as_u64() >= Some(1)).then_some(()));
    queued(2);
    drop(at_a);
    welcomed(&waiting[until("the first is served", || waiting.iter().position(is_readable))]);
    drop(waiting);
    lbd.await_backend("web/a", "connections_active", 0);
    lbd.await_backend("web/b", "connections_active", 0);
    queued(0);
}

fn welcomed(mut client: &Socket) {
    let mut said = [0; 7];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"welcome");
    client.write_all(b"bye").unwrap();
    client.read_exact(&mut said[..3]).unwrap();
}

fn is_readable(client: &Socket) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(client), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
}
