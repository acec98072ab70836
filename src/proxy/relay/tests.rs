//! The laws of one direction, over real sockets.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use socket2::{SockRef, Socket};

use super::super::scratch::Scratch;
use super::super::socket::keep_urgent_data_in_line;
use super::super::testing::{Ears, Got, Over, break_off, get, pair, put};
use super::{End, FRUGAL, Flow, HOLD, Memory, READS, Step, Stream, TURN, left_of_turn};

/// A direction from a writer to a reader.
struct Way {
    writer: Socket,
    source: End,
    flow: Flow,
    sink: End,
    reader: Socket,
    ears: Ears,
    scratch: Scratch,
    memory: Memory,
}

impl Way {
    fn over(over: Over) -> Self {
        let ((source, writer), (sink, reader)) = (pair(over), pair(over));
        let (scratch, memory) = (Scratch::new(), Memory::new(1 << 20));
        Self { ears: Ears::on([&source, &sink]), writer, source, flow: Flow::default(), sink, reader, scratch, memory }
    }

    fn hear(&mut self) {
        self.ears.hear([&mut self.source, &mut self.sink], 1);
    }

    fn pump(&mut self) -> Step {
        self.hear();
        self.flow.pump(&mut self.source, &mut self.sink, &mut self.scratch, &self.memory)
    }

    /// Pumps, as a worker would, until an event must come.
    fn pump_on(&mut self) -> Step {
        loop {
            match self.pump() {
                Step::Yield => {}
                other => return other,
            }
        }
    }

    /// Writes until the reader's stalling is felt all the way back; returns how much that was.
    fn stuff(&mut self) -> usize {
        let (mut sent, mut idle) = (0, 0);
        // On a busy machine the kernel may stand in the writer's way for a while, not the reader.
        while idle < 5 || !self.flow.is_holding() || self.flow.bytes == sent as u64 {
            let n = put(&self.writer, &pattern(sent, 64 * 1024));
            idle = if n == 0 { idle + 1 } else { 0 };
            sent += n;
            self.pump_on();
        }
        sent
    }

    /// Reads to the end or until nothing comes for a while.
    fn read_out(&mut self) -> (Vec<u8>, Got) {
        let (mut all, mut idle) = (Vec::new(), 0);
        loop {
            self.pump_on();
            match get(&self.reader, 100_000) {
                Got::Bytes(bytes) => {
                    all.extend(bytes);
                    idle = 0;
                }
                Got::Nothing if idle < 20 => idle += 1,
                last => return (all, last),
            }
        }
    }
}

/// Bytes of a stream from a position on; no two pages of it are alike.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_byte_arrives_in_order_and_then_the_end(
        tcp: bool,
        writes in prop::collection::vec(1usize..150_000, 1..12),
        reads in prop::collection::vec(1usize..100_000, 1..12),
    ) {
        let mut way = Way::over(if tcp { Over::Tcp } else { Over::Unix });
        let total: usize = writes.iter().sum();
        let (mut sent, mut got, mut done) = (0, Vec::new(), false);
        let (mut writes, mut reads) = (writes.iter().cycle(), reads.iter().cycle());
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            prop_assert!(Instant::now() < patience, "{sent} of {total} sent, {} arrived", got.len());
            if sent < total {
                sent += put(&way.writer, &pattern(sent, (*writes.next().unwrap()).min(total - sent)));
                if sent == total {
                    way.writer.shutdown(std::net::Shutdown::Write).unwrap();
                }
            }
            done |= way.pump() == Step::Done;
            match get(&way.reader, *reads.next().unwrap()) {
                Got::Bytes(bytes) => got.extend(bytes),
                Got::Nothing => {}
                Got::End => break,
                Got::Reset => prop_assert!(false, "a reset"),
            }
        }
        prop_assert!(got == pattern(0, total), "{} of {total}", got.len());
        prop_assert!(done && way.flow.ended && way.flow.closed && way.flow.sent);
        prop_assert_eq!((way.flow.bytes, way.memory.held()), (total as u64, 0));
    }
}

