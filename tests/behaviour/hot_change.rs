//! The file changes while clients are served: whoever asks for it and however the file came about, no client notices,
//! and a file that is wrong changes nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;
use socket2::Socket;

use crate::backend::{Backend, echo, greeting, named};
use crate::client::{End, connect, connect_from, echoes, end_of, until, who};
use crate::daemon::{Lbd, web};
use crate::load::Load;
use crate::skip::skipped;

#[test]
fn twenty_changes_in_every_way_under_load_and_nobody_notices() {
    let (a, b, c) = (Backend::start(echo), Backend::start(echo), Backend::start(echo));
    let lbd = Lbd::start(&file(&a, &b, &c, 0));
    let to = lbd.address("stays");
    let held: Vec<Socket> = (0..5).map(|_| connect(to)).collect();
    held.iter().for_each(|client| echoes(client).unwrap());
    let load = Load::start(to, 4);
    let ways: [fn(&Lbd, &str, usize); 5] = [swap, write, rename, signal, reload];
    for turn in 1..=20 {
        ways[turn % 5](&lbd, &file(&a, &b, &c, turn), turn);
        until("it is in force", || (lbd.generation() == 1 + turn as u64).then_some(()));
        let accepted = c.accepted();
        load.go_on(10);
        if has_c(turn) {
            c.await_accepted(accepted + 1); // what was added is used
        }
        held.iter().for_each(|client| echoes(client).unwrap());
        if turn % 3 == 0 {
            echoes(&connect(lbd.address(&format!("extra-{turn}")))).unwrap();
        }
    }
    let (served, errors) = load.stop();
    assert_eq!(errors, Vec::<String>::new(), "of {served}");
    assert_eq!(lbd.generation(), 21, "nothing was applied twice:\n{}", lbd.log());
    // Counters are of the whole life, whatever was renamed, added and removed meanwhile.
    assert_eq!(lbd.listener("stays")["connections_total"], served + 5);
    assert_eq!(lbd.address("stays"), to);
}

/// The configuration of a turn: c comes and goes, the algorithm and the weights change, a listener is added and removed.
fn file(a: &Backend, b: &Backend, c: &Backend, turn: usize) -> String {
    let balance = ["round_robin", "least_connections", "random_two"][turn % 3];
    let c = if has_c(turn) { format!(", c: \"{}\"", c.address) } else { String::new() };
    let extra = if turn.is_multiple_of(3) {
        format!("  extra-{turn}: {{ bind: 127.0.0.2:0, pool: web }}\n")
    } else {
        String::new()
    };
    format!(
        "listeners:\n  stays: {{ bind: 127.0.0.1:0, pool: web }}\n{extra}pools:\n  web:\n    balance: {balance}\n    \
         backends: {{ a: {{ address: \"{}\", weight: {} }}, b: \"{}\"{c} }}\nprocess: {{ workers: 2 }}\n",
        a.address,
        1 + turn,
        b.address,
    )
}

fn has_c(turn: usize) -> bool {
    turn % 2 == 1
}

/// As a ConfigMap of Kubernetes changes: the file is a link into a folder that is a link.
fn swap(lbd: &Lbd, content: &str, turn: usize) {
    let version = format!("..version-{turn}");
    fs::create_dir(lbd.dir().join(&version)).unwrap();
    fs::write(lbd.dir().join(&version).join("lbd.yaml"), content).unwrap();
    link_over(Path::new(&version), &lbd.dir().join("..data"));
    if !lbd.file().is_symlink() {
        link_over(Path::new("..data/lbd.yaml"), &lbd.file());
    }
}

fn link_over(target: &Path, link: &Path) {
    let fresh = link.with_file_name("fresh-link");
    symlink(target, &fresh).unwrap();
    fs::rename(&fresh, link).unwrap();
}

fn write(lbd: &Lbd, content: &str, _: usize) {
    fs::write(lbd.file(), content).unwrap();
}

