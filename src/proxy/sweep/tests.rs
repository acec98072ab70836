//! What is done by time, where the time is over by the book and something else may be so.

use std::time::Duration;

use super::*;

const SECOND: u64 = 1_000_000;

#[test]
fn who_answers_probes_is_not_gone_and_who_does_not_is_since_the_first_unanswered_byte() {
    let quiet = Delivery {
        is_pending: false,
        is_unanswered: false,
        is_sent_again: false,
        acknowledged: 9,
        silent: Duration::ZERO,
    };
    let (waits, probed) =
        (Delivery { is_pending: true, ..quiet }, Delivery { is_unanswered: true, is_pending: true, ..quiet });
    let again = Delivery { is_sent_again: true, ..probed };
    let (now, active) = (100 * SECOND, 60 * SECOND);
    for (what, delivery, was_silent, answered, silent_since) in [
        ("all acknowledged", quiet, 7, 1, 0),
        ("a closed window, each probe answered", waits, 0, 1, 0),
        ("that again, after it was silent", waits, 70 * SECOND, 99 * SECOND, 0),
        ("a probe that may be under way", probed, 0, 1, now),
        ("the same, still", probed, 80 * SECOND, 1, 80 * SECOND),
        ("another one, after an answer", probed, 80 * SECOND, 90 * SECOND, now),
        ("bytes sent again", again, 0, 1, active),
        ("bytes sent again, after an answer", again, 0, 90 * SECOND, 90 * SECOND),
        ("the same, while it says its own again", again, 70 * SECOND, 99 * SECOND, 70 * SECOND),
    ] {
        let before = (was_silent > 0).then_some(Seen { acknowledged: 9, silent_since: was_silent });
        assert_eq!(seen_of(&delivery, before, answered, active, now).silent_since, silent_since, "{what}");
    }
}

mod with_a_worker {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use socket2::Socket;

    use super::super::super::socket::monotonic_micros;
    use super::super::super::testing::{Got, get, put};
    use super::super::super::tests::{PATIENCE, Rig};
    use super::*;

    /// A session that has carried a byte each way; the test takes its worker's turns.
    fn scene() -> (Rig, Worker, TcpStream, TcpStream) {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut rig = Rig::serving(&format!("a: {}", door.local_addr().unwrap()));
        let mut client = rig.client();
        let server = door.accept().unwrap().0;
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        for (from, to) in [(0, 1), (1, 0)] {
            let mut both = [&client, &server];
            both[from].write_all(b"!").unwrap();
            both[to].read_exact(&mut [0]).unwrap();
        }
        client.flush().unwrap();
        let mut worker = rig.park();
        worker.now = monotonic_micros();
        worker.take_up();
        (rig, worker, client, server)
    }

    fn only(worker: &mut Worker) -> (usize, &mut Session) {
        worker.sessions.iter_mut().next().unwrap()
    }

    #[test]
    fn bytes_that_wait_are_heard_before_a_session_ends_for_time() {
        for waits in [true, false] {
            let (_rig, mut worker, mut client, mut server) = scene();
            if waits {
                client.write_all(b"I was here").unwrap();
            }
            let (key, session) = only(&mut worker);
            (session.active, session.idle) = (session.active.saturating_sub(60 * SECOND), 50 * SECOND);
            worker.look(key, &mut Vec::new());
            worker.look_by(key, 0);
            worker.now += 2 * TICK;
            worker.sweep();
            worker.bury();
            assert_eq!(
                worker.sessions.len(),
                1,
                "late by 10 s: the process was paused, and peers have an instant to answer"
            );
            if waits {
                server.read_exact(&mut [0; 10]).unwrap();
            }
            worker.grace_until = worker.now;
            worker.look_by(key, 0);
            worker.now += 10 * TICK;
            worker.sweep();
            worker.bury();
            assert_eq!(worker.sessions.len(), usize::from(waits));
        }
    }

    /// An upgrade that lasted longer than idle_timeout cut who had read all the time: its first look came with the snapshot's.
    #[test]
    fn a_session_that_is_found_late_without_a_look_is_asked_what_its_peers_have_acknowledged() {
        for reads in [true, false] {
            let (_rig, mut worker, client, server) = scene();
            let (client, server) = (Socket::from(client), Socket::from(server));
            client.set_nonblocking(true).unwrap();
            // lbd has passed all on, and its kernel keeps some of it.
            let mut kept = 0;
            while kept < 5 {
                if only(&mut worker).1.client.has_unacknowledged() {
                    kept += 1;
                } else {
                    kept = 0;
                    put(&server, &[7; 16 << 10]);
                }
                worker.hear_what_waits();
            }
            let (key, _) = only(&mut worker);
            worker.look_at_sockets(key);
            while reads && !matches!(get(&client, 1 << 20), Got::Nothing) {}
            let (_, session) = only(&mut worker);
            (session.active, session.idle) = (session.active.saturating_sub(6 * SECOND), 5 * SECOND);
            let late = (key, session.serial, session.state);
            worker.end_late(late);
            worker.bury();
            assert_eq!(worker.sessions.len(), usize::from(reads));
        }
    }

    #[test]
    fn a_reader_that_pauses_is_not_gone_and_its_bytes_count_as_activity_when_it_goes_on() {
        let (_rig, mut worker, client, server) = scene();
        let (client, server) = (Socket::from(client), Socket::from(server));
        client.set_nonblocking(true).unwrap();
        server.set_nonblocking(true).unwrap();
        // More than both kernels hold: the window is closed.
        let mut idle = 0;
        while idle < 5 {
            idle = if put(&server, &[7; 64 << 10]) > 0 { 0 } else { idle + 1 };
            worker.hear_what_waits();
        }
        let (key, session) = only(&mut worker);
        session.idle = 3600 * SECOND;
        let began = worker.now - 1000 * SECOND;
        for later in [0, 100, 200, 300] {
            worker.now = began + later * SECOND;
            worker.look_at_sockets(key);
        }
        let (_, session) = only(&mut worker);
        assert!(!session.client.broken && session.state == State::Relaying);
        let active = session.active;
        let began = std::time::Instant::now();
        while only(&mut worker).1.active <= active {
            while !matches!(get(&client, 1 << 20), Got::Nothing) {}
            worker.now = monotonic_micros();
            worker.look_at_sockets(key); // the kernel may not have delivered the acknowledgement yet
            assert!(began.elapsed() < PATIENCE, "what it acknowledges is activity");
        }
    }

    #[test]
    fn so_many_sessions_at_a_time_take_what_a_snapshot_says_and_all_do_in_the_end() {
        let (_rig, mut worker, ..) = scene();
        let (_, session) = only(&mut worker);
        session.idle = 7;
        worker.refresh_from(0);
        let capacity = worker.sessions.capacity();
        worker.refresh = Some((capacity + 5, 3 * REFRESHED));
        let mut late = Vec::new();
        worker.refresh_some(&mut late);
        assert_eq!(worker.refresh.map(|(_, left)| left), Some(2 * REFRESHED));
        assert_eq!((only(&mut worker).1.idle != 7, late.len()), (true, 0));
        assert_eq!(worker.refresh_at, worker.now + REFRESH_AGAIN);
    }
}
