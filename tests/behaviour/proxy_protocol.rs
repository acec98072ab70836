//! The PROXY protocol, both ways: who must send a header and what becomes of who does not, whom backends are told
//! of, and that no byte behind a header is lost.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::backend::{Backend, echo, greeting, named, resetting};
use crate::client::{
    End, ask, connect, connect_from, connect_unix, echoes, end_of, exchange, receive_pattern, send_pattern, until,
};
use crate::daemon::{Lbd, web, web_of};
use crate::skip::skipped;

const FROM_ELSEWHERE: &str = "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n";

/// The same in version 2.
fn binary() -> Vec<u8> {
    [&SIGNATURE[..], b"\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\x12\x67\x01\xbb"].concat()
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A file whose listener takes headers from 127.0.0.1.
fn trusting(backends: &[(&str, &Backend)], rest: &str) -> String {
    web(backends, rest).replace("pool: web }", "pool: web, accept_proxy: { from: [127.0.0.1] } }")
}

/// Sends back all that comes, the header too.
fn told(lbd: &Lbd, request: &[u8]) -> String {
    ask(connect(lbd.web()), request).unwrap()
}

#[test]
fn the_address_in_a_header_is_the_clients_in_every_respect() {
    let servers: Vec<Backend> = ["a", "b", "c", "d", "e", "f", "g"].map(|name| Backend::start(named(name))).into();
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let backends: Vec<(&str, &Backend)> = names.into_iter().zip(&servers).collect();
    let lbd = Lbd::start(&(trusting(&backends, "balance: source_hash") + "log: { connections: all }\n"));
    let of = |client: u8| told(&lbd, format!("PROXY TCP4 192.0.2.{client} 198.51.100.2 4711 443\r\n?").as_bytes());
    let chosen: Vec<String> = (0..20).map(of).collect();
    assert!(chosen.iter().any(|name| *name != chosen[0]), "one address alone would always choose {}", chosen[0]);
    assert_eq!((0..20).map(of).collect::<Vec<_>>(), chosen);
    lbd.await_log("192.0.2.19:4711");
    assert_eq!(lbd.listener("web")["bytes_in"], 40, "headers are not the clients' bytes");
}

#[test]
fn what_follows_a_header_arrives_whole_and_first_however_it_is_cut() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&trusting(&[("a", &backend)], ""));
    for header in [
        FROM_ELSEWHERE.as_bytes(),
        &binary(),
        b"PROXY UNKNOWN what ever\r\n",
        &[&SIGNATURE[..], b"\x20\0\0\0"].concat(),
    ] {
        for cut in [1, 8, header.len() - 1, header.len(), header.len() + 1] {
            let mut client = connect(lbd.web());
            client.set_tcp_nodelay(true).unwrap();
            let whole = [header, b"x"].concat();
            client.write_all(&whole[..cut.min(whole.len())]).unwrap();
            thread::yield_now();
            client.write_all(&whole[cut..]).unwrap();
            let mut x = [0];
            client.read_exact(&mut x).unwrap();
            assert_eq!(&x, b"x");
            exchange(&client, 300_000).unwrap();
        }
    }
    assert_eq!(lbd.listener("web")["refused"], json!({}));
}

#[test]
fn who_must_send_a_header_and_sends_something_else_or_nothing_is_refused() {
    let backend = Backend::start(greeting("welcome"));
    let lbd = Lbd::start(&trusting(&[("a", &backend)], ""));
    let begun = Instant::now();
    let silent = connect(lbd.web());
    let mut slow = connect(lbd.web());
    slow.write_all(&binary()[..20]).unwrap();
    for wrong in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PROXY TCP4 1.2.3.4\r\n",
        &[&SIGNATURE[..], b"\x21\x11\0\x0b an odd one"].concat(),
        &[0; 20_000],
    ] {
        let mut client = connect(lbd.web());
        let _ = client.write_all(wrong);
        assert_eq!(end_of(&client), End::Reset, "{}", wrong[..16].escape_ascii());
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "what is wrong is not waited for");
    let mut short = connect(lbd.web());
    short.write_all(b"PROXY").unwrap();
    short.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_of(&short), End::Reset);
    assert!(begun.elapsed() < Duration::from_secs(3), "nor what is over");
    // Not until 3 s have gone by: a lost segment may have to be sent again.
    assert_eq!((end_of(&silent), end_of(&slow)), (End::Reset, End::Reset));
    assert!((3.0..5.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    assert_eq!(lbd.listener("web")["refused"], json!({ "bad_proxy_header": 7 }));
    assert_eq!(backend.accepted(), 0, "no backend was troubled");
}

#[test]
fn everybody_else_is_a_plain_client_whatever_its_first_bytes_are() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&trusting(&[("a", &backend)], ""));
    let other: IpAddr = "127.0.0.2".parse().unwrap();
    let client = connect_from(Some(other), lbd.web()).unwrap();
    assert_eq!(ask(client, FROM_ELSEWHERE.as_bytes()).unwrap(), FROM_ELSEWHERE);
    echoes(&connect_from(Some(other), lbd.web()).unwrap()).unwrap();
}

