//! What comes of an event: who it is about, and the turn that it gives a session. How bytes are moved in one is `session.rs`'s
//! and `relay.rs`'s; small messages go by `row.rs`.

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::row::Side;
use super::session::{Next, Session, SpareUse, State};
use super::socket;
use super::token::Token;
use super::worker::Worker;
use crate::words::Cause;

impl Worker {
    /// Acts on what epoll tells; true where the daemon has told something.
    #[inline]
    pub(super) fn heard(&mut self, event: EpollEvent) -> bool {
        match Token::unpack(event.data()) {
            Token::Client(key, serial) => self.client_event((key, serial), event.events()),
            Token::Server(key, serial, dial) => self.server_event((key, serial), dial, event.events()),
            Token::Door(key) => self.door_event(key, event.events()),
            Token::Inbox => return true,
            Token::Spare(key) => self.spare_event(key, event.events()),
        }
        false
    }

    fn client_event(&mut self, (key, serial): (usize, u16), events: EpollFlags) {
        let Some(session) = self.sessions.get_mut(key).filter(|s| s.serial == serial) else { return };
        let next = session.client_heard(events);
        // One that waits may have closed, and nobody is to wait for a place in its name.
        if next == Next::Wait && matches!(session.state, State::Queued | State::Pausing) && self.is_abandoned(key) {
            let phase = self.sessions[key].phase();
            return self.end(key, Cause::Client, phase);
        }
        if next != Next::Again || !self.join_row(key, Side::Client) {
            self.follow(key, next);
        }
    }

    fn server_event(&mut self, (key, serial): (usize, u16), dial: u8, events: EpollFlags) {
        let this = |s: &&mut Session| s.serial == serial && s.dial == dial;
        let Some(session) = self.sessions.get_mut(key).filter(this) else { return };
        let Some(server) = &mut session.server else { return };
        server.heard(events);
        if session.state == State::Relaying {
            if !self.join_row(key, Side::Server) {
                self.turn(key);
            }
            return;
        }
        match session.state {
            State::Connecting if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) => {
                let why = socket::dial_result(&server.fd).err().unwrap_or(Errno::ECONNRESET);
                self.dial_failed(key, why);
            }
            State::Connecting if events.contains(EpollFlags::EPOLLOUT) => {
                self.established(key);
                self.turn(key);
            }
            _ => {}
        }
    }

    /// Gives a session its turn.
    pub(super) fn turn(&mut self, key: usize) {
        self.pass_row_on();
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.state {
            State::Relaying => {}
            State::Preface => return self.hear_preface(key),
            _ => return,
        }
        let before = (session.up.bytes, session.down.bytes);
        let next = session.relay(&mut self.scratch, &self.limits.memory, self.now);
        let (up, down) = (session.up.bytes - before.0, session.down.bytes - before.1);
        session.has_moved();
        count_bytes(session, self.index, up, down);
        if session.is_half_closed() {
            let soon = self.now + session.patience() / 4;
            self.look_by(key, soon);
        }
        match next {
            Next::Again => {
                // Once: an event beside it gives a turn too, and nobody has a right to two.
                if !std::mem::replace(&mut self.sessions[key].again, true) {
                    self.again.push(key);
                }
            }
            next => self.follow(key, next),
        }
    }

    pub(super) fn follow(&mut self, key: usize, next: Next) {
        match next {
            Next::Wait => {}
            Next::Again => self.turn(key),
            Next::Redial(why) => self.dial_failed(key, why),
            Next::End(cause, phase) => self.finish(key, cause, phase),
        }
    }
}

/// Counts what a session has carried, in this worker's shard.
pub(super) fn count_bytes(session: &mut Session, index: usize, up: u64, down: u64) {
    if up | down == 0 {
        return;
    }
    let listener = &session.listener.shards[index];
    listener.bytes_in.add(up);
    listener.bytes_out.add(down);
    if session.up.sent || session.down.bytes != 0 {
        count_spare(session, index);
    }
    if let Some(backend) = &session.backend {
        let backend = &backend.shards[index];
        backend.bytes_in.add(up);
        backend.bytes_out.add(down);
    }
}

/// Counts a session that got a spare connection, once it is certain that this backend serves it.
pub(super) fn count_spare(session: &mut Session, index: usize) {
    if session.spare == SpareUse::Serving {
        session.spare = SpareUse::Proven;
        if let Some(backend) = &session.backend {
            backend.shards[index].established.add(1);
        }
    }
}
