//! Probes and traffic find out who can serve, and clients notice nothing of it as long as somebody can.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::backend::{Backend, echo, named, silent};
use crate::client::{End, ask, connect, end_of, until, who};
use crate::daemon::{Lbd, web};
use crate::load::Load;

const CHECK: &str = "health_check: { interval: 100ms, timeout: 1s, rise: 2, fall: 3, jitter: 0% }";

#[test]
fn a_backend_dies_and_comes_back_and_no_client_sees_an_error() {
    let (a, mut b) = (Backend::start(echo), Backend::start(echo));
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], CHECK));
    lbd.await_backend("web/b", "state", "up");
    let load = Load::start(lbd.web(), 2);
    for _ in 0..3 {
        // Nobody is to be on it when it dies: who was served by it loses its session, as it must.
        lbd.done(&["drain", "b", "--wait"]);
        b.stop();
        lbd.done(&["enable", "b"]);
        load.go_on(50);
        lbd.await_backend("web/b", "state", "down");
        load.go_on(50);
        let accepted = b.accepted();
        b.restart();
        lbd.await_backend("web/b", "state", "up");
        b.await_accepted(accepted + 5);
    }
    let (served, errors) = load.stop();
    assert_eq!(errors, Vec::<String>::new(), "of {served}");
    let stats = lbd.backend("web/b");
    let reason = stats["health_reason"].as_str().unwrap();
    assert!(reason.contains("refused"), "{reason}");
    assert_eq!(lbd.log().matches("down:").count(), 3, "each turn is logged once:\n{}", lbd.log());
}

#[test]
fn it_is_down_after_fall_failures_and_not_sooner() {
    let mut a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], CHECK));
    lbd.await_backend("web/a", "state", "up");
    let before = lbd.backend("web/a")["probes_failed"].as_u64().unwrap();
    a.stop();
    lbd.await_log("down:");
    let failed = lbd.backend("web/a")["probes_failed"].as_u64().unwrap() - before;
    assert!((3..=5).contains(&failed), "{failed}");
}

#[test]
fn with_every_backend_down_a_client_is_refused_at_once_and_served_within_two_probes_of_their_return() {
    let mut a = Backend::start(named("a"));
    a.stop();
    let lbd = Lbd::start(&web(&[("a", &a)], &CHECK.replace("rise: 2", "rise: 1")));
    lbd.await_backend("web/a", "state", "down");
    let start = Instant::now();
    assert_eq!(end_of(&connect(lbd.web())), End::Reset);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(lbd.listener("web")["refused"], json!({ "no_backend": 1 }));
    assert!(lbd.done(&["status"]).contains("pool web has no backend that can take a session"));
    let to = lbd.web();
    let start = Instant::now();
    a.restart();
    until("it is served", || {
        let mut client = connect(to);
        let mut answer = String::new();
        client.write_all(b"?").and_then(|()| client.read_to_string(&mut answer)).is_ok().then_some(())
    });
    assert!(start.elapsed() < Duration::from_millis(200 + 100), "{:?}", start.elapsed());
    assert_eq!(who(to), "a");
}

