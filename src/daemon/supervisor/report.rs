//! What the supervisor tells of itself and of what it watches over: the status, the statistics, systemd's line.
//! It adds the workers' shards up; how it looks is `observe`'s.

use std::time::Instant;

use crate::config::{ConfigDiff, nearest};
use crate::control::Reply;
use crate::daemon::event::{BackendKey, Now};
use crate::observe::{
    BackendStats, BackendsUp, Counts, ListenerState, ListenerStats, Percentiles, PoolStats, RunState, Stats, Status,
};
use crate::snapshot::{BackendCell, BackendShard, Count, Histogram, ListenerCell, ListenerShard, Padded, Percentile};
use crate::words::{AdminState, Cause, Health, PoolName, Refusal};

use super::Supervisor;

impl Supervisor {
    /// One line for systemd and the log.
    pub(super) fn status_line(&self) -> String {
        let backends = self.backends_up().said("backends ");
        let sessions = self.cells.sessions();
        let stopping = if self.stage.is_stopping() { "stopping; " } else { "" };
        let (version, fallback) = (&self.facts.version, self.fallback_line());
        let upgraded =
            if self.upgrades > 0 { format!("; upgraded in place: {}", self.upgrades) } else { String::new() };
        format!(
            "{stopping}{fallback}generation {}, {backends}, sessions: {sessions}; lbd {version}{upgraded}",
            self.generation
        )
    }

    /// How many backends there are, and how many of the enabled ones are known to be up or not checked.
    fn backends_up(&self) -> BackendsUp {
        let mut counts = BackendsUp::default();
        for pool in &self.snapshot.pools {
            for backend in &pool.backends {
                counts.total += 1;
                if backend.admin == AdminState::Enabled {
                    counts.up += u64::from(backend.health == Health::Up);
                    counts.unchecked += u64::from(backend.health == Health::Unchecked);
                }
            }
        }
        counts
    }

    pub(super) fn status(&self, now: Now) -> Status {
        let BackendsUp { up: backends_up, unchecked: backends_unchecked, total: backends_total } = self.backends_up();
        let last_reload = self.last_reload.as_ref().map(|(reload, at)| {
            let mut reload = reload.clone();
            reload.seconds_ago = now.at.saturating_duration_since(*at).as_secs();
            reload
        });
        let mut warnings: Vec<String> = self
            .snapshot
            .pools
            .iter()
            .filter(|pool| pool.eligible.is_empty())
            .map(|pool| match (pool.awaits_verdict, pool.queue) {
                (true, Some(_)) => {
                    format!("pool {} has no proven backend yet; its clients wait for a probe", pool.cell.name)
                }
                _ => format!("pool {} has no backend that can take a session; its clients are refused", pool.cell.name),
            })
            .collect();
        warnings.extend(self.fallback_warning());
        warnings.extend(self.lost_addresses().map(|(address, why)| {
            let listener = self.snapshot.listener_at(address).map_or("?", |l| l.cell.name.as_str());
            let actual = self.bound.get(address).unwrap_or(address);
            format!(
                "listener {listener}: clients may be refused at {actual}: its socket was ended from outside, and {why}"
            )
        }));
        warnings.extend(self.snapshot.listeners.iter().filter_map(|listener| {
            let most = listener.max_connections.filter(|most| listener.cell.live.count() >= *most)?;
            Some(format!("listener {} is at its limit of {most} connections; new clients wait", listener.cell.name))
        }));
        if let (Some(first), Some(config)) = (&self.first, &self.config) {
            let mut now_and_then = config.clone();
            now_and_then.process.clone_from(&first.process);
            now_and_then.control.socket.clone_from(&first.control.socket);
            let pending = ConfigDiff::between(&now_and_then, config).at_restart;
            warnings.extend(pending.iter().map(|edit| format!("{edit} takes effect at restart")));
        }
        warnings.extend(self.troubles_of_probing(now));
        Status {
            version: self.facts.version.clone(),
            pid: self.facts.pid,
            state: if self.stage.is_stopping() { RunState::Draining } else { RunState::Running },
            stops_in_seconds: self.stage.ends_by().map(|until| seconds_until(until, now)),
            generation: self.generation.0,
            uptime_seconds: now.at.saturating_duration_since(self.started).as_secs(),
            workers: self.facts.workers as u32,
            config_path: self.facts.config_path.clone(),
            last_reload,
            backends_up,
            backends_unchecked,
            backends_total,
            sessions: self.cells.sessions(),
            upgrades: self.upgrades,
            warnings,
        }
    }

