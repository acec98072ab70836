//! A real worker on a thread, with doors, clients and backends on real sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::testing::snapshot;
use super::{Command, Limits, Line, Outcome, Sessions, Setup, Worker, bind, line};
use crate::snapshot::{Publisher, Revision, Snapshot, publish_first};
use crate::words::Address;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A worker that serves, and what it is told by.
pub(super) struct Rig {
    line: Line,
    limits: Arc<Limits>,
    pub(super) snapshot: Arc<Snapshot>,
    _publisher: Publisher,
    outcomes: mpsc::Receiver<Outcome>,
    acknowledged: Arc<Notify>,
    thread: Option<JoinHandle<Worker>>,
    door: Address,
    told: u64,
}

impl Rig {
    /// Serves clients with the backends, written as in the file.
    pub(super) fn serving(backends: &str) -> Self {
        Self::serving_with(backends, "")
    }

    /// The same with more keys of the pool.
    fn serving_with(backends: &str, keys: &str) -> Self {
        let pools = format!("pools: {{ web: {{ backends: {{ {backends} }}, {keys} }} }}\n");
        let bound = bind("127.0.0.1:0".parse().unwrap(), 1, &[]).unwrap();
        let file = format!("listeners: {{ web: {{ bind: {}, pool: web }} }}\n{pools}", bound.address);
        let (snapshot, _) = snapshot(&file, 1);
        let (publisher, reader) = publish_first(Snapshot::empty());
        publisher.publish(Arc::clone(&snapshot));
        let (line, inbox) = line().unwrap();
        let (outcome_sender, outcomes) = mpsc::channel(16);
        let (limits, acknowledged) = (Arc::new(Limits::new(1000, 1 << 20)), Arc::new(Notify::new()));
        let setup = Setup {
            index: 0,
            inbox,
            reader,
            limits: Arc::clone(&limits),
            outcomes: outcome_sender,
            acknowledged: Arc::clone(&acknowledged),
            others: Vec::new(),
        };
        let worker = Worker::new(setup).unwrap();
        let (door, sockets) = (bound.address, bound.sockets);
        let mut rig =
            Self { line, limits, snapshot, _publisher: publisher, outcomes, acknowledged, thread: None, door, told: 0 };
        rig.run(worker);
        for socket in sockets {
            let listen = vec![(rig.door.clone(), socket)];
            rig.line.tell(Command::Change { listen, release: vec![], revision: Revision(0) }).unwrap();
        }
        rig
    }

    pub(super) fn run(&mut self, mut worker: Worker) {
        self.thread = Some(thread::spawn(move || {
            worker.run();
            worker
        }));
    }

