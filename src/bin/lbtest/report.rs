//! Words for what came of a run: aligned text for people, one stable JSON document for programs. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::crowd::{Connections, Plan, Run, Until};
use crate::fault::Kind;
use crate::verdict::{Percentiles, Verdict};

/// The summary for people.
pub fn text(plan: &Plan, run: &Run) -> String {
    let tally = &run.tally;
    let seconds = run.elapsed.as_secs_f64();
    let connections = match plan.connections {
        Connections::Kept => "kept",
        Connections::New => "one a request",
    };
    let pace = plan.rate.map_or_else(
        || "the next request follows the answer".into(),
        |rate| format!("{} requests/s due, latency from then", grouped(rate)),
    );
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {name:<13}{value}");
    };
    let bytes = tally.answered * plan.size;
    line("requests", format!("{}, {} answered right", grouped(tally.requests), grouped(tally.answered)));
    line("rate", format!("{} requests/s over {}", grouped(per(tally.answered, seconds)), human(run.elapsed)));
    line("verified", format!("{}, {}/s", amount(bytes), amount(per(bytes, seconds))));
    line("connections", format!("{} opened, {connections}", grouped(tally.connections)));
    if tally.not_sent > 0 {
        line("not sent", format!("{} were due, but no client was free", grouped(tally.not_sent)));
    }
    let rows = [("latency", Percentiles::of(&tally.latency)), ("connect", Percentiles::of(&tally.connect))];
    let rows = rows.iter().filter_map(|(name, row)| row.map(|row| (name, row.columns())));
    for (index, (name, columns)) in rows.enumerate() {
        if index == 0 {
            line("", columns.iter().map(|(name, _)| format!("{name:>10}")).collect());
        }
        line(name, columns.iter().map(|(_, value)| format!("{:>10}", human(*value))).collect());
    }
    for (kind, faults) in &tally.faults {
        let _ = writeln!(out, "  {kind:<20}{:>9}  first: {}", grouped(faults.count), faults.first);
    }
    let clients = grouped(plan.clients.into());
    format!(
        "{}: {clients} clients, {} a request, {pace}\n{out}{}\n",
        plan.target,
        amount(plan.size),
        claim(tally.verdict())
    )
}

/// The verdict in a sentence.
fn claim(verdict: Verdict) -> String {
    match verdict {
        Verdict::Right => "right: every byte of every answer".into(),
        Verdict::Nothing => "wrong: no request was answered".into(),
        Verdict::Wrong { faults: 1 } => "wrong: 1 answer was wrong, short or missing".into(),
        Verdict::Wrong { faults } => format!("wrong: {} answers were wrong, short or missing", grouped(faults)),
    }
}

/// The summary for programs. Every key is always there; times are microseconds.
#[derive(Serialize)]
struct Document {
    command: &'static str,
    target: String,
    clients: u32,
    payload_bytes: u64,
    connections_kept: bool,
    rate_limit: Option<u64>,
    elapsed_us: f64,
    requests: u64,
    answered: u64,
    not_sent: u64,
    requests_per_second: f64,
    verified_bytes: u64,
    connections: u64,
    latency_us: Option<Figures>,
    connect_us: Option<Figures>,
    faults: u64,
    faults_by_kind: BTreeMap<String, u64>,
    first_faults: BTreeMap<String, String>,
    ok: bool,
}

