//! Listening sockets that somebody handed to this process: the store of the service manager, where a predecessor
//! left them, or its socket units. What one is, the socket says itself; its name is a hint at most.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use socket2::{SockRef, Type};

use super::door::{BACKLOG, Bound, tcp};
use super::socket::keep_urgent_data_in_line;
use crate::words::Address;

/// A socket that listens already.
#[derive(Debug)]
pub struct Inherited {
    /// Where.
    pub address: Address,
    /// What it was called by whoever handed it over.
    pub name: String,
    /// Whether more sockets may be bound to its address.
    pub shared: bool,
    socket: OwnedFd,
}

impl Inherited {
    /// A descriptor as what it is; `None` where it is no stream socket that listens on an address lbd knows of.
    pub fn of(socket: OwnedFd, name: String) -> Option<Self> {
        let asked = SockRef::from(&socket);
        if asked.r#type().ok()? != Type::STREAM || !asked.is_listener().ok()? {
            return None;
        }
        let at = asked.local_addr().ok()?;
        let ip = at.as_socket().map(Address::Ip);
        let address = ip.or_else(|| at.as_pathname().map(|path| Address::Unix(path.to_owned())))?;
        let shared = matches!(address, Address::Ip(_)) && asked.reuse_port().unwrap_or(false);
        Some(Self { address, name, shared, socket })
    }

    /// Whether it listens still: whoever else holds it may have ended it.
    pub fn is_listening(&self) -> bool {
        SockRef::from(&self.socket).is_listener().unwrap_or(false)
    }

    /// Ends it, whoever else holds it.
    pub fn end(&self) {
        super::socket::stop_listening(&self.socket);
    }

    /// Its descriptor.
    pub fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let (address, name, shared) = (self.address.clone(), self.name.clone(), self.shared);
        Ok(Self { address, name, shared, socket: self.socket.try_clone()? })
    }
}

/// Takes over all sockets of one address, none of which may be left out: the kernel goes on giving clients to each.
/// Binds as many more as make `count`, where the address can be shared and this user may; those come last.
///
/// # Errors
/// A socket cannot be set up.
pub fn adopt(sockets: Vec<Inherited>, count: usize) -> io::Result<Bound> {
    let address = sockets.first().map(|first| first.address.clone()).ok_or(io::ErrorKind::NotFound)?;
    let shared = sockets.iter().all(|socket| socket.shared);
    let mut all = Vec::with_capacity(count);
    for Inherited { socket, .. } in sockets {
        let it = SockRef::from(&socket);
        it.set_nonblocking(true)?;
        it.listen(BACKLOG)?; // its queue may have been made shorter than ours
        if let Address::Ip(_) = address {
            it.set_tcp_nodelay(true)?;
            keep_urgent_data_in_line(&socket)?;
        }
        all.push(socket);
    }
    if let Address::Ip(ip) = &address {
        while shared && all.len() < count {
            let one_more = tcp(*ip, true).and_then(|socket| socket.listen(BACKLOG).map(|()| socket));
            // Refused where the others are another user's, as those of a socket unit are. They serve all the same.
            let Ok(socket) = one_more else { break };
            all.push(socket.into());
        }
    }
    Ok(Bound { address, sockets: all })
}

#[cfg(test)]
mod tests {
    use super::super::bind;
    use super::*;

    fn inherit(sockets: Vec<OwnedFd>) -> Vec<Inherited> {
        sockets.into_iter().map(|socket| Inherited::of(socket, "n".into()).unwrap()).collect()
    }

    fn inodes(sockets: &[OwnedFd]) -> Vec<u64> {
        sockets.iter().map(|s| nix::sys::stat::fstat(s).unwrap().st_ino).collect()
    }

    #[test]
    fn every_adopted_socket_has_an_owner_and_missing_ones_are_bound() {
        for (had, wanted, have) in [(3, 2, 3), (2, 2, 2), (2, 4, 4)] {
            for asked in ["127.0.0.1:0", "[::]:0"] {
                let first = bind(asked.parse().unwrap(), had, &[]).unwrap();
                let before = inodes(&first.sockets);
                let adopted = adopt(inherit(first.sockets), wanted).unwrap();
                assert_eq!(adopted.address, first.address);
                assert_eq!(adopted.sockets.len(), have, "{had} sockets, {wanted} workers");
                assert_eq!(inodes(&adopted.sockets)[..had], before, "the adopted ones come first");
            }
        }
    }

    #[test]
    fn a_socket_that_cannot_be_shared_stays_alone() {
        let alone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(adopt(inherit(vec![alone.into()]), 3).unwrap().sockets.len(), 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let adopted = adopt(inherit(vec![unix.into()]), 3).unwrap();
        assert_eq!((adopted.sockets.len(), adopted.address), (1, Address::Unix(path)));
    }

    #[test]
    fn what_does_not_listen_is_not_taken_for_a_listener() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds: [OwnedFd; 4] = [one.into(), other.into(), datagram.into(), file.into()];
        assert!(fds.into_iter().all(|fd| Inherited::of(fd, "lbd-127.0.0.1_80".into()).is_none()));
    }
}
