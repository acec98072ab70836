//! Probes as servers see them: what decides, what the reason says, and how they end.

use std::os::fd::AsFd;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use super::*;
use crate::words::Percent;

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

fn pool(name: &str) -> PoolName {
    name.parse().unwrap()
}

impl Prober<usize> {
    fn of(places: u64) -> Self {
        Self::new(places * SHARE).unwrap()
    }

    fn probe(&mut self, key: usize, in_pool: &str, address: &Address, spec: &CheckSpec) {
        self.start(key, &pool(in_pool), address.clone(), spec.clone(), Outlook::Good, Instant::now());
    }

    /// The next results, those that wait aside; at least one.
    async fn results(&mut self) -> Vec<(usize, Result<(), ProbeError>)> {
        loop {
            let reports = self.drive(Instant::now()).into_iter().filter_map(|report| match report {
                Report::Ended(key, result) => Some((key, result.map(drop))),
                Report::Began(..) => None,
            });
            let results: Vec<_> = reports.collect();
            if !results.is_empty() {
                return results;
            }
            self.ready().await;
        }
    }

    /// Goes on until the future is done.
    async fn beside<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(done);
        loop {
            self.drive(Instant::now());
            tokio::select! {
                it = &mut done => return it,
                () = self.ready() => {}
            }
        }
    }
}

async fn probe(address: &Address, spec: &CheckSpec) -> Result<(), ProbeError> {
    let mut prober = Prober::of(4);
    prober.probe(0, "p", address, spec);
    let mut results = prober.results().await;
    assert_eq!((results.len(), results[0].0), (1, 0));
    results.remove(0).1
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
        let (listener, address) = listen().await;
        tokio::spawn(async move { self.play(listener.accept().await.unwrap().0).await });
        address
    }
}

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Ip(listener.local_addr().unwrap());
    (listener, address)
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
        (check(None, Some("+PONG"), LONG), "", &["+P"], true, failed(r#"answered "+P" and closed, expected "+PONG""#)),
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
        assert_eq!(probe(&server.listen().await, &check).await, result, "tcp, {check:?}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backend");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move { server.play(listener.accept().await.unwrap().0).await });
        assert_eq!(probe(&Address::Unix(path), &check).await, result, "unix, {check:?}");
    }
}

#[tokio::test]
async fn who_does_not_listen_fails() {
    let (listener, gone) = listen().await;
    drop(listener);
    let spec = check(None, None, LONG);
    assert_eq!(probe(&gone, &spec).await, failed("connect: connection refused"));
    let nowhere = Address::Unix("/nowhere/at/all".into());
    assert_eq!(probe(&nowhere, &spec).await, failed("connect: no such file or directory"));
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
    assert_eq!(probe(&Address::Ip(address), &spec).await, failed("connect: no answer within 30ms"));
}

/// Its connect says so at once, and nobody tells when there is room.
#[tokio::test]
async fn a_full_queue_of_a_unix_socket_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let first = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let address = Address::Unix(path);
    let spec = check(None, None, Duration::from_millis(50));
    assert_eq!(probe(&address, &spec).await, failed("connect: no answer within 50ms"));
    let mut prober = Prober::of(4);
    prober.probe(0, "p", &address, &check(None, None, LONG));
    assert_eq!(prober.drive(Instant::now()), []);
    drop(socket.accept().unwrap());
    assert_eq!(prober.results().await, [(0, Ok(()))]);
    drop(first);
}