#[derive(Serialize)]
struct Figures {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// The JSON document, which ends with a newline.
pub fn json(plan: &Plan, run: &Run) -> String {
    let tally = &run.tally;
    let figures = |of: Option<Percentiles>| {
        of.map(|of| Figures {
            p50: micros(of.p50),
            p90: micros(of.p90),
            p99: micros(of.p99),
            p999: micros(of.p999),
            max: micros(of.max),
        })
    };
    document(&Document {
        command: match plan.until {
            Until::Requests(_) => "multiple",
            Until::Elapsed(_) => "load",
        },
        target: plan.target.to_string(),
        clients: plan.clients,
        payload_bytes: plan.size,
        connections_kept: plan.connections == Connections::Kept,
        rate_limit: plan.rate,
        elapsed_us: micros(run.elapsed),
        requests: tally.requests,
        answered: tally.answered,
        not_sent: tally.not_sent,
        requests_per_second: per(tally.answered, run.elapsed.as_secs_f64()) as f64,
        verified_bytes: tally.answered * plan.size,
        connections: tally.connections,
        latency_us: figures(Percentiles::of(&tally.latency)),
        connect_us: figures(Percentiles::of(&tally.connect)),
        faults: tally.faults(),
        faults_by_kind: Kind::ALL
            .iter()
            .map(|kind| (key(*kind), tally.faults.get(kind).map_or(0, |faults| faults.count)))
            .collect(),
        first_faults: tally.faults.iter().map(|(kind, faults)| (key(*kind), faults.first.clone())).collect(),
        ok: tally.verdict() == Verdict::Right,
    })
}

/// Any document, indented, with a newline at its end.
pub fn document(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("structs with string keys are JSON") + "\n"
}

/// A kind as a key of JSON.
pub fn key(kind: Kind) -> String {
    kind.name().replace(' ', "_")
}

/// Microseconds, with three digits after the point at most.
pub fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Three digits and the unit that suits them: `812 µs`, `1.24 ms`, `20.0 s`.
pub fn human(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    let (value, unit) = match nanos {
        ..999.5 => return format!("{nanos:.0} ns"),
        ..999.5e3 => (nanos / 1e3, "µs"),
        ..999.5e6 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with a unit: `64 B`, `1.50 MiB`.
pub fn amount(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.2} {unit}") }
}

fn per(count: u64, seconds: f64) -> u64 {
    if seconds > 0.0 { (count as f64 / seconds).round() as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::fault::Fault;
    use crate::verdict::Tally;

    fn plan() -> Plan {
        Plan {
            target: "127.0.0.1:8080".parse().unwrap(),
            clients: 2,
            size: 64,
            timeout: Duration::from_secs(5),
            connections: Connections::Kept,
            until: Until::Elapsed(Duration::from_secs(2)),
            rate: None,
        }
    }

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        for (nanos, shown) in [
            (1, "1 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (812_345, "812 µs"),
            (999_600, "1.00 ms"),
            (1_240_000, "1.24 ms"),
            (999_499_999, "999 ms"),
            (20_000_000_000, "20.0 s"),
            (3_600_000_000_000, "3600 s"),
        ] {
            assert_eq!(human(Duration::from_nanos(nanos)), shown);
        }
    }

    #[test]
    fn numbers_and_amounts_are_readable() {
        for (number, shown) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), shown);
        }
        for (bytes, shown) in [(64, "64 B"), (1_024, "1.00 KiB"), (1_572_864, "1.50 MiB"), (u64::MAX, "16.00 EiB")] {
            assert_eq!(amount(bytes), shown);
        }
    }

    #[test]
    fn the_text_aligns_percentiles_under_their_names() {
        let mut tally = Tally::new();
        let due = Instant::now();
        tally.requests = 3;
        tally.connected(Duration::from_micros(30));
        tally.answered(due, due + Duration::from_micros(812));
        tally.answered(due, due + Duration::from_secs(12));
        tally.failed(&Fault::closed_early(3, 64), 1, 9);
        let text = text(&plan(), &Run { tally, elapsed: Duration::from_secs(2) });
        let ends = |word: &str| {
            let line = text.lines().find(|line| line.trim_start().starts_with(word)).unwrap();
            line.chars().count()
        };
        assert_eq!(ends("p50"), ends("latency"), "{text}");
        assert_eq!(ends("p50"), ends("connect "), "{text}");
        assert!(
            text.contains("closed early                1  first: client 1, request 9: closed after 3 of 64 bytes"),
            "{text}"
        );
        assert!(text.ends_with("wrong: 1 answer was wrong, short or missing\n"), "{text}");
    }

    #[test]
    fn the_document_has_every_key_even_when_nothing_happened() {
        let run = Run { tally: Tally::new(), elapsed: Duration::ZERO };
        let document: serde_json::Value = serde_json::from_str(&json(&plan(), &run)).unwrap();
        assert_eq!(document["faults_by_kind"].as_object().unwrap().len(), Kind::ALL.len());
        assert_eq!(document["ok"], false);
        assert!(document.as_object().unwrap().contains_key("latency_us"));
    }
}
