//! What lbd does for a service manager, tried with one that the tests play.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::backend::{Backend, echo, named};
use crate::client::{ask, connect, connect_from, connect_unix, echoes, until, who};
use crate::daemon::{Lbd, lbd_command, web};
use crate::manager::{Manager, passing};
use crate::upgrade::children;

fn service(config: &str) -> (Manager, Lbd) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), config).unwrap();
    let mut manager = Manager::new(dir.path());
    let lbd = Lbd::spawn_passing(manager.command(&lbd_command(dir.path())), dir, &manager.descriptors());
    manager.await_line("READY=1");
    (manager, lbd)
}

/// What comes after the first one has gone.
fn successor(manager: &mut Manager, before: &Lbd) -> Lbd {
    while manager.hear(Duration::from_millis(1)).is_some() {} // what the first one said last
    let dir = before.shared_dir();
    let lbd = Lbd::spawn_passing(manager.command(&lbd_command(dir.path())), dir, &manager.descriptors());
    manager.await_line("READY=1");
    lbd
}

fn names(manager: &Manager) -> Vec<&str> {
    manager.store.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn after_a_kill_the_successor_serves_who_came_meanwhile() {
    let a = Backend::start(named("a"));
    // Whatever the number of workers before and after.
    for (before, after) in [(2, 2), (3, 1), (1, 3)] {
        let config = |workers| web(&[("a", &a)], "").replace("workers: 2", &format!("workers: {workers}"));
        let (mut manager, mut lbd) = service(&config(before));
        let to = lbd.web();
        assert_eq!(names(&manager), vec!["lbd/127.0.0.1_0"; before]);
        lbd.signal(Signal::SIGKILL);
        assert_eq!(lbd.end().code, None);
        let waiting: Vec<_> = (0..40).map(|_| connect(to)).collect();
        fs::write(lbd.file(), config(after)).unwrap();
        let next = successor(&mut manager, &lbd);
        assert_eq!(next.web(), to, "a port of the kernel's choice stays too");
        for client in waiting {
            assert_eq!(ask(client, b"?").unwrap(), "a");
        }
        assert_eq!(manager.store.len(), before.max(after), "missing sockets are bound and stored, the others once");
    }
}

#[test]
fn a_stop_gives_the_store_up_and_refuses_from_then_on() {
    let a = Backend::start(echo);
    let (mut manager, mut lbd) = service(&web(&[("a", &a)], ""));
    let to = lbd.web();
    let held = connect(to);
    echoes(&held).unwrap();
    lbd.signal(Signal::SIGTERM);
    manager.await_line("STOPPING=1");
    // The manager still holds descriptors of the sockets: they are dead all the same.
    until("nobody listens", || connect_from(None, to).is_err().then_some(()));
    manager.await_line("EXTEND_TIMEOUT_USEC=");
    assert!(manager.await_line("STATUS=").contains("stopping; generation 1"));
    assert_eq!(names(&manager), [""; 0]);
    echoes(&held).unwrap();
    drop(held);
    assert_eq!(lbd.end().code, Some(0));
}

#[test]
fn an_address_that_a_reload_lets_go_leaves_the_store_and_one_that_is_stale_too() {
    let a = Backend::start(named("a"));
    let config = web(&[("a", &a)], "");
    let two = config.replace("\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"127.0.0.2:0\"]");
    let (mut manager, mut lbd) = service(&two);
    assert_eq!(manager.store.len(), 4);
    assert_eq!(lbd.reload(&config).code, Some(0));
    manager.await_line("FDSTOREREMOVE=1");
    assert_eq!(names(&manager), ["lbd/127.0.0.1_0"; 2]);
    lbd.signal(Signal::SIGKILL);
    lbd.end();
    fs::write(lbd.file(), config.replace("127.0.0.1:0", "127.0.0.3:0")).unwrap();
    let next = successor(&mut manager, &lbd);
    next.await_log("no listener has this address any more");
    assert_eq!(names(&manager), ["lbd/127.0.0.3_0"; 2]);
    assert_eq!(who(next.web()), "a");
}

#[test]
fn a_unix_socket_survives_too_and_its_path_is_bound_anew_where_it_has_gone() {
    let a = Backend::start(named("a"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    let config = web(&[("a", &a)], "").replace("127.0.0.1:0", &format!("unix:{}", path.display()));
    let (mut manager, mut lbd) = service(&config);
    for gone in [false, true] {
        lbd.signal(Signal::SIGKILL);
        lbd.end();
        let waiting = (!gone).then(|| connect_unix(&path));
        if gone {
            fs::remove_file(&path).unwrap();
        }
        lbd = successor(&mut manager, &lbd);
        if let Some(waiting) = waiting {
            assert_eq!(ask(waiting, b"?").unwrap(), "a");
        }
        assert_eq!(ask(connect_unix(&path), b"?").unwrap(), "a");
        assert_eq!(manager.store.len(), 1, "{:?}", names(&manager));
    }
}

#[test]
fn a_socket_unit_passes_sockets_by_address_and_one_without_a_listener_is_told_of() {
    let a = Backend::start(named("a"));
    let (wanted, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (to, elsewhere) = (wanted.local_addr().unwrap(), other.local_addr().unwrap());
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = web(&[("a", &a)], "").replace("127.0.0.1:0", &to.to_string());
    fs::write(dir.path().join("lbd.yaml"), &config).unwrap();
    let descriptors = [other.as_raw_fd(), wanted.as_raw_fd()];
    let passed = descriptors.map(|fd| ("lbd.socket".to_owned(), fd));
    let mut lbd = Lbd::spawn_passing(passing(&lbd_command(dir.path()), &passed), dir, &descriptors);
    let warned = lbd.await_log("a socket unit passes an address that no listener has");
    assert!(warned.contains(&elsewhere.to_string()), "{warned}");
    assert!(lbd.await_log("not every worker accepts here").contains(&to.to_string()));
    assert_eq!(who(to), "a");
    // A reload may give it to a listener, take it away and give it back.
    let both = config.replace(&format!("\"{to}\""), &format!("[\"{to}\", \"{elsewhere}\"]"));
    for config in [&both, &config, &both] {
        assert_eq!(lbd.reload(config).code, Some(0));
    }
    assert_eq!(who(elsewhere), "a");
    // The stop is lbd's, not the socket unit's: it goes on listening.
    lbd.signal(Signal::SIGTERM);
    assert_eq!(lbd.end().code, Some(0));
    connect(to);
}

#[test]
fn the_watchdog_is_fed_while_every_worker_turns_and_not_while_one_hangs() {
    let a = Backend::start(echo);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a)], "")).unwrap();
    let mut manager = Manager::new(dir.path());
    let mut command = manager.command(&lbd_command(dir.path()));
    command.env("WATCHDOG_USEC", "200000");
    let lbd = Lbd::spawn(command, dir);
    manager.await_line("READY=1");
    for _ in 0..3 {
        manager.await_line("WATCHDOG=1"); // nobody connects: idle workers are woken for it
    }
    // Who traces a thread must be one and the same thread all along.
    let worker = lbd.thread("lbd-worker-1");
    ptrace::seize(worker, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(worker).unwrap();
    until("it stands still", || stands_still(worker).then_some(()));
    while manager.hear(Duration::from_millis(1)).is_some() {}
    let heard = manager.hear(Duration::from_secs(1));
    assert!(heard.as_ref().is_none_or(|message| !message.contains("WATCHDOG")), "{heard:?}");
    ptrace::detach(worker, None).unwrap();
    manager.await_line("WATCHDOG=1");
    assert!(thread::panicking() || echoes(&connect(lbd.web())).is_ok());
}

fn stands_still(thread: Pid) -> bool {
    fs::read_to_string(format!("/proc/{thread}/stat")).unwrap().contains(") t ")
}

/// lbd that keeps state in its folder.
fn keeping(dir: &Arc<tempfile::TempDir>) -> Lbd {
    let mut command = lbd_command(dir.path());
    command.env("STATE_DIRECTORY", dir.path());
    let lbd = Lbd::spawn(command, Arc::clone(dir));
    lbd.await_log("serving;");
    lbd
}

#[test]
fn what_operators_decide_survives_a_restart_until_its_time_or_the_backend_is_gone() {
    let (a, b, c) = (Backend::start(named("a")), Backend::start(named("b")), Backend::start(named("c")));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a), ("b", &b), ("c", &c)], "")).unwrap();
    let mut lbd = keeping(&dir);
    let said = lbd.done(&["drain", "a", "--reason", "new disk", "--for", "1h"]);
    assert!(said.contains("web/a is draining; sessions: 0; kept over restarts"), "{said}");
    lbd.done(&["disable", "b"]);
    lbd.done(&["drain", "c", "--for", "1ms"]);
    lbd.await_backend("web/c", "admin", "enabled");
    lbd.signal(Signal::SIGKILL);
    lbd.end();

    let mut next = keeping(&dir);
    let (a_is, b_is) = (next.backend("web/a"), next.backend("web/b"));
    assert_eq!((&a_is["admin"], &a_is["override_reason"]), (&"draining".into(), &"new disk".into()), "{a_is}");
    let left = a_is["override_ends_in_seconds"].as_u64().unwrap();
    assert!((3000..=3600).contains(&left), "{a_is}");
    assert_eq!((&b_is["admin"], &b_is["override_ends_in_seconds"]), (&"disabled".into(), &serde_json::Value::Null));
    assert_eq!(who(next.web()), "c");
    next.done(&["enable", "b"]);
    next.signal(Signal::SIGTERM);
    next.end();

    // What does not make sense keeps nothing from starting.
    fs::write(dir.path().join("overrides.json"), "{").unwrap();
    let last = keeping(&dir);
    last.await_log("is damaged");
    assert_eq!(last.backend("web/a")["admin"], "enabled");
    assert_eq!(fs::read_to_string(dir.path().join("overrides.json.damaged")).unwrap(), "{");
}

