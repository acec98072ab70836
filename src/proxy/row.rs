//! Small messages, a row at a time: those that have come are read one behind another into the shared buffer, then
//! written. The kernel's way in and its way out each stay in the processor's cache meanwhile, and where there is a
//! [`Ring`](super::ring::Ring) all the reads are one system call, and all the writes another (ARCHITECTURE.md, "Figures
//! behind the data path"). Whatever is not plain goes by [`Worker::turn`], and a row never outlives the handling of the
//! events that made it.

use std::mem;

use tracing::warn;

use super::relay::{End, Flow, SLICE, WIDE};
use super::ring::{Call, Ring};
use super::session::{Next, Session, State};
use super::turn::count_bytes;
use super::worker::Worker;
use super::{scratch, socket};

/// The most messages of a row: as many as the smallest buffer has room for.
pub(super) const ROW: usize = *scratch::SIZES.start() / SLICE;
/// From so many messages on a ring is cheaper than a call each.
pub(super) const WORTH_A_RING: usize = 4;

/// Who has said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What has come and is to be passed on. Each has the buffer's slice of its place in the row.
#[derive(Debug)]
struct Message {
    key: usize,
    from: Side,
    length: usize,
    /// What is to be done with its session when all are written.
    next: Next,
}

/// Messages, in the order they came: of each direction at most one, and only while neither direction of its session holds
/// anything. Till they are read, which is when they are written, their sources do not count as readable.
#[derive(Debug, Default)]
pub(super) struct Row {
    messages: Vec<Message>,
}

impl Message {
    /// What was read, of the slice it was read into.
    fn of<'a>(&self, slice: &'a [u8]) -> Option<&'a [u8]> {
        Some(&slice[..self.length]).filter(|bytes| !bytes.is_empty())
    }
}

impl Session {
    /// A direction of it, from where and to where.
    pub(super) fn direction(&mut self, from: Side) -> Option<(&mut Flow, &mut End, &mut End)> {
        let server = self.server.as_mut()?;
        Some(match from {
            Side::Client => (&mut self.up, &mut self.client, server),
            Side::Server => (&mut self.down, server, &mut self.client),
        })
    }

    /// From where, and to where.
    fn ends(&self, from: Side) -> Option<(&End, &End)> {
        let server = self.server.as_ref()?;
        Some(if from == Side::Client { (&self.client, server) } else { (server, &self.client) })
    }
}

impl Worker {
    /// Notes that one side of a session has said something, to be passed on with what others have; false where the
    /// session is to have a turn of its own.
    pub(super) fn join_row(&mut self, key: usize, from: Side) -> bool {
        if self.row.messages.len() == ROW {
            self.pass_row_on();
        }
        let session = &mut self.sessions[key];
        if session.state != State::Relaying || session.again || session.send_proxy.is_some() {
            return false;
        }
        // Its event may have told as well that held bytes of the other direction can go on.
        if session.up.is_holding() || session.down.is_holding() {
            return false;
        }
        let Some((flow, source, sink)) = session.direction(from) else { return false };
        if sink.readable || !flow.is_plain(source, sink) {
            return false;
        }
        source.readable = false;
        self.row.messages.push(Message { key, from, length: 0, next: Next::Wait });
        true
    }

    /// Reads what stands in the row, and writes it. Nothing else may be done before with its sessions, or the buffer.
    #[inline]
    pub(super) fn pass_row_on(&mut self) {
        if !self.row.messages.is_empty() {
            self.pass_messages_on();
        }
    }

    fn pass_messages_on(&mut self) {
        let mut messages = mem::take(&mut self.row.messages);
        self.read_all(&mut messages);
        self.write_all(&mut messages);
        if let Some(why) = self.ring.as_ref().and_then(Ring::failure) {
            warn!(worker = self.index, "io_uring: {why}; small messages are moved by a call each from now on");
            self.ring = None;
        }
        // Not before all are written: a turn reads into the same buffer, and may end its session.
        for Message { key, next, .. } in messages.drain(..) {
            // The other direction's message may have got it a turn, and another to come.
            if next != Next::Again || !self.sessions[key].again {
                self.follow(key, next);
            }
        }
        self.row.messages = messages; // its memory serves the next
    }

    fn read_all(&mut self, messages: &mut [Message]) {
        let mut ring = self.ring.as_mut().filter(|ring| ring.is_worth(messages.len()));
        if let Some(ring) = &mut ring {
            let slices = self.scratch.chunks_exact_mut(SLICE);
            ring.make(messages.iter().zip(slices).map(|(message, slice)| {
                let (source, _) = self.sessions[message.key].ends(message.from)?;
                Some(Call::Read(&source.fd, slice))
            }));
        }
        for (n, (message, slice)) in messages.iter_mut().zip(self.scratch.chunks_exact_mut(SLICE)).enumerate() {
            let Some((flow, source, _)) = self.sessions[message.key].direction(message.from) else { continue };
            let by_ring = ring.as_ref().and_then(|ring| ring.result(n));
            let got = by_ring.unwrap_or_else(|| socket::read(&source.fd, slice));
            message.length = flow.has_read(source, got, SLICE);
            if source.readable || flow.ended {
                message.next = Next::Again;
            }
        }
    }

    fn write_all(&mut self, messages: &mut [Message]) {
        let mut ring = self.ring.as_mut().filter(|ring| ring.is_worth(messages.len()));
        if let Some(ring) = &mut ring {
            let slices = self.scratch.chunks_exact(SLICE);
            ring.make(messages.iter().zip(slices).map(|(message, slice)| {
                let (_, sink) = self.sessions[message.key].ends(message.from)?;
                Some(Call::Write(&sink.fd, message.of(slice)?))
            }));
        }
        for (n, (message, slice)) in messages.iter_mut().zip(self.scratch.chunks_exact(SLICE)).enumerate() {
            let Some(bytes) = message.of(slice) else { continue };
            let session = &mut self.sessions[message.key];
            session.active = self.now;
            let Some((flow, _, sink)) = session.direction(message.from) else { continue };
            let moved = bytes.len() as u64;
            flow.bytes += moved;
            if bytes.len() == SLICE {
                flow.wide = WIDE;
            }
            let by_ring = ring.as_ref().and_then(|ring| ring.result(n));
            let done = by_ring.unwrap_or_else(|| socket::write(&sink.fd, bytes));
            flow.has_written(sink, done, bytes, &self.limits.memory);
            if flow.closed || flow.is_holding() {
                message.next = Next::Again;
            }
            match message.from {
                Side::Client => count_bytes(session, self.index, moved, 0),
                Side::Server => count_bytes(session, self.index, 0, moved),
            }
        }
    }
}

#[cfg(test)]
mod tests;
