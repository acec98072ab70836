//! Makes a worker of its picture. Up to [`Assembled::commit`] no descriptor of the predecessor's is read, written,
//! closed or registered elsewhere, whatever goes wrong: it is executed again then, and finds all as it left it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::names::Resolved;
use super::{CarriedEnd, CarriedFlow, CarriedSession, CarriedWorker};
use crate::proxy::door::{Door, Hold};
use crate::proxy::relay::{End, Flow, Memory};
use crate::proxy::serve::interest;
use crate::proxy::session::{Session, State};
use crate::proxy::socket;
use crate::proxy::stock::Spares;
use crate::proxy::token::Token;
use crate::proxy::worker::{REFRESH, Setup, Worker};
use crate::snapshot::{BackendCell, Cells, ListenerCell, PoolCell};
use crate::words::ProxyVersion;

/// Why a picture cannot become a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit(pub String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// A worker that is whole and owns nothing yet: dropped, it closes nothing.
pub struct Assembled(pub(super) ManuallyDrop<Worker>);

impl Assembled {
    /// From here on the descriptors are the worker's. There must be no way back to the predecessor any more.
    pub fn commit(self) -> Worker {
        ManuallyDrop::into_inner(self.0)
    }
}

impl fmt::Debug for Assembled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assembled({} sessions)", self.0.sessions.len())
    }
}

impl Worker {
    /// A worker with all that is carried, by the snapshot that is in force. Takes the places that its sessions and spare
    /// connections have at the process, their listeners and their backends, and the memory that they hold.
    ///
    /// # Errors
    /// What is carried contradicts itself or names what `cells` does not have, which [`super::recall`] sees to; or the
    /// process has no descriptor left. The descriptors are as they were.
    pub fn assemble(setup: Setup, carried: CarriedWorker, cells: &Cells) -> Result<Assembled, Unfit> {
        check(&carried)?;
        let cells = carried.names.cells(cells)?;
        let kernel = |what: &str, e: Errno| Unfit(format!("{what}: {}", e.desc()));
        let (epoll, anew) = match carried.epoll {
            Some(fd) => (Epoll(socket::own(fd)), false),
            None => (Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| kernel("no epoll can be had", e))?, true),
        };
        let mut worker = ManuallyDrop::new(Worker::on(epoll, setup));
        worker.hear_inbox().map_err(|e| kernel("the inbox cannot be heard", e))?;
        worker.fill(carried, &cells)?;
        if anew {
            worker.register_all().map_err(|e| kernel("a descriptor cannot be registered", e))?;
        }
        Ok(Assembled(worker))
    }

    /// Nothing is owned before everything has been found: what is half made must not be dropped.
    fn fill(&mut self, carried: CarriedWorker, cells: &Resolved) -> Result<(), Unfit> {
        let CarriedWorker { retired, doors, sessions, again, queues, spares, stocks, .. } = carried;
        let found = sessions.iter().map(|session| Found::of(session, cells)).collect::<Result<Vec<_>, _>>()?;
        let queues = queues.into_iter().map(|queue| {
            Ok((cells.pool(queue.pool)?.name.clone(), queue.keys.into_iter().map(|key| key as usize).collect()))
        });
        self.queues = queues.collect::<Result<BTreeMap<_, VecDeque<_>>, Unfit>>()?;
        self.spares = Spares::assemble(spares, stocks, |number| cells.backend(number))?;
        let limits = Arc::clone(&self.limits);
        let table = sessions.into_iter().zip(found).map(|(session, found)| {
            limits.sessions.reserve(None);
            (session.key as usize, assembled(session, found, &limits.memory))
        });
        self.sessions = table.collect();
        self.doors = doors.into_iter().map(|door| (door.key as usize, Door::assemble(door, &self.snapshot))).collect();
        for key in &again {
            self.sessions[*key as usize].again = true;
        }
        self.again = again.into_iter().map(|key| key as usize).collect();
        self.retired = retired.into_iter().map(socket::own).collect();
        (self.shut_until, self.shut_for) = (carried.shut_until, carried.shut_for);
        // The snapshot is another one, and so may be the timeouts.
        self.changed = true;
        self.sweep_at = carried.sweep_at.min(self.now + REFRESH);
        self.taken_over = true;
        Ok(())
    }

    fn register_all(&self) -> Result<(), Errno> {
        for (key, session) in &self.sessions {
            self.epoll
                .add(&session.client.fd, EpollEvent::new(interest(), Token::Client(key, session.serial).pack()))?;
            if let Some(server) = &session.server {
                self.epoll.add(
                    &server.fd,
                    EpollEvent::new(interest(), Token::Server(key, session.serial, session.dial).pack()),
                )?;
            }
        }
        for (key, spare) in self.spares.iter() {
            self.epoll.add(&spare.fd, EpollEvent::new(interest(), Token::Spare(key).pack()))?;
        }
        for (key, door) in &self.doors {
            let events = if door.held.is_some() { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
            self.epoll.add(&door.socket, EpollEvent::new(events, Token::Door(key).pack()))?;
        }
        Ok(())
    }

    /// The first thing after the commit: what could not be done before, for it closes something.
    pub(in crate::proxy) fn take_up(&mut self) {
        self.retired.clear();
        self.plan_spares(); // the number of workers or the snapshot may be another
        self.open_doors(Hold::Limit);
        if self.shut_until.is_none() {
            self.open_doors(Hold::Shortage);
        }
        self.room = true;
    }
}

