//! A worker whose turns the test takes itself, so that a peer can act between an event and what comes of it; with a ring
//! for each row, and without one.

use std::io::{Read, Write};
use std::iter;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use super::super::testing::{Got, break_off, get, put, ring, ring_for};
use super::super::tests::{PATIENCE, Rig, echo_server, say, say_goodbye};
use super::super::token::Token;
use super::super::worker::EVENTS;
use super::*;
use crate::words::Cause;

/// Sessions that have carried a byte each way, and their peers.
struct Scene {
    rig: Rig,
    worker: Worker,
    peers: Vec<(Socket, Socket)>,
}

impl Scene {
    /// One whose rows are calls alone, and where the kernel lets us, one in which each is made by a ring.
    fn each(sessions: usize) -> impl Iterator<Item = Self> {
        let by_ring = ring(ROW).map(|ring| {
            let mut scene = Self::of(sessions);
            scene.worker.ring = Some(ring);
            scene
        });
        iter::once_with(move || Self::of(sessions)).chain(by_ring)
    }

    fn of(sessions: usize) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut rig = Rig::serving(&format!("a: {}", door.local_addr().unwrap()));
        let peers = (0..sessions).map(|_| {
            let mut client = rig.client();
            let (mut server, _) = door.accept().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            pass(&mut client, &mut server);
            pass(&mut server, &mut client);
            (quick(client), quick(server))
        });
        let peers = peers.collect();
        let mut worker = rig.park();
        worker.take_up();
        for (_, session) in &mut worker.sessions {
            // As after a second write.
            session.server.as_mut().unwrap().no_delay = true;
        }
        Self { rig, worker, peers }
    }

    /// Waits for so many events, and hears them.
    fn hear(&mut self, count: usize) {
        self.hear_after(count, |_| {});
    }

    /// Waits for so many events; something happens; then they are heard.
    fn hear_after(&mut self, count: usize, happens: impl FnOnce(&mut Self)) {
        let mut events = Vec::new();
        while events.len() < count {
            let mut some = [EpollEvent::empty(); EVENTS];
            let heard = self.worker.hear(&mut some, EpollTimeout::from(PATIENCE.as_millis() as u16)).unwrap();
            assert!(!heard.is_empty(), "{} of {count} events", events.len());
            events.extend_from_slice(heard);
        }
        happens(self);
        for event in events {
            self.worker.heard(event);
        }
    }

    /// Lets the worker go on until so many sessions are left: one whose peer broke off waits for the other to acknowledge all.
    fn hear_until_left(&mut self, sessions: usize) {
        let patience = Instant::now() + PATIENCE;
        while self.worker.sessions.len() > sessions {
            assert!(Instant::now() < patience, "{} sessions are left", self.worker.sessions.len());
            let mut some = [EpollEvent::empty(); EVENTS];
            for event in self.worker.hear(&mut some, EpollTimeout::from(1u16)).unwrap() {
                self.worker.heard(*event);
            }
            self.worker.pass_row_on();
            self.worker.sweep();
            self.worker.bury();
        }
    }

    /// The peer at one side of the first session.
    fn peer(&self, side: Side) -> &Socket {
        let (client, server) = &self.peers[0];
        if side == Side::Client { client } else { server }
    }

    fn holds(&self) -> bool {
        self.worker.sessions.iter().any(|(_, session)| session.up.is_holding() || session.down.is_holding())
    }

    fn row(&self) -> usize {
        self.worker.row.messages.len()
    }

    /// Of two sessions one has ended, by the fault of that side.
    fn ended_alone(&self, fault: Side) {
        let cause = if fault == Side::Client { Cause::Client } else { Cause::Server };
        let shard = &self.rig.snapshot.listeners[0].cell.shards[0];
        assert_eq!(shard.ended[cause as usize].read(), 1, "{fault:?}");
        assert_eq!(self.rig.live(), (1, 1, 1), "{fault:?}");
    }

    /// Bytes counted as the clients', and as the servers'.
    fn counted(&self) -> (u64, u64) {
        let shard = &self.rig.snapshot.listeners[0].cell.shards[0];
        (shard.bytes_in.read(), shard.bytes_out.read())
    }
}

/// What a peer finds, where something is bound to come.
fn found(peer: &Socket, most: usize) -> Got {
    peer.set_nonblocking(false).unwrap();
    let got = get(peer, most);
    peer.set_nonblocking(true).unwrap();
    assert_ne!(got, Got::Nothing, "nothing comes");
    got
}

/// The same, until it is so much.
fn found_whole(peer: &Socket, length: usize) -> Vec<u8> {
    let mut whole = Vec::new();
    while whole.len() < length {
        match found(peer, length - whole.len()) {
            Got::Bytes(bytes) => whole.extend(bytes),
            over => panic!("{over:?} after {} of {length} bytes", whole.len()),
        }
    }
    whole
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b".").unwrap();
    to.read_exact(&mut [0]).unwrap();
}

