//! One probe: connect, send if asked, compare the beginning of the answer if asked, close. Tells a backend's
//! fault from our own, such as a lack of descriptors, of which a backend must not turn down.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use crate::words::{Address, CheckSpec, ProxyVersion};

/// Bytes of a wrong answer that a reason shows.
const SHOWN: usize = 64;

/// Why a probe did not succeed. Shown, it is the reason that `stats` and the log give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeError {
    /// The backend failed it.
    Failed(String),
    /// It could not be carried out, for want of something of our own. Says nothing of the backend.
    Unable(String),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => f.write_str(reason),
            Self::Unable(reason) => write!(f, "cannot probe: {reason}"),
        }
    }
}

impl std::error::Error for ProbeError {}

/// Probes the backend at `address` once and tells how long it took; never longer than `spec.timeout`.
///
/// # Errors
/// Where the connect, the exchange or the comparison fails, or the time is up.
pub async fn probe(address: &Address, spec: &CheckSpec) -> Result<Duration, ProbeError> {
    let started = Instant::now();
    let time = Time { end: started + spec.timeout, allowed: spec.timeout };
    let header = spec.send_proxy.map(ProxyVersion::own);
    // A plain close at the end: a reset would be cheaper for both, but fills the logs of some servers.
    match address {
        Address::Ip(ip) => {
            let own_port = spec.port.is_none_or(|port| port == ip.port());
            let ip = SocketAddr::new(ip.ip(), spec.port.unwrap_or(ip.port()));
            let stream = time.bound("connect: ", TcpStream::connect(ip)).await?;
            if met_itself(&stream) {
                return Err(ProbeError::Failed("connect: connection refused".into()));
            }
            exchange(stream, header.filter(|_| own_port), spec, time).await?;
        }
        Address::Unix(path) => {
            exchange(time.bound("connect: ", UnixStream::connect(path)).await?, header, spec, time).await?;
        }
    }
    Ok(started.elapsed())
}

/// On loopback the kernel may draw as our own port the very one we connect to, where nobody listens.
fn met_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    header: Option<&[u8]>,
    spec: &CheckSpec,
    time: Time,
) -> Result<(), ProbeError> {
    let opening = [header.unwrap_or_default(), spec.send.as_deref().unwrap_or_default()].concat();
    if !opening.is_empty() {
        time.bound("send: ", stream.write_all(&opening)).await?;
    }
    let Some(expected) = &spec.expect else { return Ok(()) };
    // A server may answer in pieces, or not at all.
    let mut answer = vec![0; expected.len()];
    let mut length = 0;
    while length < expected.len() {
        let read = time.bound("", stream.read(&mut answer[length..])).await;
        let reason = match read {
            Ok(0) if length == 0 => format!("closed without an answer, expected {}", quoted(expected)),
            Ok(0) => format!("answered {} and closed, expected {}", quoted(&answer[..length]), quoted(expected)),
            Ok(n) => {
                length += n;
                if expected.starts_with(&answer[..length]) {
                    continue;
                }
                // What came along is read too: "-ERR loading" says more than "-".
                format!("answered {}, expected {}", quoted(&answer[..length]), quoted(expected))
            }
            Err(ProbeError::Failed(_)) if length > 0 && time.is_up() => {
                let (got, allowed) = (quoted(&answer[..length]), time.allowed);
                format!("answered {got} within {allowed:?}, expected {}", quoted(expected))
            }
            Err(error) => return Err(error),
        };
        return Err(ProbeError::Failed(reason));
    }
    Ok(())
}

/// What is left of the time a probe may take.
#[derive(Clone, Copy)]
struct Time {
    end: Instant,
    allowed: Duration,
}

impl Time {
    fn is_up(self) -> bool {
        Instant::now() >= self.end
    }

    async fn bound<T>(self, doing: &str, step: impl Future<Output = io::Result<T>>) -> Result<T, ProbeError> {
        match timeout_at(self.end, step).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if is_ours(&error) => Err(ProbeError::Unable(format!("{doing}{}", words(&error)))),
            Ok(Err(error)) => Err(ProbeError::Failed(format!("{doing}{}", words(&error)))),
            Err(_) => Err(ProbeError::Failed(format!("{doing}no answer within {:?}", self.allowed))),
        }
    }
}

/// Whether we lack something, rather than the backend: descriptors, memory, buffers, free local ports.
fn is_ours(error: &io::Error) -> bool {
    // errno(3), Linux on all machines that Rust has as tier 1.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::AddrNotAvailable)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOBUFS))
}

/// "Connection refused (os error 111)" as "connection refused".
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

