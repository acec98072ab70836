//! Another lbd takes over in place: nobody who is connected notices, nobody who connects is refused, and whatever is wrong with
//! the program that was to take over, the one that serves goes on.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use nix::sys::ptrace;
use serde_json::Value;
use socket2::Socket;

use crate::backend::{Backend, Full, counting, echo, named, silent};
use crate::client::{connect, echoes, exchange, receive_pattern, reset, send_pattern, until, who};
use crate::daemon::{Lbd, lbd_command, web, web_of};
use crate::load::Load;

/// Everything that only grows, by its path in the document.
fn counters(stats: &Value) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    walk(stats, String::new(), &mut all);
    let grows = ["_total", "bytes_in", "bytes_out", "retries", "errors", "ok", "failed", "count", "refused", "ended"];
    all.retain(|(path, _)| grows.iter().any(|end| path.ends_with(end)) || path.contains("ended."));
    all
}

fn walk(value: &Value, path: String, all: &mut Vec<(String, u64)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, format!("{path}.{key}"), all)),
        Value::Array(list) => list.iter().enumerate().for_each(|(n, value)| walk(value, format!("{path}.{n}"), all)),
        Value::Number(n) => all.extend(n.as_u64().map(|n| (path, n))),
        _ => {}
    }
}

pub fn upgrade(lbd: &Lbd) -> Value {
    serde_json::from_str(&lbd.done(&["--json", "upgrade"])).unwrap()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

pub fn status(lbd: &Lbd) -> Value {
    serde_json::from_str(&lbd.done(&["--json", "status"])).unwrap()
}

#[test]
fn twenty_upgrades_under_load_are_noticed_by_nobody() {
    const BULK: usize = 24 << 20;
    let (a, b, c) = (Backend::start(echo), Backend::start(echo), Backend::start(counting));
    let mut d = Backend::start(silent);
    let full = Full::new();
    let lbd = Lbd::start(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", pool: web }}\n  count: {{ bind: \"127.0.0.2:0\", pool: count }}\n  \
         quiet: {{ bind: \"127.0.0.3:0\", pool: quiet }}\n  slow: {{ bind: \"127.0.0.4:0\", pool: slow }}\n\
         pools:\n  web: {{ backends: {{ a: \"{}\", b: \"{}\" }}, health_check: {{ type: tcp, interval: 50ms }} }}\n  \
         count: {{ backends: {{ c: \"{}\" }} }}\n  quiet: {{ backends: {{ d: \"{}\" }} }}\n  \
         slow: {{ backends: {{ e: \"{}\" }}, connect_timeout: 60s }}\n\
         process: {{ workers: 2 }}\n",
        a.address, b.address, c.address, d.address, full.address
    ));
    let (to, pid) = (lbd.web(), status(&lbd)["pid"].clone());
    let idle: Vec<Socket> = (0..50).map(|_| connect(to)).collect();
    idle.iter().for_each(|client| echoes(client).unwrap());
    // Half closed: the backend answers at the end of what comes, which the clients have not told yet, or has nothing to say.
    let open: Vec<Socket> = (0..5).map(|_| connect(lbd.address("count"))).collect();
    open.iter().for_each(|client| send_pattern(client, 1000).unwrap());
    let shut: Vec<Socket> = (0..5).map(|_| connect(lbd.address("quiet"))).collect();
    shut.iter().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    let load = Load::start(to, 4);
    load.go_on(50);
    // One after the other, so that one is under way at each upgrade.
    let enough = Arc::new(AtomicBool::new(false));
    let exchanging = thread::spawn({
        let enough = Arc::clone(&enough);
        move || {
            let mut count = 0;
            while !enough.load(SeqCst) {
                exchange(&connect(to), BULK).unwrap();
                count += 1;
            }
            count
        }
    });

    let (mut before, mut open_files) = (counters(&lbd.stats()), None);
    let mut connecting: Vec<Socket> = Vec::new();
    for n in 1..=20 {
        if n == 18 {
            connecting.extend((0..5).map(|_| connect(lbd.address("slow"))));
            until("they wait for the backend", || (lbd.listener("slow")["connections_active"] == 5).then_some(()));
        }
        let answer = upgrade(&lbd);
        assert_eq!((&answer["answer"], &answer["upgrades"]), (&"upgraded".into(), &n.into()), "{answer}");
        assert!(answer["sessions"].as_u64().unwrap() >= 60, "{answer}");
        let after = counters(&lbd.stats());
        assert_eq!(before.len(), after.len());
        for ((path, was), (_, is)) in before.iter().zip(&after) {
            assert!(was <= is, "{path} went back from {was} to {is} at upgrade {n}");
        }
        before = after;
        load.go_on(20);
        let files = descriptors(pid.as_u64().unwrap() as u32);
        assert!(files <= *open_files.get_or_insert(files + 20), "descriptors are left behind: {files}");
    }

    enough.store(true, SeqCst);
    let exchanged: usize = exchanging.join().unwrap();
    let (served, errors) = load.stop();
    assert!(errors.is_empty(), "of {served}: {errors:?}");
    idle.iter().for_each(|client| echoes(client).unwrap());
    for mut client in open {
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "1000");
    }
    assert_eq!(d.live(), shut.len(), "the half-closed ones are still there");
    assert_eq!(lbd.listener("slow")["connections_active"], 5, "those are still connecting");
    full.accept();
    connecting.iter().for_each(|client| echoes(client).unwrap());
    drop(connecting);
    let now = status(&lbd);
    assert_eq!((&now["pid"], &now["upgrades"], &now["generation"]), (&pid, &20.into(), &1.into()));
    drop((idle, shut));
    d.stop(); // or the half-closed ones would have their half minute
    until("all sessions have ended", || (status(&lbd)["sessions"] == 0).then_some(()));
    let stats = lbd.stats();
    let web = &stats["listeners"].as_array().unwrap().iter().find(|l| l["name"] == "web").unwrap();
    let ended: u64 = web["ended"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(web["connections_total"].as_u64().unwrap(), ended, "who came has ended: {web}");
    assert_eq!(ended as usize, served + 50 + exchanged);
    let backends = stats["pools"].as_array().unwrap().iter().find(|p| p["name"] == "web").unwrap()["backends"].clone();
    let of_backends: u64 = backends.as_array().unwrap().iter().map(|b| b["connections_total"].as_u64().unwrap()).sum();
    assert_eq!(of_backends, ended, "listener and backends agree");
}

