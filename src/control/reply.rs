//! What the daemon answers, and how it travels: an HTTP status and one JSON document. Which answer
//! a request gets is the supervisor's to decide.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::observe::json::{self, JsonError};
use crate::observe::{Paper, Stats, Status};

/// One answer. The key `answer` of its JSON tells which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Reply {
    /// To [`super::Request::Status`].
    Status(Box<Status>),
    /// To [`super::Request::Stats`].
    Stats(Stats),
    /// The file is in force.
    Reloaded {
        /// The generation in force.
        generation: u64,
        /// Whether that changed anything.
        outcome: ReloadOutcome,
        /// What changed, a line each.
        changed: Vec<String>,
        /// What the operator should know of it, such as keys that take effect at restart, a line each.
        notes: Vec<String>,
    },
    /// Every worker has taken an operator's change.
    Changed {
        /// The generation in force.
        generation: u64,
        /// What changed, a line each.
        lines: Vec<String>,
    },
    /// The last session of a drained backend has ended.
    Drained {
        /// The generation in force.
        generation: u64,
        /// The backends, as `pool/backend`.
        backends: Vec<String>,
        /// What the operator should know of it, a line each.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    /// Another program has taken over, and this is its answer.
    Upgraded {
        /// The version that served before.
        from: String,
        /// The version that serves now.
        to: String,
        /// Upgrades in place since the process was started, this one included.
        upgrades: u64,
        /// Sessions that were carried over.
        sessions: u64,
        /// The longest time for which established sessions were not served, in microseconds.
        pause_us: u64,
        /// For how long new clients had to wait, in microseconds.
        #[serde(default)]
        wait_us: u64,
        /// Why established sessions had to be cut, where they had to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost: Option<String>,
    },
    /// A program can take over; nothing was done.
    Upgradable {
        /// The version that serves.
        from: String,
        /// The version that would.
        to: String,
        /// Where the program is.
        program: String,
        /// What would be carried over, a line each.
        carried: Vec<String>,
        /// What would not, a line each.
        left: Vec<String>,
    },
    /// The daemon is about to stop.
    Stopping {
        /// Live sessions.
        sessions: u64,
    },
    /// Nothing was changed.
    Refused {
        /// Why, and how to mend it.
        message: String,
        /// What is wrong with the file, where the file is why.
        problems: Vec<ProblemLine>,
    },
    /// What was waited for did not come in time; what was changed stays changed.
    TimedOut {
        /// What was waited for.
        message: String,
        /// Sessions left.
        left: u64,
    },
}

/// Whether a reload changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadOutcome {
    /// A new generation is in force.
    Applied,
    /// The file says what is in force already.
    Unchanged,
}

/// One thing wrong with a file, shown as `FILE:LINE:COL: path: message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemLine {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: u32,
    /// Its column, from 1.
    pub column: u32,
    /// The key, as `pools.web.balance`; empty where no key is concerned.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for ProblemLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl Reply {
    /// A refusal that has nothing to do with the file.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), problems: Vec::new() }
    }

    /// What `lbctl` exits with: 0 done, 1 refused, 4 timed out.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } => 1,
            Self::TimedOut { .. } => 4,
            _ => 0,
        }
    }

    /// The HTTP status it travels under, for those who use `curl --fail`.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Refused { .. } => 409,
            Self::TimedOut { .. } => 504,
            _ => 200,
        }
    }

    /// The document it travels as.
    pub fn to_json(&self) -> String {
        json::compact(self)
    }

    /// Reads the document back.
    pub fn from_json(text: &[u8]) -> Result<Self, JsonError> {
        json::read(text)
    }

    /// What is wrong with the file, where that is why a reload was refused.
    pub fn problems(&self) -> &[ProblemLine] {
        match self {
            Self::Refused { problems, .. } => problems,
            _ => &[],
        }
    }

    /// What an operator reads, each line ended. Of a refusal it is the reason; the file's problems are apart.
    pub fn text(&self, paper: Paper) -> String {
        match self {
            Self::Status(status) => status.text(paper),
            Self::Stats(stats) => stats.text(paper),
            Self::Reloaded { generation, outcome, changed, notes } => {
                let first = match outcome {
                    ReloadOutcome::Applied => format!("generation {generation} is in force"),
                    ReloadOutcome::Unchanged => format!("nothing has changed; generation {generation} stays in force"),
                };
                let changed = changed.iter().map(|line| format!("  {line}"));
                let notes = notes.iter().map(|line| format!("  note: {line}"));
                lines(std::iter::once(first).chain(changed).chain(notes))
            }
            Self::Changed { lines: all, .. } => lines(all.iter().cloned()),
            Self::Drained { backends, notes, .. } => {
                let drained = backends.iter().map(|backend| format!("{backend} is drained; no session is left"));
                lines(drained.chain(notes.iter().cloned()))
            }
            Self::Upgraded { from, to, sessions, pause_us, wait_us, lost, .. } => {
                let (pause, wait) = (millis(*pause_us), millis(*wait_us));
                lines([match lost {
                    None => format!(
                        "lbd {from} -> {to}; sessions carried over: {sessions}; they paused for {pause}, new clients waited for {wait}"
                    ),
                    Some(why) => format!("lbd {from} -> {to}; sessions carried over: {sessions}, but {why}"),
                }])
            }
            Self::Upgradable { from, to, program, carried, left } => {
                let first = format!("{program} can take over: lbd {from} -> {to}");
                let carried = carried.iter().map(|line| format!("  carried over: {line}"));
                let left = left.iter().map(|line| format!("  not carried over: {line}"));
                lines(std::iter::once(first).chain(carried).chain(left))
            }
            Self::Stopping { sessions: 0 } => lines(["stopping".to_owned()]),
            Self::Stopping { sessions } => lines([format!("stopping; sessions left: {sessions}")]),
            Self::Refused { message, .. } => lines([message.clone()]),
            Self::TimedOut { message, left } => lines([format!("{message}; sessions left: {left}")]),
        }
    }
}

