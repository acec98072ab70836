//! The files in `config/` are what users copy: each loads, and `full.yaml` tells every key with its true default.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lbd::config::{Config, keys};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).expect("the file is in the tree")
}

fn load(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|problems| {
        panic!("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })
}

#[test]
fn each_shipped_file_loads() {
    let mut names: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["default.yaml", "full.yaml", "production.yaml", "weighted.yaml"]);
    for name in names {
        assert_eq!(load(&read(name.to_str().unwrap())).warnings(), [], "{name:?}");
    }
}

#[test]
fn what_full_yaml_says_is_what_a_file_without_it_gets() {
    let least = "
listeners: { web: { bind: 0.0.0.0:8080, pool: web } }
pools: { web: { backends: { backend-1: 127.0.0.1:9001, backend-2: 127.0.0.1:9002 } } }
";
    assert_eq!(load(&read("full.yaml")), load(least));
}

#[test]
fn the_sections_absent_by_default_are_shown_with_their_own_defaults() {
    let with = |section: &str| {
        let mut text = String::new();
        let mut inside = false;
        for line in read("full.yaml").lines() {
            let bare = line.trim_start().trim_start_matches("# ");
            inside = bare.starts_with(section) || inside && line.trim_start().starts_with("#   ");
            // Where a backend's own port is probed and no bytes are exchanged, the key is an example, not a default.
            let example = ["port:", "send:", "send_hex:", "expect:", "expect_hex:"]
                .iter()
                .any(|key| bare.trim_start().starts_with(key));
            let shown = if inside && !example { line.replacen("# ", "", 1) } else { line.into() };
            text.push_str(&shown);
            text.push('\n');
        }
        load(&text)
    };
    let web = "web".parse().unwrap();
    let least = |extra: &str| {
        let text = format!(
            "listeners: {{ web: {{ bind: 0.0.0.0:80, pool: web }} }}\npools: {{ web: {{ backends: {{ a: 10.0.0.1:1 }}, {extra} }} }}"
        );
        load(&text).pools[&"web".parse().unwrap()].clone()
    };
    let check = with("health_check:").pools[&web].health_check.clone();
    assert!(check.is_some());
    assert_eq!(check, least("health_check: {}").health_check);
    let queue = least("queue: {}").queue;
    assert!(queue.is_some());
    assert_eq!(queue, least("retries: 2").queue, "the key may be left out");
    assert_eq!(least("queue: off").queue, None);
}

#[test]
fn full_yaml_has_every_key_that_the_file_may_have() {
    let text = read("full.yaml");
    let written: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim_start().trim_start_matches("# ").trim_start().split_once(':'))
        .map(|(key, _)| key)
        .collect();
    for table in keys::ALL {
        let count = |name: &str| written.iter().filter(|key| **key == name).count();
        for key in table.keys {
            let tables = keys::ALL.iter().filter(|other| other.find(key.name).is_some()).count();
            assert!(count(key.name) >= tables, "{} of {} is not in full.yaml", key.name, table.what);
        }
    }
}

/// `lbd --check` of a text on standard input.
fn check(text: &str) -> (Option<i32>, String, String) {
    let mut lbd = Command::new(env!("CARGO_BIN_EXE_lbd"))
        .args(["--check", "--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    lbd.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    told(lbd.wait_with_output().unwrap())
}

fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn standard_input_is_checked_and_not_run() {
    let right =
        "listeners: { web: { bind: 127.0.0.1:0, pool: web } }\npools: { web: { backends: { a: 10.0.0.1:80 } } }\n";
    let (code, said, warned) = check(right);
    assert_eq!(
        (code, said.as_str(), warned.as_str()),
        (Some(0), "<stdin> is right; listeners: 1, pools: 1, backends: 1\n", "")
    );
    let (code, said, problems) = check(&right.replace("pool: web", "pool: wep"));
    assert_eq!((code, said.as_str()), (Some(78), ""));
    assert!(problems.starts_with("<stdin>:1:46: listeners.web.pool: no pool is named"), "{problems}");
    let run = Command::new(env!("CARGO_BIN_EXE_lbd")).args(["--config", "-"]).stdin(Stdio::null()).output().unwrap();
    let (code, _, why) = told(run);
    assert!(code == Some(2) && why.contains("name a file"), "{why}");
}

#[test]
fn what_this_machine_lacks_is_a_warning_of_the_check() {
    let text = "listeners:
  a: { bind: [ \"127.0.0.1:0\", \"192.0.2.1:80\" ], pool: web }
  b: { bind: \"unix:/no/such/folder/b\", pool: web }
pools:
  web: { backends: { a: 10.0.0.1:3306 }, health_check: {} }
  spare: { backends: { a: 10.0.0.1:80 } }
control: { group: no-such-group }
";
    let (code, said, warned) = check(text);
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "<stdin> is right; listeners: 2, pools: 2, backends: 2, warnings: 5\n")
    );
    let begins = [
        "<stdin>:2:31: warning: listeners.a.bind.1: 192.0.2.1:80 is not an address of this machine",
        "<stdin>:3:14: warning: listeners.b.bind: unix:/no/such/folder/b is in a folder that does not exist",
        "<stdin>:5:42: warning: pools.web.health_check: MySQL",
        "<stdin>:6:3: warning: pools.spare: no listener uses this pool",
        "<stdin>:7:19: warning: control.group: there is no group \"no-such-group\"",
    ];
    assert_eq!(warned.lines().count(), begins.len(), "{warned}");
    for (line, begin) in warned.lines().zip(begins) {
        assert!(line.starts_with(begin), "{line}");
    }
}