/// The cells of a session.
struct Found {
    listener: Arc<ListenerCell>,
    pool: Arc<PoolCell>,
    backend: Option<Arc<BackendCell>>,
    tried: Vec<Arc<BackendCell>>,
    send_proxy: Option<ProxyVersion>,
}

impl Found {
    fn of(session: &CarriedSession, cells: &Resolved) -> Result<Self, Unfit> {
        Ok(Self {
            listener: cells.listener(session.listener)?,
            pool: cells.pool(session.pool)?,
            backend: session.backend.map(|number| cells.backend(number)).transpose()?,
            tried: session.tried.iter().map(|number| cells.backend(*number)).collect::<Result<_, _>>()?,
            send_proxy: session.send_proxy.map(version).transpose()?,
        })
    }
}

fn assembled(session: CarriedSession, found: Found, memory: &Memory) -> Session {
    found.listener.live.reserve(None);
    if let Some(backend) = &found.backend {
        backend.live.reserve(None);
    }
    if session.state == State::Queued {
        found.pool.queued.fetch_add(1, SeqCst);
    }
    Session {
        state: session.state,
        client: end(session.client),
        server: session.server.map(end),
        backend: found.backend,
        listener: found.listener,
        pool: found.pool,
        peer: session.peer,
        destination: session.destination.map(Box::new),
        send_proxy: found.send_proxy,
        up: flow(session.up, memory),
        down: flow(session.down, memory),
        ticket: session.ticket,
        tried: found.tried,
        attempts: session.attempts,
        refused: None,
        serial: session.serial,
        dial: session.dial,
        spare: session.spare,
        kept_alive: session.kept_alive,
        stalled: session.stalled,
        again: false,
        crowded: session.crowded,
        accepted: session.accepted,
        since: session.since,
        active: session.active,
        deadline: session.deadline,
        idle: session.idle,
        half_closed: session.half_closed,
    }
}

fn end(end: CarriedEnd) -> End {
    let CarriedEnd { fd, readable, writable, fin, broken } = end;
    End { fd: socket::own(fd), readable, writable, fin, broken }
}

fn flow(flow: CarriedFlow, memory: &Memory) -> Flow {
    let CarriedFlow { bytes, held, bulk, sent, header, ended, closed, whole, last } = flow;
    let mut flow = Flow { bytes, held: None, bulk, sent, header, ended, closed, whole, last };
    flow.keep(&held, memory);
    flow
}

fn version(number: u8) -> Result<ProxyVersion, Unfit> {
    match number {
        1 => Ok(ProxyVersion::V1),
        2 => Ok(ProxyVersion::V2),
        other => Err(Unfit(format!("there is no version {other} of the PROXY header"))),
    }
}

/// Everything that a worker relies on and would otherwise find out in the middle of a turn.
pub(super) fn check(carried: &CarriedWorker) -> Result<(), Unfit> {
    let wrong = |what: String| Err(Unfit(what));
    let mut descriptors: Vec<RawFd> = carried.descriptors().collect();
    descriptors.sort_unstable();
    let same = descriptors.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    if let Some(fd) = same.or(descriptors.first().copied().filter(|fd| *fd < 0)) {
        return wrong(format!("descriptor {fd} is carried twice, or is none"));
    }
    if let Some(two) = carried.sessions.windows(2).find(|two| two[0].key >= two[1].key) {
        return wrong(format!("session {} stands behind session {}", two[1].key, two[0].key));
    }
    for CarriedSession { key, state, server, backend, .. } in &carried.sessions {
        let served = matches!(state, State::Connecting | State::Relaying);
        if *state == State::Gone || server.is_some() != served || backend.is_some() != served {
            let (server, backend) = (server.is_some(), backend.is_some());
            return wrong(format!("session {key} is {state:?}, with a server: {server}, with a backend: {backend}"));
        }
    }
    let state = |key: &u32| {
        let at = carried.sessions.binary_search_by_key(key, |session| session.key).ok()?;
        Some(carried.sessions[at].state)
    };
    if let Some(key) = carried.again.iter().find(|key| state(key).is_none()) {
        return wrong(format!("session {key} is to have a turn and is not there"));
    }
    let waiting = carried.sessions.iter().filter(|session| session.state == State::Queued).count();
    let mut queued = HashSet::new();
    for key in carried.queues.iter().flat_map(|queue| &queue.keys) {
        if state(key) != Some(State::Queued) || !queued.insert(*key) {
            return wrong(format!("session {key} stands in a queue and is not waiting, or stands there twice"));
        }
    }
    if queued.len() != waiting {
        return wrong(format!("{waiting} sessions wait and {} stand in queues", queued.len()));
    }
    if let Some(key) = twice(carried.doors.iter().map(|door| door.key)) {
        return wrong(format!("two listening sockets have the key {key}"));
    }
    if let Some(key) = twice(carried.spares.iter().map(|spare| spare.key)) {
        return wrong(format!("two spare connections have the key {key}"));
    }
    let mut stocked: Vec<u32> = carried.stocks.iter().flat_map(|stock| stock.keys.iter().copied()).collect();
    let mut there: Vec<u32> = carried.spares.iter().map(|spare| spare.key).collect();
    stocked.sort_unstable();
    there.sort_unstable();
    if stocked != there {
        return wrong(format!("{} spare connections are kept and {} are there", stocked.len(), there.len()));
    }
    Ok(())
}

fn twice(mut keys: impl Iterator<Item = u32>) -> Option<u32> {
    let mut seen = HashSet::new();
    keys.find(|key| !seen.insert(*key))
}
