//! The signals of the process, as what they ask for: SIGHUP a reload, SIGTERM and SIGINT a stop. What a second stop means is
//! the supervisor's. Whatever else would end the process without a word is logged and ignored; SIGPIPE stays ignored, as Rust
//! starts. Signals that tell of a fault of the program (SIGSEGV, SIGABRT) or suspend it keep their meaning.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use nix::libc::{SIGRTMAX, SIGRTMIN};
use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;
use tracing::warn;

/// Signals that end a process by default and that lbd makes nothing of, and what was probably meant.
const IGNORED: [(Number, &str); 11] = [
    (
        Number::SIGUSR1,
        "a later version of lbd reopens its log files at it; to read the configuration again: lbctl reload",
    ),
    (Number::SIGUSR2, "to have a new program take over: lbctl upgrade"),
    (Number::SIGQUIT, STOP),
    (Number::SIGPWR, STOP),
    (Number::SIGXCPU, "the soft limit of CPU time (RLIMIT_CPU) is used up; at the hard one the kernel ends lbd"),
    (Number::SIGXFSZ, "a file is as large as it may be (RLIMIT_FSIZE)"),
    (Number::SIGALRM, USELESS),
    (Number::SIGVTALRM, USELESS),
    (Number::SIGPROF, USELESS),
    (Number::SIGIO, USELESS),
    (Number::SIGSTKFLT, USELESS),
];
const STOP: &str = "to stop: lbctl shutdown, or SIGTERM";
const USELESS: &str = "lbd does nothing at it; what it can be asked for: lbctl --help";
/// How often one of them is logged at most.
const QUIET: Duration = Duration::from_secs(1);

/// Signals that keep their meaning whatever a thread is at: faults, and those that suspend the process or tell of its children.
const UNTOUCHED: [Number; 14] = [
    Number::SIGSEGV,
    Number::SIGBUS,
    Number::SIGILL,
    Number::SIGFPE,
    Number::SIGABRT,
    Number::SIGSYS,
    Number::SIGTRAP,
    Number::SIGKILL,
    Number::SIGSTOP,
    Number::SIGTSTP,
    Number::SIGTTIN,
    Number::SIGTTOU,
    Number::SIGCONT,
    Number::SIGCHLD,
];

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM or SIGINT: drain and stop; the second time, stop at once.
    Stop,
}

fn ours() -> SigSet {
    let mut all = SigSet::all(); // the real-time signals too, which have no names
    UNTOUCHED.into_iter().for_each(|signal| all.remove(signal));
    all
}

/// The real-time signals that the C library leaves to programs.
fn realtime() -> RangeInclusive<i32> {
    SIGRTMIN()..=SIGRTMAX()
}

/// The calling thread takes none of them: they are the main thread's. Each thread says so as it starts. Where one took them,
/// a signal that came just before an exec would be lost.
pub fn leave_to_others() {
    let _ = ours().thread_block();
}

/// Begins threads that take none from their first moment on: one that the kernel has not run yet might otherwise take a signal just
/// before an exec, and it would be lost. To be called by the main thread once it serves.
pub fn beginning<T>(begin: impl FnOnce() -> T) -> T {
    let before = ours().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let begun = begin();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    begun
}

/// Begins a child from a thread that takes none: a child inherits the mask (signal(7)), and is to be ended like any other.
pub fn beginning_child<T>(begin: impl FnOnce() -> T) -> T {
    let before = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let begun = begin();
    if let Ok(before) = before {
        let _ = before.thread_set_mask();
    }
    begun
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

/// From now on no other signal ends the process without a word. To be called within a tokio runtime, by a successor when there is
/// no way back any more: until then what some of them do is its guard's.
pub fn ignore_others() {
    let named = IGNORED.into_iter().map(|(number, meant)| (number as i32, number.as_str().to_owned(), meant));
    let others = realtime().map(|number| (number, format!("signal {number}"), USELESS));
    for (number, name, meant) in named.chain(others) {
        match signal(SignalKind::from_raw(number)) {
            Ok(signals) => drop(tokio::spawn(log_each(signals, name, meant))),
            Err(e) => warn!("{name} cannot be taken, and ends lbd: {e}"),
        }
    }
}

async fn log_each(mut signals: Signal, name: String, meant: &'static str) {
    while signals.recv().await.is_some() {
        warn!(signal = name, "{name} is ignored; {meant}");
        sleep(QUIET).await; // those that come meanwhile are one
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

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
