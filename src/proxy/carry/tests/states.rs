//! Each thing that a session can be doing when the program is replaced.

use crate::proxy::queue::Queues;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use super::fleet::{Fleet, connect, through_bytes};
use super::text;
use crate::proxy::tests::{echo_server, say, say_goodbye};

pub fn read(client: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut all = vec![0; length];
    client.read_exact(&mut all).unwrap();
    all
}

/// Whether there is still nothing to read.
fn waits(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let found = client.peek(&mut [0]).map_err(|e| e.kind());
    client.set_nonblocking(false).unwrap();
    found == Err(ErrorKind::WouldBlock)
}

/// To as many workers, to more, to fewer.
const COUNTS: [usize; 4] = [1, 2, 3, 1];

#[test]
fn either_side_of_a_session_may_have_ended() {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    for client_first in [true, false] {
        let mut fleet = Fleet::serving(1, &format!("a: {}", door.local_addr().unwrap()), "");
        let (mut client, mut server) = (fleet.client(), door.accept().unwrap().0);
        let (first, second) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        first.write_all(b"last words").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read(second, 10), b"last words");
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        for count in COUNTS {
            fleet.hand_over_while(count, || second.write_all(b"asleep").unwrap());
            assert_eq!(read(first, 6), b"asleep");
            second.write_all(b"awake").unwrap();
            assert_eq!(read(first, 5), b"awake");
        }
        fleet.hand_over_while(1, || second.shutdown(Shutdown::Write).unwrap());
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
        fleet.until_nobody_is_left();
    }
}

#[test]
fn bytes_that_are_held_reach_the_reader_once_and_the_end_behind_them() {
    let mut fleet = Fleet::serving(1, &format!("a: {}", echo_server()), "");
    let all = text(24 << 20, 1);
    let mut client = fleet.client();
    let (mut writer, written) = (client.try_clone().unwrap(), all.clone());
    let writing = thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    fleet.until_alive("bytes are held", |alive| alive.held);
    let mut got = Vec::new();
    for count in COUNTS {
        fleet.hand_over(count);
        got.extend(read(&mut client, 1 << 20));
    }
    client.read_to_end(&mut got).unwrap();
    assert!(got == all, "{} of {} bytes", got.len(), all.len());
    writing.join().unwrap();
    fleet.until_nobody_is_left();
}

#[test]
fn who_waits_for_a_place_gets_it_in_the_order_they_came() {
    let keys = "queue: { max: 9, timeout: 20s }";
    let mut fleet = Fleet::serving(1, &format!("a: {{ address: {}, max_connections: 1 }}", echo_server()), keys);
    let mut first = fleet.client();
    say(&mut first, b"hello");
    let waiting: Vec<_> = (1..=4)
        .map(|n| {
            let mut client = fleet.client();
            client.write_all(&[n; 9]).unwrap();
            fleet.until_alive("it waits", |alive| alive.waiting == u32::from(n));
            client
        })
        .collect();
    let mut leaving = first;
    for (n, mut client) in (1..).zip(waiting) {
        // Between workers the order is kept but roughly: only one serves when a place becomes free.
        for count in [1, 3, 2] {
            fleet.hand_over(count);
            assert!(waits(&client), "{n}");
        }
        fleet.hand_over_while(1, || leaving.shutdown(Shutdown::Write).unwrap());
        assert_eq!(read(&mut client, 9), [n; 9]);
        leaving = client;
    }
    say_goodbye(leaving);
    fleet.until_nobody_is_left();
    assert_eq!(fleet.around.alive().waiting, 0);
}

#[test]
fn a_key_that_a_list_still_has_of_a_session_that_ended_is_not_carried() {
    let mut fleet = Fleet::serving(1, &format!("a: {}", echo_server()), "spare_connections: 1, queue: { max: 9 }");
    let mut client = fleet.client();
    say(&mut client, b"hello");
    fleet.until_alive("there is a spare", |alive| alive.backends[0].2 == 1);
    let mut parked = fleet.park();
    let worker = &mut parked[0];
    let (there, gone) = (worker.sessions.iter().next().unwrap().0, worker.sessions.vacant_key());
    worker.again.extend([gone, there, gone]);
    let pool = worker.sessions[there].pool.clone();
    for (since, key) in [(1, gone), (2, there), (3, gone)] {
        worker.queues.insert(&pool, since, key, false);
    }
    let carried = worker.carry().unwrap();
    assert_eq!((carried.again.len(), carried.queues.len()), (0, 0), "{carried:?}");
    worker.sessions[there].again = true;
    assert_eq!(worker.carry().unwrap().again, [there as u32], "a session knows by itself that it could go on");
    let successor = Fleet::assemble(&fleet.file, through_bytes(&parked), 1);
    drop(successor.assembled);
    parked[0].queues = Queues::new(0);
    pool.waiting.show(0, None);
    fleet.run(parked);
    say(&mut client, b"still here");
}

