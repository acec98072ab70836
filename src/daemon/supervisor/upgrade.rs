//! Another program is to take over: may it be asked for now, what would be carried and what not, and in which order things
//! stand still. From the freeze on nothing else is decided until this program goes on, or another one does.

use std::time::Duration;

use tracing::{error, info};

use super::{Stage, Supervisor};
use crate::control::{Earnest, Peer, Reply, Upgrade};
use crate::daemon::action::{Action, Doors, Notice};
use crate::daemon::event::{AskId, Now, TookOver};
use crate::daemon::upgrade::Target;
use crate::words::Happening;

/// An upgrade under way.
#[derive(Debug)]
pub struct Upgrading {
    ask: AskId,
    by: String,
    earnest: Earnest,
    /// Checked, while the workers come to a stop.
    target: Option<Target>,
    /// The workers stand still, or are about to.
    frozen: bool,
}

impl Supervisor {
    pub(super) fn upgrade_asked(&mut self, ask: AskId, asked: Upgrade, peer: &Peer, out: &mut Vec<Action>) {
        let may_name = peer.uid == 0 || peer.uid == self.facts.uid;
        let refused = match (&self.upgrading, self.stage) {
            (Some(_), _) => "an upgrade is under way; ask again when it is over",
            (_, stage) if stage != Stage::Serving || self.job_asked => {
                "lbd is starting or stopping; nothing was changed"
            }
            _ if self.facts.config_path.is_none() => {
                "the demo's backends are in lbd itself, and no other program can have them"
            }
            _ if asked.program.is_some() && !may_name => {
                "only root and the user that lbd runs as may say which program; leave it out for the installed one"
            }
            _ => {
                let by = peer.to_string();
                self.upgrading = Some(Upgrading { ask, by, earnest: asked.earnest, target: None, frozen: false });
                return out.push(Action::CheckTarget(ask, asked.program));
            }
        };
        out.push(Action::Answer(ask, Reply::refused(refused)));
    }

    /// Who asked for it has gone: it is not done behind their back.
    pub(super) fn forget_upgrade_of(&mut self, ask: AskId, out: &mut Vec<Action>) {
        if self.upgrading.take_if(|upgrading| upgrading.ask == ask && !upgrading.frozen).is_some() {
            out.push(Action::ForgetTarget(ask));
        }
    }

    /// Who stops does not wait for what a program says.
    pub(super) fn abandon_upgrade(&mut self, out: &mut Vec<Action>) {
        if let Some(Upgrading { ask, .. }) = self.upgrading.take() {
            out.push(Action::ForgetTarget(ask));
            out.push(Action::Answer(ask, Reply::refused("lbd stopped before the program was tried")));
        }
    }

    pub(super) fn checked(&mut self, ask: AskId, result: Result<Target, String>, begun: usize, out: &mut Vec<Action>) {
        let Some(upgrading) = self.upgrading.take_if(|upgrading| upgrading.ask == ask) else { return };
        let target = match result {
            Ok(target) => target,
            Err(why) => return self.refuse_upgrade(upgrading.ask, &why, out),
        };
        if self.stage != Stage::Serving
            || self.job_asked
            || self.reload.as_ref().is_some_and(|reload| reload.config.is_some())
        {
            return self.refuse_upgrade(ask, "lbd is stopping or reloading", out);
        }
        if upgrading.earnest == Earnest::Tried {
            return out.push(Action::Answer(ask, self.upgradable(&target, begun)));
        }
        info!(by = upgrading.by, "lbd {} is to take over: {}", target.version, target.path.display());
        self.upgrading = Some(Upgrading { target: Some(target), frozen: true, ..upgrading });
        out.push(Action::Notify(Notice::Reloading));
        self.rebind_before_upgrade(out);
        out.push(Action::Freeze);
    }

    fn upgradable(&self, target: &Target, begun: usize) -> Reply {
        let spares: u64 = self.cells.backends().map(|cell| u64::from(cell.live.spares())).sum();
        let plural = |n: u64, what: &str| (n > 0).then(|| format!("{what}: {n}"));
        let carried = [
            Some(format!("sessions: {}", self.cells.sessions())),
            plural(spares, "spare connections"),
            Some(format!("listening addresses: {}", self.bound.len())),
            Some("counters, health, operators' decisions, control connections".to_owned()),
        ];
        let left = [
            plural(self.probing.len() as u64, "probes under way, which are made again"),
            plural(begun as u64, "requests to lbd that have come only in part"),
        ];
        Reply::Upgradable {
            from: self.facts.version.clone(),
            to: target.version.clone(),
            program: target.path.display().to_string(),
            carried: carried.into_iter().flatten().collect(),
            left: left.into_iter().flatten().collect(),
        }
    }

