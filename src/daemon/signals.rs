//! The signals of the process, as what they ask for: SIGHUP a reload, SIGTERM and SIGINT a stop.
//! What a second stop means is the supervisor's. SIGPIPE stays ignored, as Rust starts.

use std::io;

use nix::sys::signal::{SigSet, Signal as Number};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM or SIGINT: drain and stop; the second time, stop at once.
    Stop,
}

fn ours() -> SigSet {
    [Number::SIGHUP, Number::SIGTERM, Number::SIGINT].into_iter().collect()
}

/// The calling thread takes none of them: they are the main thread's. Each thread says so as it starts. Where one took them,
/// a signal that came just before an exec would be lost.
pub fn leave_to_others() {
    let _ = ours().thread_block();
}

/// Until further notice they wait for the process, over an exec too. To be called by the main thread.
pub fn hold() {
    let _ = ours().thread_block();
}

/// Those that waited are taken now.
pub fn take_again() {
    let _ = ours().thread_unblock();
}

/// The signals from now on. Must be made within a tokio runtime, before READY is said: until then SIGHUP kills.
#[derive(Debug)]
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the kernel's default of ending the process.
    ///
    /// # Errors
    /// Where the kernel refuses a handler or the pipe behind it.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// One that has come already.
    pub async fn now(&mut self) -> Option<Asked> {
        tokio::select! {
            biased;
            asked = self.next() => Some(asked),
            () = std::future::ready(()) => None,
        }
    }

    /// The next one. Signals of one kind that come faster than they are taken are merged. Cancel safe.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            biased; // where both wait, the stop counts
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};
    use std::time::Duration;

    #[tokio::test]
    async fn each_signal_asks_for_one_thing() {
        let mut signals = Signals::new().unwrap();
        for (signal, asked) in [
            (Signal::SIGHUP, Asked::Reload),
            (Signal::SIGTERM, Asked::Stop),
            (Signal::SIGTERM, Asked::Stop),
            (Signal::SIGINT, Asked::Stop),
            (Signal::SIGHUP, Asked::Reload),
        ] {
            raise(signal).unwrap();
            let next = tokio::time::timeout(Duration::from_secs(5), signals.next()).await;
            assert_eq!(next, Ok(asked), "{signal}");
        }
    }
}