#[test]
fn a_decision_that_cannot_be_written_down_is_in_force_and_says_so() {
    let a = Backend::start(echo);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a)], "")).unwrap();
    fs::create_dir(dir.path().join("overrides.json.new")).unwrap();
    let lbd = keeping(&dir);
    for command in [&["drain", "a"][..], &["drain", "a", "--wait"]] {
        let said = lbd.done(command);
        assert!(said.contains("will not survive a restart of lbd") && said.contains("overrides.json"), "{said}");
        assert!(!said.contains("kept over restarts"), "{said}");
    }
    assert_eq!(lbd.backend("web/a")["admin"], "draining");
}

#[test]
fn a_reload_is_always_followed_by_ready() {
    let a = Backend::start(echo);
    let config = web(&[("a", &a)], "");
    let (mut manager, lbd) = service(&config);
    for (content, code) in [(config.replace("pool: web", "pool: wbe"), 1), (config, 0)] {
        assert_eq!(lbd.reload(&content).code, Some(code));
        assert!(manager.await_line("RELOADING=1").contains("MONOTONIC_USEC="));
        manager.await_line("READY=1");
    }
}

#[test]
fn the_manager_is_told_of_an_upgrade_and_keeps_what_it_has() {
    let a = Backend::start(echo);
    let (mut manager, lbd) = service(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    let store = manager.store.clone();
    for _ in 0..3 {
        lbd.done(&["upgrade"]);
        manager.await_line("RELOADING=1");
        manager.await_line("WATCHDOG=1");
        assert!(manager.await_line("READY=1").contains("; upgraded in place: "));
        assert_eq!(manager.store, store);
    }
    // One worker more: its socket is to survive a crash, too.
    let more = web(&[("a", &a)], "").replace("workers: 2", "workers: 3");
    assert_eq!(lbd.reload(&more).code, Some(0));
    lbd.done(&["upgrade"]);
    manager.await_line("FDSTORE=1");
    assert_eq!(manager.store.len(), 3);
    echoes(&client).unwrap();
}

#[test]
fn a_signal_that_means_nothing_to_lbd_is_told_with_what_was_probably_meant_and_ends_nothing_nor_after_an_upgrade() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    for (signal, meant) in [
        (Signal::SIGUSR1, "reopens its log files"),
        (Signal::SIGUSR2, "lbctl upgrade"),
        (Signal::SIGQUIT, "lbctl shutdown"),
        (Signal::SIGPWR, "lbctl shutdown"),
        (Signal::SIGALRM, "lbctl --help"),
        (Signal::SIGVTALRM, "lbctl --help"),
        (Signal::SIGPROF, "lbctl --help"),
        (Signal::SIGIO, "lbctl --help"),
        (Signal::SIGSTKFLT, "lbctl --help"),
        (Signal::SIGXCPU, "RLIMIT_CPU"),
        (Signal::SIGXFSZ, "RLIMIT_FSIZE"),
        (Signal::SIGPIPE, ""),
    ] {
        lbd.signal(signal);
        if !meant.is_empty() {
            assert!(lbd.await_log(&format!("{signal} is ignored")).contains(meant), "{signal}");
        }
        echoes(&client).unwrap();
    }
    lbd.done(&["upgrade"]);
    // Those that come while programs change, too.
    lbd.signal(Signal::SIGUSR2);
    lbd.await_log_times("SIGUSR2 is ignored", 2);
    echoes(&client).unwrap();
    assert_eq!(lbd.log().matches("SIGUSR2 is ignored").count(), 2);
}

