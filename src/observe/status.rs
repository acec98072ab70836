//! The daemon at a glance: what runs, since when, and how the last change of configuration went.
//! Times are given, never read here.

use serde::{Deserialize, Serialize};

use super::human;
use super::table::{Paper, Sheet, Tone};

/// What `lbctl status` answers. Its JSON is a promise: keys are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Whether it serves or is about to stop.
    pub state: RunState,
    /// Whole seconds until the sessions that are left are cut; only while it stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_in_seconds: Option<u64>,
    /// The number of the snapshot in force.
    pub generation: u64,
    /// Whole seconds since it began to serve.
    pub uptime_seconds: u64,
    /// Worker threads.
    pub workers: u32,
    /// The configuration file; `None` where there is none (`--demo`).
    pub config_path: Option<String>,
    /// The last attempt to change the configuration; `None` before the first.
    pub last_reload: Option<LastReload>,
    /// Enabled backends that are up, as their checks say.
    pub backends_up: u64,
    /// Enabled backends of pools without a check: nobody knows whether they are.
    #[serde(default)]
    pub backends_unchecked: u64,
    /// All backends of the snapshot in force.
    pub backends_total: u64,
    /// Live sessions.
    pub sessions: u64,
    /// How often another program has taken over in place.
    #[serde(default)]
    pub upgrades: u64,
    /// What the operator should look at, a line each.
    pub warnings: Vec<String>,
}

/// Whether the daemon serves or is about to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Clients are accepted.
    Running,
    /// It accepts no more, and stops when its sessions have ended.
    Draining,
}

/// How the last attempt to change the configuration went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// When, in RFC 3339.
    pub at: String,
    /// Whole seconds between then and the making of this document.
    pub seconds_ago: u64,
    /// Who asked.
    pub by: ReloadAsker,
    /// What came of it.
    pub result: ReloadResult,
    /// The generation in force after it.
    pub generation: u64,
    /// Why it was refused, a line each; empty otherwise.
    pub problems: Vec<String>,
}

/// Who asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadAsker {
    /// The start: its file was refused, and what was last in force serves.
    Start,
    /// The file watcher.
    Watcher,
    /// SIGHUP.
    Signal,
    /// `lbctl reload`.
    Control,
}

/// What came of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadResult {
    /// A new generation is in force.
    Applied,
    /// The file says what is in force already.
    Unchanged,
    /// The file is wrong, or may not be applied; nothing changed.
    Refused,
}

/// How many backends serve, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackendsUp {
    /// Known to be up.
    pub up: u64,
    /// Of pools without a check.
    pub unchecked: u64,
    /// All.
    pub total: u64,
}

impl BackendsUp {
    /// `2 of 3 up`, `1 of 3 up, 2 unchecked` or `3, unchecked`; `what` stands behind the number of all.
    pub fn said(self, what: &str) -> String {
        match self {
            Self { unchecked, total, .. } if unchecked == total && total > 0 => {
                format!("{total}{}{}, unchecked", if what.is_empty() { "" } else { " " }, what.trim_end())
            }
            Self { up, unchecked: 0, total } => format!("{up} of {total} {what}up"),
            Self { up, unchecked, total } => format!("{up} of {total} {what}up, {unchecked} unchecked"),
        }
    }
}

impl Status {
    /// One screen of text, each line ended.
    pub fn text(&self, paper: Paper) -> String {
        let mut sheet = Sheet::pairs();
        let mut say = |tone, name: &str, value: String| sheet.row(tone, vec![name.into(), value]);

        let upgraded = match self.upgrades {
            0 => String::new(),
            n => format!(" (upgraded in place, {n} so far)"),
        };
        say(Tone::Plain, "version", self.version.clone() + &upgraded);
        say(Tone::Plain, "pid", self.pid.to_string());
        match self.state {
            RunState::Running => say(Tone::Plain, "state", "running".into()),
            RunState::Draining => {
                let left = self
                    .stops_in_seconds
                    .map_or_else(String::new, |s| format!("; sessions have {} left", human::seconds(s)));
                say(Tone::Warn, "state", format!("draining{left}"));
            }
        }
        say(Tone::Plain, "uptime", human::seconds(self.uptime_seconds));
        say(Tone::Plain, "workers", self.workers.to_string());
        say(Tone::Plain, "config", self.config_path.clone().unwrap_or_else(|| "none".into()));
        say(Tone::Plain, "generation", self.generation.to_string());
        match &self.last_reload {
            None => say(Tone::Plain, "last reload", "none yet".into()),
            Some(reload) => {
                let tone = if reload.result == ReloadResult::Refused { Tone::Bad } else { Tone::Plain };
                say(tone, "last reload", reload.line());
                reload.problems.iter().for_each(|problem| say(tone, "problem", problem.clone()));
            }
        }
        let backends =
            BackendsUp { up: self.backends_up, unchecked: self.backends_unchecked, total: self.backends_total };
        let tone = match (backends.up + backends.unchecked, backends.total) {
            (0, 1..) => Tone::Bad,
            (up, total) if up < total => Tone::Warn,
            _ => Tone::Plain,
        };
        say(tone, "backends", backends.said(""));
        say(Tone::Plain, "sessions", self.sessions.to_string());
        self.warnings.iter().for_each(|warning| say(Tone::Warn, "warning", warning.clone()));
        sheet.text(paper)
    }
}

