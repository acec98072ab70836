//! Several real workers with one door, and the hand-over of all they have.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::eventfd::EventFd;
use tokio::sync::{Notify, mpsc};

use crate::config::Config;
use crate::proxy::carry::{Assembled, CarriedWorker, Meanwhile, ONCE, Roster, Written, recall, share_out};
use crate::proxy::tests::PATIENCE;
use crate::proxy::{Command, Limits, Line, Outcome, Setup, Worker, bind, line};
use crate::snapshot::{BackendFacts, Cells, Publisher, Revision, Snapshot, build, publish_first};
use crate::words::{Address, AdminState, Generation, Health};

/// Workers that serve by a file of one listener, `web`.
pub struct Fleet {
    pub file: String,
    pub around: Around,
    threads: Vec<JoinHandle<Worker>>,
    door: Address,
}

/// What a process makes anew around its workers.
pub struct Around {
    pub cells: Cells,
    pub snapshot: Arc<Snapshot>,
    pub limits: Arc<Limits>,
    pub lines: Vec<Line>,
    _publisher: Publisher,
    _outcomes: mpsc::Receiver<Outcome>,
}

/// Workers that own nothing yet.
pub struct Successor {
    pub around: Around,
    pub assembled: Vec<Assembled>,
}

/// All that is counted of what is alive: of the process, the listener, each backend with its spares; waiting; bytes held.
#[derive(Debug, PartialEq, Eq)]
pub struct Alive {
    pub process: u32,
    pub listener: u32,
    pub backends: Vec<(String, u32, u32)>,
    pub waiting: u32,
    pub tickets: u64,
    pub held: bool,
}

impl Around {
    fn of(file: &str, workers: usize, carried: &[CarriedWorker]) -> (Self, Vec<Setup>) {
        let config = Config::parse(file.as_bytes()).unwrap();
        let mut cells = Cells::new(workers);
        recall(carried, &mut cells);
        cells.settle(&config, 7);
        let facts = |_: &_| BackendFacts { health: Health::Unchecked, admin: AdminState::Enabled };
        let snapshot = Arc::new(build((Generation(1), Revision(1)), &config, &cells, facts, None));
        let (publisher, reader) = publish_first(Snapshot::empty());
        publisher.publish(Arc::clone(&snapshot));
        let (outcome_sender, outcomes) = mpsc::channel(16);
        let (limits, acknowledged) = (Arc::new(Limits::new(1000, 1 << 22)), Arc::new(Notify::new()));
        let ends: Vec<_> = (0..workers).map(|_| line().unwrap()).collect();
        let wakers: Vec<_> = ends.iter().map(|(line, _)| line.waker()).collect();
        let (lines, inboxes): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        let setups = inboxes.into_iter().enumerate().map(|(index, inbox)| Setup {
            index,
            inbox,
            reader: reader.clone(),
            limits: Arc::clone(&limits),
            outcomes: outcome_sender.clone(),
            acknowledged: Arc::clone(&acknowledged),
            others: wakers.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, w)| Arc::clone(w)).collect(),
        });
        let setups = setups.collect();
        (Self { cells, snapshot, limits, lines, _publisher: publisher, _outcomes: outcomes }, setups)
    }

    pub fn alive(&self) -> Alive {
        let pool = &self.snapshot.pools[0].cell;
        let backends = self.cells.backends().map(|b| (b.reference.to_string(), b.live.count(), b.live.spares()));
        Alive {
            process: self.limits.sessions.count(),
            listener: self.cells.listeners().map(|cell| cell.live.count()).sum(),
            backends: backends.collect(),
            waiting: pool.queued.load(SeqCst),
            tickets: pool.ticket.load(SeqCst),
            held: self.limits.memory.held() > 0,
        }
    }
}

impl Fleet {
    pub fn serving(workers: usize, backends: &str, keys: &str) -> Self {
        Self::of(workers, "", &format!("pools: {{ web: {{ backends: {{ {backends} }}, {keys} }} }}\n"))
    }

    /// With keys of the listener, and the rest of the file.
    pub fn of(workers: usize, listener: &str, rest: &str) -> Self {
        let bound = bind("127.0.0.1:0".parse().unwrap(), workers, &[]).unwrap();
        let file = format!("listeners: {{ web: {{ bind: {}, pool: web, {listener} }} }}\n{rest}", bound.address);
        let (around, setups) = Around::of(&file, workers, &[]);
        let mut fleet = Self { file, around, threads: Vec::new(), door: bound.address };
        fleet.run(setups.into_iter().map(|setup| Worker::new(setup).unwrap()).collect());
        for (line, socket) in fleet.around.lines.iter().zip(bound.sockets) {
            let listen = vec![(fleet.door.clone(), socket)];
            line.tell(Command::Change { listen, release: vec![], revision: Revision(1) }).unwrap();
        }
        fleet
    }

    pub fn run(&mut self, workers: Vec<Worker>) {
        self.threads = workers
            .into_iter()
            .map(|mut worker| {
                thread::spawn(move || {
                    worker.run();
                    worker
                })
            })
            .collect();
    }

