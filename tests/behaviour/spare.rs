//! spare_connections: opened ahead, given to one session each, replaced; and none where there must be none.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;
use socket2::Socket;

use crate::backend::{Backend, echo, greeting, resetting};
use crate::client::{End, ask, connect, echoes, end_of, until};
use crate::daemon::{Lbd, web, web_of};

#[test]
fn spares_are_there_before_their_sessions_serve_one_each_and_are_replaced() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // Answers with its connection's number.
    let backend = Backend::start(move |mut socket: Socket| {
        let number = counted.fetch_add(1, SeqCst) + 1;
        if socket.read(&mut [0; 9])? > 0 {
            write!(socket, "{number}")?;
        }
        Ok(())
    });
    let lbd = Lbd::start(&web(&[("a", &backend)], "spare_connections: 5, spare_max_idle: 1h"));
    let full = |n| {
        until("the spares are there", || (count.load(SeqCst) == n).then_some(()));
        lbd.await_backend("web/a", "connections_spare", 5);
    };
    full(5);
    assert_eq!(lbd.backend("web/a")["connections_active"], 0);
    for session in 1..=20 {
        let number: usize = ask(connect(lbd.web()), b"?").unwrap().parse().unwrap();
        assert!(number < 5 + session, "session {session} had a connection that was opened for it");
        full(5 + session);
    }
    lbd.await_backend("web/a", "connections_active", 0);
    assert_eq!(lbd.backend("web/a")["connections_total"], 20, "spares are no sessions");
}

#[test]
fn what_a_backend_says_first_reaches_the_client_once_and_whole() {
    let backend = Backend::start(greeting("220 mail"));
    let lbd = Lbd::start(&web(&[("a", &backend)], "spare_connections: 4"));
    let clients: Vec<Socket> = (0..20)
        .map(|i| {
            if i % 5 == 0 {
                lbd.await_backend("web/a", "connections_spare", 4);
            }
            connect(lbd.web())
        })
        .collect();
    for mut client in &clients {
        let mut said = [0; 8];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"220 mail");
        echoes(client).unwrap();
    }
}

/// As a mail server's log would tell it.
#[test]
fn a_spare_that_is_given_up_has_an_end_and_no_reset_though_nobody_has_read_what_the_backend_said() {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&ends);
    let backend = Backend::start(move |mut socket: Socket| {
        socket.write_all(b"220 mail\r\n")?;
        let end = socket.read(&mut [0]).map_err(|e| e.kind());
        seen.lock().unwrap().push(end);
        Ok(())
    });
    let lbd = Lbd::start(&web(&[("a", &backend)], "spare_connections: 2, spare_max_idle: 100ms"));
    until("some were given up", || (ends.lock().unwrap().len() >= 6).then_some(()));
    assert!(ends.lock().unwrap().iter().all(|end| *end == Ok(0)), "{:?}", ends.lock().unwrap());
    drop(lbd);
}

#[test]
fn spares_that_the_backend_closes_are_replaced_and_no_client_sees_it() {
    for temper in [greeting(""), greeting("welcome")] {
        let backend = Backend::start(temper);
        let lbd = Lbd::start(&web(&[("a", &backend)], "spare_connections: 4"));
        for _ in 0..3 {
            lbd.await_backend("web/a", "connections_spare", 4);
            until("the backend has them", || (backend.live() == 4).then_some(()));
            backend.hang_up();
            for _ in 0..4 {
                let answer = ask(connect(lbd.web()), b"hello").unwrap();
                assert!(answer == "hello" || answer == "welcomehello", "{answer}");
            }
        }
        let stats = lbd.backend("web/a");
        assert_eq!(
            (&stats["connections_total"], &stats["retries"], &stats["connect_errors"]),
            (&json!(12), &json!(0), &json!(0))
        );
    }
}

#[test]
fn a_backend_that_takes_no_sessions_has_no_spares_and_gets_none() {
    for admin in ["drain", "disable"] {
        let (a, b) = (Backend::start(echo), Backend::start(echo));
        let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], "spare_connections: 4, spare_max_idle: 100ms"));
        lbd.await_backend("web/a", "connections_spare", 4);
        lbd.done(&[admin, "web/a"]);
        assert_eq!(lbd.backend("web/a")["connections_spare"], 0);
        stays_without(&a, &b);
        lbd.done(&["enable", "web/a"]);
        lbd.await_backend("web/a", "connections_spare", 4);
    }
}

#[test]
fn a_backend_that_is_down_or_removed_has_no_spares_and_gets_none() {
    let (mut a, b) = (Backend::start(echo), Backend::start(echo));
    let keys = "spare_connections: 4, spare_max_idle: 100ms, \
                health_check: { interval: 50ms, fall: 1, rise: 1, down_interval: 1h }";
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], keys));
    lbd.await_backend("web/a", "connections_spare", 4);
    a.stop();
    lbd.await_backend("web/a", "health", "down");
    a.restart();
    stays_without(&a, &b);
    let c = Backend::start(echo);
    let reloaded = lbd.reload(&web(&[("c", &c)], "spare_connections: 4, spare_max_idle: 100ms"));
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    stays_without(&b, &c);
}

/// The one has no connection, and has been offered none when the other's spares have been replaced several times.
fn stays_without(idle: &Backend, busy: &Backend) {
    until("its spares are closed", || (idle.live() == 0).then_some(()));
    let before = idle.accepted();
    busy.await_accepted(busy.accepted() + 20);
    assert_eq!((idle.accepted(), idle.live()), (before, 0));
}