#[test]
fn what_operators_decided_what_probes_found_and_the_generation_are_carried_over() {
    let (a, mut b, c) = (Backend::start(named("a")), Backend::start(named("b")), Backend::start(named("c")));
    let backends = [("a", &a), ("b", &b), ("c", &c)];
    let check = "health_check: { type: tcp, interval: 50ms, fast_interval: 50ms, down_interval: 50ms, fall: 1 }";
    let lbd = Lbd::start(&web(&backends, check));
    ["a", "b", "c"].iter().for_each(|name| lbd.await_backend(&format!("web/{name}"), "health", "up"));
    lbd.done(&["drain", "web/a", "--reason", "a new disk", "--for", "1h"]);
    b.stop();
    lbd.await_backend("web/b", "health", "down");
    assert_eq!(lbd.reload(&(web(&[("a", &a), ("b", &b), ("c", &c)], check) + "drain_timeout: 7s\n")).code, Some(0));
    let last_reload = status(&lbd)["last_reload"]["at"].clone();
    // What is not right changes nothing, and is not what the successor serves by.
    fs::write(lbd.file(), "listeners: 7").unwrap();
    assert_eq!(lbd.lbctl(&["reload"]).code, Some(1));

    let before = lbd.backend("web/b");
    upgrade(&lbd);
    let (a_now, b_now) = (lbd.backend("web/a"), lbd.backend("web/b"));
    assert_eq!((&a_now["state"], &a_now["override_reason"]), (&"drained".into(), &"a new disk".into()));
    assert!(a_now["override_ends_in_seconds"].as_u64().unwrap() > 3500);
    assert_eq!(b_now["health"], "down");
    assert_eq!(b_now["health_reason"], before["health_reason"]);
    assert_eq!(lbd.generation(), 2);
    assert_ne!(status(&lbd)["last_reload"]["at"], last_reload, "that one was refused");
    assert_eq!(status(&lbd)["last_reload"]["result"], "refused");
    (0..6).for_each(|_| assert_eq!(who(lbd.web()), "c"));
    lbd.done(&["enable", "web/a"]);
    lbd.await_backend("web/a", "health", "up");
    assert_eq!(lbd.reload(&web(&[("a", &a), ("c", &c)], check)).code, Some(0));
    assert_eq!(lbd.generation(), 3);
}