#[test]
fn a_child_that_others_leave_to_it_does_not_stay_defunct_nor_after_an_upgrade() {
    let a = Backend::start(echo);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a)], "")).unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // One ends before lbd is there, one when it is told to.
    let lbd = lbd_command(dir.path());
    let mut shell = Command::new("sh");
    let script = format!("true & read line <'{}' & exec \"$0\" \"$@\"", fifo.display());
    shell.arg("-c").arg(script).arg(lbd.get_program()).args(lbd.get_args());
    let lbd = Lbd::spawn(shell, dir);
    lbd.await_log("serving;");
    let count = || children(&lbd).split_whitespace().count();
    until("the first is gone", || (count() == 1).then_some(()));
    lbd.done(&["upgrade"]);
    fs::write(&fifo, "go\n").unwrap();
    until("the other is gone", || (count() == 0).then_some(()));
    lbd.done(&["upgrade", "--dry-run"]); // those of its own are still waited for
}

#[test]
fn a_manager_that_does_not_read_holds_up_nobody_and_hears_how_things_are_when_it_does() {
    let a = Backend::start(echo);
    let config = web(&[("a", &a)], "health_check: { interval: 100ms }");
    let (mut manager, lbd) = service(&config);
    manager.has_no_room();
    for generation in 2..6 {
        let changed = config.replace("100ms", &format!("10{generation}ms"));
        assert_eq!(lbd.reload(&changed).code, Some(0)); // systemd is told twice of each
        lbd.done(&["drain", "web/a"]);
        lbd.done(&["enable", "web/a"]);
    }
    let probes = || lbd.backend("web/a")["probes_ok"].as_u64().unwrap();
    let before = probes();
    until("probes go on", || (probes() > before).then_some(()));
    echoes(&connect(lbd.web())).unwrap();
    assert!(manager.await_line("READY=1").contains("generation 5"));
}
