//! What a stand-in does to sessions, and what becomes of it: that it has served must not be seen in anything but the time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::fleet::{Fleet, StandingIn, Successor, part_with, through_bytes};
use super::states::read;
use crate::proxy::carry::stand_in::Due;
use crate::proxy::carry::{Assembled, Meanwhile, Roster};
use crate::proxy::tests::{PATIENCE, echo_server, say, say_goodbye};
use crate::words::Cause;

/// One session, and both who are connected by it.
fn session(keys: &str) -> (Fleet, TcpStream, TcpStream, TcpListener) {
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let fleet = Fleet::serving(1, &format!("a: {}", door.local_addr().unwrap()), keys);
    let (mut client, mut server) = (fleet.client(), accepted(&door));
    client.write_all(b"hello").unwrap();
    assert_eq!(read(&mut server, 5), b"hello");
    (fleet, client, server, door)
}

fn accepted(door: &TcpListener) -> TcpStream {
    let server = door.accept().unwrap().0;
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server
}

fn reset(peer: TcpStream) {
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Bytes from clients and from backends, as listeners and backends have them, and how many sessions ended by a cause.
fn counted(fleet: &Fleet, cause: Cause) -> ([u64; 2], [u64; 2], u64) {
    let (mut listeners, mut backends, mut ended) = ([0; 2], [0; 2], 0);
    for shard in fleet.around.cells.listeners().flat_map(|cell| cell.shards.iter()) {
        listeners = [listeners[0] + shard.bytes_in.read(), listeners[1] + shard.bytes_out.read()];
        ended += shard.ended[cause as usize].read();
    }
    for shard in fleet.around.cells.backends().flat_map(|cell| cell.shards.iter()) {
        backends = [backends[0] + shard.bytes_in.read(), backends[1] + shard.bytes_out.read()];
    }
    (listeners, backends, ended)
}

#[test]
fn what_is_said_last_is_heard_at_once_and_the_end_behind_it_is_the_same_as_ever() {
    type End = fn(TcpStream, TcpStream) -> Option<TcpStream>;
    let ends: [(Cause, End); 4] = [
        (Cause::Normal, |client, server| {
            client.shutdown(Shutdown::Write).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            Some(client)
        }),
        (Cause::Normal, |client, server| {
            server.shutdown(Shutdown::Write).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            Some(server)
        }),
        (Cause::Client, |client, server| {
            reset(client);
            Some(server)
        }),
        (Cause::Server, |client, server| {
            reset(server);
            Some(client)
        }),
    ];
    for (cause, end) in ends {
        for count in [1, 2] {
            let (mut fleet, mut client, mut server, _door) = session("");
            let mut left = None;
            fleet.hand_over_while(count, || {
                client.write_all(b"last words").unwrap();
                assert_eq!(read(&mut server, 10), b"last words", "while nobody but a stand-in is there");
                server.write_all(b"goodbye").unwrap();
                assert_eq!(read(&mut client, 7), b"goodbye");
                left = end(client, server);
            });
            let told = left.unwrap().read(&mut [0]).map_err(|e| e.kind());
            assert_eq!(told, if cause == Cause::Normal { Ok(0) } else { Err(ErrorKind::ConnectionReset) }, "{cause}");
            fleet.until_nobody_is_left();
            assert_eq!(counted(&fleet, cause), ([10, 7], [10, 7], 1), "{cause}");
        }
    }
}

#[test]
fn a_backend_that_breaks_before_a_byte_moved_is_replaced_by_who_takes_over() {
    for count in [1, 2] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut fleet = Fleet::serving(1, &format!("a: {}", door.local_addr().unwrap()), "");
        let mut client = fleet.client();
        let server = accepted(&door);
        fleet.until_alive("it is established", |alive| alive.backends[0].1 == 1);
        fleet.hand_over(1); // so that it is, for certain
        fleet.hand_over_while(count, || {
            reset(server);
            client.write_all(b"hello").unwrap();
        });
        // Whoever knew of it as a break tries again after a second, as there is no other backend.
        assert_eq!(read(&mut accepted(&door), 5), b"hello");
    }
}

