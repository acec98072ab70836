//! The counters as three tables: listeners, pools, backends. Every cell but the last note is one
//! field; what does not fit a table is in the JSON.

use super::human;
use super::stats::{BackendStats, Counts, ListenerState, ListenerStats, Percentiles, PoolStats, Stats};
use super::table::{Edge, Paper, Sheet, Tone};

use Edge::{Left, Right};

/// A connect that failed longer ago, in seconds, is in the JSON alone.
const RECENT: u64 = 600;

impl Stats {
    /// The tables, each line ended, an empty line between two tables. Tables without rows are left out.
    pub fn text(&self, paper: Paper) -> String {
        let mut tables = Vec::new();
        if !self.listeners.is_empty() {
            tables.push(listeners(&self.listeners).text(paper));
        }
        if !self.pools.is_empty() {
            tables.push(pools(&self.pools).text(paper));
            tables.push(backends(&self.pools).text(paper));
        }
        tables.join("\n")
    }
}

fn listeners(all: &[ListenerStats]) -> Sheet {
    let mut sheet = Sheet::new(&[
        ("LISTENER", Left),
        ("STATE", Left),
        ("ADDRESS", Left),
        ("POOL", Left),
        ("ACTIVE", Right),
        ("TOTAL", Right),
        ("IN", Right),
        ("OUT", Right),
        ("RETRIES", Right),
        ("SESSION-P50/99", Right),
        ("REFUSED", Left),
        ("ENDED", Left),
        ("NOTE", Left),
    ]);
    for l in all {
        let (tone, state) = match l.state {
            ListenerState::Active if !l.unbound.is_empty() => (Tone::Bad, "active"),
            ListenerState::Active => (Tone::Plain, "active"),
            ListenerState::Leaving => (Tone::Faint, "leaving"),
        };
        sheet.row(
            tone,
            vec![
                l.name.clone(),
                state.into(),
                l.addresses.join(","),
                l.pool.clone(),
                of_limit(l.connections_active, l.max_connections),
                l.connections_total.to_string(),
                human::bytes(l.bytes_in),
                human::bytes(l.bytes_out),
                l.retries.to_string(),
                half_and_most(&l.session_duration),
                by_cause(&l.refused),
                by_cause(&l.ended),
                note_of(l),
            ],
        );
    }
    sheet
}

fn note_of(listener: &ListenerStats) -> String {
    let full = listener.at_limit.then(|| "at its limit: new clients wait".to_owned());
    let notes: Vec<String> = full.into_iter().chain(listener.unbound.iter().cloned()).collect();
    if notes.is_empty() { "-".into() } else { notes.join("; ") }
}

fn pools(all: &[PoolStats]) -> Sheet {
    let mut sheet = Sheet::new(&[
        ("POOL", Left),
        ("BALANCE", Left),
        ("BACKENDS", Right),
        ("ELIGIBLE", Right),
        ("ACTIVE", Right),
        ("QUEUED", Right),
    ]);
    for p in all {
        let active: u64 = p.backends.iter().map(|b| b.connections_active).sum();
        sheet.row(
            Tone::Plain,
            vec![
                p.name.clone(),
                p.balance.clone(),
                p.backends.len().to_string(),
                p.eligible.to_string(),
                active.to_string(),
                p.queued.to_string(),
            ],
        );
    }
    sheet
}

fn backends(all: &[PoolStats]) -> Sheet {
    let mut sheet = Sheet::new(&[
        ("BACKEND", Left),
        ("STATE", Left),
        ("ADDRESS", Left),
        ("WEIGHT", Right),
        ("SINCE", Right),
        ("ACTIVE", Right),
        ("SPARE", Right),
        ("TOTAL", Right),
        ("IN", Right),
        ("OUT", Right),
        ("ERRORS", Right),
        ("RETRIES", Right),
        ("CONNECT-P50/99", Right),
        ("SESSION-P50/99", Right),
        ("NOTE", Left),
    ]);
    for (pool, b) in all.iter().flat_map(|pool| pool.backends.iter().map(move |b| (pool, b))) {
        sheet.row(
            tone(&b.state),
            vec![
                format!("{}/{}", pool.name, b.name),
                b.state.clone(),
                b.address.clone(),
                b.weight.to_string(),
                human::seconds(b.health_since_seconds),
                of_limit(b.connections_active, b.max_connections),
                b.connections_spare.to_string(),
                b.connections_total.to_string(),
                human::bytes(b.bytes_in),
                human::bytes(b.bytes_out),
                b.connect_errors.to_string(),
                b.retries.to_string(),
                half_and_most(&b.connect_time),
                half_and_most(&b.session_duration),
                note(b),
            ],
        );
    }
    sheet
}

