//! What the daemon tells a worker, what a worker tells the daemon, and how workers wake each other. Both
//! ways are bounded, and neither side ever waits for the other.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::carry::OnExec;
use crate::snapshot::{BackendCell, Padded, Revision};
use crate::words::Address;

/// Commands a worker may have before it; a worker takes all of them each turn.
const INBOX: usize = 1024;

/// What the daemon tells a worker.
#[derive(Debug)]
pub enum Command {
    /// A snapshot has been published: work by it. One command, so that it is told whole or not at all.
    Change {
        /// Accept on these sockets. Which listener one belongs to, the snapshot says.
        listen: Vec<(Address, OwnedFd)>,
        /// Close every socket of these addresses.
        release: Vec<(Address, Unaccepted)>,
        /// Then say that all of it is done, and that this snapshot is in force here.
        revision: Revision,
    },
    /// Find out which listening sockets have been ended by somebody else.
    LookAtDoors,
    /// Give the daemon another descriptor of each listening socket of this address.
    LendDoors(Address),
    /// End sessions now.
    Cut(Sessions),
    /// Show that the loop turns: say this number back.
    Turn(u64),
    /// Have an exec close the descriptors of sessions, or leave them open; and say when all are marked so.
    OnExec(OnExec),
    /// Return from the loop, with no descriptor left to mark.
    Park,
}

/// What becomes of the clients that wait in the kernel's queue of a socket that is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unaccepted {
    /// They are accepted first; then the socket is dead, for whoever else holds it too.
    #[default]
    Accept,
    /// They go on waiting: somebody else holds the socket, and a successor will accept them.
    Leave,
}

/// Which sessions.
#[derive(Debug, Clone)]
pub enum Sessions {
    /// Every one.
    All,
    /// Those of one backend.
    Of(Arc<BackendCell>),
}

/// What a worker tells the daemon.
#[derive(Debug)]
pub enum Outcome {
    /// A connect to this backend failed.
    DialFailed(Arc<BackendCell>),
    /// A listening socket was ended by somebody else; the worker has closed it.
    Ended {
        /// Whose socket it was.
        worker: usize,
        /// As the file has it.
        address: Address,
    },
    /// Another descriptor of a listening socket of this address, which was asked for.
    Lent(Address, OwnedFd),
}

/// The daemon's end of a worker's inbox.
#[derive(Debug)]
pub struct Line {
    commands: SyncSender<Command>,
    waker: Arc<EventFd>,
    acknowledged: Arc<Padded<AtomicU64>>,
    turned: Arc<AtomicU64>,
    marked: Arc<AtomicBool>,
}

/// The worker's end.
#[derive(Debug)]
pub struct Inbox {
    commands: Receiver<Command>,
    /// Readable while something may have come.
    pub waker: Arc<EventFd>,
    acknowledged: Arc<Padded<AtomicU64>>,
    turned: Arc<AtomicU64>,
    marked: Arc<AtomicBool>,
}

/// Makes both ends.
///
/// # Errors
/// The process has no descriptor left for the eventfd.
pub fn line() -> nix::Result<(Line, Inbox)> {
    let (sender, receiver) = sync_channel(INBOX);
    let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let acknowledged = Arc::new(Padded(AtomicU64::new(0)));
    let (turned, marked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
    let inbox = Inbox { commands: receiver, waker, acknowledged, turned, marked };
    let (waker, acknowledged) = (Arc::clone(&inbox.waker), Arc::clone(&inbox.acknowledged));
    let (turned, marked) = (Arc::clone(&inbox.turned), Arc::clone(&inbox.marked));
    Ok((Line { commands: sender, waker, acknowledged, turned, marked }, inbox))
}

/// The worker takes no commands: it hangs or has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered;

impl Line {
    /// Tells the worker something; it learns of it in its next turn.
    ///
    /// # Errors
    /// Its inbox is full or gone; the command is dropped.
    pub fn tell(&self, command: Command) -> Result<(), Unanswered> {
        if matches!(command, Command::OnExec(_)) {
            self.marked.store(false, SeqCst); // before the worker could have done it
        }
        match self.commands.try_send(command) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Unanswered),
        }
    }

    /// Ends the worker's wait.
    pub fn wake(&self) {
        // Fails only where the counter is full: then it is awake already.
        let _ = self.waker.write(1);
    }

    /// Another handle that can wake the worker.
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.waker)
    }

    /// The last snapshot that the worker has acknowledged.
    pub fn acknowledged(&self) -> Revision {
        Revision(self.acknowledged.load(SeqCst))
    }

    /// The last [`Command::Turn`] that the worker has answered.
    pub fn turned(&self) -> u64 {
        self.turned.load(SeqCst)
    }

    /// Whether the last [`Command::OnExec`] is done.
    pub fn is_marked(&self) -> bool {
        self.marked.load(SeqCst)
    }
}

impl Inbox {
    /// The next command.
    pub fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Must precede the reading of commands, or one that comes in between would wake nobody.
    pub fn clear(&self) {
        // EAGAIN where it was clear.
        let _ = self.waker.read();
    }

    /// Says that everything up to this snapshot is done.
    pub fn acknowledge(&self, revision: Revision) {
        self.acknowledged.fetch_max(revision.0, SeqCst);
    }

    /// Answers [`Command::Turn`].
    pub fn turn(&self, number: u64) {
        self.turned.fetch_max(number, SeqCst);
    }

    /// Answers [`Command::OnExec`].
    pub fn marked(&self) {
        self.marked.store(true, SeqCst);
    }
}
