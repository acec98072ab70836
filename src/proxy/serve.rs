//! A session's way from accept to end, as the worker carries it out: choose, dial, establish, try another
//! one, queue. What it means for the bytes is [`super::session`]'s to say.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::accept_error::is_shortage;
use super::dial::{Choice, choose};
use super::inbox::Outcome;
use super::own_address::has_met_itself;
use super::queue::leave_queue;
use super::relay::{End, Flow};
use super::session::{KEEPALIVE_AFTER, Session, SpareUse, State, micros};
use super::socket::{self, Dialled};
use super::spare;
use super::sweep::RECOVERY;
use super::token::Token;
use super::worker::Worker;
use crate::snapshot::{BackendCell, Listener};
use crate::words::{Address, Cause, Happening, Phase, Refusal};

/// The pause before a backend that has just failed this session is tried again, where there is no other.
const AGAIN: u64 = 1_000_000;
/// The pause before a backend whose queue is full is asked again.
const CROWDED: u64 = 10_000;
/// The pause before a local port is asked for again, which the kernel searches all ports for; and how many backends are asked at once.
const NO_PORT: u64 = 200_000;
const OTHERS: usize = 3;
/// The longest a session waits, where there is no queue, for a place that another worker's spare connection has.
const YIELD: Duration = Duration::from_secs(1);

impl Worker {
    /// Takes an accepted client in. Its places at the process and the listener are reserved.
    pub(super) fn admit(&mut self, client: OwnedFd, peer: Option<SocketAddr>, listener: &Listener) {
        let ticket = listener.pool.cell.ticket.fetch_add(1, Relaxed);
        listener.cell.shards[self.index].accepted.add(1);
        self.mark_new(&client);
        let unix = peer.is_none();
        if unix {
            let _ = socket::keep_urgent_data_in_line(&client); // of a Unix socket it is not inherited
        }
        let mut session =
            Session::new(End { no_delay: true, ..End::new(client, unix) }, peer, listener, ticket, self.now);
        self.serial = self.serial.wrapping_add(1);
        session.serial = self.serial;
        let key = self.sessions.insert(session);
        if let Err(e) = self.register_client(key) {
            return self.pause_or_end(key, e);
        }
        self.greet(key, listener);
    }

    fn register_client(&self, key: usize) -> Result<(), Errno> {
        let Session { client, serial, .. } = &self.sessions[key];
        self.epoll.add(&client.fd, EpollEvent::new(interest(), Token::Client(key, *serial).pack()))
    }

    fn greet(&mut self, key: usize, listener: &Listener) {
        let ip = self.sessions[key].peer.map(|peer| peer.ip());
        match &listener.accept_proxy {
            Some(trusted) if trusted.expects(ip) => self.expect_preface(key),
            _ => self.place(key),
        }
    }

    /// A pause of a session is over. One that paused because epoll had no room for its client begins only now.
    pub(super) fn resume(&mut self, key: usize) {
        match self.register_client(key) {
            Ok(()) => {
                let snapshot = Arc::clone(&self.snapshot);
                match snapshot.listener(&self.sessions[key].listener.name) {
                    Some(listener) => self.greet(key, listener),
                    None => self.place(key),
                }
            }
            Err(Errno::EEXIST) => self.place(key),
            Err(e) => self.pause_or_end(key, e),
        }
    }

    /// A socket of a session cannot be registered with epoll. For want of room the session waits; its backend's socket is gone.
    fn pause_or_end(&mut self, key: usize, e: Errno) {
        if !is_shortage(e) {
            return self.end(key, Cause::Proxy, Phase::Connect);
        }
        self.sessions[key].server = None;
        self.give_back(key);
        self.run_short(e);
        self.pause(key, self.shut_for);
    }

