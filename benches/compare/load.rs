//! The clients: one thread, one epoll loop, any number of sessions, each byte that comes back compared with the one that
//! is due. All sessions are opened and have had one exchange before anything is measured. The client closes first.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use crate::backends::{ANSWER, Kind, REQUEST};
use crate::pattern::{CHUNK, Pattern, place_of, place_of_answer};

/// What each session does, over and over.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub kind: Kind,
    /// Bytes; those of `Answer` are given.
    pub request: u64,
    pub connection: Connection,
}

/// How long a connection is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connection {
    Kept,
    /// Each request has its own.
    OneRequest,
}

/// What has happened since the load was opened.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Exchanges that were right from the first byte to the last.
    pub requests: u64,
    /// Bytes that came and were right.
    pub received: u64,
    pub wrong: u64,
    /// Connections that ended otherwise than by the client.
    pub broken: u64,
    /// Connects for which the client had no local port (EADDRNOTAVAIL).
    pub no_address: u64,
}

/// How many sessions are opened at a time: less than any backlog.
const WINDOW: usize = 64;

struct Session {
    stream: TcpStream,
    connected: bool,
    waits_to_write: bool,
    out: u64,
    to_write: u64,
    due: u64,
    to_read: u64,
}

pub struct Load {
    work: Work,
    targets: Vec<SocketAddr>,
    epoll: Epoll,
    sessions: Vec<Option<Session>>,
    /// Sessions that have had their exchange and wait for the start.
    parked: Vec<usize>,
    /// Sessions whose connection broke or could not be made.
    lost: Vec<usize>,
    opened: usize,
    runs: bool,
    next_target: usize,
    buffer: Vec<u8>,
    pattern: Pattern,
    pub tally: Tally,
}

