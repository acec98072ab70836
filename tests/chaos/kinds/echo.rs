//! Echoes, byte by byte: request and answer in turn, both ways at once, and connections that are silent for a while. Whatever
//! happens to lbd meanwhile, nothing may be missing, and the end comes when the client has said that it ends.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use socket2::Socket;

use super::{Kind, Setup, at};
use crate::client::{Broken, Client, How};
use crate::pattern::Text;
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "echo", by_default: true, begin };

/// The longest until a first byte comes back.
const FIRST: Duration = Duration::from_secs(10);

fn begin(setup: &mut Setup) {
    let [a, b, c] = [(); 3].map(|()| Server::start(echo));
    setup.service("echo", "", "", vec![("a", at(&a)), ("b", at(&b)), ("c", at(&c))]);
    setup.tasks("echo", 6, |world, mut random| {
        while !world.pause(random.millis(1, 30)) {
            talk(world, "echo", "echo", &mut random);
        }
    });
}

/// Sends back what comes; shuts its side when the client has.
pub fn echo(mut socket: &Socket) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    loop {
        match socket.read(&mut buffer)? {
            0 => return socket.shutdown(Shutdown::Write),
            n => socket.write_all(&buffer[..n])?,
        }
    }
}

/// One connection to an echo, which may last a while.
pub fn talk(world: &World, kind: &str, listener: &'static str, random: &mut Random) {
    talk_within(world, kind, listener, random, None);
}

/// The same where a timeout is short: what is cut is a violation only where the machine keeps up with it.
pub fn talk_within(world: &World, kind: &str, listener: &'static str, random: &mut Random, timeout: Option<Duration>) {
    let Some(client) = Client::open(world, listener) else { return };
    let text = Text(random.between(0, 1 << 20));
    match converse(world, kind, &client, text, random) {
        Err(broken) if broken.how == How::Reset && timeout.is_some_and(|time| world.is_too_slow_for(time)) => {
            world.journal.count("too slow a machine");
        }
        Err(broken) => client.violated(kind, "an echo", broken),
        Ok(()) => {}
    }
}

fn converse(world: &World, kind: &str, client: &Client<'_>, text: Text, random: &mut Random) -> Result<(), Broken> {
    let mut at = 0;
    if random.percent(25) {
        at = random.between(1, 1_500_000);
        exchange(client, text, at)?;
    } else {
        for round in 0..random.between(1, 12) {
            let end = at + random.pick(&[1, 64, 1_000, 4_096, 20_000]) + random.between(0, 50);
            client.send_text(text, at, end)?;
            client.expect(text, at, end)?;
            if round == 0 {
                client.was_served(kind, FIRST);
            }
            at = end;
            if random.percent(30) {
                world.pause(random.millis(1, 500));
            }
        }
    }
    client.shut()?;
    client.expect_end(at)
}

/// Sends and receives at once.
fn exchange(client: &Client<'_>, text: Text, bytes: usize) -> Result<(), Broken> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| client.send_text(text, 0, bytes));
        let received = client.expect(text, 0, bytes);
        if received.is_err() {
            let _ = client.socket.shutdown(Shutdown::Both); // the sender need not wait for what will not come
        }
        received.and(sender.join().unwrap())
    })
}
