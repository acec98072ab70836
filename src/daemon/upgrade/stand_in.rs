//! Who serves while programs change: a child that has in memory all that the old program had, and moves the bytes of established
//! sessions ([`crate::proxy::Worker::stand_in`]) until whoever takes over is ready to. Then it tells what became of them, in a
//! record of its own, and is dismissed. It knows its parent by a connection: where that ends, the child does.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::guard::{self, owned};
use super::misbehave;
use super::process::{self, take_name};
use super::record::{self, Draft, VERSIONS};
use crate::daemon::now;
use crate::observe::json;
use crate::proxy::Worker;
use crate::proxy::carry::{Meanwhile, Roster};
use crate::words::Happening;

/// How long it may take to begin, as long as the workers to park.
const BEGIN: Duration = Duration::from_secs(1);
/// And how much longer for each worker, which is a thread of it.
const FOR_EACH: Duration = Duration::from_millis(10);
/// How long to come to a safe point, where nobody watches over who asks.
const STOP: Duration = Duration::from_secs(2);
/// Bytes of its record for which there is memory from the beginning.
const RECORD: usize = 64 * 1024;
/// Nothing would mean for ever.
const LEAST: Duration = Duration::from_millis(1);

/// What the two say to each other: it serves; it is to stop; it has, and its record is whole; it cannot, for the reason that follows.
const SERVES: u8 = b's';
const END: u8 = b'e';
const DONE: u8 = b'd';
const FAILED: u8 = b'f';

/// A child that serves.
#[derive(Debug)]
pub(in crate::daemon) struct StandIn {
    /// `None` where it has been ended.
    pid: Option<Pid>,
    line: UnixStream,
    record: File,
}

/// The same on its way through an exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CarriedStandIn {
    pid: Option<i32>,
    line: RawFd,
    record: RawFd,
}

impl CarriedStandIn {
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.line, self.record]
    }

    /// To be called once.
    pub fn inherit(&self) -> StandIn {
        StandIn { pid: self.pid.map(Pid::from_raw), line: owned(self.line).into(), record: owned(self.record).into() }
    }
}

/// Why it is not known what one did.
#[derive(Debug)]
pub(super) enum Lost {
    /// Somebody else may find out.
    Unclear(String),
    /// Nobody will.
    Gone(String),
}

/// What it has done; times are microseconds of CLOCK_MONOTONIC.
#[derive(Debug)]
pub(super) struct Service {
    pub times: Times,
    /// Of each worker.
    pub meanwhile: Vec<Meanwhile>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Times {
    pub begun: u64,
    pub ended: u64,
}

/// What a stand-in needs, which is best had while the workers serve.
pub(super) struct Prepared {
    line: UnixStream,
    childs: UnixStream,
    draft: Draft,
}

impl Prepared {
    /// Has it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> io::Result<Self> {
        misbehave::refused()?;
        let (line, childs) = UnixStream::pair()?;
        Ok(Self { line, childs, draft: Draft::new(RECORD)? })
    }

    /// Has a child serve in place of these workers, who have parked.
    ///
    /// # Errors
    /// There is no process, thread or memory left, and no byte was moved.
    pub fn begin(self, workers: &mut Vec<Worker>) -> Result<StandIn, String> {
        let Self { line, childs, draft } = self;
        let count = workers.len() as u32;
        let doubled = misbehave::refused().and_then(|()| process::double());
        let Some(pid) = doubled.map_err(|e| e.to_string())? else {
            drop(line); // or its end would not be noticed
            serve(std::mem::take(workers), childs, draft);
        };
        drop(childs);
        let mut stand_in = StandIn { pid: Some(pid), line, record: draft.file() };
        let (Lost::Unclear(why) | Lost::Gone(why)) = match stand_in.hear(BEGIN + FOR_EACH * count) {
            Ok(_) => return Ok(stand_in),
            Err(lost) => lost,
        };
        if !record::is_begun(&stand_in.record) {
            stand_in.end();
        }
        // It may have begun at the last moment, and then whoever takes over finds out what became of it.
        if record::is_begun(&stand_in.record) { Ok(stand_in) } else { Err(why) }
    }
}

