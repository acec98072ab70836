//! The loop: events, the daemon's commands, a coarse clock. A worker owns its doors, its table of sessions
//! and the buffer they share; [`Worker::run`] returns at a safe point, where nothing is half done, and can
//! be called again. Here alone in this room is the clock read, once a turn.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use slab::Slab;
use tokio::sync::{Notify, mpsc};
use tracing::{error, info, warn};

use super::carry::Marking;
use super::door::{Door, Hold};
use super::inbox::{Command, Inbox, Outcome, Sessions};
use super::limits::Limits;
use super::own_address::LocalPorts;
use super::queue::Queues;
use super::ring::Ring;
use super::row::{ROW, Row, WORTH_A_RING};
use super::scratch::Scratch;
use super::session::{Next, Session};
use super::socket::{self, monotonic_micros};
use super::stock::Spares;
use super::summary::Summary;
use super::sweep::Unacknowledged;
use super::timers::Timers;
use super::token::Token;
use crate::snapshot::{Reader, Snapshot};
use crate::words::{Address, Cause};

/// Events taken at a time.
pub(super) const EVENTS: usize = 512;
/// How soon after a change the sessions take its timeouts.
pub(super) const REFRESH: u64 = 100_000;

/// What a worker is made of.
pub struct Setup {
    /// Its number; the shard of the counters that it writes.
    pub index: usize,
    /// How the daemon speaks to it.
    pub inbox: Inbox,
    /// The snapshots.
    pub reader: Reader,
    /// What the process may have.
    pub limits: Arc<Limits>,
    /// Where it tells of failed dials. Full: dropped, the next one tells the same.
    pub outcomes: mpsc::Sender<Outcome>,
    /// Rung after each acknowledgement and each turn that was asked for.
    pub acknowledged: Arc<Notify>,
    /// Wakes the other workers, in their order.
    pub others: Vec<Arc<EventFd>>,
}

/// One thread's share of the proxy.
pub struct Worker {
    pub(super) index: usize,
    pub(super) epoll: Epoll,
    pub(super) inbox: Inbox,
    reader: Reader,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) limits: Arc<Limits>,
    pub(super) outcomes: mpsc::Sender<Outcome>,
    acknowledged: Arc<Notify>,
    others: Vec<Arc<EventFd>>,
    pub(super) sessions: Slab<Session>,
    pub(super) doors: Slab<Door>,
    /// Doors that have clients, until the end of the turn.
    pub(super) knocked: Vec<usize>,
    /// Addresses at which it accepts no more, for the socket was ended; until the daemon knows.
    pub(super) ended: Vec<Address>,
    /// Doors are shut for want of descriptors until then.
    pub(super) shut_until: Option<u64>,
    /// How long they were shut last.
    pub(super) shut_for: u64,
    /// Sessions that wait for a place.
    pub(super) queues: Queues,
    /// Connections opened ahead of need.
    pub(super) spares: Spares,
    pub(super) scratch: Scratch,
    /// What is to be passed on by it together; empty once the events of a turn are handled.
    pub(super) row: Row,
    /// Makes the calls of a row, while a thread runs this worker and the kernel lets us.
    pub(super) ring: Option<Ring>,
    /// Sessions that could go on.
    pub(super) again: Vec<usize>,
    /// Sessions that ended in this turn. They go when its events are handled: a stale event must not hit a reused entry.
    pub(super) gone: Vec<usize>,
    pub(super) now: u64,
    /// When to look at which session.
    pub(super) timers: Timers,
    /// What peers that had not acknowledged all had acknowledged when that was last looked at.
    pub(super) unacknowledged: HashMap<usize, Unacknowledged>,
    /// A snapshot has come: sessions from this key on, so many keys, have yet to take what it says.
    pub(super) refresh: Option<(usize, usize)>,
    /// When they go on doing so.
    pub(super) refresh_at: u64,
    /// Errors of sessions that the log has yet to have the number of.
    pub(super) summary: Summary,
    /// The ports that the kernel hands out.
    pub(super) local_ports: LocalPorts,
    /// After a pause of the process nothing is ended for time until then.
    pub(super) grace_until: u64,
    /// When to look whether a shortage is over.
    pub(super) recover_at: u64,
    /// Of the last session.
    pub(super) serial: u16,
    /// State of a xorshift; good enough to draw two backends.
    seed: u64,
    /// Epoll descriptors of a predecessor that had another number of workers.
    pub(super) retired: Vec<OwnedFd>,
    /// It was parked, here or in another program, and has not had a turn since.
    pub(super) paused: bool,
    /// What is to be done with sessions, first of all then.
    pub(super) due: Vec<(usize, Next)>,
    /// Tokens and events that were told meanwhile.
    pub(super) unheard: Vec<(u64, u32)>,
    /// What was told meanwhile is not known, and to be told again.
    pub(super) deafened: bool,
    /// What an exec does to what is here.
    pub(super) marking: Marking,
}

