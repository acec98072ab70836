//! Moves bytes from one socket to another, and knows nothing else: no session, no clock, no table. A
//! [`Flow`] is one direction. It owns memory only while the reader is slower than the writer.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use super::socket;

/// The most unwritten rest of a direction.
const HOLD: usize = 64 * 1024;
/// The read size while all stalled sessions together hold as much as they may.
const FRUGAL: usize = 4 * 1024;
/// The most that is read in a row with others. So much may be read whatever is held.
pub const SLICE: usize = FRUGAL;
/// After a longer read so many shorter ones come first: the rest of a message that was cut costs two calls more.
pub const WIDE: u8 = 8;
/// Reads of a direction before others get their turn.
const READS: usize = 2;
/// Bytes of a direction before they do, less than [`HOLD`] more at most.
const TURN: usize = 512 * 1024;

/// How the stream that comes out of a socket ends. The kernel tells the error of a reset once, to the first call that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Stream {
    /// Its end has not been read.
    #[default]
    Open,
    /// By a FIN, whatever came after it.
    Ended,
    /// By a reset: what follows its last byte must not look like an end.
    Cut,
}

/// One socket of a session, and what epoll last said of it.
#[derive(Debug)]
pub struct End {
    /// Non-blocking, registered edge-triggered.
    pub fd: OwnedFd,
    /// A read may find something.
    pub readable: bool,
    /// A write may be taken.
    pub writable: bool,
    /// The peer has shut its side or the connection is broken: reads find the end without a further edge.
    pub fin: bool,
    /// The peer is found gone: nothing reaches it any more. What it sent before is still read.
    pub broken: bool,
    /// How its stream ended.
    pub stream: Stream,
    /// There is urgent data in its stream: a read stops in front of it, so a short one has not drained the socket.
    pub urgent: bool,
    /// A Unix socket: a read stops where control messages differ, so a short one has not drained it either.
    pub unix: bool,
    /// TCP_NODELAY is known to be set.
    pub no_delay: bool,
}

impl End {
    /// A socket of which nothing has been heard.
    pub fn new(fd: OwnedFd, unix: bool) -> Self {
        Self {
            fd,
            readable: false,
            writable: false,
            fin: false,
            broken: false,
            stream: Stream::Open,
            urgent: false,
            unix,
            no_delay: unix,
        }
    }

    /// Takes note that the peer is gone without a word.
    pub fn give_up(&mut self) {
        (self.broken, self.fin, self.readable) = (true, true, false);
        self.over(Stream::Cut);
    }

    /// True while the peer has not acknowledged all that was written to it.
    pub fn has_unacknowledged(&self) -> bool {
        socket::delivery(&self.fd).is_some_and(|delivery| delivery.is_pending)
    }

    /// Takes note of how its stream ends. What is told first holds: after a FIN a reset changes nothing.
    fn over(&mut self, how: Stream) {
        if self.stream == Stream::Open {
            self.stream = how;
        }
    }

    /// Takes note of an event.
    pub fn heard(&mut self, events: EpollFlags) {
        let over = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        self.fin |= events.intersects(over);
        self.urgent |= events.contains(EpollFlags::EPOLLPRI);
        self.broken |= events.contains(EpollFlags::EPOLLERR); // once a side has ended, no read would tell
        self.readable |= events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI | over);
        self.writable |= events.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
    }
}

/// One direction of a session.
#[derive(Debug, Default)]
pub struct Flow {
    /// Bytes read from the source.
    pub bytes: u64,
    /// What was read and not yet written. `None` while the reader keeps up, so an idle session owns no memory.
    pub(super) held: Option<Box<Rest>>,
    /// The last read found more than may be held.
    pub(super) bulk: bool,
    /// Short reads that are still to come before it counts as one of small messages.
    pub(super) wide: u8,
    /// The sink has taken at least a byte of the source's: another sink could no longer be used.
    pub sent: bool,
    /// Bytes of a header that the sink has still to take before the source's first; they are the first held.
    pub(super) header: u8,
    /// The source has no more bytes.
    pub ended: bool,
    /// The destination has been told so, or is gone.
    pub closed: bool,
    /// The destination has every byte, and knows that it has, or will by the close that follows.
    pub whole: bool,
    /// The other direction is over: when this one ends, the sockets are closed, which tells the end without a call more.
    pub last: bool,
}

/// Bytes on their way.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Box<[u8]>,
    written: usize,
}

/// Where a direction stands after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It waits for an event.
    Wait,
    /// It could go on, but others have a right to their turn; no event will come.
    Yield,
    /// It is over.
    Done,
}

impl Flow {
    /// True while unwritten bytes are held.
    pub fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// What is held and not yet written.
    pub fn unwritten(&self) -> &[u8] {
        self.held.as_ref().map_or(&[], |rest| &rest.bytes[rest.written..])
    }

