//! Between two programs: a worker in a process of its own moves the bytes of established sessions, and decides nothing. It closes no
//! socket, opens none and ends no session, so that who takes over knows of every one already; what became of them meanwhile is
//! told at the end, and what would have had to be decided is done then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

use super::assemble::{Assembled, Unfit, flow};
use super::picture;
use super::{CarriedEnd, CarriedFlow};
use crate::proxy::relay::End;
use crate::proxy::session::{Next, Session, State};
use crate::proxy::socket;
use crate::proxy::token::Token;
use crate::proxy::turn::count_bytes;
use crate::proxy::worker::{EVENTS, REFRESH, Worker};
use crate::words::{Cause, Phase};

/// What became of a worker's sessions while another process moved their bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meanwhile {
    /// Sessions that had a turn.
    pub(super) turns: Vec<Turn>,
    /// What epoll told and nobody has acted upon: tokens and events. It tells each thing but once.
    pub(super) unheard: BTreeMap<u64, u32>,
}

impl Meanwhile {
    /// As it travels.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    /// As it has come.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn read(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

/// What a turn changes in a session. It is known by the descriptors of its sockets: its key may have become another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Turn {
    pub client: CarriedEnd,
    pub server: CarriedEnd,
    pub up: CarriedFlow,
    pub down: CarriedFlow,
    /// The backend has the PROXY header that it expects.
    introduced: bool,
    active: u64,
    /// It could go on.
    again: bool,
    /// What is to be done with it.
    pub due: Option<Due>,
}

/// What only a program can do that may open and close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Due {
    /// Another backend is to be tried, for this errno.
    Redial(i32),
    /// It is over, by this cause as it is spelled.
    End(String),
}

impl Due {
    fn of(next: Next) -> Option<Self> {
        match next {
            Next::Wait | Next::Again => None,
            Next::Redial(why) => Some(Self::Redial(why as i32)),
            Next::End(cause, _) => Some(Self::End(cause.as_str().to_owned())),
        }
    }

    fn next(&self) -> Result<Next, Unfit> {
        match self {
            Self::Redial(why) => Ok(Next::Redial(Errno::from_raw(*why))),
            Self::End(cause) => match Cause::from_spelling(cause) {
                Some(cause) => Ok(Next::End(cause, Phase::Data)),
                None => Err(Unfit(format!("no session ends by \"{cause}\""))),
            },
        }
    }
}

/// What a stand-in has seen so far.
#[derive(Default)]
struct Seen {
    turns: BTreeSet<usize>,
    due: BTreeMap<usize, Due>,
    unheard: BTreeMap<u64, u32>,
}

impl Worker {
    /// Moves bytes until it is over, of which the worker's waker tells. The doors are held, as of every parked worker. To be called in another process
    /// than the one that goes on with this worker; the two of them share what the kernel keeps for both, epoll included.
    pub fn stand_in(&mut self, over: &AtomicBool) -> Meanwhile {
        let (mut events, mut turn, mut seen) = ([EpollEvent::empty(); EVENTS], Vec::new(), Seen::default());
        while !over.load(SeqCst) {
            let patience = if self.again.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
            let Ok(heard) = self.hear(&mut events, patience) else { break };
            mem::swap(&mut turn, &mut self.again);
            for event in heard {
                match Token::unpack(event.data()) {
                    Token::Inbox => self.inbox.clear(),
                    Token::Door(_) => {}
                    token => self.serve(token, *event, &mut seen),
                }
            }
            for key in turn.drain(..) {
                // Of those that are not established it stays noted where it was.
                let Some(session) = self.sessions.get_mut(key).filter(|s| s.state == State::Relaying) else { continue };
                session.again = false;
                if !seen.due.contains_key(&key) {
                    self.move_bytes(key, &mut seen);
                }
            }
        }
        let turns = seen.turns.iter().filter_map(|key| turn_of(&self.sessions[*key], seen.due.get(key)));
        Meanwhile { turns: turns.collect(), unheard: seen.unheard }
    }