fn quick(peer: TcpStream) -> Socket {
    peer.set_nonblocking(true).unwrap();
    Socket::from(OwnedFd::from(peer))
}

#[test]
fn what_has_come_is_passed_on_together() {
    for mut scene in Scene::each(3) {
        for (n, (client, _)) in scene.peers.iter().enumerate() {
            put(client, &[n as u8; 70]);
        }
        put(&scene.peers[1].1, b"an answer nobody asked for");
        scene.hear(4);
        assert_eq!(scene.row(), 4);
        assert!(scene.peers.iter().all(|(_, server)| get(server, 9) == Got::Nothing));
        assert_eq!(scene.counted(), (3, 3));
        scene.worker.pass_row_on();
        for (n, (_, server)) in scene.peers.iter().enumerate() {
            assert_eq!(found(server, 99), Got::Bytes(vec![n as u8; 70]));
        }
        assert_eq!(found(&scene.peers[1].0, 99), Got::Bytes(b"an answer nobody asked for".into()));
        assert_eq!((scene.row(), scene.counted()), (0, (3 + 210, 3 + 26)));
        if let Some(ring) = &scene.worker.ring {
            assert_eq!(ring.result(3), Some(Ok(26)), "who wrote it");
        }
    }
}

#[test]
fn a_full_row_is_written_before_the_next_begins() {
    for mut scene in Scene::each(ROW + 2) {
        for (n, (client, _)) in scene.peers.iter().enumerate() {
            put(client, &[n as u8; SLICE - 1]);
        }
        scene.hear(ROW + 2);
        assert_eq!(scene.row(), 2);
        scene.worker.pass_row_on();
        for (n, (_, server)) in scene.peers.iter().enumerate() {
            assert!(found_whole(server, SLICE - 1) == [n as u8; SLICE - 1]);
        }
    }
}

#[test]
fn a_long_message_goes_on_by_turns_and_a_short_one_behind_it_by_rows() {
    for mut scene in Scene::each(1) {
        let long: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
        for (by_row, wide) in [(true, WIDE - 1), (false, WIDE), (false, WIDE)] {
            put(&scene.peers[0].0, &long);
            scene.hear(1);
            assert_eq!(scene.row(), usize::from(by_row));
            scene.worker.pass_row_on();
            assert!(found_whole(&scene.peers[0].1, 5000) == long);
            let (_, session) = scene.worker.sessions.iter().next().unwrap();
            assert_eq!(session.up.wide, wide);
        }
        for n in 0..WIDE + 2 {
            put(&scene.peers[0].0, b"short");
            scene.hear(1);
            assert_eq!(scene.row(), usize::from(n >= WIDE), "{n}");
            scene.worker.pass_row_on();
            assert_eq!(found(&scene.peers[0].1, 99), Got::Bytes(b"short".into()));
        }
    }
}

#[test]
fn who_breaks_off_before_its_event_is_heard_ends_and_what_it_said_is_passed_on() {
    for breaks in [Side::Client, Side::Server] {
        for mut scene in Scene::each(2) {
            let pick = |pair: (Socket, Socket)| if breaks == Side::Client { pair } else { (pair.1, pair.0) };
            let (first, other) = pick(scene.peers.remove(0));
            let (bystander, its_other) = pick(scene.peers.remove(0));
            put(&bystander, b"words");
            put(&first, b"last words");
            scene.hear_after(2, |_| break_off(first));
            assert_eq!(scene.row(), 2, "{breaks:?}");
            scene.worker.pass_row_on();
            scene.hear(1); // that it broke off
            scene.hear_until_left(1);
            assert_eq!(found(&other, 99), Got::Bytes(b"last words".into()), "{breaks:?}");
            assert_eq!(found(&other, 99), Got::Reset, "{breaks:?}");
            assert_eq!(found(&its_other, 99), Got::Bytes(b"words".into()), "{breaks:?}");
            scene.ended_alone(breaks);
        }
    }
}

#[test]
fn a_read_that_fails_ends_its_session_behind_what_was_read_before() {
    for breaks in [Side::Client, Side::Server] {
        for mut scene in Scene::each(2) {
            let (client, server) = scene.peers.remove(0);
            let (bystander, its_other) = &scene.peers[0];
            put(bystander, b"words");
            let its_other = its_other.try_clone().unwrap();
            scene.hear(1);
            let (first, other) = if breaks == Side::Client { (client, server) } else { (server, client) };
            break_off(first);
            // Its event would tell; this is what a read without it must do.
            let (key, _) = scene.worker.sessions.iter().next().unwrap(); // who came first
            let session = &mut scene.worker.sessions[key];
            session.direction(breaks).unwrap().1.readable = true;
            assert!(scene.worker.join_row(key, breaks));
            assert_eq!(scene.row(), 2, "{breaks:?}");
            scene.worker.pass_row_on();
            scene.hear_until_left(1);
            assert_eq!(found(&its_other, 99), Got::Bytes(b"words".into()), "{breaks:?}");
            assert_eq!(found(&other, 99), Got::Reset, "{breaks:?}");
            scene.ended_alone(breaks);
        }
    }
}

