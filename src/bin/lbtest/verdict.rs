//! Turns what happened to each request into counts, percentiles and one verdict: right, or not. Pure: no clock, no
//! socket; the crowd tells it outcomes, `report` words them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::fault::{Fault, Kind};

/// The longest latency told apart; anything longer counts as this long.
const LONGEST: Duration = Duration::from_secs(3600);

/// The outcomes of one worker thread, or of all of them added up.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Requests begun.
    pub requests: u64,
    /// Requests whose whole answer came and was right.
    pub answered: u64,
    /// Requests that were due at the rate asked for, but for which no client was free before the end.
    pub not_sent: u64,
    /// When the last right answer was whole.
    pub last: Option<Instant>,
    /// Connections made.
    pub connections: u64,
    /// From the moment a request was due to the last byte of its answer, in nanoseconds.
    pub latency: Histogram<u64>,
    /// How long each connection took to open, in nanoseconds.
    pub connect: Histogram<u64>,
    /// What went wrong, by kind.
    pub faults: BTreeMap<Kind, Faults>,
}

/// All faults of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// How many.
    pub count: u64,
    /// The first of them: who met it, and what it was.
    pub first: String,
}

impl Tally {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, nanoseconds(LONGEST), 3).expect("1 ns to an hour at 3 digits is in bounds")
        };
        Self {
            requests: 0,
            answered: 0,
            not_sent: 0,
            last: None,
            connections: 0,
            latency: histogram(),
            connect: histogram(),
            faults: BTreeMap::new(),
        }
    }

    /// A connection was made.
    pub fn connected(&mut self, took: Duration) {
        self.connections += 1;
        self.connect.saturating_record(nanoseconds(took));
    }

    /// The request due at `due` had its whole answer at `now`, and it was right.
    pub fn answered(&mut self, due: Instant, now: Instant) {
        self.answered += 1;
        self.last = self.last.max(Some(now));
        self.latency.saturating_record(nanoseconds(now.saturating_duration_since(due)));
    }

    /// Something was wrong, short or missing.
    pub fn failed(&mut self, fault: &Fault, client: u32, request: u32) {
        let first = || format!("client {client}, request {request}: {fault}");
        self.faults.entry(fault.kind).or_insert_with(|| Faults { count: 0, first: first() }).count += 1;
    }

    /// Takes in the outcomes of another thread.
    pub fn add(&mut self, other: Tally) {
        self.requests += other.requests;
        self.answered += other.answered;
        self.not_sent += other.not_sent;
        self.last = self.last.max(other.last);
        self.connections += other.connections;
        self.latency.add(other.latency).expect("both histograms have the same bounds");
        self.connect.add(other.connect).expect("both histograms have the same bounds");
        for (kind, theirs) in other.faults {
            self.faults.entry(kind).and_modify(|ours| ours.count += theirs.count).or_insert(theirs);
        }
    }

    /// Faults of every kind together.
    pub fn faults(&self) -> u64 {
        self.faults.values().map(|faults| faults.count).sum()
    }

    /// What the counts amount to.
    pub fn verdict(&self) -> Verdict {
        match (self.faults(), self.answered) {
            (0, 0) => Verdict::Nothing,
            (0, _) => Verdict::Right,
            (faults, _) => Verdict::Wrong { faults },
        }
    }
}

/// Whether all was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every answer was whole and right.
    Right,
    /// Nothing went wrong because nothing was answered; no proof of anything.
    Nothing,
    /// Answers were wrong, short or missing.
    Wrong {
        /// How many.
        faults: u64,
    },
}

impl Verdict {
    /// The exit status: 0 only where all was right.
    pub fn exit(self) -> u8 {
        u8::from(self != Verdict::Right)
    }
}

/// The figures of a histogram that people compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percentiles {
    /// Half are at most this.
    pub p50: Duration,
    /// Nine of ten are at most this.
    pub p90: Duration,
    /// 99 of 100 are at most this.
    pub p99: Duration,
    /// 999 of 1,000 are at most this.
    pub p999: Duration,
    /// The greatest of all.
    pub max: Duration,
}