#[test]
fn who_waits_and_stands_in_no_queue_is_the_last_of_it() {
    let keys = "queue: { max: 9, timeout: 20s }";
    let mut fleet = Fleet::serving(1, &format!("a: {{ address: {}, max_connections: 1 }}", echo_server()), keys);
    let mut first = fleet.client();
    say(&mut first, b"hello");
    let mut waiting: Vec<TcpStream> = Vec::new();
    for n in 1..=3 {
        waiting.push(fleet.client());
        fleet.until_alive("it waits", |alive| alive.waiting == n);
    }
    let mut parked = fleet.park();
    let worker = &mut parked[0];
    let (last, newest) = (worker.queues.keys().next().unwrap(), worker.queues.keys().last().unwrap());
    worker.queues.remove(last, &worker.sessions[last]);
    let expected: Vec<u32> = worker.queues.keys().chain([last]).map(|key| key as u32).collect();
    assert_eq!(parked[0].carry().unwrap().queues[0].keys, expected);
    drop(Fleet::assemble(&fleet.file, through_bytes(&parked), 1).assembled);
    let worker = &mut parked[0];
    worker.sessions[last].since = worker.sessions[newest].since + 1;
    worker.queues.add(last, &worker.sessions[last]);
    fleet.run(parked);
    say_goodbye(first);
    for n in [1, 2, 0] {
        say(&mut waiting[n], b"my turn");
        waiting[n].shutdown(Shutdown::Both).unwrap();
    }
}

#[test]
fn a_connect_that_is_under_way_succeeds_and_its_header_goes_first() {
    // One that accepts nobody: its queue has room for one, and then the kernel drops what comes.
    let door = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    door.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    door.listen(0).unwrap();
    let door: TcpListener = door.into();
    let at = door.local_addr().unwrap();
    let _stop = connect(at);
    let mut fleet = Fleet::serving(1, &format!("a: {at}"), "send_proxy: v1, connect_timeout: 20s");
    let mut client = fleet.client();
    client.write_all(b"hello").unwrap();
    fleet.until_alive("it has its backend", |alive| alive.backends[0].1 == 1);
    for count in COUNTS {
        fleet.hand_over(count);
    }
    let accepting = thread::spawn(move || {
        door.accept().unwrap();
        door.accept().unwrap().0
    });
    let mut server = accepting.join().unwrap();
    let header =
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", client.local_addr().unwrap().port(), fleet.ip().port());
    assert_eq!(String::from_utf8(read(&mut server, header.len() + 5)).unwrap(), header + "hello");
    server.write_all(b"welcome").unwrap();
    assert_eq!(read(&mut client, 7), b"welcome");
}

fn copy_of(session: &crate::proxy::session::Session) -> TcpStream {
    session.server.as_ref().unwrap().fd.try_clone().unwrap().into()
}

#[test]
fn what_a_child_keeps_open_of_a_session_that_has_ended_is_not_heard_as_of_the_next_one() {
    let door = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    door.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    door.listen(0).unwrap();
    let door: TcpListener = door.into();
    let at = door.local_addr().unwrap();
    let mut fleet = Fleet::serving(1, &format!("a: {at}"), "connect_timeout: 20s");
    let mut first = fleet.client();
    let mut served = door.accept().unwrap().0;
    served.write_all(b"hello").unwrap();
    assert_eq!(read(&mut first, 5), b"hello");
    // As a child has it between its fork and its exec.
    let parked = fleet.park();
    let copy: Vec<TcpStream> = parked[0].sessions.iter().map(|(_, session)| copy_of(session)).collect();
    fleet.run(parked);
    socket2::SockRef::from(&first).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(first); // which resets it
    fleet.until_nobody_is_left();

    let _stop = connect(at);
    let mut next = fleet.client();
    next.write_all(b"hello").unwrap();
    fleet.until_alive("it is connecting", |alive| alive.backends[0].1 == 1);
    // The last news of the former one: a hangup.
    served.shutdown(Shutdown::Both).unwrap();
    copy.iter().for_each(|copy| copy.shutdown(Shutdown::Both).unwrap());
    let errors = |fleet: &Fleet| fleet.around.cells.backends().next().unwrap().shards[0].connect_errors.read();
    door.accept().unwrap();
    let mut server = door.accept().unwrap().0;
    assert_eq!((read(&mut server, 5), errors(&fleet)), (b"hello".to_vec(), 0));
    server.write_all(b"welcome").unwrap();
    assert_eq!(read(&mut next, 7), b"welcome");
}

