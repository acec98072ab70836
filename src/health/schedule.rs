//! When the next probe of a backend is due. Randomness comes from the caller, 64 fresh bits a question.

use std::time::{Duration, Instant};

use super::Verdict;
use crate::words::{CheckSpec, Health};

/// How long after the start of one probe the next is due, given what is believed after it: `fast_interval` while
/// unproven or in transition, `down_interval` while down, else `interval`; each less up to the jitter, and of a backend
/// that is up and settled also more.
pub fn next_probe_in(verdict: &Verdict, spec: &CheckSpec, random: u64) -> Duration {
    let interval = match verdict.health() {
        _ if verdict.in_transition() => spec.fast_interval,
        Health::Unproven => spec.fast_interval,
        Health::Down => spec.down_interval,
        Health::Up | Health::Unchecked => spec.interval,
    };
    let jitter = f64::from(spec.jitter.value()) / 100.0;
    let either_way = 2.0 * fraction(random) - 1.0;
    // One that does not serve is not to wait longer than was asked for: it is to be back within two intervals.
    let settled = verdict.health() == Health::Up && !verdict.in_transition();
    let moved = 1.0 + jitter * if settled { either_way } else { either_way.min(0.0) };
    // Out of range is a wait of centuries; there the jitter does not matter.
    Duration::try_from_secs_f64(interval.as_secs_f64() * moved).unwrap_or(interval)
}

/// When to probe a backend to which a session could not connect: at once (a time in the past), but not within
/// `fast_interval` of the `last` probe's start, and no later than `next`, when it is due anyway. Traffic does not turn
/// the verdict; it only hastens the probe that may, and only of an up backend does it say anything new.
pub fn probe_after_dial_failure(verdict: &Verdict, spec: &CheckSpec, last: Instant, next: Instant) -> Instant {
    match (verdict.health(), last.checked_add(spec.fast_interval)) {
        (Health::Up, Some(early)) => early.min(next),
        _ => next,
    }
}

/// At least 0 and below 1.
fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

/// A check as the tests of this room use it.
#[cfg(test)]
pub(super) fn spec(rise: u32, fall: u32) -> CheckSpec {
    CheckSpec {
        port: None,
        send_proxy: None,
        send: None,
        expect: None,
        interval: Duration::from_secs(2),
        fast_interval: Duration::from_millis(500),
        down_interval: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        rise,
        fall,
        jitter: crate::words::Percent::new(10).unwrap(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Percent;

    const MIDDLE: u64 = 1 << 63; // no jitter

    fn after(results: &str, now: Instant) -> Verdict {
        let mut verdict = Verdict::unproven(now);
        for result in results.chars() {
            let outcome = if result == '+' { Ok(()) } else { Err("refused".into()) };
            verdict.record(outcome, &spec(2, 3), now);
        }
        verdict
    }

    #[test]
    fn the_wait_follows_from_what_is_believed() {
        for (results, wait) in [
            ("", 500),
            ("+", 2000),
            ("++", 2000),
            ("+-", 500),
            ("+--", 500),
            ("+-+", 2000),
            ("-", 5000),
            ("-+", 500),
            ("-+-", 5000),
            ("-++", 2000),
        ] {
            let verdict = after(results, Instant::now());
            assert_eq!(next_probe_in(&verdict, &spec(2, 3), MIDDLE), Duration::from_millis(wait), "{results:?}");
        }
    }

    #[test]
    fn jitter_reaches_as_far_as_it_may_and_no_farther() {
        let up = after("+", Instant::now());
        let mut spec = spec(2, 3);
        for (percent, least, most) in [(0, 2000, 2000), (10, 1800, 2200), (100, 0, 4000)] {
            spec.jitter = Percent::new(percent).unwrap();
            assert_eq!(next_probe_in(&up, &spec, 0), Duration::from_millis(least));
            let longest = next_probe_in(&up, &spec, u64::MAX);
            assert!(longest.abs_diff(Duration::from_millis(most)) < Duration::from_micros(1), "{longest:?}");
        }
        spec.interval = Duration::MAX;
        assert_eq!(next_probe_in(&up, &spec, u64::MAX), Duration::MAX);
    }

    #[test]
    fn a_dial_failure_brings_the_probe_of_an_up_backend_forward() {
        let last = Instant::now();
        let at = |ms| last + Duration::from_millis(ms);
        for (results, next, probe) in [
            ("+", 2000, 500), // not within the fast interval
            ("+", 300, 300),  // due earlier anyway
            ("+-", 500, 500),
            ("-", 5000, 5000),
            ("", 600, 600),
        ] {
            let verdict = after(results, last);
            assert_eq!(probe_after_dial_failure(&verdict, &spec(2, 3), last, at(next)), at(probe), "{results:?}");
        }
    }
}
