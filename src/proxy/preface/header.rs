//! The PROXY header, versions 1 and 2 (HAProxy's doc/proxy-protocol.txt): how it is written, and what its first
//! bytes come to. Pure, and takes whatever comes; when a header is expected is [`super`]'s to say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::words::ProxyVersion;

/// The longest header that is taken. The text has 107 bytes at most, addresses in binary 216; the rest are extensions (TLVs).
pub const LONGEST: usize = 16 * 1024;
/// The longest line of version 1, with its CRLF.
const LONGEST_LINE: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED: usize = 16;
const PP2_TYPE_CRC32C: u8 = 0x03;

/// Who a connection's client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The sender itself, as for a health check.
    Sender,
    /// A client of whom the header does not tell.
    Unknown,
    /// A client over a Unix socket.
    Unix,
    /// From the first address to the second.
    Ip(SocketAddr, SocketAddr),
}

/// What the first bytes of a connection come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// More must come to tell.
    Partial,
    /// A header of so many bytes; what follows is the client's.
    Whole(usize, Origin),
    /// No header; holds what is wrong.
    Malformed(&'static str),
}

/// A header to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; LONGEST_LINE],
    length: u8,
}

impl Header {
    /// The header for a client's connection. Of a client who has no IP it tells nothing, in version 2 as LOCAL:
    /// HAProxy 2.6 refuses the PROXY command with another family.
    pub fn new(version: ProxyVersion, origin: Origin) -> Self {
        let mut header = Self { bytes: [0; LONGEST_LINE], length: 0 };
        match (version, origin) {
            (_, Origin::Sender | Origin::Unknown | Origin::Unix) => header.add(version.own()),
            (ProxyVersion::V1, Origin::Ip(from, to)) => header.line(from, to),
            (ProxyVersion::V2, Origin::Ip(from, to)) => {
                let ports = (from.port(), to.port());
                match same_family(from, to) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => header.binary(0x11, &from.octets(), &to.octets(), ports),
                    (from, to) => header.binary(0x21, &in_ipv6(from).octets(), &in_ipv6(to).octets(), ports),
                }
            }
        }
        header
    }

    fn add(&mut self, bytes: &[u8]) {
        let at = usize::from(self.length);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }

    fn line(&mut self, from: SocketAddr, to: SocketAddr) {
        let (source, destination) = same_family(from, to);
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let line = format!("PROXY {family} {source} {destination} {} {}\r\n", from.port(), to.port());
        self.add(line.as_bytes());
    }

    fn binary(&mut self, family: u8, from: &[u8], to: &[u8], ports: (u16, u16)) {
        let length = from.len() + to.len() + 4;
        self.add(SIGNATURE);
        self.add(&[0x21, family, 0, length as u8]); // version 2, PROXY
        self.add(from);
        self.add(to);
        self.add(&ports.0.to_be_bytes());
        self.add(&ports.1.to_be_bytes());
    }

    /// As it is to be sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Both addresses in one family: an IPv4 one beside an IPv6 one is mapped, as the document has it.
fn same_family(from: SocketAddr, to: SocketAddr) -> (IpAddr, IpAddr) {
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (from, to) if from.is_ipv4() == to.is_ipv4() => (from, to),
        (from, to) => (in_ipv6(from).into(), in_ipv6(to).into()),
    }
}

fn in_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Finds out what a connection begins with. Of the same bytes and more it never says otherwise, unless it said [`Decoded::Partial`].
pub fn decode(bytes: &[u8]) -> Decoded {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, want)| byte == want);
    if begins(SIGNATURE) {
        return if bytes.len() < FIXED { Decoded::Partial } else { binary(bytes) };
    }
    if begins(b"PROXY ") {
        return line(bytes);
    }
    Decoded::Malformed("it begins with neither signature")
}