    /// What changes whenever a byte or an end is passed on.
    pub fn progress(&self) -> (u64, usize, bool, bool) {
        (self.bytes, self.unwritten().len(), self.ended, self.closed)
    }

    /// True where all there is to do is to read and to write: the flow goes on as it has begun, with small messages.
    pub(super) fn is_plain(&self, source: &End, sink: &End) -> bool {
        let both_live = [source, sink].iter().all(|end| !end.fin && !end.broken);
        let open = self.sent && self.header == 0 && !self.closed && !self.ended;
        both_live && source.readable && sink.writable && sink.no_delay && open && self.wide == 0 && !self.is_holding()
    }

    /// Moves bytes until an event must come, the turn is used up, or the direction is over. Of a source that broke, too,
    /// every byte is passed on before the direction is over; its end is not, where that was a reset.
    pub fn pump(&mut self, source: &mut End, sink: &mut End, scratch: &mut [u8], memory: &Memory) -> Step {
        let mut moved = 0;
        for _ in 0..READS {
            if self.closed {
                return Step::Done;
            }
            if !self.flush(sink, memory) {
                return if self.closed { Step::Done } else { Step::Wait };
            }
            if self.ended {
                if source.stream != Stream::Cut {
                    if !self.last {
                        socket::finish_writing(&sink.fd);
                    }
                    self.whole = true;
                }
                self.closed = true;
                return Step::Done;
            }
            if !source.readable || !sink.writable {
                return Step::Wait; // never read what cannot be written
            }
            let Some(most) = left_of_turn(moved, scratch.len()) else { break };
            let n = self.fill(source, sink, &mut scratch[..most], memory);
            if n > 0 {
                self.bytes += n as u64;
                self.write(sink, &scratch[..n], memory);
                moved += n;
            }
        }
        Step::Yield
    }

    /// Reads as much as can be held or surely be written. More than may be held is read only into a sink that
    /// has the room: asking it is a call more, made for bulk alone.
    fn fill(&mut self, source: &mut End, sink: &End, scratch: &mut [u8], memory: &Memory) -> usize {
        if memory.is_used_up() {
            self.bulk = false;
            return self.read(source, &mut scratch[..FRUGAL]);
        }
        let mut size = HOLD;
        if self.bulk {
            size = socket::send_room(&sink.fd).clamp(HOLD, scratch.len());
        }
        let mut n = self.read(source, &mut scratch[..size]);
        if n == HOLD && size == HOLD && !self.ended {
            // A full buffer: there is more, and one write of it all is cheaper than two.
            size = socket::send_room(&sink.fd).clamp(HOLD, scratch.len());
            n += self.read(source, &mut scratch[HOLD..size]);
        }
        self.bulk = n > HOLD || n == scratch.len(); // the rest of a turn may be no more than that
        self.wide = if n >= SLICE { WIDE } else { self.wide.saturating_sub(u8::from(n > 0)) };
        n
    }

    /// Reads once; 0 where nothing came, the end or not.
    fn read(&mut self, source: &mut End, buffer: &mut [u8]) -> usize {
        if buffer.is_empty() {
            return 0;
        }
        let got = socket::read(&source.fd, buffer);
        self.has_read(source, got, buffer.len())
    }

    /// Takes note of what a read of at most so many bytes came to; 0 where nothing came, the end or not.
    pub(super) fn has_read(&mut self, source: &mut End, got: Result<usize, Errno>, most: usize) -> usize {
        match got {
            Ok(0) => {
                self.ended = true;
                source.over(Stream::Ended);
                0
            }
            Ok(n) => {
                // A short read has drained a TCP socket: this saves the read that finds it empty, never the end.
                source.readable = n == most || source.fin || source.urgent || source.unix;
                n
            }
            Err(Errno::EAGAIN) => {
                (source.readable, source.urgent) = (false, false);
                0
            }
            Err(_) => {
                self.ended = true;
                source.broken = true;
                source.over(Stream::Cut);
                0
            }
        }
    }

    /// Writes what was read, and holds what is not taken.
    fn write(&mut self, sink: &mut End, bytes: &[u8], memory: &Memory) {
        // The first write of a connection needs no TCP_NODELAY, and most short ones have but one.
        if self.sent && !std::mem::replace(&mut sink.no_delay, true) {
            socket::write_without_delay(&sink.fd);
        }
        self.has_written(sink, socket::write(&sink.fd, bytes), bytes, memory);
    }

