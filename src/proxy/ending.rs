//! How a session ends: when, whether its peers see a reset, what is counted and logged of it, and the places that it gives back.

use std::time::Duration;

use nix::errno::Errno;
use tracing::info;

use super::queue::leave_queue;
use super::session::{Session, State};
use super::socket;
use super::summary::letters;
use super::turn::count_spare;
use super::worker::Worker;
use crate::config::LogConnections;
use crate::snapshot::ListenerCell;
use crate::words::{Cause, Happening, Phase, Refusal};

/// How often it is looked whether a peer has acknowledged the last of what it was sent.
const LINGER: u64 = 20_000;

impl Worker {
    /// Ends a session for which there is no backend. The client sees a reset.
    pub(super) fn refuse(&mut self, key: usize, why: Refusal) {
        let session = &mut self.sessions[key];
        session.listener.shards[self.index].refused[why as usize].add(1);
        session.refused = Some(why);
        let phase = match why {
            Refusal::QueueFull | Refusal::QueueTimeout => Phase::Queue,
            _ => session.phase(),
        };
        let cause = if why == Refusal::ConnectFailed { Cause::Server } else { Cause::Proxy };
        self.end(key, cause, phase);
    }

    /// Ends a session that has passed all on, as soon as its peers have acknowledged it: a reset, or the close of a socket that
    /// has unread bytes, would sweep away what the kernel still holds for a slow reader. One that lbd itself has to cut, as where it
    /// is not known which bytes have been passed on, is not to go on for a moment.
    pub(super) fn finish(&mut self, key: usize, cause: Cause, phase: Phase) {
        let session = &mut self.sessions[key];
        let whole = session.up.whole && session.down.whole;
        let cut = cause == Cause::Proxy;
        if cut || whole || session.state != State::Relaying || phase != Phase::Data || !session.is_undelivered() {
            return self.end(key, cause, phase);
        }
        session.tell_ends();
        self.look_by(key, self.now + LINGER);
    }

    /// Ends a session. It is buried when the turn's events are handled.
    pub(super) fn end(&mut self, key: usize, cause: Cause, phase: Phase) {
        let session = &mut self.sessions[key];
        if session.state == State::Gone {
            return;
        }
        if session.state == State::Queued {
            leave_queue(&mut self.queues, session, key);
        }
        // Whoever connects and leaves without a word, on either side, does no wrong.
        let cause = if cause == Cause::Client && session.is_only_a_check() { Cause::Normal } else { cause };
        session.state = State::Gone;
        // A peer must be able to tell a cut stream from a whole one.
        let cut = match cause {
            Cause::Normal => false,
            Cause::ClientTimeout | Cause::ServerTimeout => {
                phase != Phase::Data
                    || session.up.closed
                    || session.down.closed
                    || session.up.is_holding()
                    || session.down.is_holding()
                    || session.is_undelivered()
            }
            _ => true,
        };
        if cut {
            // Who has got a whole stream is not to lose the end of it, unless it has had its time to take that.
            let late = matches!(cause, Cause::ClientTimeout | Cause::ServerTimeout);
            if !session.down.whole || session.client.broken || (late && session.client.has_unacknowledged()) {
                socket::reset_on_close(&session.client.fd);
            }
            if let Some(server) = &session.server
                && (!session.up.whole || late || !server.has_unacknowledged())
            {
                socket::reset_on_close(&server.fd);
            }
        }
        if session.down.whole && !session.up.ended {
            socket::discard(&session.client.fd, &mut self.scratch); // a close over unread bytes is a reset
        }
        count_spare(session, self.index);
        session.up.drop_rest(&self.limits.memory);
        session.down.drop_rest(&self.limits.memory);
        let took = Duration::from_micros(self.now.saturating_sub(session.accepted));
        let shard = &session.listener.shards[self.index];
        shard.ended[cause as usize].add(1);
        shard.durations.record(took);
        if let Some(backend) = session.backend.as_ref().filter(|_| phase == Phase::Data) {
            backend.shards[self.index].durations.record(took);
        }
        self.gone.push(key);
        let told = match self.snapshot.log {
            LogConnections::Off => false,
            LogConnections::Errors => cause != Cause::Normal && self.is_told_alone(key, cause, phase),
            LogConnections::All => true,
        };
        if told {
            record(&self.sessions[key], cause, phase, took);
        }
    }

    /// Removes what has ended: closes its sockets, then gives its places back.
    pub(super) fn bury(&mut self) {
        while let Some(key) = self.gone.pop() {
            let Session { client, server, backend, listener, .. } = self.sessions.remove(key);
            self.unacknowledged.remove(&key);
            drop((client, server));
            self.free_places(&listener);
            if let Some(backend) = backend {
                self.free(&backend);
            }
        }
    }

    /// Gives back the places that a client had at its listener and in the process.
    pub(super) fn free_places(&mut self, listener: &ListenerCell) {
        if listener.live.release() | self.limits.sessions.release() {
            self.wake_others();
            self.wake_up(); // it looks after the others, or its own clients would always come first
        }
    }
}

/// One line a session end.
fn record(session: &Session, cause: Cause, phase: Phase, took: Duration) {
    let client = session.peer.map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
    let backend = session.last_backend().map_or("-", |b| b.reference.backend.as_str());
    info!(
        target: "lbd::session",
        event = Happening::SessionEnded.as_str(),
        listener = session.listener.name.as_str(),
        pool = session.pool.name.as_str(),
        backend,
        client,
        end = letters(cause, phase),
        cause = session.refused.map_or(cause.as_str(), Refusal::as_str),
        error = session.error(cause).map(Errno::desc),
        bytes_in = session.up.bytes,
        bytes_out = session.down.bytes,
        retries = session.attempts,
        duration_ms = took.as_millis() as u64,
        "session ended"
    );
}