#[test]
fn the_number_of_workers_may_change_and_the_file_is_what_says_so() {
    let a = Backend::start(echo);
    let config = |workers: usize| web(&[("a", &a)], "").replace("workers: 2", &format!("workers: {workers}"));
    let lbd = Lbd::start(&config(1));
    let to = lbd.web();
    let clients: Vec<Socket> = (0..20).map(|_| connect(to)).collect();
    clients.iter().for_each(|client| echoes(client).unwrap());
    let load = Load::start(to, 3);
    for workers in [2, 1, 2, 1, 3, 2, 4] {
        load.go_on(20);
        assert_eq!(lbd.reload(&config(workers)).code, Some(0));
        upgrade(&lbd);
        assert_eq!(status(&lbd)["workers"], workers);
        let listening = listening(to);
        until("each worker accepts", || {
            let sockets = accepting(&lbd, &listening);
            let even = sockets.iter().max()? - sockets.iter().min()? <= 1;
            (sockets.len() == workers && even).then_some(())
        });
        assert!(!lbd.done(&["status"]).contains("at restart"), "the upgrade has applied it");
        clients.iter().for_each(|client| echoes(client).unwrap());
    }
    let (served, errors) = load.stop();
    assert!(errors.is_empty(), "of {served}: {errors:?}");
    assert_eq!(lbd.listener("web")["connections_active"], 20);
}

/// The sockets that listen at an address, as links of /proc/PID/fd call them.
fn listening(at: SocketAddr) -> Vec<String> {
    // Of /proc/net/tcp (proc_pid_net(5)): a local address with a port in hexadecimal, the state 0A, and the inode.
    let port = format!(":{:04X} ", at.port());
    // Those that listen come first; behind them are all the connections of the machine.
    let table = BufReader::new(fs::File::open("/proc/net/tcp").unwrap()).lines().map(Result::unwrap).skip(1);
    let lines = table.take_while(|line| line.contains(" 0A ")).filter(|line| line.contains(&port));
    lines.map(|line| format!("socket:[{}]", line.split_whitespace().nth(9).unwrap())).collect()
}

/// How many of them each worker hears of that hears of any, by the kernel's word.
fn accepting(lbd: &Lbd, listening: &[String]) -> Vec<usize> {
    let fds = format!("/proc/{}/fd", status(lbd)["pid"]);
    let named = |fd: &str| fs::read_link(format!("{fds}/{fd}")).unwrap_or_default().display().to_string();
    let open = fs::read_dir(&fds).unwrap().map(|fd| fd.unwrap().file_name().into_string().unwrap());
    let epolls = open.filter(|fd| named(fd) == "anon_inode:[eventpoll]");
    let hears = |epoll: String| {
        let told = fs::read_to_string(format!("{fds}info/{epoll}")).unwrap_or_default();
        let heard = told.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next().map(named));
        heard.filter(|name| listening.contains(name)).count()
    };
    epolls.map(hears).filter(|count| *count > 0).collect()
}

#[test]
fn a_reload_after_an_upgrade_moves_the_listener_and_who_was_leaving_still_is() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    assert_eq!(lbd.reload(&web(&[("b", &b)], "")).code, Some(0));
    assert_eq!(lbd.backend("web/a")["state"], "leaving");
    upgrade(&lbd);
    assert_eq!(lbd.backend("web/a")["state"], "leaving");
    echoes(&client).unwrap();
    let before = lbd.web();
    let other =
        web(&[("b", &b)], "").replace("web: { bind", "other: { bind: \"127.0.0.2:0\", pool: web }, web: { bind");
    assert_eq!(lbd.reload(&other).code, Some(0));
    assert_eq!(lbd.web(), before);
    upgrade(&lbd);
    echoes(&connect(lbd.address("other"))).unwrap();
    assert_eq!(lbd.reload(&web(&[("b", &b)], "")).code, Some(0));
    drop(client);
    until("the last session of what was removed has ended", || lbd.backend("web/a").is_null().then_some(()));
}