impl Percentiles {
    /// The percentiles, or `None` where nothing was recorded.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(histogram.max()),
        })
    }

    /// Name and value, least first.
    pub fn columns(&self) -> [(&'static str, Duration); 5] {
        [("p50", self.p50), ("p90", self.p90), ("p99", self.p99), ("p99.9", self.p999), ("max", self.max)]
    }
}

/// Saturates at what the histogram can hold; 0 becomes 1, its least value.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.min(LONGEST).as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tally: &mut Tally, latency: Duration) {
        let due = Instant::now();
        tally.answered(due, due + latency);
    }

    fn fault(kind: Kind) -> Fault {
        Fault { kind, detail: format!("{kind} seen") }
    }

    #[test]
    fn only_answers_without_a_fault_exit_zero() {
        for (answered, kinds, verdict, exit) in [
            (0, vec![], Verdict::Nothing, 1),
            (1, vec![], Verdict::Right, 0),
            (0, vec![Kind::ConnectRefused], Verdict::Wrong { faults: 1 }, 1),
            (1_000, vec![Kind::WrongBytes], Verdict::Wrong { faults: 1 }, 1),
            (5, vec![Kind::Reset, Kind::Reset, Kind::ClosedEarly], Verdict::Wrong { faults: 3 }, 1),
        ] {
            let mut tally = Tally::new();
            (0..answered).for_each(|_| answer(&mut tally, Duration::from_millis(1)));
            kinds.iter().for_each(|kind| tally.failed(&fault(*kind), 0, 0));
            assert_eq!((tally.verdict(), tally.verdict().exit()), (verdict, exit), "{answered} answered, {kinds:?}");
        }
    }

    #[test]
    fn every_kind_of_fault_alone_condemns() {
        for kind in Kind::ALL {
            let mut tally = Tally::new();
            answer(&mut tally, Duration::from_millis(1));
            tally.failed(&fault(kind), 0, 0);
            assert_eq!(tally.verdict().exit(), 1, "{kind}");
        }
    }

    #[test]
    fn the_first_fault_of_a_kind_is_kept_as_its_example() {
        let mut tally = Tally::new();
        tally.failed(&fault(Kind::Reset), 3, 7);
        tally.failed(&fault(Kind::Reset), 4, 8);
        assert_eq!(tally.faults[&Kind::Reset], Faults { count: 2, first: "client 3, request 7: reset seen".into() });
    }

    #[test]
    fn added_tallies_count_and_rank_as_one() {
        let (mut a, mut b) = (Tally::new(), Tally::new());
        for millis in 1..=100 {
            let tally = if millis % 2 == 0 { &mut a } else { &mut b };
            tally.requests += 1;
            tally.connected(Duration::from_micros(millis));
            answer(tally, Duration::from_millis(millis));
        }
        a.failed(&fault(Kind::Reset), 1, 1);
        b.failed(&fault(Kind::Reset), 2, 2);
        b.failed(&fault(Kind::Timeout), 2, 3);
        a.add(b);
        assert_eq!((a.requests, a.answered, a.connections, a.faults()), (100, 100, 100, 3));
        assert_eq!(a.faults[&Kind::Reset].count, 2);
        let latency = Percentiles::of(&a.latency).unwrap();
        for (name, got, wanted) in [("p50", latency.p50, 50), ("p90", latency.p90, 90), ("p99", latency.p99, 99)] {
            let error = got.abs_diff(Duration::from_millis(wanted));
            assert!(error < Duration::from_micros(wanted), "{name}: {got:?}, three digits of {wanted} ms");
        }
        assert!(latency.p999 >= latency.p99 && latency.max >= latency.p999);
    }

    #[test]
    fn nothing_recorded_has_no_percentiles_and_extremes_are_bounded() {
        assert_eq!(Percentiles::of(&Tally::new().latency), None);
        let mut tally = Tally::new();
        answer(&mut tally, Duration::ZERO);
        answer(&mut tally, LONGEST * 100);
        let latency = Percentiles::of(&tally.latency).unwrap();
        assert_eq!(latency.p50, Duration::from_nanos(1));
        assert!(latency.max >= LONGEST);
    }
}