#[test]
fn a_stalled_reader_stops_the_reading_and_loses_nothing() {
    for (over, buffer) in
        [(Over::Unix, None), (Over::Tcp, None), (Over::Unix, Some(1 << 18)), (Over::Tcp, Some(1 << 18))]
    {
        let mut way = Way::over(over);
        if let Some(size) = buffer {
            for socket in [SockRef::from(&way.sink.fd), SockRef::from(&way.writer), SockRef::from(&way.reader)] {
                socket.set_send_buffer_size(size).unwrap();
                socket.set_recv_buffer_size(size).unwrap();
            }
        }
        let sent = way.stuff();
        let (bytes, held) = (way.flow.bytes, way.memory.held());
        assert!(way.flow.is_holding() && bytes < sent as u64, "{over:?}: {bytes} of {sent}");
        assert!(0 < held && held <= HOLD as u64, "{over:?}: {held}");
        for _ in 0..10 {
            // Unheard: the kernel may yet find room for some more.
            assert_eq!(way.flow.pump(&mut way.source, &mut way.sink, &mut way.scratch, &way.memory), Step::Wait);
        }
        assert_eq!((way.flow.bytes, way.memory.held()), (bytes, held), "{over:?}: nothing more is read");
        let (got, last) = way.read_out();
        assert!(got == pattern(0, sent), "{over:?}: {} of {sent}", got.len());
        assert_eq!((last, way.memory.held()), (Got::Nothing, 0));
        assert!(!way.flow.is_holding());
    }
}

#[test]
fn the_end_is_passed_on_only_when_everything_before_it_is() {
    for over in [Over::Unix, Over::Tcp] {
        let mut way = Way::over(over);
        let sent = way.stuff();
        way.writer.shutdown(std::net::Shutdown::Write).unwrap();
        way.pump_on();
        assert!(!way.flow.closed);
        let (got, last) = way.read_out();
        assert!(got == pattern(0, sent) && last == Got::End, "{over:?}: {} of {sent}, {last:?}", got.len());
        assert_eq!(way.pump(), Step::Done);
    }
}

#[test]
fn nothing_is_read_that_cannot_be_written() {
    let mut way = Way::over(Over::Unix);
    put(&way.writer, b"hello");
    way.hear();
    way.sink.writable = false;
    let step = way.flow.pump(&mut way.source, &mut way.sink, &mut way.scratch, &way.memory);
    assert_eq!((step, way.flow.bytes), (Step::Wait, 0));
}

#[test]
fn a_busy_direction_yields_and_full_memory_makes_reads_small() {
    let mut way = Way::over(Over::Unix);
    way.memory = Memory::new(0);
    let mut sent = 0;
    while sent < 5 * FRUGAL {
        let n = put(&way.writer, &pattern(sent, FRUGAL));
        assert!(n > 0);
        sent += n;
    }
    assert_eq!(way.pump(), Step::Yield);
    assert_eq!(way.flow.bytes, 2 * FRUGAL as u64);
    assert!(way.read_out().0 == pattern(0, sent));
}

#[test]
fn the_last_bytes_of_a_peer_that_takes_none_arrive_and_then_the_end_it_gave() {
    let mut up = Way::over(Over::Unix);
    let Way { writer: client, reader: server, .. } = &up;
    put(client, b"a request that nobody reads");
    put(server, b"bye");
    drop(std::mem::replace(
        &mut up.reader,
        Socket::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap())),
    ));
    assert_eq!(up.pump(), Step::Done);
    assert!(up.sink.broken && up.flow.closed);
    let mut down = Flow::default();
    let step = down.pump(&mut up.sink, &mut up.source, &mut up.scratch, &up.memory);
    assert_eq!(step, Step::Yield);
    assert_eq!(down.pump(&mut up.sink, &mut up.source, &mut up.scratch, &up.memory), Step::Done);
    assert_eq!(get(&up.writer, 10), Got::Bytes(b"bye".into()));
    assert_eq!(get(&up.writer, 10), Got::End, "a Unix socket that is closed has ended");
    up.flow.drop_rest(&up.memory);
    assert_eq!(up.memory.held(), 0);
}

