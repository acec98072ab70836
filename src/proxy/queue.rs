//! The sessions of a worker that wait for a place, oldest first, and who is next when there is one. A place goes to whoever waits
//! longest in any worker and may have it: a worker whose session that is not leaves it and wakes the one whose it is. Who can have
//! none of the free places (they have failed it) is passed over, and holds up nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::dial::Tried;
use super::session::{Session, State, micros};
use super::socket;
use super::spare;
use super::worker::Worker;
use crate::snapshot::{BackendCell, Pool, PoolCell};
use crate::words::{Cause, Phase, PoolName, Refusal};

/// The queues of a worker, one a pool in which somebody waits. How long they may be is the pool's bound, over all workers.
#[derive(Debug)]
pub struct Queues {
    worker: usize,
    queues: BTreeMap<PoolName, Queue>,
    /// Pools at which to look whether somebody can be served.
    due: BTreeSet<PoolName>,
}

#[derive(Debug)]
struct Queue {
    cell: Arc<PoolCell>,
    /// Since when, and who.
    waiting: BTreeSet<(u64, usize)>,
    /// Those of them whom a backend has failed.
    choosy: BTreeSet<(u64, usize)>,
}

impl Queue {
    fn show(&self, worker: usize) {
        self.cell.waiting.show(worker, self.waiting.first().map(|(since, _)| *since));
    }
}

impl Queues {
    /// Nobody waits.
    pub fn new(worker: usize) -> Self {
        Self { worker, queues: BTreeMap::new(), due: BTreeSet::new() }
    }

    /// A session begins to wait, as its `since` says.
    pub fn add(&mut self, key: usize, session: &Session) {
        self.insert(&session.pool, session.since, key, !session.tried.is_empty());
    }

    pub(super) fn insert(&mut self, pool: &Arc<PoolCell>, since: u64, key: usize, choosy: bool) {
        let new = || Queue { cell: Arc::clone(pool), waiting: BTreeSet::new(), choosy: BTreeSet::new() };
        let queue = self.queues.entry(pool.name.clone()).or_insert_with(new);
        queue.waiting.insert((since, key));
        if choosy {
            queue.choosy.insert((since, key));
        }
        queue.show(self.worker);
        // A place that became free before this one was shown as waiting would have told nobody.
        self.look_at(&pool.name);
    }

    /// One that waited does so no more. Whoever comes behind it may be served by a place that was left to it.
    pub fn remove(&mut self, key: usize, session: &Session) {
        let name = &session.pool.name;
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.waiting.remove(&(session.since, key));
        queue.choosy.remove(&(session.since, key));
        queue.show(self.worker);
        if queue.waiting.is_empty() {
            self.queues.remove(name);
        }
        self.look_at(name);
    }

    /// There may be a place at this pool.
    pub fn look_at(&mut self, pool: &PoolName) {
        if !self.due.contains(pool) {
            self.due.insert(pool.clone());
        }
    }

    /// There may be a place at every pool, for whoever could have none before, too.
    pub fn look_at_all(&mut self) {
        self.queues.values().for_each(|queue| queue.cell.waiting.has_room());
        self.due.extend(self.queues.keys().cloned());
    }

    /// Another worker has found that one of ours may come first.
    pub fn look_at_ours(&mut self) {
        self.due.extend(self.queues.keys().cloned());
    }

    /// Whether there is a pool to look at.
    pub fn are_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Who waits at a pool, oldest first; `choosy`: only those whom a backend has failed.
    fn of(&self, pool: &PoolName, choosy: bool) -> impl Iterator<Item = (u64, usize)> {
        let queue = self.queues.get(pool).into_iter();
        queue.flat_map(move |queue| if choosy { &queue.choosy } else { &queue.waiting }).copied()
    }

    /// Everybody, pool by pool, oldest first.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        self.queues.values().flat_map(|queue| queue.waiting.iter().map(|(_, key)| *key))
    }
}

/// What the free places of a pool are to one who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prospect {
    /// It can have one.
    Served,
    /// None is for it.
    Waits,
    /// Every backend has failed it: there is nothing to wait for.
    Lost,
}

/// Where there are places now.
struct Free<'a>(Vec<&'a Arc<BackendCell>>);

impl<'a> Free<'a> {
    fn of(pool: &'a Pool) -> Self {
        let eligible = pool.eligible.iter().map(|&i| &pool.backends[usize::from(i)]);
        Self(eligible.filter(|b| b.cell.live.room(b.max_connections) > 0).map(|b| &b.cell).collect())
    }

    /// Costs no more than there are backends that have failed it.
    fn prospect(&self, tried: &[Arc<BackendCell>], pool: &Pool) -> Prospect {
        if tried.is_empty() {
            return if self.0.is_empty() { Prospect::Waits } else { Prospect::Served };
        }
        let tried = Tried::new(tried);
        if self.0.iter().take(tried.count() + 1).any(|cell| !tried.has(cell)) {
            return Prospect::Served;
        }
        let lost = || pool.eligible.iter().all(|&i| tried.has(&pool.backends[usize::from(i)].cell));
        let may_be = !pool.eligible.is_empty() && pool.eligible.len() <= tried.count();
        if may_be && lost() { Prospect::Lost } else { Prospect::Waits }
    }
}

