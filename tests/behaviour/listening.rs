//! Listening sockets that are ended by somebody else, paths that lead nowhere, and who may connect: lbd finds it, mends it and says so.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, accept, shutdown};

use crate::backend::{Backend, echo, named};
use crate::client::{ask, connect, connect_from, connect_unix, echoes, until, who};
use crate::daemon::{Lbd, lbd_command, web};
use crate::manager::Manager;

fn unix(path: &Path, backend: &Backend, more: &str) -> String {
    let bind = format!("bind: \"unix:{}\"{more}", path.display());
    web(&[("a", backend)], "").replace("bind: \"127.0.0.1:0\"", &bind)
}

/// The service manager holds lbd's listening sockets too, and can shut them down.
#[test]
fn listening_sockets_that_another_holder_ends_are_bound_anew_and_replaced_in_the_store() {
    let a = Backend::start(echo);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a)], "")).unwrap();
    let mut manager = Manager::new(dir.path());
    let lbd = Lbd::spawn_passing(manager.command(&lbd_command(dir.path())), dir, &manager.descriptors());
    manager.await_line("READY=1");
    let to = lbd.web();
    let held = connect(to);
    echoes(&held).unwrap();
    for round in 1..=2 {
        assert_eq!(manager.store.len(), 2);
        // The second time one of them alone.
        for (_, socket) in manager.store.iter().skip(round - 1) {
            shutdown(*socket, Shutdown::Read).unwrap();
        }
        lbd.await_log_times("the listening socket was ended from outside; the address is bound anew", round);
        lbd.await_log_times("bound anew; clients are accepted again", round);
        (0..20).for_each(|_| echoes(&connect(to)).unwrap());
        echoes(&held).unwrap();
        let listens = |socket: i32| accept(socket) == Err(Errno::EAGAIN);
        until("the store has those alone that listen", || {
            manager.hear(Duration::from_millis(1));
            (manager.store.len() == 2 && manager.store.iter().all(|(_, socket)| listens(*socket))).then_some(())
        });
    }
    assert_eq!(lbd.web(), to);
    let (cpu, start) = (lbd.cpu(), Instant::now());
    until("half a second passes", || (start.elapsed() > Duration::from_millis(500)).then_some(()));
    assert!(lbd.cpu() - cpu < 0.2, "nothing spins");
}

#[test]
fn an_address_that_cannot_be_bound_anew_is_told_and_tried_again_by_a_reload() {
    let a = Backend::start(named("a"));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a)], "")).unwrap();
    let mut manager = Manager::new(dir.path());
    let lbd = Lbd::spawn_passing(manager.command(&lbd_command(dir.path())), dir, &manager.descriptors());
    manager.await_line("READY=1");
    let to = lbd.web();
    // Whoever is quicker listens there; with SO_REUSEADDR, as every server does.
    let others = until("another program takes the port", || {
        for (_, socket) in &manager.store {
            let _ = shutdown(*socket, Shutdown::Read);
        }
        let other = TcpListener::bind(to).ok();
        if other.is_none() {
            while manager.hear(Duration::from_millis(1)).is_some() {}
        }
        other
    });
    let told = lbd.await_log("is in use by another process");
    assert!(told.contains(&to.to_string()) && told.contains("listener=web"), "{told}");
    assert!(lbd.listener("web")["unbound"][0].as_str().unwrap().contains("is in use"));
    assert!(lbd.done(&["status"]).contains("its socket was ended from outside"));
    drop(others);
    assert_eq!(lbd.lbctl(&["reload"]).code, Some(0));
    assert_eq!(who(to), "a", "the reload has waited for it");
    assert_eq!(lbd.listener("web")["unbound"], serde_json::json!([]));
}

