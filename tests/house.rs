//! The house rules of the source, as tests: which way imports point, which rooms are pure, which file is the one
//! doorway of a crate, and how long a file may be. Each rule is a function from a file to complaints, and each is
//! shown a violation. What the documents say is checked in `documents.rs`.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

#[path = "house/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use source::{File, bare, files, paths, sources, without_tests};

/// The folders of src and their ranks: imports go to a lower one.
const RANKS: &[(&str, u8)] = &[
    ("words", 0),
    ("config", 1),
    ("balance", 1),
    ("health", 1),
    ("snapshot", 2),
    ("observe", 3),
    ("control", 4),
    ("probe", 4),
    ("proxy", 4),
    ("daemon", 5),
];

/// What decides and touches nothing: time is an argument.
const PURE: &[&str] = &[
    "words/",
    "config/",
    "balance/",
    "health/",
    "snapshot/",
    "observe/",
    "control/place.rs",
    "control/reply.rs",
    "control/request.rs",
    "control/route.rs",
    "control/target.rs",
    "daemon/action.rs",
    "daemon/event.rs",
    "daemon/supervisor/",
];

/// What else must not read the clock, the environment or a file. Of the proxy only the worker reads the clock.
const TIMELESS: &[&str] = &[
    "proxy/carry/",
    "proxy/dial.rs",
    "proxy/inbox.rs",
    "proxy/limits.rs",
    "proxy/memory.rs",
    "proxy/preface/",
    "proxy/relay.rs",
    "proxy/row.rs",
    "proxy/serve.rs",
    "proxy/session.rs",
    "proxy/turn.rs",
];

/// What reads the clock, the environment or a file.
const CLOCK_AND_FILES: &[&str] = &["std::env", "std::fs", "std::process", "Instant::now", "SystemTime::now"];

/// What reaches out of the process in other ways.
const WORLD: &[&str] = &[
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::thread",
    "hyper",
    "libc",
    "nix",
    "notify",
    "sd_notify",
    "socket2",
    "tokio",
];