#[test]
fn who_is_gone_before_its_message_is_written_ends_and_what_it_said_is_passed_on() {
    for mut scene in Scene::each(2) {
        put(&scene.peers[0].0, b"question");
        put(&scene.peers[0].1, b"last words");
        put(&scene.peers[1].0, b"another");
        scene.hear(3);
        assert_eq!(scene.row(), 3);
        let (client, server) = scene.peers.remove(0);
        break_off(server);
        scene.worker.pass_row_on();
        scene.hear_until_left(1);
        assert_eq!(found(&client, 99), Got::Bytes(b"last words".into()));
        assert_eq!(found(&scene.peers[0].1, 99), Got::Bytes(b"another".into()));
        assert_eq!(scene.rig.live(), (1, 1, 1));
    }
}

/// Says messages, one a turn, until a part of them is held; all that was said.
fn until_it_holds(scene: &mut Scene, speaker: Side) -> Vec<u8> {
    let mut said = Vec::new();
    while !scene.holds() {
        let message: Vec<u8> = (0..4000).map(|n| ((said.len() + n) / 7) as u8).collect();
        assert_eq!(put(scene.peer(speaker), &message), 4000, "the worker reads");
        said.extend(message);
        scene.hear(1);
        assert_eq!(scene.row(), 1);
        scene.worker.pass_row_on();
    }
    said
}

/// Reads all that was said to a side, while the worker has its turns.
fn read_all(scene: &mut Scene, reader: Side, mut got: Vec<u8>, said: &[u8]) {
    while scene.holds() {
        match get(scene.peer(reader), 1 << 20) {
            Got::Bytes(bytes) => got.extend(bytes),
            Got::Nothing => scene.hear(1),
            over => panic!("{over:?} after {} bytes", got.len()),
        }
    }
    got.extend(found_whole(scene.peer(reader), said.len() - got.len()));
    assert!(got == said);
    assert_eq!(scene.worker.limits.memory.held(), 0);
}

#[test]
fn what_a_slow_reader_does_not_take_is_held_and_nothing_is_lost_or_out_of_order() {
    for mut scene in Scene::each(1) {
        let said = until_it_holds(&mut scene, Side::Client);
        let held = scene.worker.limits.memory.held();
        assert!(held > 0 && held <= 4000, "{held}");
        read_all(&mut scene, Side::Server, Vec::new(), &said);
    }
}

#[test]
fn one_event_may_tell_that_held_bytes_can_go_on_and_that_a_message_has_come() {
    for (speaker, reader) in [(Side::Client, Side::Server), (Side::Server, Side::Client)] {
        for mut scene in Scene::each(1) {
            let said = until_it_holds(&mut scene, speaker);
            let mut got = Vec::new();
            while let Got::Bytes(bytes) = get(scene.peer(reader), 1 << 20) {
                got.extend(bytes);
            }
            put(scene.peer(reader), b"more");
            scene.hear(1);
            scene.worker.pass_row_on();
            assert_eq!(found(scene.peer(speaker), 9), Got::Bytes(b"more".into()), "{reader:?}");
            read_all(&mut scene, reader, got, &said);
        }
    }
}

#[test]
fn an_end_is_passed_on_behind_what_was_read_before() {
    for mut scene in Scene::each(2) {
        put(&scene.peers[1].0, b"words");
        scene.hear(1);
        scene.peers[0].0.shutdown(Shutdown::Write).unwrap();
        let (key, _) = scene.worker.sessions.iter().next().unwrap(); // who came first
        scene.worker.sessions[key].client.readable = true; // its event would tell
        assert!(scene.worker.join_row(key, Side::Client));
        scene.worker.pass_row_on();
        assert_eq!(found(&scene.peers[1].1, 9), Got::Bytes(b"words".into()));
        assert_eq!(found(&scene.peers[0].1, 9), Got::End);
        assert_eq!(scene.rig.live(), (2, 2, 2));
    }
}

