//! Sessions that wait: for a place, or for the first verdict on a backend. Oldest first over all workers, and nobody holds up
//! another one that could be served.

use std::io::{Read, Write};

use serde_json::json;
use socket2::Socket;

use crate::backend::{Backend, echo, named, silent};
use crate::client::{End, connect, echoes, end_of, reset, until, who};
use crate::daemon::{Lbd, web, web_of};
use crate::load::Load;

fn await_queued(lbd: &Lbd, count: u64) {
    until("as many wait", || (lbd.stats()["pools"][0]["queued"] == count).then_some(()));
}

/// What a backend called `name` answers.
fn asks(mut client: &Socket) -> String {
    client.write_all(b"who").unwrap();
    let mut said = [0; 1];
    client.read_exact(&mut said).unwrap();
    String::from_utf8(said.to_vec()).unwrap()
}

#[test]
fn places_go_to_who_came_first_in_whichever_worker_they_become_free() {
    let a = Backend::start(echo);
    let backends = format!("a: {{ address: \"{}\", max_connections: 1 }}", a.address);
    let file = web_of(&backends, "queue: { max: 1000, timeout: 60s }").replace("workers: 2", "workers: 4");
    let lbd = Lbd::start(&file);
    let mut serving = connect(lbd.web());
    echoes(&serving).unwrap();
    let mut waiting = Vec::new();
    for n in 1..=24 {
        waiting.push(connect(lbd.web()));
        await_queued(&lbd, n);
    }
    for next in waiting {
        drop(serving);
        echoes(&next).unwrap(); // were another one served, this would wait for ever
        serving = next;
    }
    assert_eq!(lbd.listener("web")["refused"], json!({}));
}

#[test]
fn one_that_no_free_backend_may_serve_holds_up_nobody_not_even_at_the_bound_of_the_queue() {
    for workers in ["workers: 1", "workers: 3"] {
        let (mut a, b) = (Backend::start(named("a")), Backend::start(named("b")));
        a.stop();
        let backends = format!(
            "a: {{ address: \"{}\", max_connections: 50 }}, b: {{ address: \"{}\", max_connections: 1 }}",
            a.address, b.address
        );
        let keys = "balance: first, queue: { max: 1, timeout: 60s }";
        let lbd = Lbd::start(&web_of(&backends, keys).replace("workers: 2", workers));
        let at_b = connect(lbd.web());
        assert_eq!(asks(&at_b), "b");
        let waits = connect(lbd.web()); // a has refused it, and b is full
        await_queued(&lbd, 1);
        a.restart();
        let others: Vec<Socket> = (0..9).map(|_| connect(lbd.web())).collect();
        for other in &others {
            assert_eq!(asks(other), "a");
        }
        await_queued(&lbd, 1);
        drop(at_b);
        assert_eq!(asks(&waits), "b");
        assert_eq!(lbd.listener("web")["refused"], json!({}));
    }
}

#[test]
fn a_waiting_client_that_has_closed_leaves_at_once_if_it_has_sent_nothing_or_the_pool_says_so() {
    for (keys, left) in [("", 2), (", abort_on_close: true", 0)] {
        let a = Backend::start(echo);
        let backends = format!("a: {{ address: \"{}\", max_connections: 1 }}", a.address);
        let lbd = Lbd::start(&web_of(&backends, &format!("queue: {{ max: 9, timeout: 60s }}{keys}")));
        let serving = connect(lbd.web());
        echoes(&serving).unwrap();
        let waiting: Vec<Socket> = (0..6).map(|_| connect(lbd.web())).collect();
        await_queued(&lbd, 6);
        for (n, mut client) in waiting.into_iter().enumerate() {
            match n {
                0 | 1 => drop(client),
                2 => reset(client),
                3 => {
                    client.write_all(b"asked").unwrap();
                    reset(client);
                }
                _ => {
                    client.write_all(b"asked").unwrap();
                    drop(client);
                }
            }
        }
        await_queued(&lbd, left);
        let live = connect(lbd.web());
        await_queued(&lbd, left + 1);
        drop(serving);
        echoes(&live).unwrap();
    }
}

#[test]
fn a_client_that_only_ended_its_side_while_it_waited_has_its_answer() {
    let a = Backend::start(echo);
    let backends = format!("a: {{ address: \"{}\", max_connections: 1 }}", a.address);
    let lbd = Lbd::start(&web_of(&backends, ""));
    let serving = connect(lbd.web());
    echoes(&serving).unwrap();
    let mut waits = connect(lbd.web());
    waits.write_all(b"asked").unwrap();
    waits.shutdown(std::net::Shutdown::Write).unwrap();
    await_queued(&lbd, 1);
    drop(serving);
    let mut answer = String::new();
    waits.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "asked");
}

#[test]
fn in_a_pool_with_a_check_nobody_is_served_by_a_backend_before_its_first_success() {
    let (a, b) = (Backend::start(silent), Backend::start(named("b")));
    // Longer than any client of this test waits: the first failure is the verdict.
    let check = "health_check: { send: \"who\", expect: \"b\", interval: 60s, timeout: 500ms, fall: 3 }";
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], check));
    for _ in 0..20 {
        assert_eq!(who(lbd.web()), "b");
    }
    lbd.await_backend("web/a", "state", "down");
    assert_eq!(lbd.listener("web")["refused"], json!({}));
    assert_eq!(lbd.backend("web/a")["connections_total"], 0);
}

#[test]
fn where_the_first_verdict_is_awaited_clients_wait_and_hear_of_it_at_once() {
    let a = Backend::start(silent);
    let check = "health_check: { send: x, expect: y, interval: 60s, timeout: 1s }";
    for (queue, refusal) in [("", "no_backend"), (", queue: off", "no_backend")] {
        let lbd = Lbd::start(&web(&[("a", &a)], &format!("{check}{queue}")));
        let client = connect(lbd.web());
        if queue.is_empty() {
            await_queued(&lbd, 1);
        }
        assert_eq!(end_of(&client), End::Reset);
        assert_eq!(lbd.listener("web")["refused"], json!({ refusal: 1 }));
        let verdict = lbd.backend("web/a")["state"].clone();
        assert_eq!(verdict, if queue.is_empty() { "down" } else { "unproven" });
    }
}

#[test]
fn a_rolling_restart_refuses_nobody() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let check = "health_check: { send: PING, expect: PING, interval: 1s, timeout: 5s }";
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], check));
    lbd.await_backend("web/a", "state", "up");
    lbd.await_backend("web/b", "state", "up");
    let load = Load::start(lbd.web(), 2);
    for (back, out) in [("b", "a"), ("a", "b"), ("b", "a")] {
        lbd.done(&["drain", back, "--wait"]);
        lbd.done(&["enable", back]);
        lbd.done(&["drain", out]);
        load.go_on(20);
        lbd.await_backend(&format!("web/{back}"), "state", "up");
        lbd.done(&["enable", out]);
        lbd.await_backend(&format!("web/{out}"), "state", "up");
    }
    let (served, errors) = load.stop();
    assert_eq!(errors, Vec::<String>::new(), "of {served}");
}