/// Where each dependency comes in. To replace one is to edit the files named here.
const DOORWAYS: &[(&str, &[&str])] = &[
    ("annotate_snippets", &["config/problem.rs"]),
    ("anstream", &["bin/lbctl.rs"]),
    ("arc_swap", &["snapshot/shared.rs"]),
    // Who owns the bytes of a record: its mapping, or who has written them.
    ("bytes", &["proxy/carry/", "daemon/upgrade/"]),
    ("clap", &["bin/"]),
    ("clap_complete", &["bin/"]),
    ("comfy_table", &["observe/table.rs"]),
    ("crc32fast", &["daemon/upgrade/record.rs"]),
    ("hdrhistogram", &["bin/lbtest/verdict.rs"]),
    ("http_body_util", &["control/client.rs", "control/server.rs", "bin/lbtest/temper.rs"]),
    ("humantime", &["config/value.rs", "bin/"]),
    ("hyper", &["control/client.rs", "control/server.rs", "bin/lbtest/temper.rs"]),
    ("hyper_util", &["control/client.rs", "control/server.rs", "bin/lbtest/temper.rs"]),
    ("io_uring", &["proxy/ring.rs"]),
    ("jiff", &["daemon/logging/line.rs"]),
    // Of nix in the second: the exec that goes back must not allocate, and nix's does.
    ("libc", &["proxy/socket.rs", "daemon/upgrade/guard.rs", "daemon/upgrade/process.rs"]),
    ("memmap2", &["daemon/upgrade/process.rs"]),
    // The kernel itself; nobody is going to replace it.
    (
        "nix",
        &[
            "proxy/",
            "control/names.rs",
            "control/node.rs",
            "probe/",
            "control/server.rs",
            "control/socket.rs",
            "daemon/beginning.rs",
            "daemon/children.rs",
            "daemon/clock.rs",
            "daemon/crew.rs",
            "daemon/folder.rs",
            "daemon/logging/",
            "daemon/machine.rs",
            "daemon/mod.rs",
            "daemon/signals.rs",
            "daemon/sockets.rs",
            "daemon/systemd.rs",
            "daemon/unix_listener.rs",
            "daemon/upgrade/",
            "bin/",
        ],
    ),
    ("notify", &["daemon/watch.rs", "daemon/watch/"]),
    ("owo_colors", &["observe/table.rs"]),
    // What each worker leaves to a successor, encoded by its own thread.
    ("postcard", &["proxy/carry/"]),
    ("saphyr_parser", &["config/tree.rs"]),
    ("sd_notify", &["daemon/systemd.rs"]),
    // A derive on what travels or is shown.
    (
        "serde",
        &[
            "config/diff.rs",
            "config/problem.rs",
            "snapshot/carried.rs",
            "observe/",
            "control/reply.rs",
            "control/route.rs",
            "control/socket.rs",
            "daemon/sockets.rs",
            "daemon/state.rs",
            "daemon/supervisor/heritage.rs",
            "daemon/upgrade/",
            "proxy/carry/",
            "proxy/door.rs",
            "proxy/relay.rs",
            "proxy/session.rs",
            "bin/lbtest/",
        ],
    ),
    ("serde_bytes", &["proxy/carry/mod.rs"]),
    ("serde_json", &["observe/json.rs", "bin/lbtest/report.rs"]),
    ("slab", &["proxy/worker.rs", "proxy/stock.rs", "probe/prober.rs"]), // the tables of sessions, of spares and of probes
    (
        "socket2",
        &[
            "control/socket.rs",
            "daemon/unix_listener.rs",
            "probe/prober/tests.rs",
            "proxy/adopt.rs",
            "proxy/door.rs",
            "bin/lbtest/servers.rs",
        ],
    ),
    ("strsim", &["config/keys.rs"]),
    // The control plane's runtime; a worker only holds the ends of channels.
    ("tokio", &["control/", "probe/", "proxy/worker.rs", "daemon/", "bin/"]),
    // Who acts logs; who is pure, but for the supervisor, has nothing to log.
    ("tracing", &["control/names.rs", "control/server.rs", "proxy/", "daemon/"]),
    ("tracing_subscriber", &["daemon/logging.rs"]),
];

const UNSAFE: &[&str] =
    &["proxy/ring.rs", "proxy/socket.rs", "daemon/systemd.rs", "daemon/upgrade/guard.rs", "daemon/upgrade/process.rs"];

/// Lines a file may have.
const LONGEST: usize = 600;

