//! What carried sessions call their listeners, pools and backends. Each is spelled once and known by its number, which
//! is what a session carries; and the cells behind the names are made again here, those of what was removed included.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::assemble::Unfit;
use super::{CarriedSession, CarriedWorker};
use crate::snapshot::{BackendCell, Cells, ListenerCell, PoolCell, Snapshot};
use crate::words::{Address, BackendName, BackendRef, ListenerName, PoolName};

/// A word that travels as it is spelled, and is checked like any other text when it comes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spelled<T>(pub T);

impl<T: Display> Serialize for Spelled<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Spelled<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// Names by number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names {
    /// Of listeners.
    pub listeners: Vec<NamedListener>,
    /// Of pools: every one of the configuration, for their tickets.
    pub pools: Vec<NamedPool>,
    /// Of backends.
    pub backends: Vec<NamedBackend>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedListener {
    /// Its name.
    pub name: Spelled<ListenerName>,
    /// When it left the configuration.
    pub removed: Option<u64>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPool {
    /// Its name.
    pub name: Spelled<PoolName>,
    /// The next session's ticket.
    pub ticket: u64,
}

/// A backend, which is another one at another address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NamedBackend {
    /// Its pool, by number.
    pub pool: u32,
    /// Its name.
    pub name: Spelled<BackendName>,
    /// Where it listens.
    pub address: Spelled<Address>,
    /// When it left the configuration.
    pub removed: Option<u64>,
}

/// Makes sure that there are cells for all that is carried, before the register settles on the configuration: what that
/// does not have was removed when it was, or now.
pub fn recall(workers: &[CarriedWorker], cells: &mut Cells) {
    for names in workers.iter().map(|worker| &worker.names) {
        for pool in &names.pools {
            cells.recall_pool(&pool.name.0).ticket.fetch_max(pool.ticket, Relaxed);
        }
        for listener in &names.listeners {
            cells.recall_listener(&listener.name.0, listener.removed);
        }
        for backend in &names.backends {
            if let Some(reference) = names.reference(backend) {
                cells.recall_backend(reference, backend.address.0.clone(), backend.removed);
            }
        }
    }
}

impl Names {
    fn reference(&self, backend: &NamedBackend) -> Option<BackendRef> {
        let pool = self.pools.get(backend.pool as usize)?.name.0.clone();
        Some(BackendRef { pool, backend: backend.name.0.clone() })
    }

    /// The cells behind the names. One that is not there, which [`recall`] sees to, is missed by whoever needs it.
    pub fn cells(&self, cells: &Cells) -> Resolved {
        let backend = |b: &NamedBackend| cells.backend(&self.reference(b)?, &b.address.0).cloned();
        Resolved {
            listeners: self.listeners.iter().map(|l| cells.listener(&l.name.0).cloned()).collect(),
            pools: self.pools.iter().map(|p| cells.pool(&p.name.0).cloned()).collect(),
            backends: self.backends.iter().map(backend).collect(),
        }
    }

    /// Whether a backend has this number, and a pool.
    pub(super) fn has_backend(&self, number: u32) -> bool {
        self.backends.get(number as usize).is_some_and(|backend| (backend.pool as usize) < self.pools.len())
    }

    /// Whether all that a session names is here.
    pub(super) fn know(&self, session: &CarriedSession) -> Result<(), Unfit> {
        let CarriedSession { key, listener, pool, backend, tried, send_proxy, .. } = session;
        let known = (*listener as usize) < self.listeners.len()
            && (*pool as usize) < self.pools.len()
            && backend.iter().chain(tried).all(|backend| self.has_backend(*backend))
            && send_proxy.is_none_or(|version| (1..=2).contains(&version));
        if known { Ok(()) } else { Err(Unfit(format!("session {key} names what nobody knows"))) }
    }

