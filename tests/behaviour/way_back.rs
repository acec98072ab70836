//! Whatever goes wrong in a program that takes over, and whenever, the one that served goes on with every session. The program
//! is lbd itself, which a file tells what to do wrong (`daemon/upgrade/misbehave.rs`).

#![cfg(debug_assertions)] // what is built to be used does nothing wrong when it is told to

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::Socket;

use crate::backend::{Backend, echo};
use crate::client::{End, connect, echoes, end_of, until};
use crate::daemon::{Lbd, Ran, lbd_command, run, web};
use crate::load::Load;
use crate::upgrade::children;

/// An lbd whose successors do what they are told, and clients of it.
struct Failing {
    lbd: Lbd,
    clients: Vec<Socket>,
    _backend: Backend,
}

impl Failing {
    fn with_clients(count: usize) -> Self {
        let backend = Backend::start(echo);
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::write(dir.path().join("lbd.yaml"), web(&[("a", &backend)], "")).unwrap();
        let mut command = lbd_command(dir.path());
        command.env("LBD_TEST_TAKEOVER", dir.path().join("told"));
        let lbd = Lbd::spawn(command, dir);
        lbd.await_log("serving;");
        let to = lbd.web();
        let clients = (0..count).map(|_| connect(to)).collect();
        let failing = Self { lbd, clients, _backend: backend };
        failing.all_are_served();
        failing
    }

    /// `HOW@POINT` and the microseconds that a take-over may take, 0 for as long as usual.
    fn tell(&self, what: &str) {
        fs::write(self.lbd.dir().join("told"), what).unwrap();
    }

    fn all_are_served(&self) {
        self.clients.iter().for_each(|client| echoes(client).unwrap());
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.lbd.done(&["--json", "status"])).unwrap()
    }
}

#[test]
fn whatever_ends_an_upgrade_and_whenever_a_thousand_sessions_go_on() {
    let failing = Failing::with_clients(1000);
    let (lbd, pid) = (&failing.lbd, failing.status()["pid"].clone());
    let load = Load::start(lbd.web(), 2);
    let cases = [
        ("panic@Begun 0", "it panicked: "),
        ("exit@Begun 0", "it ended before it had taken over"),
        ("crash@Begun 0", "it crashed (SIGABRT)"),
        ("hang@Begun 700000", "it had not taken over within 700ms"),
        ("heap@Begun 0", "it crashed (SIGABRT)"),
        ("nul@Begun 0", "a b\n"),
        ("long@Begun 0", " ...\n"),
        ("record@Begun 0", "the record has version 4; this lbd reads 98 to 99"),
        ("nolog@Begun 0", "the log cannot start: as it was told to"),
        ("panic@Taken 0", "as it was told to"),
        ("exit@Taken 0", "it ended before it had taken over"),
        ("crash@Taken 0", "it crashed (SIGABRT)"),
        ("hang@Taken 900000", "it had not taken over within 900ms"),
        ("error@Taken 0", "it erred as it was told to"),
        ("stuck@Taken 900000", "it had not taken over within 900ms"),
        ("panic@Worker 0", "as it was told to"),
        ("exit@Worker 0", "it ended before it had taken over"),
        ("crash@Worker 0", "it crashed (SIGABRT)"),
        ("hang@Worker 900000", "it had not taken over within 900ms"),
        ("error@Worker 0", "it erred as it was told to"),
        ("late@Worker 900000", "it had not taken over within 900ms"),
        ("heap@Worker 0", "it crashed ("),
        ("panic@Built 0", "as it was told to"),
        ("exit@Built 0", "it ended before it had taken over"),
        ("crash@Built 0", "it crashed (SIGABRT)"),
        ("hang@Built 900000", "it had not taken over within 900ms"),
        ("error@Built 0", "it erred as it was told to"),
        ("panic@Caught 0", "as it was told to"),
        ("exit@Caught 0", "it ended before it had taken over"),
        ("crash@Caught 0", "it crashed (SIGABRT)"),
        ("hang@Caught 900000", "it had not taken over within 900ms"),
        ("error@Caught 0", "it erred as it was told to"),
    ];
    for (turn, (told, why)) in cases.iter().enumerate() {
        failing.tell(told);
        let ran = lbd.lbctl(&["upgrade"]);
        assert_eq!(ran.code, Some(1), "{told}: {ran:?}");
        assert!(ran.err.contains(why) && ran.err.contains("no session was lost"), "{told}: {}", ran.err);
        assert!(ran.err.len() < 2000, "{told}: {}", ran.err.len());
        failing.clients.iter().skip(turn).step_by(cases.len()).for_each(|client| echoes(client).unwrap());
        load.go_on(5);
    }
    failing.all_are_served();
    let (served, errors) = load.stop();
    assert!(errors.is_empty(), "of {served}: {errors:?}");
    let now = failing.status();
    assert_eq!((&now["pid"], &now["upgrades"]), (&pid, &0.into()));
    assert_eq!(lbd.listener("web")["connections_total"], failing.clients.len() + served);
    assert_eq!(lbd.listener("web")["connections_active"], failing.clients.len());
    // What went wrong is in the log, and not for everybody to see in the list of processes.
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!arguments.contains("told to") && arguments.ends_with(":back\0"), "{arguments:?}");
    failing.tell("well@Begun 0");
    lbd.done(&["upgrade"]);
    failing.all_are_served();
}

