//! A block of addresses in CIDR notation (RFC 4632, RFC 4291), for lists of whom to trust.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: every address that begins with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Its first address; no bit behind the prefix is set.
    first: IpAddr,
    prefix: u8,
}

/// Why a text is not a network. Its words say how to mend the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkError {
    /// More bits than the address has; holds the address and how many it has.
    Prefix(IpAddr, u8),
    /// Bits behind the prefix are set; holds the network that has this address.
    HostBits(String, Network),
    /// An address with a port.
    Port(IpAddr),
    /// Anything else.
    Malformed(String),
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(ip, most) => write!(f, "a prefix of {ip} has 0 to {most} bits; write \"{ip}/{most}\""),
            Self::HostBits(text, network) => {
                write!(f, "\"{text}\" has bits set behind its prefix; write \"{network}\", or the address alone")
            }
            Self::Port(ip) => write!(f, "a network has no port; write \"{ip}\""),
            Self::Malformed(text) => {
                write!(f, "\"{text}\" is not a network; write \"10.0.0.0/8\", \"fd00::/8\" or one address")
            }
        }
    }
}

impl std::error::Error for NetworkError {}

impl FromStr for Network {
    type Err = NetworkError;

    /// Reads `ADDRESS/BITS`, or an address, which is a network of one.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let malformed = || match text.parse::<std::net::SocketAddr>() {
            Ok(socket) => NetworkError::Port(socket.ip()),
            Err(_) => NetworkError::Malformed(text.into()),
        };
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| malformed())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match bits {
            None => most,
            Some(bits) if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) => return Err(malformed()),
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or(NetworkError::Prefix(ip, most))?,
        };
        let first = masked(ip, prefix);
        match first == ip {
            true => Ok(Self { first, prefix }),
            false => Err(NetworkError::HostBits(text.into(), Self { first, prefix })),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl Network {
    /// True where the address lies in it. An IPv4 address in the clothes of IPv6 (`::ffff:10.0.0.7`) is an IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.first.is_ipv4() && masked(ip, self.prefix) == self.first
    }
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => (ip & Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))).into(),
        IpAddr::V6(ip) => (ip & Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0))).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..], &["11.0.0.0", "::1", "9.9.9.9"][..]),
            ("192.0.2.7", &["192.0.2.7"], &["192.0.2.6"]),
            ("0.0.0.0/0", &["1.2.3.4", "255.255.255.255"], &["::1"]),
            ("fd00::/8", &["fd00::1", "fdff::"], &["fc00::1", "253.0.0.0"]),
            ("::/0", &["::1", "2001:db8::"], &["127.0.0.1"]),
        ] {
            inside.iter().for_each(|ip| assert!(network(text).contains(ip.parse().unwrap()), "{text} {ip}"));
            outside.iter().for_each(|ip| assert!(!network(text).contains(ip.parse().unwrap()), "{text} {ip}"));
        }
        assert_eq!(
            (network("10.0.0.7").to_string(), network("::/0").to_string()),
            ("10.0.0.7/32".into(), "::/0".into())
        );
    }

    #[test]
    fn what_is_no_network_says_how_to_mend_it() {
        let ip = "10.0.0.1".parse().unwrap();
        for (text, error) in [
            ("10.0.0.1/8", NetworkError::HostBits("10.0.0.1/8".into(), network("10.0.0.0/8"))),
            ("10.0.0.1/33", NetworkError::Prefix(ip, 32)),
            ("10.0.0.1:80", NetworkError::Port(ip)),
            ("10.0.0.1/", NetworkError::Malformed("10.0.0.1/".into())),
            ("10.0.0.1/+8", NetworkError::Malformed("10.0.0.1/+8".into())),
            ("10.0.0.0/255.0.0.0", NetworkError::Malformed("10.0.0.0/255.0.0.0".into())),
            ("lan", NetworkError::Malformed("lan".into())),
        ] {
            assert_eq!(text.parse::<Network>(), Err(error), "{text}");
        }
    }
}
