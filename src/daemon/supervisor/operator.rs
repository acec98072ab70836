//! What an operator asks for: drain, enable, disable, status, statistics, shutdown. A decision is an override
//! laid over the file; it survives reloads for as long as the file has the backend at that address.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::keeping::KEPT;
use super::{Override, Supervisor, Then};
use crate::config::nearest;
use crate::control::{LiveSessions, Peer, Pools, Reply, Request, ShutdownMode, Target};
use crate::daemon::action::{Action, Doors};
use crate::daemon::event::{AskId, BackendKey, Now, ReloadBy};
use crate::health::Verdict;
use crate::proxy::Sessions;
use crate::snapshot::BackendCell;
use crate::words::{AdminState, BackendRef, Happening, PoolName};

/// A decision about some backends.
struct Decision {
    admin: AdminState,
    by: String,
    reason: Option<String>,
    expires: Option<Duration>,
}

impl Supervisor {
    pub(super) fn asked(&mut self, ask: AskId, request: Request, peer: Peer, now: Now, out: &mut Vec<Action>) {
        let by = peer.to_string();
        match request {
            Request::Status => out.push(Action::Answer(ask, Reply::Status(Box::new(self.status(now))))),
            Request::Stats { pool } => out.push(Action::Answer(ask, self.stats_of(pool.as_ref(), now))),
            Request::Reload => self.reload_asked(ReloadBy::Operator(ask), now, out),
            Request::Drain { target, wait, reason, expires } => {
                let Some(keys) = self.resolve_or_refuse(&target, ask, out) else { return };
                let decision = Decision { admin: AdminState::Draining, by, reason, expires };
                let lines = self.decide(&keys, decision, now, out);
                let then = match wait {
                    None => self.changed(lines),
                    Some(wait) => {
                        Then::Drained { cells: self.cells_of(&keys), deadline: wait.timeout.map(|t| now.at + t) }
                    }
                };
                self.answer_when_known(ask, then, now, out);
            }
            Request::Enable { target } => {
                let Some(keys) = self.resolve_or_refuse(&target, ask, out) else { return };
                let decision = Decision { admin: AdminState::Enabled, by, reason: None, expires: None };
                let lines = self.decide(&keys, decision, now, out);
                let then = self.changed(lines);
                self.answer_when_known(ask, then, now, out);
            }
            Request::Disable { target, live, reason, expires } => {
                let Some(keys) = self.resolve_or_refuse(&target, ask, out) else { return };
                let decision = Decision { admin: AdminState::Disabled, by, reason, expires };
                let cut: Vec<u64> = self.cells_of(&keys).iter().map(|cell| u64::from(cell.live.count())).collect();
                let mut lines = self.decide(&keys, decision, now, out);
                if live == LiveSessions::Close {
                    for ((line, key), cut) in lines.iter_mut().zip(&keys).zip(cut) {
                        info!(pool = key.0.pool.as_str(), backend = key.0.backend.as_str(), "sessions cut: {cut}");
                        *line = line.replace(&format!("sessions: {cut}"), &format!("sessions cut: {cut}"));
                    }
                    out.extend(self.cells_of(&keys).into_iter().map(|cell| Action::Cut(Sessions::Of(cell))));
                    // What the answer waits for must come after the cut in the workers' inboxes.
                    self.publish(Doors::default(), out);
                }
                let then = self.changed(lines);
                self.answer_when_known(ask, then, now, out);
            }
            Request::Upgrade(asked) => self.upgrade_asked(ask, asked, &peer, out),
            Request::Shutdown { mode } => {
                info!(by, "lbctl asks to stop");
                out.push(Action::Answer(ask, Reply::Stopping { sessions: self.cells.sessions() }));
                match mode {
                    ShutdownMode::Now => self.stop_at_once(now, out),
                    ShutdownMode::Graceful if self.stage.is_stopping() => {}
                    ShutdownMode::Graceful => self.stop_in_order(now, out),
                }
            }
        }
    }

    fn changed(&self, lines: Vec<String>) -> Then {
        Then::Answer(Reply::Changed { generation: self.generation.0, lines })
    }

    fn cells_of(&self, keys: &[BackendKey]) -> Vec<Arc<BackendCell>> {
        keys.iter().filter_map(|(reference, address)| self.cells.backend(reference, address)).cloned().collect()
    }

    /// Lays a decision over the file and publishes it; returns a line for each backend.
    fn decide(&mut self, keys: &[BackendKey], decision: Decision, now: Now, out: &mut Vec<Action>) -> Vec<String> {
        let Decision { admin, by, reason, expires } = decision;
        let until = expires.map(|d| now.at + d);
        let mut lines = Vec::new();
        for key in keys {
            let before = self.admin_of(key);
            if admin == AdminState::Enabled {
                self.overrides.remove(key);
            } else {
                let o =
                    Override { admin, by: by.clone(), reason: reason.clone(), since: now.wall, drained: false, until };
                self.overrides.insert(key.clone(), o);
            }
            self.admin_changed(key, before, now);
            info!(
                event = Happening::Override.as_str(),
                pool = key.0.pool.as_str(),
                backend = key.0.backend.as_str(),
                by,
                reason = reason.as_deref().unwrap_or("-"),
                "{before} -> {admin}"
            );
            let sessions = self.cells.backend(&key.0, &key.1).map_or(0, |cell| cell.live.count());
            let verb = if before == admin { ("was", " already") } else { ("is", "") };
            let kept = if self.facts.keeps && admin != AdminState::Enabled { KEPT } else { "" };
            lines.push(format!("{} {} {admin}{}; sessions: {sessions}{kept}", key.0, verb.0, verb.1));
        }
        self.keep_overrides(now, out);
        self.publish(Doors::default(), out);
        if admin != AdminState::Enabled {
            let without = self.pools_without_backends(keys.iter().map(|key| &key.0.pool));
            without.iter().for_each(|note| warn!("{note}"));
            lines.extend(without.into_iter().map(|note| format!("warning: {note}")));
        }
        lines
    }