#[test]
fn operators_who_wait_are_answered_by_the_program_that_took_over() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    let mut drain = lbd.lbctl_command(&["drain", "web/a", "--wait", "--timeout", "60s"]).spawn().unwrap();
    lbd.await_backend("web/a", "admin", "draining");
    // And one who is connected and has not said anything yet.
    let mut silent = std::os::unix::net::UnixStream::connect(lbd.dir().join("control.sock")).unwrap();
    (0..3).for_each(|_| drop(upgrade(&lbd)));
    assert!(drain.try_wait().unwrap().is_none(), "it waits on");
    silent.write_all(b"GET /v1/status HTTP/1.1\r\nhost: lbd\r\n\r\n").unwrap();
    let mut answer = String::new();
    silent.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"upgrades\":3"), "{answer}");
    drop(client);
    assert!(drain.wait().unwrap().success());
}

#[test]
fn gauges_histograms_and_spare_connections_are_as_before() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], "spare_connections: 4, spare_max_idle: 1h"));
    lbd.await_backend("web/a", "connections_spare", 4);
    let clients: Vec<Socket> = (0..7).map(|_| connect(lbd.web())).collect();
    clients.iter().for_each(|client| echoes(client).unwrap());
    (0..30).for_each(|_| drop(exchange(&connect(lbd.web()), 100)));
    lbd.await_backend("web/a", "connections_active", 7);
    lbd.await_backend("web/a", "connections_spare", 4);
    until("the backend has no others", || (a.live() == 11).then_some(()));
    let (accepted, before) = (a.accepted(), lbd.stats());
    for _ in 0..3 {
        upgrade(&lbd);
        assert_eq!(picture(&lbd.stats()), picture(&before));
    }
    assert_eq!((a.accepted(), a.live()), (accepted, 11), "nothing was closed, and nothing opened");
    echoes(&connect(lbd.web())).unwrap();
    assert!(lbd.backend("web/a")["connections_total"] == 38);
    clients.iter().for_each(|client| echoes(client).unwrap());
}

/// All numbers but those that time alone changes.
fn picture(stats: &Value) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    walk(stats, String::new(), &mut all);
    all.retain(|(path, _)| !path.contains("seconds"));
    assert!(all.iter().any(|(path, n)| path.ends_with("p50_us") && *n > 0), "{all:?}");
    all
}

#[test]
fn a_dry_run_says_what_would_come_of_it_and_changes_nothing() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    let said = lbd.done(&["upgrade", "--dry-run"]);
    for part in ["can take over: lbd ", "carried over: sessions: 1", "listening addresses: 1"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!said.contains("requests"), "{said}");
    let mut half = std::os::unix::net::UnixStream::connect(lbd.dir().join("control.sock")).unwrap();
    half.write_all(b"GET /v1/sta").unwrap();
    let said = lbd.done(&["upgrade", "--dry-run"]);
    assert!(said.contains("not carried over: requests to lbd that have come only in part: 1"), "{said}");
    half.write_all(b"tus HTTP/1.1\r\nhost: lbd\r\n\r\n").unwrap();
    let mut answer = String::new();
    half.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"upgrades\":0"), "{answer}");
    assert_eq!(status(&lbd)["upgrades"], 0);
}

/// A copy of lbd with some bytes changed.
fn altered(dir: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(env!("CARGO_BIN_EXE_lbd")).unwrap();
    change(&mut bytes);
    file(dir, name, &bytes, 0o755)
}

