//! One client as a short state machine: queued, pausing, connecting, relaying. Plain data with one owner,
//! a worker's table; what it decides here the worker carries out. It owns no buffer while idle, no task
//! and no timer, and all its times are microseconds of CLOCK_MONOTONIC.

use std::net::SocketAddr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use super::relay::{End, Flow, Step, Stream};
use super::row::Side;
use crate::snapshot::{BackendCell, Listener, ListenerCell, PoolCell, Snapshot};
use crate::words::{Cause, Phase, ProxyVersion, Refusal};

/// Sessions younger than this are not worth the calls that turn keepalive on.
pub const KEEPALIVE_AFTER: u64 = 1_000_000;

/// What a session is doing. Programs hand sessions to each other: what there is keeps its place in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It waits for the PROXY header that its peer is to send first.
    Preface,
    /// It waits for a place at a backend.
    Queued,
    /// It waits a moment before it tries to connect again.
    Pausing,
    /// A connect is under way.
    Connecting,
    /// Bytes flow.
    Relaying,
    /// It has ended; the entry goes at the end of the worker's turn.
    Gone,
}

/// Whether a spare connection serves a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpareUse {
    /// None yet.
    Never,
    /// The present connection was one.
    Serving,
    /// One was dead before a byte moved; it gets no other.
    Failed,
    /// The present connection was one, and a byte has moved: no other backend will serve.
    Proven,
}

/// What the worker is to do with a session after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing until an event comes.
    Wait,
    /// Give it another turn.
    Again,
    /// The connection to the backend failed before a byte was sent: try another one.
    Redial(Errno),
    /// It is over.
    End(Cause, Phase),
}

/// One client connection and the backend connection that serves it.
#[derive(Debug)]
pub struct Session {
    /// What it is doing.
    pub state: State,
    /// The client's socket.
    pub client: End,
    /// The backend's socket, from the dial on.
    pub server: Option<End>,
    /// The backend at which a place is reserved, from the choice on.
    pub backend: Option<Arc<BackendCell>>,
    /// Where the client came in.
    pub listener: Arc<ListenerCell>,
    /// Who may serve it.
    pub pool: Arc<PoolCell>,
    /// Where it came from, by the PROXY header where there was one; `None` for Unix sockets.
    pub peer: Option<SocketAddr>,
    /// Where it went to by that header; kept where a backend will be told, until it cannot be another.
    pub destination: Option<Box<SocketAddr>>,
    /// The PROXY header that the backend expects and has not got.
    pub send_proxy: Option<ProxyVersion>,
    /// From the client to the backend.
    pub up: Flow,
    /// From the backend to the client.
    pub down: Flow,
    /// Its place in the round robin, the same for every retry.
    pub ticket: u64,
    /// Backends that failed it; given up once a byte has moved.
    pub tried: Vec<Arc<BackendCell>>,
    /// Connects that failed.
    pub attempts: u8,
    /// Why the last of them did.
    pub failure: Option<Errno>,
    /// Why it got no backend, where that is how it ended.
    pub refused: Option<Refusal>,
    /// Counts the worker's sessions, round and round: tells its events from those of a former one of the same key.
    pub serial: u16,
    /// Counts dials: tells the events of the present socket from a former one's.
    pub dial: u8,
    /// Whether it has had a spare connection.
    pub spare: SpareUse,
    /// Keepalive has been turned on.
    pub kept_alive: bool,
    /// It is to have another turn, and stands in the worker's row for it.
    pub again: bool,
    /// The backend's queue was full (Unix sockets tell so); `since` counts from the first such moment.
    pub crowded: bool,
    /// When the client was accepted.
    pub accepted: u64,
    /// When its present state began.
    pub since: u64,
    /// When a byte last moved, or was acknowledged.
    pub active: u64,
    /// All bytes that had moved by then are known to be acknowledged.
    pub acknowledged: u64,
    /// When its present state has lasted too long; for a relaying session the sweep asks [`Session::overdue`].
    pub deadline: u64,
    /// The longest time without a byte.
    pub idle: u64,
    /// The same once one side has been shut.
    pub half_closed: u64,
    /// Its entry among the worker's timers, 0 for none.
    pub timer: u64,
}