    /// Says of which of these pools no backend can take a session any more.
    pub(super) fn pools_without_backends<'a>(&self, pools: impl Iterator<Item = &'a PoolName>) -> Vec<String> {
        let pools: BTreeSet<&PoolName> = pools.collect();
        let without = pools.into_iter().filter_map(|name| self.snapshot.pool(name)).filter(|p| p.eligible.is_empty());
        let said = without.map(|pool| {
            let clients = if pool.awaits_verdict && pool.queue.is_some() { "wait for a probe" } else { "are refused" };
            format!("no backend of pool {} can take a session now; its clients {clients}", pool.cell.name)
        });
        said.collect()
    }

    /// Only an enabled backend is probed: after the answer to a drain nobody connects. One that comes back must prove
    /// itself first.
    fn admin_changed(&mut self, key: &BackendKey, before: AdminState, now: Now) {
        let after = self.admin_of(key);
        let probing = self.probing.contains(key);
        let is_checked = self.check_of(key).is_some();
        self.backends.change(key, |known| {
            if after != AdminState::Enabled {
                known.next_probe = None;
            } else if before != AdminState::Enabled {
                known.verdict = Verdict::unproven(now.at);
                known.next_probe = (is_checked && !probing).then_some(now.at);
            }
        });
    }

    /// Logs, once, that a backend taken out of service has no session left; within a second.
    pub(super) fn tell_of_drained(&mut self) {
        for (key, o) in self.overrides.iter_mut().filter(|(_, o)| !o.drained) {
            if self.cells.backend(&key.0, &key.1).is_some_and(|cell| cell.live.count() == 0) {
                o.drained = true;
                let (pool, backend) = (key.0.pool.as_str(), key.0.backend.as_str());
                info!(event = Happening::Drained.as_str(), pool, backend, "{}: no session is left", o.admin);
            }
        }
    }

    /// Ends overrides whose time has come.
    pub(super) fn end_overrides(&mut self, now: Now, out: &mut Vec<Action>) {
        let over: Vec<(BackendKey, AdminState)> = self
            .overrides
            .iter()
            .filter(|(_, o)| o.until.is_some_and(|until| until <= now.at))
            .map(|(key, o)| (key.clone(), o.admin))
            .collect();
        let any = !over.is_empty();
        for (key, before) in over {
            self.overrides.remove(&key);
            self.admin_changed(&key, before, now);
            info!(
                event = Happening::OverrideEnded.as_str(),
                pool = key.0.pool.as_str(),
                backend = key.0.backend.as_str(),
                "{before} -> enabled: its time is over"
            );
            self.publish_soon(&key, now);
        }
        if any {
            self.keep_overrides(now, out);
        }
    }

    fn resolve_or_refuse(&self, target: &Target, ask: AskId, out: &mut Vec<Action>) -> Option<Vec<BackendKey>> {
        if self.stage.is_stopping() {
            out.push(Action::Answer(ask, Reply::refused("lbd is stopping; nothing was changed")));
            return None;
        }
        match self.resolve(target) {
            Ok(keys) => Some(keys),
            Err(why) => {
                out.push(Action::Answer(ask, Reply::refused(why)));
                None
            }
        }
    }

    fn resolve(&self, target: &Target) -> Result<Vec<BackendKey>, String> {
        match target {
            Target::Exactly(reference) => match self.key_of(reference) {
                Some(key) => Ok(vec![key]),
                None => Err(self.unknown(&reference.to_string(), |r| r.to_string())),
            },
            Target::Named { backend, pools } => {
                let all: Vec<BackendRef> = self.references().filter(|r| r.backend == *backend).collect();
                match (all.len(), pools) {
                    (0, _) => Err(self.unknown(backend.as_str(), |r| r.backend.to_string())),
                    (2.., Pools::One) => Err(format!(
                        "{} pools have a backend \"{backend}\"; write one of {}, or --all-pools",
                        all.len(),
                        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                    )),
                    _ => Ok(all.iter().filter_map(|r| self.key_of(r)).collect()),
                }
            }
        }
    }

    fn references(&self) -> impl Iterator<Item = BackendRef> {
        let pools = self.config.iter().flat_map(|config| &config.pools);
        pools.flat_map(|(name, pool)| {
            pool.backends.iter().map(|b| BackendRef { pool: name.clone(), backend: b.name.clone() })
        })
    }

    fn unknown(&self, typed: &str, shown: impl Fn(&BackendRef) -> String) -> String {
        let names: BTreeSet<String> = self.references().map(|r| shown(&r)).collect();
        match nearest(typed, names.iter().map(String::as_str)) {
            Some((near, _)) => format!("there is no backend \"{typed}\"; did you mean \"{near}\"?"),
            None => {
                let some: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
                let more = if names.len() > some.len() { ", ..." } else { "" };
                format!("there is no backend \"{typed}\"; there are {}{more}", some.join(", "))
            }
        }
    }

    /// The check of a backend's pool.
    pub(super) fn check_of(&self, key: &BackendKey) -> Option<&crate::words::CheckSpec> {
        self.config.as_ref()?.pools.get(&key.0.pool)?.health_check.as_ref()
    }
}
