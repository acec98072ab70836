//! What a session does when either side ends, breaks off or stalls, over real sockets.

use super::super::scratch::Scratch;
use super::super::testing::{Ears, Got, Over, break_off, get, pair, put, snapshot};
use super::*;
use socket2::Socket;

const FILE: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web, idle_timeout: 10s } }
pools: { web: { backends: { a: 127.0.0.1:9001 }, half_close_timeout: 3s } }
removed_timeout: 5s
";
const SECOND: u64 = 1_000_000;

/// A session that relays, and its two peers.
fn relaying(over: Over) -> (Session, Socket, Socket) {
    let (snapshot, _) = snapshot(FILE, 1);
    let ((client, caller), (server, called)) = (pair(over), pair(over));
    let mut session = Session::new(client, None, &snapshot.listeners[0], 0, 0);
    session.server = Some(server);
    session.state = State::Relaying;
    session.backend = Some(Arc::clone(&snapshot.pools[0].backends[0].cell));
    (session, caller, called)
}

/// Gives it turns, as a worker would, until it waits or is over.
fn turns(session: &mut Session, ears: &Ears, memory: &Memory) -> Next {
    let mut scratch = Scratch::new();
    for _ in 0..1000 {
        let Session { client, server, .. } = session;
        ears.hear([client, server.as_mut().unwrap()], 1);
        match session.relay(&mut scratch, memory, SECOND) {
            Next::Again => {}
            next => return next,
        }
    }
    panic!("it wants turn after turn and gets nowhere");
}

#[test]
fn a_client_that_broke_off_while_its_backend_stalls_burns_no_turns() {
    let (mut session, client, server) = relaying(Over::Tcp);
    let (ears, memory) = (Ears::on([&session.client, session.server.as_ref().unwrap()]), Memory::new(1 << 20));
    let mut idle = 0;
    while idle < 5 {
        idle = if put(&client, &[7; 64 * 1024]) == 0 { idle + 1 } else { 0 };
        assert_eq!(turns(&mut session, &ears, &memory), Next::Wait);
    }
    assert!(session.up.is_holding());
    break_off(client);
    for answer in [b"some", b"more"] {
        put(&server, answer);
        let next = turns(&mut session, &ears, &memory);
        assert!(matches!(next, Next::Wait | Next::End(Cause::Client, Phase::Data)), "{next:?}");
    }
    session.up.drop_rest(&memory);
    session.down.drop_rest(&memory);
    assert_eq!(memory.held(), 0);
}

#[test]
fn whatever_was_read_before_a_reset_reaches_a_slow_reader_and_a_fin_before_it_counts() {
    for (breaks, fin) in [(Cause::Server, true), (Cause::Server, false), (Cause::Client, true), (Cause::Client, false)]
    {
        let (mut session, client, server) = relaying(Over::Tcp);
        let ears = Ears::on([&session.client, session.server.as_ref().unwrap()]);
        let memory = Memory::new(1 << 20);
        let (first, other) = if breaks == Cause::Client { (client, server) } else { (server, client) };
        put(&other, b"hello");
        let mut sent = 0;
        while !session.up.is_holding() && !session.down.is_holding() {
            sent += put(&first, &[7; 4096]);
            assert_eq!(turns(&mut session, &ears, &memory), Next::Wait);
        }
        assert_eq!(session.up.bytes.max(session.down.bytes), sent as u64);
        if fin {
            first.shutdown(std::net::Shutdown::Write).unwrap();
        }
        break_off(first);
        let (mut arrived, mut idle, mut next) = (0, 0, Next::Wait);
        while idle < 20 {
            next = turns(&mut session, &ears, &memory);
            match get(&other, 4096) {
                Got::Bytes(bytes) => (arrived, idle) = (arrived + bytes.len(), 0),
                _ => idle += 1,
            }
        }
        assert_eq!((arrived, next), (sent, Next::End(breaks, Phase::Data)), "{breaks:?} {fin}");
        let flow = if breaks == Cause::Client { &session.up } else { &session.down };
        assert_eq!((flow.whole, memory.held()), (fin, 0), "{breaks:?} {fin}");
    }
}

