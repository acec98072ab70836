//! The manual pages say what is so: every command, argument, option and default that `--help` knows, every key and default of
//! `config/full.yaml`, and none besides; each example is right, and the pages render without a warning.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

#[path = "manuals/help.rs"]
mod help;
#[path = "manuals/page.rs"]
mod page;
#[path = "behaviour/skip.rs"]
mod skip;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use lbd::config::{Config, keys};
use lbd::words::Happening;

use help::Help;
use page::Page;
use skip::skipped;

/// Keys that `full.yaml` shows with an example, not with a default.
const EXAMPLES: &[&str] = &[
    "address",
    "bind",
    "pool",
    "from",
    "port",
    "send",
    "send_hex",
    "expect",
    "expect_hex",
    "fast_interval",
    "down_interval",
    "socket",
    "group",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("man")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// The programs, with where their pages are and what options and commands take part in every command.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("lbd", env!("CARGO_BIN_EXE_lbd"), "lbd.8"),
    ("lbctl", env!("CARGO_BIN_EXE_lbctl"), "lbctl.8"),
    ("lbtest", env!("CARGO_BIN_EXE_lbtest"), "lbtest.1"),
];

/// What a page says otherwise than a program's help; `+` stands before what only the page has.
fn differences(said: &BTreeSet<String>, so: &BTreeSet<String>) -> Vec<String> {
    let missing = so.difference(said).map(|what| format!("-{what}"));
    missing.chain(said.difference(so).map(|what| format!("+{what}"))).collect()
}

#[test]
fn the_pages_have_each_command_option_and_default_of_the_programs() {
    for (program, path, page) in PROGRAMS {
        let (said, so) = (Page::parse(&read(page)).usage(), Help::of(path).usage());
        assert!(so.len() >= 6, "{program}: {so:?}");
        assert_eq!(differences(&said, &so), [""; 0], "{page}");
    }
}

#[test]
fn the_pages_have_each_exit_status_that_the_help_has_and_none_besides() {
    for (program, path, page) in PROGRAMS {
        let so = Help::of(path).exit_statuses();
        assert!(!so.is_empty(), "{program} tells no exit status");
        assert_eq!(Page::parse(&read(page)).exit_statuses(), so, "{page}");
    }
}

#[test]
fn lbd_8_has_each_event_with_its_message_id() {
    let so = Happening::ALL.iter().map(|event| format!("{} {}", event.as_str(), event.message_id())).collect();
    assert_eq!(differences(&Page::parse(&read("lbd.8")).events(), &so), [""; 0]);
}

#[test]
fn lbd_8_has_each_variable_that_lbd_reads() {
    let said = Page::parse(&read("lbd.8")).variables();
    let mut so: BTreeSet<String> = variables_in(&folder().join("../src"));
    // lbctl's, the demo's and the tests'.
    let of_others = ["LBD_SOCKET", "MAINPID", "PATH", "LBD_SIM_SEED", "LBD_TEST_TAKEOVER", "LBD_TEST_VERSION"];
    of_others.iter().for_each(|other| assert!(so.remove(*other), "{other}"));
    so.extend(["LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"].map(str::to_owned)); // read by a library
    assert_eq!(differences(&said, &so), [""; 0]);
}