    /// Takes the names of another worker in; where its numbers are here.
    pub(super) fn merge(&mut self, other: &Names) -> Renumbered {
        let listeners = places(&mut self.listeners, other.listeners.iter().cloned(), |l| l.name.clone());
        let pools = places(&mut self.pools, other.pools.iter().cloned(), |p| p.name.clone());
        let backends = other.backends.iter().cloned().map(|b| {
            let pool = pools.get(b.pool as usize).copied().unwrap_or(u32::MAX);
            NamedBackend { pool, ..b }
        });
        let backends = places(&mut self.backends, backends, |b| (b.pool, b.name.clone(), b.address.clone()));
        Renumbered { listeners, backends, pools }
    }
}

/// Where each of the others is among all, to which it is added where it is new. There may be thousands.
fn places<T, K: Hash + Eq>(all: &mut Vec<T>, others: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<u32> {
    let mut known: HashMap<K, u32> = all.iter().enumerate().map(|(at, one)| (key(one), at as u32)).collect();
    let place = |one: T| {
        *known.entry(key(&one)).or_insert_with(|| {
            all.push(one);
            all.len() as u32 - 1
        })
    };
    others.map(place).collect()
}

/// Cells by number.
pub struct Resolved {
    listeners: Vec<Option<Arc<ListenerCell>>>,
    pools: Vec<Option<Arc<PoolCell>>>,
    backends: Vec<Option<Arc<BackendCell>>>,
}

impl Resolved {
    pub(super) fn listener(&self, number: u32) -> Result<Arc<ListenerCell>, Unfit> {
        one_of(&self.listeners, "listener", number)
    }

    pub(super) fn pool(&self, number: u32) -> Result<Arc<PoolCell>, Unfit> {
        one_of(&self.pools, "pool", number)
    }

    pub(super) fn backend(&self, number: u32) -> Result<Arc<BackendCell>, Unfit> {
        one_of(&self.backends, "backend", number)
    }
}

fn one_of<T>(all: &[Option<Arc<T>>], what: &str, number: u32) -> Result<Arc<T>, Unfit> {
    let named = all.get(number as usize).cloned().flatten();
    named.ok_or_else(|| Unfit(format!("{what} number {number} has no name; there are {}", all.len())))
}

/// New numbers by old ones.
pub(super) struct Renumbered {
    pub listeners: Vec<u32>,
    pub pools: Vec<u32>,
    pub backends: Vec<u32>,
}

/// Gives names their numbers while a picture is taken.
pub(super) struct Naming {
    names: Names,
    /// By the address of the cell.
    listeners: HashMap<usize, u32>,
    pools: HashMap<usize, u32>,
    backends: HashMap<usize, u32>,
}

impl Naming {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let none = HashMap::new;
        let mut naming = Self { names: Names::default(), listeners: none(), pools: none(), backends: none() };
        for pool in &snapshot.pools {
            naming.pool(&pool.cell);
        }
        naming
    }

    pub(super) fn listener(&mut self, cell: &Arc<ListenerCell>) -> u32 {
        *self.listeners.entry(Arc::as_ptr(cell).addr()).or_insert_with(|| {
            let named = NamedListener { name: Spelled(cell.name.clone()), removed: cell.removed_since() };
            numbered(&mut self.names.listeners, named)
        })
    }

    pub(super) fn pool(&mut self, cell: &Arc<PoolCell>) -> u32 {
        *self.pools.entry(Arc::as_ptr(cell).addr()).or_insert_with(|| {
            let named = NamedPool { name: Spelled(cell.name.clone()), ticket: cell.ticket.load(Relaxed) };
            numbered(&mut self.names.pools, named)
        })
    }

    pub(super) fn backend(&mut self, cell: &Arc<BackendCell>) -> u32 {
        let place = Arc::as_ptr(cell).addr();
        if let Some(number) = self.backends.get(&place) {
            return *number;
        }
        let named = NamedBackend {
            pool: self.pool(&cell.pool),
            name: Spelled(cell.reference.backend.clone()),
            address: Spelled(cell.address.clone()),
            removed: cell.removed_since(),
        };
        let number = numbered(&mut self.names.backends, named);
        self.backends.insert(place, number);
        number
    }

    pub(super) fn done(self) -> Names {
        self.names
    }
}

fn numbered<T>(all: &mut Vec<T>, one: T) -> u32 {
    all.push(one);
    (all.len() - 1) as u32
}
