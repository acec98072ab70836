//! Many reads, or many writes, in one system call: io_uring, where the kernel lets us have it. It only stands in for the
//! calls of `socket.rs`: all that [`Ring::make`] asks for is done when it returns, so that nothing is ever under way
//! between two of them and no socket is held, and whoever has no ring makes the calls one by one. One of the five files with `unsafe`;
//! `no_ring.rs` has its place where there is no such crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

/// One call on a socket: a read of what is there (0 is the end), or a write of what fits.
#[derive(Debug)]
pub enum Call<'a> {
    Read(&'a OwnedFd, &'a mut [u8]),
    Write(&'a OwnedFd, &'a [u8]),
}

/// What says nothing of the socket: the call was broken off, or the kernel had no memory to begin it.
const NOT_MADE: [Errno; 3] = [Errno::EINTR, Errno::ECANCELED, Errno::ENOMEM];

/// What a thread asks the kernel by. It is for the thread that has made it, and for nobody after an exec.
pub struct Ring {
    uring: IoUring,
    /// Fewer calls are cheaper without it.
    fewest: usize,
    /// What came of each of the last calls; `None`: it was not made, and is left to the caller.
    results: Vec<Option<Result<usize, Errno>>>,
    /// It serves no more.
    failed: Option<io::Error>,
}

impl Ring {
    /// A ring for so many calls at a time, a power of two, and at least `fewest`. It takes a descriptor and two pages of the
    /// kernel's.
    ///
    /// # Errors
    /// The kernel is older than 6.1, or an administrator keeps io_uring from us (`kernel.io_uring_disabled`, a system
    /// call filter, a security module); no descriptor or no memory is left.
    pub fn new(calls: usize, fewest: usize) -> io::Result<Self> {
        let entries = u32::try_from(calls).map_err(|_| io::ErrorKind::InvalidInput)?;
        let uring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all() // one that fails does not keep back those behind it
            .build(entries)?;
        Ok(Self { uring, fewest, results: Vec::with_capacity(calls), failed: None })
    }

    /// Whether so many calls are to be made by it.
    pub fn is_worth(&self, calls: usize) -> bool {
        calls >= self.fewest
    }

