//! The picture of a worker between two turns. The worker stays as it is: where nothing comes of the exec, it runs on.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use bytes::Bytes;

use super::names::Naming;
use super::sessions::Writing;
use super::{CarriedEnd, CarriedFlow, CarriedQueue, CarriedSession, CarriedWorker};
use crate::proxy::relay::{End, Flow};
use crate::proxy::session::{Session, State};
use crate::proxy::worker::Worker;
use crate::words::ProxyVersion;

/// A worker as it travels.
#[derive(Debug)]
pub struct Written {
    /// All but its sessions.
    pub head: Vec<u8>,
    /// Those.
    pub sessions: Bytes,
}

impl Worker {
    /// Everything of a parked worker that is to outlive the process. Nothing must wait in its inbox, and no worker may
    /// run any more, for tickets and counts are common to all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<Written, postcard::Error> {
        let carried = self.carry()?;
        Ok(Written { head: postcard::to_stdvec(&carried)?, sessions: carried.sessions.into_bytes() })
    }

    /// The picture itself. The table of sessions alone says who is there and what each waits for; lists of keys beside it only
    /// give the order, since the turn that ends a session may leave its key in one of them.
    pub(super) fn carry(&self) -> Result<CarriedWorker, postcard::Error> {
        let mut names = Naming::of(&self.snapshot);
        let mut sessions = Writing::with_room_for(self.sessions.len());
        let (mut again, mut queued) = (Vec::new(), BTreeSet::new());
        for (key, session) in self.sessions.iter().filter(|(_, session)| session.state != State::Gone) {
            sessions.add(&session_of(key, session, &mut names))?;
            if session.again {
                again.push(key as u32);
            }
            if session.state == State::Queued {
                queued.insert(key);
            }
        }
        let queues = self.queues_of(queued, &mut names);
        let (spares, stocks) = self.spares.carry(&mut |backend| names.backend(backend));
        Ok(CarriedWorker {
            epoll: Some(self.epoll.0.as_raw_fd()),
            retired: self.retired.iter().map(AsRawFd::as_raw_fd).collect(),
            doors: self.doors.iter().map(|(key, door)| door.carry(key as u32)).collect(),
            sessions: sessions.done(),
            again,
            queues,
            spares,
            stocks,
            shut_until: self.shut_until,
            shut_for: self.shut_for,
            names: names.done(),
        })
    }

    /// The queues of these sessions, in the order in which they wait; who stands in none is the last of its pool's.
    fn queues_of(&self, mut queued: BTreeSet<usize>, names: &mut Naming) -> Vec<CarriedQueue> {
        let mut queues: Vec<CarriedQueue> = Vec::new();
        let mut add = |key: usize| {
            let pool = names.pool(&self.sessions[key].pool);
            match queues.iter_mut().find(|queue| queue.pool == pool) {
                Some(queue) => queue.keys.push(key as u32),
                None => queues.push(CarriedQueue { pool, keys: vec![key as u32] }),
            }
        };
        self.queues.keys().filter(|key| queued.remove(key)).for_each(&mut add);
        queued.into_iter().for_each(add);
        queues
    }
}

fn session_of(key: usize, session: &Session, names: &mut Naming) -> CarriedSession {
    CarriedSession {
        key: key as u32,
        state: session.state,
        client: end(&session.client),
        server: session.server.as_ref().map(end),
        listener: names.listener(&session.listener),
        pool: names.pool(&session.pool),
        backend: session.backend.as_ref().map(|backend| names.backend(backend)),
        peer: session.peer,
        destination: session.destination.as_deref().copied(),
        send_proxy: session.send_proxy.map(version),
        up: flow(&session.up),
        down: flow(&session.down),
        ticket: session.ticket,
        tried: session.tried.iter().map(|backend| names.backend(backend)).collect(),
        attempts: session.attempts,
        failure: session.failure.map_or(0, |failure| failure as i32),
        serial: session.serial,
        dial: session.dial,
        spare: session.spare,
        kept_alive: session.kept_alive,
        crowded: session.crowded,
        accepted: session.accepted,
        since: session.since,
        active: session.active,
        deadline: session.deadline,
        idle: session.idle,
        half_closed: session.half_closed,
    }
}

pub(super) fn end(end: &End) -> CarriedEnd {
    let End { fd, readable, writable, fin, broken, stream, urgent, unix, no_delay: _ } = end;
    CarriedEnd {
        fd: fd.as_raw_fd(),
        readable: *readable,
        writable: *writable,
        fin: *fin,
        broken: *broken,
        stream: *stream,
        urgent: *urgent,
        unix: *unix,
    }
}

pub(super) fn flow(flow: &Flow) -> CarriedFlow {
    let Flow { bytes, held: _, bulk, sent, header, ended, closed, whole, last, wide: _ } = flow;
    CarriedFlow {
        bytes: *bytes,
        held: flow.unwritten().to_vec().into(),
        bulk: *bulk,
        sent: *sent,
        header: *header,
        ended: *ended,
        closed: *closed,
        whole: *whole,
        last: *last,
    }
}

fn version(version: ProxyVersion) -> u8 {
    match version {
        ProxyVersion::V1 => 1,
        ProxyVersion::V2 => 2,
    }
}