fn quoted(bytes: &[u8]) -> String {
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::Percent;
    use tokio::net::{TcpListener, UnixListener};

    /// Long enough never to pass where the answer comes.
    const LONG: Duration = Duration::from_secs(20);

    fn check(send: Option<&str>, expect: Option<&str>, timeout: Duration) -> CheckSpec {
        CheckSpec {
            port: None,
            send_proxy: None,
            send: send.map(|bytes| bytes.as_bytes().into()),
            expect: expect.map(|bytes| bytes.as_bytes().into()),
            interval: LONG,
            fast_interval: LONG,
            down_interval: LONG,
            timeout,
            rise: 2,
            fall: 3,
            jitter: Percent::new(0).unwrap(),
        }
    }

    fn failed(reason: &str) -> Result<(), ProbeError> {
        Err(ProbeError::Failed(reason.into()))
    }

    /// What one client sees: pieces, each sent once all of `after` has come, then a close or silence.
    #[derive(Clone, Copy)]
    struct Server {
        after: &'static str,
        pieces: &'static [&'static str],
        closes: bool,
    }

    impl Server {
        async fn play(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
            let mut heard = vec![0; self.after.len()];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, self.after.as_bytes());
            for piece in self.pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                // So that the pieces come as several reads.
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            if !self.closes {
                std::future::pending::<()>().await;
            }
        }

        async fn listen(self) -> Address {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = Address::Ip(listener.local_addr().unwrap());
            tokio::spawn(async move { self.play(listener.accept().await.unwrap().0).await });
            address
        }
    }

    #[tokio::test]
    async fn the_answer_decides_and_the_reason_says_why() {
        let short = Duration::from_millis(30);
        for (check, after, pieces, closes, result) in [
            (check(None, None, LONG), "", &[][..], false, Ok(())),
            (check(Some("PING"), None, LONG), "", &[], false, Ok(())),
            (check(None, Some("220 "), LONG), "", &["220 mail"], false, Ok(())),
            (check(Some("PING\r\n"), Some("+PONG"), LONG), "PING\r\n", &["+PONG\r\n"], false, Ok(())),
            (check(Some("PING\r\n"), Some("+PONG"), LONG), "PING\r\n", &["+", "PO", "NG"], true, Ok(())),
            (
                check(None, Some("+PONG"), LONG),
                "",
                &["-ERR\n loading"],
                false,
                failed(r#"answered "-ERR\n", expected "+PONG""#),
            ),
            (check(None, Some("+PONG"), LONG), "", &["+", "NO"], false, failed(r#"answered "+NO", expected "+PONG""#)),
            (check(None, Some("+PONG"), LONG), "", &[], true, failed(r#"closed without an answer, expected "+PONG""#)),
            (
                check(None, Some("+PONG"), LONG),
                "",
                &["+P"],
                true,
                failed(r#"answered "+P" and closed, expected "+PONG""#),
            ),
            (check(None, Some("+PONG"), short), "", &[], false, failed("no answer within 30ms")),
            (
                check(None, Some("+PONG"), short * 10),
                "",
                &["+P"],
                false,
                failed(r#"answered "+P" within 300ms, expected "+PONG""#),
            ),
        ] {
            let server = Server { after, pieces, closes };
            assert_eq!(probe(&server.listen().await, &check).await.map(drop), result, "tcp, {check:?}");

            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("backend");
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(async move { server.play(listener.accept().await.unwrap().0).await });
            assert_eq!(probe(&Address::Unix(path), &check).await.map(drop), result, "unix, {check:?}");
        }
    }

    #[tokio::test]
    async fn who_does_not_listen_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = Address::Ip(listener.local_addr().unwrap());
        drop(listener);
        let spec = check(None, None, LONG);
        assert_eq!(probe(&gone, &spec).await.map(drop), failed("connect: connection refused"));
        let nowhere = Address::Unix("/nowhere/at/all".into());
        assert_eq!(probe(&nowhere, &spec).await.map(drop), failed("connect: no such file or directory"));
    }

    #[tokio::test]
    async fn a_full_queue_is_no_answer() {
        // A listener with room for one that never accepts leaves further connects hanging.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _first = TcpStream::connect(address).await.unwrap();
        let spec = check(None, None, Duration::from_millis(30));
        assert_eq!(probe(&Address::Ip(address), &spec).await.map(drop), failed("connect: no answer within 30ms"));
    }

    #[tokio::test]
    async fn another_port_can_be_probed() {
        let Address::Ip(other) = Server { after: "", pieces: &["ok"], closes: true }.listen().await else { panic!() };
        let spec = CheckSpec { port: Some(other.port()), ..check(None, Some("ok"), LONG) };
        assert!(probe(&"127.0.0.1:1".parse().unwrap(), &spec).await.is_ok());
    }

    /// Another port is another service: HAProxy too sends it no header.
    #[tokio::test]
    async fn a_header_of_no_client_precedes_what_is_sent_to_the_backends_own_port() {
        for (version, header) in
            [(ProxyVersion::V1, "PROXY UNKNOWN\r\n"), (ProxyVersion::V2, "\r\n\r\n\0\r\nQUIT\n \0\0\0")]
        {
            for (own, send) in [(true, None), (true, Some("PING")), (false, Some("PING"))] {
                let after = [if own { header } else { "" }, send.unwrap_or_default()].concat();
                let server = Server { after: after.leak(), pieces: &["ok"], closes: true };
                let Address::Ip(at) = server.listen().await else { panic!() };
                let spec = CheckSpec { send_proxy: Some(version), ..check(send, Some("ok"), LONG) };
                let (backend, port) = if own { (at, None) } else { (SocketAddr::new(at.ip(), 1), Some(at.port())) };
                assert!(
                    probe(&Address::Ip(backend), &CheckSpec { port, ..spec }).await.is_ok(),
                    "{version} {own} {send:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_connection_to_itself_is_no_backend() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        assert!(met_itself(&socket.connect(own).await.unwrap()));
        let (listener, client) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), tokio::net::TcpSocket::new_v4().unwrap());
        assert!(!met_itself(&client.connect(listener.local_addr().unwrap()).await.unwrap()));
    }

    #[test]
    fn our_own_wants_are_not_held_against_a_backend() {
        for (errno, ours) in [(24, true), (23, true), (105, true), (12, true), (99, true), (111, false), (113, false)] {
            assert_eq!(is_ours(&io::Error::from_raw_os_error(errno)), ours, "errno {errno}");
        }
    }

    #[test]
    fn a_reason_is_bounded_and_cannot_draw_on_a_terminal() {
        assert_eq!(quoted(b"\x1b[31m\xff\""), r#""\x1b[31m\xff\"""#);
        assert_eq!(quoted(&[b'x'; 65]), format!("\"{}…\"", "x".repeat(64)));
    }
}