impl Session {
    /// A client just accepted.
    pub fn new(client: End, peer: Option<SocketAddr>, listener: &Listener, ticket: u64, now: u64) -> Self {
        Self {
            state: State::Pausing,
            client,
            server: None,
            backend: None,
            listener: Arc::clone(&listener.cell),
            pool: Arc::clone(&listener.pool.cell),
            peer,
            destination: None,
            send_proxy: None,
            up: Flow::default(),
            down: Flow::default(),
            ticket,
            tried: Vec::new(),
            attempts: 0,
            failure: None,
            refused: None,
            serial: 0,
            dial: 0,
            spare: SpareUse::Never,
            kept_alive: false,
            again: false,
            crowded: false,
            accepted: now,
            since: now,
            active: now,
            acknowledged: 0,
            deadline: u64::MAX,
            idle: micros(listener.idle_timeout),
            half_closed: micros(listener.pool.half_close_timeout),
            timer: 0,
        }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Queued => Phase::Queue,
            State::Preface | State::Pausing | State::Connecting => Phase::Connect,
            State::Relaying => Phase::Data,
            State::Gone => Phase::Done,
        }
    }

    /// Takes note of an event on the client's socket.
    pub fn client_heard(&mut self, events: EpollFlags) -> Next {
        self.client.heard(events);
        match self.state {
            State::Preface | State::Relaying => Next::Again,
            State::Gone => Next::Wait,
            // A client that only shut its side still wants its answer; one that broke off does not.
            // (A hangup is no break: a Unix socket whose client has sent all it had and closed tells one.)
            _ if events.contains(EpollFlags::EPOLLERR) => Next::End(Cause::Client, self.phase()),
            _ => Next::Wait,
        }
    }

    /// Moves bytes both ways.
    pub fn relay(&mut self, scratch: &mut [u8], memory: &Memory, now: u64) -> Next {
        // Nothing is lost: neither peer has had a byte of the other, and what the backend said is said to its like again.
        let over = self.server.as_ref().is_some_and(|server| server.fin);
        if over && self.spare == SpareUse::Serving && !self.up.sent && !self.up.closed && self.down.bytes == 0 {
            return Next::Redial(Errno::ECONNRESET);
        }
        if let Some(version) = self.send_proxy {
            // The client's first event is on its way, and tells whether bytes of it can go with the header.
            if !self.client.writable || !self.server.as_ref().is_some_and(|server| server.writable) {
                return Next::Wait;
            }
            self.send_proxy = None;
            self.write_preface(version, scratch, memory);
        }
        let before = (self.up.progress(), self.down.progress());
        let Some(server) = &mut self.server else { return Next::Wait };
        self.up.last = self.down.closed;
        let up = self.up.pump(&mut self.client, server, scratch, memory);
        let untouched = !self.up.sent && self.down.bytes == 0;
        self.down.last = self.up.closed;
        let down = self.down.pump(server, &mut self.client, scratch, memory);
        if before != (self.up.progress(), self.down.progress()) {
            self.active = now;
        }
        if server.broken && untouched && self.down.bytes == 0 && !self.down.whole {
            return Next::Redial(Errno::ECONNRESET);
        }
        // The client went while we wrote to it: what it sent before is still to be passed on.
        let more = self.client.broken && self.client.readable && server.writable;
        if let Some(cause) = self.ending() {
            return Next::End(cause, Phase::Data);
        }
        match (up, down) {
            (Step::Yield, _) | (_, Step::Yield) => Next::Again,
            (Step::Wait, _) if more => Next::Again,
            _ => Next::Wait,
        }
    }

    /// Takes note that a peer is gone, which the kernel would tell much later: as after a reset.
    pub fn lose(&mut self, side: Side) {
        let Some((flow, source, _)) = self.direction(side) else { return };
        flow.ended = true;
        source.give_up();
        self.failure = (side == Side::Server).then_some(Errno::ETIMEDOUT);
    }

    /// How it ends, where nothing is left to pass on: of a peer that is gone the last bytes have been written.
    pub fn ending(&self) -> Option<Cause> {
        if self.client.broken && self.up.closed {
            return Some(Cause::Client);
        }
        if self.down.closed && self.server.as_ref().is_some_and(|server| server.broken) {
            // Behind a FIN, too, while the client might yet say something; that the answer is whole says `down.whole`.
            return Some(if self.up.whole && self.down.whole { Cause::Normal } else { Cause::Server });
        }
        (self.up.closed && self.down.closed).then_some(Cause::Normal)
    }

    /// Who serves it, or failed it last.
    pub fn last_backend(&self) -> Option<&Arc<BackendCell>> {
        self.backend.as_ref().or_else(|| self.tried.last())
    }

    /// What the kernel said where a backend is at fault.
    pub fn error(&self, cause: Cause) -> Option<Errno> {
        let cut = self.server.as_ref().is_some_and(|server| server.stream == Stream::Cut);
        self.failure.or((cut && cause == Cause::Server).then_some(Errno::ECONNRESET))
    }

    /// Neither side has said anything, and the client wants nothing: an outer balancer's check, as a rule.
    pub fn is_only_a_check(&self) -> bool {
        self.up.bytes == 0 && !self.up.is_holding() && self.down.bytes == 0 && super::socket::has_ended(&self.client.fd)
    }

    /// The client has its whole answer, or the kernel has it for the client, and the backend waits for nothing that is held here.
    pub fn is_answered(&self) -> bool {
        self.state == State::Relaying && self.down.whole && !self.up.is_holding()
    }

    /// Tells each peer that has got a whole stream so, where a close was to tell it.
    pub fn tell_ends(&self) {
        let server = self.server.as_ref().filter(|_| self.up.whole);
        for end in [Some(&self.client).filter(|_| self.down.whole), server].into_iter().flatten() {
            super::socket::finish_writing(&end.fd);
        }
    }

    /// True while a peer has still to acknowledge bytes that a reset would take out of the kernel's hands.
    pub fn is_undelivered(&self) -> bool {
        let client = (&self.client, self.down.sent);
        let server = self.server.as_ref().map(|server| (server, self.up.sent));
        [Some(client), server].into_iter().flatten().any(|(end, sent)| sent && !end.broken && end.has_unacknowledged())
    }

    /// After a turn: once a byte has moved there is no going back to the choice.
    pub fn has_moved(&mut self) {
        if self.up.sent || self.down.bytes != 0 {
            self.tried = Vec::new();
            self.destination = None;
        }
    }

    /// How long it may last without a byte.
    pub fn patience(&self) -> u64 {
        if self.is_half_closed() { self.idle.min(self.half_closed) } else { self.idle }
    }

    /// When it has to end for want of bytes, and whose fault that would be.
    pub fn overdue(&self) -> (u64, Cause) {
        // Who keeps the other waiting: the one that does not read, else the one that is expected to speak.
        let server = self.up.is_holding() || (self.up.closed && !self.down.is_holding());
        let cause = if server { Cause::ServerTimeout } else { Cause::ClientTimeout };
        (self.active.saturating_add(self.patience()), cause)
    }

    /// One direction is over, or a peer gone: what is left has `half_close_timeout`.
    pub fn is_half_closed(&self) -> bool {
        let gone = self.client.broken || self.server.as_ref().is_some_and(|server| server.broken);
        gone || self.up.closed || self.down.closed
    }

    /// Takes the timeouts that are in force now.
    pub fn take_timeouts(&mut self, snapshot: &Snapshot) {
        if let Some(listener) = snapshot.listener(&self.listener.name) {
            self.idle = micros(listener.idle_timeout);
        }
        if let Some(pool) = snapshot.pool(&self.pool.name) {
            self.half_closed = micros(pool.half_close_timeout);
        }
    }

    /// When a session of something that was removed has to end.
    pub fn leaves_by(&self, snapshot: &Snapshot) -> Option<u64> {
        let timeout = micros(snapshot.removed_timeout?);
        let removed = self.backend.as_ref().and_then(|b| b.removed_since());
        let earliest = [removed, self.listener.removed_since()].into_iter().flatten().min()?;
        Some(earliest.saturating_add(timeout))
    }
}

/// A duration as the table keeps it.
pub fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
