//! Servers that send a whole answer and their end, and reset the connection once lbd's kernel has all of it: what has come is
//! delivered, then the end. Clients read at once, late, or through a small window.

use std::fs;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{Kind, Request, Setup, at};
use crate::client::{Broken, Client};
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "fin-reset", by_default: false, begin };

fn begin(setup: &mut Setup) {
    let resetting = Server::start(|socket| {
        let request = Request::read(socket)?;
        request.answer(socket)?;
        socket.shutdown(Shutdown::Write)?;
        if has_been_acknowledged(socket) {
            // Some resets come with the end, some while it is passed on.
            thread::park_timeout(Duration::from_micros(request.number % 1_500));
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    });
    setup.service("fin-reset", "", "", vec![("a", at(&resetting))]);
    setup.tasks("fin-reset", 6, |world, mut random| {
        while !world.pause(random.millis(1, 25)) {
            let bytes = random.pick(&[0, 3_000, 3_000, 3_000, 12_000, 60_000]) + random.between(0, 100);
            let request = Request::new(&mut random, bytes);
            let window = random.percent(20).then_some(8_192);
            let Some(client) = Client::open_with(world, "fin-reset", window) else { return };
            if let Err(broken) = fetch(world, &client, request, &mut random) {
                client.violated("fin-reset", &format!("an answer of {bytes} bytes, its end and then a reset"), broken);
            }
        }
    });
}

fn fetch(world: &World, client: &Client<'_>, request: Request, random: &mut Random) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    if random.percent(20) {
        world.pause(random.millis(1, 200));
    }
    client.expect(request.text, 0, request.bytes)?;
    client.expect_end(request.bytes)
}

/// Waits until the other side's kernel has every byte and the end: FIN_WAIT2 in /proc/net/tcp.
fn has_been_acknowledged(socket: &Socket) -> bool {
    let port = |at: Option<socket2::SockAddr>| at.and_then(|at| at.as_socket()).map_or(0, |at| at.port());
    let (local, remote) = (port(socket.local_addr().ok()), port(socket.peer_addr().ok()));
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let Ok(table) = fs::read_to_string("/proc/net/tcp") else { return false };
        let found = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields.len() > 3 && fields[1].ends_with(&local) && fields[2].ends_with(&remote));
        match found.as_deref() {
            Some([_, _, _, "05", ..]) => return true,
            Some([_, _, _, "04", ..]) => thread::park_timeout(Duration::from_millis(1)),
            _ => return false,
        }
    }
    false
}