/// The process that serves while programs change.
fn stand_in(parent: &Value) -> Pid {
    let parent = format!("PPid:\t{parent}\n");
    let is_it = |told: &str| told.starts_with("Name:\tlbd-stand-in\n") && told.contains(&parent);
    until("there is a stand-in", || {
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        let mut numbers = all.filter_map(|name| name.parse().ok());
        let found =
            numbers.find(|pid| fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|told| is_it(&told)));
        found.map(Pid::from_raw)
    })
}

#[test]
fn nobody_who_is_connected_waits_for_a_program_that_does_not_come_to_take_over() {
    let failing = Failing::with_clients(20);
    failing.tell("hang@Built 2000000");
    let (done, mut longest, mut answers) = (AtomicBool::new(false), Duration::ZERO, 0);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let ran = failing.lbd.lbctl(&["upgrade"]);
            done.store(true, SeqCst);
            ran
        });
        while !done.load(SeqCst) {
            for client in &failing.clients {
                let asked = Instant::now();
                echoes(client).unwrap();
                longest = longest.max(asked.elapsed());
                answers += 1;
            }
        }
        let ran = asking.join().unwrap();
        assert!(ran.code == Some(1) && ran.err.contains("it had not taken over within 2s"), "{ran:?}");
    });
    assert!(longest < Duration::from_secs(1) && answers > 100, "{answers} answers, the last of them after {longest:?}");
    let counted = failing.lbd.listener("web");
    let bytes = 5 * (answers + failing.clients.len());
    assert_eq!((&counted["bytes_in"], &counted["bytes_out"]), (&bytes.into(), &bytes.into()), "{counted}");
}

/// What an upgrade comes to that is told to get somewhere, where something happens to its stand-in then.
fn upgrade_until(failing: &Failing, told: &str, happens: impl FnOnce(Pid)) -> Ran {
    let reached = failing.lbd.dir().join("told.begun");
    let _ = fs::remove_file(&reached);
    failing.tell(told);
    let pid = failing.status()["pid"].clone();
    thread::scope(|scope| {
        let asking = scope.spawn(|| failing.lbd.lbctl(&["upgrade"]));
        let stand_in = stand_in(&pid);
        until("it gets there", || reached.exists().then_some(()));
        happens(stand_in);
        asking.join().unwrap()
    })
}

