//! Spare connections as the worker carries them out: opened and replaced at the end of a turn, closed when their
//! backend closes them or must have none, given to sessions. How many there are to be is [`super::stock`]'s to say.
//! Never read from until it is given up: what a backend says first is for the session that gets the connection.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::accept_error::is_shortage;
use super::inbox::Sessions;
use super::own_address::has_met_itself;
use super::relay::End;
use super::serve::interest;
use super::session::SpareUse;
use super::socket::{self, Dialled};
use super::stock::{PAUSE, Spare};
use super::token::Token;
use super::worker::Worker;
use crate::snapshot::{BackendCell, Pool};
use crate::words::{Address, Cause, Phase};

/// Most opened in a turn: a connect takes some 20 us, and sessions wait meanwhile.
const BATCH: usize = 16;

impl Worker {
    /// Takes what the snapshot and the doors say of spares; those that must not be any more are closed when it returns.
    pub(super) fn plan_spares(&mut self) {
        // A worker without a door serves nobody new: it has none yet, or lbd is stopping.
        let share = (!self.doors.is_empty()).then_some((self.index, self.workers()));
        for key in self.spares.plan(&self.snapshot, share, self.now) {
            self.discard(key);
        }
    }

    /// Closes what is too old, opens what is lacking. At the end of a turn: no event of this turn can be meant for
    /// a spare opened in it.
    pub(super) fn tend_spares(&mut self) {
        if !self.spares.overdue(self.now).is_empty() {
            self.hear_what_waits(); // a connect may have succeeded
        }
        for key in self.spares.overdue(self.now) {
            match self.spares.spare(key) {
                Some(spare) if !spare.connected => self.spare_failed(key, Errno::ETIMEDOUT),
                _ => self.discard(key),
            }
        }
        let mut opened = 0;
        for stock in 0..self.spares.stocks().len() {
            while opened < BATCH && self.spares.lacks(stock, self.now) && self.open_spare(stock) {
                opened += 1;
            }
        }
        self.spares.reckon(self.now);
    }

    /// False where none can be had for a while.
    fn open_spare(&mut self, stock: usize) -> bool {
        let (backend, limit) = {
            let stock = &self.spares.stocks()[stock];
            (Arc::clone(&stock.backend), stock.limit)
        };
        if !self.limits.have_room_for_spares() {
            self.spares.pause(&backend, self.now, false);
            return false;
        }
        if !backend.live.reserve_spare(limit) {
            self.spares.pause(&backend, self.now, true);
            return false;
        }
        // After the reservation, so that either we see the session that waits or it sees the place taken and asks for it.
        if backend.pool.queued.load(SeqCst) > 0 {
            self.release_spare(&backend);
            self.spares.pause(&backend, self.now, true);
            return false;
        }
        let key = self.spares.vacant_key();
        let dialled = socket::dial(&backend.address).and_then(|dialled| {
            let (fd, connected) = match dialled {
                Dialled::Pending(fd) => (fd, false),
                Dialled::Connected(fd) => (fd, true),
            };
            self.epoll.add(&fd, EpollEvent::new(interest(), Token::Spare(key).pack()))?;
            self.mark_new(&fd);
            Ok((fd, connected))
        });
        match dialled {
            Ok((fd, connected)) => {
                self.limits.spares.fetch_add(1, Relaxed);
                self.spares.add(stock, Spare { fd, backend, connected: false, since: self.now });
                if connected {
                    self.spare_connected(key);
                }
                true
            }
            Err(e) => {
                self.release_spare(&backend);
                self.blame(&backend, e);
                false
            }
        }
    }

