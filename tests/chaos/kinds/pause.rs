//! Readers that pause for longer than keepalive needs to find a dead peer: a pager, a suspended terminal. They live, their
//! kernel answers, and `idle_timeout` is far away: the rest comes when they read on.

use std::net::Shutdown;

use super::{Kind, Request, Setup, at, read_to_end};
use crate::client::{Broken, Client};
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "pause", by_default: true, begin };

fn begin(setup: &mut Setup) {
    let server = Server::start(|socket| {
        Request::read(socket)?.answer(socket)?;
        socket.shutdown(Shutdown::Write)?;
        read_to_end(socket).map(drop)
    });
    let keepalive = "keepalive: { idle: 1s, interval: 1s, count: 1 }";
    setup.service("pause", keepalive, "half_close_timeout: 10m", vec![("a", at(&server))]);
    setup.tasks("pause", 3, |world, mut random| {
        while !world.pause(random.millis(1, 300)) {
            let bytes = random.between(200_000, 600_000);
            let request = Request::new(&mut random, bytes);
            let Some(client) = Client::open_with(world, "pause", Some(8_192)) else { return };
            if let Err(broken) = fetch(world, &client, request, &mut random) {
                client.violated("pause", &format!("{bytes} bytes for a client that pauses"), broken);
            }
        }
    });
}

fn fetch(world: &World, client: &Client<'_>, request: Request, random: &mut Random) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    let first = random.between(1, 50_000);
    client.expect(request.text, 0, first)?;
    world.pause(random.millis(3_500, 6_000));
    client.expect(request.text, first, request.bytes)?;
    client.expect_end(request.bytes)
}