/// What the sources take from the environment by name.
fn variables_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(variables_in(&path));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for call in ["env::var(\"", "env::var_os(\""] {
            found.extend(text.split(call).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
    found
}

#[test]
fn lbd_yaml_5_has_each_key_with_its_default() {
    let so = keys_of_full_yaml();
    for table in keys::ALL {
        for key in table.keys {
            let written = format!("{}: {}", if table.at.is_empty() { "top level" } else { table.at }, key.name);
            assert!(so.iter().any(|k| k.split(" = ").next() == Some(&written)), "full.yaml has no {written}: {so:#?}");
        }
    }
    assert_eq!(differences(&Page::parse(&read("lbd.yaml.5")).keys(), &so), [""; 0]);
}

/// `mapping: key = default` of each key in `full.yaml`, commented or not. What is absent by default has none.
fn keys_of_full_yaml() -> BTreeSet<String> {
    let text = std::fs::read_to_string(folder().join("../config/full.yaml")).unwrap();
    let mut found = BTreeSet::new();
    let mut above: Vec<(usize, String, bool)> = Vec::new();
    for line in text.lines().skip_while(|line| !line.starts_with("listeners:")) {
        let bare = line.trim_start();
        let (is_comment, bare) = bare.strip_prefix('#').map_or((false, bare), |rest| (true, rest));
        let Some((key, rest)) = bare.split_once(':') else { continue };
        let indent = line.len() - bare.len() + bare.len() - bare.trim_start().len() - usize::from(is_comment) * 2;
        above.retain(|(i, ..)| *i < indent);
        let (key, value) = (key.trim(), rest.split(" #").next().unwrap().trim());
        let path: Vec<&str> = above.iter().map(|(_, key, _)| key.as_str()).collect();
        let inside_comment = above.last().is_some_and(|(.., is_comment)| *is_comment);
        let has_default = !value.is_empty() && !EXAMPLES.contains(&key) && (!is_comment || inside_comment);
        let at = match path[..] {
            [] => "top level".to_owned(),
            // The names of listeners, pools and backends are the operator's.
            ["listeners"] | ["pools"] | [.., "backends"] => {
                above.push((indent, "NAME".into(), is_comment));
                continue;
            }
            _ => path.join("."),
        };
        let default = if has_default { format!(" = {value}") } else { String::new() };
        found.insert(format!("{at}: {key}{default}"));
        above.push((indent, key.to_owned(), is_comment));
    }
    found
}

#[test]
fn each_example_is_right() {
    let mut count = 0;
    for block in read("lbd.yaml.5").split(".Bd -literal -offset indent\n").skip(1) {
        let text = block.split(".Ed").next().unwrap();
        Config::parse(text).unwrap_or_else(|problems| panic!("{text}\n{problems:?}"));
        count += 1;
    }
    assert!(count > 1);
    for (_, _, page) in PROGRAMS {
        let known: BTreeSet<String> = PROGRAMS.iter().flat_map(|(_, path, _)| Help::of(path).words()).collect();
        let text = read(page);
        let examples: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(".Dl ")).collect();
        assert!(examples.len() > 1, "{page} has no examples");
        let ours = examples.iter().filter(|line| line.starts_with("lb"));
        let flags = ours.flat_map(|line| line.split([' ', '=', '|'])).filter(|word| word.starts_with("--"));
        let unknown: Vec<&str> = flags.filter(|flag| !known.contains(*flag)).collect();
        assert!(unknown.is_empty(), "{page}: {unknown:?}");
    }
}

#[test]
fn the_pages_render_without_a_warning() {
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let output = match Command::new("groff").args(["-mandoc", "-ww", "-z", "-Tutf8"]).arg(&path).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                skipped("there is no groff; install it with `apt-get install groff`");
                return;
            }
            output => output.unwrap(),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", path.display());
    }
}

#[test]
fn what_a_page_lacks_or_invents_is_found() {
    let set = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(differences(&set(&["a", "b"]), &set(&["b", "c"])), ["-c", "+a"]);
    let page = Page::parse(".Sh KEYS\n.Ss process\n.It Ic workers : Ar auto\nThreads.\n.It Ic more\n");
    assert_eq!(page.keys(), set(&["process: workers = auto", "process: more"]));
    let page = Page::parse(".Sh COMMANDS\n.Ss drain Ar BACKEND\n.It Fl Fl for Ar DURATION\nThe default is 5s.\n");
    assert_eq!(page.usage(), set(&["drain BACKEND", "drain --for DURATION = 5s"]));
}