    pub(super) fn park(&mut self) -> Worker {
        self.line.tell(Command::Park).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until everything told so far is done.
    fn settle(&mut self) {
        self.told += 1;
        let revision = Revision(self.told);
        self.line.tell(Command::Change { listen: vec![], release: vec![], revision }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let done = async {
            while self.line.acknowledged() < revision {
                self.acknowledged.notified().await;
            }
        };
        runtime.block_on(async { tokio::time::timeout(PATIENCE, done).await }).expect("the worker acknowledges");
    }

    pub(super) fn client(&self) -> TcpStream {
        let Address::Ip(ip) = self.door else { unreachable!() };
        let client = TcpStream::connect(ip).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Live sessions: of the listener, of all backends, of the process.
    pub(super) fn live(&self) -> (u32, u32, u32) {
        let backends = self.snapshot.pools[0].backends.iter().map(|b| b.cell.live.count()).sum();
        (self.snapshot.listeners[0].cell.live.count(), backends, self.limits.sessions.count())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.thread.is_some() && !thread::panicking() {
            self.park();
        }
    }
}

/// A server that says everything again, to whoever comes.
pub(super) fn echo_server() -> SocketAddr {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = door.local_addr().unwrap();
    thread::spawn(move || {
        for client in door.incoming() {
            let client = client.unwrap();
            thread::spawn(move || {
                let _ = std::io::copy(&mut &client, &mut &client);
                let _ = client.shutdown(Shutdown::Write);
            });
        }
    });
    at
}

/// Addresses at which nobody listens, kept from others.
fn nobody<const N: usize>() -> ([SocketAddr; N], [socket2::Socket; N]) {
    let kept = [(); N].map(|()| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket
    });
    (std::array::from_fn(|i| kept[i].local_addr().unwrap().as_socket().unwrap()), kept)
}

pub(super) fn say(client: &mut TcpStream, text: &[u8]) {
    client.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

pub(super) fn say_goodbye(mut client: TcpStream) {
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap(), 0);
}

#[test]
fn clients_are_served_and_every_place_is_given_back() {
    let mut rig = Rig::serving(&format!("a: {}, b: {}", echo_server(), echo_server()));
    let mut clients: Vec<_> = (0..10).map(|_| rig.client()).collect();
    clients.iter_mut().for_each(|client| say(client, b"hello"));
    assert_eq!(rig.live(), (10, 10, 10));
    let shares: Vec<u32> = rig.snapshot.pools[0].backends.iter().map(|b| b.cell.live.count()).collect();
    assert_eq!(shares, [5, 5]);
    clients.into_iter().for_each(say_goodbye);
    rig.settle();
    assert_eq!(rig.live(), (0, 0, 0));
    let shard = &rig.snapshot.listeners[0].cell.shards[0];
    assert_eq!((shard.accepted.read(), shard.bytes_in.read(), shard.bytes_out.read()), (10, 50, 50));
}

/// The law "a session can be handed over": what is alive when `run` returns goes on when it is called again.
#[test]
fn a_parked_worker_goes_on_with_every_session_on_another_thread() {
    let mut rig = Rig::serving(&format!("a: {}", echo_server()));
    let (mut idle, mut half_closed, mut stalled) = (rig.client(), rig.client(), rig.client());
    say(&mut idle, b"before");
    say(&mut half_closed, b"before");
    // More than the buffers on the way take: what is said again waits for its reader, in part with the worker.
    let text: Vec<u8> = (0..32 << 20).map(|i: u32| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let (mut writer, written) = (stalled.try_clone().unwrap(), text.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut first = [0; 1000];
    stalled.read_exact(&mut first).unwrap();

    let parked = rig.park();
    assert_eq!(rig.live(), (3, 3, 3));
    idle.write_all(b"asleep").unwrap(); // epoll tells of it later
    half_closed.shutdown(Shutdown::Write).unwrap();
    let mut waiting = rig.client(); // in the kernel's queue
    rig.run(parked);

    let mut back = [0; 6];
    idle.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"asleep");
    say(&mut idle, b"awake");
    say(&mut waiting, b"hello");
    assert_eq!(half_closed.read(&mut [0; 9]).unwrap(), 0);
    let mut all = first.to_vec();
    stalled.read_to_end(&mut all).unwrap();
    assert!(all == text, "{} of {} bytes", all.len(), text.len());
    writing.join().unwrap();
    say_goodbye(idle);
    say_goodbye(waiting);
    rig.settle();
    assert_eq!((rig.live(), rig.limits.memory.held()), ((0, 0, 0), 0));
}

#[test]
fn a_parked_workers_spares_are_there_when_it_goes_on() {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut rig = Rig::serving_with(&format!("a: {}", door.local_addr().unwrap()), "spare_connections: 1");
    let mut spare = door.accept().unwrap().0;
    rig.settle();
    let parked = rig.park();
    let cell = Arc::clone(&rig.snapshot.pools[0].backends[0].cell);
    assert_eq!((cell.live.spares(), rig.live()), (1, (0, 0, 0)));
    spare.write_all(b"welcome").unwrap();
    rig.run(parked);
    let mut said = [0; 7];
    rig.client().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"welcome");
}

#[test]
fn a_dead_backend_costs_a_retry_and_only_dead_ones_cost_the_client() {
    let ([a, b, c], _kept) = nobody();
    let mut rig = Rig::serving(&format!("a: {a}, b: {}", echo_server()));
    for _ in 0..4 {
        let mut client = rig.client();
        say(&mut client, b"hello");
        say_goodbye(client);
    }
    rig.settle();
    let shard = &rig.snapshot.pools[0].backends[0].cell.shards[0];
    assert_eq!((shard.connect_errors.read(), shard.retries.read()), (2, 2), "half of the clients came to it first");
    assert!(matches!(rig.outcomes.try_recv(), Ok(Outcome::DialFailed(cell)) if cell.reference.backend.as_str() == "a"));

    let rig = Rig::serving(&format!("a: {a}, b: {b}, c: {c}"));
    let refused = rig.client().read(&mut [0]).map_err(|e| e.kind());
    assert_eq!(refused, Err(ErrorKind::ConnectionReset), "an end would look like an empty answer");
}

/// A client that reads slowly, and whom most of what its backend said still lies before in the kernel.
fn slow_client(rig: &Rig) -> TcpStream {
    let Address::Ip(ip) = rig.door else { unreachable!() };
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    client.connect(&ip.into()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.into()
}

#[test]
fn what_a_backend_said_before_its_reset_is_not_taken_back_from_the_kernel() {
    for fin in [true, false] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut rig = Rig::serving(&format!("a: {}", door.local_addr().unwrap()));
        let mut client = slow_client(&rig);
        let mut server = door.accept().unwrap().0;
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0]).unwrap();
        server.write_all(&[7; 60_000]).unwrap();
        let bytes_out = || rig.snapshot.listeners[0].cell.shards[0].bytes_out.read();
        while bytes_out() < 60_000 {
            thread::yield_now();
        }
        if fin {
            server.shutdown(Shutdown::Write).unwrap();
        }
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let (mut got, mut buffer) = (0, [0; 4096]);
        let end = loop {
            match client.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => got += n,
                Err(e) => break Some(e.kind()),
            }
        };
        assert_eq!((got, end), (60_000, (!fin).then_some(ErrorKind::ConnectionReset)));
        drop(client);
        rig.settle();
    }
}