fn file(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// A copy of lbd that does nothing, for ever.
pub fn hanging(dir: &Path) -> PathBuf {
    altered(dir, "hang", |bytes| {
        let at = entry(bytes);
        bytes[at..at + 2].copy_from_slice(&[0xeb, 0xfe]); // a jump to itself
    })
}

/// Where in the file the first instruction is.
fn entry(bytes: &[u8]) -> usize {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (entry, table) = (number(24), number(32));
    let loads = (0..bytes[56] as usize).map(|n| table + n * 56).filter(|at| bytes[*at] == 1);
    let (offset, address, size) = loads
        .map(|at| (number(at + 8), number(at + 16), number(at + 32)))
        .find(|(_, a, s)| (*a..a + s).contains(&entry))
        .unwrap();
    assert!(size > 0);
    entry - address + offset
}

#[test]
fn a_program_that_cannot_take_over_is_refused_with_its_reason_and_nothing_has_changed() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let client = connect(lbd.web());
    let dir = lbd.shared_dir();
    let dir = dir.path();
    let mut kinds: Vec<(PathBuf, &str)> = vec![
        (dir.join("none"), "does not exist"),
        (dir.to_owned(), "is no regular file"),
        (file(dir, "text", b"hello", 0o755), "is no program"),
        (file(dir, "script", b"#!/bin/sh\nexec lbd\n", 0o755), "is a script"),
        (
            altered(dir, "foreign", |bytes| bytes[18..20].copy_from_slice(&243u16.to_le_bytes())),
            "is a program for riscv64",
        ),
        (altered(dir, "cut", |bytes| bytes.truncate(bytes.len() - 1)), "is truncated"),
        (altered(dir, "stub", |bytes| bytes.truncate(5000)), "is truncated"),
        ("/bin/true".into(), "is no lbd that can take over"),
        (env!("CARGO_BIN_EXE_lbctl").into(), "saying: error: unexpected argument '--handover-check'"),
    ];
    let mode = file(dir, "mode", &fs::read(env!("CARGO_BIN_EXE_lbctl")).unwrap(), 0o644);
    kinds.push((mode, "has no execute bit"));
    if cfg!(target_arch = "x86_64") {
        let loader = b"/lib64/ld-linux-x86-64.so.2";
        let missing = |bytes: &mut Vec<u8>| {
            let at = bytes.windows(loader.len()).position(|part| part == loader).unwrap();
            bytes[at + loader.len() - 1] = b'9';
        };
        kinds
            .push((altered(dir, "loader", missing), "needs the interpreter /lib64/ld-linux-x86-64.so.9, which is not"));
        let crash = |bytes: &mut Vec<u8>| {
            let at = entry(bytes);
            bytes[at..at + 2].copy_from_slice(&[0x0f, 0x0b]); // an instruction that is none
        };
        kinds.push((altered(dir, "crash", crash), "crashes: it was ended by SIGILL"));
        kinds.push((hanging(dir), "did not say what it is within 2 s"));
    }
    for (path, why) in kinds {
        for args in [&["upgrade"][..], &["upgrade", "--dry-run"]] {
            let ran = lbd.lbctl(&[args, &[path.to_str().unwrap()]].concat());
            assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{path:?}: {ran:?}");
            assert!(ran.err.contains(why) && ran.err.contains(path.to_str().unwrap()), "{path:?}: {}", ran.err);
            if why.contains("2 s") {
                break; // once is long enough
            }
        }
        let now = status(&lbd);
        assert_eq!((&now["upgrades"], &now["sessions"]), (&0.into(), &1.into()));
        echoes(&client).unwrap();
    }
    assert_eq!(children(&lbd), "", "nobody is left of those that were tried");
}

/// Children of lbd.
pub fn children(lbd: &Lbd) -> String {
    let pid = status(lbd)["pid"].to_string();
    // Any of its threads may have started one, and have ended since.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok()).collect()
}

#[test]
fn an_older_program_is_refused() {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: what is built to be used says no other version than its own");
        return;
    }
    let a = Backend::start(echo);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &a)], "")).unwrap();
    let mut command = lbd_command(dir.path());
    command.env("LBD_TEST_VERSION", "0.0.9"); // read by who is asked, not by who runs
    let lbd = Lbd::spawn(command, dir);
    lbd.await_log("serving;");
    let ran = lbd.lbctl(&["upgrade"]);
    assert!(ran.code == Some(1) && ran.err.contains("is lbd 0.0.9, older than"), "{ran:?}");
}