#[test]
fn a_stand_in_that_does_not_come_to_tell_costs_those_it_served_and_nobody_else() {
    for (told, signal, code, why) in [
        ("hang@Built 1000000", Signal::SIGKILL, 1, "it has died"),
        ("wait@Built 0", Signal::SIGKILL, 0, "it has died"),
        ("hang@Built 1000000", Signal::SIGSTOP, 1, "it says nothing for"),
    ] {
        let failing = Failing::with_clients(5);
        let ran = upgrade_until(&failing, told, |stand_in| kill(stand_in, signal).unwrap());
        are_cut(&failing, &ran, code, why);
    }
    for (told, code) in [("unfit@Deserted 0", 1), ("well@Deserted 0", 0)] {
        let failing = Failing::with_clients(5);
        let program = failing.lbd.dir().join("next");
        fs::copy(env!("CARGO_BIN_EXE_lbd"), &program).unwrap();
        failing.tell(told);
        let ran = failing.lbd.lbctl(&["upgrade", program.to_str().unwrap()]);
        are_cut(&failing, &ran, code, "it has died");
    }
}

/// The clients of an upgrade that came to this, and nobody else.
fn are_cut(failing: &Failing, ran: &Ran, code: i32, why: &str) {
    let text = format!("{}{}", ran.out, ran.err);
    let cut = "established sessions cut: 5; nobody knows";
    assert!(ran.code == Some(code) && text.contains(cut) && text.contains(why), "{ran:?}");
    assert!(!text.contains("nothing was changed") && !text.contains("no session was lost"), "{text}");
    assert_eq!(text.contains("carried over: 0"), code == 0, "{text}");
    assert!(failing.clients.iter().all(|client| end_of(client) == End::Reset));
    // Who logs does not wait for the line to be written.
    let lines = if code == 0 { 2 } else { 1 };
    until("it is logged", || (failing.lbd.log().matches(cut).count() >= lines).then_some(()));
    assert_eq!(failing.lbd.log().matches(cut).count(), lines, "{}", failing.lbd.log());
    echoes(&connect(failing.lbd.web())).unwrap();
    assert_eq!(children(&failing.lbd), "");
    failing.tell("well@Begun 0");
    failing.lbd.done(&["upgrade"]);
    echoes(&connect(failing.lbd.web())).unwrap();
}

#[test]
fn a_stand_in_that_has_told_all_is_not_needed_any_more() {
    let failing = Failing::with_clients(5);
    let ran = upgrade_until(&failing, "hang@Caught 1000000", |stand_in| kill(stand_in, Signal::SIGKILL).unwrap());
    assert!(ran.code == Some(1) && ran.err.contains("no session was lost"), "{ran:?}");
    failing.all_are_served();
    assert_eq!(children(&failing.lbd), "");
}

#[test]
fn a_stand_in_that_is_slow_to_tell_is_asked_by_the_predecessor_again() {
    let failing = Failing::with_clients(5);
    let arguments = format!("/proc/{}/cmdline", failing.status()["pid"]);
    let ran = upgrade_until(&failing, "pause@Built 0", |stand_in| {
        kill(stand_in, Signal::SIGSTOP).unwrap();
        fs::remove_file(failing.lbd.dir().join("told")).unwrap();
        let goes_back = || fs::read_to_string(&arguments).is_ok_and(|told| told.ends_with(":back\0"));
        until("it goes back", || goes_back().then_some(()));
        kill(stand_in, Signal::SIGCONT).unwrap();
    });
    let why = "it is not clear what the process did that served meanwhile: it says nothing for";
    assert!(ran.code == Some(1) && ran.err.contains(why) && ran.err.contains("no session was lost"), "{ran:?}");
    failing.all_are_served();
}

#[test]
fn where_nobody_can_serve_meanwhile_nothing_is_begun() {
    let failing = Failing::with_clients(5);
    failing.tell("nobody@Begun 0");
    let ran = failing.lbd.lbctl(&["upgrade"]);
    let why = "no process can be had that serves meanwhile: as it was told to; ask again in a moment";
    assert!(ran.code == Some(1) && ran.err.contains(why) && ran.err.contains("nothing was changed"), "{ran:?}");
    failing.all_are_served();
    assert_eq!(children(&failing.lbd), "");
    failing.tell("well@Begun 0");
    failing.lbd.done(&["upgrade"]);
    failing.all_are_served();
}

