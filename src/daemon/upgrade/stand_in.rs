//! Who serves while programs change: a child that has in memory all that the old program had, and moves the bytes of established
//! sessions ([`crate::proxy::Worker::stand_in`]) until whoever takes over is ready to. Then it tells what became of them, in a
//! record of its own, and is dismissed. It knows its parent by a connection: where that ends, the child does.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::guard::{self, owned, take_name};
use super::record::{self, Draft, VERSIONS};
use crate::daemon::now;
use crate::observe::json;
use crate::proxy::Worker;
use crate::proxy::carry::Meanwhile;

/// How long it may take to begin, and to come to a safe point.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of its record, for which there is memory from the beginning.
const RECORD: usize = 64 * 1024;

/// What the two say to each other: it serves; it is to stop; it has, and its record is whole.
const SERVES: u8 = b's';
const STOP: u8 = b'e';
const DONE: u8 = b'd';

/// A child that serves.
#[derive(Debug)]
pub(in crate::daemon) struct StandIn {
    pid: Pid,
    line: UnixStream,
    record: File,
}

/// The same on its way through an exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CarriedStandIn {
    pid: i32,
    line: RawFd,
    record: RawFd,
}

impl CarriedStandIn {
    pub fn descriptors(&self) -> [RawFd; 2] {
        [self.line, self.record]
    }

    /// To be called once.
    pub fn inherit(&self) -> StandIn {
        StandIn { pid: Pid::from_raw(self.pid), line: owned(self.line).into(), record: owned(self.record).into() }
    }
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
        let (line, childs) = UnixStream::pair()?;
        line.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { line, childs, draft: Draft::new(RECORD)? })
    }

    /// Has a child serve in place of these workers, who have parked.
    ///
    /// # Errors
    /// There is no process, thread or memory left.
    pub fn begin(self, workers: &mut Vec<Worker>) -> Result<StandIn, NotBegun> {
        let Self { line, childs, draft } = self;
        let child = guard::double().map_err(|why| NotBegun { why, has_served: false })?;
        let Some(pid) = child else {
            drop(line); // or its end would not be noticed
            serve(std::mem::take(workers), childs, draft);
        };
        drop(childs);
        let stand_in = StandIn { pid, line, record: draft.file() };
        let Err(why) = stand_in.hear() else { return Ok(stand_in) };
        stand_in.end();
        Err(NotBegun { why, has_served: record::is_begun(&stand_in.record) })
    }
}

/// There is no stand-in.
pub(super) struct NotBegun {
    pub why: io::Error,
    /// It was too slow to say so, but may have moved bytes.
    pub has_served: bool,
}

impl StandIn {
    fn hear(&self) -> io::Result<u8> {
        let mut word = [0];
        (&self.line).read_exact(&mut word)?;
        Ok(word[0])
    }

    pub(super) fn carry(&self) -> CarriedStandIn {
        CarriedStandIn { pid: self.pid.as_raw(), line: self.line.as_raw_fd(), record: self.record.as_raw_fd() }
    }

    /// Has it stop; nobody serves from here on. May be asked again, by a program that did not come to ask.
    ///
    /// # Errors
    /// It has died, hangs, or makes no sense: nobody knows what became of the sessions.
    pub(super) fn stop(&self) -> Result<Service, String> {
        let lost = |e: io::Error| match e.kind() {
            ErrorKind::WouldBlock => format!("it does not come to a safe point within {PATIENCE:?}"),
            _ => format!("it is gone ({e})"),
        };
        (&self.line).write_all(&[STOP]).map_err(lost)?;
        if self.hear().map_err(lost)? != DONE {
            return Err("it cannot write down what it did".into());
        }
        let sections = record::read(&self.record, &VERSIONS)?;
        let [times, workers @ ..] = &sections[..] else { return Err("its record is empty".into()) };
        let times = json::read(times).map_err(|e| format!("its record makes no sense: {e}"))?;
        let workers = workers.iter().map(|bytes| Meanwhile::read(bytes).map_err(|e| e.to_string()));
        Ok(Service { times, meanwhile: workers.collect::<Result<_, _>>()? })
    }

    /// Ends it.
    pub fn dismiss(self) {
        self.end();
    }

    /// To be called once: then the number may be another's.
    fn end(&self) {
        let _ = kill(self.pid, Signal::SIGKILL); // it may have gone by itself
        if let Err(e) = waitpid(self.pid, None) {
            warn!("the process that served meanwhile cannot be waited for: {e}");
        }
    }
}

/// A stand-in did not come to say what it did.
pub(super) fn tell_of_loss(why: &str) {
    error!(
        "the process that served meanwhile is lost, and established sessions with it, for nobody knows which bytes it moved: {why}"
    );
}

/// The child's life. Of all that it was born with it uses the workers alone: whoever held a lock is not here to give it back.
fn serve(workers: Vec<Worker>, line: UnixStream, draft: Draft) -> ! {
    take_name(c"lbd-stand-in");
    match try_to_serve(workers, &line, draft) {
        Ok(()) => guard::leave(0),
        Err(_) => guard::leave(1), // which the other end notices
    }
}

fn try_to_serve(workers: Vec<Worker>, mut line: &UnixStream, draft: Draft) -> io::Result<()> {
    let (over, all_there) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(workers.len() + 1)));
    let wakers: Vec<_> = workers.iter().map(Worker::waker).collect();
    let threads = workers.into_iter().map(|mut worker| {
        let (over, all_there) = (Arc::clone(&over), Arc::clone(&all_there));
        thread::Builder::new().name("lbd-stand-in".into()).spawn(move || {
            all_there.wait(); // all or none
            let meanwhile = worker.stand_in(&over);
            std::mem::forget(worker); // its descriptors are not to be closed here: that is a call for each, while nobody is served
            meanwhile
        })
    });
    let threads: Vec<JoinHandle<Meanwhile>> = threads.collect::<io::Result<_>>()?;
    draft.begin()?; // by this it is known that bytes may have been moved; a word would wake the parent, to take our time
    all_there.wait();
    let begun = now().micros;
    line.write_all(&[SERVES])?;
    let mut word = [0];
    line.read_exact(&mut word)?;
    over.store(true, SeqCst);
    for waker in wakers {
        let _ = waker.write(1); // fails only where it is awake already
    }
    let ended = now().micros;
    let meanwhile = threads.into_iter().map(JoinHandle::join).collect::<Result<Vec<_>, _>>();
    let meanwhile = meanwhile.map_err(|_| io::Error::other("a worker has panicked"))?;
    let times = json::try_compact(&Times { begun, ended }).map_err(io::Error::other)?;
    let written = meanwhile.iter().map(|one| one.write().map_err(io::Error::other)).collect::<io::Result<Vec<_>>>()?;
    let sections: Vec<&[u8]> = std::iter::once(times.as_bytes()).chain(written.iter().map(Vec::as_slice)).collect();
    draft.write(&sections)?;
    loop {
        line.write_all(&[DONE])?;
        line.read_exact(&mut word)?;
    }
}