#[test]
fn each_side_may_end_first_and_the_other_still_speaks() {
    for over in [Over::Unix, Over::Tcp] {
        for client_first in [true, false] {
            let (mut session, client, server) = relaying(over);
            let ears = Ears::on([&session.client, session.server.as_ref().unwrap()]);
            let memory = Memory::new(1 << 20);
            let (first, second) = if client_first { (&client, &server) } else { (&server, &client) };
            put(first, b"ping");
            first.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(turns(&mut session, &ears, &memory), Next::Wait);
            assert_eq!((get(second, 9), get(second, 9)), (Got::Bytes(b"ping".into()), Got::End));
            put(second, b"pong");
            assert_eq!(turns(&mut session, &ears, &memory), Next::Wait);
            assert_eq!((get(first, 9), get(first, 9)), (Got::Bytes(b"pong".into()), Got::Nothing));
            second.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(turns(&mut session, &ears, &memory), Next::End(Cause::Normal, Phase::Data));
            drop(session); // its close is what tells the first one
            assert_eq!(get(first, 9), Got::End);
        }
    }
}

#[test]
fn a_backend_that_breaks_before_it_took_a_byte_is_replaced_and_later_not() {
    for (sent, next) in [(false, Next::Redial(Errno::ECONNRESET)), (true, Next::End(Cause::Server, Phase::Data))] {
        let (mut session, client, server) = relaying(Over::Tcp);
        let (ears, memory) = (Ears::on([&session.client, session.server.as_ref().unwrap()]), Memory::new(1 << 20));
        if sent {
            put(&client, b"hello");
            assert_eq!(turns(&mut session, &ears, &memory), Next::Wait);
        }
        break_off(server);
        assert_eq!(turns(&mut session, &ears, &memory), next);
    }
}

#[test]
fn a_spare_that_ends_before_a_byte_has_moved_is_replaced_even_if_it_said_goodbye() {
    for (spare, sent, redialled) in [
        (SpareUse::Serving, false, true),
        (SpareUse::Serving, true, false),
        (SpareUse::Never, false, false),
        (SpareUse::Failed, false, false),
    ] {
        let (mut session, client, server) = relaying(Over::Tcp);
        session.spare = spare;
        let (ears, memory) = (Ears::on([&session.client, session.server.as_ref().unwrap()]), Memory::new(1 << 20));
        if sent {
            put(&client, b"hello");
            assert_eq!(turns(&mut session, &ears, &memory), Next::Wait);
            assert_eq!(get(&server, 9), Got::Bytes(b"hello".into()));
        }
        put(&server, b"too idle");
        drop(server);
        let next = turns(&mut session, &ears, &memory);
        let said = if redialled { Got::Nothing } else { Got::Bytes(b"too idle".into()) };
        assert_eq!((next == Next::Redial(Errno::ECONNRESET), get(&client, 9)), (redialled, said), "{spare:?} {sent}");
    }
}

#[test]
fn who_is_to_blame_for_silence_and_how_long_it_may_last() {
    for (up_closed, down_closed, seconds, cause) in [
        (false, false, 10, Cause::ClientTimeout),
        (true, false, 3, Cause::ServerTimeout),
        (false, true, 3, Cause::ClientTimeout),
    ] {
        let (mut session, ..) = relaying(Over::Unix);
        session.active = 7 * SECOND;
        (session.up.closed, session.down.closed) = (up_closed, down_closed);
        assert_eq!(session.overdue(), ((7 + seconds) * SECOND, cause), "{up_closed} {down_closed}");
    }
}

#[test]
fn a_session_of_what_was_removed_leaves_when_the_file_says() {
    let (one, mut cells) = snapshot(FILE, 1);
    let (client, _caller) = pair(Over::Unix);
    let mut session = Session::new(client, None, &one.listeners[0], 0, 0);
    let backend = Arc::clone(&one.pools[0].backends[0].cell);
    assert!(backend.live.reserve(None));
    session.backend = Some(backend);
    assert_eq!(session.leaves_by(&one), None);
    let without = FILE.replace("9001", "9002");
    cells.settle(&crate::config::Config::parse(without.as_bytes()).unwrap(), 2 * SECOND);
    assert_eq!(session.leaves_by(&one), Some(7 * SECOND));
}
