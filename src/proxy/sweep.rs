//! What is done by time: sessions that have lasted too long end, keepalive is turned on where one has become old enough for it, and
//! peers that take bytes slowly are told from those that are gone. Each session is looked at when its entry among the
//! [`Timers`](super::timers::Timers) says so, so many at a time. Before one is ended for time, what waits at the sockets is
//! heard: after a pause of the process or its machine the timers would otherwise be first.

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use tracing::info;

use super::row::Side;
use super::session::{KEEPALIVE_AFTER, Session, State, micros};
use super::socket::{self, Delivery};
use super::timers::TICK;
use super::token::Token;
use super::worker::{EVENTS, Worker};
use crate::snapshot::Snapshot;
use crate::words::{Cause, Happening, Refusal};

/// The most sessions looked at before events are handled again.
const LOOKS: usize = 2048;
/// The most that take what a snapshot says before events are handled again, and how soon the next ones do.
const REFRESHED: usize = 2048;
const REFRESH_AGAIN: u64 = 1_000;
/// So many looks in the time that a session may last without a byte, or a peer without an answer.
const LOOKS_IN_PATIENCE: u64 = 4;
/// A session whose time has been over for so long would have been ended if the process had not been paused; then none is for a
/// while, which does not come again soon, however busy the worker is.
const PAUSED: u64 = 200_000;
const GRACE: u64 = 100_000;
const GRACE_AGAIN: u64 = 1_000_000;
/// How often a worker looks whether a shortage is over.
pub(super) const RECOVERY: u64 = 1_000_000;

/// What the peers of a session had acknowledged when that was last looked at, while it is not all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Unacknowledged {
    client: Seen,
    server: Seen,
}

/// The same of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    acknowledged: u64,
    /// Since when it answers nothing; 0 where it does.
    silent_since: u64,
}

/// A session whose time is over, unless what waits at its sockets says otherwise: its key, its serial number, what it was doing.
type Late = (usize, u16, State);

impl Worker {
    /// Makes sure that a session is looked at when `at` has come.
    pub(super) fn look_by(&mut self, key: usize, at: u64) {
        if let Some(session) = self.sessions.get_mut(key) {
            self.timers.set(key, &mut session.timer, at);
        }
    }

    /// Makes sure that it is looked whether a shortage is over when `at` has come.
    pub(super) fn recover_by(&mut self, at: u64) {
        self.recover_at = self.recover_at.min(at);
    }

    /// Has all sessions take what the snapshot says, some at a time, when `at` has come.
    pub(super) fn refresh_from(&mut self, at: u64) {
        // Those that wait for the last one's go on first.
        let next = self.refresh.map_or(0, |(next, _)| next);
        self.refresh = Some((next, self.sessions.capacity()));
        self.refresh_at = self.refresh_at.min(at);
    }

    /// When there is something to do here.
    pub(super) fn sweep_at(&self) -> u64 {
        self.timers.due().min(self.refresh_at).min(self.recover_at).min(self.summary.due())
    }

    /// Looks at the sessions whose time for it has come, and ends what has lasted too long.
    pub(super) fn sweep(&mut self) {
        if self.now < self.sweep_at() {
            return;
        }
        let mut late = Vec::new();
        if self.refresh_at <= self.now {
            self.refresh_some(&mut late);
        }
        for (key, tick) in self.timers.take(self.now, LOOKS) {
            if let Some(session) = self.sessions.get_mut(key).filter(|session| session.timer == tick) {
                session.timer = 0;
                self.look(key, &mut late);
            }
        }
        if !late.is_empty() {
            self.hear_what_waits();
            self.notice_pause(&late);
            late.into_iter().for_each(|late| self.end_late(late));
        }
        if self.summary.due() <= self.now {
            self.tell_sums(self.now);
        }
        if self.recover_at <= self.now {
            let over = self.limits.recovered(self.now);
            self.recover_at = if self.limits.are_short() { self.now + RECOVERY } else { u64::MAX };
            if over {
                info!(
                    event = Happening::ShortageOver.as_str(),
                    "there are descriptors and places again; accepting as before"
                );
            }
        }
    }

    fn refresh_some(&mut self, late: &mut Vec<Late>) {
        self.refresh_at = u64::MAX;
        let Some((mut next, mut left)) = self.refresh.take() else { return };
        for _ in 0..REFRESHED.min(left) {
            next = if next < self.sessions.capacity() { next } else { 0 };
            if let Some(session) = self.sessions.get_mut(next).filter(|session| session.state != State::Gone) {
                session.take_timeouts(&self.snapshot);
                self.judge(next, late);
            }
            (next, left) = (next + 1, left - 1);
        }
        if left > 0 {
            self.refresh = Some((next, left));
            self.refresh_at = self.now + REFRESH_AGAIN;
        }
    }