impl StandIn {
    fn hear(&self, patience: Duration) -> Result<u8, Lost> {
        let failed = |e: io::Error| match e.kind() {
            ErrorKind::WouldBlock => Lost::Unclear(format!("it says nothing for {patience:?}")),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                Lost::Gone("it has died".into())
            }
            _ => Lost::Gone(e.to_string()),
        };
        let (mut line, mut word, mut why) = (&self.line, [0], String::new());
        line.set_read_timeout(Some(patience)).map_err(failed)?;
        line.read_exact(&mut word).map_err(failed)?;
        if word[0] == FAILED {
            line.read_to_string(&mut why).map_err(failed)?; // then it ends
            return Err(Lost::Gone(why));
        }
        Ok(word[0])
    }

    pub(super) fn carry(&self) -> CarriedStandIn {
        let pid = self.pid.map(Pid::as_raw);
        CarriedStandIn { pid, line: self.line.as_raw_fd(), record: self.record.as_raw_fd() }
    }

    /// Has it stop; nobody serves from here on. May be asked again, by a program that did not come to ask.
    ///
    /// # Errors
    /// Nobody knows what became of the sessions, or not yet.
    pub(super) fn stop(&self) -> Result<Service, Lost> {
        // Time is left to go back, or to go on without it.
        let until = Instant::now() + guard::time_left().map_or(STOP, |left| left / 2);
        let _ = (&self.line).write_all(&[END]); // an error is one of hearing, too
        let heard = loop {
            match self.hear(until.saturating_duration_since(Instant::now()).max(LEAST)) {
                Ok(word) if word != DONE => {} // an earlier one, that nobody waited for
                heard => break heard,
            }
        };
        // Its record is sealed when all is done, whatever became of it then.
        let sections = match (record::read(&self.record, &VERSIONS), heard) {
            (Ok(sections), _) => sections,
            (Err(why), _) if record::is_sealed(self.record.as_fd()).is_ok() => return Err(Lost::Unclear(why)),
            (Err(_), Err(lost)) => return Err(lost),
            (Err(why), Ok(_)) => return Err(Lost::Gone(why)),
        };
        Service::read(&sections).map_err(|why| Lost::Unclear(format!("its record makes no sense: {why}")))
    }

    /// Has it do nothing any more. Its number stays its own, for whoever [ends](Self::end) it.
    pub(super) fn kill(&self) {
        let Some(pid) = self.pid else { return };
        let _ = kill(pid, Signal::SIGKILL); // it may have gone by itself
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    }

    /// Ends it, where that has not been done.
    pub(in crate::daemon) fn end(&mut self) {
        let Some(pid) = self.pid.take() else { return };
        let _ = kill(pid, Signal::SIGKILL);
        // Not bounded, as nothing keeps it: it neither waits for a disk nor for anybody.
        if let Err(e) = waitpid(pid, None) {
            warn!("the process that served meanwhile cannot be waited for: {e}");
        }
    }
}

impl Service {
    fn read(sections: &[Bytes]) -> Result<Self, String> {
        let [times, workers @ ..] = sections else { return Err("it is empty".into()) };
        let times = json::read(times).map_err(|e| e.to_string())?;
        let workers = workers.iter().map(|bytes| Meanwhile::read(bytes).map_err(|e| e.to_string()));
        Ok(Self { times, meanwhile: workers.collect::<Result<_, _>>()? })
    }
}

/// The workers take up what a stand-in did, or cut what it served; where somebody else may know more, `else_back` is called before.
pub(super) fn take_up(mut roster: Roster<'_>, service: Result<Service, Lost>, else_back: impl Fn(String)) -> TakenUp {
    let unclear = |why: &str| else_back(format!("it is not clear what the process did that served meanwhile: {why}"));
    let (times, cut, why) = match service {
        Ok(Service { times, meanwhile }) => {
            let first = RefCell::new(None);
            let cut = roster.catch_up(meanwhile, &|why| {
                unclear(&why);
                first.borrow_mut().get_or_insert(why);
            });
            (Some(times), cut, first.into_inner().filter(|_| cut > 0))
        }
        Err(Lost::Gone(why)) => (None, roster.lose_track(), Some(why)),
        Err(Lost::Unclear(why)) => {
            unclear(&why);
            (None, roster.lose_track(), Some(why))
        }
    };
    let what = "nobody knows what the process did that served them";
    let lost = why.map(|why| Loss { why: format!("established sessions cut: {cut}; {what}: {why}"), cut });
    TakenUp { times, lost }
}

