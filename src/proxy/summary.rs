//! Equal errors of sessions, summed for the log: the first is told at once, those of the second behind it as one number.

use std::fmt::Write;

use tracing::info;

use super::session::Session;
use super::worker::Worker;
use crate::words::{Cause, Happening, Phase, Refusal};

/// How long equal errors are summed, in microseconds.
const SPAN: u64 = 1_000_000;
/// Kinds of errors that are told apart at a time; those behind them are summed by their cause alone.
const KINDS: usize = 64;

/// What makes errors equal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    /// Listener, pool and backend; `None` where there are too many kinds.
    place: Option<[String; 3]>,
    cause: Cause,
    phase: Phase,
    refused: Option<Refusal>,
}

/// The errors of the last second.
#[derive(Debug, Default)]
pub(super) struct Summary {
    kinds: Vec<(Kind, u64, u64)>,
}

impl Summary {
    /// When the first sum is to be told.
    pub fn due(&self) -> u64 {
        self.kinds.iter().map(|(_, since, _)| since + SPAN).min().unwrap_or(u64::MAX)
    }

    /// Takes note of an error; true where it is to be told by itself.
    fn tell(&mut self, mut kind: Kind, now: u64) -> bool {
        if self.kinds.len() >= KINDS && !self.kinds.iter().any(|(known, ..)| *known == kind) {
            kind.place = None;
        }
        if let Some((.., more)) = self.kinds.iter_mut().find(|(known, ..)| *known == kind) {
            *more += 1;
            return false;
        }
        self.kinds.push((kind, now, 0));
        true
    }

    /// Sums whose second is over.
    fn take(&mut self, now: u64) -> Vec<(Kind, u64)> {
        let (over, on) = std::mem::take(&mut self.kinds).into_iter().partition(|(_, since, _)| since + SPAN <= now);
        self.kinds = on;
        let over: Vec<(Kind, u64, u64)> = over;
        over.into_iter().filter(|(.., more)| *more > 0).map(|(kind, _, more)| (kind, more)).collect()
    }
}

/// Whose fault the end of a session was, and how far it had come, in two letters.
pub(super) fn letters(cause: Cause, phase: Phase) -> String {
    format!("{}{}", cause.letter(), if cause == Cause::Normal { '-' } else { phase.letter() })
}

/// `4321` as `4,321`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        let _ = if n > 0 && (digits.len() - n).is_multiple_of(3) {
            write!(text, ",{digit}")
        } else {
            write!(text, "{digit}")
        };
    }
    text
}

impl Worker {
    /// Whether the error of a session is to be told by itself, rather than with equal ones.
    pub(super) fn is_told_alone(&mut self, key: usize, cause: Cause, phase: Phase) -> bool {
        let session = &self.sessions[key];
        let backend = session.last_backend().map_or("-", |backend| backend.reference.backend.as_str());
        let place = [session.listener.name.as_str(), session.pool.name.as_str(), backend].map(str::to_owned);
        let Session { refused, .. } = session;
        self.summary.tell(Kind { place: Some(place), cause, phase, refused: *refused }, self.now)
    }

    /// Tells how many equal errors there were behind those that were told, up to now.
    pub(super) fn tell_sums(&mut self, now: u64) {
        for (Kind { place, cause, phase, refused }, more) in self.summary.take(now) {
            let [listener, pool, backend] = place.unwrap_or_else(|| ["-"; 3].map(str::to_owned));
            info!(
                target: "lbd::session",
                event = Happening::SessionEnded.as_str(),
                listener,
                pool,
                backend,
                end = letters(cause, phase),
                cause = refused.map_or(cause.as_str(), Refusal::as_str),
                more,
                "and {} more",
                grouped(more)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(backend: &str, cause: Cause) -> Kind {
        let place = Some(["web".into(), "web".into(), backend.to_owned()]);
        Kind { place, cause, phase: Phase::Data, refused: None }
    }

    #[test]
    fn of_equal_errors_of_a_second_the_first_is_told_and_the_others_are_a_number() {
        let mut summary = Summary::default();
        assert!(summary.tell(kind("a", Cause::Client), 5));
        assert!(summary.tell(kind("a", Cause::Server), 6) && summary.tell(kind("b", Cause::Client), 7));
        assert!((0..4321).all(|_| !summary.tell(kind("a", Cause::Client), 8)));
        assert_eq!((summary.due(), summary.take(SPAN + 4)), (SPAN + 5, vec![]));
        assert_eq!(summary.take(SPAN + 5), [(kind("a", Cause::Client), 4321)]);
        assert!(summary.tell(kind("a", Cause::Client), SPAN + 6), "the next second has a first of its own");
        assert_eq!((summary.take(u64::MAX), summary.due()), (vec![], u64::MAX));
        assert_eq!([0, 999, 1000, 4321, 1_234_567].map(grouped), ["0", "999", "1,000", "4,321", "1,234,567"]);
    }

    #[test]
    fn kinds_beyond_those_told_apart_are_summed_by_their_cause() {
        let mut summary = Summary::default();
        let told = (0..10_000).filter(|n| summary.tell(kind(&n.to_string(), Cause::Client), 5)).count();
        assert_eq!((told, summary.kinds.len()), (KINDS + 1, KINDS + 1));
        assert_eq!(
            summary.take(u64::MAX),
            [(Kind { place: None, ..kind("", Cause::Client) }, (10_000 - KINDS - 1) as u64)]
        );
    }
}
