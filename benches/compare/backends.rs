//! The servers behind the proxies: one thread, one epoll loop, a socket a kind. Each kind has several ports, so that
//! closed connections of a proxy do not use up the local ports of one. They close when their client has closed.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::pattern::{CHUNK, Pattern, place_of_answer};

/// What a server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Sends back what it gets.
    Echo,
    /// Sends 100 KiB for each 64 bytes.
    Answer,
    /// Sends without end.
    Source,
    /// Reads and verifies without end.
    Sink,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Echo, Kind::Answer, Kind::Source, Kind::Sink];
}

pub const REQUEST: usize = 64;
pub const ANSWER: usize = 100 * 1024;
/// Ports of a kind.
pub const PORTS: usize = 4;

/// What the servers have seen.
#[derive(Default)]
pub struct Seen {
    /// By sinks, and found right.
    pub received: AtomicU64,
    /// Pieces that were not what was sent.
    pub wrong: AtomicU64,
    /// Connections now.
    pub open: AtomicU64,
}

/// The running servers; they end when this is dropped.
pub struct Backends {
    pub seen: Arc<Seen>,
    addresses: Vec<(Kind, Vec<SocketAddr>)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Backends {
    pub fn start() -> io::Result<Self> {
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for kind in Kind::ALL {
            let mut of_kind = Vec::new();
            for _ in 0..PORTS {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                listener.set_nonblocking(true)?;
                of_kind.push(listener.local_addr()?);
                listeners.push((kind, listener));
            }
            addresses.push((kind, of_kind));
        }
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let mut servers = Servers::new(listeners, seen.clone())?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("backends".into()).spawn(move || {
            while !stopped.load(Relaxed) {
                servers.turn();
            }
        })?;
        Ok(Self { seen, addresses, stop, thread: Some(thread) })
    }

    pub fn of(&self, kind: Kind) -> &[SocketAddr] {
        self.addresses.iter().find(|(k, _)| *k == kind).map_or(&[], |(_, addresses)| addresses)
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    kind: Kind,
    stream: TcpStream,
    /// Echo: what could not be written yet.
    owed: Vec<u8>,
    /// Answer: the request so far.
    request: Vec<u8>,
    /// Answer: bytes still to be sent.
    left: u64,
    /// In the text: what comes next, out (answer, source) or in (sink).
    place: u64,
    waits_to_write: bool,
}

struct Servers {
    epoll: Epoll,
    listeners: Vec<(Kind, TcpListener)>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    pattern: Pattern,
    seen: Arc<Seen>,
}

/// Tokens from here on are listeners.
const LISTENER: u64 = 1 << 32;

impl Servers {
    fn new(listeners: Vec<(Kind, TcpListener)>, seen: Arc<Seen>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, (_, listener)) in listeners.iter().enumerate() {
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER + index as u64))?;
        }
        let (pattern, buffer) = (Pattern::new(), vec![0; CHUNK]);
        Ok(Self { epoll, listeners, connections: Vec::new(), free: Vec::new(), buffer, pattern, seen })
    }

    fn turn(&mut self) {
        let mut events = [EpollEvent::empty(); 512];
        // The timeout is for the stop.
        let count = self.epoll.wait(&mut events, EpollTimeout::from(100_u8)).unwrap_or(0);
        for event in &events[..count] {
            match event.data().checked_sub(LISTENER) {
                Some(listener) => self.accept(listener as usize),
                None => self.serve(event.data() as usize),
            }
        }
    }

    fn accept(&mut self, listener: usize) {
        let (kind, listener) = &self.listeners[listener];
        for _ in 0..64 {
            let Ok((stream, _)) = listener.accept() else { return };
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let interest = if *kind == Kind::Source { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_err() || self.epoll.add(&stream, EpollEvent::new(interest, index as u64)).is_err() {
                self.free.push(index);
                continue;
            }
            self.seen.open.fetch_add(1, Relaxed);
            let (owed, request) = (Vec::new(), Vec::new());
            self.connections[index] =
                Some(Connection { kind: *kind, stream, owed, request, left: 0, place: 0, waits_to_write: false });
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else { return };
        let lives = match connection.kind {
            Kind::Echo => connection.echo(&mut self.buffer),
            Kind::Answer => connection.answer(&mut self.buffer, &self.pattern),
            Kind::Source => connection.source(&self.pattern),
            Kind::Sink => connection.sink(&mut self.buffer, &self.pattern, &self.seen),
        };
        let waits = !connection.owed.is_empty() || connection.left > 0;
        let followed = if waits == connection.waits_to_write || connection.kind == Kind::Source {
            Ok(())
        } else {
            connection.waits_to_write = waits;
            // Who owes does not read: a slow reader slows its sender down.
            let interest = if waits { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            self.epoll.modify(&connection.stream, &mut EpollEvent::new(interest, index as u64))
        };
        if lives.is_err() || followed.is_err() {
            self.connections[index] = None;
            self.free.push(index);
            self.seen.open.fetch_sub(1, Relaxed);
        }
    }
}

/// Zero for "not now".
fn now(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

impl Connection {
    /// An error is the end, too.
    fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self.stream.read(buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            other => now(other).map(|count| &buffer[..count]),
        }
    }

    fn echo(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        if !self.owed.is_empty() {
            let written = now(self.stream.write(&self.owed))?;
            self.owed.drain(..written);
            return Ok(());
        }
        let got = self.read(buffer)?;
        if !got.is_empty() {
            let written = now(self.stream.write(got))?;
            self.owed.extend_from_slice(&got[written..]);
        }
        Ok(())
    }

    fn answer(&mut self, buffer: &mut [u8], pattern: &Pattern) -> io::Result<()> {
        if self.left == 0 {
            let wanted = REQUEST - self.request.len();
            let got = self.read(&mut buffer[..wanted])?;
            self.request.extend_from_slice(got);
            if self.request.len() < REQUEST {
                return Ok(());
            }
            (self.place, self.left) = (place_of_answer(&self.request), ANSWER as u64);
            self.request.clear();
        }
        let written = now(self.stream.write(pattern.at(self.place, self.left as usize)))?;
        self.place += written as u64;
        self.left -= written as u64;
        Ok(())
    }

    fn source(&mut self, pattern: &Pattern) -> io::Result<()> {
        self.place += now(self.stream.write(pattern.at(self.place, CHUNK)))? as u64;
        Ok(())
    }

    fn sink(&mut self, buffer: &mut [u8], pattern: &Pattern, seen: &Seen) -> io::Result<()> {
        let got = self.read(buffer)?;
        if got == pattern.at(self.place, got.len()) {
            seen.received.fetch_add(got.len() as u64, Relaxed);
        } else {
            seen.wrong.fetch_add(1, Relaxed);
        }
        self.place += got.len() as u64;
        Ok(())
    }
}
