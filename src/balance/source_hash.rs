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
    let float = (odd as f64).to_bits();
    let exponent = (float >> 52) as u32 - 1023; // the bias of IEEE 754
    let mantissa = f64::from_bits(float & ((1 << 52) - 1) | 1f64.to_bits()); // 1 to 2
    let s = (mantissa - std::f64::consts::SQRT_2) / (mantissa + std::f64::consts::SQRT_2); // within 0.172
    let s2 = s * s;
    let series = s * (1.0 + s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 / 9.0)))); // error about 1e-9
    52.5 - f64::from(exponent) - series * (2.0 * std::f64::consts::LOG2_E)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{counts, idle, pool, weights_up_to};
    use super::*;

    fn picks(candidates: &[Candidate<'_>], clients: u64) -> Vec<usize> {
        let way = SourceHash::new(candidates);
        (0..clients).map(|client| way.pick(&idle(client)).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn one_that_goes_moves_its_own_clients_alone(weights in weights_up_to(8, 1..=256), gone in 0usize..7) {
            prop_assume!(gone < weights.len() && weights.len() > 1);
            let pool = pool(&weights);
            let mut rest = pool.candidates();
            rest.remove(gone);
            for (before, after) in picks(&pool.candidates(), 500).into_iter().zip(picks(&rest, 500)) {
                prop_assert!(before == gone || pool.candidates()[before].name == rest[after].name);
            }
        }

        #[test]
        fn a_greater_weight_takes_clients_and_moves_no_others(weights in weights_up_to(8, 1..=200), heavier in 0usize..8) {
            prop_assume!(heavier < weights.len());
            let mut after = weights.clone();
            after[heavier] += 50;
            let before = picks(&pool(&weights).candidates(), 500);
            for (before, after) in before.into_iter().zip(picks(&pool(&after).candidates(), 500)) {
                prop_assert!(after == before || after == heavier);
            }
        }

        #[test]
        fn an_unusable_one_is_to_its_clients_as_if_it_were_gone(weights in weights_up_to(8, 1..=256), client: u64) {
            let pool = pool(&weights);
            let way = SourceHash::new(&pool.candidates());
            let mut rest = pool.candidates();
            while let Some(best) = SourceHash::new(&rest).pick(&Ask { client, ..idle(0) }) {
                let left: Vec<&str> = rest.iter().map(|c| c.name).collect();
                let usable = |i: usize| left.contains(&pool.candidates()[i].name);
                let picked = way.pick(&Ask { client, usable: &usable, ..idle(0) }).unwrap();
                prop_assert_eq!(pool.candidates()[picked].name, rest[best].name);
                rest.remove(best);
            }
        }
    }

    #[test]
    fn each_has_clients_in_proportion_to_its_weight() {
        let weights = [1, 2, 3, 10, 256];
        let clients = 200_000;
        let counts = counts(weights.len(), picks(&pool(&weights).candidates(), clients).into_iter());
        for (count, weight) in counts.iter().zip(weights) {
            let even = f64::from(weight) * clients as f64 / 272.0;
            assert!((f64::from(*count) - even).abs() < 4.0 * even.sqrt(), "{count} for {even}");
        }
    }

    #[test]
    fn picks_never_change_between_versions() {
        assert_eq!(picks(&pool(&[1, 2, 3, 2]).candidates(), 12), [1, 2, 2, 3, 3, 1, 0, 3, 3, 3, 3, 3]);
    }

    #[test]
    fn the_logarithm_is_that_of_the_books() {
        let step = u64::MAX / 9973;
        for bits in (0..9973).map(|k| k * step).chain([0, u64::MAX]) {
            let number = ((bits >> 12) as f64 + 0.5) / 2f64.powi(52);
            assert!((exponential(bits) + number.log2()).abs() < 2e-9, "{bits:#x}");
        }
    }
}