/// What it came to that somebody served meanwhile.
pub(super) struct TakenUp {
    /// When it did; `None` where nobody knows, and all that it served is cut.
    pub times: Option<Times>,
    /// Sessions that were cut.
    pub lost: Option<Loss>,
}

/// Sessions had to be cut.
#[derive(Debug)]
pub(super) struct Loss {
    /// As an operator reads it.
    pub why: String,
    /// How many.
    pub cut: usize,
}

impl Loss {
    /// Both of them.
    pub fn and(self, other: Option<Self>) -> Self {
        match other {
            None => self,
            Some(other) => Self { why: format!("{}; {}", self.why, other.why), cut: self.cut + other.cut },
        }
    }

    /// Has it in the log, when nobody can find out more.
    pub fn is_told(&self) {
        error!(event = Happening::SessionsCut.as_str(), "{}", self.why);
    }
}

/// The child's life. Of all that it was born with it uses the workers alone: whoever held a lock is not here to give it back.
fn serve(workers: Vec<Worker>, mut line: UnixStream, draft: Draft) -> ! {
    let served = catch_unwind(AssertUnwindSafe(|| try_to_serve(workers, &line, draft)));
    let Err(why) = served.unwrap_or_else(|_| Err(io::Error::other("it has panicked"))) else { process::leave(0) };
    let _ = line.write_all(&[FAILED]).and_then(|()| line.write_all(why.to_string().as_bytes()));
    process::leave(1)
}

fn try_to_serve(workers: Vec<Worker>, mut line: &UnixStream, draft: Draft) -> io::Result<()> {
    let (over, all_there) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(workers.len() + 1)));
    let wakers: Vec<_> = workers.iter().map(Worker::waker).collect();
    let threads = workers.into_iter().map(|mut worker| {
        misbehave::refused()?;
        let (over, all_there) = (Arc::clone(&over), Arc::clone(&all_there));
        thread::Builder::new().name("lbd-stand-in".into()).spawn(move || {
            all_there.wait(); // all or none
            let meanwhile = worker.stand_in(&over);
            std::mem::forget(worker); // its descriptors are not to be closed here: that is a call for each, while nobody is served
            meanwhile
        })
    });
    let threads: Vec<JoinHandle<Meanwhile>> = threads.collect::<io::Result<_>>()?;
    misbehave::begin()?;
    draft.begin()?; // by this it is known that bytes may have been moved; a word would wake the parent, to take our time
    all_there.wait();
    let begun = now().micros;
    take_name(c"lbd-stand-in");
    line.write_all(&[SERVES])?;
    misbehave::desert();
    let mut word = [0];
    line.read_exact(&mut word)?;
    over.store(true, SeqCst);
    for waker in &wakers {
        let _ = waker.write(1); // fails only where it is awake already
    }
    let ended = now().micros;
    let meanwhile = threads.into_iter().map(JoinHandle::join).collect::<Result<Vec<_>, _>>();
    let meanwhile = meanwhile.map_err(|_| io::Error::other("a worker of it has panicked"))?;
    for waker in &wakers {
        let _ = waker.read(); // or the epoll descriptors would tell it to whoever is next
    }
    let times = json::try_compact(&Times { begun, ended }).map_err(io::Error::other)?;
    let written = meanwhile.iter().map(|one| one.write().map_err(io::Error::other)).collect::<io::Result<Vec<_>>>()?;
    let sections: Vec<&[u8]> = std::iter::once(times.as_bytes()).chain(written.iter().map(Vec::as_slice)).collect();
    draft.write_at_last(&sections)?;
    loop {
        line.write_all(&[DONE])?;
        line.read_exact(&mut word)?;
    }
}
