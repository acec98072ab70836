//! What happens to the bytes: all of them arrive, in order, on every kind of socket, and an end, a reset and a slow
//! reader on one side are an end, a reset and a slow writer on the other.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use socket2::Socket;

use crate::backend::{Backend, counting, echo, greeting, named, resetting};
use crate::client::{
    End, PATIENCE, ask, connect, connect_unix, echoes, end_of, exchange, pattern_from, receive_pattern, reset,
    send_pattern, until, who,
};
use crate::daemon::{Lbd, web, web_of};

#[test]
fn bytes_arrive_unchanged_at_every_size_both_ways() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    const KIB: usize = 1024;
    let sizes = [0, 1, 2, 1447, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB + 1, 3_000_000, 64 * KIB * KIB];
    for bytes in sizes {
        exchange(&connect(lbd.web()), bytes).unwrap_or_else(|e| panic!("{bytes} bytes: {e}"));
    }
    let (listener, a) = (lbd.listener("web"), lbd.backend("web/a"));
    for count in [&listener["bytes_in"], &listener["bytes_out"], &a["bytes_in"], &a["bytes_out"]] {
        assert_eq!(count, sizes.iter().sum::<usize>(), "{listener} {a}");
    }
}

#[test]
fn every_kind_of_listener_reaches_every_kind_of_backend() {
    let dir = tempfile::tempdir().unwrap();
    let v6 = TcpListener::bind("[::1]:0").is_ok();
    let mut backends = vec![Backend::at("127.0.0.1:0", echo), Backend::unix(&dir.path().join("backend.sock"), echo)];
    let door = dir.path().join("web.sock");
    let mut binds = vec!["127.0.0.1:0".to_owned(), format!("unix:{}", door.display())];
    if v6 {
        backends.push(Backend::at("[::1]:0", echo));
        binds.push("[::1]:0".to_owned());
    }
    for backend in &backends {
        let lbd = Lbd::start(&format!(
            "listeners: {{ web: {{ bind: {binds:?}, pool: web }} }}\n\
             pools: {{ web: {{ backends: {{ b: \"{}\" }} }} }}",
            backend.address
        ));
        let addresses = lbd.listener("web")["addresses"].as_array().unwrap().clone();
        for address in addresses.iter().map(|a| a.as_str().unwrap()) {
            let client = match address.parse::<SocketAddr>() {
                Ok(address) => connect(address),
                Err(_) => connect_unix(&door),
            };
            exchange(&client, 1_000_000).unwrap_or_else(|e| panic!("{address} to {}: {e}", backend.address));
        }
    }
}

#[test]
fn each_listener_has_its_own_pool() {
    let (a, b, c) = (Backend::start(named("a")), Backend::start(named("b")), Backend::start(named("c")));
    let lbd = Lbd::start(&format!(
        "listeners:\n  one: {{ bind: 127.0.0.1:0, pool: x }}\n  two: {{ bind: 127.0.0.2:0, pool: y }}\n  \
         three: {{ bind: 127.0.0.3:0, pool: y }}\n\
         pools:\n  x: {{ backends: {{ a: \"{}\" }} }}\n  y: {{ backends: {{ b: \"{}\", c: \"{}\" }} }}",
        a.address, b.address, c.address
    ));
    let answers = |listener| (0..2).map(|_| who(lbd.address(listener))).collect::<Vec<_>>();
    assert_eq!(
        (answers("one"), answers("two"), answers("three")),
        (vec!["a".into(), "a".into()], vec!["b".into(), "c".into()], vec!["b".into(), "c".into()])
    );
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    for backend in [Backend::start(counting), Backend::unix(&dir.path().join("b.sock"), counting)] {
        let lbd = Lbd::start(&web(&[("a", &backend)], ""));
        let client = connect(lbd.web());
        send_pattern(&client, 500_000).unwrap();
        assert_eq!(ask(client, b"!").unwrap(), "500001");
    }
}