/// Also where nobody has waited for it yet.
fn has_gone(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(true, |told| told.contains("State:\tZ"))
}

#[test]
fn a_stand_in_does_not_outlive_who_it_stands_in_for() {
    let failing = Failing::with_clients(5);
    failing.tell("hang@Built 60000000");
    let pid = failing.status()["pid"].clone();
    let mut asking = failing.lbd.lbctl_command(&["upgrade"]).stderr(Stdio::null()).spawn().unwrap();
    let stand_in = stand_in(&pid);
    failing.all_are_served();
    failing.lbd.signal(Signal::SIGKILL);
    until("it is gone", || has_gone(stand_in).then_some(()));
    assert_ne!(asking.wait().unwrap().code(), Some(0));
    assert!(failing.clients.iter().all(|client| matches!(end_of(client), End::Closed | End::Reset)));
}

/// Patience follows the time that it takes, so that a part of the upgrades ends just as time is up.
#[test]
fn an_upgrade_that_is_done_just_as_its_time_is_up_is_done_or_not_but_nothing_between() {
    let failing = Failing::with_clients(50);
    let load = Load::start(failing.lbd.web(), 2);
    let (mut patience, mut step, mut before) = (60_000.0, 0.5, None);
    let (mut done, mut not_done) = (0, 0);
    let late = ["it had not taken over within", "it says nothing for"];
    for _ in 0..60 {
        failing.tell(&format!("well@Begun {}", patience as u64));
        let ran = failing.lbd.lbctl(&["upgrade"]);
        let upgraded = match ran.code {
            Some(0) => true,
            // Half of the time that is left is the stand-in's to stop.
            Some(1) if late.iter().any(|why| ran.err.contains(why)) => false,
            _ => panic!("with {patience} us: {ran:?}\n{}", failing.lbd.log()),
        };
        *(if upgraded { &mut done } else { &mut not_done }) += 1;
        if before.replace(upgraded).is_some_and(|before| before != upgraded) {
            step = f64::max(step / 2.0, 0.01);
        }
        patience *= if upgraded { 1.0 - step } else { 1.0 + step };
        failing.all_are_served();
    }
    let (served, errors) = load.stop();
    assert!(errors.is_empty(), "of {served}: {errors:?}");
    assert!(done > 5 && not_done > 5, "of both: {done} done, {not_done} not, last by {patience} us");
    assert_eq!(failing.status()["upgrades"], done);
}

/// Each call of an upgrade that the kernel may refuse is refused in turn, of all who make any.
#[test]
fn whatever_the_kernel_refuses_and_to_whom_every_session_goes_on() {
    let failing = Failing::with_clients(20);
    let (lbd, pid) = (&failing.lbd, failing.status()["pid"].clone());
    let calls = |who: &str| fs::read_to_string(lbd.dir().join(format!("told.{who}"))).map_or(0, |n| n.parse().unwrap());
    for (who, least) in [("Old", 20), ("New", 10), ("Back", 10)] {
        let (mut number, mut not_done) = (1, 0);
        loop {
            failing.tell(&format!("refuse@{who}{number} 0"));
            let ran = lbd.lbctl(&["upgrade"]);
            let told = ["nothing was changed", "no session was lost"].iter().any(|told| ran.err.contains(told));
            assert!(ran.code == Some(0) || (ran.code == Some(1) && told), "{who}{number}: {ran:?}\n{}", lbd.log());
            assert!(who != "Back" || ran.code == Some(1), "{who}{number}: {ran:?}");
            failing.all_are_served();
            let now = failing.status();
            assert_eq!((&now["pid"], &now["workers"]), (&pid, &2.into()), "{who}{number}");
            not_done += usize::from(ran.code == Some(1));
            if number > calls(who) {
                break;
            }
            number += 1;
        }
        assert!(number > least && not_done >= least, "{who}: {number} calls, {not_done} of them mattered");
    }
    echoes(&connect(lbd.web())).unwrap();
    failing.tell("well@Begun 0");
    lbd.done(&["upgrade"]);
    failing.all_are_served();
}