fn lines(all: impl IntoIterator<Item = String>) -> String {
    all.into_iter().map(|line| line + "\n").collect()
}

fn millis(micros: u64) -> String {
    format!("{}.{} ms", micros / 1000, micros % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &str) -> ProblemLine {
        let (file, message) = ("lbd.yaml".to_owned(), "is empty".to_owned());
        ProblemLine { file, line: 3, column: 5, path: path.into(), message }
    }

    #[test]
    fn each_answer_is_read_back_and_has_its_codes() {
        let changed = vec!["pool web: backend b2 added".to_owned()];
        for (reply, tag, exit, http) in [
            (Reply::Stats(Stats::default()), "stats", 0, 200),
            (
                Reply::Reloaded { generation: 2, outcome: ReloadOutcome::Applied, changed, notes: vec![] },
                "reloaded",
                0,
                200,
            ),
            (Reply::Changed { generation: 2, lines: vec!["a".into()] }, "changed", 0, 200),
            (Reply::Drained { generation: 2, backends: vec!["web/b1".into()], notes: vec![] }, "drained", 0, 200),
            (
                Reply::Upgraded {
                    from: "0.1.0".into(),
                    to: "0.2.0".into(),
                    upgrades: 1,
                    sessions: 2,
                    pause_us: 321,
                    wait_us: 3210,
                    lost: None,
                },
                "upgraded",
                0,
                200,
            ),
            (Reply::Stopping { sessions: 1 }, "stopping", 0, 200),
            (Reply::Refused { message: "no".into(), problems: vec![problem("pools")] }, "refused", 1, 409),
            (Reply::TimedOut { message: "late".into(), left: 3 }, "timed_out", 4, 504),
        ] {
            let json = reply.to_json();
            assert!(json.starts_with(&format!(r#"{{"answer":"{tag}""#)), "{json}");
            assert_eq!(Reply::from_json(json.as_bytes()).ok().as_ref(), Some(&reply));
            assert_eq!((reply.exit_code(), reply.http_status()), (exit, http), "{tag}");
        }
    }

    #[test]
    fn what_an_operator_reads() {
        let applied = Reply::Reloaded {
            generation: 2,
            outcome: ReloadOutcome::Applied,
            changed: vec!["b2 added".into()],
            notes: vec!["process.workers takes effect at restart".into()],
        };
        let refused = Reply::Refused { message: "nothing was changed".into(), problems: vec![problem("pools")] };
        for (reply, text) in [
            (applied, "generation 2 is in force\n  b2 added\n  note: process.workers takes effect at restart\n"),
            (refused, "nothing was changed\n"),
            (
                Reply::TimedOut { message: "web/b1 is draining".into(), left: 3 },
                "web/b1 is draining; sessions left: 3\n",
            ),
        ] {
            assert_eq!(reply.text(Paper::Pipe), text);
        }
    }

    #[test]
    fn a_problem_is_one_line_that_an_editor_can_follow() {
        assert_eq!(problem("pools").to_string(), "lbd.yaml:3:5: pools: is empty");
        assert_eq!(problem("").to_string(), "lbd.yaml:3:5: is empty");
    }
}
