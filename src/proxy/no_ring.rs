//! In place of `ring.rs` on processors that the io-uring crate does not know: there is never a ring.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;

/// One call on a socket.
#[derive(Debug)]
#[expect(dead_code, reason = "nobody makes it")]
pub enum Call<'a> {
    Read(&'a OwnedFd, &'a mut [u8]),
    Write(&'a OwnedFd, &'a [u8]),
}

/// What nobody has.
pub struct Ring(Infallible);

impl Ring {
    /// # Errors
    /// Always.
    pub fn new(_calls: usize, _fewest: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn is_worth(&self, _calls: usize) -> bool {
        match self.0 {}
    }

    pub fn make<'a>(&mut self, _calls: impl Iterator<Item = Option<Call<'a>>>) {
        match self.0 {}
    }

    pub fn result(&self, _place: usize) -> Option<Result<usize, Errno>> {
        match self.0 {}
    }

    pub fn failure(&self) -> Option<&io::Error> {
        match self.0 {}
    }
}