    /// Makes calls, in their order; what came of each says [`Ring::result`]. More than there is room for are not made, nor
    /// is any once the ring has failed.
    pub fn make<'a>(&mut self, calls: impl Iterator<Item = Option<Call<'a>>>) {
        self.results.clear();
        if self.failed.is_some() {
            return;
        }
        let (mut count, mut queue) = (0, self.uring.submission());
        for (place, call) in calls.enumerate() {
            self.results.push(None);
            let now = MsgFlags::MSG_DONTWAIT;
            let entry = match call {
                Some(Call::Read(fd, buffer)) => {
                    let receive = opcode::Recv::new(Fd(fd.as_raw_fd()), buffer.as_mut_ptr(), length(buffer));
                    receive.flags(now.bits()).build()
                }
                Some(Call::Write(fd, bytes)) => {
                    let send = opcode::Send::new(Fd(fd.as_raw_fd()), bytes.as_ptr(), length(bytes));
                    send.flags((now | MsgFlags::MSG_NOSIGNAL).bits()).build()
                }
                None => continue,
            };
            // SAFETY: the descriptor is open and the memory borrowed for 'a, which is longer than this function takes,
            // and `finish` returns only when the kernel is done with all that it has begun.
            if unsafe { queue.push(&entry.user_data(place as u64)) }.is_ok() {
                count += 1;
            }
        }
        drop(queue); // which shows the kernel what is in it
        self.failed = self.finish(count).err();
    }

    /// What came of one of the last calls, by its place among them. `None` where it was not made.
    pub fn result(&self, place: usize) -> Option<Result<usize, Errno>> {
        self.results.get(place).copied().flatten()
    }

    /// Why it serves no more: the kernel has had no memory for what it was asked, or another thread has asked.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }

    /// Has the kernel do what it was asked for, and returns when none of it is under way.
    fn finish(&mut self, count: usize) -> io::Result<()> {
        let (mut begun, mut done) = (0usize, 0);
        while done < count {
            // None may wait (MSG_DONTWAIT), so each is done when the kernel has begun the last. Were one not, there would be
            // nothing for it but to wait, however long: the kernel would still write to the caller's memory.
            let asked = self.uring.submit_and_wait(begun.saturating_sub(done));
            done += self.collect();
            match asked {
                Ok(0) if begun <= done => return Err(io::Error::other("the kernel takes nothing")),
                Ok(more) => begun += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if begun <= done => return Err(e),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes note of what came of calls; returns how many.
    fn collect(&mut self) -> usize {
        let mut count = 0;
        for done in self.uring.completion() {
            count += 1;
            let result = match done.result() {
                code if code >= 0 => Some(Ok(code as usize)),
                code => Some(Err(Errno::from_raw(-code))).filter(|failed| !NOT_MADE.map(Err).contains(failed)),
            };
            if let Some(place) = self.results.get_mut(done.user_data() as usize) {
                *place = result;
            }
        }
        count
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::{iter, thread};

    use super::super::testing::{Got, Over, get, pair, put, ring};
    use super::*;

    #[test]
    fn each_call_comes_to_what_it_would_alone_and_none_waits() {
        let Some(mut ring) = ring(4) else { return };
        for over in [Over::Tcp, Over::Unix] {
            let ((one, first), (two, _second), (three, third)) = (pair(over), pair(over), pair(over));
            assert_eq!(put(&first, b"some words"), 10);
            drop(third);
            let mut rooms = [[0; 8]; 3];
            let fds = [&one.fd, &two.fd, &three.fd];
            let reads = fds.iter().zip(&mut rooms).map(|(fd, room)| Some(Call::Read(fd, room)));
            ring.make(reads);
            let results = [ring.result(0), ring.result(1), ring.result(2), ring.result(3)];
            assert_eq!(results, [Some(Ok(8)), Some(Err(Errno::EAGAIN)), Some(Ok(0)), None], "{over:?}");
            assert_eq!(&rooms[0], b"some wor");
            let three = [Some(Call::Read(&one.fd, &mut rooms[0])), None, Some(Call::Write(&one.fd, b"an answer"))];
            ring.make(three.into_iter());
            assert_eq!([0, 1, 2].map(|n| ring.result(n)), [Some(Ok(2)), None, Some(Ok(9))], "{over:?}");
            assert_eq!((&rooms[0][..2], get(&first, 99)), (&b"ds"[..], Got::Bytes(b"an answer".into())), "{over:?}");
            drop(first);
            let write = || Some(Call::Write(&one.fd, b"to nobody"));
            ring.make([write(), write()].into_iter()); // TCP tells by the second at the latest
            let broken = [Errno::EPIPE, Errno::ECONNRESET].map(|e| Some(Err(e)));
            assert!(broken.contains(&ring.result(1)), "{over:?}: {:?}", ring.result(1));
        }
    }

    #[test]
    fn writes_take_what_fits_and_then_nothing() {
        let Some(mut ring) = ring(1) else { return };
        let (end, _peer) = pair(Over::Tcp);
        let (much, mut written) = (vec![7; 64 << 20], 0);
        loop {
            ring.make(iter::once(Some(Call::Write(&end.fd, &much))));
            match ring.result(0) {
                Some(Ok(some)) => written += some,
                none => break assert_eq!(none, Some(Err(Errno::EAGAIN))),
            }
        }
        assert!(written > 0 && written < much.len(), "{written}");
    }

    #[test]
    fn calls_that_find_no_room_are_left_to_the_caller_and_the_ring_serves_on() {
        let Some(mut ring) = ring(2) else { return };
        let (end, peer) = pair(Over::Tcp);
        for _ in 0..3 {
            ring.make([b"1", b"2", b"3"].into_iter().map(|bytes| Some(Call::Write(&end.fd, bytes))));
            assert_eq!([0, 1, 2].map(|n| ring.result(n)), [Some(Ok(1)), Some(Ok(1)), None]);
            assert_eq!(get(&peer, 9), Got::Bytes(b"12".into()));
            ring.make(iter::empty());
            assert_eq!(ring.result(0), None);
        }
    }

    #[test]
    fn one_that_fails_has_done_nothing_and_says_why_and_does_no_more() {
        let made = thread::spawn(|| ring(2)).join().unwrap(); // which the kernel serves no other thread by
        let Some(mut ring) = made else { return };
        let (end, peer) = pair(Over::Tcp);
        for _ in 0..2 {
            ring.make([Some(Call::Write(&end.fd, b"words"))].into_iter());
            assert_eq!((ring.result(0), get(&peer, 9)), (None, Got::Nothing));
            assert!(ring.failure().is_some());
        }
    }
}
