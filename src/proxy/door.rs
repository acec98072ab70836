//! Listening sockets: how they are bound, and how a worker accepts from them: in batches, within the limits,
//! with pauses when descriptors run out. A door that may not accept is not listened to at all; its clients
//! wait in the kernel's queue.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

use super::carry::{CarriedDoor, Spelled};
use super::inbox::{Sessions, Unaccepted};
use super::serve::is_shortage;
use super::socket;
use super::sweep::RECOVERY;
use super::token::Token;
use super::worker::Worker;
use crate::snapshot::{Listener, Snapshot};
use crate::words::{Address, Happening};

/// Clients that may wait in the kernel's queue; the kernel lowers it to net.core.somaxconn.
pub(super) const BACKLOG: i32 = 65_535;
/// Most accepted from a door before its sessions get their turn.
const BATCH: u8 = 64;
/// The first pause when descriptors run out, and the longest, in microseconds.
const FIRST_PAUSE: u64 = 10_000;
const LONGEST_PAUSE: u64 = 1_000_000;

/// A bound address.
#[derive(Debug)]
pub struct Bound {
    /// As it is: a port 0 asked for has become a number.
    pub address: Address,
    /// Listening; one a worker, or just one.
    pub sockets: Vec<OwnedFd>,
}

/// Binds an address that nobody has handed to this process: a socket for each of `count` workers where the kernel can share it, else one.
/// `held` are the addresses that this process has bound already; one that overlaps them is shared with itself.
///
/// # Errors
/// The address is in use, is not this machine's, or is not allowed to this user; nothing stays bound.
pub fn bind(address: &Address, count: usize, held: &[Address]) -> io::Result<Bound> {
    match address {
        Address::Unix(path) => Ok(Bound { address: address.clone(), sockets: vec![bind_unix(path)?] }),
        Address::Ip(ip) => {
            let ours = held.iter().any(|h| matches!(h, Address::Ip(h) if h.port() == ip.port() && ip.port() != 0));
            // SO_REUSEPORT lets any process of this user bind the same port without a word. So first without it.
            let probe = tcp(*ip, ours)?;
            let ip = if ip.port() == 0 { probe.local_addr()?.as_socket().unwrap_or(*ip) } else { *ip };
            drop(probe);
            let sockets = (0..count).map(|_| {
                let socket = tcp(ip, true)?;
                socket.listen(BACKLOG)?;
                Ok(socket.into())
            });
            Ok(Bound { address: Address::Ip(ip), sockets: sockets.collect::<io::Result<_>>()? })
        }
    }
}

pub(super) fn tcp(ip: std::net::SocketAddr, shared: bool) -> io::Result<Socket> {
    let it = Socket::new(Domain::for_address(ip), Type::STREAM.nonblocking().cloexec(), None)?;
    it.set_reuse_address(true)?;
    it.set_reuse_port(shared)?;
    if ip.is_ipv6() {
        it.set_only_v6(!ip.ip().is_unspecified())?; // "[::]" is dual stack
    }
    it.set_tcp_nodelay(true)?; // accepted sockets inherit it, and the next
    socket::keep_urgent_data_in_line(&it)?;
    it.bind(&ip.into())?;
    Ok(it)
}

