//! Small messages, a row at a time: those that have come are read one behind another into the shared buffer, then
//! written. The kernel's way in and its way out each stay in the processor's cache meanwhile, which saves a few
//! percent of what a small request costs (ARCHITECTURE.md, "Figures behind the data path"). Whatever is not plain
//! goes by [`Worker::turn`], and a row never outlives the handling of the events that made it.

use std::mem;

use super::relay::{End, Flow, SCRATCH, SLICE, WIDE};
use super::session::{Next, Session, State};
use super::worker::{Worker, count_bytes};
use crate::words::{Cause, Phase};

/// The most messages of a row: as many as the buffer has room for.
const ROW: usize = SCRATCH / SLICE;
/// Each begins where a line of the processor's cache does.
const LINE: usize = 64;

/// Who has said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What has been read and is to be written.
#[derive(Debug)]
struct Message {
    key: usize,
    from: Side,
    begin: usize,
    length: usize,
    /// More is to be done for its session than to write it.
    again: bool,
}

/// Messages in the shared buffer, in the order they came: of each direction at most one, for a socket has one event
/// at a time, and only while neither direction of its session holds anything.
#[derive(Debug, Default)]
pub(super) struct Row {
    messages: Vec<Message>,
    /// Where the next one goes.
    end: usize,
}

impl Session {
    /// A direction of it, from where and to where.
    fn direction(&mut self, from: Side) -> Option<(&mut Flow, &mut End, &mut End)> {
        let server = self.server.as_mut()?;
        Some(match from {
            Side::Client => (&mut self.up, &mut self.client, server),
            Side::Server => (&mut self.down, server, &mut self.client),
        })
    }
}

impl Worker {
    /// Reads what one side of a session has said, to be written with what others have; false where the session is to
    /// have a turn of its own.
    pub(super) fn read_in_row(&mut self, key: usize, from: Side) -> bool {
        if self.row.messages.len() == ROW {
            self.write_row();
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
        let begin = self.row.end;
        let read = flow.read(source, &mut self.scratch[begin..][..SLICE]);
        match read {
            Ok(0) => !flow.ended,
            Ok(length) => {
                if length == SLICE {
                    flow.wide = WIDE;
                }
                self.row.end += length.next_multiple_of(LINE);
                self.row.messages.push(Message { key, from, begin, length, again: source.readable });
                true
            }
            Err(_) => {
                let cause = if from == Side::Client { Cause::Client } else { Cause::Server };
                self.write_row(); // what came from the other side goes first
                self.follow(key, Next::End(cause, Phase::Data));
                true
            }
        }
    }

    /// Writes what stands in the row. Nothing else may be read into the buffer before.
    #[inline]
    pub(super) fn write_row(&mut self) {
        if !self.row.messages.is_empty() {
            self.write_messages();
        }
    }

    fn write_messages(&mut self) {
        let Row { mut messages, .. } = mem::take(&mut self.row);
        for message in &mut messages {
            let session = &mut self.sessions[message.key];
            session.active = self.now;
            let Some((flow, _, sink)) = session.direction(message.from) else { continue };
            flow.bytes += message.length as u64;
            flow.write(sink, &self.scratch[message.begin..][..message.length], &self.limits.memory);
            message.again |= flow.closed || flow.is_holding();
            let moved = message.length as u64;
            match message.from {
                Side::Client => count_bytes(session, self.index, moved, 0),
                Side::Server => count_bytes(session, self.index, 0, moved),
            }
        }
        // Not before all are written: a turn reads into the same buffer, and may end its session.
        for message in messages.drain(..).filter(|message| message.again) {
            self.turn(message.key);
        }
        self.row.messages = messages; // its memory serves the next
    }
}

#[cfg(test)]
mod tests;