    fn look(&mut self, key: usize, late: &mut Vec<Late>) {
        if self.sessions[key].state == State::Relaying {
            if self.sessions[key].ending().is_some() {
                self.turn(key); // it may be that its last bytes have been acknowledged
            }
            self.look_at_sockets(key);
        }
        self.judge(key, late);
    }

    /// Notes a session whose time is over; sees to it that another one is looked at again.
    fn judge(&mut self, key: usize, late: &mut Vec<Late>) {
        let session = &self.sessions[key];
        if session.state == State::Gone {
            return;
        }
        let (at, _) = ends(session, &self.snapshot, self.now);
        if at <= self.now {
            return late.push((key, session.serial, session.state));
        }
        let mut next = at;
        if session.state == State::Relaying {
            next = next.min(self.now + interval(session, &self.snapshot));
            if !session.kept_alive {
                next = next.min(session.accepted + KEEPALIVE_AFTER);
            }
        }
        self.look_by(key, next);
    }

    /// Turns keepalive on where it is time; finds out what the peers have acknowledged of what moved since that was last known, which counts
    /// as bytes that move, and which of them is gone. (TCP_USER_TIMEOUT, which would tell that too, ends living peers that do
    /// not read: it counts the answers to probes of a closed window for nothing.)
    fn look_at_sockets(&mut self, key: usize) {
        let now = self.now;
        let session = &mut self.sessions[key];
        if session.state != State::Relaying {
            return;
        }
        if !session.kept_alive && session.accepted + KEEPALIVE_AFTER <= now {
            keep_alive(session, &self.snapshot);
        }
        if session.acknowledged == session.active {
            return;
        }
        let patience = keepalive_patience(session, &self.snapshot);
        let before = self.unacknowledged.remove(&key);
        let (mut after, mut pending, mut gone) = (Unacknowledged::default(), false, None);
        for side in [Side::Client, Side::Server] {
            let end = match side {
                Side::Client => Some(&session.client),
                Side::Server => session.server.as_ref(),
            };
            let Some(delivery) = end.filter(|end| !end.broken).and_then(|end| socket::delivery(&end.fd)) else {
                continue;
            };
            let (before, seen) = match side {
                Side::Client => (before.map(|before| before.client), &mut after.client),
                Side::Server => (before.map(|before| before.server), &mut after.server),
            };
            let answered = now.saturating_sub(micros(delivery.silent));
            // Nobody knows at the first look, which is also the first after an upgrade: then an answer stands for bytes, or upgrades
            // that follow each other would have every slow reader look idle.
            if before.map_or(delivery.is_pending, |before| before.acknowledged != delivery.acknowledged) {
                session.active = session.active.max(answered);
            }
            *seen = seen_of(&delivery, before, answered, session.active, now);
            pending |= delivery.is_pending;
            if seen.silent_since > 0 && now - seen.silent_since >= patience {
                gone = Some(side);
            }
        }
        if pending {
            self.unacknowledged.insert(key, after);
        } else {
            session.acknowledged = session.active;
        }
        if let Some(side) = gone {
            session.lose(side);
            self.turn(key);
        }
    }

    /// After a pause peers have an instant to answer what has only now reached them: a place in a queue may become free by that.
    fn notice_pause(&mut self, late: &[Late]) {
        let now = self.now;
        let longest = late.iter().filter_map(|(key, ..)| self.sessions.get(*key)).map(|session| {
            let (at, cause) = ends(session, &self.snapshot, now);
            if cause == Cause::Killed { 0 } else { now.saturating_sub(at) }
        });
        if longest.max().is_some_and(|longest| longest > PAUSED) && self.grace_until + GRACE_AGAIN <= now {
            self.grace_until = now + GRACE;
        }
    }