    /// Gives a session its turn, or notes what was told of it.
    fn serve(&mut self, token: Token, event: EpollEvent, seen: &mut Seen) {
        match self.heard_of(token, event.events()) {
            Some(key) if !seen.due.contains_key(&key) => self.move_bytes(key, seen),
            Some(_) => {} // it is noted with the session
            None => *seen.unheard.entry(event.data()).or_default() |= event.events().bits() as u32,
        }
    }

    /// The session that this is about, where it is an established one.
    fn heard_of(&mut self, token: Token, events: EpollFlags) -> Option<usize> {
        let (Token::Client(key, serial) | Token::Server(key, serial, _)) = token else { return None };
        let session = self.sessions.get_mut(key).filter(|s| s.serial == serial && s.state == State::Relaying)?;
        match token {
            Token::Server(_, _, dial) if dial == session.dial => session.server.as_mut()?.heard(events),
            Token::Client(..) => session.client.heard(events),
            _ => return None,
        }
        Some(key)
    }

    fn move_bytes(&mut self, key: usize, seen: &mut Seen) {
        let session = &mut self.sessions[key];
        let next = session.relay(&mut self.scratch, &self.limits.memory, self.now);
        seen.turns.insert(key);
        if next == Next::Again && !mem::replace(&mut session.again, true) {
            self.again.push(key);
        }
        if let (Next::End(Cause::Normal, _), Some(server)) = (next, &session.server) {
            // The close that follows will tell this to whoever has not been told; but that may take a while.
            socket::finish_writing(&session.client.fd);
            socket::finish_writing(&server.fd);
        }
        seen.due.extend(Due::of(next).map(|due| (key, due)));
    }

    /// Takes up what became of a session; counts what was carried of it.
    fn take_turn(&mut self, key: usize, turn: Turn) -> Result<(), Unfit> {
        let Turn { client, server, up, down, introduced, active, again, due } = turn;
        let (session, memory) = (&mut self.sessions[key], &self.limits.memory);
        let moved = (up.bytes.checked_sub(session.up.bytes), down.bytes.checked_sub(session.down.bytes));
        up.check(key)?;
        down.check(key)?;
        if session.state != State::Relaying {
            return Err(Unfit(format!("session {key} has had a turn and is {:?}", session.state)));
        }
        let (Some(carried_up), Some(carried_down)) = moved else {
            return Err(Unfit(format!("session {key} has carried less after a turn than before it")));
        };
        let Some(end) = session.server.as_mut().filter(|end| end.fd.as_raw_fd() == server.fd) else {
            return Err(Unfit(format!("session {key} has had a turn with another server")));
        };
        end.take(&server);
        session.client.take(&client);
        session.up.drop_rest(memory);
        session.down.drop_rest(memory);
        (session.up, session.down) = (flow(up, memory), flow(down, memory));
        if introduced {
            session.send_proxy = None;
        }
        session.active = active;
        session.has_moved();
        count_bytes(session, self.index, carried_up, carried_down);
        if mem::replace(&mut session.again, again) != again {
            if again { self.again.push(key) } else { self.again.retain(|k| *k != key) }
        }
        if let Some(due) = due {
            self.due.push((key, due.next()?));
        }
        self.look_by(key, self.now + REFRESH); // it may be half closed now
        Ok(())
    }

    /// Nobody knows which bytes of established sessions have been moved: they are over. Nor is it known what was heard of others. Returns how many are over.
    fn lose_track(&mut self) -> usize {
        let served = self.sessions.iter().filter(|(_, session)| session.state == State::Relaying);
        self.due = served.map(|(key, _)| (key, Next::End(Cause::Proxy, Phase::Data))).collect();
        self.deafened = true;
        self.due.len()
    }

    /// What became of this session is not known: it is over.
    fn cut_unclear(&mut self, key: usize) {
        self.due.retain(|(of, _)| *of != key);
        self.due.push((key, Next::End(Cause::Proxy, Phase::Data)));
    }

