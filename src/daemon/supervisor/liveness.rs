//! Probes: when the next one is due, what a result means, and what follows where a verdict turns. The
//! rules are `health`'s; the connecting is `probe`'s.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Supervisor;
use crate::daemon::action::Action;
use crate::daemon::event::{BackendKey, Now};
use crate::health::{next_probe_in, probe_after_dial_failure};
use crate::probe::Outlook;
use crate::words::{AdminState, CheckSpec, Happening, Health, PoolName};

/// When a probe that could not be made is tried again.
const UNABLE: Duration = Duration::from_millis(500);
/// The least time for one that is made again. It may have waited for its turn before, and not for the backend.
const LEAST: Duration = Duration::from_millis(100);
/// How late a probe must be to be told of, where half of the interval is less.
const LATE: Duration = Duration::from_secs(1);
/// How long nothing must have happened again before a spell of it is over.
const CALM: Duration = Duration::from_secs(5);

/// How long a probe may take that was broken off when the backend had kept it waiting for a while: both together no longer than
/// one, or who says nothing would never be down where upgrades follow each other more quickly.
fn rest(timeout: Duration, waited: Duration) -> Duration {
    timeout.saturating_sub(waited).max(timeout.min(LEAST))
}

/// Something that is wrong with probing, told once, for as long as it goes on.
#[derive(Debug)]
pub struct Spell {
    /// What is wrong, and how to mend it.
    why: String,
    since: Instant,
    last: Instant,
}

impl Supervisor {
    pub(super) fn start_probes(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.stage.is_stopping() {
            return;
        }
        while let Some((due, key)) = self.backends.take_due(now.at) {
            let Some(mut spec) = self.check_of(&key).cloned() else { continue };
            self.note_wait(&key.0.pool, &spec, now.at.saturating_duration_since(due), now);
            let outlook = self.backends.change(&key, |known| {
                known.last_probe = now.at;
                spec.timeout = rest(spec.timeout, known.waited);
                if known.verdict.has_failed_last() { Outlook::Doubtful } else { Outlook::Good }
            });
            self.probing.insert(key.clone());
            out.push(Action::Probe(key, spec, outlook.unwrap_or(Outlook::Good)));
        }
    }

    /// A probe has had to wait for its turn; its timeout begins now.
    pub(super) fn probe_began(&mut self, key: &BackendKey, waited: Duration, now: Now) {
        self.backends.change(key, |known| known.last_probe = now.at);
        if let Some(spec) = self.check_of(key).cloned() {
            self.note_wait(&key.0.pool, &spec, waited, now);
        }
    }

    pub(super) fn probed(&mut self, key: &BackendKey, result: Result<(), String>, now: Now) {
        let random = self.random();
        let unasked = self.admin_of(key) != AdminState::Enabled;
        let spec = self.check_of(key).cloned().filter(|_| !unasked);
        self.probing.remove(key);
        // It may have been removed meanwhile, its check too, or it was drained or disabled: then nobody asked for a verdict.
        let turned = self.backends.change(key, |known| {
            known.waited = Duration::ZERO;
            let spec = spec?;
            match result {
                Ok(()) => known.probes_ok += 1,
                Err(_) => known.probes_failed += 1,
            }
            let turned = known.verdict.record(result, &spec, now.at);
            known.next_probe = Some(now.at.max(known.last_probe + next_probe_in(&known.verdict, &spec, random)));
            turned
        });
        let Some(turned) = turned.flatten() else { return };
        let (pool, backend) = (key.0.pool.as_str(), key.0.backend.as_str());
        if turned == Health::Down {
            let reason = self.backends.get(key).and_then(|known| known.verdict.reason()).unwrap_or("no reason");
            warn!(event = Happening::BackendDown.as_str(), pool, backend, "down: {reason}");
        } else {
            info!(event = Happening::BackendUp.as_str(), pool, backend, "{turned}");
        }
        self.publish_soon(key, now);
    }

    /// A probe could not be made for want of something of our own, which says nothing of the backend.
    pub(super) fn not_probed(&mut self, key: &BackendKey, why: String, now: Now) {
        let unasked = self.admin_of(key) != AdminState::Enabled;
        self.probing.remove(key);
        self.backends.change(key, |known| {
            known.next_probe = (!unasked).then_some(now.at + UNABLE);
            known.waited = Duration::ZERO;
        });
        match &mut self.unable {
            Some(spell) => {
                spell.last = now.at;
                spell.why = why;
            }
            none => {
                warn!(event = Happening::Shortage.as_str(), "backends cannot be probed: {why}");
                *none = Some(Spell { why, since: now.at, last: now.at });
            }
        }
    }

    /// Traffic has met a backend that does not answer: the probes are to find out sooner than they would.
    pub(super) fn dial_failed(&mut self, key: &BackendKey, now: Now) {
        let Some(spec) = self.check_of(key).cloned() else { return };
        self.backends.change(key, |known| {
            if let Some(next) = known.next_probe {
                let hastened = probe_after_dial_failure(&known.verdict, &spec, known.last_probe, next);
                known.next_probe = Some(hastened.max(now.at));
            }
        });
    }

    fn note_wait(&mut self, pool: &PoolName, spec: &CheckSpec, waited: Duration, now: Now) {
        if waited < LATE.max(spec.interval / 2) {
            return;
        }
        let why = format!("{:.1} s late; shorten health_check.timeout, or lengthen interval", waited.as_secs_f64());
        match self.late.get_mut(pool) {
            Some(spell) => {
                spell.last = now.at;
                spell.why = why;
            }
            None => {
                warn!(event = Happening::ProbesLate.as_str(), pool = pool.as_str(), "probes of pool {pool} are {why}");
                self.late.insert(pool.clone(), Spell { why, since: now.at, last: now.at });
            }
        }
    }

    /// Ends the spells in which nothing has happened for a while.
    pub(super) fn end_spells(&mut self, now: Now) {
        let is_over = |spell: &Spell| now.at.saturating_duration_since(spell.last) > CALM;
        if self.unable.take_if(|spell| is_over(spell)).is_some() {
            info!(event = Happening::ShortageOver.as_str(), "backends are probed again");
        }
        self.late.retain(|pool, spell| {
            let goes_on = !is_over(spell);
            if !goes_on {
                info!(pool = pool.as_str(), "probes of pool {pool} are on time again");
            }
            goes_on
        });
    }

    /// What the operator should know of probing, a line each.
    pub(super) fn troubles_of_probing(&self, now: Now) -> Vec<String> {
        let lasting = |spell: &Spell| now.at.saturating_duration_since(spell.since).as_secs();
        let unable = self.unable.iter().map(|s| format!("backends cannot be probed since {} s: {}", lasting(s), s.why));
        let late = self.late.iter().map(|(pool, s)| format!("probes of pool {pool} are {}", s.why));
        unable.chain(late).collect()
    }
}
