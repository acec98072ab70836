//! The system calls of the data path, each with the options lbd wants, on descriptors that are
//! non-blocking and closed on exec. Decides nothing. One of the five files with `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockname, recv, send,
    setsockopt, shutdown, socket, sockopt,
};

use crate::config::Keepalive;
use crate::words::Address;

/// Accepts one client; `Ok(None)` where none waits. The address is `None` for Unix sockets.
///
/// nix's `accept4` does not return the address, and asking for it afterwards is a call more a connection.
pub fn accept(listener: &OwnedFd) -> Result<Option<(OwnedFd, Option<SocketAddr>)>, Errno> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut length = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: `storage` is writable for `length` bytes, which is what accept4(2) asks for; the kernel
    // writes at most that many. The result is checked before use.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            storage.as_mut_ptr().cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    match Errno::result(fd) {
        // SAFETY: accept4 returned a new descriptor that nobody else owns, and filled `storage` by its family.
        Ok(fd) => Ok(Some(unsafe { (OwnedFd::from_raw_fd(fd), ip_of(&storage, length)) })),
        Err(Errno::EAGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}

/// # Safety
/// The kernel must have written an address of `length` bytes to `storage`.
unsafe fn ip_of(storage: &MaybeUninit<libc::sockaddr_storage>, length: libc::socklen_t) -> Option<SocketAddr> {
    if (length as usize) < mem::size_of::<libc::sa_family_t>() {
        return None;
    }
    let p = storage.as_ptr();
    // SAFETY: the family is written (length checked), and each cast is to the type that the family names.
    unsafe {
        match i32::from((*p.cast::<libc::sockaddr>()).sa_family) {
            libc::AF_INET => {
                let a = &*p.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
                Some(SocketAddr::from((ip, u16::from_be(a.sin_port))))
            }
            libc::AF_INET6 => {
                let a = &*p.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(a.sin6_addr.s6_addr).to_canonical();
                Some(SocketAddr::from((ip, u16::from_be(a.sin6_port))))
            }
            _ => None,
        }
    }
}

/// How a connect began.
#[derive(Debug)]
pub enum Dialled {
    /// The answer will come as an event.
    Pending(OwnedFd),
    /// Connected at once, as Unix sockets are.
    Connected(OwnedFd),
}

/// What the system calls an error.
pub fn words_of(errno: i32) -> &'static str {
    Errno::from_raw(errno).desc()
}

/// Begins to connect. TCP_NODELAY is left to the second write ([`write_without_delay`]): a connection that has but one saves the call.
pub fn dial(address: &Address) -> Result<Dialled, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (fd, begun) = match address {
        Address::Ip(ip) => {
            let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(family, SockType::Stream, flags, None)?;
            keep_urgent_data_in_line(&fd)?;
            let begun = connect(fd.as_raw_fd(), &SockaddrStorage::from(*ip));
            (fd, begun)
        }
        Address::Unix(path) => {
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            keep_urgent_data_in_line(&fd)?;
            let begun = connect(fd.as_raw_fd(), &UnixAddr::new(path)?);
            (fd, begun)
        }
    };
    match begun {
        Ok(()) => Ok(Dialled::Connected(fd)),
        Err(Errno::EINPROGRESS) => Ok(Dialled::Pending(fd)),
        Err(e) => Err(e),
    }
}

/// Leaves the byte that a peer calls urgent where it stands in the stream (SO_OOBINLINE); it would be lost otherwise. Accepted
/// sockets inherit it from the one that listens.
pub fn keep_urgent_data_in_line(fd: &impl AsFd) -> Result<(), Errno> {
    setsockopt(fd, sockopt::OobInline, &true)
}

/// Has small writes go out at once, whatever is under way (TCP_NODELAY). No error on Unix sockets.
pub fn write_without_delay(fd: &OwnedFd) {
    let _ = setsockopt(fd, sockopt::TcpNoDelay, &true); // fails only on a socket that is dead or not TCP
}

/// Why a pending connect failed, or `Ok` where it has not.
pub fn dial_result(fd: &OwnedFd) -> Result<(), Errno> {
    match nix::sys::socket::getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        code => Err(Errno::from_raw(code)),
    }
}

/// The address of this machine that a socket is connected by; `None` for Unix sockets.
pub fn local_ip(fd: &OwnedFd) -> Option<SocketAddr> {
    let own = getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?;
    let four = own.as_sockaddr_in().map(|own| SocketAddr::V4((*own).into()));
    let own = four.or_else(|| own.as_sockaddr_in6().map(|own| SocketAddr::V6((*own).into())))?;
    Some(SocketAddr::new(own.ip().to_canonical(), own.port()))
}

/// Reads what is there; 0 is the end.
pub fn read(fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    uninterrupted(|| recv(fd.as_raw_fd(), buffer, MsgFlags::empty()))
}

/// Reads what is there, within bounds, and throws it away.
pub fn discard(fd: &OwnedFd, buffer: &mut [u8]) {
    const MOST: usize = 16;
    (0..MOST).take_while(|_| read(fd, buffer).is_ok_and(|n| n > 0)).for_each(drop);
}

/// True where the peer has ended or broken the connection, and there is nothing to read. Takes nothing out of it.
pub fn has_ended(fd: &OwnedFd) -> bool {
    !matches!(uninterrupted(|| recv(fd.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)), Ok(1) | Err(Errno::EAGAIN))
}

/// Writes what fits.
pub fn write(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    uninterrupted(|| send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL))
}