fn tone(state: &str) -> Tone {
    match state {
        "up" | "unchecked" => Tone::Plain,
        "down" => Tone::Bad,
        "unproven" | "draining" => Tone::Warn,
        _ => Tone::Faint,
    }
}

fn of_limit(active: u64, limit: Option<u32>) -> String {
    limit.map_or_else(|| active.to_string(), |limit| format!("{active}/{limit}"))
}

/// `120us/1.2ms`: what half and what 99 of 100 took at most. Empty where nothing was measured.
fn half_and_most(times: &Percentiles) -> String {
    match times.count {
        0 => String::new(),
        _ => format!("{}/{}", human::micros(times.p50_us), human::micros(times.p99_us)),
    }
}

/// `limit:2,no_backend:10`; empty where nothing was counted.
fn by_cause(counts: &Counts) -> String {
    let counted: Vec<_> = counts.iter().filter(|(_, n)| **n > 0).map(|(cause, n)| format!("{cause}:{n}")).collect();
    counted.join(",")
}

/// What a reader asks next of a backend that is not simply up.
fn note(b: &BackendStats) -> String {
    let mut said = Vec::new();
    if b.backup {
        said.push("backup".to_owned());
    }
    // The state of a draining or disabled backend hides its health.
    if b.health == "down" {
        let reason = b.health_reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        said.push(format!("down{reason}"));
    }
    if let (Some(error), Some(ago)) =
        (&b.last_connect_error, b.last_connect_error_seconds_ago.filter(|ago| *ago < RECENT))
    {
        said.push(format!("connect failed {} ago: {error}", human::seconds(ago)));
    }
    if let Some(by) = &b.override_by {
        let reason = b.override_reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let ends = b.override_ends_in_seconds.map_or_else(String::new, |s| format!(" ({} left)", human::seconds(s)));
        said.push(format!("{} by {by}{ends}{reason}", b.admin));
    }
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::table::Colour;
    use super::*;

    fn backend(name: &str, state: &str, health: &str) -> BackendStats {
        BackendStats {
            name: name.into(),
            address: "127.0.0.1:9001".into(),
            weight: 1,
            backup: false,
            max_connections: None,
            state: state.into(),
            health: health.into(),
            health_since_seconds: 61,
            health_reason: None,
            admin: "enabled".into(),
            override_by: None,
            override_reason: None,
            override_ends_in_seconds: None,
            connections_active: 3,
            connections_spare: 2,
            connections_total: 600,
            bytes_in: 1024,
            bytes_out: 2048,
            connect_errors: 0,
            last_connect_error: None,
            last_connect_error_seconds_ago: None,
            retries: 0,
            probes_ok: 4,
            probes_failed: 0,
            connect_time: Percentiles::default(),
            session_duration: Percentiles::default(),
        }
    }

    fn stats() -> Stats {
        let times = Percentiles { count: 9, p50_us: 120, p90_us: 300, p99_us: 1_200, p999_us: 5_000, max_us: 9_000 };
        let up = BackendStats { connect_time: times, max_connections: Some(500), ..backend("b1", "up", "up") };
        let down = BackendStats {
            health_reason: Some("connection refused".into()),
            last_connect_error: Some("Connection refused".into()),
            last_connect_error_seconds_ago: Some(3),
            ..backend("b2", "down", "down")
        };
        let drained = BackendStats {
            backup: true,
            admin: "draining".into(),
            override_by: Some("root".into()),
            override_reason: Some("kernel update".into()),
            override_ends_in_seconds: Some(7_200),
            ..backend("b3", "drained", "up")
        };
        let listener = ListenerStats {
            name: "front".into(),
            addresses: vec!["0.0.0.0:80".into(), "[::]:80".into()],
            pool: "web".into(),
            state: ListenerState::Active,
            max_connections: None,
            connections_active: 9,
            connections_total: 1800,
            bytes_in: 3072,
            bytes_out: 6144,
            refused: [("limit".to_owned(), 2), ("no_backend".to_owned(), 10), ("queue_full".to_owned(), 0)].into(),
            ended: Counts::new(),
            retries: 1,
            at_limit: false,
            unbound: Vec::new(),
            session_duration: times,
        };
        let pool = PoolStats {
            name: "web".into(),
            balance: "round_robin".into(),
            eligible: 1,
            queued: 4,
            backends: vec![up, down, drained],
        };
        Stats { generation: 3, listeners: vec![listener], pools: vec![pool] }
    }

    #[test]
    fn each_table_has_its_columns_and_rows() {
        let text = stats().text(Paper::Pipe).replace('\t', " ");
        let tables: Vec<Vec<&str>> = text.split("\n\n").map(|table| table.lines().collect()).collect();
        assert_eq!(
            tables[0][1],
            "front active 0.0.0.0:80,[::]:80 web 9 1800 3.0KiB 6.0KiB 1 120us/1.2ms limit:2,no_backend:10 - -"
        );
        assert_eq!(tables[1], ["POOL BALANCE BACKENDS ELIGIBLE ACTIVE QUEUED", "web round_robin 3 1 9 4"]);
        assert_eq!(
            tables[2][1..],
            [
                "web/b1 up 127.0.0.1:9001 1 1m1s 3/500 2 600 1.0KiB 2.0KiB 0 0 120us/1.2ms - -",
                "web/b2 down 127.0.0.1:9001 1 1m1s 3 2 600 1.0KiB 2.0KiB 0 0 - - \
             down: connection refused; connect failed 3s ago: Connection refused",
                "web/b3 drained 127.0.0.1:9001 1 1m1s 3 2 600 1.0KiB 2.0KiB 0 0 - - \
             backup; draining by root (2h left): kernel update",
            ]
        );
    }

    #[test]
    fn a_listener_says_that_clients_wait_or_cannot_come_in() {
        let mut full = stats();
        (full.listeners[0].at_limit, full.listeners[0].max_connections) = (true, Some(9));
        full.listeners[0].unbound.push("0.0.0.0:80 is in use".into());
        let text = full.text(Paper::Pipe);
        let row = text.lines().nth(1).unwrap_or_default();
        assert!(row.contains("\t9/9\t"), "{row}");
        assert!(row.ends_with("\tat its limit: new clients wait; 0.0.0.0:80 is in use"), "{row}");
    }

    #[test]
    fn every_row_has_as_many_fields_as_its_heading() {
        for table in stats().text(Paper::Pipe).split("\n\n") {
            let fields: Vec<usize> = table.lines().map(|line| line.split('\t').count()).collect();
            assert!(fields.windows(2).all(|two| two[0] == two[1]), "{fields:?} in\n{table}");
        }
    }

    #[test]
    fn a_backend_that_does_not_serve_stands_out() {
        let text = stats().text(Paper::Terminal(Colour::On));
        let line = |name: &str| text.lines().find(|l| l.contains(name)).unwrap_or_default().to_owned();
        assert!(!line("web/b1").contains('\u{1b}'));
        assert!(line("web/b2").starts_with("\u{1b}[31m"));
        assert!(line("web/b3").starts_with("\u{1b}[2m"));
    }

    #[test]
    fn a_pool_without_listeners_is_shown_alone() {
        let text = Stats { listeners: Vec::new(), ..stats() }.text(Paper::Pipe);
        assert!(text.starts_with("POOL\t"), "{text}");
    }

    #[test]
    fn its_json_is_read_back() {
        let json = super::super::json::compact(&stats());
        assert_eq!(super::super::json::read::<Stats>(json.as_bytes()).ok(), Some(stats()));
    }
}