    /// Takes note of what a write of these bytes came to, and holds what was not taken.
    pub(super) fn has_written(&mut self, sink: &mut End, done: Result<usize, Errno>, bytes: &[u8], memory: &Memory) {
        let written = match done {
            Ok(n) => n,
            Err(Errno::EAGAIN) => 0,
            Err(e) => {
                self.hold(bytes, memory);
                return self.lose(sink, e, memory);
            }
        };
        self.taken(written);
        if written == bytes.len() {
            return;
        }
        self.bulk = false;
        sink.writable = false;
        self.hold(&bytes[written..], memory);
    }

    fn taken(&mut self, n: usize) {
        self.sent |= n > usize::from(self.header);
        self.header = self.header.saturating_sub(u8::try_from(n).unwrap_or(u8::MAX));
    }

    /// Puts what is held at the beginning of `buffer`, where it must have room, and reads once behind it.
    /// Returns how many bytes that makes; they are the caller's to keep and to count.
    pub fn gather(&mut self, source: &mut End, buffer: &mut [u8], memory: &Memory) -> usize {
        let held = self.held.as_ref().map_or(0, |rest| rest.bytes.len());
        if let Some(rest) = &self.held {
            buffer[..held].copy_from_slice(&rest.bytes);
        }
        self.drop_rest(memory);
        let read = if source.readable && !self.ended { self.read(source, &mut buffer[held..]) } else { 0 };
        held + read
    }

    /// Holds bytes for the sink to come.
    pub fn keep(&mut self, bytes: &[u8], memory: &Memory) {
        if !bytes.is_empty() {
            self.hold(bytes, memory);
        }
    }

    /// Writes a header before the source's first bytes, in one call with those that are held or have come.
    pub fn open(&mut self, header: &[u8], source: &mut End, sink: &mut End, scratch: &mut [u8], memory: &Memory) {
        self.header = header.len() as u8;
        if let Some(rest) = self.held.take() {
            memory.release(rest.bytes.len());
            self.hold(&[header, &rest.bytes].concat(), memory);
            self.flush(sink, memory);
            return;
        }
        let most = scratch.len().min(HOLD);
        scratch[..header.len()].copy_from_slice(header);
        let n = self.gather(source, &mut scratch[header.len()..most], memory);
        self.bytes += n as u64;
        self.write(sink, &scratch[..header.len() + n], memory);
    }

    fn hold(&mut self, bytes: &[u8], memory: &Memory) {
        memory.hold(bytes.len());
        self.held = Some(Box::new(Rest { bytes: bytes.into(), written: 0 }));
    }

    /// Writes the rest; true where none is left to write.
    fn flush(&mut self, sink: &mut End, memory: &Memory) -> bool {
        while let Some(rest) = &mut self.held {
            if !sink.writable {
                return false;
            }
            match socket::write(&sink.fd, &rest.bytes[rest.written..]) {
                Ok(n) => {
                    rest.written += n;
                    let whole = rest.written == rest.bytes.len();
                    self.taken(n);
                    if whole {
                        self.drop_rest(memory);
                    } else {
                        sink.writable = false;
                    }
                }
                Err(Errno::EAGAIN) => sink.writable = false,
                Err(e) => {
                    self.lose(sink, e, memory);
                    return false;
                }
            }
        }
        true
    }

    /// The sink is gone: nothing more can reach it, but what it sent before is still to be read. Bytes that
    /// would have been its first are kept: another sink may take them.
    fn lose(&mut self, sink: &mut End, why: Errno, memory: &Memory) {
        sink.broken = true;
        // EPIPE is what TCP says of a reset behind a FIN (tcp_reset). Of any other error no read will tell after this.
        if why != Errno::EPIPE {
            sink.over(Stream::Cut);
        }
        sink.fin = true;
        sink.readable = true;
        self.closed = true;
        if self.sent {
            self.drop_rest(memory);
        }
    }

    /// Makes a flow whose sink was lost before the source's first byte ready for another one.
    pub fn reopen(&mut self, memory: &Memory) {
        self.closed = false;
        self.bulk = false;
        let header = usize::from(std::mem::take(&mut self.header));
        if header > 0
            && let Some(rest) = self.held.take()
        {
            memory.release(rest.bytes.len());
            self.keep(&rest.bytes[rest.written + header..], memory);
        }
    }

    /// Gives the held bytes up. Must be called before a flow is dropped, or its bytes stay counted.
    pub fn drop_rest(&mut self, memory: &Memory) {
        if let Some(rest) = self.held.take() {
            memory.release(rest.bytes.len());
        }
    }
}

/// How much a direction that has moved so much may read at once, of a buffer that holds at least [`HOLD`].
fn left_of_turn(moved: usize, buffer: usize) -> Option<usize> {
    let left = TURN.checked_sub(moved).filter(|left| *left > 0)?;
    Some(left.max(HOLD).min(buffer))
}

#[cfg(test)]
mod tests;