#[test]
fn a_reset_is_told_and_what_came_before_it_is_passed_on() {
    let mut way = Way::over(Over::Tcp);
    put(&way.writer, b"last words");
    assert_eq!(way.pump(), Step::Wait);
    let Way { writer, mut source, mut sink, mut flow, mut scratch, memory, ears, reader } = way;
    break_off(writer);
    ears.hear([&mut source, &mut sink], 1000);
    while flow.pump(&mut source, &mut sink, &mut scratch, &memory) == Step::Yield {}
    assert!(flow.closed && !flow.whole && source.stream == Stream::Cut);
    assert_eq!(get(&reader, 100), Got::Bytes(b"last words".into()));
    assert_eq!(get(&reader, 100), Got::Nothing);
}

#[test]
fn what_stands_behind_an_urgent_byte_arrives_in_order_and_at_once() {
    for over in [Over::Tcp, Over::Unix] {
        let mut way = Way::over(over);
        keep_urgent_data_in_line(&way.source.fd).unwrap(); // as a dial and an accept do
        put(&way.writer, b"abc");
        if way.writer.send_out_of_band(b"X").is_err() {
            continue; // Unix sockets have none where the kernel was built so
        }
        put(&way.writer, b"def");
        way.pump_on();
        assert_eq!(way.read_out(), (b"abcXdef".into(), Got::Nothing), "{over:?}");
        assert!(!way.source.readable && !way.source.urgent, "{over:?}: it is drained");
    }
}

#[test]
fn a_short_read_of_a_unix_socket_leaves_nothing_behind() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let mut way = Way::over(Over::Unix);
    let rights = [way.reader.as_raw_fd()];
    put(&way.writer, b"before, ");
    let (words, control) = ([std::io::IoSlice::new(b"with a descriptor")], [ControlMessage::ScmRights(&rights)]);
    sendmsg::<()>(way.writer.as_raw_fd(), &words, &control, MsgFlags::empty(), None).unwrap();
    put(&way.writer, b", and after");
    way.pump_on();
    assert_eq!(way.read_out(), (b"before, with a descriptor, and after".into(), Got::Nothing));
}

#[test]
fn first_bytes_that_a_lost_sink_did_not_take_go_to_another() {
    let Way { writer, mut source, mut sink, mut flow, mut scratch, memory, ears, reader } = Way::over(Over::Unix);
    drop(reader);
    put(&writer, b"hello");
    ears.hear([&mut source, &mut sink], 1000);
    assert_eq!(flow.pump(&mut source, &mut sink, &mut scratch, &memory), Step::Done);
    assert!(sink.broken && !flow.sent && flow.is_holding());
    assert_eq!(memory.held(), 5);

    let (mut another, reader) = pair(Over::Unix);
    another.writable = true;
    flow.reopen(&memory);
    put(&writer, b", world");
    ears.hear([&mut source, &mut sink], 1000);
    while flow.pump(&mut source, &mut another, &mut scratch, &memory) == Step::Yield {}
    assert_eq!(get(&reader, 100), Got::Bytes(b"hello, world".into()));
    assert_eq!((flow.bytes, memory.held()), (12, 0));
}

#[test]
fn what_was_freed_is_worth_giving_back_once_and_only_where_it_is_much() {
    const MIB: usize = 1 << 20;
    let memory = Memory::new(u64::MAX);
    for (hold, release, slack) in
        [(4 * MIB, 4 * MIB, false), (9 * MIB, 4 * MIB, false), (0, MIB, true), (0, 4 * MIB, false)]
    {
        memory.hold(hold);
        memory.release(release);
        assert_eq!((memory.has_slack(), memory.has_slack()), (slack, false), "{hold} {release}");
    }
}

#[test]
fn a_turn_is_bounded_in_bytes_whatever_the_size_of_the_buffer() {
    for buffer in [4 * HOLD, 5 * HOLD, 8 * HOLD, 64 * HOLD] {
        for first in [1, HOLD, 2 * HOLD + 1, 4 * HOLD, TURN - 1, TURN] {
            let mut moved = first.min(buffer);
            for _ in 1..READS {
                moved += left_of_turn(moved, buffer).unwrap_or(0);
            }
            assert!(moved < TURN + HOLD, "{moved} by a buffer of {buffer} after {first}");
        }
    }
    assert_eq!((left_of_turn(4 * HOLD, 4 * HOLD), left_of_turn(TURN, TURN)), (Some(4 * HOLD), None));
}