    pub(super) fn frozen(&mut self, result: Result<(), String>, now: Now, out: &mut Vec<Action>) {
        let Some(upgrading) = &mut self.upgrading else { return };
        let (ask, target) = (upgrading.ask, upgrading.target.take());
        match (result, target) {
            (Ok(()), Some(target)) => out.push(Action::HandOver(target, Box::new(self.carry(ask, now)))),
            (Ok(()), None) => self.not_handed_over("there is no program any more", None, out),
            (Err(why), _) => self.not_handed_over(&why, None, out),
        }
    }

    pub(super) fn not_handed_over(&mut self, why: &str, lost: Option<String>, out: &mut Vec<Action>) {
        let Some(Upgrading { ask, .. }) = self.upgrading.take() else { return };
        self.refuse_upgrade_with(ask, why, lost, out);
        out.push(Action::Notify(Notice::Ready(self.status_line())));
    }

    fn refuse_upgrade(&mut self, ask: AskId, why: &str, out: &mut Vec<Action>) {
        self.refuse_upgrade_with(ask, why, None, out);
    }

    fn refuse_upgrade_with(&mut self, ask: AskId, why: &str, lost: Option<String>, out: &mut Vec<Action>) {
        error!(event = Happening::UpgradeRefused.as_str(), "not upgraded: {why}");
        let after = lost.map_or_else(|| "; nothing was changed".to_owned(), |lost| format!(", but with {lost}"));
        let message = format!("{why}\nlbd {} serves on{after}", self.facts.version);
        out.push(Action::Answer(ask, Reply::refused(message)));
    }

    /// True while this program must not begin anything.
    pub(super) fn is_frozen(&self) -> bool {
        self.upgrading.as_ref().is_some_and(|upgrading| upgrading.frozen)
    }

    /// This program serves in place of another: it goes on where that one was.
    pub(super) fn took_over(&mut self, how: TookOver, now: Now, out: &mut Vec<Action>) {
        let TookOver { asker, from, failure, sessions, pause, shut, lost, silent } = how;
        self.stage = Stage::Serving;
        out.push(Action::Notify(Notice::Alive));
        if let Some(config) = &self.config {
            out.push(Action::SetWatch(config.watch || self.fallback.is_some()));
        }
        self.keep_overrides(now, out); // what was being written when the other program ended may not be on the disk
        self.publish(Doors::default(), out);
        self.take_over_listening(silent, now, out);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        match failure {
            None => {
                self.upgrades += 1;
                let (to, upgrades) = (self.facts.version.clone(), self.upgrades);
                let how = match &lost {
                    None => format!(
                        "sessions carried over: {sessions}; they paused for {}, new clients waited for {}",
                        in_millis(pause),
                        in_millis(shut)
                    ),
                    Some(why) => why.clone(),
                };
                info!(
                    event = Happening::Upgraded.as_str(),
                    generation = self.generation.0,
                    "lbd {from} -> {to}; {how}"
                );
                let (pause_us, wait_us) = (micros(pause), micros(shut));
                let reply = Reply::Upgraded { from, to, upgrades, sessions, pause_us, wait_us, lost };
                // At once: it is so, whatever becomes of the workers.
                out.push(Action::Answer(asker, reply));
            }
            Some(why) => {
                error!(event = Happening::UpgradeRefused.as_str(), "not upgraded: {why}; lbd {from} serves on");
                let after =
                    lost.map_or_else(|| "and no session was lost".to_owned(), |lost| format!("but with {lost}"));
                let message = format!("the new program failed: {why}\nlbd {from} serves on, {after}");
                out.push(Action::Answer(asker, Reply::refused(message)));
            }
        }
        self.last_status = self.status_line();
        out.push(Action::Notify(Notice::Ready(self.last_status.clone())));
        for by in std::mem::take(&mut self.next_reload) {
            self.reload_asked(by, now, out);
        }
    }
}

fn in_millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