#[tokio::test]
async fn another_port_can_be_probed() {
    let Address::Ip(other) = Server { after: "", pieces: &["ok"], closes: true }.listen().await else { panic!() };
    let spec = CheckSpec { port: Some(other.port()), ..check(None, Some("ok"), LONG) };
    assert_eq!(probe(&"127.0.0.1:1".parse().unwrap(), &spec).await, Ok(()));
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
            let result = probe(&Address::Ip(backend), &CheckSpec { port, ..spec }).await;
            assert_eq!(result, Ok(()), "{version} {own} {send:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_to_itself_is_no_backend() {
    let own = tokio::net::TcpSocket::new_v4().unwrap();
    own.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = own.local_addr().unwrap();
    let met = own.connect(address).await.unwrap();
    assert!(socket::has_met_itself(&met.as_fd().try_clone_to_owned().unwrap(), address));
    let (listener, _) = listen().await;
    let other = listener.local_addr().unwrap();
    let met = TcpStream::connect(other).await.unwrap();
    assert!(!socket::has_met_itself(&met.as_fd().try_clone_to_owned().unwrap(), other));
}

/// A server that speaks first, one that says more than is asked for, one that says it late: each hears an end.
#[tokio::test]
async fn a_probe_ends_without_a_reset() {
    for (check, after, pieces) in [
        (check(None, None, LONG), "", &["SSH-2.0-Server\r\n"][..]),
        (check(None, Some("SSH-2.0"), LONG), "", &["SSH-2.0-Server\r\n"]),
        (check(Some("GET /"), Some("HTTP"), LONG), "GET /", &["HTTP/1.0 200 OK\r\n\r\n", "a", "b"]),
        (check(Some("PING"), Some("+PONG"), LONG), "PING", &["-ERR is loading\r\n"]),
    ] {
        let (listener, address) = listen().await;
        let mut prober = Prober::of(4);
        prober.probe(0, "p", &address, &check);
        let server = async {
            let mut stream = listener.accept().await.unwrap().0;
            stream.read_exact(&mut vec![0; after.len()]).await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            stream.read(&mut [0]).await.map_err(|e| e.kind())
        };
        assert_eq!(prober.beside(server).await, Ok(0), "{check:?}");
    }
}

/// The backend's word is enough: its verdict does not wait for the end.
#[tokio::test]
async fn a_connection_that_the_server_keeps_is_closed_within_bounds_and_holds_no_place() {
    let (listener, address) = listen().await;
    let mut prober = Prober::of(4);
    let mut kept = Vec::new();
    for key in 0..20 {
        prober.probe(key, "p", &address, &check(None, None, LONG));
        assert_eq!(prober.results().await, [(key, Ok(()))]);
        kept.push(listener.accept().await.unwrap().0);
    }
    assert!(prober.closing.next_look().is_some());
    let (mut last, mut buffer) = (kept.pop().unwrap(), [0]);
    assert_eq!(prober.beside(last.read(&mut buffer)).await.unwrap(), 0);
    while let Some(at) = prober.closing.next_look() {
        prober.closing.look(at); // as time goes by
    }
}

#[tokio::test]
async fn silent_backends_hold_up_neither_another_pool_nor_those_of_theirs_that_answer_again() {
    let (listener, silent) = listen().await;
    let mut prober = Prober::of(8);
    let spec = check(None, Some("ok"), LONG);
    for key in 0..400 {
        prober.probe(key, "bad", &silent, &spec);
    }
    let _kept = prober.beside(listener.accept()).await.unwrap();
    let good = Server { after: "", pieces: &["ok"], closes: true }.listen().await;
    prober.probe(400, "good", &good, &spec);
    assert_eq!(prober.results().await, [(400, Ok(()))]);

    let mut prober = Prober::of(8);
    let now = Instant::now();
    for key in 0..400 {
        prober.start(key, &pool("bad"), silent.clone(), spec.clone(), Outlook::Doubtful, now);
    }
    let good = Server { after: "", pieces: &["ok"], closes: true }.listen().await;
    prober.probe(400, "bad", &good, &spec);
    assert_eq!(prober.results().await, [(400, Ok(()))]);
}

#[tokio::test]
async fn who_waits_for_a_place_is_told_of_and_has_all_of_its_time_then() {
    let (_listener, silent) = listen().await;
    let mut prober = Prober::of(4);
    let spec = check(None, Some("ok"), Duration::from_millis(80));
    let (all, begun) = (12, Instant::now());
    for key in 0..all {
        prober.probe(key, "p", &silent, &spec);
    }
    let (mut waited, mut ended) = (0, 0);
    while ended < all {
        for report in prober.drive(Instant::now()) {
            match report {
                Report::Began(_, wait) => {
                    assert!(wait >= spec.timeout, "{wait:?}");
                    waited += 1;
                }
                Report::Ended(_, result) => {
                    assert_eq!(result.map(drop), failed("no answer within 80ms"));
                    ended += 1;
                }
            }
        }
        if ended < all {
            prober.ready().await;
        }
    }
    assert_eq!(waited, 4, "four have common places, and four the pool's own");
    assert!(begun.elapsed() >= spec.timeout * 2);
    assert!(prober.timers.is_empty() && prober.running.is_empty());
}