impl Worker {
    /// A worker with no door and no session.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(setup: Setup) -> Result<Self, Errno> {
        let worker = Self::on(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, setup);
        worker.hear_inbox()?;
        Ok(worker)
    }

    /// The same, deaf still.
    pub(super) fn on(epoll: Epoll, setup: Setup) -> Self {
        let Setup { index, inbox, mut reader, limits, outcomes, acknowledged, others } = setup;
        let snapshot = Arc::clone(reader.look());
        let now = monotonic_micros();
        Self {
            index,
            epoll,
            inbox,
            reader,
            snapshot,
            limits,
            outcomes,
            acknowledged,
            others,
            sessions: Slab::new(),
            doors: Slab::new(),
            knocked: Vec::new(),
            ended: Vec::new(),
            shut_until: None,
            shut_for: 0,
            queues: Queues::new(index),
            spares: Spares::default(),
            scratch: Scratch::new(),
            row: Row::default(),
            ring: None,
            again: Vec::new(),
            gone: Vec::new(),
            now,
            timers: Timers::new(now),
            unacknowledged: HashMap::new(),
            refresh: None,
            refresh_at: u64::MAX,
            summary: Summary::default(),
            local_ports: LocalPorts::unknown(),
            grace_until: 0,
            recover_at: u64::MAX,
            serial: now as u16, // another program's last one is unknown
            seed: now | 1,
            retired: Vec::new(),
            paused: false,
            due: Vec::new(),
            unheard: Vec::new(),
            deafened: false,
            marking: Marking::default(),
        }
    }

    pub(super) fn hear_inbox(&self) -> Result<(), Errno> {
        self.epoll.add(&*self.inbox.waker, EpollEvent::new(EpollFlags::EPOLLIN, Token::Inbox.pack()))
    }

    /// Serves until [`Command::Park`] comes.
    pub fn run(&mut self) {
        // Here, not by need: a process at work has the same descriptors as one at rest.
        self.ring = Ring::new(ROW, WORTH_A_RING).map_err(|why| self.tell_of_no_ring(&why)).ok();
        self.go_on();
        self.ring = None; // it is this thread's: another one may go on, or another program
    }

    fn tell_of_no_ring(&self, why: &io::Error) {
        let worker = self.index;
        match why.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN) => {
                warn!(
                    worker,
                    "io_uring: {why}; small messages are moved by a call each until the next restart or upgrade"
                );
            }
            _ if worker == 0 => {
                info!("io_uring is not to be had ({why}): small messages cost some percent more, nothing else changes");
            }
            _ => {} // they are all kept from it
        }
    }

    fn go_on(&mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut turn = Vec::new();
        if std::mem::take(&mut self.paused) {
            self.now = monotonic_micros();
            self.take_up();
        }
        loop {
            let patience = self.patience();
            let heard = match self.hear(&mut events, patience) {
                Ok(heard) => heard,
                Err(e) => {
                    // Only a descriptor that is no epoll makes it fail: nothing could be served any more.
                    error!(worker = self.index, "epoll_wait: {e}");
                    return;
                }
            };
            self.look_at_snapshot();
            std::mem::swap(&mut turn, &mut self.again);
            let mut told = false;
            for event in heard {
                told |= self.heard(*event);
            }
            self.pass_row_on();
            for key in turn.drain(..) {
                if let Some(session) = self.sessions.get_mut(key) {
                    session.again = false;
                }
                self.turn(key);
            }
            self.bury();
            // Commands take clients in: not before every event of a former owner of their entries is handled.
            let parked = told && self.take_commands();
            self.answer_doors();
            self.sweep();
            self.bury();
            if self.spares.due() <= self.now {
                self.tend_spares();
            }
            while self.queues.are_due() {
                self.yield_spares();
                self.serve_queues();
                self.bury();
            }
            if self.limits.memory.has_slack() {
                socket::give_memory_back();
            }
            while self.marking.is_unfinished() {
                if self.mark_some() {
                    self.inbox.marked();
                    self.acknowledged.notify_one();
                } else if !parked {
                    break;
                }
            }
            if parked {
                self.hold_doors();
                self.tell_sums(u64::MAX);
                self.bury(); // whoever goes on finds nobody who has ended
                self.paused = true;
                return;
            }
        }
    }

    /// Waits for events, then looks at the clock.
    #[inline]
    pub(super) fn hear<'a>(
        &mut self,
        events: &'a mut [EpollEvent],
        patience: EpollTimeout,
    ) -> Result<&'a [EpollEvent], Errno> {
        let count = match self.epoll.wait(events, patience) {
            Err(Errno::EINTR) => 0,
            waited => waited?,
        };
        self.now = monotonic_micros();
        Ok(&events[..count])
    }

    /// What ends its wait.
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.inbox.waker)
    }

    /// How long to wait for events.
    fn patience(&self) -> EpollTimeout {
        if !self.again.is_empty() || self.marking.is_unfinished() || self.queues.are_due() {
            return EpollTimeout::ZERO;
        }
        let until = self.sweep_at().min(self.shut_until.unwrap_or(u64::MAX)).min(self.spares.due());
        if until == u64::MAX {
            return EpollTimeout::NONE;
        }
        let millis = until.saturating_sub(self.now).div_ceil(1000);
        EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
    }

    fn look_at_snapshot(&mut self) {
        let newest = self.reader.look();
        if Arc::ptr_eq(newest, &self.snapshot) {
            return;
        }
        self.snapshot = Arc::clone(newest);
        self.refresh_from(self.now + REFRESH);
        for (_, door) in &mut self.doors {
            door.take(&self.snapshot);
        }
        self.plan_spares();
        self.open_doors(Hold::Limit); // it may have been raised
        self.queues.look_at_all();
    }

    /// Does what the daemon told; true where it is to park.
    fn take_commands(&mut self) -> bool {
        self.inbox.clear();
        // A snapshot published before a command was told is in force before the command is done.
        self.look_at_snapshot();
        // Another worker may have woken us because there is room.
        self.open_doors(Hold::Limit);
        self.yield_spares();
        self.queues.look_at_ours();
        let mut parked = false;
        while let Some(command) = self.inbox.next() {
            match command {
                Command::Change { listen, release, revision } => {
                    listen.into_iter().for_each(|(address, socket)| self.add_door(address, socket));
                    release.iter().for_each(|(address, unaccepted)| self.release_doors(address, *unaccepted));
                    self.bury();
                    self.inbox.acknowledge(revision);
                    self.acknowledged.notify_one();
                }
                Command::LookAtDoors => self.look_at_doors(),
                Command::LendDoors(address) => self.lend_doors(&address),
                Command::Cut(which) => self.cut(&which),
                Command::Turn(number) => {
                    self.inbox.turn(number);
                    self.acknowledged.notify_one();
                }
                Command::OnExec(what) => self.mark(what),
                Command::Park => parked = true,
            }
        }
        parked
    }

    fn cut(&mut self, which: &Sessions) {
        self.cut_spares(which);
        let chosen: Vec<usize> = self
            .sessions
            .iter()
            .filter(|(_, session)| match which {
                Sessions::All => true,
                Sessions::Of(backend) => session.backend.as_ref().is_some_and(|b| Arc::ptr_eq(b, backend)),
            })
            .map(|(key, _)| key)
            .collect();
        for key in chosen {
            let session = &self.sessions[key];
            let (phase, answered) = (session.phase(), session.is_answered());
            self.end(key, if answered { Cause::Normal } else { Cause::Killed }, phase);
        }
    }

    /// Tells the others that there is room.
    pub(super) fn wake_others(&self) {
        // From its neighbour on: the places of a listener go round.
        let (before, after) = self.others.split_at(self.index.min(self.others.len()));
        for waker in after.iter().chain(before) {
            // Fails only where it is awake already.
            let _ = waker.write(1);
        }
    }

    /// Has this one look at its doors in the next turn.
    pub(super) fn wake_up(&self) {
        let _ = self.inbox.waker.write(1); // as above
    }

    /// Tells another one that a place is for it.
    pub(super) fn wake(&self, worker: usize) {
        if let Some(waker) = self.others.get(worker - usize::from(worker > self.index)) {
            let _ = waker.write(1); // as above
        }
    }

    /// How many workers there are.
    pub(super) fn workers(&self) -> usize {
        self.others.len() + 1
    }

    pub(super) fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }
}
