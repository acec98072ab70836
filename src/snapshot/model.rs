//! The picture itself. Plain, immutable, cheap to look things up in from a worker's turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::cells::{BackendCell, ListenerCell, PoolCell};
use crate::balance::Balancer;
use crate::config::{AcceptProxy, Keepalive, LogConnections, Queue};
use crate::words::{
    Address, AdminState, Algorithm, BackendRef, Generation, Health, ListenerName, PoolName, ProxyVersion, Weight,
};

/// The number of a snapshot; workers acknowledge by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

/// What is in force, whole.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration it shows.
    pub generation: Generation,
    /// Its own number: one more at each change of anything, health and the operator's decisions included.
    pub revision: Revision,
    /// By name.
    pub listeners: Vec<Arc<Listener>>,
    /// By name.
    pub pools: Vec<Arc<Pool>>,
    /// How long sessions of removed listeners and backends may go on; `None`: for ever.
    pub removed_timeout: Option<Duration>,
    /// Which session ends get a line.
    pub log: LogConnections,
    pub(super) by_address: HashMap<Address, Arc<Listener>>,
}

/// Where clients come in.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Identity and counters.
    pub cell: Arc<ListenerCell>,
    /// As the file has them.
    pub addresses: Vec<Address>,
    /// Who serves its clients.
    pub pool: Arc<Pool>,
    /// Sessions at which it stops accepting.
    pub max_connections: Option<u32>,
    /// The longest time without a byte in either direction; `Duration::MAX`: no limit.
    pub idle_timeout: Duration,
    /// How dead peers are found.
    pub keepalive: Keepalive,
    /// Whose connections begin with a PROXY header.
    pub accept_proxy: Option<AcceptProxy>,
}

/// Who serves.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Identity and tickets.
    pub cell: Arc<PoolCell>,
    /// How it chooses.
    pub balance: Algorithm,
    /// In the order of the file.
    pub backends: Vec<Backend>,
    /// Positions in `backends` of those that may be chosen; the balancer's answers index it.
    pub eligible: Vec<u16>,
    /// Nobody is eligible, but somebody may be once it has been probed: sessions wait for that.
    pub awaits_verdict: bool,
    /// Chooses among the eligible.
    pub balancer: Arc<Balancer>,
    /// The longest a connect may take.
    pub connect_timeout: Duration,
    /// The longest time without a byte in the open direction once the other has been shut.
    pub half_close_timeout: Duration,
    /// Other backends tried when a connect fails.
    pub retries: u32,
    /// Where sessions wait for a place.
    pub queue: Option<Queue>,
    /// A waiting session whose client has closed is given up, even if the client has sent something.
    pub abort_on_close: bool,
    /// The PROXY header that its backends expect.
    pub send_proxy: Option<ProxyVersion>,
    /// Connections kept open ahead of need to each eligible backend, by all workers together.
    pub spare_connections: u32,
    /// The longest that one is kept unused.
    pub spare_max_idle: Duration,
}

/// One server of a pool, as it stands.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Identity and counters.
    pub cell: Arc<BackendCell>,
    /// Its share.
    pub weight: Weight,
    /// Sessions it may have at a time.
    pub max_connections: Option<u32>,
    /// Takes sessions only while no other is eligible.
    pub backup: bool,
    /// What probes say.
    pub health: Health,
    /// What the operator wants.
    pub admin: AdminState,
}

impl Snapshot {
    /// Before anything was configured.
    pub fn empty() -> Self {
        Self {
            generation: Generation::default(),
            revision: Revision::default(),
            listeners: Vec::new(),
            pools: Vec::new(),
            removed_timeout: None,
            log: LogConnections::Errors,
            by_address: HashMap::new(),
        }
    }

    /// The listener that owns an address.
    pub fn listener_at(&self, address: &Address) -> Option<&Arc<Listener>> {
        self.by_address.get(address)
    }

    /// A listener by name.
    pub fn listener(&self, name: &ListenerName) -> Option<&Arc<Listener>> {
        let at = self.listeners.binary_search_by(|l| l.cell.name.cmp(name)).ok()?;
        Some(&self.listeners[at])
    }

    /// A pool by name.
    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        let at = self.pools.binary_search_by(|p| p.cell.name.cmp(name)).ok()?;
        Some(&self.pools[at])
    }

    /// A backend by pool and name.
    pub fn backend(&self, reference: &BackendRef) -> Option<&Backend> {
        self.pool(&reference.pool)?.backends.iter().find(|b| b.cell.reference.backend == reference.backend)
    }
}