    pub(super) fn stats_of(&self, pool: Option<&PoolName>, now: Now) -> Reply {
        let Some(name) = pool else { return Reply::Stats(self.stats(now)) };
        let mut stats = self.stats(now);
        stats.pools.retain(|p| p.name == name.as_str());
        stats.listeners.retain(|l| l.pool == name.as_str());
        if stats.pools.is_empty() {
            let names: Vec<&str> = self.snapshot.pools.iter().map(|p| p.cell.name.as_str()).collect();
            return Reply::refused(match nearest(name.as_str(), names.iter().copied()) {
                Some((near, _)) => format!("there is no pool \"{name}\"; did you mean \"{near}\"?"),
                None => format!("there is no pool \"{name}\"; there are {}", names.join(", ")),
            });
        }
        Reply::Stats(stats)
    }

    pub(super) fn stats(&self, now: Now) -> Stats {
        let listeners = self
            .cells
            .listeners()
            .filter(|cell| cell.removed_since().is_none() || cell.live.count() > 0)
            .map(|cell| self.listener_stats(cell))
            .collect();
        let mut pools: Vec<PoolStats> = self
            .snapshot
            .pools
            .iter()
            .map(|pool| PoolStats {
                name: pool.cell.name.to_string(),
                balance: pool.balance.to_string(),
                eligible: pool.eligible.len() as u64,
                queued: u64::from(pool.cell.queued.load(std::sync::atomic::Ordering::Relaxed)),
                backends: pool
                    .backends
                    .iter()
                    .map(|b| {
                        let mut stats = self.backend_stats(&b.cell, now);
                        stats.weight = b.weight.value();
                        stats.backup = b.backup;
                        stats.max_connections = b.max_connections;
                        stats
                    })
                    .collect(),
            })
            .collect();
        for cell in self.cells.backends().filter(|cell| cell.removed_since().is_some() && cell.live.count() > 0) {
            let stats = self.backend_stats(cell, now);
            let name = cell.reference.pool.to_string();
            match pools.iter_mut().find(|p| p.name == name) {
                Some(pool) => pool.backends.push(stats),
                None => {
                    pools.push(PoolStats { name, balance: "-".into(), eligible: 0, queued: 0, backends: vec![stats] })
                }
            }
        }
        Stats { generation: self.generation.0, listeners, pools }
    }

    fn listener_stats(&self, cell: &ListenerCell) -> ListenerStats {
        let shown = self.snapshot.listener(&cell.name);
        let sum = |part: fn(&ListenerShard) -> &Count| total(&cell.shards, part);
        let shown_address = |a| self.bound.get(a).unwrap_or(a).to_string();
        ListenerStats {
            name: cell.name.to_string(),
            addresses: shown.map_or_else(Vec::new, |l| l.addresses.iter().map(shown_address).collect()),
            pool: shown.map_or_else(|| "-".to_owned(), |l| l.pool.cell.name.to_string()),
            state: if shown.is_some() { ListenerState::Active } else { ListenerState::Leaving },
            max_connections: shown.and_then(|l| l.max_connections),
            connections_active: u64::from(cell.live.count()),
            connections_total: sum(|s| &s.accepted),
            bytes_in: sum(|s| &s.bytes_in),
            bytes_out: sum(|s| &s.bytes_out),
            refused: counts(Refusal::ALL.iter().map(|r| (r.as_str(), *r as usize)), &cell.shards, |s| &s.refused),
            ended: counts(Cause::ALL.iter().map(|c| (c.as_str(), *c as usize)), &cell.shards, |s| &s.ended),
            retries: sum(|s| &s.retries),
            at_limit: shown.and_then(|l| l.max_connections).is_some_and(|most| cell.live.count() >= most),
            unbound: shown.map_or_else(Vec::new, |l| {
                let lost = self.lost_addresses().filter(|(address, _)| l.addresses.contains(address));
                lost.map(|(address, why)| format!("{} {why}", shown_address(address))).collect()
            }),
            session_duration: percentiles(cell.shards.iter().map(|s| &s.durations)),
        }
    }

