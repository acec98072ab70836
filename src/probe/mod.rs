//! Performs health checks: one probe of a backend whenever it is asked for, and a bound on how many run at a time, of which
//! each pool has its part. When to probe and what to believe of the results is decided elsewhere (`health`, the supervisor).

mod closing;
mod exchange;
mod places;
mod prober;
mod socket;

pub use exchange::ProbeError;
pub use places::Outlook;
pub use prober::{Prober, Report, most_at_a_time};