    /// Handles what has come to the sockets by now, once: at most one pass over all of them puts off what is done by time.
    pub(super) fn hear_what_waits(&mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut left = self.sessions.len() * 2 + self.spares.iter().count() + self.doors.len() + 1;
        while let Ok(heard) = self.hear(&mut events, EpollTimeout::ZERO) {
            for event in heard {
                // These are told again; commands and new clients can wait.
                if !matches!(Token::unpack(event.data()), Token::Inbox | Token::Door(_)) {
                    self.heard(*event);
                }
            }
            left = left.saturating_sub(heard.len());
            if heard.len() < EVENTS || left == 0 {
                break;
            }
        }
        self.pass_row_on();
        for key in std::mem::take(&mut self.again) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.again = false;
            }
            self.turn(key);
        }
        self.bury();
        if self.queues.are_due() {
            self.yield_spares();
            self.serve_queues();
            self.bury();
        }
    }

    /// Ends a session, or what it is doing, where its time is over still when its own sockets have been read.
    fn end_late(&mut self, (key, serial, state): Late) {
        let is_same = |session: &&mut Session| session.serial == serial && session.state == state;
        let Some(session) = self.sessions.get_mut(key).filter(is_same) else { return };
        if matches!(state, State::Relaying | State::Preface) {
            session.client.readable = true;
            session.server.iter_mut().for_each(|server| server.readable = true);
            self.turn(key);
        }
        // It may have been found late without a look: by a new snapshot, or where programs changed for longer than it may last.
        if state == State::Relaying && self.sessions.get_mut(key).filter(is_same).is_some() {
            self.look_at_sockets(key);
        }
        let Some(session) = self.sessions.get_mut(key).filter(is_same) else { return };
        let (mut at, cause) = ends(session, &self.snapshot, self.now);
        if cause != Cause::Killed {
            at = at.max(self.grace_until);
        }
        if at > self.now {
            let next = at.min(self.now + interval(session, &self.snapshot));
            return self.look_by(key, next);
        }
        match (state, cause) {
            (State::Preface, Cause::ServerTimeout) => self.refuse(key, Refusal::BadProxyHeader),
            (State::Queued, Cause::ServerTimeout) => self.refuse(key, Refusal::QueueTimeout),
            (State::Pausing, Cause::ServerTimeout) => self.resume(key),
            (State::Connecting, Cause::ServerTimeout) => self.dial_failed(key, Errno::ETIMEDOUT),
            _ => {
                let phase = session.phase();
                self.end(key, cause, phase);
            }
        }
    }
}

/// When a session, or what it is doing, has lasted too long, and what that would be.
fn ends(session: &Session, snapshot: &Snapshot, now: u64) -> (u64, Cause) {
    let hopeless = session.state == State::Pausing
        && snapshot.pool(&session.pool.name).is_none_or(|pool| pool.eligible.is_empty());
    let (at, cause) = match session.state {
        State::Relaying => session.overdue(),
        _ if hopeless => (now, Cause::ServerTimeout), // it is refused now rather than later
        _ => (session.deadline, Cause::ServerTimeout),
    };
    match session.leaves_by(snapshot) {
        Some(leave) if leave < at => (leave, Cause::Killed),
        _ => (at, cause),
    }
}

/// How soon a session that relays is looked at again: soon enough to find out, nearly to the time, who takes bytes and who is gone.
fn interval(session: &Session, snapshot: &Snapshot) -> u64 {
    (session.patience().min(keepalive_patience(session, snapshot)) / LOOKS_IN_PATIENCE).max(TICK)
}

/// How long a peer may answer nothing.
fn keepalive_patience(session: &Session, snapshot: &Snapshot) -> u64 {
    snapshot.listener(&session.listener.name).map_or(u64::MAX, |listener| micros(listener.keepalive.patience()))
}

/// What is kept of a look at what a peer has acknowledged. `answered` is when it last did; by `active` all bytes had been written.
fn seen_of(delivery: &Delivery, before: Option<Seen>, answered: u64, active: u64, now: u64) -> Seen {
    let was_silent = before.map_or(0, |before| before.silent_since);
    let same = before.is_some_and(|before| before.acknowledged == delivery.acknowledged);
    let silent_since = match () {
        () if !(delivery.is_pending && delivery.is_unanswered) => 0,
        // Its own bytes, sent again because it hears nothing of ours, answer nothing either.
        () if was_silent > 0 && (answered <= was_silent || (delivery.is_sent_again && same)) => was_silent,
        // Sent again, so it went unanswered from the first time on. A probe may have been sent just now.
        () if delivery.is_sent_again => answered.max(active),
        () => now,
    };
    Seen { acknowledged: delivery.acknowledged, silent_since }
}

/// Turns keepalive on. Only now, as most sessions are over before it could matter and it is eight calls.
fn keep_alive(session: &mut Session, snapshot: &Snapshot) {
    session.kept_alive = true;
    let Some(listener) = snapshot.listener(&session.listener.name) else { return };
    for end in [Some(&session.client), session.server.as_ref()].into_iter().flatten() {
        socket::keep_alive(&end.fd, listener.keepalive);
    }
}

#[cfg(test)]
mod tests;