#[test]
fn a_predecessor_that_cannot_go_on_ends_so_that_it_is_started_again() {
    for told in ["hang@Begun 300000 again", "hang@Built 300000 again", "panic@Worker 0 again"] {
        let mut failing = Failing::with_clients(2);
        failing.tell(told);
        let ran = failing.lbd.lbctl(&["upgrade"]);
        assert_ne!(ran.code, Some(0), "{told}: {ran:?}");
        let ended = failing.lbd.end();
        assert!(ended.code != Some(0), "{told}: {ended:?}");
        if told.starts_with("hang") {
            assert!(ended.err.contains("the predecessor was to go on, but it had not taken over within"), "{ended:?}");
        }
    }
}

#[test]
fn a_program_that_reads_other_records_is_refused() {
    let failing = Failing::with_clients(3);
    failing.tell("foreign@Begun 0");
    let ran = failing.lbd.lbctl(&["upgrade"]);
    let why = "which takes over from records of version 98 to 99, and this one writes 4; restart the service instead";
    assert!(ran.code == Some(1) && ran.err.contains(why), "{ran:?}");
    failing.all_are_served();
    assert_eq!(failing.status()["upgrades"], 0);
}

#[test]
fn who_is_not_called_by_lbd_takes_nothing_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lbd.yaml"), "listeners: {}\npools: {}\n").unwrap();
    for (what, why) in [
        ("", "names no three descriptors"),
        ("7", "names no three descriptors"),
        ("0:1:2", "names no three descriptors"),
        ("700:701:702", "descriptor 700 is no record: "),
        ("700:701:702:back", "descriptor 700 is no record: "),
    ] {
        let mut command = lbd_command(dir.path());
        command.args(["--takeover", what]);
        let ran = run(command);
        assert!(
            ran.code == Some(1) && ran.err.contains("--takeover is for lbd itself") && ran.err.contains(why),
            "{ran:?}"
        );
    }
    until("nothing was begun", || (!dir.path().join("control.sock").exists()).then_some(()));
}

/// Sockets of a process that a program executed in its place would have.
fn sockets_that_an_exec_leaves_open(pid: &Value) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap());
    let is_socket =
        |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    let sockets: Vec<_> = open.filter(is_socket).map(|fd| fd.file_name().into_string().unwrap()).collect();
    assert!(sockets.len() > 100, "{sockets:?}");
    let stays = |fd: &String| {
        let told = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default(); // maybe it has gone
        let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("02000000");
        u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 == 0
    };
    sockets.into_iter().filter(stays).collect()
}

#[test]
fn where_the_kernel_does_not_execute_the_program_all_goes_on_and_everybody_is_heard() {
    let failing = Failing::with_clients(100);
    let (lbd, pid) = (&failing.lbd, failing.status()["pid"].clone());
    let program = lbd.dir().join("next");
    assert!(sockets_that_an_exec_leaves_open(&pid).is_empty());
    for turn in 1..=2 {
        fs::copy(env!("CARGO_BIN_EXE_lbd"), &program).unwrap();
        failing.tell("unfit@Begun 0");
        let ran = lbd.lbctl(&["upgrade", program.to_str().unwrap()]);
        assert!(ran.code == Some(1) && ran.err.contains("cannot be executed: Permission denied"), "{ran:?}");
        failing.all_are_served();
        until("an exec would close every socket", || sockets_that_an_exec_leaves_open(&pid).is_empty().then_some(()));
        lbd.signal(Signal::SIGHUP);
        lbd.await_log_times("by=SIGHUP", turn);
        let file = lbd.file();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}# {turn}\n")).unwrap();
        lbd.await_log_times("by=watcher", turn);
        failing.tell("well@Begun 0");
        lbd.done(&["upgrade"]);
        failing.all_are_served();
    }
}
