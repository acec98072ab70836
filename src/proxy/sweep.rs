//! What ends sessions by time: a sweep over the whole table, no oftener than needed, in place of a timer for each. It turns on
//! keepalive, too, where a session has become old enough for it.

use std::time::Duration;

use nix::errno::Errno;
use tracing::info;

use super::session::{KEEPALIVE_AFTER, Session, State};
use super::socket;
use super::worker::Worker;
use crate::snapshot::Snapshot;
use crate::words::{Cause, Happening, Refusal};

/// The least time between two sweeps over the table, in microseconds.
const SWEEP: u64 = 20_000;
/// How often a worker looks whether a shortage is over.
pub(super) const RECOVERY: u64 = 1_000_000;

impl Worker {
    /// Makes sure that a sweep comes when `at` has come.
    pub(super) fn sweep_by(&mut self, at: u64) {
        self.sweep_at = self.sweep_at.min(at.max(self.swept + SWEEP));
    }

    /// Ends what has lasted too long, and finds out when that could next be so.
    pub(super) fn sweep(&mut self) {
        let (now, changed) = (self.now, std::mem::take(&mut self.changed));
        let (mut due, mut over) = (Vec::new(), Vec::new());
        let mut next = u64::MAX;
        for (key, session) in &mut self.sessions {
            if changed {
                session.take_timeouts(&self.snapshot);
            }
            let hopeless = changed
                && session.state == State::Pausing
                && self.snapshot.pool(&session.pool.name).is_none_or(|pool| pool.eligible.is_empty());
            let (mut at, mut cause) = match session.state {
                State::Relaying => session.overdue(),
                State::Gone => continue,
                _ if hopeless => (now, Cause::ServerTimeout), // it is refused now rather than later
                _ => (session.deadline, Cause::ServerTimeout),
            };
            if let Some(leave) = session.leaves_by(&self.snapshot).filter(|leave| *leave < at) {
                (at, cause) = (leave, Cause::Killed);
            }
            if at <= now {
                due.push((key, session.state, cause));
                continue;
            }
            next = next.min(at);
            if session.state == State::Relaying && session.ending().is_some() {
                over.push(key);
            }
            if !session.kept_alive && session.state == State::Relaying {
                let old_enough = session.accepted + KEEPALIVE_AFTER;
                if old_enough <= now { keep_alive(session, &self.snapshot) } else { next = next.min(old_enough) }
            }
        }
        self.swept = now;
        if self.limits.are_short() {
            next = next.min(now + RECOVERY);
        }
        self.sweep_at = next.max(now + SWEEP);
        over.into_iter().for_each(|key| self.turn(key));
        for (key, state, cause) in due {
            if self.sessions[key].state != state {
                continue; // one before it in the row has moved it on
            }
            match (state, cause) {
                (State::Preface, Cause::ServerTimeout) => self.refuse(key, Refusal::BadProxyHeader),
                (State::Queued, Cause::ServerTimeout) => self.refuse(key, Refusal::QueueTimeout),
                (State::Pausing, Cause::ServerTimeout) => self.resume(key),
                (State::Connecting, Cause::ServerTimeout) => self.dial_failed(key, Errno::ETIMEDOUT),
                _ => {
                    let phase = self.sessions[key].phase();
                    self.end(key, cause, phase);
                }
            }
        }
        if self.limits.recovered(now) {
            info!(
                event = Happening::ShortageOver.as_str(),
                "there are descriptors and places again; accepting as before"
            );
        }
    }
}

/// Turns keepalive on. Only now, as most sessions are over before it could matter and it is eight calls.
fn keep_alive(session: &mut Session, snapshot: &Snapshot) {
    session.kept_alive = true;
    let Some(listener) = snapshot.listener(&session.listener.name) else { return };
    for end in [Some(&session.client), session.server.as_ref()].into_iter().flatten() {
        socket::keep_alive(&end.fd, listener.keepalive);
        if !session.stalled {
            socket::limit_unacknowledged(&end.fd, listener.keepalive.patience());
        }
    }
}

/// A peer that does not read is not dead: how long it may last is for the idle timeout to say, while TCP_USER_TIMEOUT
/// would count a window of zero too. Once a session, for it will do so again.
#[cold]
pub(super) fn bear_with(session: &mut Session) {
    session.stalled = true;
    if session.kept_alive {
        for end in [Some(&session.client), session.server.as_ref()].into_iter().flatten() {
            socket::limit_unacknowledged(&end.fd, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_peer_is_bounded_by_the_kernel_and_one_that_only_does_not_read_is_not() {
        use super::super::testing::{Over, pair, snapshot};
        use nix::sys::socket::{getsockopt, sockopt::TcpUserTimeout};
        let file =
            "listeners: { web: { bind: 127.0.0.1:8080, pool: web, keepalive: { idle: 20s, interval: 2s, count: 5 } } }
pools: { web: { backends: { a: 127.0.0.1:9001 } } }
";
        let (snapshot, _) = snapshot(file, 1);
        let ((client, _caller), (server, _called)) = (pair(Over::Tcp), pair(Over::Tcp));
        let mut session = Session::new(client, None, &snapshot.listeners[0], 0, 0);
        session.server = Some(server);
        let bounds = |session: &Session| {
            [&session.client, session.server.as_ref().unwrap()].map(|end| getsockopt(&end.fd, TcpUserTimeout).unwrap())
        };
        keep_alive(&mut session, &snapshot);
        assert_eq!(bounds(&session), [30_000, 30_000]);
        bear_with(&mut session);
        assert_eq!(bounds(&session), [0, 0]);
        keep_alive(&mut session, &snapshot); // as after another dial
        assert_eq!(bounds(&session), [0, 0]);
    }
}