#[test]
fn a_backend_is_told_who_the_client_is_before_the_clients_first_byte() {
    for version in ["v1", "v2"] {
        let backend = Backend::start(echo);
        let lbd = Lbd::start(&web(&[("a", &backend)], &format!("send_proxy: {version}")));
        let client = connect(lbd.web());
        let (from, to) = (client.local_addr().unwrap().as_socket().unwrap(), lbd.web());
        let mut whole = header(version, from, to);
        let length = whole.len();
        whole.extend_from_slice(b"hello");
        assert_eq!(ask_bytes(client, b"hello"), whole, "{version}");
        // A client that says nothing is told of all the same.
        let client = connect(lbd.web());
        let mut got = vec![0; length];
        (&client).read_exact(&mut got).unwrap();
        assert_eq!(got, header(version, client.local_addr().unwrap().as_socket().unwrap(), to), "{version}");
        send_pattern(&client, 500_000).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive_pattern(&client).unwrap(), 500_000);
        assert_eq!(lbd.listener("web")["bytes_in"], 500_005, "headers are not the clients' bytes");
    }
}

#[test]
fn what_a_header_said_is_handed_on() {
    for (version, said, handed_on) in [
        ("v1", FROM_ELSEWHERE.into(), FROM_ELSEWHERE.as_bytes().to_vec()),
        ("v1", binary(), FROM_ELSEWHERE.as_bytes().to_vec()),
        ("v2", FROM_ELSEWHERE.as_bytes().to_vec(), binary()),
    ] {
        let backend = Backend::start(echo);
        let lbd = Lbd::start(&trusting(&[("a", &backend)], &format!("send_proxy: {version}")));
        let request: Vec<u8> = [&said[..], b"hello"].concat();
        assert_eq!(ask_bytes(connect(lbd.web()), &request), [&handed_on[..], b"hello"].concat(), "{version}");
    }
}

#[test]
fn a_client_over_a_unix_socket_is_unknown_to_the_backend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    for (version, header) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")] {
        let backend = Backend::start(echo);
        let bind = format!("\"unix:{}\"", path.display());
        let config = web(&[("a", &backend)], &format!("send_proxy: {version}")).replace("\"127.0.0.1:0\"", &bind);
        let lbd = Lbd::start(&config);
        assert_eq!(ask_bytes(connect_unix(&path), b"hello"), [header, b"hello"].concat());
        // Where its peer is trusted, what that says counts.
        assert_eq!(
            lbd.reload(&config.replace("pool: web }", "pool: web, accept_proxy: { from: [\"unix:\"] } }")).code,
            Some(0)
        );
        let told = if version == "v1" { FROM_ELSEWHERE.into() } else { binary() };
        let request = [FROM_ELSEWHERE.as_bytes(), b"hello"].concat();
        assert_eq!(ask_bytes(connect_unix(&path), &request), [&told[..], b"hello"].concat());
    }
}

#[test]
fn a_retry_sends_the_header_again_with_all_that_follows() {
    let dead = Backend::start(resetting);
    let good = Backend::start(echo);
    let lbd = Lbd::start(&trusting(&[("dead", &dead), ("good", &good)], "balance: first, retries: 3, send_proxy: v1"));
    for _ in 0..20 {
        // Whether the first backend breaks before it has taken the client's bytes is chance: who spoke first may be cut.
        let mut client = connect(lbd.web());
        client.write_all(FROM_ELSEWHERE.as_bytes()).unwrap();
        let mut got = vec![0; FROM_ELSEWHERE.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, FROM_ELSEWHERE.as_bytes());
        exchange(&client, 100_000).unwrap();
    }
    assert_eq!((dead.accepted(), good.accepted()), (20, 20));
}

#[test]
fn a_health_check_tells_that_it_is_no_clients() {
    for (version, header) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")] {
        let probes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let heard = Arc::clone(&probes);
        let backend = Backend::start(move |mut socket: Socket| -> io::Result<()> {
            let mut all = Vec::new();
            socket.read_to_end(&mut all)?;
            *heard.lock().unwrap() = all;
            Ok(())
        });
        let lbd =
            Lbd::start(&web(&[("a", &backend)], &format!("send_proxy: {version}, health_check: {{ interval: 50ms }}")));
        lbd.await_backend("web/a", "health", "up");
        until("a probe has come", || (!probes.lock().unwrap().is_empty()).then_some(()));
        assert_eq!(*probes.lock().unwrap(), header);
    }
}