    /// Finds a backend for a session that has none, and dials it.
    pub(super) fn place(&mut self, key: usize) {
        let random = self.random();
        let session = &mut self.sessions[key];
        let Some(pool) = self.snapshot.pool(&session.pool.name) else {
            return self.refuse(key, Refusal::NoBackend);
        };
        let queued = session.state == State::Queued;
        let others_wait = !queued && !pool.eligible.is_empty() && pool.cell.queued.load(SeqCst) > 0;
        if let Some(queue) = pool.queue.filter(|_| others_wait) {
            return self.enqueue(key, queue.max, queue.timeout); // behind those who came before
        }
        let ip = session.peer.map(|peer| peer.ip());
        let (spares, may) = (&self.spares, session.spare != SpareUse::Failed);
        let choice = choose(pool, session.ticket, ip, random, &session.tried, |backend| may && spares.has(backend));
        if queued && !matches!(choice, Choice::Full | Choice::Unproven) {
            leave_queue(&mut self.queues, session, key);
        }
        match choice {
            Choice::Reserved(backend) => {
                let patience = micros(pool.connect_timeout);
                session.send_proxy = pool.send_proxy;
                self.dial(key, backend, patience);
            }
            Choice::Spare(backend) => {
                session.send_proxy = pool.send_proxy;
                self.give_spare(key, backend);
            }
            // The only one may be tried again; of several each has had its chance.
            Choice::AllTried if session.failure == Some(Errno::EADDRNOTAVAIL) => {
                session.tried.clear();
                self.pause(key, NO_PORT);
            }
            Choice::AllTried if pool.eligible.len() > 1 => self.refuse(key, Refusal::ConnectFailed),
            Choice::AllTried => {
                session.tried.clear();
                self.pause(key, AGAIN);
            }
            Choice::Nobody => self.refuse(key, Refusal::NoBackend),
            Choice::Unproven => match pool.queue {
                None => self.refuse(key, Refusal::NoBackend),
                Some(_) if queued => {}
                Some(queue) => self.enqueue(key, queue.max, queue.timeout),
            },
            Choice::Full => {
                let spares = spare::hold_places(pool);
                match pool.queue.map(|queue| (queue.max, queue.timeout)).or(spares.then_some((u32::MAX, YIELD))) {
                    None => self.refuse(key, Refusal::Limit),
                    Some(_) if queued => {} // it stays where it is
                    Some((max, timeout)) => self.enqueue(key, max, timeout),
                }
            }
        }
    }

    fn pause(&mut self, key: usize, length: u64) {
        let deadline = self.now + length;
        let session = &mut self.sessions[key];
        session.state = State::Pausing;
        session.deadline = deadline;
        self.look_by(key, deadline);
        if self.is_abandoned(key) {
            self.end(key, Cause::Client, Phase::Connect);
        }
    }

    fn dial(&mut self, key: usize, backend: Arc<BackendCell>, patience: u64) {
        let dialled = socket::dial(&backend.address);
        let session = &mut self.sessions[key];
        session.dial = session.dial.wrapping_add(1);
        if !std::mem::take(&mut session.crowded) {
            session.since = self.now;
        }
        session.backend = Some(backend);
        let (fd, connected) = match dialled {
            Ok(Dialled::Pending(fd)) => (fd, false),
            Ok(Dialled::Connected(fd)) => (fd, true),
            Err(Errno::EADDRNOTAVAIL) => return self.want_port(key, patience),
            Err(e) if is_shortage(e) => {
                // The client is not to suffer for our want of descriptors: it waits until there are some.
                self.give_back(key);
                self.run_short(e);
                return self.pause(key, self.shut_for);
            }
            // A Unix socket whose queue is full: where TCP would ask again by itself, this is for us to do.
            Err(Errno::EAGAIN) if self.now.saturating_sub(session.since) < patience => {
                session.crowded = true;
                self.give_back(key);
                return self.pause(key, CROWDED);
            }
            Err(e) => return self.dial_failed(key, if e == Errno::EAGAIN { Errno::ETIMEDOUT } else { e }),
        };
        let token = Token::Server(key, session.serial, session.dial).pack();
        self.mark_new(&fd);
        let session = &mut self.sessions[key];
        let registered = self.epoll.add(&fd, EpollEvent::new(interest(), token));
        let unix = session.backend.as_ref().is_some_and(|backend| matches!(backend.address, Address::Unix(_)));
        session.server = Some(End::new(fd, unix));
        session.state = State::Connecting;
        session.deadline = self.now.saturating_add(patience);
        let soon = session.deadline.min(self.now + KEEPALIVE_AFTER); // when the session is looked at anyway
        if let Err(e) = registered {
            return self.pause_or_end(key, e);
        }
        self.look_by(key, soon);
        if connected {
            self.established(key);
        }
    }

