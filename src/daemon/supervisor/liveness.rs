//! Probes: when the next one is due, what a result means, and what follows where a verdict turns. The
//! rules are `health`'s; the connecting is `probe`'s.

use std::time::Duration;

use tracing::{info, warn};

use super::Supervisor;
use crate::daemon::action::Action;
use crate::daemon::event::{BackendKey, Now};
use crate::health::{next_probe_in, probe_after_dial_failure};
use crate::words::{AdminState, Happening, Health};

/// When a probe that could not be made is tried again.
const UNABLE: Duration = Duration::from_millis(500);
/// The least time for one that is made again. It may have waited for its turn before, and not for the backend.
const LEAST: Duration = Duration::from_millis(100);

/// How long a probe may take that was broken off when the backend had kept it waiting for a while: both together no longer than
/// one, or who says nothing would never be down where upgrades follow each other more quickly.
fn rest(timeout: Duration, waited: Duration) -> Duration {
    timeout.saturating_sub(waited).max(timeout.min(LEAST))
}

impl Supervisor {
    pub(super) fn start_probes(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.stage.is_stopping() {
            return;
        }
        let due: Vec<BackendKey> = self
            .backends
            .iter()
            .filter(|(_, known)| known.next_probe.is_some_and(|at| at <= now.at))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let spec = self.check_of(&key).cloned();
            let Some(known) = self.backends.get_mut(&key) else { continue };
            known.next_probe = None;
            if let Some(mut spec) = spec {
                known.last_probe = now.at;
                spec.timeout = rest(spec.timeout, known.waited);
                self.probing.insert(key.clone());
                out.push(Action::Probe(key, spec));
            }
        }
    }

    pub(super) fn probed(&mut self, key: &BackendKey, result: Result<(), String>, now: Now) {
        let random = self.random();
        let unasked = self.admin_of(key) != AdminState::Enabled;
        let spec = self.check_of(key).cloned();
        self.probing.remove(key);
        // It may have been removed meanwhile, its check too, or it was drained or disabled: then nobody asked for a verdict.
        let Some(known) = self.backends.get_mut(key) else { return };
        known.waited = Duration::ZERO;
        let Some(spec) = spec.filter(|_| !unasked) else { return };
        match result {
            Ok(()) => known.probes_ok += 1,
            Err(_) => known.probes_failed += 1,
        }
        let turned = known.verdict.record(result, &spec, now.at);
        known.next_probe = Some(now.at.max(known.last_probe + next_probe_in(&known.verdict, &spec, random)));
        let (pool, backend) = (key.0.pool.as_str(), key.0.backend.as_str());
        match turned {
            None => return,
            Some(Health::Down) => {
                warn!(
                    event = Happening::BackendDown.as_str(),
                    pool,
                    backend,
                    "down: {}",
                    known.verdict.reason().unwrap_or("no reason")
                );
            }
            Some(health) => info!(event = Happening::BackendUp.as_str(), pool, backend, "{health}"),
        }
        self.publish_soon(now);
    }

    pub(super) fn not_probed(&mut self, key: &BackendKey, now: Now) {
        let unasked = self.admin_of(key) != AdminState::Enabled;
        self.probing.remove(key);
        if let Some(known) = self.backends.get_mut(key) {
            known.next_probe = (!unasked).then_some(now.at + UNABLE);
            known.waited = Duration::ZERO;
        }
    }

    /// Traffic has met a backend that does not answer: the probes are to find out sooner than they would.
    pub(super) fn dial_failed(&mut self, key: &BackendKey, now: Now) {
        let Some(spec) = self.check_of(key).cloned() else { return };
        let Some(known) = self.backends.get_mut(key) else { return };
        if let Some(next) = known.next_probe {
            known.next_probe =
                Some(probe_after_dial_failure(&known.verdict, &spec, known.last_probe, next).max(now.at));
        }
    }
}