#[test]
fn a_released_door_serves_who_came_before_and_its_sessions_go_on() {
    let mut rig = Rig::serving(&format!("a: {}", echo_server()));
    let mut before = rig.client();
    say(&mut before, b"hello");
    let parked = rig.park();
    let mut waiting = rig.client();
    let release = vec![(rig.door.clone(), super::Unaccepted::Accept)];
    rig.line.tell(Command::Change { listen: vec![], release, revision: Revision(0) }).unwrap();
    rig.run(parked);
    rig.settle();
    let Address::Ip(ip) = rig.door else { unreachable!() };
    assert_eq!(TcpStream::connect(ip).map_err(|e| e.kind()).err(), Some(ErrorKind::ConnectionRefused));
    say(&mut before, b"still here");
    say(&mut waiting, b"and so am I");
}

#[test]
fn who_is_cut_sees_a_reset_and_others_see_nothing() {
    let mut rig = Rig::serving(&format!("a: {}, b: {}", echo_server(), echo_server()));
    let (mut one, mut two) = (rig.client(), rig.client());
    say(&mut one, b"hello");
    say(&mut two, b"hello");
    let backend = Arc::clone(&rig.snapshot.pools[0].backends[0].cell);
    rig.line.tell(Command::Cut(Sessions::Of(Arc::clone(&backend)))).unwrap();
    rig.settle();
    assert_eq!((backend.live.count(), rig.live()), (0, (1, 1, 1)));
    let cut = one.read(&mut [0]).map_err(|e| e.kind());
    assert_eq!(cut, Err(ErrorKind::ConnectionReset));
    say(&mut two, b"still here");
}

/// Another holder of the socket may end it at any time, and epoll then tells of it for ever.
#[test]
fn a_listening_socket_that_another_holder_ends_is_closed_and_told_of_and_another_takes_its_place() {
    let mut rig = Rig::serving("a: 127.0.0.1:9");
    let Address::Ip(at) = rig.door else { unreachable!() };
    let mut bound = bind(at, 2, std::slice::from_ref(&rig.door)).unwrap().sockets;
    let (spare, socket) = (bound.pop().unwrap(), bound.pop().unwrap());
    drop(spare);
    let ours = socket.try_clone().unwrap();
    rig.line
        .tell(Command::Change { listen: vec![(rig.door.clone(), socket)], release: vec![], revision: Revision(0) })
        .unwrap();
    rig.settle();
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&ours), nix::sys::socket::Shutdown::Read).unwrap();
    let Some(Outcome::Ended { worker: 0, address }) = rig.outcomes.blocking_recv() else { panic!("it is told") };
    assert_eq!(address, rig.door);
    rig.settle();
    let worker = rig.park();
    assert_eq!(worker.doors.len(), 1, "the living one");
    assert!(rig.outcomes.try_recv().is_err(), "told once");
}
