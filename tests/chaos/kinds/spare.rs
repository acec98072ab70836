//! Pools that keep connections open ahead of need, of servers that speak first and of such that wait: each client gets the
//! whole greeting once, and its own bytes back.

use std::io::Write;

use super::{Kind, Setup, at, echo};
use crate::client::{Broken, Client};
use crate::pattern::Text;
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "spare", by_default: true, begin };

const GREETING: Text = Text(77_777);

fn begin(setup: &mut Setup) {
    let greeting = || {
        Server::start(|mut socket| {
            socket.write_all(GREETING.piece(0, 300))?;
            echo::echo(socket)
        })
    };
    let ([a, b], [c, d]) = ([(); 2].map(|()| greeting()), [(); 2].map(|()| Server::start(echo::echo)));
    let keys = "spare_connections: 4, spare_max_idle: 1s";
    setup.service("spare-greeted", "", keys, vec![("a", at(&a)), ("b", at(&b))]);
    setup.service("spare", "", keys, vec![("a", at(&c)), ("b", at(&d))]);
    setup.tasks("spare", 3, |world, mut random| {
        while !world.pause(random.millis(1, 150)) {
            let Some(client) = Client::open(world, "spare-greeted") else { return };
            if let Err(broken) = greeted(world, &client, &mut random) {
                client.violated("spare", "a greeting and an echo", broken);
            }
        }
    });
    setup.tasks("spare", 2, |world, mut random| {
        while !world.pause(random.millis(1, 150)) {
            echo::talk(world, "spare", "spare", &mut random);
        }
    });
}

fn greeted(world: &World, client: &Client<'_>, random: &mut Random) -> Result<(), Broken> {
    client.expect(GREETING, 0, 300)?;
    world.pause(random.millis(0, 50));
    let (text, bytes) = (Text(random.between(0, 1 << 20)), random.between(1, 5_000));
    client.send_text(text, 0, bytes)?;
    client.expect(text, 0, bytes)?;
    client.shut()?;
    client.expect_end(bytes)
}
