//! What holds for any text: one slip is one problem, garbage is answered in time and in order, every key is read, and
//! another reader of YAML sees the same.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proptest::prelude::*;

use super::tests::{BASE, problems};
use super::{Config, ConfigDiff, keys, render};

#[test]
fn one_slip_on_any_line_is_one_problem_there() {
    let slip = |line: &str, kind: usize| match kind {
        0 => format!(" {line}"),
        1 => format!("  {line}"),
        2 => line.strip_prefix(' ').unwrap_or(line).into(),
        3 => line.strip_prefix("  ").unwrap_or(line).into(),
        4 => line.replacen(':', "", 1),
        5 => line.replacen(": ", ":", 1),
        6 => line.replacen(": ", " = ", 1),
        7 => line.replacen("  ", "\t", 1),
        8 => line.replacen(['"', '{'], "", 1),
        9 => line.replacen("\",", ",", 1),
        _ => line.replacen('}', "", 1),
    };
    for number in 1..=12 {
        for kind in 0..11 {
            let slipped = |(n, line)| if n + 1 == number { slip(line, kind) } else { String::from(line) };
            let text = BASE.lines().enumerate().map(slipped).collect::<Vec<_>>().join("\n") + "\n";
            let problems = problems(&text);
            let at_most = usize::from(text != BASE);
            let near = problems.iter().all(|problem| problem.line.abs_diff(number as u32) <= 1);
            assert!(problems.len() <= at_most && near, "line {number}, kind {kind}: {problems:#?}\n{text}");
        }
    }
}

/// A build that is not optimized is slower by far: it has less to read, and more time.
const SLOWER: usize = if cfg!(debug_assertions) { 5 } else { 1 };
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });

#[test]
fn a_text_that_grows_without_end_is_refused_in_time() {
    let laughs = (1..30).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
        let before = format!("*a{}", n - 1);
        format!("{text}a{n}: &a{n} [{}]\n", vec![before; 9].join(", "))
    });
    let long = "listeners:\n".to_owned() + &"  a: { bind: x, pool: y, z: 1 }\n".repeat(30_000 / SLOWER);
    for text in [
        laughs,
        "[".repeat(500_000 / SLOWER),
        "- ".repeat(500_000 / SLOWER),
        "a: ".repeat(300_000 / SLOWER),
        "?".repeat(900_000 / SLOWER),
        long,
        "x".repeat(2_000_000 / SLOWER),
    ] {
        let start = worked();
        let problems = problems(&text);
        assert!(!problems.is_empty() && problems.len() <= 1100, "{} problems", problems.len());
        assert!(worked() - start < LIMIT, "{:?} for {:?}…", worked() - start, &text[..20]);
    }
}

#[test]
fn repair_that_feeds_itself_ends() {
    // Here each of two lines is moved because of where the other one stands.
    let endless = BASE
        .replace("    backends", "{  backends")
        .replace("2 }\n", "2 }#")
        .replace("timeout: 1s", "t?imeout: 1s")
        .replace("drain_", "d&a rain_");
    let scalars = format!("listeners: [{}\npools: {{", "a,".repeat(30_000 / SLOWER));
    let tabs = BASE.to_owned() + &"\ta:\n".repeat(5_000 / SLOWER);
    let stairs = BASE.to_owned() + &(0..300).rev().map(|depth| " ".repeat(depth) + "a: b: {\n").collect::<String>();
    let lines = BASE.to_owned() + &"a\n".repeat(30_000 / SLOWER);
    let keys = BASE.to_owned() + &(0..9_000 / SLOWER).map(|n| format!(" b{n}:\n")).collect::<String>();
    for text in [endless, scalars, tabs, stairs, lines, keys] {
        let start = worked();
        assert!(!problems(&text).is_empty());
        let took = worked() - start;
        assert!(took < LIMIT, "{took:?} for …{:?}", &text[text.len() - 20..]);
    }
}

/// What this thread has had of a processor: a busy machine does not make it more.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn every_key_is_read() {
    for table in keys::ALL {
        for key in table.keys {
            let nonsense = format!("{}: [[nonsense]]", key.name);
            let inner = match table.at {
                "" => nonsense,
                at => at.split('.').rev().fold(nonsense, |text, step| format!("{step}: {{ {text} }}")),
            };
            let path =
                [table.at, key.name].iter().filter(|step| !step.is_empty()).copied().collect::<Vec<_>>().join(".");
            let told = problems(&inner)
                .iter()
                .any(|problem| problem.path.starts_with(&path) && problem.message.contains("list"));
            assert!(told, "nobody reads {path}: {:?}", problems(&inner));
        }
    }
}

/// `BASE` with a few characters taken out, doubled or replaced.
fn mangled() -> impl Strategy<Value = String> {
    let edit = (
        0..BASE.len(),
        prop::sample::select(vec!["", " ", "  ", "\n", ":", "\t", "\"", "{", "}", "- ", "*", "&a ", "0", "x"]),
        0..3_usize,
    );
    prop::collection::vec(edit, 1..4).prop_map(|edits| {
        let mut text = BASE.to_owned();
        for (at, with, out) in edits {
            let at = at.min(text.len());
            let end = (at + out).min(text.len());
            text.replace_range(at..end, with);
        }
        text
    })
}

#[test]
fn another_reader_of_yaml_sees_the_same() {
    let shipped = [
        include_str!("../../config/default.yaml"),
        include_str!("../../config/weighted.yaml"),
        include_str!("../../config/production.yaml"),
        include_str!("../../config/full.yaml"),
    ];
    for text in shipped.into_iter().chain([BASE]) {
        let value: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
        for rewritten in [serde_yaml::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            assert_eq!(Config::parse(&rewritten), Config::parse(text), "{rewritten}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let problems = Config::parse(&bytes).unwrap_err();
        prop_assert!(!problems.is_empty());
        render(&problems, "f", &bytes, false);
    }

    #[test]
    fn a_mangled_file_is_answered_within_its_bounds_and_in_order(text in mangled()) {
        let problems = problems(&text);
        let lines = text.lines().count() as u32;
        for problem in &problems {
            prop_assert!(problem.line >= 1 && problem.column >= 1 && problem.line <= lines + 1, "{problem}\n{text}");
        }
        prop_assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
        render(&problems, "f", text.as_bytes(), false);
    }

    #[test]
    fn nothing_changes_between_a_configuration_and_itself_and_something_between_two(one in mangled(), other in mangled()) {
        let (one, other) = (Config::parse(one).ok(), Config::parse(other).ok());
        for (a, b) in [(&one, &one), (&one, &other), (&other, &one)] {
            let (Some(a), Some(b)) = (a, b) else { continue };
            let diff = ConfigDiff::between(a, b);
            prop_assert_eq!(diff.is_empty(), a == b, "{:?}", diff);
            prop_assert_eq!(diff.summary().is_empty(), a == b);
            let back = ConfigDiff::between(b, a);
            prop_assert_eq!(diff.backends.added, back.backends.removed);
        }
    }
}