fn check(files: &[File], rule: impl Fn(&File) -> Vec<String>) {
    let complaints: Vec<String> =
        files.iter().flat_map(|f| rule(f).into_iter().map(|c| format!("{}: {c}", f.name))).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

fn lies_in(name: &str, places: &[&str]) -> bool {
    places.iter().any(|place| name == *place || (place.ends_with('/') && name.starts_with(place)))
}

/// Names one of these, from its crate on or by its last two words.
fn matches(path: &[&str], any: &[&str]) -> bool {
    let whole = path.join("::");
    any.iter()
        .any(|want| whole == *want || whole.starts_with(&format!("{want}::")) || whole.ends_with(&format!("::{want}")))
}

// ---- the rules

fn imports(file: &File) -> Vec<String> {
    let rank = |folder: &str| RANKS.iter().find(|(f, _)| *f == folder).map(|(_, rank)| *rank);
    let mut module: Vec<&str> = file.name.trim_end_matches(".rs").split('/').collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    let own = module[0];
    if file.name.starts_with("bin/lbtest/") {
        return strangers(file);
    }
    if own == "bin" || own == "lib" {
        return Vec::new();
    }
    let Some(own_rank) = rank(own) else { return vec![format!("{own} has no rank; give it one in tests/house.rs")] };
    let mut complaints = Vec::new();
    for path in paths(&file.code) {
        let ups = path.iter().take_while(|part| **part == "super").count();
        let to = match path[0] {
            "crate" => path.get(1),
            "super" if ups >= module.len() => path.get(ups),
            _ => None,
        };
        match to.and_then(|to| rank(to)) {
            Some(to_rank) if to.copied() != Some(own) && to_rank >= own_rank => {
                complaints.push(format!("{own} ({own_rank}) must not import {} ({to_rank})", path.join("::")));
            }
            _ => {}
        }
    }
    complaints
}

/// What judges lbd imports nothing of it.
fn strangers(file: &File) -> Vec<String> {
    let foreign = paths(&file.code).into_iter().filter(|path| path.len() > 1 && path[0] == "lbd");
    foreign.map(|path| format!("knows nothing of lbd, but names {}", path.join("::"))).collect()
}

fn purity(file: &File) -> Vec<String> {
    let (pure, timeless) = (lies_in(&file.name, PURE), lies_in(&file.name, PURE) || lies_in(&file.name, TIMELESS));
    let mut complaints: Vec<String> = paths(&file.code)
        .into_iter()
        .filter(|path| (timeless && matches(path, CLOCK_AND_FILES)) || (pure && matches(path, WORLD)))
        .map(|path| format!("is pure, but names {}", path.join("::")))
        .collect();
    if timeless && file.code.contains(".elapsed()") {
        complaints.push("is pure, but asks a clock how much time has elapsed".into());
    }
    complaints
}

fn clock_of_the_proxy(file: &File) -> Vec<String> {
    let reads = paths(&file.code).iter().any(|path| path.last() == Some(&"monotonic_micros"));
    let may = ["proxy/socket.rs", "proxy/mod.rs", "proxy/worker.rs", "daemon/mod.rs"];
    if reads && !may.contains(&file.name.as_str()) { vec!["reads the clock; take `now`".into()] } else { vec![] }
}

fn doorways(file: &File) -> Vec<String> {
    let through = |path: &[&str]| {
        DOORWAYS.iter().any(|(name, places)| path.len() > 1 && path[0] == *name && !lies_in(&file.name, places))
    };
    let wrong = paths(&file.code).into_iter().filter(|path| through(path));
    wrong.map(|path| format!("is no doorway of {}, but names {}", path[0], path.join("::"))).collect()
}

fn safety(file: &File) -> Vec<String> {
    let unsafe_words = ["unsafe", "unsafe_code"];
    let found = paths(&file.code).iter().any(|path| path.len() == 1 && unsafe_words.contains(&path[0]));
    if found && !lies_in(&file.name, UNSAFE) { vec!["has unsafe code".into()] } else { vec![] }
}

/// Snapshots are put in force in daemon/effects.rs and addresses bound in daemon/sockets.rs; daemon/mod.rs makes the first, empty snapshot.
fn one_hand(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for path in paths(&file.code) {
        let may: &[&str] = match path[..] {
            [.., "Publisher"] => &["snapshot/", "daemon/effects.rs"],
            [.., "publish_first"] => &["snapshot/", "daemon/mod.rs"],
            [.., "proxy", "bind"] | [.., "door", "bind"] => &["proxy/", "daemon/sockets.rs"],
            _ => continue,
        };
        if !lies_in(&file.name, may) {
            complaints.push(format!("{} is for {} alone", path.join("::"), may.join(" and ")));
        }
    }
    complaints
}

fn length(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if lines > LONGEST { vec![format!("has {lines} lines; it holds two things")] } else { vec![] }
}

fn opening(file: &File) -> Vec<String> {
    let right = if file.name == "lib.rs" { "#![doc = include_str!" } else { "//! " };
    if file.text.starts_with(right) { vec![] } else { vec![format!("does not begin with `{right}`")] }
}

fn leftovers(file: &File) -> Vec<String> {
    let written = ["TODO", "FIXME", "XXX"].into_iter().filter(|word| file.text.contains(word));
    let code = bare(&file.text);
    let coded = ["todo!", "unimplemented!", "dbg!"].into_iter().filter(|word| code.contains(word));
    written.chain(coded).map(|word| format!("has a {word}")).collect()
}

fn sleeps(file: &File) -> usize {
    bare(&file.text).matches("sleep(").count() + bare(&file.text).matches("sleep_until(").count()
}

// ---- the house as it is

#[test]
fn imports_point_downward_and_rooms_of_one_rank_do_not_know_each_other() {
    check(sources(), imports);
    check(&files("benches"), strangers);
}

#[test]
fn what_decides_reads_no_clock_no_file_no_environment_and_no_socket() {
    check(sources(), purity);
    check(sources(), clock_of_the_proxy);
}

#[test]
fn each_dependency_comes_in_by_its_doorway_and_is_used() {
    check(sources(), doorways);
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let sections = manifest.split("\n[").filter(|section| {
        let head = section.lines().next().unwrap();
        head == "dependencies]" || (head.starts_with("target.") && head.ends_with(".dependencies]"))
    });
    let asked: BTreeSet<String> = sections
        .flat_map(|section| section.lines().skip(1))
        .filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_")))
        .collect();
    let listed: BTreeSet<String> = DOORWAYS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(asked, listed, "Cargo.toml (left) and the doorways (right) differ");
    let used: BTreeSet<&str> = sources().iter().flat_map(|f| paths(&f.code)).map(|path| path[0]).collect();
    let unused: Vec<_> = asked.iter().filter(|name| !used.contains(name.as_str())).collect();
    assert!(unused.is_empty(), "nobody uses {unused:?}");
}

#[test]
fn unsafe_code_lives_in_five_files() {
    check(sources(), safety);
}

#[test]
fn one_file_binds_and_publishes() {
    check(sources(), one_hand);
}

#[test]
fn every_file_is_short_says_what_it_is_and_is_finished() {
    check(&files("src"), |file| [length(file), opening(file), leftovers(file)].concat());
    check(&files("tests"), |file| [length(file), opening(file)].concat());
    check(&files("benches"), |file| [length(file), opening(file), leftovers(file)].concat());
}

#[test]
fn no_test_sleeps_for_its_result() {
    let tests = files("tests");
    let all: Vec<&str> = tests.iter().flat_map(|f| vec![f.name.as_str(); sleeps(f)]).collect();
    assert!(all.len() <= 1, "await an event; the harness has the one bounded poll: {all:?}");
}

// ---- each rule finds what it forbids

fn file(name: &str, text: &str) -> File {
    File { name: name.into(), text: text.into(), code: without_tests(&bare(text)).0 }
}

#[track_caller]
fn finds(rule: fn(&File) -> Vec<String>, name: &str, bad: &[&str], good: &[&str]) {
    for text in bad {
        assert!(!rule(&file(name, text)).is_empty(), "{name}: not found in {text}");
    }
    for text in good {
        assert_eq!(rule(&file(name, text)), [""; 0], "{name}: found in {text}");
    }
}

#[test]
fn a_wrong_import_is_found() {
    let good = ["use crate::words::Name;", "use crate::config::Config;", "use super::cells;", "// crate::daemon::run"];
    finds(imports, "config/check.rs", &["use crate::balance::Ask;", "use crate::{words, health::Verdict};"], &good);
    finds(imports, "config/check.rs", &["use super::super::snapshot::Pool;", "fn f() { crate::daemon::run() }"], &good);
    finds(imports, "config/mod.rs", &["use super::snapshot::Pool;"], &["use self::check;", "use crate::config::file;"]);
    finds(
        imports,
        "snapshot/build.rs",
        &["use crate::observe::Stats;"],
        &["#[cfg(test)]\nmod t { use crate::proxy::X; }"],
    );
    finds(imports, "bin/lbtest/main.rs", &["use lbd::words;"], &["use crate::cli;", "let s = \"lbd::words\";"]);
    finds(imports, "attic/old.rs", &["fn f() {}"], &[]);
}

#[test]
fn an_impurity_is_found() {
    let good = [
        "use std::time::Instant;",
        "use std::net::SocketAddr;",
        "fn f(now: Instant) {}",
        "/// See std::fs.\nfn f() {}",
    ];
    let bad = ["let t = Instant::now();", "use std::{env, fmt};", "use std::fs::File;", "std::time::SystemTime::now()"];
    finds(purity, "daemon/supervisor/stop.rs", &bad, &good);
    finds(purity, "proxy/session.rs", &bad, &["use nix::errno::Errno;"]);
    finds(
        purity,
        "health/verdict.rs",
        &["use tokio::time;", "start.elapsed()", "use std::net::{IpAddr, TcpStream};"],
        &good,
    );
    finds(purity, "observe/table.rs", &["use nix::unistd;"], &["#[cfg(test)]\nmod tests { use std::fs; }"]);
    finds(purity, "probe/exchange.rs", &[], &bad);
    finds(clock_of_the_proxy, "proxy/door.rs", &["let n = socket::monotonic_micros();"], &["self.now"]);
}

#[test]
fn a_second_doorway_is_found() {
    finds(
        doorways,
        "config/check.rs",
        &["use arc_swap::ArcSwap;", "strsim::jaro(a, b)"],
        &["let notify = 1; notify.x()"],
    );
    finds(doorways, "daemon/watch/chain.rs", &["use sd_notify::NotifyState;"], &["use notify::Event;"]);
    finds(doorways, "daemon/effects.rs", &["use {serde, hyper::Uri};"], &["use tracing::info;"]);
}

#[test]
fn unsafe_code_and_a_second_hand_are_found() {
    let bad = ["#![allow(unsafe_code)]", "fn f() { unsafe { g() } }"];
    finds(safety, "proxy/relay.rs", &bad, &["// unsafe", "let s = \"unsafe\";"]);
    finds(safety, "proxy/socket.rs", &[], &bad);
    finds(
        one_hand,
        "daemon/mod.rs",
        &["proxy::bind(&a, 1, &[])", "use crate::snapshot::{Publisher, Reader};"],
        &["socket::bind()"],
    );
    finds(one_hand, "daemon/sockets.rs", &["publish_first(x)"], &["proxy::bind(&a, 1, &[])"]);
}

#[test]
fn a_long_a_nameless_and_an_unfinished_file_are_found() {
    let long = "\n".repeat(LONGEST + 1);
    finds(length, "a.rs", &[&long], &[&long[1..]]);
    finds(opening, "words/name.rs", &["use std::fmt;\n//! Names.", ""], &["//! Names."]);
    finds(opening, "lib.rs", &["//! lbd"], &["#![doc = include_str!(\"ARCHITECTURE.md\")]"]);
    finds(leftovers, "a.rs", &["// TODO: more", "todo!()", "dbg!(x)"], &["let s = \"todo!\";"]);
    assert_eq!(sleeps(&file("a.rs", "thread::sleep(x); // sleep(y)")), 1);
}

#[test]
fn code_is_read_as_the_compiler_reads_it() {
    let text = "a /* b */ 'c' \"d \\\" e\" r#\"f \" g\"# 'h '\\'' b\"i\" // j\nk";
    assert_eq!(bare(text).split_whitespace().collect::<Vec<_>>(), ["a", "'h", "b", "k"]);
    let (code, modules) =
        without_tests("a #[cfg(test)] mod b; c #[cfg(test)] mod d { { } } e #[cfg(test)] use f::{g}; h");
    assert_eq!((code.split_whitespace().collect::<String>().as_str(), &modules[..]), ("aceh", &["b".to_owned()][..]));
    let found: Vec<String> =
        paths("use a::{b, c::{d, e as f}, self}; g::h::<i>()").iter().map(|p| p.join("::")).collect();
    assert_eq!(found, ["a::b", "a::c::d", "a::c::e", "a::self", "g::h", "i"]);
}