#[test]
fn a_backend_that_has_said_all_still_hears_its_client() {
    let (sender, heard) = channel();
    let backend = Backend::start(move |socket| {
        socket.shutdown(Shutdown::Write)?;
        sender.send(receive_pattern(&socket)?).map_err(io::Error::other)
    });
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    let client = connect(lbd.web());
    assert_eq!(end_of(&client), End::Closed);
    send_pattern(&client, 500_000).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), 500_000);
    lbd.await_backend("web/a", "connections_active", 0);
}

#[test]
fn a_backend_may_speak_first() {
    let backend = Backend::start(greeting("220 hello"));
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    let mut client = connect(lbd.web());
    let mut said = [0; 9];
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"220 hello");
    echoes(&client).unwrap();
}

#[test]
fn a_clients_reset_is_a_reset_to_the_backend() {
    for half_closed in [false, true] {
        let (sender, ends) = channel();
        let backend = Backend::start(reporting(sender.clone()));
        let lbd = Lbd::start(&web(&[("a", &backend)], ""));
        let client = connect(lbd.web());
        echoes(&client).unwrap();
        if half_closed {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), Seen::End);
        }
        reset(client);
        assert_eq!(ends.recv_timeout(PATIENCE).unwrap(), Seen::Reset, "half-closed before: {half_closed}");
        lbd.await_backend("web/a", "connections_active", 0);
        assert_eq!(lbd.listener("web")["ended"], serde_json::json!({ "client": 1 }));
    }
}

#[test]
fn a_backends_reset_is_a_reset_to_the_client() {
    for half_closed in [false, true] {
        let backend = Backend::start(move |mut socket: Socket| {
            socket.read_exact(&mut [0; 5])?;
            socket.write_all(b"hello")?;
            if half_closed {
                socket.shutdown(Shutdown::Write)?;
            }
            socket.read_exact(&mut [0; 1])?;
            socket.set_linger(Some(Duration::ZERO))
        });
        let lbd = Lbd::start(&web(&[("a", &backend)], ""));
        let mut client = connect(lbd.web());
        echoes(&client).unwrap();
        if half_closed {
            assert_eq!(end_of(&client), End::Closed);
        }
        client.write_all(b"!").unwrap();
        if !half_closed {
            assert_eq!(end_of(&client), End::Reset);
        }
        // (After a whole answer there is no reset: it could sweep away what has not been read yet.)
        lbd.await_backend("web/a", "connections_active", 0);
        assert_eq!(lbd.listener("web")["ended"], serde_json::json!({ "server": 1 }));
    }
}

#[test]
fn a_client_that_only_sends_and_goes_is_heard() {
    let (sender, heard) = channel();
    let dir = tempfile::tempdir().unwrap();
    let door = dir.path().join("web.sock");
    let mut backend = Backend::start(move |mut socket: Socket| {
        let mut all = String::new();
        socket.read_to_string(&mut all)?;
        sender.send(all).map_err(io::Error::other)
    });
    let lbd = Lbd::start(&format!(
        "listeners: {{ web: {{ bind: [\"127.0.0.1:0\", \"unix:{}\"], pool: web }} }}\n\
         pools: {{ web: {{ backends: {{ b: \"{}\" }} }} }}",
        door.display(),
        backend.address
    ));
    let clients = || [connect(lbd.web()), connect_unix(&door)];
    for connected_late in [false, true] {
        if connected_late {
            backend.stop();
        }
        for mut client in clients() {
            client.write_all(b"a line for the log").unwrap();
        }
        if connected_late {
            lbd.await_backend("web/b", "connect_errors", 2);
            backend.restart();
        }
        for _ in 0..2 {
            assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), "a line for the log");
        }
    }
}

const STALLED: usize = 12;