fn uninterrupted(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// Bytes that a write would surely take whole now; 0 where the kernel does not tell (SO_MEMINFO, Linux 4.12).
pub fn send_room(fd: &OwnedFd) -> usize {
    const SNDBUF: usize = 3; // SK_MEMINFO_SNDBUF, linux/sock_diag.h
    const QUEUED: usize = 5; // SK_MEMINFO_WMEM_QUEUED
    const ALLOCATED: usize = 2; // SK_MEMINFO_WMEM_ALLOC: what Unix sockets count
    let mut info = [0u32; 9];
    let mut length = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes; the kernel writes at most that many.
    let asked = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    if asked != 0 {
        return 0;
    }
    let free = info[SNDBUF].saturating_sub(info[QUEUED].max(info[ALLOCATED])) as usize;
    free - free / 4 // the kernel counts its own overhead too
}

/// What TCP knows of the bytes that were written to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The peer has not acknowledged all of them, or the end behind them.
    pub is_pending: bool,
    /// What was sent last, bytes or a probe of its closed window, it has not answered.
    pub is_unanswered: bool,
    /// It was bytes, sent more than once.
    pub is_sent_again: bool,
    /// How many bytes it has acknowledged.
    pub acknowledged: u64,
    /// Since it last acknowledged anything, a probe of its closed window included.
    pub silent: std::time::Duration,
}

/// The kernel's `struct tcp_info` as far as it is read here (linux/tcp.h; Linux 4.6).
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    state: u8,
    congestion: u8,
    retransmits: u8,
    probes: u8,
    bytes: [u8; 4],
    timeouts: [u32; 4],
    unacked: u32,
    segments: [u32; 4],
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    measures: [u32; 11],
    rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    segments_out: u32,
    segments_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
}

/// What TCP knows of the bytes that were written; `None` for Unix sockets, whose bytes are the peer's as soon as they are written.
pub fn delivery(fd: &OwnedFd) -> Option<Delivery> {
    const CLOSED: u8 = 7; // TCP_CLOSE: nobody waits for anything any more
    let mut info = TcpInfo::default();
    let mut length = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes, any of which may have any value; the kernel writes at most that many.
    let asked = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    (asked == 0).then(|| Delivery {
        is_pending: info.state != CLOSED && (info.unacked > 0 || info.notsent_bytes > 0),
        is_unanswered: info.retransmits > 0 || info.probes > 0,
        is_sent_again: info.retransmits > 0,
        acknowledged: info.bytes_acked,
        silent: std::time::Duration::from_millis(info.last_ack_recv.into()),
    })
}

/// Tells the peer that no more bytes come. A peer that is gone already is no error: its reads will say so.
pub fn finish_writing(fd: &OwnedFd) {
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}

/// Whether a socket listens still.
pub fn is_listening(fd: &OwnedFd) -> bool {
    nix::sys::socket::getsockopt(fd, sockopt::AcceptConn).unwrap_or(false)
}

/// Ends the listening of a socket, whoever else holds it.
pub fn stop_listening(fd: &OwnedFd) {
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Read); // what it does to one that listens: inet_shutdown, unix_shutdown
}

/// Makes the coming close a reset: the peer must not take a cut stream for a whole one.
pub fn reset_on_close(fd: &OwnedFd) {
    // Fails only on a socket that is dead already.
    let _ = setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// Turns on keepalive. No error on Unix sockets, which have none.
pub fn keep_alive(fd: &OwnedFd, keepalive: Keepalive) {
    let seconds = |d: std::time::Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX).clamp(1, 32_767);
    // Each fails only on a socket that is dead or not TCP.
    if setsockopt(fd, sockopt::TcpKeepIdle, &seconds(keepalive.idle)).is_ok() {
        let _ = setsockopt(fd, sockopt::TcpKeepInterval, &seconds(keepalive.interval));
        let _ = setsockopt(fd, sockopt::TcpKeepCount, &u32::from(keepalive.count));
        let _ = setsockopt(fd, sockopt::KeepAlive, &true);
    }
}

/// Gives freed memory back to the kernel, milliseconds a hundred megabytes; where the C library is not glibc, that sees to it.
pub fn give_memory_back() {
    // SAFETY: takes no pointer, and may be called by any thread at any time (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A descriptor that an exec has brought here.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the predecessor owned it and is no more; its record has each descriptor once (`carry::assemble` checks),
    // and nobody else in this process has heard of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Says whether an exec leaves a descriptor open.
pub fn keep_across_exec(fd: RawFd, keep: bool) -> Result<(), Errno> {
    if fd < 0 {
        return Err(Errno::EBADF); // no descriptor, and no number that may be borrowed as one
    }
    let flags = if keep { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    // SAFETY: borrowed for this call alone; where it is not open, the kernel says so and nothing happens.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)
}

/// Has an exec close every descriptor from the first to the last: one call, of Linux 5.11.
pub fn close_range_on_exec(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // Not by the C library, where it is younger than the kernel that has the call.
    // SAFETY: it closes nothing now, and takes numbers alone.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done).map(drop)
}

/// Microseconds of CLOCK_MONOTONIC.
pub fn monotonic_micros() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    // Cannot fail on Linux with this clock.
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000 + t.tv_nsec() as u64 / 1000)
}

/// Raises the limit of descriptors to the hard one; returns it. Where the kernel refuses, it is left as it was, and why
/// is returned too.
pub fn raise_descriptor_limit() -> io::Result<(u64, Option<io::Error>)> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        _ if soft >= hard => Ok((soft, None)),
        Ok(()) => Ok((hard, None)),
        Err(refused) => Ok((soft, Some(refused.into()))),
    }
}
