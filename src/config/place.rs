//! Addresses of the file: the slips that `words::AddressError` is too general for, and which two addresses overlap.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::file::Node;
use super::value::{clip, scalar};
use crate::words::{Address, AddressError, Network, NetworkError};

/// The address of a listener.
pub(super) fn bind(node: &Node) -> Result<Address, String> {
    let text = scalar(node, "an address such as \"0.0.0.0:8080\"")?.text.as_str();
    match text.parse().map_err(|error| slip(text, "0.0.0.0").unwrap_or_else(|| shown(&error)))? {
        Address::Ip(ip) => match nowhere(ip) {
            Some(why) => Err(format!("\"{text}\" {why}")),
            None => Ok(Address::Ip(ip)),
        },
        address => Ok(address),
    }
}

/// The address of a backend, whose port must be known.
pub(super) fn backend(node: &Node) -> Result<Address, String> {
    let text = scalar(node, "an address such as \"10.0.0.7:8080\"")?.text.as_str();
    match text.parse() {
        Ok(Address::Ip(ip)) if ip.port() == 0 => {
            Err(format!("\"{text}\" has port 0, to which nothing can connect; write a port from 1 to 65535"))
        }
        Ok(Address::Ip(ip)) if ip.ip().to_canonical().is_unspecified() => Err(format!(
            "\"{text}\" stands for every address, and is none that a server has; write \"{}:{}\" for one on this machine",
            if ip.is_ipv4() { "127.0.0.1" } else { "[::1]" },
            ip.port()
        )),
        Ok(Address::Ip(ip)) => match nowhere(ip) {
            Some(why) => Err(format!("\"{text}\" {why}")),
            None => Ok(Address::Ip(ip)),
        },
        Ok(address) => Ok(address),
        Err(error) => Err(slip(text, "10.0.0.7").unwrap_or_else(|| shown(&error))),
    }
}

/// Why TCP has no use for an address, on any machine.
fn nowhere(address: SocketAddr) -> Option<String> {
    match (address.ip().to_canonical(), address) {
        (ip, _) if ip.is_multicast() => {
            Some("is a multicast address, which TCP has no use for; write one of a machine".into())
        }
        (IpAddr::V4(ip), _) if ip.is_broadcast() => {
            Some("is the broadcast address, which TCP has no use for; write one of a machine".into())
        }
        (IpAddr::V6(ip), SocketAddr::V6(scoped)) if ip.is_unicast_link_local() && scoped.scope_id() == 0 => {
            Some(format!(
                "is an address of one link, and does not say which; write \"[{ip}%2]:{}\" with the number of the interface (`ip link`)",
                scoped.port()
            ))
        }
        _ => None,
    }
}

/// Whom to trust: a network, or with `unix:`, which is `None`, whoever may connect to a Unix socket.
pub(super) fn trusted(node: &Node) -> Result<Option<Network>, String> {
    match scalar(node, "a network such as \"10.0.0.0/8\", or \"unix:\"")?.text.as_str() {
        "unix:" => Ok(None),
        text if text.starts_with("unix") => Err(format!(
            "\"{}\": a Unix client has no path; write \"unix:\" for whoever connects to this listener's Unix sockets",
            clip(text)
        )),
        text => text.parse().map(Some).map_err(|error: NetworkError| clip_long(&error.to_string())),
    }
}

fn shown(error: &AddressError) -> String {
    clip_long(&error.to_string())
}

/// A message about a text of a megabyte is not one.
fn clip_long(message: &str) -> String {
    if message.chars().count() <= 240 { clip_controls(message) } else { clip(message) }
}