#[test]
fn a_session_that_pauses_tries_again_when_its_time_has_come() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = held.local_addr().unwrap();
    drop(held);
    let mut fleet = Fleet::serving(1, &format!("a: {at}"), "");
    let mut client = fleet.client();
    client.write_all(b"hello").unwrap();
    let failed = |fleet: &Fleet| fleet.around.cells.backends().next().unwrap().shards[0].connect_errors.read();
    fleet.until("it was refused", || failed(&fleet) == 1);
    for count in COUNTS {
        fleet.hand_over(count);
        assert!(waits(&client));
    }
    let door = TcpListener::bind(at).unwrap();
    let mut server = door.accept().unwrap().0;
    assert_eq!(read(&mut server, 5), b"hello");
    assert_eq!(failed(&fleet), 0, "not before its time");
}

#[test]
fn half_a_header_is_not_lost() {
    let pools = format!("pools: {{ web: {{ backends: {{ a: {} }} }} }}\n", echo_server());
    let mut fleet = Fleet::of(1, "accept_proxy: { from: [127.0.0.0/8] }", &pools);
    let mut client = fleet.client();
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\nhello";
    for (part, count) in header.chunks(12).zip(COUNTS) {
        fleet.hand_over_while(count, || client.write_all(part).unwrap());
    }
    assert_eq!(read(&mut client, 5), b"hello");
    let parked = fleet.park();
    assert_eq!(parked[0].carry().unwrap().sessions.all().unwrap()[0].peer, Some("192.0.2.1:1111".parse().unwrap()));
    fleet.run(parked);
}

#[test]
fn a_spare_connection_is_there_for_the_next_client() {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut fleet =
        Fleet::serving(1, &format!("a: {}", door.local_addr().unwrap()), "spare_connections: 1, spare_max_idle: 20s");
    let mut spare = door.accept().unwrap().0;
    spare.write_all(b"welcome").unwrap();
    fleet.until_alive("there is one", |alive| alive.backends[0].2 == 1);
    for count in [1, 1] {
        fleet.hand_over(count);
    }
    let mut client = fleet.client();
    assert_eq!(read(&mut client, 7), b"welcome");
    fleet.until_alive("it is replaced", |alive| alive.backends[0].2 == 1);
    fleet.hand_over(2);
    say_and_echo(&mut client, &mut spare);
}

fn say_and_echo(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").unwrap();
    assert_eq!(read(server, 4), b"ping");
    server.write_all(b"pong").unwrap();
    assert_eq!(read(client, 4), b"pong");
}

#[test]
fn a_client_who_waits_at_a_full_listener_comes_in_when_one_leaves() {
    let pools = format!("pools: {{ web: {{ backends: {{ a: {} }} }} }}\n", echo_server());
    let mut fleet = Fleet::of(1, "max_connections: 1", &pools);
    let mut first = fleet.client();
    say(&mut first, b"hello");
    let mut second = fleet.client();
    second.write_all(b"let me in").unwrap();
    for count in COUNTS {
        fleet.hand_over(count);
        say(&mut first, b"still here");
        assert!(waits(&second));
    }
    say_goodbye(first);
    assert_eq!(read(&mut second, 9), b"let me in");
}

#[test]
fn sessions_of_what_the_new_file_does_not_have_go_on_and_are_counted() {
    let (gone, stays) = (echo_server(), echo_server());
    let mut fleet = Fleet::serving(1, &format!("a: {gone}, b: {stays}"), "");
    let mut clients = [fleet.client(), fleet.client()];
    clients.iter_mut().for_each(|client| say(client, b"hello"));
    fleet.file = fleet.file.replace(&format!("a: {gone}, "), "");
    for count in COUNTS {
        fleet.hand_over(count);
        clients.iter_mut().for_each(|client| say(client, b"still here"));
        let removed: Vec<_> = fleet.around.cells.backends().map(|b| (b.removed_since(), b.live.count())).collect();
        assert_eq!(removed, [(Some(7), 1), (None, 1)], "since when it is gone is not forgotten");
    }
    let [first, second] = clients;
    say_goodbye(first);
    say_goodbye(second);
    fleet.until_nobody_is_left();
    fleet.around.cells.forget_empty();
    assert_eq!(fleet.around.cells.backends().count(), 1);
}