impl LastReload {
    fn line(&self) -> String {
        let by = match self.by {
            ReloadAsker::Start => "the start",
            ReloadAsker::Watcher => "the file watcher",
            ReloadAsker::Signal => "SIGHUP",
            ReloadAsker::Control => "lbctl",
        };
        let came_of_it = match self.result {
            ReloadResult::Applied => format!("applied as generation {}", self.generation),
            ReloadResult::Unchanged => "nothing had changed".into(),
            ReloadResult::Refused => format!("refused, generation {} stays in force", self.generation),
        };
        format!("{came_of_it}; asked by {by} {} ago, {}", human::seconds(self.seconds_ago), self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Colour;
    use super::*;

    fn status() -> Status {
        Status {
            version: "0.1.0".into(),
            pid: 42,
            state: RunState::Running,
            stops_in_seconds: None,
            generation: 7,
            uptime_seconds: 200,
            workers: 2,
            config_path: Some("/etc/lbd/lbd.yaml".into()),
            last_reload: Some(LastReload {
                at: "2026-01-02T03:04:05Z".into(),
                seconds_ago: 61,
                by: ReloadAsker::Control,
                result: ReloadResult::Refused,
                generation: 7,
                problems: vec!["/etc/lbd/lbd.yaml:3:5: pools: empty".into()],
            }),
            backends_up: 2,
            backends_unchecked: 0,
            backends_total: 3,
            sessions: 12,
            upgrades: 0,
            warnings: vec!["process.workers takes effect at restart".into()],
        }
    }

    #[test]
    fn status_says_what_runs_and_how_the_last_reload_went() {
        let text = status().text(Paper::Terminal(Colour::Off));
        for line in [
            "version      0.1.0",
            "uptime       3m20s",
            "generation   7",
            "last reload  refused, generation 7 stays in force; asked by lbctl 1m1s ago, 2026-01-02T03:04:05Z",
            "problem      /etc/lbd/lbd.yaml:3:5: pools: empty",
            "backends     2 of 3 up",
            "warning      process.workers takes effect at restart",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn nobody_is_called_up_who_is_not_checked() {
        for (up, unchecked, total, said, in_a_line) in [
            (2, 0, 3, "2 of 3 up", "2 of 3 backends up"),
            (1, 2, 4, "1 of 4 up, 2 unchecked", "1 of 4 backends up, 2 unchecked"),
            (0, 2, 2, "2, unchecked", "2 backends, unchecked"),
            (0, 0, 0, "0 of 0 up", "0 of 0 backends up"),
        ] {
            let backends = BackendsUp { up, unchecked, total };
            assert_eq!((backends.said("").as_str(), backends.said("backends ").as_str()), (said, in_a_line));
        }
    }

    #[test]
    fn who_stops_says_for_how_long_sessions_may_go_on() {
        let text = Status { state: RunState::Draining, stops_in_seconds: Some(90), ..status() }.text(Paper::Pipe);
        assert!(text.contains("draining; sessions have 1m30s left"), "{text}");
    }

    #[test]
    fn who_has_been_upgraded_says_how_often() {
        let text = Status { upgrades: 3, ..status() }.text(Paper::Terminal(Colour::Off));
        assert!(text.contains("0.1.0 (upgraded in place, 3 so far)"), "{text}");
    }

    #[test]
    fn its_json_is_read_back() {
        let json = super::super::json::pretty(&status());
        assert_eq!(super::super::json::read::<Status>(json.as_bytes()).ok(), Some(status()));
        assert!(json.contains(r#""state": "running""#), "{json}");
    }
}
