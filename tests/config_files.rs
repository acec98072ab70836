//! The files in `config/` are what users copy: each loads, and `full.yaml` tells every key with its true default.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

use std::path::{Path, PathBuf};

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
        load(&read(name.to_str().unwrap()));
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
            let example = ["port:", "send:", "expect:"].iter().any(|key| bare.trim_start().starts_with(key));
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
