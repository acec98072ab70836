//! The operator's hand: drain, disable, enable, and who may have the control socket.

use std::net::Shutdown;
use std::process::Stdio;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::backend::{Backend, echo, named};
use crate::client::{End, ask, connect, connect_unix, echoes, end_of, until, who};
use crate::daemon::{Lbd, lbd_command, ran, run, web};
use crate::load::Load;

#[test]
fn those_who_say_nothing_on_the_control_socket_hold_up_no_operator() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    let _silent: Vec<_> = (0..200).map(|_| connect_unix(&lbd.dir().join("control.sock"))).collect();
    let start = Instant::now();
    lbd.done(&["status"]);
    assert!(start.elapsed().as_secs() < 4, "{:?}", start.elapsed()); // a place was freed after five
}

#[test]
fn a_drained_backend_accepts_nothing_after_the_answer_though_others_fail() {
    let (a, b, mut dead) = (Backend::start(echo), Backend::start(echo), Backend::start(echo));
    dead.stop();
    // (a backend that refuses makes retries, which must not go to the drained one either)
    for balance in ["round_robin", "least_connections", "source_hash"] {
        let lbd = Lbd::start(&web(&[("a", &a), ("b", &b), ("dead", &dead)], &format!("balance: {balance}")));
        let load = Load::start(lbd.web(), 4);
        load.go_on(100);
        lbd.done(&["drain", "b", "--wait", "--timeout", "10s"]);
        let answered = Instant::now();
        load.go_on(300);
        let (served, errors) = load.stop();
        assert_eq!(errors, Vec::<String>::new(), "{balance}: of {served}");
        let last = b.last_accepted();
        assert!(last.is_none_or(|at| at < answered), "{balance}: {:?} after", last.map(|at| at - answered));
        let stats = lbd.backend("web/b");
        assert_eq!((&stats["state"], &stats["admin"]), (&"drained".into(), &"draining".into()));
    }
}

#[test]
fn drain_waits_for_the_last_session_and_says_so() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], "balance: first"));
    let held = connect(lbd.web());
    echoes(&held).unwrap();
    let mut lbctl = lbd.lbctl_command(&["drain", "web/a", "--wait", "--timeout", "20s"]);
    let mut waiting = lbctl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    lbd.await_backend("web/a", "state", "draining");
    echoes(&held).unwrap();
    assert_eq!(waiting.try_wait().unwrap(), None, "a session is left");
    drop(held);
    let drained = ran(waiting.wait_with_output().unwrap());
    assert_eq!((drained.code, drained.out.as_str()), (Some(0), "web/a is drained; no session is left\n"));
}

#[test]
fn drain_that_waits_too_long_says_what_is_left_and_stays() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let held = [connect(lbd.web()), connect(lbd.web())];
    held.iter().for_each(|client| echoes(client).unwrap());
    let late = lbd.lbctl(&["drain", "a", "--wait", "--timeout", "100ms"]);
    assert_eq!(late.code, Some(4), "{late:?}");
    assert!(late.err.contains("web/a is still draining; sessions left: 2"), "{late:?}");
    held.iter().for_each(|client| echoes(client).unwrap());
    assert_eq!(lbd.backend("web/a")["state"], "draining");
    assert_eq!(end_of(&connect(lbd.web())), End::Reset, "no other can serve");
    lbd.done(&["enable", "a"]);
    echoes(&connect(lbd.web())).unwrap();
}

#[test]
fn disable_lets_sessions_live_and_close_cuts_them_with_a_reset() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], "balance: first"));
    let (at_a, to) = (connect(lbd.web()), lbd.web());
    echoes(&at_a).unwrap();
    lbd.done(&["disable", "a"]);
    echoes(&at_a).unwrap();
    let at_b = connect(to);
    echoes(&at_b).unwrap();
    lbd.done(&["disable", "a", "--close"]);
    assert_eq!(end_of(&at_a), End::Reset);
    echoes(&at_b).unwrap();
    assert_eq!((a.accepted(), b.accepted()), (1, 1));
    assert_eq!(lbd.listener("web")["ended"], serde_json::json!({ "killed": 1 }));
    lbd.done(&["enable", "a"]);
    echoes(&connect(to)).unwrap();
    assert_eq!(a.accepted(), 2);
}

