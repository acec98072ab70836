//! Sorts the errors of accept4(2): whose fault one is decides what follows, so that a worker neither spins nor goes deaf.

use nix::errno::Errno;

/// Whose fault a failed accept is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AcceptError {
    /// This client's: it has left, its network has, or a firewall forbids it. The next one may be accepted at once.
    Client,
    /// Something has run out; accepting pauses.
    Shortage,
    /// The socket's: it does not listen any more, whoever ended it. Every further call fails.
    Ended,
}

impl AcceptError {
    pub(super) fn of(e: Errno) -> Self {
        use Errno as E;
        match e {
            _ if is_shortage(e) => Self::Shortage,
            E::EINVAL | E::ENOTSOCK | E::EBADF | E::EOPNOTSUPP | E::EFAULT => Self::Ended,
            // accept(2) has this list; Linux passes errors of the new connection's network on.
            E::ECONNABORTED | E::ECONNRESET | E::EPROTO | E::EPERM | E::EACCES | E::EINTR => Self::Client,
            E::ENETDOWN | E::ENOPROTOOPT | E::EHOSTDOWN | E::ENONET | E::EHOSTUNREACH | E::ENETUNREACH => Self::Client,
            E::ETIMEDOUT | E::ENOSR | E::ESOCKTNOSUPPORT | E::EPROTONOSUPPORT => Self::Client,
            // Nobody knows it: a pause is right whether it passes or stays.
            _ => Self::Shortage,
        }
    }
}

/// Whether something of the process or of the machine has run out, and may be there again later. ENOSPC is epoll's: the user
/// has as many registrations as fs.epoll.max_user_watches allows.
pub(super) fn is_shortage(e: Errno) -> bool {
    matches!(e, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::ENOSPC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_the_clients_a_shortage_or_the_end_of_the_socket() {
        use AcceptError::{Client, Ended, Shortage};
        for (error, sort) in [
            (Errno::ECONNABORTED, Client),
            (Errno::EPROTO, Client),
            (Errno::EPERM, Client),
            (Errno::ENETUNREACH, Client),
            (Errno::EINTR, Client),
            (Errno::EMFILE, Shortage),
            (Errno::ENFILE, Shortage),
            (Errno::ENOBUFS, Shortage),
            (Errno::ENOMEM, Shortage),
            (Errno::ENOSPC, Shortage),
            (Errno::EINVAL, Ended),
            (Errno::ENOTSOCK, Ended),
            (Errno::EBADF, Ended),
            (Errno::EOPNOTSUPP, Ended),
            // Of no list: a worker that went on at once would spin.
            (Errno::EUCLEAN, Shortage),
        ] {
            assert_eq!(AcceptError::of(error), sort, "{error}");
        }
    }
}