#[test]
fn a_slow_reader_holds_the_sender_back_and_costs_little_memory() {
    let may_read = Arc::new(Barrier::new(STALLED + 1));
    let wait = Arc::clone(&may_read);
    let backend = Backend::start(move |socket| {
        wait.wait(); // nobody reads before the test says so
        echo(socket)
    });
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    let before = lbd.resident();
    let to = lbd.web();
    let clients: Vec<Socket> = (0..STALLED).map(|_| connect(to)).collect();
    let sent: Vec<usize> = thread::scope(|s| {
        let threads: Vec<_> = clients.iter().map(|client| s.spawn(|| stuff(client))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let grown = lbd.resident().saturating_sub(before);
    assert!(sent.iter().all(|n| *n < 32 << 20), "nothing held the senders back: {sent:?}");
    assert!(grown < 8 << 20, "{STALLED} stalled sessions hold {grown} bytes");
    may_read.wait();
    for (client, sent) in clients.iter().zip(sent) {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive_pattern(client).unwrap(), sent);
    }
}

#[test]
fn a_connect_that_fails_is_tried_elsewhere_and_no_client_notices() {
    let dir = tempfile::tempdir().unwrap();
    let (mut dead, good) = (Backend::start(echo), Backend::start(named("good")));
    dead.stop();
    let breaks = Backend::start(resetting);
    let nobody = format!("unix:{}", dir.path().join("nobody.sock").display());
    fs::write(dir.path().join("nobody.sock"), "").unwrap();
    let lbd = Lbd::start(&web_of(
        &format!(
            "dead: \"{}\", breaks: \"{}\", nobody: \"{nobody}\", good: \"{}\"",
            dead.address, breaks.address, good.address
        ),
        "retries: 3",
    ));
    for turn in 1..=40 {
        let mut client = connect(lbd.web());
        // Not before it is connected: what was sent to a backend that then broke could not be sent again.
        good.await_accepted(turn);
        client.write_all(b"?").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "good");
    }
    for name in ["web/dead", "web/breaks", "web/nobody"] {
        let stats = lbd.backend(name);
        assert!(stats["connect_errors"].as_u64() >= Some(1) && stats["connections_active"] == 0, "{stats}");
        assert_eq!(stats["connect_errors"], stats["retries"], "{stats}");
    }
    assert_eq!(lbd.listener("web")["refused"], serde_json::json!({}));
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    for turn in 0..200 {
        let client = connect(lbd.web());
        if turn % 2 == 0 { reset(client) } else { drop(client) }
    }
    until("every session has ended", || {
        let web = lbd.listener("web");
        (web["connections_total"] == 200 && web["connections_active"] == 0).then_some(())
    });
    lbd.await_backend("web/a", "connections_active", 0);
    echoes(&connect(lbd.web())).unwrap();
}

#[test]
fn five_hundred_clients_at_once() {
    let backend = Backend::start(echo);
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    let to = lbd.web();
    let clients: Vec<Socket> = thread::scope(|s| {
        let threads: Vec<_> = (0..10).map(|_| s.spawn(|| (0..50).map(|_| connect(to)).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    for _ in 0..2 {
        clients.iter().for_each(|client| echoes(client).unwrap());
    }
    assert_eq!(lbd.listener("web")["connections_active"], 500);
    assert_eq!(lbd.backend("web/a")["connections_active"], 500);
    drop(clients);
    lbd.await_backend("web/a", "connections_active", 0);
}

#[derive(Debug, PartialEq)]
enum Seen {
    End,
    Reset,
}

/// Echoes; reports an end, and then waits for the reset.
fn reporting(seen: Sender<Seen>) -> impl Fn(Socket) -> io::Result<()> + Send + Sync {
    let seen = Mutex::new(seen);
    move |mut socket| {
        let mut buffer = [0; 1024];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => socket.write_all(&buffer[..n])?,
                Err(_) => {
                    let _ = seen.lock().unwrap().send(Seen::Reset);
                    return Ok(());
                }
            }
        }
        let _ = seen.lock().unwrap().send(Seen::End);
        await_break(&socket);
        let _ = seen.lock().unwrap().send(Seen::Reset);
        Ok(())
    }
}

/// Waits for the reset of a connection whose end has been read already: reading tells nothing more.
fn await_break(socket: &Socket) {
    let broken = until("the reset comes", || socket.take_error().unwrap());
    assert!(matches!(broken.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{broken}");
}

/// Writes the pattern until nothing more is taken for a while; returns how much was.
fn stuff(mut client: &Socket) -> usize {
    let mut sent = 0;
    client.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while sent < 64 << 20 {
        match client.write(pattern_from(sent)) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    sent
}