#[test]
fn a_drain_waits_for_sessions_and_not_for_spares() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], "spare_connections: 4"));
    lbd.await_backend("web/a", "connections_spare", 4);
    let clients = [connect(lbd.web()), connect(lbd.web())];
    clients.iter().for_each(|client| echoes(client).unwrap());
    assert_eq!(lbd.lbctl(&["drain", "web/a", "--wait", "--timeout", "100ms"]).code, Some(4));
    until("only its session is left", || (a.live() == 1).then_some(()));
    clients.iter().for_each(|client| echoes(client).unwrap());
    drop(clients);
    lbd.done(&["drain", "web/a", "--wait", "--timeout", "20s"]);
}

/// The spares of both workers fill the backend; sessions of either worker get their places.
#[test]
fn spares_count_against_the_limit_and_give_way_to_sessions() {
    for rest in [", queue: off", ", queue: { max: 1, timeout: 20s }"] {
        let a = Backend::start(echo);
        let backends = format!("a: {{ address: \"{}\", max_connections: 4 }}", a.address);
        let lbd = Lbd::start(&web_of(&backends, &format!("spare_connections: 9{rest}")));
        for _ in 0..3 {
            lbd.await_backend("web/a", "connections_spare", 4);
            let mut clients = Vec::new();
            for sessions in 1..=4 {
                clients.push(connect(lbd.web()));
                clients.iter().for_each(|client| echoes(client).unwrap());
                let stats = lbd.backend("web/a");
                let (active, spare) = (&stats["connections_active"], stats["connections_spare"].as_u64().unwrap());
                assert!(*active == sessions && sessions + spare <= 4, "{active} + {spare}");
            }
            let fifth = connect(lbd.web());
            if rest.ends_with("off") {
                assert_eq!(end_of(&fifth), End::Reset);
            } else {
                until("it waits", || (lbd.stats()["pools"][0]["queued"] == 1).then_some(()));
                drop(clients.pop());
                echoes(&fifth).unwrap();
            }
        }
        let refused = if rest.ends_with("off") { json!({ "limit": 3 }) } else { json!({}) };
        assert_eq!(lbd.listener("web")["refused"], refused);
    }
}

#[test]
fn many_clients_find_their_places_at_a_small_backend_full_of_spares() {
    let a = Backend::start(echo);
    let backends = format!("a: {{ address: \"{}\", max_connections: 3 }}", a.address);
    let lbd = Lbd::start(&web_of(&backends, "spare_connections: 3, queue: { max: 1000, timeout: 20s }"));
    let to = lbd.web();
    thread::scope(|s| {
        for _ in 0..20 {
            s.spawn(|| (0..20).for_each(|_| assert_eq!(ask(connect(to), b"hello").unwrap(), "hello")));
        }
    });
    assert_eq!(lbd.listener("web")["refused"], json!({}));
    lbd.await_backend("web/a", "connections_active", 0);
    lbd.await_backend("web/a", "connections_spare", 3);
    until("the backend has no others", || (a.live() == 3).then_some(()));
}

#[test]
fn a_spare_that_nobody_needed_is_closed_in_time_and_replaced() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], "spare_connections: 2, spare_max_idle: 300ms"));
    a.await_accepted(2);
    let start = Instant::now();
    a.await_accepted(8);
    let took = start.elapsed();
    assert!((Duration::from_millis(850)..Duration::from_secs(5)).contains(&took), "three rounds took {took:?}");
    until("the old ones are gone", || (a.live() == 2).then_some(()));
    echoes(&connect(lbd.web())).unwrap();
}

#[test]
fn a_reload_changes_how_many_there_are() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], "spare_connections: 3"));
    for spares in [3, 8, 1, 0, 2] {
        let reloaded = lbd.reload(&web(&[("a", &a)], &format!("spare_connections: {spares}")));
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        lbd.await_backend("web/a", "connections_spare", spares);
        until("the backend has as many", || (a.live() == spares).then_some(()));
    }
}

#[test]
fn a_backend_that_keeps_none_is_tried_once_a_second() {
    let a = Backend::start(resetting);
    let _lbd = Lbd::start(&web(&[("a", &a)], "spare_connections: 2"));
    a.await_accepted(2);
    let start = Instant::now();
    a.await_accepted(6);
    assert!(start.elapsed() > Duration::from_millis(1_800), "{:?}", start.elapsed());
}

#[test]
fn a_stopping_lbd_has_no_spares_while_its_sessions_go_on() {
    let a = Backend::start(echo);
    let mut lbd = Lbd::start(&web(&[("a", &a)], "spare_connections: 4"));
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    lbd.await_backend("web/a", "connections_spare", 4);
    lbd.signal(Signal::SIGTERM);
    until("only the session is left", || (a.live() == 1).then_some(()));
    echoes(&client).unwrap();
    drop(client);
    assert_eq!(lbd.end().code, Some(0));
}

#[test]
fn the_proxy_header_goes_first_over_a_spare_and_over_its_replacement() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &backend)], "spare_connections: 4, send_proxy: v1"));
    for _ in 0..2 {
        lbd.await_backend("web/a", "connections_spare", 4);
        until("the backend has them", || (backend.live() == 4).then_some(()));
        for _ in 0..3 {
            let answer = ask(connect(lbd.web()), b"hello").unwrap();
            assert!(answer.starts_with("PROXY TCP4 127.0.0.1 ") && answer.ends_with("\r\nhello"), "{answer:?}");
            assert_eq!(answer.matches("PROXY").count(), 1, "{answer:?}");
            backend.hang_up();
        }
    }
}