fn rename(lbd: &Lbd, content: &str, _: usize) {
    let fresh = lbd.dir().join("fresh");
    fs::write(&fresh, content).unwrap();
    fs::rename(&fresh, lbd.file()).unwrap();
}

fn signal(lbd: &Lbd, content: &str, _: usize) {
    fs::write(lbd.file(), content).unwrap();
    lbd.signal(Signal::SIGHUP);
}

fn reload(lbd: &Lbd, content: &str, _: usize) {
    let ran = lbd.reload(content);
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_wrong_file_changes_nothing_and_every_problem_is_told() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let right = web(&[("a", &a)], "");
    let lbd = Lbd::start(&right);
    let wrong = web(&[("b", &b)], "balnce: first, connect_timeout: soon").replace("pool: web }", "pool: wbe }");
    let refused = lbd.reload(&wrong);
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "{refused:?}");
    let at = format!("{}:", lbd.file().display());
    let problems: Vec<&str> = refused.err.lines().filter_map(|line| line.strip_prefix(&at)).collect();
    let column = |text: &str| {
        let (number, line) = wrong.lines().enumerate().find(|(_, line)| line.contains(text)).unwrap();
        format!("{}:{}:", number + 1, line.find(text).unwrap() + 1)
    };
    for (text, mend) in [("wbe", "did you mean \"web\""), ("balnce", "did you mean \"balance\""), ("soon", "5s")] {
        let problem = problems.iter().find(|p| p.starts_with(&column(text)));
        assert!(problem.is_some_and(|p| p.contains(mend)), "{text}: {problems:#?}");
        lbd.await_log(&column(text)); // the log has it too
    }
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert_eq!((lbd.generation(), who(lbd.web()).as_str()), (1, "a"));
    let status: serde_json::Value = serde_json::from_str(&lbd.done(&["--json", "status"])).unwrap();
    assert_eq!(status["last_reload"]["result"], "refused", "{status}");
    // The same by signal and by the watcher.
    lbd.signal(Signal::SIGHUP);
    lbd.await_log("by=SIGHUP");
    fs::write(lbd.file(), wrong + "# again\n").unwrap();
    lbd.await_log("by=watcher");
    assert_eq!((lbd.generation(), who(lbd.web()).as_str()), (1, "a"));
    assert_eq!(lbd.reload(&right).code, Some(0));
    assert_eq!(lbd.generation(), 1, "what is in force already is no change");
}

#[test]
fn the_watcher_does_not_remove_a_pool_alone_but_lbctl_does() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let both = format!(
        "listeners: {{ web: {{ bind: 127.0.0.1:0, pool: web }} }}\n\
         pools:\n  web: {{ backends: {{ a: \"{}\" }} }}\n  old: {{ backends: {{ b: \"{}\" }} }}\n",
        a.address, b.address
    );
    let lbd = Lbd::start(&both);
    let one: String = both.lines().filter(|line| !line.contains("old:")).map(|line| format!("{line}\n")).collect();
    fs::write(lbd.file(), one).unwrap();
    let line = lbd.await_log("configuration refused");
    assert!(line.contains("old") && line.contains("lbctl reload"), "{line}");
    assert_eq!(lbd.generation(), 1);
    lbd.done(&["reload"]);
    assert_eq!((lbd.generation(), lbd.backend("old/b")), (2, serde_json::Value::Null));
}

#[test]
fn the_watcher_takes_no_empty_file_and_is_there_for_the_next() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let lbd = Lbd::start(&web(&[("a", &a)], ""));
    fs::write(lbd.file(), "").unwrap();
    lbd.await_log("configuration refused");
    fs::remove_file(lbd.file()).unwrap();
    lbd.await_log("cannot be read");
    assert_eq!((lbd.generation(), who(lbd.web()).as_str()), (1, "a"));
    fs::write(lbd.file(), web(&[("a", &a), ("b", &b)], "")).unwrap();
    until("the new file is in force", || (lbd.generation() == 2).then_some(()));
}