fn ask_bytes(mut socket: Socket, request: &[u8]) -> Vec<u8> {
    socket.write_all(request).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    answer
}

fn header(version: &str, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    if version == "v1" {
        return format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes();
    }
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!("{from} {to}") };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    [&SIGNATURE[..], b"\x21\x11\0\x0c", &source.octets(), &destination.octets(), &ports].concat()
}

/// What another program's own idea of the protocol is.
struct Peer(Child);

impl Peer {
    /// `None`, and a word of it, where the program is not installed.
    fn start(mut program: Command, port: u16) -> Option<Self> {
        let name = program.get_program().to_string_lossy().into_owned();
        let Ok(child) = program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            skipped(&format!("{name} is not installed"));
            return None;
        };
        until(&format!("{name} listens"), || TcpStream::connect(("127.0.0.1", port)).ok());
        Some(Self(child))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port for another program, which nobody else gets while this is held: bound, not listening, and with
/// SO_REUSEADDR on both sides no obstacle to a listener.
fn reserved() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// The answer of a web server behind lbd, and the address of who asked.
fn page(to: SocketAddr) -> (String, SocketAddr) {
    let client = connect(to);
    let from = client.local_addr().unwrap().as_socket().unwrap();
    let mut answer = String::new();
    (&client).write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    (&client).read_to_string(&mut answer).unwrap();
    (answer, from)
}

#[test]
fn haproxy_and_lbd_understand_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::start(echo);
    let reserved = [(); 4].map(|()| reserved());
    let [web, v1, v2, checked] = [0, 1, 2, 3].map(|i| reserved[i].1);
    let own = dir.path().join("own.sock").display().to_string();
    let lbd = Lbd::start(&format!(
        "listeners:
  v1: {{ bind: \"127.0.0.1:0\", pool: v1 }}
  v2: {{ bind: \"127.0.0.2:0\", pool: v2 }}
  unix: {{ bind: \"unix:{own}\", pool: v2 }}
  back: {{ bind: \"127.0.0.3:0\", pool: again, accept_proxy: {{ from: [127.0.0.1] }} }}
pools:
  v1: {{ backends: {{ h: \"127.0.0.1:{web}\" }}, send_proxy: v1, health_check: {{ interval: 50ms }} }}
  v2: {{ backends: {{ h: \"127.0.0.1:{web}\" }}, send_proxy: v2, health_check: {{ interval: 50ms }} }}
  again: {{ backends: {{ e: \"{}\" }}, send_proxy: v1 }}
",
        backend.address
    ));
    let back = lbd.address("back");
    let server =
        |port: u16, how: &str| format!("listen l{port}\n bind 127.0.0.1:{port}\n mode tcp\n server s {back} {how}\n");
    let config = format!(
        "defaults\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n\
         frontend web\n bind 127.0.0.1:{web} accept-proxy\n mode http\n http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port] to %[dst]:%[dst_port]\"\n{}{}{}",
        server(v1, "send-proxy"),
        server(v2, "send-proxy-v2"),
        server(checked, "send-proxy-v2 proxy-v2-options crc32c,unique-id")
    );
    let file = dir.path().join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-db").arg("-f").arg(file);
    let Some(_haproxy) = Peer::start(haproxy, web) else { return };
    for pool in ["v1", "v2"] {
        lbd.await_backend(&format!("{pool}/h"), "health", "up");
        let to = lbd.address(pool);
        let (answer, from) = page(to);
        assert!(answer.ends_with(&format!("{from} to {to}")), "{answer}");
    }
    let answer = ask(connect_unix(Path::new(&own)), b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(answer.ends_with(&format!("to 127.0.0.1:{web}")), "{answer}");
    for port in [v1, v2, checked] {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let client = connect(to);
        let from = client.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(ask_bytes(client, b"hello"), [&header("v1", from, to)[..], b"hello"].concat());
    }
}

#[test]
fn nginx_is_told_by_lbd_who_the_client_is() {
    let dir = tempfile::tempdir().unwrap();
    let ((_reserved, port), at) = (reserved(), dir.path().display());
    let paths: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|p| format!("{p}_temp_path {at}/{p};")).concat();
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/log; events {{}}
         http {{ access_log off; {paths}
         server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{ return 200 \"$proxy_protocol_addr:$proxy_protocol_port to $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }} }} }}"
    );
    fs::write(dir.path().join("nginx.conf"), config).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
    let Some(_nginx) = Peer::start(nginx, port) else { return };
    for version in ["v1", "v2"] {
        let lbd = Lbd::start(&web_of(&format!("n: \"127.0.0.1:{port}\""), &format!("send_proxy: {version}")));
        let (answer, from) = page(lbd.web());
        assert!(answer.ends_with(&format!("{from} to {}", lbd.web())), "{version}: {answer}");
    }
}
