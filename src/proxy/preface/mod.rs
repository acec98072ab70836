//! What stands before a client's first byte: the PROXY header that a trusted peer sends, and the one that a backend
//! expects. A session waits for the first in [`State::Preface`], before it chooses a backend; the second is written
//! with the client's first bytes where they are there. What is read too far is held in the session's flow.

mod header;

use std::net::SocketAddr;

use super::memory::Memory;
use super::relay::{End, Flow, Stream};
use super::session::{Session, State};
use super::socket;
use super::worker::Worker;
use crate::words::{Cause, Phase, ProxyVersion, Refusal};

use header::{Decoded, Header, LONGEST, Origin, decode};

/// How long a header may take, from accept to its last byte, in microseconds. The document wants 3 s at least: a
/// lost segment is sent again by then.
pub const PATIENCE: u64 = 3_000_000;

/// Where reading the header stands.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Partial,
    Whole(Origin),
    /// The client has gone without a byte, as a health check or a port scan does.
    Nobody,
    Bad(&'static str),
}

impl Worker {
    /// Lets a session wait for its header.
    pub(super) fn expect_preface(&mut self, key: usize) {
        let deadline = self.now + PATIENCE;
        let session = &mut self.sessions[key];
        session.state = State::Preface;
        session.deadline = deadline;
        self.look_by(key, deadline);
    }

    /// Reads on, and goes on to the choice of a backend once the header is whole.
    pub(super) fn hear_preface(&mut self, key: usize) {
        let session = &mut self.sessions[key];
        let Session { up, client, .. } = session;
        let heard = loop {
            match hear(up, client, &mut self.scratch, &self.limits.memory) {
                // Here no edge would tell of the rest.
                Heard::Partial if client.readable => {}
                heard => break heard,
            }
        };
        match heard {
            Heard::Partial => {}
            Heard::Whole(origin) => {
                let bytes = session.up.bytes;
                session.listener.shards[self.index].bytes_in.add(bytes);
                let sends = self.snapshot.pool(&session.pool.name).is_some_and(|pool| pool.send_proxy.is_some());
                session.come_from(origin, sends);
                session.state = State::Pausing;
                self.place(key);
            }
            Heard::Nobody => self.end(key, Cause::Client, Phase::Connect),
            Heard::Bad(why) => {
                tracing::debug!(listener = session.listener.name.as_str(), peer = ?session.peer, "PROXY header: {why}");
                self.refuse(key, Refusal::BadProxyHeader);
            }
        }
    }
}

/// Reads what is there of a header. Bytes behind it stay in the flow and are counted as the client's.
fn hear(flow: &mut Flow, client: &mut End, scratch: &mut [u8], memory: &Memory) -> Heard {
    let count = flow.gather(client, &mut scratch[..LONGEST], memory);
    let bytes = &scratch[..count];
    match decode(bytes) {
        Decoded::Whole(length, origin) => {
            flow.bytes += (count - length) as u64;
            flow.keep(&bytes[length..], memory);
            Heard::Whole(origin)
        }
        Decoded::Malformed(why) => Heard::Bad(why),
        Decoded::Partial if !flow.ended => {
            flow.keep(bytes, memory);
            Heard::Partial
        }
        Decoded::Partial if count == 0 || client.stream == Stream::Cut => Heard::Nobody,
        Decoded::Partial => Heard::Bad("the connection ended within it"),
    }
}

impl Session {
    /// Takes the client to be who the header says. Where it went to is kept if it will be told.
    fn come_from(&mut self, origin: Origin, sends: bool) {
        match origin {
            Origin::Ip(from, to) => {
                self.peer = Some(from);
                self.destination = sends.then(|| Box::new(to));
            }
            Origin::Unix => self.peer = None,
            Origin::Sender | Origin::Unknown => {} // the connection's own addresses
        }
    }

    /// Writes the header that the backend expects, together with the client's first bytes where they have come.
    pub(super) fn write_preface(&mut self, version: ProxyVersion, scratch: &mut [u8], memory: &Memory) {
        let header = Header::new(version, self.origin());
        let Some(server) = &mut self.server else { return };
        self.up.open(header.as_bytes(), &mut self.client, server, scratch, memory);
    }

    fn origin(&self) -> Origin {
        let Some(from) = self.peer else { return Origin::Unix };
        let to: Option<SocketAddr> = self.destination.as_deref().copied();
        to.or_else(|| socket::local_ip(&self.client.fd)).map_or(Origin::Unknown, |to| Origin::Ip(from, to))
    }
}

#[cfg(test)]
mod tests;