    /// There is no local port for another connection to this backend: no fault of it, nor of the client, who waits for one, or is served
    /// by another backend that has one.
    fn want_port(&mut self, key: usize, patience: u64) {
        let session = &mut self.sessions[key];
        let Some(backend) = session.backend.clone() else { return };
        (session.failure, session.crowded) = (Some(Errno::EADDRNOTAVAIL), true);
        let over = self.now.saturating_sub(session.since) >= patience;
        let others = session.tried.len() < OTHERS;
        if others {
            session.tried.push(Arc::clone(&backend));
        }
        self.give_back(key);
        if self.limits.ran_short(self.now) {
            tracing::warn!(
                event = Happening::Shortage.as_str(),
                backend = backend.reference.to_string(),
                "no local port is free for connections to {}; raise net.ipv4.ip_local_port_range (sysctl), or add addresses or backends",
                backend.address
            );
        }
        self.recover_by(self.now + RECOVERY);
        match () {
            () if over => self.refuse(key, Refusal::Limit),
            () if others => self.place(key),
            () => self.pause(key, NO_PORT),
        }
    }

    /// A connect has succeeded.
    pub(super) fn established(&mut self, key: usize) {
        let now = self.now;
        let session = &mut self.sessions[key];
        if let (Some(server), Some(backend)) = (&session.server, &session.backend)
            && has_met_itself(&mut self.local_ports, now, backend, &server.fd)
        {
            return self.dial_failed(key, Errno::ECONNREFUSED);
        }
        if let Some(backend) = &session.backend {
            backend.shards[self.index].connect_times.record(Duration::from_micros(now - session.since));
        }
        self.begin_relaying(key);
    }

    /// A session has its connection to a backend.
    pub(super) fn begin_relaying(&mut self, key: usize) {
        let now = self.now;
        let session = &mut self.sessions[key];
        session.state = State::Relaying;
        session.failure = None;
        (session.active, session.acknowledged) = (now, 0);
        if let Some(backend) = &session.backend {
            let shard = &backend.shards[self.index];
            // A spare connection may yet turn out dead, and another backend serve.
            shard.established.add(u64::from(session.spare != SpareUse::Serving));
            shard.bytes_in.add(session.up.bytes); // read before, and held for it
        }
        let soon = now + (session.patience() / 4).min(KEEPALIVE_AFTER);
        self.unacknowledged.remove(&key); // that was another connection
        self.look_by(key, soon);
    }

    /// A spare connection was dead before a byte moved: the session begins again, and nothing has failed.
    fn place_again(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        session.spare = SpareUse::Failed;
        session.server = None;
        session.kept_alive = false;
        session.up.reopen(&self.limits.memory);
        session.down = Flow::default();
        session.state = State::Pausing;
        self.give_back(key);
        self.place(key);
    }

    /// A connect has failed, or broke before a byte was sent: tries another backend, or gives up.
    pub(super) fn dial_failed(&mut self, key: usize, why: Errno) {
        let session = &mut self.sessions[key];
        if session.spare == SpareUse::Serving {
            return self.place_again(key);
        }
        session.server = None;
        session.kept_alive = false; // the next one has a socket of its own
        session.up.reopen(&self.limits.memory);
        session.down = Flow::default();
        session.state = State::Pausing;
        let retries = self.snapshot.pool(&session.pool.name).map_or(0, |pool| pool.retries);
        let give_up = u32::from(session.attempts) >= retries;
        session.attempts = session.attempts.saturating_add(1);
        session.failure = Some(why);
        if let Some(backend) = &session.backend {
            backend.connect_failed(why as i32, self.now);
            let shard = &backend.shards[self.index];
            shard.connect_errors.add(1);
            if !give_up {
                shard.retries.add(1);
                session.listener.shards[self.index].retries.add(1);
            }
            let backend = Arc::clone(backend);
            session.tried.push(Arc::clone(&backend));
            self.tell_of_failed_dial(&backend, why);
        }
        self.give_back(key);
        if give_up { self.refuse(key, Refusal::ConnectFailed) } else { self.place(key) }
    }

    pub(super) fn tell_of_failed_dial(&self, backend: &Arc<BackendCell>, why: Errno) {
        // Want of local ports is no fault of the backend's.
        if why != Errno::EADDRNOTAVAIL {
            let _ = self.outcomes.try_send(Outcome::DialFailed(Arc::clone(backend)));
        }
    }

    /// Gives the reserved place at a backend back.
    fn give_back(&mut self, key: usize) {
        if let Some(backend) = self.sessions[key].backend.take() {
            self.free(&backend);
        }
    }

    pub(super) fn free(&mut self, backend: &Arc<BackendCell>) {
        backend.live.release();
        self.spares.has_room(backend, self.now);
        self.place_is_free(backend);
    }
}

/// What lbd wants to hear of a session's sockets, once each time it becomes so.
pub(super) fn interest() -> EpollFlags {
    EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
}
