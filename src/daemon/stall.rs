//! Threads that may be kept by something outside (a file system that is away, a name service that does not answer) so that the main
//! thread is not: each shows when it is at such a call, and one that has been there for long is told of, once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::now;
use super::signals::leave_to_others;
use crate::words::Happening;

/// How long a call may take before it is told of.
const LONG: Duration = Duration::from_secs(5);
/// For how long none must have taken so long before that is told to be over: one that is slow again and again is told of once.
const QUIET: Duration = Duration::from_secs(30);

/// A thread's calls, as others see them.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<AtomicU64>);

impl Calls {
    /// Makes one that may hang.
    pub fn make<T>(&self, call: impl FnOnce() -> T) -> T {
        self.begin();
        let made = call();
        self.end();
        made
    }

    /// One begins.
    pub fn begin(&self) {
        // Relaxed: read by who looks once a second.
        self.0.store(now().micros.max(1), Relaxed);
    }

    /// It is over.
    pub fn end(&self) {
        self.0.store(0, Relaxed);
    }

    fn is_hanging(&self, now: u64) -> bool {
        let since = self.0.load(Relaxed);
        since > 0 && now.saturating_sub(since) >= LONG.as_micros() as u64
    }
}

/// Something outside, and whoever makes calls to it.
#[derive(Debug)]
pub struct Outside {
    /// What it is, and what does not happen while it hangs.
    what: &'static str,
    consequence: &'static str,
    calls: Vec<Calls>,
    /// Told of; when it was seen to hang last, in microseconds of CLOCK_MONOTONIC.
    told: Option<u64>,
}

impl Outside {
    /// Something that these calls are made to.
    pub fn new(what: &'static str, consequence: &'static str, calls: Vec<Calls>) -> Self {
        Self { what, consequence, calls, told: None }
    }

    /// Looks whether it hangs, or does no longer, and says so where that is news.
    pub fn look(&mut self, now: u64) {
        if self.calls.iter().any(|calls| calls.is_hanging(now)) {
            if self.told.replace(now).is_none() {
                let (what, seconds, consequence) = (self.what, LONG.as_secs(), self.consequence);
                warn!(event = Happening::Stalled.as_str(), "{what} has not answered for {seconds} s; {consequence}");
            }
        } else if self.told.take_if(|last| now.saturating_sub(*last) >= QUIET.as_micros() as u64).is_some() {
            info!(event = Happening::StallOver.as_str(), "{} answers again", self.what);
        }
    }
}

/// Does something that may hang on a thread of its own; `None` where it takes longer than `patience`, and then goes on by itself.
///
/// # Errors
/// There is no thread to be had.
pub fn within<T: Send + 'static>(
    patience: Duration,
    name: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (tell, told) = sync_channel(1);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        leave_to_others();
        let _ = tell.send(call()); // nobody may wait any more
    })?;
    Ok(told.recv_timeout(patience).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn one_that_hangs_is_told_of_once_and_once_when_it_is_over() {
        let calls = Calls::default();
        let mut outside = Outside::new("the disk", "nothing is kept", vec![calls.clone()]);
        let (begun, begins) = sync_channel(0);
        let (end, ends) = channel();
        let thread = thread::spawn(move || {
            calls.make(|| {
                begun.send(()).unwrap();
                ends.recv().unwrap();
            });
        });
        begins.recv().unwrap();
        let now = now().micros;
        let after = |seconds: u64| now + seconds * 1_000_000;
        outside.look(now);
        assert_eq!(outside.told, None, "it may just have begun");
        outside.look(after(6));
        outside.look(after(7));
        assert_eq!(outside.told, Some(after(7)));
        end.send(()).unwrap();
        thread.join().unwrap();
        outside.look(after(8));
        assert_eq!(outside.told, Some(after(7)), "it may hang again in a moment");
        outside.look(after(38));
        assert_eq!(outside.told, None);
    }

    #[test]
    fn who_has_no_more_patience_goes_on() {
        let (end, ends) = channel::<()>();
        let late = within(Duration::from_millis(1), "test", move || ends.recv());
        assert!(matches!(late, Ok(None)));
        drop(end);
        assert_eq!(within(Duration::from_secs(60), "test", || 7).unwrap(), Some(7));
    }
}
