//! A client's connection: every byte is checked, and how it ended is told in full.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::pattern::Text;
use crate::world::World;

/// The longest that anything may take in which nobody is slow on purpose.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Client<'w> {
    world: &'w World,
    listener: &'static str,
    pub socket: Socket,
    pub since: Instant,
    /// It was reset before the connect had returned.
    is_reset: bool,
}

/// How a conversation broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Closed,
    Reset,
    Silent,
    Wrong,
    Other,
}

/// Where and how a conversation broke.
#[derive(Debug, Clone, Copy)]
pub struct Broken {
    pub how: How,
    pub at: usize,
    pub after: Duration,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Closed => "an end",
            How::Reset => "a reset",
            How::Silent => "nothing more",
            How::Wrong => "a wrong byte",
            How::Other => "an error",
        };
        write!(f, "{how} after {} bytes and {:.2} s", self.at, self.after.as_secs_f64())
    }
}

impl<'w> Client<'w> {
    /// Connects; that this fails is a violation, for lbd always listens.
    pub fn open(world: &'w World, listener: &'static str) -> Option<Self> {
        Self::open_with(world, listener, None)
    }

    /// As `open`, with a receive buffer of so many bytes.
    pub fn open_with(world: &'w World, listener: &'static str, buffer: Option<usize>) -> Option<Self> {
        let account = world.account(listener);
        let connect = || -> io::Result<(Socket, bool)> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            if let Some(bytes) = buffer {
                socket.set_recv_buffer_size(bytes)?;
            }
            let is_reset = match socket.connect_timeout(&account.address.into(), PATIENCE) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => true,
                connected => connected.map(|()| false)?,
            };
            socket.set_tcp_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok((socket, is_reset))
        };
        match connect() {
            Ok((socket, is_reset)) => {
                account.connected.fetch_add(1, SeqCst);
                account.open.fetch_add(1, SeqCst);
                world.journal.count(listener);
                Some(Self { world, listener, socket, since: Instant::now(), is_reset })
            }
            Err(e) => {
                world.fail(listener, &format!("cannot connect: {e}"));
                None
            }
        }
    }

    fn broken(&self, at: usize, error: &io::Error) -> Broken {
        let how = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => How::Reset,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => How::Silent,
            _ => How::Other,
        };
        Broken { how, at, after: self.since.elapsed() }
    }

    fn is_there(&self) -> Result<(), Broken> {
        if self.is_reset { Err(Broken { how: How::Reset, at: 0, after: self.since.elapsed() }) } else { Ok(()) }
    }

    pub fn send(&self, bytes: &[u8]) -> Result<(), Broken> {
        self.is_there()?;
        (&self.socket).write_all(bytes).map_err(|e| self.broken(0, &e))
    }

    /// Sends these positions of a text.
    pub fn send_text(&self, text: Text, mut at: usize, end: usize) -> Result<(), Broken> {
        self.is_there()?;
        while at < end {
            let piece = text.piece(at, end - at);
            (&self.socket).write_all(piece).map_err(|e| self.broken(at, &e))?;
            at += piece.len();
        }
        Ok(())
    }

    /// Reads some bytes that stand at a position of a text; 0 at the end.
    pub fn read_some(&self, text: Text, at: usize, most: usize) -> Result<usize, Broken> {
        self.is_there()?;
        let mut buffer = [0; 64 * 1024];
        let most = most.min(buffer.len());
        let n = (&self.socket).read(&mut buffer[..most]).map_err(|e| self.broken(at, &e))?;
        match text.differs(at, &buffer[..n]) {
            Some(wrong) => Err(Broken { how: How::Wrong, at: wrong, after: self.since.elapsed() }),
            None => Ok(n),
        }
    }

    /// Reads exactly these positions of a text.
    pub fn expect(&self, text: Text, mut at: usize, end: usize) -> Result<(), Broken> {
        while at < end {
            match self.read_some(text, at, end - at)? {
                0 => return Err(Broken { how: How::Closed, at, after: self.since.elapsed() }),
                n => at += n,
            }
        }
        Ok(())
    }

    /// Reads exactly these bytes.
    pub fn expect_bytes(&self, wanted: &[u8]) -> Result<(), Broken> {
        self.is_there()?;
        let mut at = 0;
        let mut buffer = [0; 64];
        while at < wanted.len() {
            let most = (wanted.len() - at).min(buffer.len());
            match (&self.socket).read(&mut buffer[..most]).map_err(|e| self.broken(at, &e))? {
                0 => return Err(Broken { how: How::Closed, at, after: self.since.elapsed() }),
                n if buffer[..n] == wanted[at..at + n] => at += n,
                _ => return Err(Broken { how: How::Wrong, at, after: self.since.elapsed() }),
            }
        }
        Ok(())
    }

    pub fn read_byte(&self) -> Result<u8, Broken> {
        self.is_there()?;
        let mut byte = [0];
        match (&self.socket).read(&mut byte).map_err(|e| self.broken(0, &e))? {
            0 => Err(Broken { how: How::Closed, at: 0, after: self.since.elapsed() }),
            _ => Ok(byte[0]),
        }
    }

    /// Nothing more comes but the end.
    pub fn expect_end(&self, at: usize) -> Result<(), Broken> {
        match (&self.socket).read(&mut [0]).map_err(|e| self.broken(at, &e))? {
            0 => Ok(()),
            _ => Err(Broken { how: How::Wrong, at, after: self.since.elapsed() }),
        }
    }

    /// Says that nothing more comes from here.
    pub fn shut(&self) -> Result<(), Broken> {
        self.socket.shutdown(Shutdown::Write).map_err(|e| self.broken(0, &e))
    }

    /// Closes so that the other side sees a reset.
    pub fn reset(self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }

    /// What broke is a violation.
    pub fn violated(&self, kind: &str, what: &str, broken: Broken) {
        let held = if self.world.was_held_up_since(self.since) { " (lbd was held up by the load)" } else { "" };
        let from = self.socket.local_addr().ok().and_then(|a| a.as_socket()).map_or(String::new(), |a| a.to_string());
        self.world.fail(kind, &format!("{what}: {broken}{held}; client {from}"));
    }

    /// How long it may wait for a first byte.
    pub fn was_served(&self, kind: &str, most: Duration) {
        let waited = self.since.elapsed();
        if waited > most + self.world.allowance() && !self.world.was_held_up_since(self.since) {
            self.world.fail(kind, &format!("a client waited {:.2} s", waited.as_secs_f64()));
        }
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.world.account(self.listener).open.fetch_sub(1, SeqCst);
    }
}