#[test]
fn a_decision_survives_reloads_and_ends_when_it_was_to() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let file = web(&[("a", &a), ("b", &b)], "balance: first");
    let lbd = Lbd::start(&file);
    lbd.done(&["drain", "a", "--reason", "a new kernel"]);
    assert_eq!(lbd.reload(&file.replace("first", "round_robin")).code, Some(0));
    lbd.signal(Signal::SIGHUP);
    let stats = lbd.backend("web/a");
    assert_eq!((&stats["admin"], &stats["override_reason"]), (&"draining".into(), &"a new kernel".into()));
    (0..4).for_each(|_| assert_eq!(who(lbd.web()), "b"));
    lbd.done(&["disable", "a", "--for", "200ms"]);
    lbd.await_backend("web/a", "admin", "enabled");
    until("it serves", || (who(lbd.web()) == "a").then_some(()));
}

#[test]
fn a_backend_that_does_not_exist_or_is_two_gets_an_answer_that_helps() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", pool: web }} }}\n\
         pools: {{ web: {{ backends: {{ backend-1: \"{0}\" }} }}, db: {{ backends: {{ backend-1: \"{0}\" }} }} }}",
        a.address
    ));
    for (name, answer) in [
        ("bakend-1", "there is no backend \"bakend-1\"; did you mean \"backend-1\"?"),
        ("web/backend-2", "there is no backend \"web/backend-2\"; did you mean \"web/backend-1\"?"),
        ("backend-1", "2 pools have a backend \"backend-1\"; write one of db/backend-1, web/backend-1, or --all-pools"),
    ] {
        let refused = lbd.lbctl(&["drain", name]);
        assert_eq!((refused.code, refused.err), (Some(1), format!("lbctl: {answer}\n")), "{name}");
    }
    lbd.done(&["drain", "backend-1", "--all-pools"]);
    let states = || ["web/backend-1", "db/backend-1"].map(|name| lbd.backend(name)["state"].clone());
    assert_eq!(states(), ["drained", "drained"]);
    lbd.done(&["enable", "db/backend-1"]);
    assert_eq!(states(), ["drained", "unchecked"]);
}

#[test]
fn a_second_daemon_does_not_take_the_control_socket_of_a_living_one() {
    let a = Backend::start(named("a"));
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let second = run(lbd_command(lbd.dir()));
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.err.contains("control.sock"), "{second:?}");
    lbd.done(&["status"]);
    assert_eq!(who(lbd.web()), "a");
}

#[test]
fn what_a_killed_daemon_left_behind_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let a = Backend::start(named("a"));
    let door = dir.path().join("web.sock");
    let file = web(&[("a", &a)], "").replace("\"127.0.0.1:0\"", &format!("\"unix:{}\"", door.display()));
    let mut lbd = Lbd::start(&file);
    lbd.signal(Signal::SIGKILL);
    assert_eq!(lbd.end().code, None);
    assert!(door.exists() && lbd.dir().join("control.sock").exists());
    let gone = lbd.lbctl(&["status"]);
    assert_eq!(gone.code, Some(3), "{gone:?}");
    let mut next = Lbd::start_in(lbd.shared_dir());
    assert_eq!(ask(connect_unix(&door), b"?").unwrap(), "a");
    next.signal(Signal::SIGTERM);
    assert_eq!(next.end().code, Some(0));
    assert!(!door.exists() && !next.dir().join("control.sock").exists(), "nothing is left behind");
}

#[test]
fn without_a_daemon_lbctl_exits_with_3() {
    let a = Backend::start(echo);
    let mut lbd = Lbd::start(&web(&[("a", &a)], ""));
    let held = connect(lbd.web());
    echoes(&held).unwrap();
    lbd.done(&["shutdown"]);
    held.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_of(&held), End::Closed);
    assert_eq!(lbd.end().code, Some(0));
    for command in [&["status"][..], &["stats"], &["reload"], &["drain", "a"], &["shutdown"]] {
        assert_eq!(lbd.lbctl(command).code, Some(3), "{command:?}");
    }
}

#[test]
fn waits_that_were_broken_off_take_no_places() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let held = connect(lbd.web());
    echoes(&held).unwrap();
    for turn in 1..=70 {
        let mut waiting = lbd.lbctl_command(&["drain", "a", "--wait"]).stdout(Stdio::null()).spawn().unwrap();
        until("it is asked", || (lbd.log().matches("-> draining").count() == turn).then_some(()));
        waiting.kill().unwrap();
        waiting.wait().unwrap();
    }
    let late = lbd.lbctl(&["drain", "a", "--wait", "--timeout", "1ms"]);
    assert!(late.code == Some(4) && late.err.contains("still draining"), "{late:?}");
}