#[test]
fn those_who_were_parked_may_go_on_themselves() {
    let (mut fleet, mut client, mut server, door) = session("retries: 0");
    let mut ending = fleet.client();
    let mut ended = accepted(&door);
    ending.write_all(b"hello").unwrap();
    assert_eq!(read(&mut ended, 5), b"hello");
    for turn in 1..=3 {
        let mut parked = fleet.park();
        // In a process of its own a stand-in has a copy of each worker. Here it has what a successor would have.
        let Successor { around: _around, assembled } = Fleet::assemble(&fleet.file, through_bytes(&parked), 1);
        let standing_in = StandingIn::begin(assembled.into_iter().map(Assembled::commit).collect());
        client.write_all(b"asleep").unwrap();
        assert_eq!(read(&mut server, 6), b"asleep");
        if turn == 3 {
            ended.shutdown(Shutdown::Write).unwrap();
            ending.shutdown(Shutdown::Write).unwrap();
        }
        let (stood_in, told) = standing_in.end();
        stood_in.into_iter().for_each(part_with);
        Roster::of_parked(&mut parked).catch_up(told).unwrap();
        fleet.run(parked);
        server.write_all(b"awake").unwrap();
        assert_eq!(read(&mut client, 5), b"awake");
        fleet.until("all is counted", || counted(&fleet, Cause::Normal).0 == [10 + 6 * turn, 5 * turn]);
    }
    fleet.until("the other session has ended", || counted(&fleet, Cause::Normal).2 == 1);
    assert_eq!((ending.read(&mut [0]).unwrap(), ended.read(&mut [0]).unwrap()), (0, 0));
}

#[test]
fn where_a_stand_in_is_lost_established_sessions_are_cut_and_nobody_else() {
    let keys = "queue: { max: 9, timeout: 20s }";
    let mut fleet = Fleet::serving(1, &format!("a: {{ address: {}, max_connections: 1 }}", echo_server()), keys);
    let (mut served, mut waiting) = (fleet.client(), fleet.client());
    say(&mut served, b"hello");
    waiting.write_all(b"waits").unwrap();
    fleet.until_alive("one waits", |alive| alive.waiting == 1);
    let mut parked = fleet.park();
    Roster::of_parked(&mut parked).lose_track();
    fleet.run(parked);
    assert_eq!(served.read(&mut [0]).map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(read(&mut waiting, 5), b"waits");
    say_goodbye(waiting);
    fleet.until_nobody_is_left();
    assert_eq!(counted(&fleet, Cause::Proxy).2, 1);
}

#[test]
fn what_a_stand_in_cannot_have_done_is_refused() {
    type Spoil = fn(&mut Meanwhile);
    let cases: [(&str, Spoil); 5] = [
        ("is not there", |told| told.turns[0].client.fd = -1),
        ("with another server", |told| told.turns[0].server.fd += 1),
        ("less after a turn", |told| told.turns[0].up.bytes = 4),
        ("less after a turn", |told| told.turns[0].down.bytes = 0),
        ("no session ends by \"age\"", |told| told.turns[0].due = Some(Due::End("age".into()))),
    ];
    let (mut fleet, mut client, mut server, _door) = session("");
    server.write_all(b"welcome").unwrap();
    assert_eq!(read(&mut client, 7), b"welcome");
    let standing_in = StandingIn::begin(fleet.park());
    client.write_all(b"asleep").unwrap();
    assert_eq!(read(&mut server, 6), b"asleep");
    let (mut parked, told) = standing_in.end();
    assert_eq!(told[0].turns.len(), 1);
    for (why, spoil) in cases {
        let mut told = told.clone();
        spoil(&mut told[0]);
        let refused = Roster::of_parked(&mut parked).catch_up(told).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
    assert!(Meanwhile::read(&[0xff; 9]).is_err());
    fleet.run(parked);
    client.write_all(b"awake").unwrap();
    assert_eq!(read(&mut server, 5), b"awake");
}