#[test]
fn a_unix_listener_whose_path_was_removed_or_replaced_is_bound_anew_by_itself_and_by_a_reload() {
    let a = Backend::start(named("a"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    let lbd = Lbd::start(&unix(&path, &a, ""));
    assert_eq!(ask(connect_unix(&path), b"?").unwrap(), "a");
    let waiting = connect_unix(&path);
    fs::remove_file(&path).unwrap();
    lbd.await_log("its socket file was removed; the address is bound anew"); // within 5 s
    lbd.await_log("bound anew; clients are accepted again");
    assert_eq!(ask(connect_unix(&path), b"?").unwrap(), "a");
    assert_eq!(ask(waiting, b"?").unwrap(), "a", "who came in by the old path is served");

    fs::remove_file(&path).unwrap();
    let reloaded = lbd.lbctl(&["reload"]);
    assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
    assert_eq!(ask(connect_unix(&path), b"?").unwrap(), "a", "the reload has seen to it");

    // Another program's is left alone, and lbd comes back once it has gone.
    fs::rename(&path, dir.path().join("away")).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert_eq!(lbd.lbctl(&["reload"]).code, Some(0));
    lbd.await_log("another file is at its path");
    lbd.await_log("is in use by another process; stop it or choose another path");
    assert!(lbd.done(&["stats"]).contains("is in use by another process"));
    UnixStream::connect(&path).unwrap();
    drop(other);
    lbd.await_log_times("bound anew; clients are accepted again", 3);
    assert_eq!(ask(connect_unix(&path), b"?").unwrap(), "a");
}

#[test]
fn at_its_end_lbd_removes_its_own_socket_file_and_nobody_elses() {
    let a = Backend::start(named("a"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    for replaced in [false, true] {
        let mut lbd = Lbd::start(&unix(&path, &a, ""));
        let other = replaced.then(|| {
            fs::rename(&path, dir.path().join("away")).unwrap();
            UnixListener::bind(&path).unwrap()
        });
        lbd.signal(Signal::SIGTERM);
        assert_eq!(lbd.end().code, Some(0));
        assert_eq!(path.exists(), replaced);
        assert_eq!(other.is_some(), UnixStream::connect(&path).is_ok());
    }
}

#[test]
fn mode_and_group_of_a_unix_listener_are_set_and_changed_by_a_reload_and_never_through_a_link() {
    let a = Backend::start(named("a"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    let mode = |of: &Path| fs::symlink_metadata(of).unwrap().mode() & 0o777;
    let lbd = Lbd::start(&unix(&path, &a, ", mode: \"0600\""));
    assert_eq!(mode(&path), 0o600);
    let ran = lbd.reload(&unix(&path, &a, ", mode: \"0666\""));
    assert_eq!(ran.code, Some(0), "{ran:?}"); // the watcher may have been quicker
    lbd.await_log("mode: 0600 → 0666");
    assert_eq!(mode(&path), 0o666);
    fs::remove_file(&path).unwrap();
    assert_eq!(lbd.lbctl(&["reload"]).code, Some(0));
    assert_eq!(mode(&path), 0o666, "bound anew as before");

    let ran = lbd.reload(&unix(&path, &a, ", group: no-such-group-here"));
    assert_ne!(ran.code, Some(0));
    assert!(ran.err.contains("there is no group \"no-such-group-here\""), "{ran:?}");
    assert_eq!(mode(&path), 0o666);

    let file = dir.path().join("file");
    fs::write(&file, "dear").unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    fs::rename(&path, dir.path().join("away")).unwrap();
    symlink(&file, &path).unwrap();
    lbd.reload(&unix(&path, &a, ", mode: \"0606\""));
    assert_eq!(mode(&file), 0o640);
    lbd.await_log("another file is at its path");
}

#[test]
fn a_group_that_is_not_there_ends_the_start_with_its_name() {
    let a = Backend::start(named("a"));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = unix(&dir.path().join("web.sock"), &a, ", group: no-such-group-here");
    fs::write(dir.path().join("lbd.yaml"), config).unwrap();
    let mut lbd = Lbd::spawn(lbd_command(dir.path()), dir);
    let ran = lbd.end();
    assert_ne!(ran.code, Some(0));
    assert!(ran.err.contains("there is no group \"no-such-group-here\""), "{ran:?}");
}

#[test]
fn the_local_port_of_a_connection_is_told_from_another_program() {
    let a = Backend::start(named("a"));
    let far = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(far.local_addr().unwrap()).unwrap();
    let taken = near.local_addr().unwrap();
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let ran = lbd.reload(&web(&[("a", &a)], "").replace("127.0.0.1:0", &taken.to_string()));
    assert_ne!(ran.code, Some(0));
    let why = format!("{taken} is the local port of a connection of this machine");
    assert!(ran.err.contains(&why) && ran.err.contains("ip_local_reserved_ports"), "{ran:?}");
}

#[test]
fn a_listener_at_its_limit_says_so_once_a_spell_and_shows_it() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], "").replace("pool: web }", "pool: web, max_connections: 3 }"));
    let held: Vec<_> = (0..3).map(|_| connect(lbd.web())).collect();
    held.iter().for_each(|client| echoes(client).unwrap());
    let waits = connect(lbd.web());
    let told = lbd.await_log("has as many connections as it may (max_connections: 3)");
    assert!(told.contains("listener=web"), "{told}");
    assert_eq!(lbd.listener("web")["at_limit"], true);
    assert!(lbd.done(&["stats"]).contains("at its limit: new clients wait"));
    assert!(lbd.done(&["status"]).contains("listener web is at its limit of 3 connections"));
    drop(waits);
    // One that ends and another that comes is the same spell.
    for held in held {
        drop(held);
        echoes(&connect(lbd.web())).unwrap();
    }
    lbd.await_log("is below its max_connections again");
    assert_eq!(lbd.listener("web")["at_limit"], false);
    assert_eq!(lbd.log().matches("has as many connections as it may").count(), 1, "{}", lbd.log());
}

#[test]
fn with_many_workers_and_listeners_lbctl_reload_and_probes_work_at_the_limit_of_descriptors() {
    let a = Backend::start(echo);
    let config = |binds: &str| {
        web(&[("a", &a)], "health_check: { interval: 50ms }")
            .replace("workers: 2", "workers: 8")
            .replace("bind: \"127.0.0.1:0\"", &format!("bind: [{binds}]"))
    };
    let some = |from: usize, to: usize| (from..to).map(|n| format!("\"127.0.{n}.1:0\"")).collect::<Vec<_>>().join(", ");
    let lbd = Lbd::with_descriptors(300, &config(&some(0, 8)));
    let most = lbd.most_sessions() as usize;
    assert!(most < (300 - 64) / 2, "{most}");
    let to = lbd.web();
    let held: Vec<_> = (0..most + 10).map(|_| connect(to)).collect();
    lbd.await_log("as many sessions as its descriptors allow");
    let active = || lbd.listener("web")["connections_active"].as_u64().unwrap();
    assert_eq!(active(), most as u64);
    let probes = || lbd.backend("web/a")["probes_ok"].as_u64().unwrap();
    let before = probes();
    until("probes go on", || (probes() > before + 3).then_some(()));
    assert!(!lbd.log().contains("out of resources"), "{}", lbd.log());
    drop(held);
    until("they have gone", || (active() == 0).then_some(()));
    // A reload that adds listeners leaves more to them.
    let ran = lbd.reload(&config(&some(0, 11)));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let _held: Vec<_> = (0..most + 10).map(|_| connect(to)).collect();
    let fewer = until("it is at the limit", || {
        let (one, other) = (active(), active());
        (one == other && one > 0 && one < most as u64 && a.live() as u64 >= one).then_some(one)
    });
    assert!(fewer + 12 <= most as u64, "{fewer} of {most}");
    assert_eq!(lbd.lbctl(&["reload"]).code, Some(0));
    assert!(connect_from(None, to).is_ok());
}
