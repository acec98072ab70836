//! Sessions on their way into another program: everything of a worker that outlives an exec, as plain data. Descriptors
//! are numbers here, cells are names; nothing is owned, so that whoever lets go of it closes nothing. `picture.rs` takes
//! it, `share.rs` fits it to another number of workers, `assemble.rs` makes a worker of it again, if `check.rs` finds no
//! fault. In between, sessions are bytes (`sessions.rs`), and `stand_in.rs` serves.

mod assemble;
mod check;
mod descriptors;
#[cfg(test)]
mod laws;
mod mend;
mod names;
mod picture;
mod sessions;
mod share;
mod stand_in;
mod survive;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::os::fd::RawFd;

use bytes::Bytes;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::door::Hold;
use super::relay::Stream;
use super::session::{SpareUse, State};

pub use assemble::{Assembled, Unfit};
pub use descriptors::Descriptors;
pub use mend::Faults;
pub use names::{Names, Resolved, Spelled, recall};
pub use picture::Written;
pub use sessions::CarriedSessions;
pub use share::share_out;
pub use stand_in::{Meanwhile, Roster};
pub(super) use survive::Marking;
pub use survive::{OnExec, close_on_exec, keep_on_exec};

/// A worker between two turns. All times are microseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CarriedWorker {
    /// Where everything below is registered under its key; `None` where it is to be registered anew.
    pub epoll: Option<RawFd>,
    /// Epoll descriptors of workers that are no more; whoever takes over closes them.
    pub retired: Vec<RawFd>,
    /// What the numbers of listeners, pools and backends below stand for.
    pub names: Names,
    /// Listening sockets.
    pub doors: Vec<CarriedDoor>,
    /// Every session, by key.
    pub sessions: CarriedSessions,
    /// Sessions that could go on: no event will come for them.
    pub again: Vec<u32>,
    /// Sessions that wait for a place, in the order they came.
    pub queues: Vec<CarriedQueue>,
    /// Spare connections.
    pub spares: Vec<CarriedSpare>,
    /// How they are kept, a backend each.
    pub stocks: Vec<CarriedStock>,
    /// Doors are shut for want of descriptors until then.
    pub shut_until: Option<u64>,
    /// How long they were shut last.
    pub shut_for: u64,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedDoor {
    /// Its place in the worker's table.
    pub key: u32,
    /// Where it listens, as the file has it.
    pub address: Spelled<crate::words::Address>,
    /// The socket.
    pub fd: RawFd,
    /// Why it is not listened to.
    pub held: Option<Hold>,
    /// How many are accepted at a time.
    pub batch: u8,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedSession {
    /// Its place in the worker's table.
    pub key: u32,
    /// What it is doing; never gone.
    pub state: State,
    /// The client's socket.
    pub client: CarriedEnd,
    /// The backend's socket.
    pub server: Option<CarriedEnd>,
    /// Where the client came in, by its number in [`Names`].
    pub listener: u32,
    /// Who may serve it, by number.
    pub pool: u32,
    /// Who does, by number. A place is taken there.
    pub backend: Option<u32>,
    /// Where the client came from.
    pub peer: Option<SocketAddr>,
    /// Where it went to, by its PROXY header.
    pub destination: Option<SocketAddr>,
    /// The version of the PROXY header that the backend expects and has not got.
    pub send_proxy: Option<u8>,
    /// From the client to the backend.
    pub up: CarriedFlow,
    /// From the backend to the client.
    pub down: CarriedFlow,
    /// Its place in the round robin.
    pub ticket: u64,
    /// Backends that failed it, by number.
    pub tried: Vec<u32>,
    /// Connects that failed.
    pub attempts: u8,
    /// The errno of the last of them, 0 for none.
    pub failure: i32,
    /// Tells it from others of its key; part of the tokens of both sockets.
    pub serial: u16,
    /// Counts dials; part of the server's token.
    pub dial: u8,
    /// Whether it has had a spare connection.
    pub spare: SpareUse,
    /// Keepalive has been turned on.
    pub kept_alive: bool,
    /// The backend's queue was full.
    pub crowded: bool,
    /// When the client was accepted.
    pub accepted: u64,
    /// When its present state began.
    pub since: u64,
    /// When a byte last moved.
    pub active: u64,
    /// When its present state has lasted too long.
    pub deadline: u64,
    /// The longest time without a byte.
    pub idle: u64,
    /// The same once one side has been shut.
    pub half_closed: u64,
}

/// One socket of a session, and what epoll last said of it: it says each thing but once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedEnd {
    /// The socket.
    pub fd: RawFd,
    /// A read may find something.
    pub readable: bool,
    /// A write may be taken.
    pub writable: bool,
    /// The peer has shut its side or the connection is broken.
    pub fin: bool,
    /// The peer is found gone.
    pub broken: bool,
    /// How its stream ended.
    pub stream: Stream,
    /// There is urgent data in its stream.
    pub urgent: bool,
    /// A Unix socket.
    pub unix: bool,
}

