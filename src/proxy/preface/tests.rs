//! A header's way through a flow and a session, on real sockets: cut anywhere, with the bytes behind it, and anew
//! for the next backend.

use super::super::relay::{End, Step};
use super::super::scratch::Scratch;
use super::super::session::Next;
use super::super::testing::{Ears, Got, Over, break_off, get, pair, put, snapshot};
use super::*;
use nix::sys::epoll::EpollFlags;

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n";

fn known() -> Origin {
    Origin::Ip("192.0.2.1:4711".parse().unwrap(), "198.51.100.2:443".parse().unwrap())
}

/// A client's connection, of which a header is expected, and a backend's.
struct Way {
    flow: Flow,
    client: End,
    caller: socket2::Socket,
    server: End,
    called: socket2::Socket,
    ears: Ears,
    memory: Memory,
    scratch: Scratch,
}

impl Way {
    fn new() -> Self {
        let ((client, caller), (server, called)) = (pair(Over::Tcp), pair(Over::Tcp));
        let ears = Ears::on([&client, &server]);
        let (memory, scratch) = (Memory::new(1 << 20), Scratch::new());
        Self { flow: Flow::default(), client, caller, server, called, ears, memory, scratch }
    }

    /// The client's bytes come, and are heard.
    fn says(&mut self, bytes: &[u8]) -> Heard {
        put(&self.caller, bytes);
        self.heard()
    }

    fn heard(&mut self) -> Heard {
        self.ears.hear([&mut self.client, &mut self.server], 1000);
        hear(&mut self.flow, &mut self.client, &mut self.scratch, &self.memory)
    }

    /// Opens to the backend and passes on what there is.
    fn opens(&mut self) {
        self.ears.hear([&mut self.client, &mut self.server], 50);
        let Self { flow, client, server, memory, scratch, .. } = self;
        flow.open(HEADER, client, server, scratch, memory);
        while flow.pump(client, server, scratch, memory) == Step::Yield {}
    }

    /// The backend is lost and another one comes in its place.
    fn gets_another(&mut self) {
        self.flow.reopen(&self.memory);
        (self.server, self.called) = pair(Over::Tcp);
        self.ears.add(&self.server, 1);
    }
}

fn with_header(bytes: &[u8]) -> Got {
    Got::Bytes([HEADER, bytes].concat())
}

#[test]
fn a_header_in_any_pieces_leaves_what_follows_it_intact() {
    let whole = [HEADER, b"hello"].concat();
    for split in 1..whole.len() {
        let mut way = Way::new();
        let (first, second) = whole.split_at(split);
        let mut heard = way.says(first);
        if split < HEADER.len() {
            assert_eq!(heard, Heard::Partial, "{split}");
            assert_eq!(way.memory.held(), split as u64);
            heard = way.says(second);
            assert_eq!(way.flow.bytes, 5, "the header is not the client's");
        } else {
            put(&way.caller, second);
        }
        assert_eq!(heard, Heard::Whole(known()), "{split}");
        way.opens();
        assert_eq!(get(&way.called, 999), with_header(b"hello"), "{split}");
        assert_eq!((way.flow.bytes, way.memory.held(), way.flow.sent), (5, 0, true), "{split}");
    }
}

/// The server's event comes first, as it is registered first.
#[test]
fn the_header_waits_for_the_clients_first_event_and_goes_with_what_that_brings() {
    let (snapshot, _cells) = snapshot(
        "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }\npools: { web: { backends: { a: 127.0.0.1:9001 } } }",
        1,
    );
    let Way { client, caller, mut server, called, memory, mut scratch, .. } = Way::new();
    server.writable = true;
    let mut session = Session::new(client, Some("192.0.2.1:4711".parse().unwrap()), &snapshot.listeners[0], 0, 0);
    session.destination = Some(Box::new("198.51.100.2:443".parse().unwrap()));
    session.server = Some(server);
    session.state = State::Relaying;
    session.send_proxy = Some(ProxyVersion::V1);
    put(&caller, b"hello");
    assert_eq!(session.relay(&mut scratch, &memory, 1), Next::Wait);
    assert_eq!(get(&called, 999), Got::Nothing);
    session.client_heard(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT);
    assert_eq!(session.relay(&mut scratch, &memory, 1), Next::Wait);
    assert_eq!(get(&called, 999), with_header(b"hello"));
}

#[test]
fn an_end_within_the_header_is_told_from_one_before_it() {
    for (bytes, end) in [(&b""[..], Heard::Nobody), (b"PROXY", Heard::Bad("the connection ended within it"))] {
        let mut way = Way::new();
        put(&way.caller, bytes);
        way.caller.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = way.heard();
        while heard == Heard::Partial {
            heard = hear(&mut way.flow, &mut way.client, &mut way.scratch, &way.memory);
        }
        assert_eq!((heard, way.memory.held()), (end, 0));
    }
}

#[test]
fn a_silent_clients_header_is_sent_alone_and_again_to_the_next_backend() {
    let mut way = Way::new();
    way.opens();
    assert_eq!(get(&way.called, 999), with_header(b""));
    assert!(!way.flow.sent, "nothing of the client's");
    way.gets_another();
    put(&way.caller, b"hello");
    way.opens();
    assert_eq!(get(&way.called, 999), with_header(b"hello"));
    assert_eq!((way.flow.bytes, way.memory.held(), way.flow.sent), (5, 0, true));
}

#[test]
fn first_bytes_that_a_lost_backend_did_not_take_get_a_header_of_their_own_at_the_next() {
    for held_before in [true, false] {
        let mut way = Way::new();
        match held_before {
            true => assert_eq!(way.says(&[HEADER, b"hello"].concat()), Heard::Whole(known())),
            false => assert_eq!(put(&way.caller, b"hello"), 5),
        }
        let other = std::mem::replace(&mut way.called, pair(Over::Tcp).1);
        break_off(other);
        way.ears.hear([&mut way.client, &mut way.server], 1000);
        way.opens();
        assert!(way.server.broken && !way.flow.sent, "{held_before}");
        assert_eq!(way.memory.held(), (HEADER.len() + 5) as u64);
        way.gets_another();
        assert_eq!(way.memory.held(), 5);
        way.opens();
        assert_eq!(get(&way.called, 999), with_header(b"hello"));
        assert_eq!((way.flow.bytes, way.memory.held(), way.flow.sent), (5, 0, true));
    }
}
