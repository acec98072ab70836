//! The one picture that sessions read: which listeners, pools and backends there are and who may be
//! chosen. A [`Snapshot`] never changes; a change of anything builds the next one and publishes it.
//! What must outlive a change (counters, tickets) hangs in the [`Cells`] that snapshots share.

mod build;
mod carried;
mod cells;
mod counters;
mod histogram;
mod model;
mod shared;
mod waiting;

pub use build::{BackendFacts, build, update};
pub use carried::CarriedCells;
pub use cells::{BackendCell, Cells, ListenerCell, Live, PoolCell};
pub use counters::{BackendShard, Count, ListenerShard, Padded};
pub use histogram::{Histogram, Percentile};
pub use model::{Backend, Listener, Pool, Revision, Snapshot};
pub use shared::{Publisher, Reader, publish_first};
