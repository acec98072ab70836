//! The only `ArcSwap`: one [`Publisher`] for the supervisor, a [`Reader`] for each worker. A reader's
//! look costs a nanosecond while nothing has changed and never waits.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::Snapshot;

/// Puts snapshots in force. Not `Clone`: who holds it is the one that decides.
#[derive(Debug)]
pub struct Publisher(Arc<ArcSwap<Snapshot>>);

/// Sees the snapshot in force.
#[derive(Debug, Clone)]
pub struct Reader(Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>);

/// Puts the first snapshot in force.
pub fn publish_first(first: impl Into<Arc<Snapshot>>) -> (Publisher, Reader) {
    let shared = Arc::new(ArcSwap::new(first.into()));
    (Publisher(Arc::clone(&shared)), Reader(Cache::new(shared)))
}

impl Publisher {
    /// Puts a snapshot in force.
    pub fn publish(&self, next: Arc<Snapshot>) {
        self.0.store(next);
    }
}

impl Reader {
    /// The snapshot in force now.
    pub fn look(&mut self) -> &Arc<Snapshot> {
        self.0.load()
    }
}
