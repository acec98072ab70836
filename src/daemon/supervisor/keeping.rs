//! What operators decide outlives the process: it is handed out to be written down at each change, and taken up again at
//! the start. What is left of their time is written down with them: how much has passed until the start, and how that can be known where
//! the wall clock was wrong, is `daemon::clock`'s. For the sake of a later boot all is written anew when the wall clock has jumped.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::info;

use super::{Override, Supervisor};
use crate::control::Reply;
use crate::daemon::action::Action;
use crate::daemon::event::{BackendKey, Decision, Now};
use crate::words::Happening;

/// How a line of an answer ends where what it tells of is kept.
pub const KEPT: &str = "; kept over restarts";

/// How far the wall clock may be from where it should be, before it is said to have jumped.
const JUMP: Duration = Duration::from_secs(2);

/// What was decided before the start, less what has come to its end since.
pub fn recalled(decided: Vec<Decision>, now: Now) -> BTreeMap<BackendKey, Override> {
    let mut overrides = BTreeMap::new();
    for Decision { backend, admin, by, reason, since, left } in decided {
        let (pool, name) = (backend.0.pool.to_string(), backend.0.backend.to_string());
        if left.is_some_and(|left| left.is_zero()) {
            info!(
                event = Happening::OverrideEnded.as_str(),
                pool,
                backend = name,
                "{admin} -> enabled: its time was over before the start"
            );
            continue;
        }
        info!(
            event = Happening::Override.as_str(),
            pool,
            backend = name,
            by,
            reason = reason.as_deref().unwrap_or("-"),
            "{admin}, as before the start"
        );
        overrides.insert(
            backend,
            Override { admin, by, reason, since, drained: false, until: left.map(|left| now.at + left) },
        );
    }
    overrides
}

impl Supervisor {
    /// Has the overrides written down as they are now.
    pub(super) fn keep_overrides(&mut self, now: Now, out: &mut Vec<Action>) {
        if !self.facts.keeps {
            return;
        }
        self.keeping += 1;
        let decision = |(backend, o): (&BackendKey, &Override)| Decision {
            backend: backend.clone(),
            admin: o.admin,
            by: o.by.clone(),
            reason: o.reason.clone(),
            since: o.since,
            left: o.until.map(|until| until.saturating_duration_since(now.at)),
        };
        out.push(Action::Keep(self.keeping, self.overrides.iter().map(decision).collect()));
    }

    /// Sees to it that what is written down can be relied upon at the next boot, when only the wall clock tells how much time has passed.
    pub(super) fn follow_the_wall_clock(&mut self, now: Now, out: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.clocks, now);
        let expected = before.wall + now.at.saturating_duration_since(before.at);
        let off = now.wall.duration_since(expected).unwrap_or_else(|behind| behind.duration());
        if off > JUMP && self.overrides.values().any(|o| o.until.is_some()) {
            self.keep_overrides(now, out);
        }
    }

    /// An answer, with a word of warning where what it tells of is not written down.
    pub(super) fn with_what_was_kept(&self, mut reply: Reply, number: u64) -> Reply {
        let why = match &self.kept {
            (kept, Ok(())) if *kept >= number => return reply,
            (kept, Err(why)) if *kept >= number => why.as_str(),
            _ => "the disk does not answer",
        };
        let note = format!("it is in force, but will not survive a restart of lbd: {why}");
        match &mut reply {
            Reply::Changed { lines, .. } => {
                lines.iter_mut().for_each(|line| line.truncate(line.strip_suffix(KEPT).unwrap_or(line).len()));
                lines.push(note);
            }
            Reply::Drained { notes, .. } => notes.push(note),
            Reply::TimedOut { message, .. } => *message = format!("{message}; {note}"),
            _ => {}
        }
        reply
    }
}
