//! Who is connected to the control socket. A program that takes over in place goes on with them all: those that have said
//! nothing yet are served by it, and those that wait for an answer get it from there.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has asked nothing yet.
    Silent,
    /// It has begun to: bytes of its request have been read, which nobody else will see.
    Begun,
    /// It waits for the supervisor.
    Asking,
    /// It is being answered.
    Answered,
}

/// The connections that are open. Clones are of the same roll.
#[derive(Debug, Clone, Default)]
pub struct Roll {
    open: Arc<Mutex<BTreeMap<RawFd, (Stage, Instant)>>>,
    /// Present while nobody who is silent is read from; holds who is to be woken then.
    held: Arc<Mutex<Option<Vec<Waker>>>>,
    /// Those of a predecessor, to be served like new ones.
    inherited: Arc<Mutex<Vec<UnixStream>>>,
}

/// A connection's entry; ends with it. It must be dropped before the connection is closed, or the number may be another's.
#[derive(Debug)]
pub struct Entry {
    roll: Roll,
    connection: RawFd,
}

impl Roll {
    /// A roll with silent connections of a predecessor.
    pub fn with(inherited: Vec<UnixStream>) -> Self {
        Self { inherited: Arc::new(Mutex::new(inherited)), ..Self::default() }
    }

    pub(super) fn take_inherited(&self) -> Vec<UnixStream> {
        std::mem::take(&mut *self.inherited.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn enter(&self, connection: RawFd) -> Entry {
        self.open().insert(connection, (Stage::Silent, Instant::now()));
        Entry { roll: self.clone(), connection }
    }

    /// Those that have asked nothing yet.
    pub fn silent(&self) -> Vec<RawFd> {
        self.open().iter().filter(|(_, (stage, _))| *stage == Stage::Silent).map(|(fd, _)| *fd).collect()
    }

    /// From now on nobody who has asked nothing yet is read from: what they ask stays where a successor finds it.
    pub fn hold(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
    }

    /// They are read from again.
    pub fn release(&self) {
        let waiting = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    /// Whether a request is on its way here or to the supervisor, which has those of `known`, or an answer on its way out. One that has come
    /// in part counts for as long as `patience` only, by itself and not by others', and so does an answer that is not read.
    pub fn is_in_transit(&self, patience: Duration, known: impl Fn(RawFd) -> bool) -> bool {
        self.open().iter().any(|(connection, (stage, since))| match stage {
            Stage::Silent => false,
            Stage::Asking => !known(*connection),
            Stage::Begun | Stage::Answered => since.elapsed() < patience,
        })
    }

    /// How many have sent their request in part.
    pub fn begun(&self) -> usize {
        self.open().values().filter(|(stage, _)| *stage == Stage::Begun).count()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<RawFd, (Stage, Instant)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Which connection.
    pub(super) fn connection(&self) -> RawFd {
        self.connection
    }

    /// Whether this connection may be read from; who asks is woken when it may.
    pub(super) fn may_be_read(&self, waker: &Waker) -> bool {
        let mut held = self.roll.held.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = || matches!(self.roll.open().get(&self.connection), Some((Stage::Silent, _)));
        match &mut *held {
            Some(waiting) if silent() => {
                waiting.push(waker.clone());
                false
            }
            _ => true,
        }
    }

    pub(super) fn begins(&self) {
        if let Some(entry @ (Stage::Silent, _)) = self.roll.open().get_mut(&self.connection) {
            *entry = (Stage::Begun, Instant::now());
        }
    }

    pub(super) fn asks(&self) {
        self.roll.open().insert(self.connection, (Stage::Asking, Instant::now()));
    }

    pub(super) fn is_answered(&self) {
        self.roll.open().insert(self.connection, (Stage::Answered, Instant::now()));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roll.open().remove(&self.connection);
    }
}
