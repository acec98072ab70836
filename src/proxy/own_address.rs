//! Whether a connect has met itself. Where nobody listens on a port of this machine that the kernel also hands out to clients, a connect
//! to it may be given that very port (RFC 9293, simultaneous open): an echo that keeps the backend from binding.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use super::socket;
use crate::snapshot::BackendCell;
use crate::words::Address;

/// For how long what was found out of this machine holds: an address may be given to it, and the range be changed.
const HOLDS: u64 = 10_000_000;

/// The ports that the kernel hands out, and until when that holds.
#[derive(Debug)]
pub(super) struct LocalPorts {
    range: RangeInclusive<u16>,
    until: u64,
}

impl LocalPorts {
    /// Not known yet.
    pub fn unknown() -> Self {
        Self { range: 0..=u16::MAX, until: 0 }
    }

    fn contain(&mut self, port: u16, now: u64) -> bool {
        if self.until <= now {
            let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"); // of IPv6 too
            self.range = text.ok().and_then(|text| range(&text)).unwrap_or(0..=u16::MAX);
            self.until = now + HOLDS;
        }
        self.range.contains(&port)
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// True where a connect to this backend has met itself. It costs a call where the port is one that the kernel hands out and the
/// address this machine's, which is found out every 10 s.
pub(super) fn has_met_itself(ports: &mut LocalPorts, now: u64, backend: &BackendCell, fd: &OwnedFd) -> bool {
    let Address::Ip(ip) = backend.address else { return false };
    if !ports.contain(ip.port(), now) || backend.is_elsewhere(now.saturating_sub(HOLDS)) {
        return false;
    }
    let own = socket::local_ip(fd);
    if !ip.ip().is_loopback() && own.is_some_and(|own| own.ip() != ip.ip().to_canonical()) {
        backend.found_elsewhere(now);
    }
    own == Some(SocketAddr::new(ip.ip().to_canonical(), ip.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_and_where_it_cannot_be_every_port_may_be_handed_out() {
        assert_eq!(range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!([range(""), range("1"), range("a b"), range("1 70000")], [None, None, None, None]);
        let mut ports = LocalPorts::unknown();
        assert!(ports.contain(0, 0) || ports.until == HOLDS);
        ports.range = 9000..=9003;
        assert_eq!([8999, 9000, 9003, 9004].map(|port| ports.contain(port, 1)), [false, true, true, false]);
    }
}
