//! Is a backend fit to serve: what is believed after each probe ([`Verdict`]), and when the next one is due. Pure:
//! the prober brings results and the time, and does as it is told.

mod schedule;
mod verdict;

pub use schedule::{next_probe_in, probe_after_dial_failure};
pub use verdict::Verdict;
