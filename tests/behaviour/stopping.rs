//! How it starts and stops: nothing is lost that could be finished, and the exit code and stderr say what was.

use std::fs;
use std::io::Read;
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::backend::{Backend, echo, named};
use crate::client::{
    End, connect, connect_from, echoes, end_of, receive_pattern, send_pattern, send_pattern_part, until,
};
use crate::daemon::{Lbd, lbd_command, run, web};

#[test]
fn asked_to_stop_it_accepts_no_more_finishes_its_sessions_and_exits_with_0() {
    let a = Backend::start(echo);
    let mut lbd = Lbd::start(&web(&[("a", &a)], ""));
    let to = lbd.web();
    let (client, idle) = (connect(to), connect(to));
    echoes(&idle).unwrap();
    send_pattern(&client, 1_000_000).unwrap();
    thread::scope(|s| {
        let received = s.spawn(|| receive_pattern(&client).unwrap());
        lbd.signal(Signal::SIGTERM);
        lbd.await_log("stopping;");
        until("nobody listens", || connect_from(None, to).is_err().then_some(()));
        assert_eq!(lbd.lbctl(&["drain", "a"]).code, Some(1), "it is too late for that");
        // A part of what is to come is sent only now.
        send_pattern_part(&client, 1_000_000..20_000_000).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(received.join().unwrap(), 20_000_000);
    });
    echoes(&idle).unwrap();
    let status = lbd.done(&["--json", "status"]);
    assert!(status.contains("\"draining\""), "{status}");
    drop(idle);
    let ended = lbd.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.ends_with("stopped"), "{ended:?}");
}

#[test]
fn what_lasts_longer_than_drain_timeout_is_cut_with_a_reset() {
    let a = Backend::start(echo);
    let mut lbd = Lbd::start(&(web(&[("a", &a)], "") + "drain_timeout: 300ms\n"));
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    let start = Instant::now();
    lbd.signal(Signal::SIGINT);
    assert_eq!(end_of(&client), End::Reset);
    let ended = lbd.end();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(ended.err.contains("drain_timeout is over; sessions cut: 1"), "{ended:?}");
}

#[test]
fn a_second_signal_and_shutdown_now_stop_at_once() {
    let a = Backend::start(echo);
    for twice in [true, false] {
        let mut lbd = Lbd::start(&web(&[("a", &a)], ""));
        let client = connect(lbd.web());
        echoes(&client).unwrap();
        let start = Instant::now();
        if twice {
            lbd.signal(Signal::SIGTERM);
            lbd.await_log("stopping;");
            lbd.signal(Signal::SIGTERM);
        } else {
            lbd.done(&["shutdown", "--now"]);
        }
        assert_eq!(end_of(&client), End::Reset);
        assert_eq!(lbd.end().code, Some(0));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn clients_that_came_before_the_stop_are_served() {
    let a = Backend::start(named("a"));
    let mut lbd = Lbd::start(&web(&[("a", &a)], ""));
    let to = lbd.web();
    let clients: Vec<_> = (0..100).map(|_| connect(to)).collect();
    lbd.signal(Signal::SIGTERM);
    for client in clients {
        assert_eq!(crate::client::ask(client, b"?").unwrap(), "a");
    }
    assert_eq!(lbd.end().code, Some(0));
}

#[test]
fn a_file_is_checked_without_starting_anything() {
    let a = Backend::start(echo);
    let dir = tempfile::tempdir().unwrap();
    let check = |content: &str| {
        fs::write(dir.path().join("lbd.yaml"), content).unwrap();
        let mut lbd = Command::new(env!("CARGO_BIN_EXE_lbd"));
        lbd.arg("--check").arg("--config").arg(dir.path().join("lbd.yaml"));
        run(lbd)
    };
    let right = check(&web(&[("a", &a)], ""));
    assert_eq!((right.code, right.err.as_str()), (Some(0), ""));
    assert!(right.out.contains("is right"), "{right:?}");
    let wrong = check(&web(&[("a", &a)], "retires: 3, balance: fist"));
    assert_eq!((wrong.code, wrong.out.as_str()), (Some(78), ""));
    let file = dir.path().join("lbd.yaml").display().to_string();
    for (column, mend) in [("retires", "retries"), ("fist", "first")] {
        let line = wrong.err.lines().find(|line| line.contains(column)).unwrap_or_else(|| panic!("{wrong:?}"));
        assert!(line.starts_with(&format!("{file}:2:")) && line.contains(mend), "{line}");
    }
    assert_eq!(a.accepted(), 0);
}

#[test]
fn a_start_that_cannot_be_says_why_and_exits_accordingly() {
    let a = Backend::start(echo);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let right = web(&[("a", &a)], "");
    for (content, code, why) in [
        (Some(right.replace("127.0.0.1:0", &port)), 1, format!("listeners.web: {port} is in use by another process")),
        (Some(right.replace("127.0.0.1:0", "192.0.2.1:80")), 1, "is not an address of this machine".into()),
        (Some(right.replace("pool: web", "pool: wbe")), 78, "did you mean \"web\"".into()),
        (Some(String::new()), 78, "lbd.yaml:1:1".into()),
        (None, 78, "lbd.yaml".into()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        if let Some(content) = &content {
            fs::write(dir.path().join("lbd.yaml"), content).unwrap();
        }
        let failed = run(lbd_command(dir.path()));
        assert_eq!(failed.code, Some(code), "{content:?}: {failed:?}");
        assert!(failed.err.contains(&why), "{why:?} is not in {failed:?}");
        assert!(!dir.path().join("control.sock").exists());
    }
    let mut usage = Command::new(env!("CARGO_BIN_EXE_lbd"));
    usage.arg("--confg");
    assert_eq!(run(usage).code, Some(2));
}

#[test]
fn counters_are_whole_at_the_end() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    for _ in 0..20 {
        let mut client = connect(lbd.web());
        echoes(&client).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    lbd.await_backend("web/a", "connections_active", 0);
    let (listener, backend) = (lbd.listener("web"), lbd.backend("web/a"));
    assert_eq!(listener["ended"], json!({ "normal": 20 }));
    for (of, key, wanted) in [
        (&listener, "connections_total", 20),
        (&listener, "connections_active", 0),
        (&listener, "bytes_in", 100),
        (&listener, "bytes_out", 100),
        (&backend, "connections_total", 20),
        (&backend, "bytes_in", 100),
        (&backend, "bytes_out", 100),
        (&backend, "connect_errors", 0),
    ] {
        assert_eq!(of[key], wanted, "{key}: {of}");
    }
    assert_eq!(listener["session_duration"]["count"], 20);
    assert_eq!(backend["connect_time"]["count"], 20);
}
