//! What the operator asked for, checked: holding a [`Config`] is the proof that the file is right.
//! Only `check.rs` makes one; what the file leaves out is filled in from `defaults.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::words::{Address, Algorithm, BackendName, CheckSpec, ListenerName, Network, PoolName, ProxyVersion, Weight};

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where clients are accepted, by name. Never empty; no two addresses overlap.
    pub listeners: BTreeMap<ListenerName, Listener>,
    /// Who serves them, by name. Every listener's pool is here.
    pub pools: BTreeMap<PoolName, Pool>,
    /// What takes effect at restart alone.
    pub process: Process,
    /// Whether a change of the file is applied by itself.
    pub watch: bool,
    /// The longest a graceful stop waits for sessions.
    pub drain_timeout: Duration,
    /// The longest a restart by the service manager does: its successor is to accept soon.
    pub restart_drain: Duration,
    /// How long sessions of removed listeners and backends may go on; `None`: for ever.
    pub removed_timeout: Option<Duration>,
    /// The operator's door.
    pub control: Control,
    /// What is logged.
    pub log: Log,
}

/// A named address, or several, on which clients are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// At least one address.
    pub bind: Vec<Address>,
    /// Who serves its clients.
    pub pool: PoolName,
    /// Sessions at which it stops accepting; `None`: no limit of its own.
    pub max_connections: Option<u32>,
    /// The longest time without a byte in either direction; `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// How dead peers are found, on both sides of a session.
    pub keepalive: Keepalive,
    /// Whose connections begin with a PROXY header; `None`: nobody's.
    pub accept_proxy: Option<AcceptProxy>,
    /// Who may connect to its Unix sockets.
    pub access: SocketAccess,
}

/// Who may connect to a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketAccess {
    /// Its permission bits; `None`: as the umask leaves them.
    pub mode: Option<u32>,
    /// Its group, by name; `None`: the daemon's own.
    pub group: Option<String>,
}

/// Whose connections must begin with a PROXY header. Everybody else's must not, and are taken as they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxy {
    /// TCP clients from these.
    pub networks: Vec<Network>,
    /// Whoever connects to the listener's Unix sockets.
    pub unix: bool,
}

impl AcceptProxy {
    /// Whether a header must come from there; `None` stands for a Unix socket.
    pub fn expects(&self, from: Option<IpAddr>) -> bool {
        from.map_or(self.unix, |ip| self.networks.iter().any(|network| network.contains(ip)))
    }
}

/// TCP keepalive (tcp(7)): probes begin after `idle`, come each `interval`, and `count` unanswered ones end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Whole seconds, at least 1.
    pub idle: Duration,
    /// Whole seconds, at least 1.
    pub interval: Duration,
    /// 1 to 127.
    pub count: u8,
}

impl Keepalive {
    /// How long a peer may acknowledge nothing, probes or bytes, until it is taken for dead.
    pub fn patience(self) -> Duration {
        self.idle.saturating_add(self.interval.saturating_mul(u32::from(self.count)))
    }
}

/// A named set of backends: how to choose among them, how to check them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// How to choose.
    pub balance: Algorithm,
    /// In the order of the file; at least one; names and addresses are unique in the pool.
    pub backends: Vec<Backend>,
    /// How to probe them; `None`: not at all.
    pub health_check: Option<CheckSpec>,
    /// The longest a connect to one backend may take.
    pub connect_timeout: Duration,
    /// The longest time without a byte in the open direction once the other has been shut.
    pub half_close_timeout: Duration,
    /// Other backends tried when a connect fails.
    pub retries: u32,
    /// Where sessions wait while every eligible backend is at its limit, or unproven; `None`: refused at once.
    pub queue: Option<Queue>,
    /// A waiting session whose client has closed is given up, even if the client has sent something before.
    pub abort_on_close: bool,
    /// The PROXY header that its backends expect; `None`: none.
    pub send_proxy: Option<ProxyVersion>,
    /// Connections kept open ahead of need to each backend that may be chosen, by the whole process.
    pub spare_connections: u32,
    /// The longest that one is kept unused.
    pub spare_max_idle: Duration,
}

/// One server of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Unique in the pool.
    pub name: BackendName,
    /// Where it listens.
    pub address: Address,
    /// Its share.
    pub weight: Weight,
    /// Sessions it may have at a time; `None`: no limit.
    pub max_connections: Option<u32>,
    /// Takes sessions only while no other backend of the pool is eligible.
    pub backup: bool,
}

/// A bounded waiting room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Sessions that may wait at a time.
    pub max: u32,
    /// The longest a session waits.
    pub timeout: Duration,
}

/// What takes effect at restart alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Worker threads.
    pub workers: Workers,
    /// Bytes that all stalled sessions together may hold.
    pub buffer_memory: u64,
}

/// How many worker threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// One a CPU that the process may use.
    Auto,
    /// So many.
    Count(NonZeroUsize),
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Where it is; `None`: /run/lbd/control.sock for root and the service, else lbd/control.sock in the user's runtime folder.
    pub socket: Option<PathBuf>,
    /// Its permission bits.
    pub mode: u32,
    /// Its group, by name; `None`: the daemon's own.
    pub group: Option<String>,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Events below it are left out.
    pub level: LogLevel,
    /// Which session ends get a line.
    pub connections: LogConnections,
}

/// Least severe event that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Act now.
    Error,
    /// Look today.
    Warn,
    /// What the operator caused or must be able to date.
    Info,
    /// Per session.
    Debug,
    /// Everything.
    Trace,
}

/// Which session ends get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogConnections {
    /// None.
    Off,
    /// Those that did not end as both peers wished.
    Errors,
    /// Every one.
    All,
}

impl LogLevel {
    /// How the file spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl LogConnections {
    /// How the file spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Errors => "errors",
            Self::All => "all",
        }
    }
}