    pub fn park(&mut self) -> Vec<Worker> {
        self.around.lines.iter().for_each(|line| line.tell(Command::Park).unwrap());
        self.threads.drain(..).map(|thread| thread.join().unwrap()).collect()
    }

    /// What another program makes of the bytes.
    pub fn assemble(file: &str, carried: Vec<CarriedWorker>, count: usize) -> Successor {
        let carried = share_out(carried, count).unwrap();
        let (around, setups) = Around::of(file, count, &carried);
        let assembled = setups.into_iter().zip(carried).map(|(setup, it)| {
            let cells = it.names.cells(&around.cells);
            Worker::assemble(setup, it, &cells, ONCE).unwrap()
        });
        let assembled = assembled.collect();
        Successor { around, assembled }
    }

    /// Hands all over to so many workers.
    pub fn hand_over(&mut self, count: usize) {
        self.hand_over_while(count, || {});
    }

    /// The same; something happens while a stand-in serves. Returns what that one tells.
    pub fn hand_over_while(&mut self, count: usize, meanwhile: impl FnOnce()) -> Vec<Meanwhile> {
        let parked = self.park();
        let carried = through_bytes(&parked);
        let standing_in = StandingIn::begin(parked);
        meanwhile();
        let Successor { around, mut assembled } = Self::assemble(&self.file, carried, count);
        let mut roster = Roster::of_assembled(&mut assembled);
        let (parked, told) = standing_in.end();
        let before = self.around.alive();
        parked.into_iter().for_each(part_with);
        assert_eq!(roster.catch_up(told.clone(), &|why| panic!("{why}")), 0);
        assert_eq!(around.alive(), before);
        self.around = around; // the former inboxes close, as an exec closes them
        self.run(assembled.into_iter().map(Assembled::commit).collect());
        told
    }

    pub fn ip(&self) -> SocketAddr {
        let Address::Ip(ip) = self.door else { unreachable!() };
        ip
    }

    pub fn client(&self) -> TcpStream {
        connect(self.ip())
    }

    /// Waits for what a thread brings about.
    pub fn until(&self, what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; {:?}", self.around.alive());
            thread::yield_now();
        }
    }

    pub fn until_alive(&self, what: &str, so: impl Fn(&Alive) -> bool) {
        self.until(what, || so(&self.around.alive()));
    }

    pub fn until_nobody_is_left(&self) {
        self.until_alive("every place is given back", |alive| {
            alive.process == 0 && alive.listener == 0 && !alive.held && alive.backends.iter().all(|b| b.1 == 0)
        });
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.park();
        }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Workers that stand in; each in a process of its own, but for tests.
pub struct StandingIn {
    over: Arc<AtomicBool>,
    wakers: Vec<Arc<EventFd>>,
    epolls: Vec<OwnedFd>,
    threads: Vec<JoinHandle<(Worker, Meanwhile)>>,
}

impl StandingIn {
    pub fn begin(workers: Vec<Worker>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let wakers = workers.iter().map(Worker::waker).collect();
        let epolls = workers.iter().map(|worker| worker.epoll.0.try_clone().unwrap()).collect();
        let threads = workers.into_iter().map(|mut worker| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let told = worker.stand_in(&over);
                (worker, told)
            })
        });
        Self { threads: threads.collect(), over, wakers, epolls }
    }

    /// Waits until all that has come was heard.
    pub fn until_heard(&self) {
        let begun = Instant::now();
        let untold = |epoll: &OwnedFd| poll(&mut [PollFd::new(epoll.as_fd(), PollFlags::POLLIN)], 0u8).unwrap() > 0;
        while self.epolls.iter().any(untold) {
            assert!(begun.elapsed() < PATIENCE);
            thread::yield_now();
        }
    }

    /// The workers, and what they tell as it is read.
    pub fn end(self) -> (Vec<Worker>, Vec<Meanwhile>) {
        self.over.store(true, SeqCst);
        self.wakers.iter().for_each(|waker| assert_eq!(waker.write(1), Ok(8)));
        let ended = self.threads.into_iter().map(|thread| {
            let (worker, told) = thread.join().unwrap();
            (worker, Meanwhile::read(&told.write().unwrap()).unwrap())
        });
        ended.unzip()
    }
}

/// What the next program reads.
pub fn through_bytes(workers: &[Worker]) -> Vec<CarriedWorker> {
    let written = workers.iter().map(|worker| worker.write().unwrap());
    written.map(|Written { head, sessions }| CarriedWorker::read(&head, sessions).unwrap()).collect()
}

/// What an exec does to a worker whose descriptors stay open.
pub fn part_with(mut worker: Worker) {
    let sessions = worker.sessions.drain().flat_map(|session| [Some(session.client), session.server]);
    let mut kept: Vec<_> = sessions.flatten().map(|end| end.fd).collect();
    kept.extend(worker.spares.drain().map(|spare| spare.fd));
    kept.extend(worker.doors.drain().map(|door| door.socket));
    kept.append(&mut worker.retired);
    for fd in kept {
        let _ = fd.into_raw_fd();
    }
    let _ = worker.epoll.0.into_raw_fd();
}
