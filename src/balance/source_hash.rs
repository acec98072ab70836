//! The client's address decides: weighted rendezvous hashing (Thaler and Ravishankar 1998; weights as in Schindelhauer
//! and Schomaker 2005). Every candidate has an order of preference with every client, and no candidate's depends on
//! another's: one that goes moves its own clients alone, one that comes takes only those it wins.

use super::hash::{mix, of_name};
use super::{Ask, Candidate};

#[derive(Debug)]
pub(super) struct SourceHash {
    runners: Box<[Runner]>,
}

#[derive(Debug)]
struct Runner {
    name: u64,
    pace: f64,
}

impl SourceHash {
    pub(super) fn new(candidates: &[Candidate<'_>]) -> Self {
        let runner = |c: &Candidate<'_>| Runner { name: of_name(c.name), pace: f64::from(c.weight.value()).recip() };
        Self { runners: candidates.iter().map(runner).collect() }
    }

    /// A race: each usable candidate takes an exponentially distributed time of mean 1 / weight, so that it is the
    /// first with a chance in proportion to its weight.
    pub(super) fn pick(&self, ask: &Ask<'_>) -> Option<usize> {
        let mut first = None;
        let mut best = f64::INFINITY; // the time of a candidate of weight 0
        for (i, runner) in self.runners.iter().enumerate() {
            let time = exponential(mix(ask.client ^ runner.name)) * runner.pace;
            if time < best && (ask.usable)(i) {
                best = time;
                first = Some(i);
            }
        }
        first
    }
}

/// The negative logarithm, to base 2, of the bits taken as a number between 0 and 1. By a series of sums and products,
/// because `f64::log2` may differ between platforms and every node of a fleet must come to the same order.
fn exponential(bits: u64) -> f64 {
    let odd = (bits >> 12) << 1 | 1; // never 0; 53 bits, which f64 holds exactly: the number is odd / 2^53
    let exponent = 63 - odd.leading_zeros();
    let mantissa = odd as f64 / (1u64 << exponent) as f64; // 1 to 2
    let s = (mantissa - std::f64::consts::SQRT_2) / (mantissa + std::f64::consts::SQRT_2); // within 0.172
    let s2 = s * s;
    let series = s * (1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 / 9.0)))); // error about 1e-9
    f64::from(53 - exponent) - 0.5 - series * (2.0 * std::f64::consts::LOG2_E)
}
