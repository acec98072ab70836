//! `systemctl stop` lets sessions finish: a slow download that runs is whole in the end. Nobody else is let in meanwhile.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{PATIENCE, until};
use crate::machine::Machine;
use crate::trial::TRIAL;

/// Pieces of the download, and how large each is.
const PIECES: u32 = 40;
const PIECE: usize = 64 * 1024;

#[test]
fn a_stop_waits_for_a_download_that_runs() {
    let Some(machine) = Machine::serving() else { return };
    // Less than the download takes: that systemd waits is lbd's doing.
    machine.drop_in("lbd.service", "[Service]\nTimeoutStopSec=2s\n");
    let (begun, awaited) = mpsc::channel();
    let (enter, listening) = (machine.network(), mpsc::channel());
    let server = thread::spawn(move || {
        enter();
        let door = TcpListener::bind(("127.0.0.1", 9004)).unwrap();
        listening.0.send(()).unwrap();
        serve_slowly(&door);
    });
    listening.1.recv_timeout(PATIENCE).unwrap();
    let enter = machine.network();
    let client = thread::spawn(move || {
        enter();
        let mut session = TcpStream::connect(("127.0.0.1", 8081)).unwrap();
        let mut first = [0];
        session.read_exact(&mut first).unwrap();
        begun.send(()).unwrap();
        let mut rest = Vec::from(first);
        session.read_to_end(&mut rest).unwrap();
        rest
    });
    awaited.recv_timeout(PATIENCE).unwrap();
    let asked = Instant::now();
    machine.done(&["systemctl", "stop", "--no-block", "lbd"]);
    let status = "stopping; generation 1";
    until("it tells that it stops", || machine.property("StatusText").starts_with(status).then_some(()));
    assert_eq!(machine.property("ActiveState"), "deactivating");
    assert_eq!(machine.property("NFileDescriptorStore"), "0");
    machine.inside(|| TcpStream::connect(("127.0.0.1", 8081)).unwrap_err());
    until("it has stopped", || (machine.property("ActiveState") != "deactivating").then_some(()));
    assert!(asked.elapsed() >= TRIAL.download / 2, "it did not wait: {}", machine.journal());
    let got = client.join().unwrap();
    let wanted: Vec<u8> = (0..PIECES).flat_map(piece).collect();
    assert!(got == wanted, "{} of {} bytes, or wrong ones", got.len(), wanted.len());
    server.join().unwrap();
    assert_eq!((machine.property("Result"), machine.property("ExecMainStatus")), ("success".into(), "0".into()));
    assert!(!machine.journal().contains("SIGKILL"), "{}", machine.journal());
}

/// Sends piece by piece, and waits between them: the client is to say nothing, so its silence is the clock.
fn serve_slowly(door: &TcpListener) {
    let (mut session, _) = door.accept().unwrap();
    session.set_read_timeout(Some(TRIAL.download / PIECES)).unwrap();
    for number in 0..PIECES {
        session.write_all(&piece(number)).unwrap();
        let heard = session.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock));
    }
}

fn piece(number: u32) -> Vec<u8> {
    (0..PIECE).map(|at| (at as u32).wrapping_mul(2_654_435_761).wrapping_add(number).to_be_bytes()[0]).collect()
}

#[test]
fn a_stop_with_nothing_to_do_is_prompt() {
    let Some(machine) = Machine::serving() else { return };
    let asked = Instant::now();
    machine.done(&["systemctl", "stop", "lbd"]);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}
