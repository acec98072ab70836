//! The file is read on a thread that a file system or a name service may keep for as long as they like. A reload that has waited
//! long enough is refused; what comes later is dropped, for the file may have changed again and who asked was told no. Where nobody
//! could be told (the watcher, SIGHUP), the file is read anew as soon as it can be.

use std::time::{Duration, Instant};

use super::{Reload, Supervisor};
use crate::control::Reply;
use crate::daemon::action::Action;
use crate::daemon::event::{Now, ReloadBy};

/// How long a reload waits for the file.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of the thread that reads.
#[derive(Debug, Default)]
pub struct Reading {
    /// It is at work.
    under_way: bool,
    /// For a reload that was given up.
    late: bool,
    /// Who wanted the file read meanwhile and cannot be told that it was not.
    owed: Option<ReloadBy>,
}

impl Supervisor {
    /// Has the file read for the reload under way; where the thread is still kept by a former one, when it is free.
    pub(super) fn read_file(&mut self, out: &mut Vec<Action>) {
        if !self.reading.under_way {
            self.reading.under_way = true;
            out.push(Action::ReadConfig);
        }
    }

    /// What is read is for the reload under way.
    pub(super) fn has_read(&mut self) {
        self.reading = Reading::default();
    }

    /// What was given up has come to an end.
    pub(super) fn late_read_is_over(&mut self, now: Now, out: &mut Vec<Action>) {
        let Reading { owed, .. } = std::mem::take(&mut self.reading);
        if self.is_waiting_for_file() {
            self.read_file(out);
        } else if let Some(by) = owed {
            self.reload_asked(by, now, out);
        }
    }

    /// When the reload under way is to be given up. That of the start has its file.
    pub(super) fn gives_up_reading_at(&self) -> Option<Instant> {
        self.reload.as_ref().filter(|_| self.is_waiting_for_file()).map(|reload| reload.asked_at + PATIENCE)
    }

    fn is_waiting_for_file(&self) -> bool {
        self.reload.as_ref().is_some_and(|reload| reload.config.is_none() && reload.by != ReloadBy::Start)
    }

    /// Refuses a reload that has waited too long, and with it those that wait for it.
    pub(super) fn give_up_reading(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.gives_up_reading_at().is_none_or(|at| at > now.at) {
            return;
        }
        if self.reading.under_way && !std::mem::replace(&mut self.reading.late, true) {
            out.push(Action::ForgetRead);
        }
        let why = format!(
            "{} could not be read within {} s: its file system, or the name service that is asked for control.group, does not \
             answer; what is in force stays",
            self.facts.config_path.as_deref().unwrap_or("the file"),
            PATIENCE.as_secs()
        );
        let others = std::mem::take(&mut self.next_reload);
        for by in self.reload.iter().map(|reload| reload.by).chain(others.iter().copied()) {
            if !matches!(by, ReloadBy::Operator(_)) {
                self.reading.owed = Some(by);
            }
        }
        for by in others {
            if let ReloadBy::Operator(ask) = by {
                out.push(Action::Answer(ask, Reply::refused(why.clone())));
            }
        }
        self.refuse_reload(&why, Vec::new(), now, out);
    }

    /// Reloads that a successor is to make in this program's place: the one under way, those that wait, and what is owed.
    pub(super) fn unfinished_reloads(&self) -> impl Iterator<Item = ReloadBy> {
        let under_way = self.reload.iter().map(|Reload { by, .. }| *by);
        under_way.chain(self.next_reload.iter().copied()).chain(self.reading.owed)
    }
}
