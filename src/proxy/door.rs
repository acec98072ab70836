//! Listening sockets: how they are bound, and how a worker accepts from them: in batches, within the limits,
//! with pauses when descriptors run out. A door that may not accept is not listened to at all; its clients
//! wait in the kernel's queue.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tracing::warn;

use super::accept_error::AcceptError;
use super::carry::{CarriedDoor, Spelled};
use super::inbox::{Outcome, Sessions, Unaccepted};
use super::socket;
use super::sweep::RECOVERY;
use super::token::Token;
use super::worker::Worker;
use crate::snapshot::{Listener, Snapshot};
use crate::words::{Address, Happening};

/// Clients that may wait in the kernel's queue; the kernel lowers it to net.core.somaxconn.
pub const BACKLOG: i32 = 65_535;
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

/// Binds an IP address that nobody has handed to this process: a socket for each of `count` workers.
/// `held` are the addresses that this process has bound already; one that overlaps them is shared with itself.
///
/// # Errors
/// The address is in use, is not this machine's, or is not allowed to this user; nothing stays bound.
pub fn bind(ip: SocketAddr, count: usize, held: &[Address]) -> io::Result<Bound> {
    let ours = held.iter().any(|h| matches!(h, Address::Ip(h) if h.port() == ip.port() && ip.port() != 0));
    // SO_REUSEPORT lets any process of this user bind the same port without a word. So first without it.
    let probe = tcp(ip, ours)?;
    let ip = if ip.port() == 0 { probe.local_addr()?.as_socket().unwrap_or(ip) } else { ip };
    drop(probe);
    let sockets = (0..count).map(|_| {
        let socket = tcp(ip, true)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    });
    Ok(Bound { address: Address::Ip(ip), sockets: sockets.collect::<io::Result<_>>()? })
}