#[test]
fn a_renamed_listener_keeps_its_socket_and_who_waits_at_it() {
    let a = Backend::start(greeting("hello"));
    let file = web(&[("a", &a)], "").replace("pool: web }", "pool: web, max_connections: 1 }");
    let lbd = Lbd::start(&file);
    let to = lbd.web();
    let first = connect(to);
    a.await_accepted(1);
    let mut waiting = connect(to); // in the kernel's queue: the listener is full
    let renamed = file.replace("{ web: { bind", "{ front: { bind").replace("max_connections: 1", "max_connections: 2");
    assert_eq!(lbd.reload(&renamed).code, Some(0));
    waiting.read_exact(&mut [0; 5]).unwrap();
    echoes(&waiting).unwrap();
    assert_eq!(lbd.address("front"), to);
    // (the first counts where it came in)
    let states = |name| (lbd.listener(name)["state"].clone(), lbd.listener(name)["connections_active"].clone());
    assert_eq!((states("web"), states("front")), ((json!("leaving"), json!(1)), (json!("active"), json!(1))));
    drop(first);
    until("the old name goes with its last session", || lbd.listener("web").is_null().then_some(()));
}

#[test]
fn an_address_that_is_taken_refuses_the_whole_change() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let file = web(&[("a", &a)], "");
    let lbd = Lbd::start(&file);
    let to = lbd.web();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = TcpListener::bind(taken).unwrap();
    let port = taken.local_addr().unwrap();
    let more = web(&[("b", &b)], "").replace(
        "listeners: {",
        &format!(
            "listeners: {{ fine: {{ bind: \"127.0.0.3:0\", pool: web }}, more: {{ bind: \"{port}\", pool: web }},"
        ),
    );
    let refused = lbd.reload(&more);
    assert_eq!(refused.code, Some(1));
    let why = format!("listeners.more: {port} is in use by another process; stop it or choose another port");
    assert!(refused.err.contains(&why), "{refused:?}");
    assert_eq!((lbd.generation(), lbd.web(), who(to).as_str()), (1, to, "a"));
    assert!(lbd.listener("fine").is_null());
    drop(taken);
    lbd.done(&["reload"]);
    assert_eq!((who(port).as_str(), who(to).as_str()), ("b", "b"));
}

#[test]
fn a_removed_listener_serves_who_has_come_and_then_nobody() {
    let a = Backend::start(greeting("hello"));
    let more = "extra: { bind: \"127.0.0.2:0\", pool: web }, web";
    let with = web(&[("a", &a)], "").replace("{ web: { bind", &format!("{{ {more}: {{ bind"));
    let lbd = Lbd::start(&with);
    let to = lbd.address("extra");
    let clients: Vec<Socket> = (0..50).map(|_| connect(to)).collect();
    assert_eq!(lbd.reload(&web(&[("a", &a)], "")).code, Some(0));
    assert!(connect_from(None, to).is_err(), "nobody listens any more");
    for mut client in &clients {
        client.read_exact(&mut [0; 5]).unwrap();
        echoes(client).unwrap();
    }
    assert_eq!(lbd.listener("extra")["state"], "leaving");
}

#[test]
fn a_removed_backend_leaves_when_its_last_session_ends_or_removed_timeout_has_come() {
    let (a, b) = (Backend::start(echo), Backend::start(echo));
    let both = web(&[("b", &b), ("a", &a)], "balance: first");
    let lbd = Lbd::start(&both);
    let (first, second) = (connect(lbd.web()), connect(lbd.web()));
    [&first, &second].iter().for_each(|client| echoes(client).unwrap());
    let one = web(&[("a", &a)], "balance: first");
    assert_eq!(lbd.reload(&one).code, Some(0));
    [&first, &second].iter().for_each(|client| echoes(client).unwrap());
    assert_eq!(
        (lbd.backend("web/b")["state"].clone(), lbd.backend("web/b")["connections_active"].clone()),
        (json!("leaving"), json!(2))
    );
    drop(first);
    lbd.await_backend("web/b", "connections_active", 1);
    assert_eq!(lbd.reload(&(one + "removed_timeout: 50ms\n")).code, Some(0));
    assert_eq!(end_of(&second), End::Reset);
    until("it is forgotten", || lbd.backend("web/b").is_null().then_some(()));
    assert_eq!((a.accepted(), b.accepted()), (0, 2));
}