impl Worker {
    /// Has a session wait, unless as many do already. It may still come where there are free places, for those are taken as soon as
    /// their turn has come.
    pub(super) fn enqueue(&mut self, key: usize, most: u32, timeout: Duration) {
        if self.is_abandoned(key) {
            return self.end(key, Cause::Client, Phase::Queue);
        }
        let pool = self.snapshot.pool(&self.sessions[key].pool.name).cloned();
        let session = &mut self.sessions[key];
        let join =
            |most: u32| session.pool.queued.fetch_update(SeqCst, SeqCst, |n| (n < most).then_some(n + 1)).is_ok();
        let free = || pool.as_deref().map_or(0, |pool| places(pool, &session.tried));
        if !join(most) && !join(most.saturating_add(free())) {
            return self.refuse(key, Refusal::QueueFull);
        }
        session.state = State::Queued;
        session.since = self.now;
        session.deadline = self.now.saturating_add(micros(timeout));
        let deadline = session.deadline;
        self.queues.add(key, session);
        self.look_by(key, deadline);
        if pool.is_some_and(|pool| spare::hold_places(&pool)) {
            self.wake_others(); // theirs are given up when they see that somebody waits
        }
    }

    /// A place at a backend has become free.
    pub(super) fn place_is_free(&mut self, backend: &BackendCell) {
        if backend.pool.queued.load(SeqCst) > 0 {
            backend.pool.waiting.has_room();
            // Given at the end of the turn: here, a row of failing dials would call itself without end.
            self.queues.look_at(&backend.pool.name);
        }
    }

    /// Gives free places to those who wait longest.
    pub(super) fn serve_queues(&mut self) {
        for name in std::mem::take(&mut self.queues.due) {
            self.serve_queue(&name);
            // Whatever changed in there has been looked at in there.
            self.queues.due.remove(&name);
        }
    }

    fn serve_queue(&mut self, name: &PoolName) {
        let mut passed = BTreeSet::new();
        loop {
            let pool = self.snapshot.pool(name).filter(|pool| is_worth_waiting(pool)).cloned();
            let Some(pool) = pool else {
                let all: Vec<usize> = self.queues.of(name, false).map(|(_, key)| key).collect();
                return all.into_iter().for_each(|key| self.place(key)); // which says why there is none
            };
            let epoch = pool.cell.waiting.epoch();
            let free = Free::of(&pool);
            let prospect = |key: usize| free.prospect(&self.sessions[key].tried, &pool);
            // Where there is no place, only those are looked for who have nothing to wait for.
            let waiting = self.queues.of(name, free.0.is_empty()).filter(|(_, key)| !passed.contains(key));
            let mine = waiting.map(|(since, key)| (since, key, prospect(key))).find(|(.., p)| *p != Prospect::Waits);
            let others = pool.cell.waiting.first_of_others(self.index);
            match mine {
                Some((since, key, prospect))
                    if prospect == Prospect::Lost || others.is_none_or(|(other, _)| since <= other) =>
                {
                    self.place(key);
                    if self.sessions[key].state == State::Queued {
                        passed.insert(key); // another worker was quicker
                    }
                }
                _ if free.0.is_empty() => return,
                mine => {
                    pool.cell.waiting.pass(self.index, epoch, mine.map(|(since, ..)| since));
                    if let Some((_, worker)) = others {
                        self.wake(worker);
                    }
                    return;
                }
            }
        }
    }

    /// Whether the client of a session that waits has closed, and has sent nothing before; with `abort_on_close`, whatever it has sent.
    pub(super) fn is_abandoned(&self, key: usize) -> bool {
        let session = &self.sessions[key];
        if !session.client.fin {
            return false;
        }
        let always = self.snapshot.pool(&session.pool.name).is_some_and(|pool| pool.abort_on_close);
        always || (session.up.bytes == 0 && socket::has_ended(&session.client.fd))
    }
}

/// Takes a session out of its pool's queue, whatever becomes of it.
pub(super) fn leave_queue(queues: &mut Queues, session: &mut Session, key: usize) {
    session.state = State::Pausing;
    session.pool.queued.fetch_sub(1, SeqCst);
    queues.remove(key, session);
}

/// Whether there may be a place some time.
fn is_worth_waiting(pool: &Pool) -> bool {
    if pool.eligible.is_empty() {
        return pool.awaits_verdict && pool.queue.is_some();
    }
    pool.queue.is_some() || spare::hold_places(pool) || !Free::of(pool).0.is_empty()
}

/// How many places there are for a session that these backends have failed.
fn places(pool: &Pool, tried: &[Arc<BackendCell>]) -> u32 {
    let tried = Tried::new(tried);
    let eligible = pool.eligible.iter().map(|&i| &pool.backends[usize::from(i)]).filter(|b| !tried.has(&b.cell));
    eligible.fold(0, |places: u32, b| places.saturating_add(b.cell.live.room(b.max_connections)))
}
