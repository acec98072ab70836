//! Performs health checks: one probe now, and a bound on how many run at a time. When to probe and what
//! to believe of the results is decided elsewhere (`health`, the supervisor).

mod exchange;
mod prober;

pub use exchange::{ProbeError, probe};
pub use prober::{Probed, Prober};
