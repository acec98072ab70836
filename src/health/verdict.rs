//! What is believed of a backend, probe after probe: consecutive results alone turn it (HAProxy, `check.c`). When to
//! probe is left to the schedule, and who is eligible to the snapshot.

use std::time::Instant;

use crate::words::{CheckSpec, Health};

/// The health of one backend and how it came about.
///
/// The first result decides about an unproven backend, whichever way: one that is fit serves at once, and one whose check
/// fails never serves a client. `rise` and `fall` count from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    health: Health,
    since: Instant,
    against: u32,
    reason: Option<String>,
}

impl Verdict {
    /// Nothing is known yet.
    pub fn unproven(now: Instant) -> Self {
        Self { health: Health::Unproven, since: now, against: 0, reason: None }
    }

    /// A verdict that was come to elsewhere: what is believed, since when, how many results in a row speak against it, and
    /// why the last failed probe failed.
    pub fn found(health: Health, since: Instant, against: u32, reason: Option<String>) -> Self {
        Self { health, since, against, reason }
    }

    /// Takes a probe's result, a failure with its reason, and returns the new health if this turned it.
    ///
    /// A changed `rise` or `fall` applies to what has been counted so far, from the next result on: a reload by itself
    /// turns nobody.
    pub fn record(&mut self, outcome: Result<(), String>, spec: &CheckSpec, now: Instant) -> Option<Health> {
        let (seen, needed) = match (self.health, &outcome) {
            (Health::Unproven, Ok(())) => (Health::Up, 1),
            (Health::Unproven, Err(_)) => (Health::Down, 1),
            (_, Ok(())) => (Health::Up, spec.rise),
            (_, Err(_)) => (Health::Down, spec.fall),
        };
        if let Err(reason) = outcome {
            self.reason = Some(reason);
        }
        if seen == self.health {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        if self.against < needed {
            return None;
        }
        self.health = seen;
        self.since = now;
        self.against = 0;
        Some(seen)
    }

    /// What is believed now.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How many results in a row speak against it so far.
    pub fn against(&self) -> u32 {
        self.against
    }

    /// Why the last failed probe failed, even if others have succeeded since.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether the last probe has failed.
    pub fn has_failed_last(&self) -> bool {
        match self.health {
            Health::Down => self.against == 0,
            _ => self.against > 0,
        }
    }

    /// Whether the last results speak against a verdict, too few so far to turn it.
    pub fn in_transition(&self) -> bool {
        self.health != Health::Unproven && self.against > 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::schedule::spec;
    use super::*;

    /// `+` a success, `-` a failure; what is believed after each: `?` unproven, `U` up, `D` down, in transition `u` or `d`.
    #[test]
    fn consecutive_results_alone_turn_a_backend() {
        for (rise, fall, results, believed) in [
            (2, 3, "+", "U"),
            (2, 3, "-", "D"),
            (2, 3, "-+", "Dd"),
            (2, 3, "+---", "UuuD"),
            (2, 3, "+--+--+---", "UuuUuuUuuD"),
            (2, 3, "-++", "DdU"),
            (2, 3, "--+-+-++", "DDdDdDdU"),
            (1, 1, "-+-+", "DUDU"),
            (3, 1, "+-+++", "UDddU"),
            (0, 0, "-+-", "DUD"), // no file has it, and it is no trap
        ] {
            let now = Instant::now();
            let mut verdict = Verdict::unproven(now);
            let mut seen = String::new();
            for result in results.chars() {
                verdict.record(outcome(result == '+'), &spec(rise, fall), now);
                seen.push(match (verdict.health(), verdict.in_transition()) {
                    (Health::Unproven, false) => '?',
                    (Health::Up, false) => 'U',
                    (Health::Up, true) => 'u',
                    (Health::Down, false) => 'D',
                    (Health::Down, true) => 'd',
                    (Health::Unproven, true) | (Health::Unchecked, _) => unreachable!(),
                });
            }
            assert_eq!(seen, believed, "rise {rise}, fall {fall}: {results}");
        }
    }

    #[test]
    fn the_reason_is_that_of_the_last_failure() {
        let now = Instant::now();
        let mut verdict = Verdict::unproven(now);
        assert_eq!(verdict.reason(), None);
        for why in ["timed out", "refused"] {
            verdict.record(Err(why.into()), &spec(1, 1), now);
        }
        verdict.record(Ok(()), &spec(1, 1), now);
        assert_eq!((verdict.health(), verdict.reason()), (Health::Up, Some("refused")));
    }

    #[test]
    fn a_changed_fall_counts_what_has_failed_and_waits_for_the_next_result() {
        let now = Instant::now();
        let after = |next: bool, fall: u32| {
            let mut verdict = Verdict::unproven(now);
            verdict.record(Ok(()), &spec(2, 5), now);
            for _ in 0..3 {
                verdict.record(outcome(false), &spec(2, 5), now);
            }
            assert_eq!(verdict.health(), Health::Up);
            verdict.record(outcome(next), &spec(2, fall), now)
        };
        assert_eq!(after(false, 2), Some(Health::Down));
        assert_eq!(after(true, 2), None);
        assert_eq!(after(false, 9), None);
    }

    fn outcome(success: bool) -> Result<(), String> {
        if success { Ok(()) } else { Err("refused".into()) }
    }

    proptest! {
        #[test]
        fn it_turns_exactly_when_as_many_in_a_row_say_so(
            results in prop::collection::vec(prop::bool::weighted(0.5), 1..60), rise in 1usize..4, fall in 1usize..4,
        ) {
            let start = Instant::now();
            let mut verdict = Verdict::unproven(start);
            let mut since = start;
            for n in 1..=results.len() {
                let now = start + Duration::from_secs(n as u64);
                let before = verdict.health();
                let turned = verdict.record(outcome(results[n - 1]), &spec(rise as u32, fall as u32), now);

                let last = |k: usize, success: bool| n >= k && results[n - k..n].iter().all(|&r| r == success);
                let expected = match before {
                    Health::Unproven if last(1, true) => Health::Up,
                    Health::Unproven => Health::Down,
                    Health::Down if last(rise, true) => Health::Up,
                    Health::Up if last(fall, false) => Health::Down,
                    unchanged => unchanged,
                };
                if expected != before {
                    since = now;
                }
                prop_assert_eq!(verdict.health(), expected);
                prop_assert_eq!(turned, (expected != before).then_some(expected));
                prop_assert_eq!(verdict.since(), since);
            }
        }
    }
}