/// One direction of a session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CarriedFlow {
    /// Bytes read from the source.
    pub bytes: u64,
    /// What was read and not yet written.
    pub held: ByteBuf,
    /// The last read found more than may be held.
    pub bulk: bool,
    /// The sink has taken a byte of the source's.
    pub sent: bool,
    /// Bytes of a header that are the first held.
    pub header: u8,
    /// The source has no more bytes.
    pub ended: bool,
    /// The destination has been told so, or is gone.
    pub closed: bool,
    /// The destination has every byte, and knows that it has.
    pub whole: bool,
    /// The other direction is over.
    pub last: bool,
}

/// Who waits for a place in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedQueue {
    /// Which, by number.
    pub pool: u32,
    /// Keys of sessions, the first that came first.
    pub keys: Vec<u32>,
}

/// One spare connection. A place is taken at its backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedSpare {
    /// Its place in the table of spares.
    pub key: u32,
    /// The socket.
    pub fd: RawFd,
    /// Where it leads, by number.
    pub backend: u32,
    /// The connect has succeeded.
    pub connected: bool,
    /// When it was connected, or begun to.
    pub since: u64,
}

/// The spares of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedStock {
    /// Whose, by number.
    pub backend: u32,
    /// Keys of spares, oldest first.
    pub keys: Vec<u32>,
    /// None is opened before.
    pub not_before: u64,
    /// That is for want of places.
    pub full: bool,
}

/// Makes a system call; again where the kernel lacks something and there is time.
pub type Persist<'a> = &'a (dyn Fn(&mut dyn FnMut() -> Result<(), Errno>) -> Result<(), Errno> + Sync);
/// Once: there is somebody to go back to.
pub const ONCE: Persist<'static> = &|attempt| attempt();

impl CarriedWorker {
    /// A worker that was [written](Written).
    ///
    /// # Errors
    /// The head makes no sense. Whether the sessions do is seen when a worker is made of it.
    pub fn read(head: &[u8], sessions: Bytes) -> Result<Self, postcard::Error> {
        let carried: Self = postcard::from_bytes(head)?;
        Ok(Self { sessions: carried.sessions.behind(sessions), ..carried })
    }

    /// Every descriptor that has to be there still after the exec, but for those of sessions.
    fn few(&self) -> impl Iterator<Item = RawFd> {
        let epolls = self.epoll.iter().chain(&self.retired).copied();
        let doors = self.doors.iter().map(|door| door.fd);
        epolls.chain(doors).chain(self.spares.iter().map(|spare| spare.fd))
    }

    #[cfg(test)]
    fn descriptors(&self) -> Vec<RawFd> {
        let sessions = self.sessions.all().unwrap().into_iter();
        let sessions = sessions.flat_map(|s| [Some(s.client.fd), s.server.map(|end| end.fd)]).flatten();
        self.few().chain(sessions).collect()
    }
}