/// A socket file that nobody listens on is a former process's leaving and is replaced.
fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    if fs::symlink_metadata(path).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type())) {
        // Not blocking: where the queue of whoever listens is full, a connect would wait for as long as it is.
        let knock = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        match knock.connect(&SockAddr::unix(path)?) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            _ => return Err(ErrorKind::AddrInUse.into()),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Why a door is not listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hold {
    /// The listener or the process is at its limit.
    Limit,
    /// There are no descriptors.
    Shortage,
}

/// One listening socket of one worker.
#[derive(Debug)]
pub(super) struct Door {
    address: Address,
    pub(super) socket: OwnedFd,
    /// Whose address it is; the last one that had it, while the door is about to go.
    listener: Option<Arc<Listener>>,
    pub(super) held: Option<Hold>,
    /// How many to accept at a time: one while clients come singly, which saves the call that finds nobody.
    batch: u8,
}

impl Door {
    pub(super) fn take(&mut self, snapshot: &Snapshot) {
        if let Some(listener) = snapshot.listener_at(&self.address) {
            self.listener = Some(Arc::clone(listener));
        }
    }

    pub(super) fn carry(&self, key: u32) -> CarriedDoor {
        let (address, fd) = (Spelled(self.address.clone()), self.socket.as_raw_fd());
        CarriedDoor { key, address, fd, held: self.held, batch: self.batch }
    }

    pub(super) fn assemble(carried: CarriedDoor, snapshot: &Snapshot) -> Self {
        let CarriedDoor { key: _, address, fd, held, batch } = carried;
        let socket = socket::own(fd);
        let mut door = Self { address: address.0, socket, listener: None, held, batch: batch.clamp(1, BATCH) };
        door.take(snapshot);
        door
    }
}

impl Worker {
    pub(super) fn add_door(&mut self, address: Address, socket: OwnedFd) {
        let mut door = Door { address, socket, listener: None, held: None, batch: 1 };
        door.take(&self.snapshot);
        let key = self.doors.vacant_key();
        if let Err(e) = self.epoll.add(&door.socket, EpollEvent::new(EpollFlags::EPOLLIN, Token::Door(key).pack())) {
            tracing::error!(worker = self.index, address = %door.address, "cannot listen: {e}");
            return;
        }
        self.mark_new(&door.socket);
        self.doors.insert(door);
        self.plan_spares();
    }

    /// Closes every door of an address. Closing the last descriptor of a socket resets what waits in its queue:
    /// that is accepted first, unless somebody else holds the socket too.
    pub(super) fn release_doors(&mut self, address: &Address, unaccepted: Unaccepted) {
        let keys: Vec<usize> = self.doors.iter().filter(|(_, d)| d.address == *address).map(|(key, _)| key).collect();
        for key in keys {
            if unaccepted == Unaccepted::Accept {
                // Bounded: there are never more, and an accept that fails for ever must not keep the worker.
                (0..BACKLOG).take_while(|_| self.accept_one(key, None) == Accepted::One).for_each(drop);
                // systemd may hold the socket a moment longer; nobody is to begin to wait there.
                socket::stop_listening(&self.doors[key].socket);
            }
            // By itself epoll forgets a socket only when nobody holds it any more.
            let _ = self.epoll.delete(&self.doors[key].socket);
            self.doors.remove(key);
            self.knocked.retain(|k| *k != key);
        }
        self.plan_spares();
    }

    /// Accepts from the doors that have clients. At the end of a turn: by then its dead are buried.
    pub(super) fn answer_doors(&mut self) {
        if self.shut_until.is_some_and(|until| until <= self.now) {
            self.shut_until = None;
            self.open_doors(Hold::Shortage);
        }
        while let Some(key) = self.knocked.pop() {
            let Some(door) = self.doors.get(key) else { continue };
            let limit = door.listener.as_ref().and_then(|l| l.max_connections);
            let batch = door.batch;
            let mut count = 0;
            let last = loop {
                let accepted = self.accept_one(key, limit);
                count += u8::from(accepted == Accepted::One);
                if accepted != Accepted::One || count == batch {
                    break accepted;
                }
            };
            let door = &mut self.doors[key];
            match last {
                Accepted::One => door.batch = (batch * 2).min(BATCH),
                Accepted::Nobody => door.batch = (batch / 2).max(1),
                Accepted::Held => {}
            }
        }
    }

    fn accept_one(&mut self, key: usize, limit: Option<u32>) -> Accepted {
        let door = &self.doors[key];
        let Some(listener) = door.listener.clone() else { return Accepted::Nobody };
        if !self.limits.sessions.reserve_or_wait(Some(self.limits.most)) {
            if self.limits.ran_short(self.now) {
                warn!(
                    event = Happening::Shortage.as_str(),
                    sessions = self.limits.most,
                    "the process has as many sessions as its descriptors allow; \
                     new clients wait until one ends; raise LimitNOFILE= (ulimit -n) to have more"
                );
            }
            self.sweep_by(self.now + RECOVERY); // it says when the spell is over
            self.hold_door(key, Hold::Limit);
            return Accepted::Held;
        }
        if !listener.cell.live.reserve_or_wait(limit) {
            if self.limits.sessions.release() {
                self.wake_others();
            }
            self.hold_door(key, Hold::Limit);
            return Accepted::Held;
        }
        let result = socket::accept(&door.socket);
        if let Ok(Some((client, peer))) = result {
            self.shut_for = 0;
            self.admit(client, peer, &listener);
            return Accepted::One;
        }
        self.free_places(&listener.cell);
        match result {
            Err(e) if is_shortage(e) => {
                self.run_short(e);
                Accepted::Held
            }
            // This client's own misfortune (accept(2)): it has left, or its network has.
            Err(_) => Accepted::One,
            Ok(_) => Accepted::Nobody,
        }
    }

    /// Shuts the doors for a while: accept would fail again at once, and an open door would spin.
    pub(super) fn run_short(&mut self, e: Errno) {
        if self.limits.ran_short(self.now) {
            warn!(
                event = Happening::Shortage.as_str(),
                "out of resources ({}); accepting pauses until there are some; look at LimitNOFILE= (ulimit -n)",
                e.desc()
            );
        }
        self.cut_spares(&Sessions::All); // sessions need their descriptors
        if self.shut_until.is_some() {
            return;
        }
        self.shut_for = (self.shut_for * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.shut_until = Some(self.now + self.shut_for);
        self.sweep_by(self.now + 2 * LONGEST_PAUSE);
        let keys: Vec<usize> = self.doors.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.hold_door(key, Hold::Shortage);
        }
    }

    fn hold_door(&mut self, key: usize, why: Hold) {
        let door = &mut self.doors[key];
        door.held = Some(why);
        // Cannot fail: the socket is registered.
        let _ =
            self.epoll.modify(door.socket.as_fd(), &mut EpollEvent::new(EpollFlags::empty(), Token::Door(key).pack()));
    }

    /// Has nobody accepted for now: all doors are held that were not. They are listened to again in the first turn that follows.
    pub(super) fn hold_doors(&mut self) {
        let open: Vec<usize> = self.doors.iter().filter(|(_, door)| door.held.is_none()).map(|(key, _)| key).collect();
        open.into_iter().for_each(|key| self.hold_door(key, Hold::Limit));
    }

    /// Listens again to the doors that were held for this reason.
    pub(super) fn open_doors(&mut self, why: Hold) {
        for (key, door) in &mut self.doors {
            if door.held == Some(why) {
                door.held = None;
                let _ = self
                    .epoll
                    .modify(door.socket.as_fd(), &mut EpollEvent::new(EpollFlags::EPOLLIN, Token::Door(key).pack()));
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepted {
    One,
    Nobody,
    Held,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::net::UnixListener;

    use super::super::testing::address;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn kind(result: io::Result<Bound>) -> ErrorKind {
        result.expect_err("it must not be bound").kind()
    }

    #[test]
    fn an_address_that_another_listens_on_is_found_in_use_although_it_could_be_shared() {
        let first = bind(&address("127.0.0.1:0"), 2, &[]).unwrap();
        assert_eq!(kind(bind(&first.address, 2, &[])), ErrorKind::AddrInUse);
        let ours = bind(&first.address, 2, std::slice::from_ref(&first.address)).unwrap();
        assert_eq!(ours.address, first.address, "with oneself it is shared");
    }

    #[test]
    fn every_worker_gets_a_socket_of_the_same_port() {
        for asked in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let bound = bind(&address(asked), 3, &[]).unwrap();
            let Address::Ip(ip) = &bound.address else { panic!("{bound:?}") };
            let ports: BTreeSet<_> = bound
                .sockets
                .iter()
                .map(|s| socket2::SockRef::from(s).local_addr().unwrap().as_socket().unwrap().port())
                .collect();
            assert_eq!((bound.sockets.len(), ports), (3, [ip.port()].into()), "{asked}");
            assert_ne!(ip.port(), 0);
        }
    }

    #[test]
    fn the_ipv6_wildcard_takes_ipv4_clients_too_and_a_single_address_does_not() {
        for (asked, takes) in [("[::]:0", true), ("[::1]:0", false)] {
            let bound = bind(&address(asked), 1, &[]).unwrap();
            let Address::Ip(ip) = bound.address else { unreachable!() };
            assert_eq!(std::net::TcpStream::connect(("127.0.0.1", ip.port())).is_ok(), takes, "{asked}");
            assert!(std::net::TcpStream::connect(("::1", ip.port())).is_ok(), "{asked}");
        }
    }

    #[test]
    fn a_stale_socket_file_is_replaced_a_live_one_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        drop(UnixListener::bind(place("stale")).unwrap());
        let live = UnixListener::bind(place("live")).unwrap();
        fs::write(place("file"), "dear").unwrap();
        std::os::unix::fs::symlink(place("file"), place("link")).unwrap();

        let bound = bind(&Address::Unix(place("stale")), 3, &[]).unwrap();
        assert_eq!(bound.sockets.len(), 1, "a path cannot be shared");
        assert!(UnixStream::connect(place("stale")).is_ok());
        for name in ["live", "file", "link"] {
            assert_eq!(kind(bind(&Address::Unix(place(name)), 1, &[])), ErrorKind::AddrInUse, "{name}");
        }
        UnixStream::connect(place("live")).unwrap();
        assert!(live.accept().is_ok());
        assert_eq!(fs::read_to_string(place("file")).unwrap(), "dear");
        assert_eq!(kind(bind(&Address::Unix(place("none/here")), 1, &[])), ErrorKind::NotFound);
    }
}
