//! How long lbd waits for whom, and that a change of it reaches sessions that are there already.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use socket2::Socket;

use crate::backend::{Backend, Full, echo, named, silent};
use crate::client::{End, connect, echoes, end_of, until, who};
use crate::daemon::{Lbd, web, web_of};

#[test]
fn a_session_without_a_byte_ends_at_idle_timeout_and_not_before() {
    let backend = Backend::start(echo);
    let idle = web(&[("a", &backend)], "").replace("pool: web }", "pool: web, idle_timeout: 300ms }");
    let lbd = Lbd::start(&idle);
    let client = connect(lbd.web());
    let start = Instant::now();
    // Busy for longer than it may be idle.
    while start.elapsed() < Duration::from_millis(400) {
        echoes(&client).unwrap();
    }
    let last = Instant::now();
    assert_eq!(end_of(&client), End::Closed);
    let took = last.elapsed();
    assert!((Duration::from_millis(250)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!(lbd.listener("web")["ended"], serde_json::json!({ "client_timeout": 1 }));
}

#[test]
fn a_direction_left_open_ends_at_half_close_timeout_with_a_reset() {
    let backend = Backend::start(silent);
    let lbd = Lbd::start(&web(&[("a", &backend)], "half_close_timeout: 200ms"));
    let mut client = connect(lbd.web());
    client.write_all(b"?").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let start = Instant::now();
    assert_eq!(end_of(&client), End::Reset, "an answer that never came must not look like an empty one");
    assert!(start.elapsed() > Duration::from_millis(150), "{:?}", start.elapsed());
    assert_eq!(lbd.listener("web")["ended"], serde_json::json!({ "server_timeout": 1 }));
}

#[test]
fn half_close_timeout_holds_for_a_session_that_was_open_for_a_while_too() {
    let backend = Backend::start(silent);
    let lbd = Lbd::start(&web(&[("a", &backend)], "half_close_timeout: 100ms"));
    let mut client = connect(lbd.web());
    let start = Instant::now();
    client.write_all(b"?").unwrap();
    // Older than a second its worker has nothing more to look after, and sleeps until the idle timeout.
    until("the session is of age", || (start.elapsed() > Duration::from_millis(1300)).then_some(()));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(end_of(&client), End::Reset);
}

#[test]
fn of_several_backends_that_all_failed_a_client_none_is_asked_again() {
    let (mut a, mut b) = (Backend::start(echo), Backend::start(echo));
    a.stop();
    b.stop();
    let lbd = Lbd::start(&web(&[("a", &a), ("b", &b)], "retries: 9"));
    let start = Instant::now();
    assert_eq!(end_of(&connect(lbd.web())), End::Reset);
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    let tried = |name| lbd.backend(name)["connect_errors"].clone();
    assert_eq!((tried("web/a"), tried("web/b")), (1.into(), 1.into()));
}

#[test]
fn a_burst_onto_a_unix_backend_waits_for_its_queue_to_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.sock");
    let backend = Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    backend.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    backend.listen(1).unwrap();
    let lbd = Lbd::start(&web_of(&format!("b: \"unix:{}\"", path.display()), ""));
    let clients: Vec<Socket> = (0..10).map(|_| connect(lbd.web())).collect();
    until("all have come, more than the queue takes", || {
        (lbd.listener("web")["connections_active"] == 10).then_some(())
    });
    for _ in &clients {
        let (served, _) = backend.accept().unwrap();
        std::thread::spawn(move || echo(served));
    }
    for client in &clients {
        echoes(client).unwrap();
    }
    assert_eq!(lbd.backend("web/b")["connect_errors"], 0);
}

#[test]
fn a_backend_that_does_not_take_connections_costs_connect_timeout_and_then_another_serves() {
    let full = Full::new();
    let good = Backend::start(named("good"));
    let backends = format!("full: \"{}\", good: \"{}\"", full.address, good.address);
    let lbd = Lbd::start(&web_of(&backends, "connect_timeout: 200ms, balance: first"));
    let start = Instant::now();
    assert_eq!(who(lbd.web()), "good");
    assert!((Duration::from_millis(200)..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
    let stats = lbd.backend("web/full");
    assert_eq!((&stats["connect_errors"], &stats["connections_active"]), (&1.into(), &0.into()), "{stats}");
}

#[test]
fn where_no_connect_succeeds_the_client_is_reset_and_counted() {
    let mut dead = Backend::start(echo);
    dead.stop();
    let lbd = Lbd::start(&web(&[("dead", &dead)], "retries: 0"));
    assert_eq!(end_of(&connect(lbd.web())), End::Reset);
    let stats = lbd.listener("web");
    assert_eq!(stats["refused"], serde_json::json!({ "connect_failed": 1 }));
    assert_eq!(stats["ended"], serde_json::json!({ "server": 1 }));
}

#[test]
fn a_session_takes_the_timeouts_of_a_reload() {
    let backend = Backend::start(echo);
    let file = web(&[("a", &backend)], "");
    let lbd = Lbd::start(&file);
    let client = connect(lbd.web());
    echoes(&client).unwrap();
    assert_eq!(lbd.reload(&file.replace("pool: web }", "pool: web, idle_timeout: 50ms }")).code, Some(0));
    assert_eq!(end_of(&client), End::Closed);
    until("it is counted", || {
        (lbd.listener("web")["ended"] == serde_json::json!({ "client_timeout": 1 })).then_some(())
    });
}

#[test]
fn bytes_that_a_slow_reader_acknowledges_put_off_half_close_and_idle_timeouts() {
    const SIZE: usize = 120_000;
    for keys in ["half_close_timeout: 400ms", ""] {
        let half_closed = !keys.is_empty();
        // All of the answer is in the kernel's hands at once; a part of it goes to the reader each time that reads.
        let backend = Backend::start(move |mut socket: Socket| {
            socket.read_exact(&mut [0])?;
            socket.write_all(&[7; SIZE])?;
            if half_closed { Ok(()) } else { std::io::copy(&mut socket, &mut std::io::sink()).map(drop) }
        });
        let file = web(&[("a", &backend)], keys);
        let lbd = Lbd::start(&if half_closed {
            file
        } else {
            file.replace("pool: web }", "pool: web, idle_timeout: 400ms }")
        });
        let mut client = connect_slowly(lbd.web());
        client.write_all(b"?").unwrap();
        let (start, mut got, mut buffer) = (Instant::now(), 0, [0; 4096]);
        while got < SIZE {
            let n = client.read(&mut buffer).unwrap_or_else(|e| panic!("{keys}: {e} after {got} bytes"));
            assert_ne!(n, 0, "{keys}: an end after {got} bytes");
            got += n;
            let read = Instant::now();
            until("a slow reader reads on", || (read.elapsed() > Duration::from_millis(40)).then_some(()));
        }
        assert!(start.elapsed() > Duration::from_millis(900), "more than two timeouts: {:?}", start.elapsed());
        assert_eq!(end_of(&client), End::Closed, "{keys}");
    }
}

#[test]
fn a_reader_that_takes_nothing_ends_at_half_close_timeout() {
    let backend = Backend::start(|mut socket: Socket| {
        socket.read_exact(&mut [0])?;
        socket.write_all(&[7; 120_000])
    });
    let lbd = Lbd::start(&web(&[("a", &backend)], "half_close_timeout: 400ms"));
    let mut client = connect_slowly(lbd.web());
    client.write_all(b"?").unwrap();
    let start = Instant::now();
    lbd.await_backend("web/a", "connections_active", 0);
    assert!(start.elapsed() > Duration::from_millis(350), "{:?}", start.elapsed());
    until("it is counted", || {
        (lbd.listener("web")["ended"] == serde_json::json!({ "client_timeout": 1 })).then_some(())
    });
}

/// A client whose kernel takes little at a time.
fn connect_slowly(address: std::net::SocketAddr) -> Socket {
    let client = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    client.connect(&address.into()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client
}

#[test]
fn a_peer_that_answers_nothing_ends_after_keepalives_patience_and_one_that_does_not_read_does_not() {
    for dead in [true, false] {
        let backend = Backend::start(echo);
        let keys = "pool: web, keepalive: { idle: 1s, interval: 1s, count: 1 } }";
        let lbd = Lbd::start(&web(&[("a", &backend)], "").replace("pool: web }", keys));
        let mut client = connect_slowly(lbd.web());
        echoes(&client).unwrap();
        if dead {
            // Drops whatever comes, as a machine without power does.
            client.attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)]).unwrap(); // BPF_RET | BPF_K
            client.write_all(b"is said again, and never acknowledged").unwrap();
        } else {
            client.write_all(&[7; 30_000]).unwrap(); // comes back to a reader that does not read
        }
        let start = Instant::now();
        let ended = || lbd.backend("web/a")["connections_active"] == 0;
        until("it is found out", || (ended() || start.elapsed() > Duration::from_secs(5)).then_some(()));
        assert_eq!(ended(), dead, "{:?}", start.elapsed());
    }
}

#[test]
fn what_came_during_a_pause_of_the_process_is_heard_before_a_session_ends_for_time() {
    let backend = Backend::start(echo);
    let idle = web(&[("a", &backend)], "").replace("pool: web }", "pool: web, idle_timeout: 500ms }");
    let lbd = Lbd::start(&idle);
    let mut client = connect(lbd.web());
    echoes(&client).unwrap();
    lbd.signal(Signal::SIGSTOP);
    let start = Instant::now();
    client.write_all(b"here").unwrap();
    until("its time is over", || (start.elapsed() > Duration::from_millis(800)).then_some(()));
    lbd.signal(Signal::SIGCONT);
    let mut back = [0; 4];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"here");
}
