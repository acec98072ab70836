//! The documents say what is so: each command and flag that they name is one that `--help` knows, each example
//! configuration is right, each key is one that `config/full.yaml` has, each file and link leads somewhere.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use lbd::config::{Config, placed};

/// What an operator reads, and what a developer reads.
const FOR_OPERATORS: &[&str] = &["README.md", "CHANGELOG.md", "packaging/OPERATING.md"];
const ALL: &[&str] = &["README.md", "CHANGELOG.md", "packaging/OPERATING.md", "src/ARCHITECTURE.md"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The help of each program (`lbd`) and of each of its commands (`lbctl drain`).
static HELP: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let help = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).arg("--help").output().unwrap();
        assert!(output.status.success(), "{program} {args:?} --help");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut all = BTreeMap::new();
    let programs = [
        ("lbd", env!("CARGO_BIN_EXE_lbd")),
        ("lbctl", env!("CARGO_BIN_EXE_lbctl")),
        ("lbtest", env!("CARGO_BIN_EXE_lbtest")),
    ];
    for (name, program) in programs {
        let top = help(program, &[]);
        let listed = top.split_once("\nCommands:\n").map_or("", |(_, after)| after.split("\n\n").next().unwrap());
        for command in listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|c| *c != "help") {
            all.insert(format!("{name} {command}"), help(program, &[command]));
        }
        all.insert(name.to_owned(), top);
    }
    all
});

/// The insides of `code`, and the lines of code blocks whose language is one of these.
fn code<'a>(text: &'a str, languages: &[&str]) -> Vec<&'a str> {
    let (mut found, mut block) = (Vec::new(), None);
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(_), Some(_)) => block = None,
            (Some(language), None) => block = Some(language),
            (None, Some(language)) if languages.contains(&language) => found.push(line),
            (None, Some(_)) => {}
            (None, None) if line.starts_with("    ") => found.push(line),
            (None, None) => found.extend(line.split('`').skip(1).step_by(2)),
        }
    }
    found
}

/// The commands in a piece of code (program, and command where there is one), each with its flags. Flags that stand
/// alone belong to a command without a name; what is no program of ours is left out.
fn commands(code: &str) -> Vec<(String, Vec<&str>)> {
    let mut found = Vec::new();
    for part in code.trim_start().trim_start_matches("$ ").split(['&', '|', ';', '#']) {
        let (part, is_run) = match part.trim().strip_prefix("cargo run --release -- ") {
            Some(arguments) => (arguments, true),
            None => (part.trim(), false),
        };
        let mut words = part.split_whitespace().skip_while(|word| word.starts_with('['));
        let name = match words.next() {
            _ if is_run => "lbd".to_owned(),
            Some(word) if word.starts_with("--") => String::new(),
            Some(program) if ["lbd", "lbctl", "lbtest"].contains(&program) => {
                let is_command = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
                match words.find(|word| !word.starts_with('-')).filter(|w| program != "lbd" && is_command(w)) {
                    Some(command) => format!("{program} {command}"),
                    None => program.to_owned(),
                }
            }
            _ => continue,
        };
        let words = part.split(|c: char| c.is_whitespace() || "[]=,".contains(c));
        found.push((name, words.filter(|w| w.starts_with("--") && w.len() > 2).collect()));
    }
    found
}

/// What of a document's commands and flags no program knows. A flag that stands alone in a line is one of a command
/// that the line names, or where it names none, of any.
fn unknown_commands(text: &str) -> Vec<String> {
    let knows = |help: &str, flag: &str| help.split(|c: char| !(c.is_alphanumeric() || c == '-')).any(|w| w == flag);
    let mut wrong = Vec::new();
    for line in text.lines() {
        let is_code = line.starts_with("$ ") || line.starts_with("    ");
        let pieces = if is_code { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        let named: Vec<_> = pieces.into_iter().flat_map(commands).collect();
        let about: Vec<&String> = named.iter().filter_map(|(name, _)| HELP.get(name)).collect();
        for (name, flags) in &named {
            let helps: Vec<&String> = match HELP.get(name) {
                Some(help) => vec![help],
                None if !name.is_empty() => {
                    wrong.push(format!("there is no `{name}`: {line}"));
                    continue;
                }
                None if about.is_empty() => HELP.values().collect(),
                None => about.clone(),
            };
            let unknown = flags.iter().filter(|flag| !helps.iter().any(|help| knows(help, flag)));
            wrong.extend(unknown.map(|flag| format!("{flag} is no flag of what this line is about: {line}")));
        }
    }
    wrong
}

/// The keys that `config/full.yaml` shows, those behind a `#` too, and the words that it explains them with.
fn words_of_full_yaml() -> BTreeSet<String> {
    read("config/full.yaml").split(|c: char| !(c.is_alphanumeric() || c == '_')).map(str::to_owned).collect()
}

/// Words that look like keys (`log.connections`, `drain_timeout`, `watch: false`) and are none.
fn unknown_keys(text: &str) -> Vec<String> {
    let known = words_of_full_yaml();
    let like_a_key = |code: &&str| {
        let (name, value) = code.split_once(':').map_or((*code, None), |(name, value)| (name, Some(value)));
        let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let is_file = [".md", ".yaml", ".json", ".rs", ".toml", ".sock"].iter().any(|end| name.ends_with(end));
        let is_kernels = ["net.", "fs.", "kernel."].iter().any(|start| name.starts_with(start));
        name.split('.').all(plain)
            && !is_file
            && !is_kernels
            && (name.contains(['_', '.']) || value.is_some_and(|v| v.is_empty() || v.starts_with(' ')))
    };
    let spans = code(text, &[]).into_iter().filter(like_a_key);
    let parts = spans.flat_map(|span| span.split(':').next().unwrap().split('.').map(move |part| (span, part)));
    parts.filter(|(_, part)| !known.contains(*part)).map(|(span, _)| format!("{span} is no key of full.yaml")).collect()
}

/// What is wrong with example configurations, or is warned of.
fn wrong_examples(text: &str) -> Vec<String> {
    let blocks = text.split("```yaml\n").skip(1).map(|after| after.split("```").next().unwrap());
    let told = blocks.flat_map(|block| match Config::parse(block) {
        Ok(config) => placed(config.warnings(), block.as_bytes()),
        Err(problems) => problems,
    });
    told.map(|problem| problem.to_string()).collect()
}

/// Files that are named and not there: links from the document's folder, paths in code from the root or from src.
fn missing_files(name: &str, text: &str) -> Vec<String> {
    let folder = root().join(name).parent().unwrap().to_owned();
    let links = text.split("](").skip(1).map(|after| after.split(')').next().unwrap());
    let dead = links.filter(|l| !l.contains("://") && !l.contains("::")).filter(|l| !folder.join(l).exists());
    let is_path = |code: &&str| {
        let plain = code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        let file = [".rs", ".md", ".yaml", ".toml"].iter().any(|end| code.ends_with(end));
        plain
            && !code.starts_with('/')
            && (file || code.ends_with('/'))
            && !code.ends_with("lbd.yaml")
            && *code != "my.yaml"
    };
    let gone = code(text, &[]).into_iter().filter(is_path).filter(|path| {
        let places = [root(), root().join("src")];
        !places.iter().any(|place: &PathBuf| place.join(path).exists())
    });
    dead.chain(gone).map(|path| format!("{path} is not there")).collect()
}

/// Line numbers, which are wrong a day later.
fn line_numbers(text: &str) -> Vec<String> {
    let after = text.match_indices(".rs:").map(|(at, found)| &text[at + found.len()..]);
    after.filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())).map(|_| "names a line".to_owned()).collect()
}

