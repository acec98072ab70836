//! What the tests of this room share: pairs of connected sockets, what epoll says of them, and snapshots from a file's text.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use socket2::Socket;

use super::relay::End;
use super::ring::Ring;
use super::serve::interest;
use crate::config::Config;
use crate::snapshot::{BackendFacts, Cells, Revision, Snapshot, build};
use crate::words::{AdminState, Generation, Health};

/// Which sockets a test runs over.
#[derive(Debug, Clone, Copy)]
pub enum Over {
    Unix,
    Tcp,
}

/// A connected pair: lbd's end, and the peer's.
pub fn pair(over: Over) -> (End, Socket) {
    let (ours, theirs): (OwnedFd, OwnedFd) = match over {
        Over::Unix => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (ours.into(), theirs.into())
        }
        Over::Tcp => {
            let door = TcpListener::bind("127.0.0.1:0").unwrap();
            let ours = TcpStream::connect(door.local_addr().unwrap()).unwrap();
            (ours.into(), door.accept().unwrap().0.into())
        }
    };
    let (ours, theirs) = (Socket::from(ours), Socket::from(theirs));
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).unwrap();
        socket.set_send_buffer_size(32 * 1024).unwrap(); // little: so that writes come short
    }
    (End::new(ours.into(), matches!(over, Over::Unix)), theirs)
}

/// Writes as much as fits; how much that was.
pub fn put(mut peer: &Socket, bytes: &[u8]) -> usize {
    match peer.write(bytes) {
        Ok(n) => n,
        Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
        Err(e) => panic!("{e}"),
    }
}

/// What a peer finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    Bytes(Vec<u8>),
    Nothing,
    End,
    Reset,
}

/// Reads at most so many bytes.
pub fn get(mut peer: &Socket, most: usize) -> Got {
    let mut buffer = vec![0; most];
    match peer.read(&mut buffer) {
        Ok(0) => Got::End,
        Ok(n) => Got::Bytes(buffer[..n].to_vec()),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Got::Nothing,
        Err(_) => Got::Reset,
    }
}

/// Breaks a connection off: TCP peers see a reset.
pub fn break_off(peer: Socket) {
    let _ = peer.set_linger(Some(std::time::Duration::ZERO));
}

/// What epoll says of a session's two sockets, as a worker hears it: edges.
pub struct Ears(Epoll);

impl Ears {
    pub fn on(ends: [&End; 2]) -> Self {
        let ears = Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap());
        (0..).zip(ends).for_each(|(token, end)| ears.add(end, token));
        ears
    }

    pub fn add(&self, end: &End, token: u64) {
        self.0.add(end.fd.as_fd(), EpollEvent::new(interest(), token)).unwrap();
    }

    /// Takes note of what has happened by now, or happens within some milliseconds.
    pub fn hear(&self, ends: [&mut End; 2], within: u16) {
        let mut events = [EpollEvent::empty(); 8];
        let count = self.0.wait(&mut events, EpollTimeout::from(within)).unwrap();
        for event in &events[..count] {
            ends[event.data() as usize].heard(event.events());
        }
    }
}

/// The snapshot of a file of whose backends nothing is known.
pub fn snapshot(text: &str, revision: u64) -> (Arc<Snapshot>, Cells) {
    snapshot_of(text, revision, Health::Unchecked)
}

/// The same, with every backend's health.
pub fn snapshot_of(text: &str, revision: u64, health: Health) -> (Arc<Snapshot>, Cells) {
    let config = Config::parse(text.as_bytes()).unwrap();
    let mut cells = Cells::new(1);
    cells.settle(&config, 1);
    let facts = |_: &_| BackendFacts { health, admin: AdminState::Enabled };
    (Arc::new(build((Generation(1), Revision(revision)), &config, &cells, facts, None)), cells)
}

/// A ring for whatever is to be done; none, and a word of it, only where this machine is known to keep io_uring from us.
pub fn ring(calls: usize) -> Option<Ring> {
    ring_for(calls, 1)
}

/// One for so many calls and no fewer.
pub fn ring_for(calls: usize, fewest: usize) -> Option<Ring> {
    let why = match Ring::new(calls, fewest) {
        Ok(ring) => return Some(ring),
        Err(why) => why,
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let old = (numbers.next(), numbers.next()) < (Some(6), Some(1));
    let forbidden =
        matches!(why.raw_os_error().map(Errno::from_raw), Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS));
    assert!(old || forbidden || why.kind() == ErrorKind::Unsupported, "Linux {release}: {why}");
    println!("skipped: there is no io_uring here: {why}");
    None
}
