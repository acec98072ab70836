//! The ways in which a request can go wrong, and which of them an error of the kernel means. Pure.

use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// What went wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Under which it is counted.
    pub kind: Kind,
    /// What exactly was seen.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// The kinds of faults, which are counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nobody listens there.
    ConnectRefused,
    /// No connection within the timeout.
    ConnectTimeout,
    /// No way there.
    Unreachable,
    /// This machine has no free address and port left: most are in TIME_WAIT.
    NoAddress,
    /// This process may open no more descriptors.
    NoDescriptors,
    /// Another error while connecting.
    ConnectFailed,
    /// The peer reset the connection.
    Reset,
    /// The peer closed before the whole answer had come.
    ClosedEarly,
    /// A byte of the answer differs from the one sent.
    WrongBytes,
    /// More came than was sent.
    ExtraBytes,
    /// The answer was not whole within the timeout.
    Timeout,
    /// The answer was right, but the peer did not close after the client had.
    NotClosed,
    /// Another error while sending or receiving.
    Failed,
}

impl Kind {
    /// All kinds, in the order of a request's life.
    pub const ALL: [Kind; 13] = [
        Kind::ConnectRefused,
        Kind::ConnectTimeout,
        Kind::Unreachable,
        Kind::NoAddress,
        Kind::NoDescriptors,
        Kind::ConnectFailed,
        Kind::Reset,
        Kind::ClosedEarly,
        Kind::WrongBytes,
        Kind::ExtraBytes,
        Kind::Timeout,
        Kind::NotClosed,
        Kind::Failed,
    ];

    /// The words for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ConnectRefused => "connect refused",
            Kind::ConnectTimeout => "connect timeout",
            Kind::Unreachable => "unreachable",
            Kind::NoAddress => "no address left",
            Kind::NoDescriptors => "no descriptors left",
            Kind::ConnectFailed => "connect failed",
            Kind::Reset => "reset",
            Kind::ClosedEarly => "closed early",
            Kind::WrongBytes => "wrong bytes",
            Kind::ExtraBytes => "extra bytes",
            Kind::Timeout => "timeout",
            Kind::NotClosed => "not closed",
            Kind::Failed => "failed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Fault {
    /// The fault that an error while connecting means.
    pub fn connecting(error: &io::Error) -> Self {
        let kind = match errno(error) {
            Errno::ECONNREFUSED => Kind::ConnectRefused,
            Errno::ETIMEDOUT => Kind::ConnectTimeout,
            Errno::EHOSTUNREACH | Errno::ENETUNREACH => Kind::Unreachable,
            Errno::EADDRNOTAVAIL => Kind::NoAddress,
            Errno::EMFILE | Errno::ENFILE => Kind::NoDescriptors,
            Errno::ECONNRESET => Kind::Reset,
            _ => Kind::ConnectFailed,
        };
        Self { kind, detail: format!("connect: {error}") }
    }

    /// The fault that an error while sending or receiving means, after `got` of `size` bytes of the answer.
    pub fn exchanging(error: &io::Error, got: u64, size: u64) -> Self {
        let kind = match errno(error) {
            // EPIPE is how a write learns of the reset that no read has reported.
            Errno::ECONNRESET | Errno::EPIPE => Kind::Reset,
            Errno::ETIMEDOUT => Kind::Timeout,
            _ => Kind::Failed,
        };
        Self { kind, detail: format!("after {got} of {size} bytes: {error}") }
    }

    /// No connection within the timeout.
    pub fn connect_timeout(timeout: Duration) -> Self {
        Self { kind: Kind::ConnectTimeout, detail: format!("no connection within {timeout:?}") }
    }

    /// No whole answer within the timeout.
    pub fn timeout(timeout: Duration, size: u64) -> Self {
        Self { kind: Kind::Timeout, detail: format!("no whole answer of {size} bytes within {timeout:?}") }
    }

    /// The peer's end came too soon.
    pub fn closed_early(got: u64, size: u64) -> Self {
        Self { kind: Kind::ClosedEarly, detail: format!("closed after {got} of {size} bytes") }
    }

    /// The byte at `offset` of the answer is not the one sent.
    pub fn wrong_byte(offset: u64, size: u64) -> Self {
        Self { kind: Kind::WrongBytes, detail: format!("byte {offset} of {size} differs from the one sent") }
    }

    /// Something followed a whole answer.
    pub fn extra_bytes(extra: usize, size: u64) -> Self {
        Self { kind: Kind::ExtraBytes, detail: format!("at least {extra} more than the {size} bytes sent") }
    }

    /// The peer's end did not come.
    pub fn not_closed(timeout: Duration) -> Self {
        Self { kind: Kind::NotClosed, detail: format!("right answer, but not closed within {timeout:?}") }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_are_counted_by_what_they_mean() {
        let connect = |errno: Errno| Fault::connecting(&errno.into()).kind;
        let exchange = |errno: Errno| Fault::exchanging(&errno.into(), 3, 64).kind;
        for (errno, connecting, exchanging) in [
            (Errno::ECONNREFUSED, Kind::ConnectRefused, Kind::Failed),
            (Errno::ETIMEDOUT, Kind::ConnectTimeout, Kind::Timeout),
            (Errno::EHOSTUNREACH, Kind::Unreachable, Kind::Failed),
            (Errno::ENETUNREACH, Kind::Unreachable, Kind::Failed),
            (Errno::EADDRNOTAVAIL, Kind::NoAddress, Kind::Failed),
            (Errno::EMFILE, Kind::NoDescriptors, Kind::Failed),
            (Errno::ENFILE, Kind::NoDescriptors, Kind::Failed),
            (Errno::ENOENT, Kind::ConnectFailed, Kind::Failed),
            (Errno::EAGAIN, Kind::ConnectFailed, Kind::Failed),
            (Errno::ECONNRESET, Kind::Reset, Kind::Reset),
            (Errno::EPIPE, Kind::ConnectFailed, Kind::Reset),
        ] {
            assert_eq!((connect(errno), exchange(errno)), (connecting, exchanging), "{errno}");
        }
    }

    #[test]
    fn kinds_are_listed_once_and_named_apart() {
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        assert!(Kind::ALL.windows(2).all(|pair| pair[0] < pair[1]), "in declaration order, so none is missing between");
        assert_eq!(Kind::ALL.last(), Some(&Kind::Failed));
    }
}
