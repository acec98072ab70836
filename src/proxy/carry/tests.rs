//! Workers that become others in the middle of their work, again and again: all that an exec does to them, in one process.
//! What a program carries goes through bytes; what it does not is made anew.

mod fleet;
mod stand_in;
mod states;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use fleet::Fleet;

use super::{CarriedWorker, OnExec};
use crate::proxy::Command;

use crate::proxy::tests::{echo_server, say, say_goodbye};

/// Held by who looks at the marks of descriptors: [`super::close_on_exec`] sets others' too.
pub(super) static MARKS: Mutex<()> = Mutex::new(());

/// Whether an exec closes it.
pub(super) fn closes(fd: RawFd) -> bool {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0
}

fn text(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|i| (i ^ (i >> 8) ^ (i >> 16) ^ seed) as u8).collect()
}

#[test]
fn no_byte_is_lost_or_doubled_and_no_client_refused_while_workers_are_handed_over_under_load() {
    let mut fleet = Fleet::serving(2, &format!("a: {}, b: {}", echo_server(), echo_server()), "spare_connections: 2");
    let mut idle: Vec<_> = (0..20).map(|_| fleet.client()).collect();
    idle.iter_mut().for_each(|client| say(client, b"before"));
    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU32::new(0));
    let chatting = (0..6).map(|n| {
        let (over, served, address) = (Arc::clone(&over), Arc::clone(&served), fleet.ip());
        thread::spawn(move || {
            let mut round = n;
            while !over.load(SeqCst) {
                let mut client = fleet::connect(address);
                for length in [1, 700, 40_000].into_iter().cycle().take(round % 7) {
                    say(&mut client, &text(length, round));
                }
                say_goodbye(client);
                served.fetch_add(1, SeqCst);
                round += 1;
            }
        })
    });
    let chatting: Vec<_> = chatting.collect();
    // More than all buffers on the way take: bytes are held at any time.
    let streaming = (0..2).map(|n| {
        let (mut reader, over) = (fleet.client(), Arc::clone(&over));
        let mut writer = reader.try_clone().unwrap();
        let writing = thread::spawn(move || {
            let (part, mut parts) = (text(1 << 20, n), 0);
            while !over.load(SeqCst) {
                writer.write_all(&part).unwrap();
                parts += 1;
            }
            writer.shutdown(Shutdown::Write).unwrap();
            parts
        });
        thread::spawn(move || {
            let (part, mut buffer, mut read) = (text(1 << 20, n), vec![0; 1 << 16], 0);
            loop {
                let count = reader.read(&mut buffer).unwrap();
                let at = read % part.len();
                let first = count.min(part.len() - at);
                assert!(buffer[..first] == part[at..at + first] && buffer[first..count] == part[..count - first]);
                read += count;
                if count == 0 {
                    assert_eq!(read, writing.join().unwrap() * part.len());
                    return;
                }
            }
        })
    });
    let streaming: Vec<_> = streaming.collect();
    for count in [2, 2, 2, 1, 1, 2, 3, 3, 2, 2, 2, 1].into_iter().cycle().take(48) {
        let before = served.load(SeqCst);
        fleet.hand_over(count);
        if count == 2 {
            fleet.until("somebody new is served", || served.load(SeqCst) > before);
        }
    }
    over.store(true, SeqCst);
    chatting.into_iter().chain(streaming).for_each(|thread| thread.join().unwrap());
    for (n, mut client) in idle.into_iter().enumerate() {
        say(&mut client, &text(n + 1, n));
        say_goodbye(client);
    }
    fleet.until_nobody_is_left();
}

#[test]
fn what_was_assembled_and_not_committed_leaves_the_sessions_to_the_predecessor() {
    let mut fleet = Fleet::serving(1, &format!("a: {}", echo_server()), "spare_connections: 1");
    let mut client = fleet.client();
    say(&mut client, b"before");
    for count in [1, 3] {
        let parked = fleet.park();
        client.write_all(b"asleep").unwrap(); // an event that nobody must take
        let carried = fleet::through_bytes(&parked);
        let successor = fleet::Fleet::assemble(&fleet.file, carried, count);
        drop(successor.assembled); // as where the second of three could not be
        fleet.run(parked);
        let mut back = [0; 6];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"asleep");
        say(&mut client, b"awake");
        say(&mut fleet.client(), b"hello");
    }
}

#[test]
fn an_exec_leaves_open_what_is_carried_and_after_a_change_of_mind_closes_it() {
    let _alone = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut fleet = Fleet::serving(2, &format!("a: {}", echo_server()), "spare_connections: 2");
    let mut clients: Vec<_> = (0..70).map(|_| fleet.client()).collect(); // four descriptors each, and an ordinary user has 1,024
    clients.iter_mut().for_each(|client| say(client, b"hello"));
    for (what, closed) in [(OnExec::Keep, false), (OnExec::Close, true), (OnExec::Keep, false)] {
        fleet.around.lines.iter().for_each(|line| line.tell(Command::OnExec(what)).unwrap());
        clients.extend((0..5).map(|_| fleet.client()));
        clients.iter_mut().for_each(|client| say(client, b"hello"));
        fleet.until("all are marked", || fleet.around.lines.iter().all(|line| line.is_marked()));
        clients.extend((0..5).map(|_| fleet.client()));
        clients.iter_mut().for_each(|client| say(client, b"hello"));
        let parked = fleet.park();
        let carried = fleet::through_bytes(&parked);
        let all: Vec<RawFd> = carried.iter().flat_map(CarriedWorker::descriptors).collect();
        assert!(all.len() > 2 * clients.len());
        assert!(all.iter().all(|fd| closes(*fd) == closed), "{what:?}");
        fleet.run(parked);
    }
    // Parked at once, it is done all the same.
    fleet.around.lines.iter().for_each(|line| line.tell(Command::OnExec(OnExec::Close)).unwrap());
    let parked = fleet.park();
    assert!(fleet::through_bytes(&parked).iter().flat_map(CarriedWorker::descriptors).all(closes));
    fleet.run(parked);
}
