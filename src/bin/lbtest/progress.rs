//! The line a second on stderr while the clients work; on a terminal it rewrites itself.

use std::io::{self, IsTerminal, Write};

use crate::crowd::Until;
use crate::report::{grouped, human};
use crate::verdict::{Percentiles, Tally};

/// What has been shown so far.
pub struct Progress {
    terminal: bool,
    of: String,
    seconds: u64,
    last: Tally,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new(until: Until) -> Self {
        let of = match until {
            Until::Elapsed(duration) => format!("/{:.0}", duration.as_secs_f64()),
            Until::Requests(_) => String::new(),
        };
        Self { terminal: io::stderr().is_terminal(), of, seconds: 0, last: Tally::new() }
    }

    /// Another second has passed, and `total` is what has happened since the start.
    pub fn second(&mut self, total: &Tally) {
        self.seconds += 1;
        let answered = total.answered - self.last.answered;
        let mut latency = total.latency.clone();
        latency.subtract(&self.last.latency).expect("counts only grow, in the same bounds");
        let p99 = Percentiles::of(&latency).map_or_else(|| "-".to_owned(), |latency| human(latency.p99));
        let line = format!(
            "{:>3}{} s  {:>9} requests/s  p99 {p99:>8}  {} faults",
            self.seconds,
            self.of,
            grouped(answered),
            grouped(total.faults())
        );
        self.show(&line);
        self.last = total.clone();
    }

    /// The user wants it to end.
    pub fn stopping(&self) {
        self.end();
        self.show("stopping once the requests in flight are answered; again to stop at once");
    }

    /// Leaves the line that was rewritten.
    pub fn end(&self) {
        if self.terminal && self.seconds > 0 {
            let _ = writeln!(io::stderr());
        }
    }

    // A closed stderr is no reason to end a measurement.
    fn show(&self, line: &str) {
        let mut stderr = io::stderr().lock();
        let _ = if self.terminal { write!(stderr, "\r{line}\x1b[K") } else { writeln!(stderr, "{line}") };
        let _ = stderr.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_second_is_shown_by_what_it_added() {
        let mut progress = Progress::new(Until::Elapsed(Duration::from_secs(2)));
        let mut tally = Tally::new();
        let due = std::time::Instant::now();
        for _ in 0..2 {
            tally.answered(due, due + Duration::from_millis(1));
            progress.second(&tally);
        }
        assert_eq!((progress.seconds, progress.last.answered, progress.last.latency.len()), (2, 2, 2));
    }
}
