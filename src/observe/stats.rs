//! The counters of every listener, pool and backend as one document. Counts are since the daemon's
//! start and survive reloads; whoever fills it adds the workers' shards up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts by cause: the cause's spelling, how often. A cause that never occurred may be absent.
pub type Counts = BTreeMap<String, u64>;

/// What `lbctl stats` answers. Its JSON is a promise: keys are added, never renamed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The number of the snapshot in force.
    pub generation: u64,
    /// The listeners, by name; of one pool only those that feed it.
    pub listeners: Vec<ListenerStats>,
    /// The pools, by name.
    pub pools: Vec<PoolStats>,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStats {
    /// Its name.
    pub name: String,
    /// Where it accepts.
    pub addresses: Vec<String>,
    /// Who serves its clients.
    pub pool: String,
    /// Whether the configuration still has it.
    pub state: ListenerState,
    /// Sessions at which it stops accepting.
    pub max_connections: Option<u32>,
    /// Live sessions.
    pub connections_active: u64,
    /// Sessions ever.
    pub connections_total: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// It has as many sessions as it may; new clients wait in the kernel's queue.
    #[serde(default)]
    pub at_limit: bool,
    /// Addresses at which not every client can be accepted now, each with the reason: their sockets were ended from outside.
    #[serde(default)]
    pub unbound: Vec<String>,
    /// Clients turned away, by cause: `no_backend`, `connect_failed`, `limit`, `queue_full`, `queue_timeout`.
    pub refused: Counts,
    /// Sessions that ended, by cause: `normal`, `client`, `server`, `proxy`, `killed`, `client_timeout`, `server_timeout`.
    pub ended: Counts,
    /// Dials that failed and were tried at another backend.
    pub retries: u64,
    /// From accept to close, of sessions that ended.
    pub session_duration: Percentiles,
}

/// Whether the configuration still has a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerState {
    /// It accepts.
    Active,
    /// It was removed and finishes its sessions.
    Leaving,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    /// Its name.
    pub name: String,
    /// How it chooses, as the file spells it.
    pub balance: String,
    /// Backends that may be chosen now.
    #[serde(default)]
    pub eligible: u64,
    /// Sessions waiting for a place now.
    pub queued: u64,
    /// Its backends, in the order of the file; then those that are leaving.
    pub backends: Vec<BackendStats>,
}

/// One backend of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStats {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its share of new sessions.
    pub weight: u32,
    /// Whether it takes sessions only while no other backend can.
    pub backup: bool,
    /// Sessions it may have at a time.
    pub max_connections: Option<u32>,
    /// Health and admin state as one word: `up`, `down`, `unproven`, `unchecked`, `draining`, `drained`, `disabled`, `leaving`.
    pub state: String,
    /// What probes say: `unproven`, `up`, `down`; `unchecked` where the pool has no check.
    pub health: String,
    /// Whole seconds since health took this value.
    pub health_since_seconds: u64,
    /// What led to it.
    pub health_reason: Option<String>,
    /// What the operator wants: `enabled`, `draining`, `disabled`.
    pub admin: String,
    /// Who laid an override over the file.
    pub override_by: Option<String>,
    /// Why.
    pub override_reason: Option<String>,
    /// Whole seconds until it ends by itself.
    pub override_ends_in_seconds: Option<u64>,
    /// Live sessions.
    pub connections_active: u64,
    /// Connections opened ahead of need, for sessions to come; `max_connections` counts them too.
    #[serde(default)]
    pub connections_spare: u64,
    /// Sessions ever.
    pub connections_total: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Dials that failed.
    pub connect_errors: u64,
    /// Why the last of them did.
    #[serde(default)]
    pub last_connect_error: Option<String>,
    /// Whole seconds since then.
    #[serde(default)]
    pub last_connect_error_seconds_ago: Option<u64>,
    /// Dials given up here and tried elsewhere.
    pub retries: u64,
    /// Probes that succeeded.
    pub probes_ok: u64,
    /// Probes that failed.
    pub probes_failed: u64,
    /// Time of successful dials.
    pub connect_time: Percentiles,
    /// From accept to close, of sessions that ended.
    pub session_duration: Percentiles,
}

/// A distribution of times, in microseconds. All zero while `count` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many times were measured.
    pub count: u64,
    /// Half were at most this.
    pub p50_us: u64,
    /// 90 of 100 were at most this.
    pub p90_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1,000.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}