#[test]
fn a_backend_is_believed_only_if_it_says_what_is_expected() {
    let right = Backend::start(answering("+PONG\r\n"));
    let wrong = Backend::start(answering("-ERR loading\r\n"));
    let check = "health_check: { interval: 50ms, timeout: 1s, fall: 1, send: \"PING\\r\\n\", expect: \"+PONG\" }";
    let lbd = Lbd::start(&web(&[("right", &right), ("wrong", &wrong)], check));
    lbd.await_backend("web/right", "state", "up");
    lbd.await_backend("web/wrong", "state", "down");
    let reason = lbd.backend("web/wrong")["health_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("-ERR"), "{reason}");
}

#[test]
fn a_reload_keeps_what_is_known_of_a_backend() {
    let (a, mut b) = (Backend::start(named("a")), Backend::start(named("b")));
    b.stop();
    let file = web(&[("a", &a), ("b", &b)], CHECK);
    let lbd = Lbd::start(&file);
    lbd.await_backend("web/a", "state", "up");
    lbd.await_backend("web/b", "state", "down");
    let failed = lbd.backend("web/b")["probes_failed"].clone();
    assert_eq!(lbd.reload(&file.replace("rise: 2", "rise: 3")).code, Some(0));
    let stats = lbd.backend("web/b");
    assert_eq!(stats["state"], "down");
    assert!(stats["probes_failed"].as_u64() >= failed.as_u64(), "{stats}");
    assert_eq!(lbd.log().matches("down:").count(), 1, "{}", lbd.log());
}

/// Answers `PING` with `PONG` once `proven` is set, and whatever else with its name.
fn on_trial(
    name: &'static str,
    proven: Arc<AtomicBool>,
) -> impl Fn(socket2::Socket) -> std::io::Result<()> + Send + Sync {
    move |mut socket| {
        let mut asked = [0; 64];
        let n = socket.read(&mut asked)?;
        if &asked[..n] == b"PING" {
            until("it may answer", || proven.load(SeqCst).then_some(()));
            return socket.write_all(b"PONG");
        }
        socket.write_all(name.as_bytes())
    }
}

#[test]
fn in_a_rolling_restart_clients_wait_for_the_verdict_on_the_one_that_has_come_back() {
    let check =
        "health_check: { send: PING, expect: PONG, interval: 50ms, timeout: 20s }, queue: { max: 9, timeout: 20s }";
    let proven = Arc::new(AtomicBool::new(true));
    let a = Backend::start(on_trial("a", Arc::new(AtomicBool::new(true))));
    let b = Backend::start(on_trial("b", Arc::clone(&proven)));
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], check));
    lbd.await_backend("web/a", "state", "up");
    lbd.await_backend("web/b", "state", "up");
    lbd.done(&["disable", "b"]);
    proven.store(false, SeqCst);
    lbd.done(&["enable", "b"]);
    lbd.done(&["drain", "a"]);
    let clients: Vec<_> = (0..3).map(|_| connect(lbd.web())).collect();
    until("they wait", || (lbd.stats()["pools"][0]["queued"] == 3).then_some(()));
    assert_eq!(lbd.backend("web/b")["state"], "unproven");
    assert!(lbd.done(&["status"]).contains("pool web has no proven backend yet; its clients wait for a probe"));
    proven.store(true, SeqCst);
    for client in clients {
        assert_eq!(ask(client, b"who").unwrap(), "b");
    }
    assert_eq!(lbd.listener("web")["refused"], json!({}));
}

#[test]
fn a_backend_whose_check_fails_serves_nobody_at_the_start_and_without_a_queue_nobody_waits() {
    let a = Backend::start(answering("-ERR"));
    for (queue, cause) in [("queue: { max: 9, timeout: 20s }", "no_backend"), ("queue: off", "no_backend")] {
        let check = "health_check: { send: PING, expect: PONG, interval: 20s, timeout: 20s }";
        let lbd = Lbd::start(&web(&[("a", &a)], &format!("{check}, {queue}")));
        let probes = a.accepted();
        assert_eq!(end_of(&connect(lbd.web())), End::Reset);
        lbd.await_backend("web/a", "state", "down");
        assert_eq!(lbd.listener("web")["refused"], json!({ cause: 1 }));
        let served = lbd.backend("web/a");
        assert_eq!((&served["connections_total"], a.accepted() - probes <= 1), (&json!(0), true), "{served}");
    }
}

#[test]
fn silent_backends_of_one_pool_delay_no_check_of_another() {
    let (mut good, silent) = (Backend::start(echo), Backend::at("0.0.0.0:0", silent));
    let port = silent.address.rsplit(':').next().unwrap().to_owned();
    let many: String = (0..300).map(|n| format!("b{n}: 127.1.{}.{}:{port}, ", n / 250, 1 + n % 250)).collect();
    let lbd = Lbd::start(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", pool: web }} }}\n\
         pools:\n  bad: {{ backends: {{ {many} }}, health_check: {{ interval: 1s, timeout: 20s, expect: OK }} }}\n\
         \x20 web: {{ backends: {{ a: \"{}\" }}, {CHECK} }}\n",
        good.address
    ));
    silent.await_accepted(128); // as many as all pools once had together
    lbd.await_backend("web/a", "state", "up");
    good.stop();
    let died = Instant::now();
    lbd.await_log("down:");
    assert!(died.elapsed() < Duration::from_secs(5), "{:?}", died.elapsed());
}

#[test]
fn probes_that_cannot_be_made_are_told_once_with_the_remedy_and_say_nothing_of_the_backend() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], CHECK));
    lbd.await_backend("web/a", "state", "up");
    let accepted = a.accepted();
    lbd.limit_descriptors(3);
    let told = lbd.await_log("backends cannot be probed: ");
    assert!(told.contains("too many open files") && told.contains("ulimit -n"), "{told}");
    lbd.limit_descriptors(4096);
    a.await_accepted(accepted + 3);
    assert_eq!(lbd.backend("web/a")["probes_failed"], 0);
    assert_eq!(lbd.log().matches("cannot be probed").count(), 1, "{}", lbd.log());
    assert!(lbd.done(&["status"]).contains("backends cannot be probed since"), "{}", lbd.done(&["status"]));
}

fn answering(answer: &'static str) -> impl Fn(socket2::Socket) -> std::io::Result<()> + Send + Sync {
    move |mut socket| {
        if socket.read(&mut [0; 64])? > 0 {
            socket.write_all(answer.as_bytes())?;
        }
        Ok(())
    }
}
