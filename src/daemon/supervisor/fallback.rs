//! A start whose file is invalid, or cannot be put in force: the one that was last in force is kept, and serves until the file is valid.
//! An old configuration serves more clients than none.

use tracing::{error, info};

use super::Supervisor;
use crate::daemon::action::Action;
use crate::daemon::event::{Now, ReloadBy};
use crate::observe::ReloadResult;
use crate::words::Happening;

impl Supervisor {
    /// Takes the kept file at the start, in place of one that is refused for this reason.
    pub(super) fn fall_back(&mut self, why: &str, problems: Vec<String>, now: Now, out: &mut Vec<Action>) {
        error!(
            event = Happening::Fallback.as_str(),
            "the file is not in force: {why}; lbd serves by what was last in force until the file is corrected"
        );
        problems.iter().for_each(|line| error!(event = Happening::Fallback.as_str(), "{line}"));
        self.fallback = Some(why.to_owned());
        self.note_reload(
            ReloadBy::Start,
            ReloadResult::Refused,
            if problems.is_empty() { vec![why.to_owned()] } else { problems },
            now,
        );
        out.push(Action::ReadKept);
    }

    /// What is put in force now is the file's, where it is not the start that does so; returns whether that is news.
    pub(super) fn is_no_fallback_any_more(&mut self) -> bool {
        let is_start = self.reload.as_ref().is_none_or(|reload| reload.by == ReloadBy::Start);
        if is_start || self.fallback.take().is_none() {
            return false;
        }
        info!("the file is valid, and in force again");
        true
    }

    /// How systemd's status line begins.
    pub(super) fn fallback_line(&self) -> &'static str {
        if self.fallback.is_some() { "the file is invalid, serving by what was last in force; " } else { "" }
    }

    /// What an operator is told of it.
    pub(super) fn fallback_warning(&self) -> Option<String> {
        let why = self.fallback.as_ref()?;
        Some(format!(
            "the file is not in force: {why}; since the start lbd serves by what was last in force; a corrected file is taken by itself, \
             or with lbctl reload"
        ))
    }
}
