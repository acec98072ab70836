//! Which descriptors an exec leaves open. Saying so is a call for each, which for thousands of sessions would be the
//! greater part of the pause: so workers say it while they serve, some in each turn, before they are parked.

use std::os::fd::{AsRawFd, RawFd};

use super::Descriptors;
use nix::errno::Errno;

use crate::proxy::socket;
use crate::proxy::worker::Worker;

/// Sessions marked in a turn: some 0.1 ms, as others have a right to theirs. In tests few enough that some dozens take several turns.
const BATCH: usize = if cfg!(test) { 16 } else { 128 };

/// What an exec does to the descriptors that a worker has and gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExec {
    /// It closes them.
    #[default]
    Close,
    /// It leaves them open.
    Keep,
}

/// How far a worker is with it.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Marking {
    on_exec: OnExec,
    /// The key to go on from; `None` where all are marked.
    next: Option<usize>,
}

impl Marking {
    pub(in crate::proxy) fn is_unfinished(&self) -> bool {
        self.next.is_some()
    }
}

impl Worker {
    /// Begins to mark all that the worker has; what it gets from now on is marked at once.
    pub(in crate::proxy) fn mark(&mut self, on_exec: OnExec) {
        self.marking = Marking { on_exec, next: Some(0) };
        for fd in self.few() {
            let _ = socket::keep_across_exec(fd, on_exec == OnExec::Keep); // it is ours, and open
        }
    }

    /// Everything but sessions.
    fn few(&self) -> Vec<RawFd> {
        let doors = self.doors.iter().map(|(_, door)| door.socket.as_raw_fd());
        let spares = self.spares.iter().map(|(_, spare)| spare.fd.as_raw_fd());
        doors
            .chain(spares)
            .chain(self.retired.iter().map(AsRawFd::as_raw_fd))
            .chain([self.epoll.0.as_raw_fd()])
            .collect()
    }

    /// Marks some more, true where those were the last.
    pub(in crate::proxy) fn mark_some(&mut self) -> bool {
        let Some(first) = self.marking.next else { return false };
        let keep = self.marking.on_exec == OnExec::Keep;
        let end = self.sessions.capacity();
        let last = first.saturating_add(BATCH).min(end);
        for session in (first..last).filter_map(|key| self.sessions.get(key)) {
            for end in [Some(&session.client), session.server.as_ref()].into_iter().flatten() {
                let _ = socket::keep_across_exec(end.fd.as_raw_fd(), keep);
            }
        }
        self.marking.next = (last < end).then_some(last);
        self.marking.next.is_none()
    }

    /// Marks what the worker has just got.
    pub(in crate::proxy) fn mark_new(&self, fd: &impl AsRawFd) {
        if self.marking.on_exec == OnExec::Keep {
            let _ = socket::keep_across_exec(fd.as_raw_fd(), true);
        }
    }
}

/// Has an exec leave these open. All or none: where one cannot be had so, the others are as before.
///
/// # Errors
/// One of them is not open.
pub fn keep_on_exec(descriptors: &[RawFd]) -> Result<(), Errno> {
    for (done, fd) in descriptors.iter().enumerate() {
        if let Err(e) = socket::keep_across_exec(*fd, true) {
            for fd in &descriptors[..done] {
                let _ = socket::keep_across_exec(*fd, false); // it was open a moment ago
            }
            return Err(e);
        }
    }
    Ok(())
}

/// Has an exec close these again, and whatever lies between them: nothing of lbd's stays open otherwise. For a time when no
/// worker runs, or one that is being marked would lose its marks.
///
/// # Errors
/// One of them is not open.
pub fn close_on_exec(descriptors: &Descriptors) -> Result<(), Errno> {
    let mut all = descriptors.iter();
    let Some(first) = all.next() else { return Ok(()) };
    if socket::close_range_on_exec(first, all.next_back().unwrap_or(first)).is_ok() {
        return Ok(());
    }
    descriptors.iter().try_for_each(|fd| socket::keep_across_exec(fd, false))
}
