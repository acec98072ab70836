//! How a connection of a probe ends: what the server says is read on for a while, and no more is sent, so that its log has
//! an end and no reset. Within bounds of bytes, time and number; the probe's result has been told before.
//!
//! They are looked at a few times instead of being waited for: servers close in a moment, and one look serves many.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::socket;

/// The time from each look at a connection to the next; after the last it is closed: 215 ms in all.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(10), Duration::from_millis(25), Duration::from_millis(60), Duration::from_millis(120)];
/// Those that are to be looked at within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(5);
/// The most that is read of one.
const MOST_READ: usize = 64 * 1024;

/// Connections that are about to be closed.
#[derive(Debug)]
pub(super) struct Closing {
    /// Those that wait for each of the looks, in order.
    waiting: [VecDeque<Ending>; LOOKS.len()],
    count: usize,
    most: usize,
}

#[derive(Debug)]
struct Ending {
    fd: OwnedFd,
    look: Instant,
    read: usize,
    finished: bool,
}

/// Whether the server may still be about to say something that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It has not been asked, or has not answered: our end goes out at once.
    Nothing,
    /// The beginning of its answer was right: the rest gets a moment, since some servers take an early end for a client
    /// that gave up.
    Begun,
}

impl Closing {
    /// For so many at a time; where there are more, the first ones are closed sooner.
    pub(super) fn new(most: usize) -> Self {
        Self { waiting: Default::default(), count: 0, most }
    }

    /// Takes a connection over.
    pub(super) fn add(&mut self, fd: OwnedFd, said: Said, now: Instant) {
        if self.count >= self.most {
            self.close_oldest();
        }
        let mut ending = Ending { fd, look: now + LOOKS[0], read: 0, finished: false };
        if said == Said::Nothing {
            socket::finish_writing(&ending.fd);
            ending.finished = true;
        } else if ending.is_over() {
            return;
        }
        self.count += 1;
        self.waiting[0].push_back(ending);
    }

    /// When they are to be looked at again.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| Some(waiting.front()?.look)).min()
    }

    /// Looks at those whose time has come.
    pub(super) fn look(&mut self, now: Instant) {
        if self.next_look().is_none_or(|at| at > now) {
            return;
        }
        // From the last look back, so that nobody is looked at twice.
        for stage in (0..LOOKS.len()).rev() {
            while self.waiting[stage].front().is_some_and(|ending| ending.look <= now + TOGETHER)
                && let Some(mut ending) = self.waiting[stage].pop_front()
            {
                let over = ending.is_over();
                if !std::mem::replace(&mut ending.finished, true) && !over {
                    socket::finish_writing(&ending.fd);
                }
                match self.waiting.get_mut(stage + 1) {
                    Some(next) if !over => {
                        ending.look = now + LOOKS[stage + 1];
                        next.push_back(ending);
                    }
                    _ => self.count -= 1,
                }
            }
        }
    }

    fn close_oldest(&mut self) {
        if let Some(waiting) = self.waiting.iter_mut().rev().find(|waiting| !waiting.is_empty()) {
            waiting.pop_front();
            self.count -= 1;
        }
    }
}

impl Ending {
    /// Reads what has come; true where the server has ended too, or has said more than anybody wants to hear.
    fn is_over(&mut self) -> bool {
        let mut buffer = [0; 4096];
        while self.read < MOST_READ {
            match socket::read(&self.fd, &mut buffer) {
                Ok(0) => return true,
                Ok(n) => self.read += n,
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
        true
    }
}