#[test]
fn a_stop_after_an_upgrade_is_as_before() {
    let lbd = Lbd::start(&web_of("a: \"127.0.0.1:9\"", ""));
    upgrade(&lbd);
    let (control, mut lbd) = (lbd.dir().join("control.sock"), lbd);
    assert!(control.exists());
    lbd.done(&["shutdown"]);
    assert_eq!(lbd.end().code, Some(0));
    assert!(!control.exists(), "it cleans up after itself");
}

#[test]
fn a_large_answer_under_way_is_whole() {
    let a = Backend::start(|socket| send_pattern(&socket, 16 << 20).and_then(|()| socket.shutdown(Shutdown::Write)));
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let clients: Vec<Socket> = (0..3).map(|_| connect(lbd.web())).collect();
    (0..3).for_each(|_| drop(upgrade(&lbd))); // while nobody reads, and bytes are held
    let reading: Vec<_> = clients.into_iter().map(|client| thread::spawn(move || receive_pattern(&client))).collect();
    (0..3).for_each(|_| drop(upgrade(&lbd)));
    reading.into_iter().for_each(|it| assert_eq!(it.join().unwrap().unwrap(), 16 << 20));
}

#[test]
fn downloads_that_are_broken_off_while_programs_change_cost_nobody_else_anything() {
    let a = Backend::start(|socket| send_pattern(&socket, 1 << 30)); // nobody reads so much
    let b = Backend::start(echo);
    let lbd = Lbd::start(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", pool: web }}\n  bulk: {{ bind: \"127.0.0.2:0\", pool: bulk }}\n\
         pools:\n  web: {{ backends: {{ b: \"{}\" }} }}\n  bulk: {{ backends: {{ a: \"{}\" }} }}\n\
         process: {{ workers: 1 }}\nlog: {{ connections: off }}\n",
        b.address, a.address
    ));
    let (bulk, witnesses) = (lbd.address("bulk"), (0..3).map(|_| connect(lbd.web())).collect::<Vec<Socket>>());
    let enough = Arc::new(AtomicBool::new(false));
    let breaking = (0..4).map(|_| {
        let enough = Arc::clone(&enough);
        thread::spawn(move || {
            let mut part = [0; 4096];
            while !enough.load(SeqCst) {
                let mut client = connect(bulk);
                client.read_exact(&mut part).unwrap(); // it is under way, and there is no end of it
                reset(client);
            }
        })
    });
    let breaking: Vec<_> = breaking.collect();
    // One in which a session yields and ends in the turn that parks is among a dozen.
    for n in 1..=30 {
        assert_eq!(upgrade(&lbd)["upgrades"], n);
        witnesses.iter().for_each(|client| echoes(client).unwrap());
    }
    enough.store(true, SeqCst);
    breaking.into_iter().for_each(|it| it.join().unwrap());
    until("only the witnesses are left", || (status(&lbd)["sessions"] == 3).then_some(()));
}

#[test]
fn where_a_worker_does_not_come_to_a_safe_point_the_others_go_on_and_so_does_it() {
    let a = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    let to = lbd.web();
    let clients: Vec<Socket> = (0..20).map(|_| connect(to)).collect();
    clients.iter().for_each(|client| echoes(client).unwrap());
    // Who traces a thread must be one and the same thread all along.
    let worker = lbd.thread("lbd-worker-1");
    ptrace::seize(worker, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(worker).unwrap();
    until("it stands still", || {
        fs::read_to_string(format!("/proc/{worker}/stat")).unwrap().contains(") t ").then_some(())
    });
    let ran = lbd.lbctl(&["upgrade"]);
    assert!(ran.code == Some(1) && ran.err.contains("worker 1 did not come to a safe point within 1 s"), "{ran:?}");
    ptrace::detach(worker, None).unwrap();
    clients.iter().for_each(|client| echoes(client).unwrap());
    upgrade(&lbd);
    clients.iter().for_each(|client| echoes(client).unwrap());
}
