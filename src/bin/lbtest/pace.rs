//! An open loop: requests become due at a fixed rate, whether or not earlier ones have been answered, and latencies count
//! from then. So a stall shows in every request it delayed, not only in the one it caught (coordinated omission, G. Tene).

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// The due times of all requests. Any free client takes the next.
pub struct Pace {
    rate: u64,
    start: OnceLock<Instant>,
    due: Semaphore,
    taken: AtomicU64,
}

/// Requests become due until this is stopped.
pub struct Running {
    pace: Arc<Pace>,
    thread: JoinHandle<()>,
}

impl Pace {
    /// `rate` requests a second, from the start on.
    pub fn new(rate: u64) -> Self {
        Self { rate, start: OnceLock::new(), due: Semaphore::new(0), taken: AtomicU64::new(0) }
    }

    /// Starts now.
    pub fn start(self: Arc<Self>) -> io::Result<Running> {
        // A thread that sleeps, because tokio's timers have steps of a millisecond: many times the latencies measured.
        let pace = self.clone();
        let thread = thread::Builder::new().name("pace".into()).spawn(move || pace.run())?;
        Ok(Running { pace: self, thread })
    }

    /// Waits until a request is due and takes it; `None` after the stop.
    pub async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let n = self.taken.fetch_add(1, Ordering::Relaxed);
        self.start.get().map(|start| *start + self.due(n))
    }

    fn run(&self) {
        // Sleeps may be 50 µs late otherwise; if it is refused they are.
        let _ = nix::sys::prctl::set_timerslack(1);
        let start = *self.start.get_or_init(Instant::now);
        let mut released = 0;
        while !self.due.is_closed() {
            let elapsed = start.elapsed();
            // What is due by now, and no more at once than the semaphore can count.
            let late = (released..).take_while(|n| self.due(*n) <= elapsed).count();
            self.due.add_permits(late);
            released += late as u64;
            thread::park_timeout(self.due(released).saturating_sub(start.elapsed()));
        }
    }

    /// When request `n` is due, after the start.
    fn due(&self, n: u64) -> Duration {
        Duration::from_secs_f64(n as f64 / self.rate as f64)
    }
}

impl Running {
    /// No request becomes due any more; returns how many were due and are not taken.
    pub fn stop(self) -> u64 {
        self.pace.due.close();
        self.thread.thread().unpark();
        self.thread.join().expect("the pace does not panic");
        self.pace.due.available_permits() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_even_distances_without_drift() {
        for rate in [1, 3, 1_000, 100_000] {
            let pace = Pace::new(rate);
            for seconds in [0, 1, 7, 3_600] {
                assert_eq!(pace.due(rate * seconds), Duration::from_secs(seconds), "{rate} a second");
            }
        }
    }

    #[tokio::test]
    async fn each_request_is_taken_once_and_the_rest_is_counted_at_the_stop() {
        let pace = Arc::new(Pace::new(2_000));
        let running = pace.clone().start().unwrap();
        let mut times = Vec::new();
        for _ in 0..20 {
            times.push(pace.next().await.unwrap());
        }
        assert!(Instant::now() >= times[19], "none before it is due");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == Duration::from_micros(500)), "{times:?}");
        running.stop();
        assert_eq!(pace.next().await, None);
    }
}
