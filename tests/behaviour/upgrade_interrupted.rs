//! What comes between a wish for an upgrade and its end: operators who go, signals, a stop.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::Socket;

use crate::backend::{Backend, echo, silent};
use crate::client::{PATIENCE, connect, echoes, until};
use crate::daemon::{Lbd, web};
use crate::upgrade::{children, hanging, status, upgrade};

/// Asks, and does not wait for the answer.
fn ask(lbd: &Lbd, args: &[&str]) -> Child {
    lbd.lbctl_command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Ctrl-C.
fn interrupt(mut lbctl: Child) {
    kill(Pid::from_raw(lbctl.id() as i32), Signal::SIGINT).unwrap();
    lbctl.wait().unwrap();
}

#[test]
fn an_operator_who_goes_leaves_no_child_behind_and_nobody_else_in_the_way() {
    if !cfg!(target_arch = "x86_64") {
        return eprintln!("skipped: the program that hangs is one of x86_64");
    }
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let program = hanging(lbd.dir());
    let client = connect(lbd.web());
    for n in 1..=3 {
        let first = ask(&lbd, &["upgrade", program.to_str().unwrap()]);
        until("the program is tried", || (!children(&lbd).is_empty()).then_some(()));
        interrupt(first);
        assert_eq!(upgrade(&lbd)["upgrades"], n);
        assert_eq!(children(&lbd), "", "neither running nor defunct");
        echoes(&client).unwrap();
    }
}

#[test]
fn whoever_asks_is_answered_however_many_went_before_and_when() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    for turn in 0..24 {
        let first = ask(&lbd, if turn % 3 == 0 { &["upgrade", "--dry-run"] } else { &["upgrade"] });
        (0..turn * 400).for_each(|_| thread::yield_now());
        let second = ask(&lbd, &["upgrade", "--dry-run"]);
        interrupt(first);
        interrupt(second);
        upgrade(&lbd);
    }
    assert_eq!(children(&lbd), "");
}

#[test]
fn each_hangup_during_an_upgrade_is_a_reload() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    for turn in 0..20 {
        let reloads = reloads(&lbd);
        thread::scope(|scope| {
            let upgrading = scope.spawn(|| upgrade(&lbd));
            if turn % 2 == 0 {
                lbd.await_log_times("is to take over", turn + 1);
            } else {
                (0..turn * 500).for_each(|_| thread::yield_now());
            }
            // Either kills whoever has not taken it over.
            lbd.signal(Signal::SIGUSR1);
            lbd.signal(Signal::SIGHUP);
            upgrading.join().unwrap();
        });
        until("it was answered by a reload", || (self::reloads(&lbd) > reloads).then_some(()));
        echoes(&client).unwrap();
    }
    assert_eq!(status(&lbd)["upgrades"], 20);
}

/// How often the file was read upon a signal, and found to say the same.
fn reloads(lbd: &Lbd) -> usize {
    lbd.log().matches("the file says what is in force already").count()
}

#[test]
fn a_stop_that_is_asked_for_during_an_upgrade_is_a_stop() {
    let a = Backend::start(echo);
    for turn in 0..16 {
        let mut lbd = Lbd::start(&web(&[("a", &a)], ""));
        let client: Socket = connect(lbd.web());
        echoes(&client).unwrap();
        let mut upgrading = ask(&lbd, &["upgrade"]);
        if turn % 2 == 0 {
            lbd.await_log("is to take over");
        } else {
            (0..turn * 300).for_each(|_| thread::yield_now());
        }
        lbd.signal(Signal::SIGTERM);
        lbd.await_log("stopping;");
        echoes(&client).unwrap();
        drop(client);
        assert_eq!(lbd.end().code, Some(0));
        upgrading.wait().unwrap();
    }
}

#[test]
fn a_backend_that_answers_no_probe_is_down_though_upgrades_come_faster_than_its_timeout() {
    let (a, b) = (Backend::start(silent), Backend::start(echo));
    let check = "health_check: { type: tcp, send: \"hello\", expect: \"hello\", interval: 50ms, timeout: 2s, fall: 1 }";
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], check));
    lbd.await_backend("web/b", "health", "up");
    let begun = Instant::now();
    while lbd.backend("web/a")["health"] != "down" {
        assert!(begun.elapsed() < PATIENCE, "it never falls");
        upgrade(&lbd);
        let last = Instant::now();
        until("it is time for the next one", || (last.elapsed() >= Duration::from_millis(250)).then_some(()));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(lbd.backend("web/b")["health"], "up");
}

#[test]
fn whoever_has_asked_is_answered_though_somebody_else_has_asked_but_in_part() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let control = lbd.dir().join("control.sock");
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    let mut asking = UnixStream::connect(&control).unwrap();
                    // In two parts, as a slow one's.
                    asking.write_all(b"GET /v1/status HTTP/1.1\r\n").unwrap();
                    thread::yield_now();
                    asking.write_all(b"host: lbd\r\n\r\n").unwrap();
                    let mut answer = String::new();
                    asking.read_to_string(&mut answer).unwrap();
                    assert!(answer.contains("\"upgrades\":"), "{answer:?}");
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        for n in 1..=5 {
            let mut half = UnixStream::connect(&control).unwrap();
            half.write_all(b"GET /v1/sta").unwrap();
            let before = answered.load(SeqCst);
            assert_eq!(upgrade(&lbd)["upgrades"], n);
            until("others are answered", || (answered.load(SeqCst) > before).then_some(()));
        }
        over.store(true, SeqCst);
    });
}