impl Load {
    /// Opens the sessions and takes each through one exchange. An error if that takes longer than `limit`.
    pub fn open(work: Work, count: usize, targets: &[SocketAddr], limit: Duration) -> io::Result<Self> {
        let mut load = Self {
            work,
            targets: targets.to_vec(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sessions: (0..count).map(|_| None).collect(),
            parked: Vec::new(),
            lost: Vec::new(),
            opened: 0,
            runs: false,
            next_target: 0,
            buffer: vec![0; CHUNK],
            pattern: Pattern::new(),
            tally: Tally::default(),
        };
        let end = Instant::now() + limit;
        let mut begun = 0;
        while load.opened < count {
            while begun < count && begun < load.opened + WINDOW {
                load.connect(begun);
                begun += 1;
            }
            load.turn();
            if Instant::now() > end {
                let Tally { wrong, broken, no_address, .. } = load.tally;
                let text = format!(
                    "{} of {count} sessions were served within {limit:?}; {broken} broke, {wrong} were wrong, \
                     {no_address} had no local port",
                    load.opened
                );
                return Err(Error::other(text));
            }
        }
        Ok(load)
    }

    /// Goes on for this long. What is in flight at the end stays so.
    pub fn drive(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.runs = true;
        for index in std::mem::take(&mut self.parked) {
            match self.work.connection {
                Connection::Kept => self.ask(index),
                Connection::OneRequest => self.connect(index),
            }
        }
        while Instant::now() < end {
            self.turn();
        }
    }

    fn turn(&mut self) {
        for index in std::mem::take(&mut self.lost) {
            self.connect(index);
        }
        let mut events = [EpollEvent::empty(); 256];
        let count = self.epoll.wait(&mut events, EpollTimeout::from(20_u8)).unwrap_or(0);
        for event in &events[..count] {
            self.serve(event.data() as usize, event.events());
        }
    }

    fn endless(&self) -> bool {
        matches!(self.work.kind, Kind::Source | Kind::Sink)
    }

    fn connect(&mut self, index: usize) {
        self.sessions[index] = None;
        let target = self.targets[self.next_target % self.targets.len()];
        self.next_target += 1;
        let begin = || {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            match socket.connect(&target.into()) {
                Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => return Err(error),
                _ => {}
            }
            let stream = TcpStream::from(socket);
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT, index as u64))?;
            Ok(stream)
        };
        match begin() {
            Ok(stream) => {
                let (to_write, to_read) = match self.work.kind {
                    Kind::Source => (0, u64::MAX),
                    Kind::Sink => (u64::MAX, 0),
                    Kind::Echo | Kind::Answer => (0, 0),
                };
                let place = if self.endless() { 0 } else { place_of(index) + self.tally.requests };
                self.sessions[index] = Some(Session {
                    stream,
                    connected: false,
                    waits_to_write: true,
                    out: place,
                    to_write,
                    due: place,
                    to_read,
                });
            }
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                self.tally.no_address += 1;
                self.lost.push(index);
            }
            Err(_) => self.lose(index),
        }
    }

    fn lose(&mut self, index: usize) {
        self.tally.broken += 1;
        self.sessions[index] = None;
        self.lost.push(index);
    }

    /// Begins the next exchange of a connected session.
    fn ask(&mut self, index: usize) {
        let Some(session) = &mut self.sessions[index] else { return };
        if self.work.kind == Kind::Answer {
            (session.to_write, session.to_read) = (REQUEST as u64, ANSWER as u64);
            session.due = place_of_answer(self.pattern.at(session.out, REQUEST));
        } else {
            (session.to_write, session.to_read) = (self.work.request, self.work.request);
        }
        if self.write(index).is_err() {
            self.lose(index);
        }
    }

    fn serve(&mut self, index: usize, events: EpollFlags) {
        let Some(session) = &mut self.sessions[index] else { return };
        if !session.connected {
            if !matches!(session.stream.take_error(), Ok(None)) {
                return self.lose(index);
            }
            session.connected = true;
            if self.endless() {
                self.opened += 1;
            } else {
                return self.ask(index);
            }
        }
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let read = if events.intersects(readable) { self.read(index) } else { Ok(()) };
        let has_more = |s: &Session| s.to_write > 0 && events.contains(EpollFlags::EPOLLOUT);
        let written = match &self.sessions[index] {
            Some(session) if read.is_ok() && has_more(session) => self.write(index),
            _ => Ok(()),
        };
        if read.is_err() || written.is_err() {
            self.lose(index);
        }
    }

    fn read(&mut self, index: usize) -> io::Result<()> {
        let Some(session) = &mut self.sessions[index] else { return Ok(()) };
        // Of who owes nothing, one byte is read: that is the end of the connection, or one too many.
        let most = session.to_read.clamp(1, CHUNK as u64) as usize;
        let count = match session.stream.read(&mut self.buffer[..most]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if session.to_read == 0 || self.buffer[..count] != *self.pattern.at(session.due, count) {
            self.tally.wrong += 1;
            return Err(ErrorKind::InvalidData.into());
        }
        session.due += count as u64;
        session.to_read -= count as u64;
        self.tally.received += count as u64;
        if session.to_read == 0 && session.to_write == 0 {
            self.exchanged(index);
        }
        Ok(())
    }

    fn exchanged(&mut self, index: usize) {
        self.tally.requests += 1;
        if self.work.connection == Connection::OneRequest {
            self.sessions[index] = None;
        }
        match (self.runs, self.work.connection) {
            (true, Connection::Kept) => self.ask(index),
            (true, Connection::OneRequest) => self.connect(index),
            (false, _) => {
                self.opened += 1;
                self.parked.push(index);
            }
        }
    }

    fn write(&mut self, index: usize) -> io::Result<()> {
        let Some(session) = &mut self.sessions[index] else { return Ok(()) };
        let most = session.to_write.min(CHUNK as u64) as usize;
        match session.stream.write(self.pattern.at(session.out, most)) {
            Ok(count) => {
                session.out += count as u64;
                session.to_write -= count as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let waits = session.to_write > 0;
        if waits != session.waits_to_write {
            session.waits_to_write = waits;
            let interest = if waits { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            self.epoll.modify(&session.stream, &mut EpollEvent::new(interest, index as u64))?;
        }
        Ok(())
    }
}

/// Times of single requests in ns, sorted: one session, one request at a time, a pause between them.
pub fn latencies(target: SocketAddr, time: Duration, pause: Duration) -> io::Result<Vec<u64>> {
    let pattern = Pattern::new();
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut times, mut place, mut answer) = (Vec::new(), place_of(0), [0; REQUEST]);
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(pause);
        let asked = Instant::now();
        stream.write_all(pattern.at(place, REQUEST))?;
        stream.read_exact(&mut answer)?;
        times.push(asked.elapsed().as_nanos() as u64);
        if answer != *pattern.at(place, REQUEST) {
            return Err(Error::other("an answer was wrong"));
        }
        place += REQUEST as u64;
    }
    // The first has opened the proxy's connection to the backend.
    times.remove(0);
    times.sort_unstable();
    Ok(times)
}
