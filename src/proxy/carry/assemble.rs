//! Makes a worker of its picture. Up to [`Assembled::commit`] no descriptor of the predecessor's is read, written,
//! closed or registered elsewhere, whatever goes wrong: it is executed again then, and finds all as it left it.

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::check::Check;
use super::descriptors::Descriptors;
use super::names::Resolved;
use super::sessions::Reading;
use super::{CarriedEnd, CarriedFlow, CarriedSession, CarriedWorker, Persist};
use crate::proxy::door::{Door, Hold};
use crate::proxy::memory::Memory;
use crate::proxy::relay::{End, Flow};
use crate::proxy::serve::interest;
use crate::proxy::session::{Session, State};
use crate::proxy::socket;
use crate::proxy::stock::Spares;
use crate::proxy::token::Token;
use crate::proxy::worker::{Setup, Worker};
use crate::snapshot::{BackendCell, ListenerCell, PoolCell};
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
pub struct Assembled {
    worker: ManuallyDrop<Worker>,
    /// Everything is registered anew.
    pub(super) anew: bool,
    descriptors: Descriptors,
}

impl Assembled {
    /// From here on the descriptors are the worker's. There must be no way back to the predecessor any more.
    pub fn commit(self) -> Worker {
        ManuallyDrop::into_inner(self.worker)
    }

    pub(super) fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// All that it will own.
    pub fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }
}

impl fmt::Debug for Assembled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assembled({} sessions)", self.worker.sessions.len())
    }
}

impl Worker {
    /// A worker with all that is carried, by the snapshot that is in force. Takes the places that its sessions and spare
    /// connections have at the process, their listeners and their backends, and the memory that they hold.
    ///
    /// # Errors
    /// What is carried contradicts itself; or the process has no descriptor left. The descriptors are as they were.
    pub fn assemble(
        setup: Setup,
        carried: CarriedWorker,
        cells: &Resolved,
        persist: Persist<'_>,
    ) -> Result<Assembled, Unfit> {
        let mut check = Check::of(&carried)?;
        let kernel = |what: &str, e: Errno| Unfit(format!("{what}: {}", e.desc()));
        let (epoll, anew) = match carried.epoll {
            Some(fd) => (Epoll(socket::own(fd)), false),
            None => (epoll_of_its_own(persist).map_err(|e| kernel("no epoll can be had", e))?, true),
        };
        let mut worker = ManuallyDrop::new(Worker::on(epoll, setup));
        persist(&mut || worker.hear_inbox()).map_err(|e| kernel("the inbox cannot be heard", e))?;
        worker.fill(carried, cells, &mut check)?;
        if anew {
            worker.register_all(persist).map_err(|e| kernel("a descriptor cannot be registered", e))?;
        }
        Ok(Assembled { worker, anew, descriptors: check.descriptors })
    }

    /// While the table is collected it owns descriptors, and nothing keeps them from being closed with it. So the first session that is
    /// unfit ends the row: what there is of the table comes to lie in this worker, which is never dropped. (And who panics goes
    /// back before anything is dropped.)
    fn fill(&mut self, carried: CarriedWorker, cells: &Resolved, check: &mut Check) -> Result<(), Unfit> {
        let (sessions, memory) = (carried.sessions.iter(), &self.limits.memory);
        let mut table = Table { sessions, cells, memory, check, places: Places::default(), unfit: None };
        self.sessions = table.by_ref().collect();
        let Table { places, unfit, .. } = table;
        if let Some(unfit) = unfit {
            return Err(unfit);
        }
        self.limits.sessions.count_in(self.sessions.len() as u32);
        places.take(cells)?;
        check.rows(&carried, |key| self.sessions.get(key as usize).map(|session| session.state))?;
        let CarriedWorker { retired, doors, again, queues, spares, stocks, .. } = carried;
        for key in queues.into_iter().flat_map(|queue| queue.keys) {
            self.queues.add(key as usize, &self.sessions[key as usize]);
        }
        self.spares = Spares::assemble(spares, stocks, |number| cells.backend(number))?;
        self.limits.spares.fetch_add(self.spares.iter().count() as u32, Relaxed);
        self.doors = doors.into_iter().map(|door| (door.key as usize, Door::assemble(door, &self.snapshot))).collect();
        for key in &again {
            self.sessions[*key as usize].again = true;
        }
        self.again = again.into_iter().map(|key| key as usize).collect();
        self.retired = retired.into_iter().map(socket::own).collect();
        (self.shut_until, self.shut_for) = (carried.shut_until, carried.shut_for);
        // The snapshot is another one, and so may be the timeouts.
        self.refresh_from(self.now);
        self.paused = true;
        Ok(())
    }

