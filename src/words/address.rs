//! Where a socket is: an IP with a port, or the path of a Unix socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a Unix socket that Linux takes (`sun_path` less its NUL; unix(7)).
const MAX_UNIX_PATH: usize = 107;

/// The address of a listener or of a backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An IP address with a port.
    Ip(SocketAddr),
    /// The absolute path of a Unix stream socket, written `unix:/path`.
    Unix(PathBuf),
}

/// Why a text is not an address. Its words say how to mend the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressError {
    /// The text is empty.
    Empty,
    /// An IP address without a port; holds the text as it should begin (an IPv6 address in brackets).
    NoPort(String),
    /// A port that is no number from 0 to 65535.
    Port(String),
    /// A host name, which lbd does not resolve.
    HostName(String),
    /// A Unix path that is not absolute.
    RelativePath(String),
    /// A Unix path too long for the kernel; holds its length.
    LongPath(usize),
    /// Anything else.
    Malformed(String),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the address is empty; write an IP and a port, such as \"10.0.0.7:8080\""),
            Self::NoPort(ip) => {
                let bare = ip.trim_start_matches('[').trim_end_matches(']');
                write!(f, "\"{bare}\" has no port; write \"{ip}:8080\"")
            }
            Self::Port(port) => write!(f, "\"{port}\" is not a port; write a number from 1 to 65535"),
            Self::HostName(host) => {
                write!(f, "\"{host}\" is a host name, which lbd does not resolve; write its IP address")
            }
            Self::RelativePath(path) => {
                write!(f, "the path \"{path}\" is not absolute; write \"unix:/run/lbd/web.sock\"")
            }
            Self::LongPath(n) => {
                write!(f, "the path has {n} bytes; the kernel takes at most {MAX_UNIX_PATH} for a socket")
            }
            Self::Malformed(text) => {
                write!(f, "\"{text}\" is not an address; write \"10.0.0.7:8080\", \"[::1]:8080\" or \"unix:/path\"")
            }
        }
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        if let Ok(ip) = text.parse::<SocketAddr>() {
            return Ok(Self::Ip(ip));
        }
        Err(wrong_ip(text))
    }
}

fn unix(path: &str) -> Result<Address, AddressError> {
    if !path.starts_with('/') {
        return Err(AddressError::RelativePath(path.into()));
    }
    if path.len() > MAX_UNIX_PATH {
        return Err(AddressError::LongPath(path.len()));
    }
    if path.contains('\0') {
        return Err(AddressError::Malformed(format!("unix:{path}").replace('\0', "\\0")));
    }
    Ok(Address::Unix(path.into()))
}

/// Finds the likeliest slip in a text that is no `IP:port`.
fn wrong_ip(text: &str) -> AddressError {
    if text.is_empty() {
        return AddressError::Empty;
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    match bare.parse() {
        Ok(IpAddr::V4(ip)) => return AddressError::NoPort(ip.to_string()),
        Ok(IpAddr::V6(ip)) => return AddressError::NoPort(format!("[{ip}]")),
        Err(_) => {}
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return if looks_like_a_host(text) {
            AddressError::HostName(text.into())
        } else {
            AddressError::Malformed(text.into())
        };
    };
    let bare = host.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(host);
    let host_is_ip = bare.parse::<IpAddr>().is_ok();
    match port.parse::<u16>() {
        Err(_) if host_is_ip => AddressError::Port(port.into()),
        Ok(_) if looks_like_a_host(host) => AddressError::HostName(host.into()),
        _ => AddressError::Malformed(text.into()),
    }
}

fn looks_like_a_host(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => f.pad(&ip.to_string()),
            Self::Unix(path) => f.pad(&format!("unix:{}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_shown() {
        for text in ["10.0.0.7:80", "[::1]:8080", "[::]:0", "unix:/run/a.sock"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(text.into()));
        }
    }

    #[test]
    fn what_is_no_address_says_how_to_mend_it() {
        for (text, error) in [
            ("", AddressError::Empty),
            ("10.0.0.7", AddressError::NoPort("10.0.0.7".into())),
            ("::1", AddressError::NoPort("[::1]".into())),
            ("[::1]", AddressError::NoPort("[::1]".into())),
            ("10.0.0.7:http", AddressError::Port("http".into())),
            ("10.0.0.7:70000", AddressError::Port("70000".into())),
            ("db.example:5432", AddressError::HostName("db.example".into())),
            ("localhost", AddressError::HostName("localhost".into())),
            ("300.1.1.1:80", AddressError::Malformed("300.1.1.1:80".into())),
            ("unix:web.sock", AddressError::RelativePath("web.sock".into())),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text:?}");
        }
    }
}