#[test]
fn few_messages_are_a_call_each() {
    for (said, by_ring) in [(WORTH_A_RING - 1, false), (WORTH_A_RING, true)] {
        let Some(ring) = ring_for(ROW, WORTH_A_RING) else { return };
        let mut scene = Scene::of(said);
        scene.worker.ring = Some(ring);
        for (client, _) in &scene.peers {
            put(client, b"words");
        }
        scene.hear(said);
        scene.worker.pass_row_on();
        assert!(scene.peers.iter().all(|(_, server)| found(server, 9) == Got::Bytes(b"words".into())));
        let result = scene.worker.ring.as_ref().unwrap().result(0);
        assert_eq!(result, by_ring.then_some(Ok(5)), "{said}");
    }
}

/// A ring that fails: the kernel serves one thread by it, and that is another.
fn broken_ring() -> Option<Ring> {
    thread::spawn(|| ring(ROW)).join().unwrap()
}

#[test]
fn a_ring_that_fails_loses_nothing_and_goes() {
    let (Some(broken), Some(whole)) = (broken_ring(), ring(ROW)) else { return };
    let mut scene = Scene::of(3);
    scene.worker.ring = Some(broken);
    for (client, _) in &scene.peers {
        put(client, b"words");
    }
    scene.hear(3);
    scene.worker.pass_row_on();
    assert!(scene.worker.ring.is_none());
    // Between the reads and the writes.
    scene.worker.ring = Some(whole);
    for (client, _) in &scene.peers {
        put(client, b" more");
    }
    scene.hear(3);
    let mut messages = mem::take(&mut scene.worker.row.messages);
    scene.worker.read_all(&mut messages);
    scene.worker.ring = broken_ring();
    scene.worker.write_all(&mut messages);
    for (_, server) in &scene.peers {
        assert_eq!(found_whole(server, 10), b"words more");
    }
}

#[test]
fn an_end_that_is_told_beside_a_message_of_the_other_side_is_passed_on_with_it() {
    for breaks in [Side::Client, Side::Server] {
        for mut scene in Scene::each(2) {
            put(&scene.peers[1].0, b"words");
            let other = if breaks == Side::Client { Side::Server } else { Side::Client };
            put(scene.peer(other), b"answer");
            scene.hear(2);
            scene.peer(breaks).shutdown(Shutdown::Write).unwrap();
            scene.hear(1); // before the row is passed on
            assert_eq!(scene.row(), 0);
            assert_eq!(found(scene.peer(breaks), 9), Got::Bytes(b"answer".into()), "{breaks:?}");
            assert_eq!(found(scene.peer(other), 9), Got::End, "{breaks:?}");
            assert_eq!(found(&scene.peers[1].1, 9), Got::Bytes(b"words".into()), "{breaks:?}");
        }
    }
}

#[test]
fn both_sides_of_a_session_may_say_much_at_once() {
    for mut scene in Scene::each(1) {
        let much = [7; 3 * SLICE];
        put(&scene.peers[0].0, &much);
        put(&scene.peers[0].1, &much);
        scene.hear(2);
        assert_eq!(scene.row(), 2);
        scene.worker.pass_row_on();
        for peer in [&scene.peers[0].0, &scene.peers[0].1] {
            assert!(found_whole(peer, much.len()) == much);
        }
    }
}

#[test]
fn what_was_told_while_a_worker_was_parked_leaves_no_row() {
    for mut scene in Scene::each(1) {
        put(&scene.peers[0].0, b"words");
        let (key, session) = scene.worker.sessions.iter().next().unwrap();
        let token = Token::Client(key, session.serial).pack();
        scene.worker.unheard.push((token, EpollFlags::EPOLLIN.bits() as u32));
        scene.worker.take_up();
        assert_eq!(scene.row(), 0);
        assert_eq!(found(&scene.peers[0].1, 9), Got::Bytes(b"words".into()));
    }
}

#[test]
fn a_worker_that_finds_very_many_messages_loses_none() {
    let mut rig = Rig::serving(&format!("a: {}, b: {}", echo_server(), echo_server()));
    let mut clients: Vec<_> = (0..100).map(|_| rig.client()).collect();
    clients.iter_mut().for_each(|client| say(client, b"hello"));
    let worker = rig.park();
    let text = |n: usize| vec![n as u8; [1, 64, 4095, 4096, 20_000][n % 5]];
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&text(n)).unwrap();
        if n % 3 == 0 {
            client.shutdown(Shutdown::Write).unwrap();
        }
    }
    rig.run(worker);
    for (n, client) in clients.iter_mut().enumerate() {
        let mut back = vec![0; text(n).len()];
        client.read_exact(&mut back).unwrap();
        assert!(back == text(n), "{n}");
    }
    for (n, mut client) in clients.into_iter().enumerate() {
        if n % 3 == 0 {
            assert_eq!(client.read(&mut [0; 9]).unwrap(), 0, "{n}");
        } else {
            say_goodbye(client);
        }
    }
    rig.park();
    assert_eq!(rig.live(), (0, 0, 0));
}