#[test]
fn a_backend_keeps_its_counters_while_it_stays_itself() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let file = web(&[("a", &a)], "");
    let lbd = Lbd::start(&file);
    (0..3).for_each(|_| assert_eq!(who(lbd.web()), "a"));
    let counted = |name: &str| lbd.backend(name)["connections_total"].clone();
    assert_eq!(
        lbd.reload(
            &file.replace(&format!("\"{}\"", a.address), &format!("{{ address: \"{}\", weight: 5 }}", a.address))
        )
        .code,
        Some(0)
    );
    assert_eq!((counted("web/a"), lbd.backend("web/a")["weight"].clone()), (json!(3), json!(5)));
    assert_eq!(lbd.reload(&web(&[("a", &b)], "")).code, Some(0));
    assert_eq!(counted("web/a"), 0, "at another address it is another one");
    assert_eq!(who(lbd.web()), "b");
}

#[test]
fn what_takes_effect_at_restart_only_is_said() {
    let a = Backend::start(echo);
    let file = web(&[("a", &a)], "") + "watch: false\n";
    let lbd = Lbd::start(&file);
    let ran = lbd.reload(&file.replace("workers: 2", "workers: 3"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("process.workers") && ran.out.contains("restart"), "{ran:?}");
}

/// Keeps whoever opens a file waiting, as a file system that is away does, for as long as it is there (fcntl(2), F_SETLEASE; the
/// kernel gives up after 45 s).
struct Away(Child);

impl Away {
    /// `None` where this machine's perl or file system has no leases.
    fn file(path: &Path) -> Option<Self> {
        // F_SETSIG to SIGURG, which does nothing; then F_SETLEASE to F_WRLCK.
        let lease = "open(my $f, '+<', $ARGV[0]) or exit 1; fcntl($f, 10, 23) && fcntl($f, 1024, 1) or exit 1; \
                     $| = 1; print \"held\\n\"; <STDIN>";
        let mut perl = Command::new("perl");
        perl.args(["-e", lease]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut away = Self(perl.spawn().ok()?);
        let mut said = String::new();
        BufReader::new(away.0.stdout.take().unwrap()).read_line(&mut said).unwrap();
        (said == "held\n").then_some(away)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_system_that_is_away_holds_up_nobody_but_who_wants_the_file_read_and_no_upgrade() {
    let a = Backend::start(echo);
    let config = web(&[("a", &a)], "health_check: { interval: 100ms }") + "watch: false\n";
    let lbd = Lbd::start(&config);
    fs::write(lbd.file(), config.replace("100ms", "101ms")).unwrap();
    let Some(away) = Away::file(&lbd.file()) else { return skipped("no lease of a file can be had") };
    let mut reloads: Vec<Child> =
        (0..3).map(|_| lbd.lbctl_command(&["reload"]).stdout(Stdio::null()).spawn().unwrap()).collect();
    let probes = || lbd.backend("web/a")["probes_ok"].as_u64().unwrap();
    for turn in 0..3 {
        let before = probes();
        until("probes go on", || (probes() > before).then_some(()));
        lbd.done(&["drain", "web/a", "--reason", &turn.to_string()]);
        lbd.done(&["enable", "web/a"]);
        echoes(&connect(lbd.web())).unwrap();
    }
    // Another program takes over what waits.
    lbd.done(&["upgrade"]);
    assert!(reloads.iter_mut().all(|reload| reload.try_wait().unwrap().is_none()), "each waits for the file");
    drop(away);
    for mut reload in reloads {
        assert!(reload.wait().unwrap().success());
    }
    assert_eq!(lbd.generation(), 2);
}