fn clip_controls(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The slips that can be mended by a rule; `any` is the IP that stands for one left out.
fn slip(text: &str, any: &str) -> Option<String> {
    let says = |what: &str, mend: String| Some(format!("\"{}\" {what}; write \"{mend}\"", clip(text)));
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let trimmed = text.trim();
    if let Some((scheme, rest)) = trimmed.split_once("://") {
        let rest = rest.trim_end_matches('/');
        let known = matches!(scheme, "tcp" | "http" | "https") && rest.parse::<Address>().is_ok();
        return if known { says("is a URL, not an address", rest.into()) } else { None };
    }
    if is_port(trimmed) {
        return says("is a port without an IP", format!("{any}:{trimmed}"));
    }
    if let Some(port) = trimmed.strip_prefix(':').or_else(|| trimmed.strip_prefix("*:")).filter(|port| is_port(port)) {
        return says("has no IP", format!("{any}:{port}"));
    }
    if let Some((port, ip)) =
        trimmed.split_once(':').filter(|(port, ip)| is_port(port) && ip.parse::<Ipv4Addr>().is_ok())
    {
        return says("has port and IP the wrong way round", format!("{ip}:{port}"));
    }
    if let Some(port) = trimmed.strip_prefix("localhost:").filter(|port| is_port(port)) {
        return says("has a host name, which lbd does not resolve", format!("127.0.0.1:{port}"));
    }
    if let Some((ip, port)) = trimmed
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"))
        .and_then(|(inside, port)| Some((inside.split_once('%')?.0, port)))
        .filter(|(ip, port)| ip.parse::<Ipv6Addr>().is_ok() && is_port(port))
    {
        return Some(format!(
            "\"{}\" names its interface; write the number that it has (`ip link`), as in \"[{ip}%2]:{port}\"",
            clip(text)
        ));
    }
    let bare = trimmed.trim_matches(['"', '\'', ',', ';', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}']);
    if bare != trimmed && bare.parse::<Address>().is_ok() {
        return says("has a stray character at its end", bare.into());
    }
    let joined: String = trimmed.chars().filter(|c| !c.is_whitespace()).collect();
    if joined.len() != text.len() && joined.parse::<Address>().is_ok() {
        return says("has a space in it", joined);
    }
    if let Some((ip, port)) =
        trimmed.split_once([' ', ';', ',', '/']).filter(|(ip, port)| ip.parse::<IpAddr>().is_ok() && is_port(port))
    {
        return says("has no colon before the port", SocketAddr::new(ip.parse().ok()?, port.parse().ok()?).to_string());
    }
    // "::1:8080" is an IPv6 address as a whole, and hardly meant to be.
    if let Some((ip, port)) = trimmed
        .rsplit_once(':')
        .filter(|(ip, port)| is_port(port) && ip.contains(':') && (port.len() > 3 || matches!(*port, "80" | "443")))
    {
        let ip = ip.parse::<Ipv6Addr>().ok()?;
        return says("has an IPv6 address without brackets", format!("[{ip}]:{port}"));
    }
    if trimmed.starts_with('/') && trimmed.len() > 1 {
        return says("is a path", format!("unix:{trimmed}"));
    }
    let host = trimmed.rsplit_once(':').map_or(trimmed, |(host, _)| host);
    if !host.is_empty()
        && host.contains('.')
        && host.chars().all(|c| c.is_ascii_digit() || c == '.')
        && host.parse::<Ipv4Addr>().is_err()
    {
        return Some(format!(
            "\"{}\" is no IPv4 address: that is four numbers from 0 to 255, such as \"10.0.0.7\"",
            clip(host)
        ));
    }
    None
}

/// The addresses of listeners, for finding what overlaps without comparing each with each.
#[derive(Default)]
pub(super) struct Taken {
    /// The first listener address, by number, that takes what the key says.
    first: HashMap<Span, usize>,
}

/// What an address takes of the machine.
#[derive(PartialEq, Eq, Hash)]
enum Span {
    Ip(IpAddr, u16),
    AnyIpv4(u16),
    AnyIp(u16),
    Unix(PathBuf),
}

impl Taken {
    /// Adds an address; returns the number of one that was added before and overlaps with it.
    /// Port 0 overlaps only with itself at the same IP, as sockets are known by their address; `[::]` takes IPv4 clients too.
    pub fn add(&mut self, address: &Address, number: usize) -> Option<usize> {
        let (asks, takes) = match address {
            Address::Unix(path) => (vec![Span::Unix(tidy(path))], vec![Span::Unix(tidy(path))]),
            Address::Ip(ip) if ip.port() == 0 => {
                let exact = || vec![Span::Ip(ip.ip().to_canonical(), 0)];
                (exact(), exact())
            }
            Address::Ip(ip) => {
                let (ip, port) = (ip.ip().to_canonical(), ip.port());
                let mut asks = wide_and_exact(ip, port);
                let mut takes = vec![Span::Ip(ip, port), Span::AnyIp(port)];
                if ip.is_ipv4() {
                    takes.push(Span::AnyIpv4(port));
                }
                if ip.is_unspecified() {
                    asks.push(if ip.is_ipv4() { Span::AnyIpv4(port) } else { Span::AnyIp(port) });
                }
                (asks, takes)
            }
        };
        let found = self.earliest(&asks);
        for span in takes {
            self.first.entry(span).or_insert(number);
        }
        found
    }

    /// The number of an address at which a connection to `backend` arrives, as far as the two tell.
    pub fn reached_from(&self, backend: &Address) -> Option<usize> {
        let asks = match backend {
            Address::Unix(path) => vec![Span::Unix(tidy(path))],
            Address::Ip(address) => {
                let port = address.port();
                match address.ip().to_canonical() {
                    // The kernel connects 0.0.0.0 and [::] to the machine itself.
                    IpAddr::V4(ip) if ip.is_unspecified() => wide_and_exact(Ipv4Addr::LOCALHOST.into(), port),
                    IpAddr::V6(ip) if ip.is_unspecified() => wide_and_exact(Ipv6Addr::LOCALHOST.into(), port),
                    ip if ip.is_loopback() => wide_and_exact(ip, port),
                    ip => vec![Span::Ip(ip, port)],
                }
            }
        };
        self.earliest(&asks)
    }

    fn earliest(&self, asks: &[Span]) -> Option<usize> {
        asks.iter().filter_map(|span| self.first.get(span)).min().copied()
    }
}

/// An address, and the wildcards that take it too.
fn wide_and_exact(ip: IpAddr, port: u16) -> Vec<Span> {
    let mut spans = vec![Span::Ip(ip, port), Span::Ip(Ipv6Addr::UNSPECIFIED.into(), port)];
    if ip.is_ipv4() {
        spans.push(Span::Ip(Ipv4Addr::UNSPECIFIED.into(), port));
    }
    spans
}

/// `//` and `/./` do not make another path.
pub(super) fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether two addresses cannot both be listened on, by comparing them.
    fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
        let (x, y) = (a.ip().to_canonical(), b.ip().to_canonical());
        let takes = |wide: IpAddr, ip: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4());
        a.port() == b.port() && (x == y || a.port() != 0 && (takes(x, y) || takes(y, x)))
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let ips = ["0.0.0.0", "127.0.0.1", "10.0.0.1", "::", "::1", "::ffff:10.0.0.1"];
        let ips = ips.map(|ip| ip.parse::<IpAddr>().unwrap()).to_vec();
        (prop::sample::select(ips), 0..3_u16).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn what_is_taken_is_found_as_by_comparing_each_with_each(addresses in prop::collection::vec(address(), 1..8)) {
            let mut taken = Taken::default();
            for (number, address) in addresses.iter().enumerate() {
                let found = taken.add(&Address::Ip(*address), number).is_some();
                prop_assert_eq!(found, addresses[..number].iter().any(|other| overlap(*other, *address)), "{}", address);
            }
        }
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        for text in ["224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80", "[fe80::1]:80", "[::ffff:224.0.0.1]:80"] {
            assert!(nowhere(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in ["0.0.0.0:80", "[::]:80", "[fe80::1%2]:80", "10.0.0.255:80", "240.0.0.1:80", "[fd00::1]:80"] {
            assert_eq!(nowhere(text.parse().unwrap()), None, "{text}");
        }
        assert!(slip("[fe80::1%eth0]:80", "").is_some_and(|why| why.contains("[fe80::1%2]:80")));
    }

    #[test]
    fn a_backend_that_is_lbd_itself_is_known() {
        for (backend, listener, reaches) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.9:80", "[::]:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::1]:80", "[::]:80", true),
            ("[::1]:80", "0.0.0.0:80", false),
            ("10.0.0.7:80", "0.0.0.0:80", false),
            ("10.0.0.7:80", "10.0.0.7:80", true),
            ("127.0.0.1:81", "127.0.0.1:80", false),
            ("unix:/run//a", "unix:/run/a", true),
            ("unix:/run/b", "unix:/run/a", false),
        ] {
            let mut taken = Taken::default();
            taken.add(&listener.parse().unwrap(), 0);
            assert_eq!(taken.reached_from(&backend.parse().unwrap()).is_some(), reaches, "{backend} {listener}");
        }
    }
}
