//! Downloads and uploads that their clients break off, by a close or a reset, again and again. What such a client has
//! received is right up to there; all else that it could complain about is its own doing.

use std::io::Write;

use super::{Kind, Request, Setup, at, read_to_end};
use crate::client::{Client, How};
use crate::pattern::Text;
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "broken", by_default: true, begin };

/// Downloads under way at a time, of each client.
const AT_ONCE: usize = 4;

fn begin(setup: &mut Setup) {
    let endless = Server::start(|mut socket| {
        let request = Request::read(socket)?;
        let mut at = 0;
        loop {
            at += socket.write(request.text.piece(at, 256 << 10))?;
        }
    });
    let swallowing = Server::start(|socket| read_to_end(socket).map(drop));
    setup.service("broken", "", "", vec![("a", at(&endless))]);
    setup.service("broken-up", "", "", vec![("a", at(&swallowing))]);
    setup.tasks("broken", 2, downloads);
    setup.tasks("broken", 1, |world, mut random| {
        while !world.pause(random.millis(5, 60)) {
            let Some(client) = Client::open(world, "broken-up") else { return };
            let _ = client.send_text(Text(random.between(0, 1 << 20)), 0, random.between(1, 400_000));
            break_off(client, &mut random);
        }
    });
}

/// Most bytes are never read: lbd holds all that it may for these clients.
fn downloads(world: &World, mut random: Random) {
    let mut live = Vec::new();
    while !world.pause(random.millis(1, 8)) {
        let request = Request::new(&mut random, 0);
        let window = random.percent(60).then_some(32_768); // megabytes for everybody would leave the machine to this kind
        let Some(client) = Client::open_with(world, "broken", window) else { return };
        if client.send(&request.encoded()).is_ok() && random.percent(20) {
            match client.read_some(request.text, 0, 40_000) {
                Ok(n) if n > 0 => {}
                Ok(_) => world.fail("broken", "an endless download has ended"),
                Err(broken) if broken.how == How::Silent && world.was_held_up_since(client.since) => {}
                Err(broken) => client.violated("broken", "an endless download", broken),
            }
        }
        live.push(client);
        if live.len() > AT_ONCE {
            break_off(live.remove(0), &mut random);
        }
    }
}

fn break_off(client: Client<'_>, random: &mut Random) {
    if random.percent(70) { client.reset() } else { drop(client) }
}