    fn backend_stats(&self, cell: &BackendCell, now: Now) -> BackendStats {
        let key: BackendKey = (cell.reference.clone(), cell.address.clone());
        let known = self.backends.get(&key);
        let (health, admin, live) = (self.health_of(&key), self.admin_of(&key), cell.live.count());
        let (over, failure) = (self.overrides.get(&key), cell.last_failure());
        let sum = |part: fn(&BackendShard) -> &Count| total(&cell.shards, part);
        let state = match (cell.removed_since(), admin) {
            (Some(_), _) => "leaving",
            (None, AdminState::Draining) if live == 0 => "drained",
            (None, AdminState::Enabled) => health.as_str(),
            (None, admin) => admin.as_str(),
        };
        BackendStats {
            name: cell.reference.backend.to_string(),
            address: cell.address.to_string(),
            weight: 0,
            backup: false,
            max_connections: None,
            state: state.to_owned(),
            health: health.to_string(),
            health_since_seconds: known.map_or(0, |k| now.at.saturating_duration_since(k.verdict.since()).as_secs()),
            health_reason: known.and_then(|k| k.verdict.reason()).map(str::to_owned),
            admin: admin.to_string(),
            override_by: over.map(|o| o.by.clone()),
            override_reason: over.and_then(|o| o.reason.clone()),
            override_ends_in_seconds: over.and_then(|o| o.until).map(|until| seconds_until(until, now)),
            connections_active: u64::from(live),
            connections_spare: u64::from(cell.live.spares()),
            connections_total: sum(|s| &s.established),
            bytes_in: sum(|s| &s.bytes_in),
            bytes_out: sum(|s| &s.bytes_out),
            connect_errors: sum(|s| &s.connect_errors),
            last_connect_error: failure.map(|(errno, _)| crate::proxy::words_of(errno).to_owned()),
            last_connect_error_seconds_ago: failure.map(|(_, at)| now.micros.saturating_sub(at) / 1_000_000),
            retries: sum(|s| &s.retries),
            probes_ok: known.map_or(0, |k| k.probes_ok),
            probes_failed: known.map_or(0, |k| k.probes_failed),
            connect_time: percentiles(cell.shards.iter().map(|s| &s.connect_times)),
            session_duration: percentiles(cell.shards.iter().map(|s| &s.durations)),
        }
    }
}

/// Whole seconds that are left, the last one until it is over.
fn seconds_until(until: Instant, now: Now) -> u64 {
    let left = until.saturating_duration_since(now.at);
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

fn total<S>(shards: &[Padded<S>], part: fn(&S) -> &Count) -> u64 {
    shards.iter().map(|shard| part(shard).read()).sum()
}

fn counts<const N: usize>(
    causes: impl Iterator<Item = (&'static str, usize)>,
    shards: &[Padded<ListenerShard>],
    part: fn(&ListenerShard) -> &[Count; N],
) -> Counts {
    causes
        .map(|(name, at)| (name.to_owned(), shards.iter().map(|s| part(s)[at].read()).sum::<u64>()))
        .filter(|(_, n)| *n > 0)
        .collect()
}

fn percentiles<'a>(parts: impl Iterator<Item = &'a Histogram>) -> Percentiles {
    let Percentile { count, p50, p90, p99, p999, max } = Histogram::percentiles(parts);
    Percentiles { count, p50_us: p50, p90_us: p90, p99_us: p99, p999_us: p999, max_us: max }
}
