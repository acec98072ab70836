//! What a stand-in does to sessions, and what becomes of it: that it has served must not be seen in anything but the time.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::fleet::{Fleet, StandingIn, Successor, connect, part_with, through_bytes};
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
    SockRef::from(door).set_read_timeout(Some(PATIENCE)).unwrap();
    let server = door.accept().unwrap().0;
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server
}

/// One session more, of the same worker.
fn another(fleet: &Fleet, door: &TcpListener) -> (TcpStream, TcpStream) {
    let (mut client, mut server) = (fleet.client(), accepted(door));
    talk(&mut client, &mut server);
    (client, server)
}

fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").unwrap();
    assert_eq!(read(server, 4), b"ping");
    server.write_all(b"pong").unwrap();
    assert_eq!(read(client, 4), b"pong");
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
            let (mut fleet, mut client, mut server, door) = session("");
            let (mut witness, mut echo) = another(&fleet, &door);
            let mut left = None;
            let told = fleet.hand_over_while(count, || {
                client.write_all(b"last words").unwrap();
                assert_eq!(read(&mut server, 10), b"last words", "while nobody but a stand-in is there");
                server.write_all(b"goodbye").unwrap();
                assert_eq!(read(&mut client, 7), b"goodbye");
                left = end(client, server);
                if cause == Cause::Normal {
                    assert_eq!(left.as_mut().unwrap().read(&mut [0]).unwrap(), 0, "an end is told at once");
                }
                talk(&mut witness, &mut echo); // what has come before that is heard by then
            });
            let due: Vec<_> = told.iter().flat_map(|told| &told.turns).filter_map(|turn| turn.due.clone()).collect();
            assert_eq!(due, [Due::End(cause.as_str().into())]);
            let told = left.unwrap().read(&mut [0]).map_err(|e| e.kind());
            assert_eq!(told, if cause == Cause::Normal { Ok(0) } else { Err(ErrorKind::ConnectionReset) }, "{cause}");
            fleet.until("it has ended", || counted(&fleet, cause) == ([14, 11], [14, 11], 1));
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
        let (mut witness, mut echo) = another(&fleet, &door);
        let told = fleet.hand_over_while(count, || {
            reset(server);
            talk(&mut witness, &mut echo);
            client.write_all(b"hello").unwrap();
        });
        let due: Vec<_> = told.iter().flat_map(|told| &told.turns).filter_map(|turn| turn.due.clone()).collect();
        assert!(matches!(due[..], [Due::Redial(_)]), "{due:?}");
        // After a second, as there is no other backend.
        assert_eq!(read(&mut accepted(&door), 5), b"hello");
    }
}

#[test]
fn what_is_not_a_stand_ins_to_do_is_done_behind_it_though_it_is_lost() {
    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\n";
    for lost in [false, true] {
        // One that accepts nobody: its queue has room for one, and then the kernel drops what comes.
        let door = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        door.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        door.listen(0).unwrap();
        let door: TcpListener = door.into();
        let _stop = connect(door.local_addr().unwrap());
        let backends = format!("backends: {{ a: {} }}, connect_timeout: 20s", door.local_addr().unwrap());
        let pools = format!("pools: {{ web: {{ {backends} }} }}\n");
        let mut fleet = Fleet::of(1, "accept_proxy: { from: [127.0.0.0/8] }", &pools);
        let (mut connecting, mut silent) = (fleet.client(), fleet.client());
        connecting.write_all(&[HEADER, b"hello"].concat()).unwrap();
        fleet.until_alive("one connects, one is silent", |alive| (alive.listener, alive.backends[0].1) == (2, 1));
        let parked = fleet.park();
        let carried = through_bytes(&parked);
        let standing_in = StandingIn::begin(parked);
        connecting.write_all(b" there").unwrap();
        silent.write_all(&[HEADER, b"hello"].concat()).unwrap();
        standing_in.until_heard();
        let Successor { around, mut assembled } = Fleet::assemble(&fleet.file, carried, 1);
        let (parked, told) = standing_in.end();
        parked.into_iter().for_each(part_with);
        assert!(told[0].turns.is_empty() && told[0].unheard.len() == 2, "{told:?}");
        let mut roster = Roster::of_assembled(&mut assembled);
        if lost {
            assert_eq!(roster.lose_track(), 0);
        } else {
            assert_eq!(roster.catch_up(told, &|why| panic!("{why}")), 0);
        }
        fleet.around = around;
        fleet.run(assembled.into_iter().map(Assembled::commit).collect());
        accepted(&door);
        let mut heard: Vec<_> = (0..2).map(|_| read(&mut accepted(&door), 5)).collect();
        heard.sort();
        assert_eq!(heard, [b"hello", b"hello"]);
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
            assert_eq!((ending.read(&mut [0]).unwrap(), ended.read(&mut [0]).unwrap()), (0, 0));
        }
        let (stood_in, told) = standing_in.end();
        stood_in.into_iter().for_each(part_with);
        assert_eq!(Roster::of_parked(&mut parked).catch_up(told, &|why| panic!("{why}")), 0);
        fleet.run(parked);
        server.write_all(b"awake").unwrap();
        assert_eq!(read(&mut client, 5), b"awake");
        fleet.until("all is counted", || counted(&fleet, Cause::Normal).0 == [10 + 6 * turn, 5 * turn]);
    }
    fleet.until("the other session has ended", || counted(&fleet, Cause::Normal).2 == 1);
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
fn what_a_stand_in_cannot_have_done_is_refused_and_cut_where_nobody_knows_better() {
    type Spoil = fn(&mut Meanwhile);
    let cases: [(&str, Spoil); 7] = [
        ("is not there", |told| told.turns[0].client.fd = -1),
        ("is not there", |told| told.turns.push(told.turns[0].clone())),
        ("of a header of 9", |told| told.turns[0].up.header = 9),
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
        let refused = RefCell::new(Vec::new());
        let cut = Roster::of_parked(&mut parked).catch_up(told, &|why| refused.borrow_mut().push(why));
        assert!(refused.borrow().len() == 1 && refused.borrow()[0].contains(why), "{refused:?}");
        assert_eq!((cut, parked[0].due.len()), (1, 1), "{why}: it is cut where there is nobody to go back to");
        (parked[0].due, parked[0].deafened) = (Vec::new(), false);
    }
    assert!(Meanwhile::read(&[0xff; 9]).is_err());
    fleet.run(parked);
    client.write_all(b"awake").unwrap();
    assert_eq!(read(&mut server, 5), b"awake");
}