pub(super) fn tcp(ip: SocketAddr, shared: bool) -> io::Result<Socket> {
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
            self.remove_door(key);
        }
        self.plan_spares();
    }

    fn remove_door(&mut self, key: usize) {
        // By itself epoll forgets a socket only when nobody holds it any more.
        let _ = self.epoll.delete(&self.doors[key].socket);
        self.doors.remove(key);
        self.knocked.retain(|k| *k != key);
    }

    /// Epoll tells of a door: somebody has come, or the socket has been ended.
    pub(super) fn door_event(&mut self, key: usize, events: EpollFlags) {
        // An ended socket is told again and again, of a door that is held too.
        if events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) && self.has_ended(key) {
            return self.end_door(key);
        }
        self.knocked.push(key);
    }

    fn has_ended(&self, key: usize) -> bool {
        self.doors.get(key).is_some_and(|door| !socket::is_listening(&door.socket))
    }

    /// Looks at every door, for not every end is told: a Unix socket that is held and is shut down is silent.
    pub(super) fn look_at_doors(&mut self) {
        let ended: Vec<usize> = self.doors.iter().map(|(key, _)| key).filter(|key| self.has_ended(*key)).collect();
        ended.into_iter().for_each(|key| self.end_door(key));
    }

    /// Gives the daemon what it asked for, as far as there are descriptors and it has room.
    pub(super) fn lend_doors(&self, address: &Address) {
        for (_, door) in self.doors.iter().filter(|(_, door)| door.address == *address) {
            if let Ok(socket) = door.socket.try_clone() {
                let _ = self.outcomes.try_send(Outcome::Lent(address.clone(), socket));
            }
        }
    }

    /// Nobody will ever be accepted here again: closes the socket and tells the daemon, which binds the address anew.
    fn end_door(&mut self, key: usize) {
        self.ended.push(self.doors[key].address.clone());
        self.remove_door(key);
        self.plan_spares();
        self.tell_of_ended();
    }

    /// Tells the daemon of addresses at which this worker accepts no more; where it has no ear, again in a moment.
    pub(super) fn tell_of_ended(&mut self) {
        let (outcomes, worker) = (&self.outcomes, self.index);
        self.ended.retain(|address| outcomes.try_send(Outcome::Ended { worker, address: address.clone() }).is_err());
        if !self.ended.is_empty() {
            self.recover_by(self.now + RECOVERY);
        }
    }

    /// Accepts from the doors that have clients. At the end of a turn: by then its dead are buried.
    pub(super) fn answer_doors(&mut self) {
        if self.shut_until.is_some_and(|until| until <= self.now) {
            self.shut_until = None;
            self.open_doors(Hold::Shortage);
        }
        if !self.ended.is_empty() {
            self.tell_of_ended();
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
                Accepted::Ended => self.end_door(key),
            }
        }
    }

    fn accept_one(&mut self, key: usize, limit: Option<u32>) -> Accepted {
        let door = &self.doors[key];
        let Some(listener) = door.listener.clone() else { return Accepted::Nobody };
        if !self.limits.sessions.reserve_or_wait(Some(self.limits.most())) {
            if self.limits.ran_short(self.now) {
                warn!(
                    event = Happening::Shortage.as_str(),
                    sessions = self.limits.most(),
                    "the process has as many sessions as its descriptors allow; \
                     new clients wait until one ends; raise LimitNOFILE= (ulimit -n) to have more"
                );
            }
            self.recover_by(self.now + RECOVERY); // it says when the spell is over
            self.hold_door(key, Hold::Limit);
            return Accepted::Held;
        }
        if !listener.cell.live.reserve_or_wait(limit) {
            if self.limits.sessions.release() {
                self.wake_others();
            }
            listener.cell.is_full(self.now);
            self.hold_door(key, Hold::Limit);
            return Accepted::Held;
        }
        let result = socket::accept(&door.socket);
        if let Ok(Some((client, peer))) = result {
            self.admit(client, peer, &listener);
            if self.shut_until.is_some() {
                return Accepted::Held; // epoll has no room for it
            }
            self.shut_for = 0;
            return Accepted::One;
        }
        self.free_places(&listener.cell);
        let Err(e) = result else { return Accepted::Nobody };
        match AcceptError::of(e) {
            AcceptError::Client => Accepted::One,
            AcceptError::Shortage => {
                self.run_short(e);
                Accepted::Held
            }
            AcceptError::Ended => Accepted::Ended,
        }
    }

    /// Shuts the doors for a while: accept would fail again at once, and an open door would spin.
    pub(super) fn run_short(&mut self, e: Errno) {
        if self.limits.ran_short(self.now) {
            warn!(
                event = Happening::Shortage.as_str(),
                "out of resources ({}); accepting pauses until there are some; look at {}",
                e.desc(),
                if e == Errno::ENOSPC { "fs.epoll.max_user_watches" } else { "LimitNOFILE= (ulimit -n)" }
            );
        }
        self.cut_spares(&Sessions::All); // sessions need their descriptors
        if self.shut_until.is_some() {
            return;
        }
        self.shut_for = (self.shut_for * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.shut_until = Some(self.now + self.shut_for);
        self.recover_by(self.now + 2 * LONGEST_PAUSE);
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
    Ended,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::ErrorKind;

    use super::*;

    fn ip(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn kind(result: io::Result<Bound>) -> ErrorKind {
        result.expect_err("it must not be bound").kind()
    }

    #[test]
    fn an_address_that_another_listens_on_is_found_in_use_although_it_could_be_shared() {
        let first = bind(ip("127.0.0.1:0"), 2, &[]).unwrap();
        let Address::Ip(at) = first.address else { unreachable!() };
        assert_eq!(kind(bind(at, 2, &[])), ErrorKind::AddrInUse);
        let ours = bind(at, 2, std::slice::from_ref(&first.address)).unwrap();
        assert_eq!(ours.address, first.address, "with oneself it is shared");
    }

    #[test]
    fn every_worker_gets_a_socket_of_the_same_port() {
        for asked in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let bound = bind(ip(asked), 3, &[]).unwrap();
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
            let bound = bind(ip(asked), 1, &[]).unwrap();
            let Address::Ip(ip) = bound.address else { unreachable!() };
            assert_eq!(std::net::TcpStream::connect(("127.0.0.1", ip.port())).is_ok(), takes, "{asked}");
            assert!(std::net::TcpStream::connect(("::1", ip.port())).is_ok(), "{asked}");
        }
    }
}