    pub(super) fn spare_event(&mut self, key: usize, events: EpollFlags) {
        let (now, over) = (self.now, EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let Some(spare) = self.spares.spare(key) else { return };
        if !spare.connected {
            if events.intersects(over) {
                let why = socket::dial_result(&spare.fd).err().unwrap_or(Errno::ECONNRESET);
                return self.spare_failed(key, why);
            }
            if events.contains(EpollFlags::EPOLLOUT) {
                self.spare_connected(key);
            }
        }
        if events.intersects(over | EpollFlags::EPOLLRDHUP)
            && let Some(spare) = self.spares.spare(key)
        {
            let (young, backend) = (spare.since + PAUSE > now, Arc::clone(&spare.backend));
            self.discard(key);
            if young {
                self.spares.pause(&backend, now, false);
            }
        }
    }

    fn spare_connected(&mut self, key: usize) {
        let now = self.now;
        let Some(Spare { fd, backend, since, .. }) = self.spares.spare(key) else { return };
        if has_met_itself(&mut self.local_ports, now, backend, fd) {
            return self.spare_failed(key, Errno::ECONNREFUSED);
        }
        backend.shards[self.index].connect_times.record(Duration::from_micros(now - *since));
        self.spares.connected(key, now);
    }

    fn spare_failed(&mut self, key: usize, why: Errno) {
        let Some(spare) = self.spares.spare(key) else { return };
        let backend = Arc::clone(&spare.backend);
        self.discard(key);
        self.blame(&backend, why);
    }

    fn blame(&mut self, backend: &Arc<BackendCell>, why: Errno) {
        self.spares.pause(backend, self.now, false);
        if !is_shortage(why) && why != Errno::EADDRNOTAVAIL {
            backend.connect_failed(why as i32, self.now);
            backend.shards[self.index].connect_errors.add(1);
            self.tell_of_failed_dial(backend, why);
        }
    }

    /// Gives a session a spare connection of a backend; where all turn out dead, it is placed anew.
    pub(super) fn give_spare(&mut self, key: usize, backend: Arc<BackendCell>) {
        while let Some(ready) = self.spares.ready(&backend) {
            let Spare { fd, .. } = self.take_spare(ready);
            // The news of its end may be on the way; one call here saves the client a request that is lost.
            if socket::has_ended(&fd) {
                let _ = self.epoll.delete(&fd); // as below
                drop(fd);
                self.release_spare(&backend);
                continue;
            }
            backend.live.adopt_spare();
            let session = &mut self.sessions[key];
            session.dial = session.dial.wrapping_add(1);
            let token = Token::Server(key, session.serial, session.dial).pack();
            // Tells at once what is so already: that it can be written to, and that the backend has said something.
            let registered = self.epoll.modify(&fd, &mut EpollEvent::new(interest(), token));
            session.server = Some(End::new(fd, matches!(backend.address, Address::Unix(_))));
            session.backend = Some(backend);
            session.spare = SpareUse::Serving;
            session.since = self.now;
            return match registered {
                Ok(()) => self.begin_relaying(key),
                Err(_) => self.end(key, Cause::Proxy, Phase::Connect),
            };
        }
        self.place(key);
    }

    /// Closes spares: every one, or those of a backend.
    pub(super) fn cut_spares(&mut self, which: &Sessions) {
        let keys = match which {
            Sessions::All => self.spares.keys_of(None),
            Sessions::Of(backend) => self.spares.keys_of(Some(backend)),
        };
        for key in keys {
            self.discard(key);
        }
    }

    /// Gives places up that sessions wait for, here or in another worker.
    pub(super) fn yield_spares(&mut self) {
        let mut given = Vec::new();
        for stock in self.spares.stocks() {
            let (waiting, live) = (stock.backend.pool.queued.load(SeqCst), &stock.backend.live);
            if waiting > 0 && stock.limit.is_some_and(|limit| live.count() + live.spares() >= limit) {
                given.extend(stock.keys().take(waiting as usize));
            }
        }
        for key in given {
            self.discard(key);
        }
    }

    fn discard(&mut self, key: usize) {
        let Spare { fd, backend, .. } = self.take_spare(key);
        // A child that is just being started may have a copy of it, whose events would be taken for the next one's of this key.
        let _ = self.epoll.delete(&fd);
        socket::finish_writing(&fd);
        socket::discard(&fd, &mut self.scratch); // a server that speaks first has an end in its log, and no reset
        drop(fd);
        self.release_spare(&backend);
    }

    fn take_spare(&mut self, key: usize) -> Spare {
        self.limits.spares.fetch_sub(1, Relaxed);
        self.spares.take(key, self.now)
    }

    fn release_spare(&mut self, backend: &Arc<BackendCell>) {
        backend.live.release_spare();
        self.place_is_free(backend);
    }
}

/// Whether spares of any worker have places that a session of this pool could have.
pub(super) fn hold_places(pool: &Pool) -> bool {
    pool.spare_connections > 0 && pool.eligible.iter().any(|&i| pool.backends[usize::from(i)].cell.live.spares() > 0)
}
