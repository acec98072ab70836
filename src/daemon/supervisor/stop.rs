//! A graceful stop: let go of the doors, let sessions finish within `drain_timeout`, cut the rest, leave.
//! Asked a second time, it leaves at once. Where the service manager only restarts the daemon, sessions have
//! `restart_drain` instead, and who has not been accepted waits for the successor.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Supervisor;
use crate::control::Reply;
use crate::daemon::action::{Action, Doors, Exit, Notice};
use crate::daemon::event::{Job, Now, Queues};
use crate::proxy::{Sessions, Unaccepted};
use crate::snapshot::Revision;
use crate::words::Happening;

/// How often the remaining sessions are counted.
const LOOK: Duration = Duration::from_millis(50);
/// How often systemd is asked for more time, and for how much: at least twice the interval.
const TELL: Duration = Duration::from_secs(1);
const EXTENSION: Duration = Duration::from_secs(5);
/// How long cut sessions may take to end.
const CUT: Duration = Duration::from_secs(1);

/// How far the daemon's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the first configuration is in force.
    Starting,
    /// Clients are accepted.
    Serving,
    /// They are not, and sessions finish until then.
    Draining {
        /// When the rest is cut.
        until: Instant,
        /// When they are counted again.
        look: Instant,
        /// When systemd is told again.
        tell: Instant,
        /// What it stops for.
        job: Job,
        /// The snapshot with which the workers let go of their doors.
        from: Revision,
    },
    /// The rest was cut.
    Cut {
        /// When it does not matter any more whether they have ended.
        until: Instant,
        /// When they are counted again.
        look: Instant,
    },
}

impl Stage {
    /// True from the first wish to stop on.
    pub fn is_stopping(self) -> bool {
        matches!(self, Stage::Draining { .. } | Stage::Cut { .. })
    }

    /// When the sessions that are left are cut; `None` while it does not stop.
    pub(super) fn ends_by(self) -> Option<Instant> {
        match self {
            Stage::Starting | Stage::Serving => None,
            Stage::Draining { until, .. } | Stage::Cut { until, .. } => Some(until),
        }
    }

    pub(super) fn next_look(self) -> Option<Instant> {
        match self {
            Stage::Starting | Stage::Serving => None,
            Stage::Draining { until, look, tell, .. } => Some(until.min(look).min(tell)),
            Stage::Cut { until, look } => Some(until.min(look)),
        }
    }
}

impl Supervisor {
    pub(super) fn stop_asked(&mut self, now: Now, out: &mut Vec<Action>) {
        match self.stage {
            Stage::Serving if !self.job_asked => {
                self.job_asked = true;
                out.push(Action::AskJob);
            }
            Stage::Serving => self.stop_at_once(now, out),
            Stage::Draining { .. } => self.cut_the_rest("asked to stop at once", now, out),
            Stage::Starting | Stage::Cut { .. } => self.stage = Stage::Cut { until: now.at, look: now.at },
        }
    }

    /// The answer to why. It serves as before until then.
    pub(super) fn job_known(&mut self, job: Job, now: Now, out: &mut Vec<Action>) {
        if self.stage == Stage::Serving {
            self.start_draining(job, now, out);
        }
    }

    /// Without asking why.
    pub(super) fn stop_in_order(&mut self, now: Now, out: &mut Vec<Action>) {
        match self.stage {
            Stage::Serving => self.start_draining(Job::Stop, now, out),
            _ => self.stop_asked(now, out),
        }
    }

    /// The same as asking twice, once.
    pub(super) fn stop_at_once(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.stage == Stage::Serving {
            self.start_draining(Job::Stop, now, out); // a door left open would take clients in, only to be cut
        }
        match self.stage {
            Stage::Cut { .. } => self.stop_asked(now, out),
            _ => self.cut_the_rest("asked to stop at once", now, out),
        }
    }

    fn start_draining(&mut self, job: Job, now: Now, out: &mut Vec<Action>) {
        let (what, timeout) = match (&self.config, job) {
            (None, _) => ("stopping", Duration::ZERO),
            (Some(config), Job::Stop) => ("stopping", config.drain_timeout),
            (Some(config), Job::Restart(_)) => ("stopping for a restart", config.restart_drain),
        };
        info!(
            event = Happening::Stopping.as_str(),
            "{what}; sessions: {}, given at most {} s",
            self.cells.sessions(),
            timeout.as_secs_f32()
        );
        self.abandon_reloads(out);
        let release = std::mem::take(&mut self.bound).into_keys().collect();
        let unaccepted = match job {
            Job::Restart(Queues::Kept) => Unaccepted::Leave,
            Job::Restart(Queues::Lost) | Job::Stop => Unaccepted::Accept,
        };
        self.publish(Doors { release, unaccepted, ..Doors::default() }, out);
        let from = self.revision;
        self.stage = Stage::Draining { until: now.at + timeout, look: now.at, tell: now.at, job, from };
        out.push(Action::Notify(Notice::Stopping(self.status_line())));
    }

    fn cut_the_rest(&mut self, why: &str, now: Now, out: &mut Vec<Action>) {
        let sessions = self.cells.sessions();
        if sessions > 0 {
            warn!(event = Happening::SessionsCut.as_str(), "{why}; sessions cut: {sessions}");
        }
        out.push(Action::Cut(Sessions::All));
        self.stage = Stage::Cut { until: now.at + CUT, look: now.at + LOOK };
    }

    pub(super) fn go_on_stopping(&mut self, now: Now, out: &mut Vec<Action>) {
        let sessions = self.cells.sessions();
        match &mut self.stage {
            // Clients may have come up to the moment the last worker let go of its doors.
            Stage::Draining { from, .. } if sessions == 0 && self.acknowledged >= *from => {
                info!("every session has ended");
                self.leave(out);
            }
            Stage::Draining { until, job, .. } if *until <= now.at => {
                let over = match job {
                    Job::Stop => "drain_timeout is over",
                    Job::Restart(_) => "restart_drain is over",
                };
                self.cut_the_rest(over, now, out);
            }
            Stage::Draining { look, tell, .. } => {
                let told = *tell <= now.at;
                if told {
                    *tell = now.at + TELL;
                }
                if *look <= now.at {
                    *look = now.at + LOOK;
                }
                if told {
                    out.push(Action::Notify(Notice::Extend(EXTENSION, self.status_line())));
                }
            }
            Stage::Cut { until, .. } if sessions == 0 || *until <= now.at => self.leave(out),
            Stage::Cut { look, .. } if *look <= now.at => *look = now.at + LOOK,
            Stage::Starting | Stage::Serving | Stage::Cut { .. } => {}
        }
    }

    /// Leaves nobody without an answer.
    fn leave(&mut self, out: &mut Vec<Action>) {
        self.abandon_reloads(out);
        self.abandon_upgrade(out);
        let left = self.cells.sessions();
        for waiting in self.waiting.drain(..) {
            let message = "lbd stopped before it was done".to_owned();
            out.push(Action::Answer(waiting.ask, Reply::TimedOut { message, left }));
        }
        out.push(Action::Exit(Exit::Stopped));
    }
}
