//! The system calls of a probe, on descriptors that are non-blocking and closed on exec. Decides nothing.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockname, recv, send,
    shutdown, socket,
};

/// A socket for a connect to an IP address, or to a Unix socket.
pub(super) fn stream(to: Option<SocketAddr>) -> Result<OwnedFd, Errno> {
    let family = match to {
        Some(SocketAddr::V4(_)) => AddressFamily::Inet,
        Some(SocketAddr::V6(_)) => AddressFamily::Inet6,
        None => AddressFamily::Unix,
    };
    socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// Begins to connect, or says what has become of it: EALREADY while it is under way, EINPROGRESS as it begins.
pub(super) fn connect_ip(fd: &OwnedFd, to: SocketAddr) -> Result<(), Errno> {
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

/// Connects to a Unix socket, at once or not at all: EAGAIN where its queue is full, of whose end nobody tells.
pub(super) fn connect_unix(fd: &OwnedFd, path: &Path) -> Result<(), Errno> {
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
}

/// On loopback the kernel may draw as our own port the very one we connect to, where nobody listens.
pub(super) fn has_met_itself(fd: &OwnedFd, to: SocketAddr) -> bool {
    let own = getsockname::<SockaddrStorage>(fd.as_raw_fd());
    own.is_ok_and(|own| own == SockaddrStorage::from(to))
}

/// Reads what is there; 0 is the end.
pub(super) fn read(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    recv(fd.as_raw_fd(), buffer, MsgFlags::empty())
}

/// Writes what fits.
pub(super) fn write(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
}

/// Tells the peer that no more bytes come.
pub(super) fn finish_writing(fd: &OwnedFd) {
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write); // fails on a socket that is dead already
}