fn check(documents: &[&str], rule: impl Fn(&str, &str) -> Vec<String>) {
    let complaints: Vec<String> = documents
        .iter()
        .flat_map(|name| rule(name, &read(name)).into_iter().map(move |c| format!("{name}: {c}")))
        .collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn each_command_and_flag_is_one_that_the_programs_know() {
    check(ALL, |_, text| unknown_commands(text));
}

#[test]
fn the_readme_lists_every_command_and_no_program_is_forgotten() {
    let readme = read("README.md");
    let first = |row: &str| commands(row.split('`').nth(1).unwrap()).swap_remove(0).0;
    let rows: BTreeSet<String> = readme.lines().filter(|line| line.starts_with("| `")).map(first).collect();
    let all: BTreeSet<String> =
        HELP.keys().filter(|name| !["lbctl", "lbtest"].contains(&name.as_str())).cloned().collect();
    assert_eq!(rows, all);
}

#[test]
fn each_example_and_each_key_is_right() {
    check(ALL, |_, text| wrong_examples(text));
    check(FOR_OPERATORS, |_, text| unknown_keys(text));
}

#[test]
fn each_file_and_link_is_there_and_no_line_is_named() {
    check(ALL, missing_files);
    check(ALL, |_, text| line_numbers(text));
}

#[test]
fn a_document_that_the_source_names_is_one_that_readers_have() {
    fn named(folder: &Path, out: &mut BTreeSet<String>) {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                named(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                let words = text.split(|c: char| !(c.is_alphanumeric() || "/._-".contains(c)));
                out.extend(words.map(|w| w.trim_end_matches('.')).filter(|w| w.ends_with(".md")).map(str::to_owned));
            }
        }
    }
    let mut names = BTreeSet::new();
    named(&root().join("src"), &mut names);
    let missing: Vec<_> =
        names.iter().filter(|n| !root().join(n).exists() && !root().join("src").join(n).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_is_not_so_is_found() {
    let bad = [
        "$ lbctl explode",
        "    lbctl drain b --kindly",
        "`lbd --dmeo`",
        "`lbctl reload`, with `--wait` too",
        "`--kindly`",
    ];
    for text in bad {
        assert_eq!(unknown_commands(text).len(), 1, "{text}");
    }
    let good =
        ["$ lbctl drain web/b --wait --timeout 10s && cargo test --lib", "`lbctl --json stats`", "`lbctl` is a tool"];
    for text in
        good.into_iter().chain(["    cargo run --release -- --demo", "$ lbtest load 5 64 > load.txt &", "`--socket`"])
    {
        assert_eq!(unknown_commands(text), [""; 0], "{text}");
    }
    for (text, count) in
        [("`drain_timeot`", 1), ("`log.conections`", 1), ("`watch: true`", 0), ("`stats`", 0), ("`a.yaml`", 0)]
    {
        assert_eq!(unknown_keys(text).len(), count, "{text}");
    }
    assert_eq!(wrong_examples("```yaml\npools: {}\n```\n").len(), 2);
    for (text, count) in
        [("`proxy/wroker.rs`", 1), ("`proxy/worker.rs`", 0), ("[a](nowhere.md)", 1), ("[a](src/lib.rs)", 0)]
    {
        assert_eq!(missing_files("README.md", text).len(), count, "{text}");
    }
    assert_eq!(line_numbers("see main.rs:12").len(), 1);
    assert!(Path::new(env!("CARGO_BIN_EXE_lbd")).exists());
}

#[test]
fn the_readme_has_every_event_of_the_journal() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for happening in lbd::words::Happening::ALL {
        assert!(readme.contains(&format!("`{}`", happening.as_str())), "{happening:?}");
    }
}
