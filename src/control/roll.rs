//! Who is connected to the control socket. A program that takes over in place goes on with them all: those that have said
//! nothing yet are served by it, and those that wait for an answer get it from there.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    open: Arc<Mutex<BTreeMap<RawFd, Stage>>>,
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
        self.open().insert(connection, Stage::Silent);
        Entry { roll: self.clone(), connection }
    }

    /// Those that have asked nothing yet.
    pub fn silent(&self) -> Vec<RawFd> {
        self.open().iter().filter(|(_, stage)| **stage == Stage::Silent).map(|(fd, _)| *fd).collect()
    }

    /// Whether a request is on its way here or to the supervisor, which has those of `known`, or an answer on its way out.
    pub fn is_in_transit(&self, known: impl Fn(RawFd) -> bool) -> bool {
        self.open().iter().any(|(connection, stage)| match stage {
            Stage::Silent => false,
            Stage::Begun => true,
            Stage::Asking => !known(*connection),
            Stage::Answered => true,
        })
    }

    /// How many have sent their request in part.
    pub fn begun(&self) -> usize {
        self.open().values().filter(|stage| **stage == Stage::Begun).count()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<RawFd, Stage>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Which connection.
    pub(super) fn connection(&self) -> RawFd {
        self.connection
    }

    pub(super) fn begins(&self) {
        if let Some(stage @ Stage::Silent) = self.roll.open().get_mut(&self.connection) {
            *stage = Stage::Begun;
        }
    }

    pub(super) fn asks(&self) {
        self.roll.open().insert(self.connection, Stage::Asking);
    }

    pub(super) fn is_answered(&self) {
        self.roll.open().insert(self.connection, Stage::Answered);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roll.open().remove(&self.connection);
    }
}
