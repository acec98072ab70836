//! Where the client commands connect to, and the connection: TCP or Unix, under one type.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// An address to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// IPv4 or IPv6, with its port.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    /// Reads `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`. A host name is looked up here, once; its first address counts.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("the path is missing; write unix:/run/app.sock".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let has_port =
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            return Err("no port; write HOST:PORT, [IPV6]:PORT or unix:PATH".into());
        }
        let mut found = text.to_socket_addrs().map_err(|error| format!("no such host: {error}"))?;
        found.next().map(Self::Tcp).ok_or_else(|| "the host has no address".into())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => address.fmt(f),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Target {
    /// Connects; small writes are sent at once.
    pub async fn connect(&self) -> io::Result<Stream> {
        match self {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Target::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
        }
    }
}

/// A connection to a target.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Ready when a write may make progress; asked before bytes are made for it.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_write_ready(cx),
            Stream::Unix(stream) => stream.poll_write_ready(cx),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // neither kind of socket holds bytes back in the process
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_hosts_with_ports_or_unix_paths() {
        for text in ["127.0.0.1:8080", "[::1]:8080", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert!(matches!("localhost:80".parse(), Ok(Target::Tcp(address)) if address.ip().is_loopback()));
        for text in
            ["", "127.0.0.1", ":8080", "127.0.0.1:", "127.0.0.1:99999", "::1", "unix:", "[::1]", "/run/app.sock"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