fn line(bytes: &[u8]) -> Decoded {
    let shown = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = shown.iter().position(|byte| *byte == b'\n') else {
        return if shown.len() < LONGEST_LINE { Decoded::Partial } else { Decoded::Malformed("the line is too long") };
    };
    let Some(text) = shown[..end].strip_suffix(b"\r") else { return Decoded::Malformed("the line ends without CR") };
    match text.strip_prefix(b"PROXY ").and_then(origin) {
        Some(origin) => Decoded::Whole(end + 1, origin),
        None => Decoded::Malformed("the line is not \"PROXY TCP4|TCP6|UNKNOWN source destination port port\""),
    }
}

fn origin(text: &[u8]) -> Option<Origin> {
    // What follows UNKNOWN is to be ignored, whatever it is.
    if text == b"UNKNOWN" || text.starts_with(b"UNKNOWN ") {
        return Some(Origin::Unknown);
    }
    let words: Vec<&str> = std::str::from_utf8(text).ok()?.split(' ').collect();
    let [family, from, to, from_port, to_port] = words[..] else { return None };
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            _ => None,
        }
    };
    let port = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some(between((ip(from)?, port(from_port)?), (ip(to)?, port(to_port)?)))
}

fn between(from: (IpAddr, u16), to: (IpAddr, u16)) -> Origin {
    let socket = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
    Origin::Ip(socket(from), socket(to))
}

/// `bytes` are at least [`FIXED`].
fn binary(bytes: &[u8]) -> Decoded {
    let length = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let (version, command, family) = (bytes[12] >> 4, bytes[12] & 0xf, bytes[13]);
    if version != 2 {
        return Decoded::Malformed("the version is not 2");
    }
    if command > 1 {
        return Decoded::Malformed("the command is neither LOCAL nor PROXY");
    }
    if family >> 4 > 3 || family & 0xf > 2 {
        return Decoded::Malformed("the family is unknown");
    }
    if length > LONGEST {
        return Decoded::Malformed("it is longer than 16 KiB");
    }
    let Some(block) = bytes.get(FIXED..length) else { return Decoded::Partial };
    if command == 0 {
        return Decoded::Whole(length, Origin::Sender); // the block is to be ignored
    }
    let addresses = match family >> 4 {
        0 => return Decoded::Whole(length, Origin::Unknown), // likewise
        1 => 12,
        2 => 36,
        _ => 216,
    };
    let Some((addresses, extensions)) = block.split_at_checked(addresses) else {
        return Decoded::Malformed("it is too short for its addresses");
    };
    if let Err(why) = check_extensions(&bytes[..length], extensions) {
        return Decoded::Malformed(why);
    }
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    let origin = match family {
        0x11 => {
            let ip = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&addresses[at..at + 4]).expect("4 bytes")).into();
            between((ip(0), port(8)), (ip(4), port(10)))
        }
        0x21 => {
            let ip =
                |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&addresses[at..at + 16]).expect("16 bytes")).into();
            between((ip(0), port(32)), (ip(16), port(34)))
        }
        0x31 => Origin::Unix,
        _ => Origin::Unknown, // datagrams, or an unspecified transport
    };
    Decoded::Whole(length, origin)
}

/// Walks the TLVs, of which only the checksum means something here.
fn check_extensions(header: &[u8], mut rest: &[u8]) -> Result<(), &'static str> {
    while !rest.is_empty() {
        let [kind, high, low, after @ ..] = rest else { return Err("an extension is cut short") };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, after)) = after.split_at_checked(length) else {
            return Err("an extension overruns the header");
        };
        if *kind == PP2_TYPE_CRC32C {
            let Ok(told) = <[u8; 4]>::try_from(value) else { return Err("the checksum has not 4 bytes") };
            let at = header.len() - after.len() - length;
            if crc32c(&[&header[..at], &[0; 4], after]) != u32::from_be_bytes(told) {
                return Err("the checksum is wrong");
            }
        }
        rest = after;
    }
    Ok(())
}

/// The checksum of RFC 9260, appendix A. Bit by bit: headers are short, and few have one.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let step = |crc: u32, _: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !parts.iter().copied().flatten().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests;