    fn register_all(&self, persist: Persist<'_>) -> Result<(), Errno> {
        for (fd, event) in self.told_once() {
            persist(&mut || self.epoll.add(fd, event))?;
        }
        for (key, door) in &self.doors {
            let events = if door.held.is_some() { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
            let event = EpollEvent::new(events, Token::Door(key).pack());
            persist(&mut || self.epoll.add(&door.socket, event))?;
        }
        Ok(())
    }

    /// Has epoll tell once more what is so of every socket but doors, whose clients it tells of anyway.
    pub(super) fn hear_again(&self) {
        for (fd, mut event) in self.told_once() {
            let _ = self.epoll.modify(fd, &mut event); // it is registered
        }
    }

    /// Sockets of which epoll tells each thing but once, as they are registered.
    fn told_once(&self) -> impl Iterator<Item = (&OwnedFd, EpollEvent)> {
        let sessions = self.sessions.iter().flat_map(|(key, session)| {
            let Session { client, server, serial, dial, .. } = session;
            let server = server.as_ref().map(|end| (&end.fd, Token::Server(key, *serial, *dial)));
            [Some((&client.fd, Token::Client(key, *serial))), server].into_iter().flatten()
        });
        let spares = self.spares.iter().map(|(key, spare)| (&spare.fd, Token::Spare(key)));
        sessions.chain(spares).map(|(fd, token)| (fd, EpollEvent::new(interest(), token.pack())))
    }

    /// The first thing after a pause: what could not be done before, for it closes something.
    pub(in crate::proxy) fn take_up(&mut self) {
        // Of sessions that were let go, too, whose peers must be able to tell a cut stream from a whole one.
        self.retired.drain(..).for_each(|fd| socket::reset_on_close(&fd));
        for (_, door) in &self.doors {
            let _ = socket::keep_urgent_data_in_line(&door.socket); // a former version did not set it
        }
        self.make_up_for();
        self.bury();
        self.plan_spares(); // the number of workers or the snapshot may be another
        self.open_doors(Hold::Limit);
        if self.shut_until.is_none() {
            self.open_doors(Hold::Shortage);
        }
        self.queues.look_at_all();
    }
}

fn epoll_of_its_own(persist: Persist<'_>) -> Result<Epoll, Errno> {
    let mut epoll = None;
    persist(&mut || {
        epoll = Some(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        Ok(())
    })?;
    epoll.ok_or(Errno::EMFILE)
}

/// The table while it is filled; up to the first that is unfit.
struct Table<'a> {
    sessions: Reading<'a>,
    cells: &'a Resolved,
    memory: &'a Memory,
    check: &'a mut Check,
    places: Places,
    unfit: Option<Unfit>,
}

impl Table<'_> {
    fn assemble(&mut self, session: Result<CarriedSession, Unfit>) -> Result<(usize, Session), Unfit> {
        let session = session?;
        let found = Found::of(&session, self.cells)?;
        self.check.session(&session)?;
        self.places.count(&session);
        Ok((session.key as usize, assembled(session, found, self.memory)))
    }
}

impl Iterator for Table<'_> {
    type Item = (usize, Session);

    fn next(&mut self) -> Option<Self::Item> {
        let session = self.sessions.next()?;
        self.assemble(session).map_err(|unfit| self.unfit = Some(unfit)).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.sessions.size_hint()
    }
}

/// How many sessions have a place, by number. The places are taken at once, for all workers count at the same cells at the same
/// time, and wait for each other.
#[derive(Default)]
struct Places {
    listeners: Vec<u32>,
    backends: Vec<u32>,
    waiting: Vec<u32>,
}

impl Places {
    /// The numbers are known to be right.
    fn count(&mut self, session: &CarriedSession) {
        one_more(&mut self.listeners, session.listener);
        session.backend.into_iter().for_each(|backend| one_more(&mut self.backends, backend));
        if session.state == State::Queued {
            one_more(&mut self.waiting, session.pool);
        }
    }

    fn take(self, cells: &Resolved) -> Result<(), Unfit> {
        for (number, count) in (0..).zip(self.listeners) {
            cells.listener(number)?.live.count_in(count);
        }
        for (number, count) in (0..).zip(self.backends) {
            cells.backend(number)?.live.count_in(count);
        }
        for (number, count) in (0..).zip(self.waiting) {
            cells.pool(number)?.queued.fetch_add(count, SeqCst);
        }
        Ok(())
    }
}

fn one_more(counts: &mut Vec<u32>, number: u32) {
    let at = number as usize;
    if at >= counts.len() {
        counts.resize(at + 1, 0);
    }
    counts[at] += 1;
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
        failure: (session.failure != 0).then(|| Errno::from_raw(session.failure)),
        refused: None,
        serial: session.serial,
        dial: session.dial,
        spare: session.spare,
        kept_alive: session.kept_alive,
        again: false,
        crowded: session.crowded,
        accepted: session.accepted,
        since: session.since,
        active: session.active,
        acknowledged: 0,
        deadline: session.deadline,
        idle: session.idle,
        half_closed: session.half_closed,
        timer: 0,
    }
}

fn end(end: CarriedEnd) -> End {
    let CarriedEnd { fd, readable, writable, fin, broken, stream, urgent, unix } = end;
    End { readable, writable, fin, broken, stream, urgent, ..End::new(socket::own(fd), unix) }
}

pub(super) fn flow(flow: CarriedFlow, memory: &Memory) -> Flow {
    let CarriedFlow { bytes, held, bulk, sent, header, ended, closed, whole, last } = flow;
    let wide = 1; // what it carries will show
    let mut flow = Flow { bytes, held: None, bulk, sent, header, ended, closed, whole, last, wide };
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
