//! What can be seen: the documents that `lbctl` shows and that `--json` prints. Pure: whoever holds
//! the snapshot and the counters fills them, this room says what they contain and how they look.

mod human;
pub mod json;
mod stats;
mod stats_text;
mod status;
mod table;

pub use stats::{BackendStats, Counts, ListenerState, ListenerStats, Percentiles, PoolStats, Stats};
pub use status::{BackendsUp, LastReload, ReloadAsker, ReloadResult, RunState, Status};
pub use table::{Colour, Paper};
