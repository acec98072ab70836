//! The proof that everything turns, for a service manager that watches: each worker is asked to turn, and only when all
//! have, and this very loop with them, is the manager told. One that hangs keeps it from being told.

use std::time::{Duration, Instant};

use super::{Stage, Supervisor};
use crate::daemon::action::{Action, Notice};
use crate::daemon::event::Now;

/// How often, at least, in a drain: systemd waits for signs of life then.
const DRAINING: Duration = Duration::from_secs(1);

/// How far the asking has come.
#[derive(Debug)]
pub struct Pulse {
    /// When the workers were asked last.
    asked_at: Instant,
    /// How often they were asked so far.
    asked: u64,
    /// The last time that all of them have answered.
    turned: u64,
}

impl Pulse {
    pub(super) fn new(now: Now) -> Self {
        Self { asked_at: now.at, asked: 0, turned: 0 }
    }
}

impl Supervisor {
    /// When they are to be asked again; never while an answer is outstanding.
    pub(super) fn next_pulse(&self) -> Option<Instant> {
        let Pulse { asked_at, asked, turned } = self.pulse;
        let every = self.facts.pulse.filter(|_| asked == turned)?;
        let every = if matches!(self.stage, Stage::Draining { .. }) { every.min(DRAINING) } else { every };
        Some(if asked == 0 { asked_at } else { asked_at + every })
    }

    pub(super) fn feel_the_pulse(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.next_pulse().is_some_and(|at| at <= now.at) {
            self.pulse.asked += 1;
            self.pulse.asked_at = now.at;
            out.push(Action::AskTurns(self.pulse.asked));
        }
    }

    pub(super) fn turned(&mut self, number: u64, out: &mut Vec<Action>) {
        if number > self.pulse.turned {
            self.pulse.turned = number;
            out.push(Action::Notify(Notice::Alive));
        }
    }
}