    /// The first thing in a turn after a pause: what could not be decided meanwhile.
    pub(in crate::proxy) fn make_up_for(&mut self) {
        for (key, next) in mem::take(&mut self.due) {
            self.follow(key, next);
        }
        if mem::take(&mut self.deafened) {
            self.hear_again();
        }
        for (token, events) in mem::take(&mut self.unheard) {
            self.heard(EpollEvent::new(EpollFlags::from_bits_truncate(events as i32), token));
        }
        self.pass_row_on();
    }
}

fn turn_of(session: &Session, due: Option<&Due>) -> Option<Turn> {
    Some(Turn {
        client: picture::end(&session.client),
        server: session.server.as_ref().map(picture::end)?,
        up: picture::flow(&session.up),
        down: picture::flow(&session.down),
        introduced: session.send_proxy.is_none(),
        active: session.active,
        again: session.again,
        due: due.cloned(),
    })
}

impl End {
    fn take(&mut self, carried: &CarriedEnd) {
        let CarriedEnd { fd: _, readable, writable, fin, broken, stream, urgent, unix: _ } = carried;
        (self.readable, self.writable, self.fin, self.broken) = (*readable, *writable, *fin, *broken);
        (self.stream, self.urgent) = (*stream, *urgent);
    }
}

/// Who goes on with sessions that had a stand-in: workers that were parked, or are assembled. Made while that one serves.
pub struct Roster<'a> {
    workers: Vec<&'a mut Worker>,
    /// Everything of them is registered anew, and what is so is told again.
    anew: bool,
    /// The worker and the key of each session, by its client's socket.
    places: HashMap<RawFd, (usize, usize)>,
}

impl<'a> Roster<'a> {
    /// Of workers that were parked.
    pub fn of_parked(workers: &'a mut [Worker]) -> Self {
        Self::of(workers.iter_mut().collect(), false)
    }

    /// Of workers that are ready.
    pub fn of_assembled(workers: &'a mut [Assembled]) -> Self {
        let anew = workers.iter().any(|worker| worker.anew);
        // Where not all are, what was told of the others is known of nobody either.
        workers.iter_mut().filter(|worker| anew && !worker.anew).for_each(|worker| worker.worker().deafened = true);
        Self::of(workers.iter_mut().map(Assembled::worker).collect(), anew)
    }

    fn of(workers: Vec<&'a mut Worker>, anew: bool) -> Self {
        let all = workers.iter().enumerate().flat_map(|(n, worker)| {
            worker.sessions.iter().map(move |(key, session)| (session.client.fd.as_raw_fd(), (n, key)))
        });
        Self { places: all.collect(), workers, anew }
    }

    /// Has them know what became of the sessions of each of the workers that had a stand-in. Where that cannot be, `else_back` is called
    /// first; if it returns, nobody knows better, and a session of which it is so is over, or all of them where it is not known of
    /// which. Returns how many are.
    pub fn catch_up(&mut self, meanwhile: Vec<Meanwhile>, else_back: &dyn Fn(String)) -> usize {
        let mut cut = 0;
        let let_go = self.workers.iter().flat_map(|worker| &worker.retired).map(AsRawFd::as_raw_fd);
        let let_go: BTreeSet<RawFd> = let_go.collect();
        for (n, Meanwhile { turns, unheard }) in meanwhile.into_iter().enumerate() {
            for turn in turns {
                let Some((worker, key)) = self.places.remove(&turn.client.fd) else {
                    if let_go.contains(&turn.client.fd) {
                        continue; // it was cut by whoever took over
                    }
                    else_back("a session has had a turn and is not there".into()); // or it has had two
                    return self.lose_track();
                };
                let worker = &mut self.workers[worker];
                if let Err(unfit) = worker.take_turn(key, turn) {
                    else_back(unfit.0);
                    worker.cut_unclear(key);
                    cut += 1;
                }
            }
            match self.workers.get_mut(n) {
                Some(worker) if !self.anew => worker.unheard.extend(unheard),
                Some(_) => {} // it is told again
                None if self.anew => {}
                None => else_back(format!("there is no worker {n}")),
            }
        }
        cut
    }

    /// The stand-in is lost, with what it knew. Returns how many sessions are over by that.
    pub fn lose_track(&mut self) -> usize {
        self.workers.iter_mut().map(|worker| worker.lose_track()).sum()
    }
}
