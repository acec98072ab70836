//! Backends that are killed and come back: who was at one of them is cut, everybody else is served, by another if need be.

use std::io::Write;
use std::sync::Arc;

use super::{Kind, Setup, at, echo};
use crate::client::{Broken, Client};
use crate::pattern::Text;
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "killed", by_default: true, begin };

const NAMES: [&str; 3] = ["a", "b", "c"];

fn begin(setup: &mut Setup) {
    let servers = Arc::new(NAMES.map(|name| {
        Server::start(move |mut socket| {
            socket.write_all(name.as_bytes())?;
            echo::echo(socket)
        })
    }));
    let backends = NAMES.into_iter().zip(servers.iter().map(|server| at(server))).collect();
    let check = "health_check: { type: tcp, interval: 200ms, timeout: 5s, rise: 1, fall: 2 }, retries: 3";
    setup.service("killed", "", check, backends);
    setup.tasks("killed", 1, {
        let servers = Arc::clone(&servers);
        move |world, mut random| {
            // One at a time: the others take over.
            while !world.pause(random.millis(200, 1_000)) {
                let which = random.between(0, servers.len());
                world.journal.note("killed", &format!("backend {} dies", NAMES[which]));
                servers[which].kill();
                world.pause(random.millis(50, 1_500));
                servers[which].revive();
                world.journal.note("killed", &format!("backend {} is back", NAMES[which]));
                // lbd is to know that it is up before the next one dies.
                world.until("killed", "it is up again", std::time::Duration::from_secs(20), || {
                    let stats = world.stats()?;
                    (crate::world::backend(&stats, "killed", NAMES[which])["health"] == "up").then_some(())
                });
            }
        }
    });
    setup.tasks("killed", 4, move |world, mut random| {
        while !world.pause(random.millis(1, 80)) {
            let Some(client) = Client::open(world, "killed") else { return };
            if let Err(broken) = converse(world, &client, &mut random)
                && !servers.iter().any(|server| server.was_killed_since(client.since))
            {
                client.violated("killed", "no backend was killed meanwhile", broken);
            }
        }
    });
}

fn converse(world: &World, client: &Client<'_>, random: &mut Random) -> Result<(), Broken> {
    let name = client.read_byte()?;
    if !NAMES.iter().any(|known| known.as_bytes() == [name]) {
        world.fail("killed", &format!("an unknown backend has answered: {name}"));
    }
    let text = Text(random.between(0, 1 << 20));
    let mut at = 0;
    for _ in 0..random.between(1, 8) {
        let end = at + random.between(1, 8_000);
        client.send_text(text, at, end)?;
        client.expect(text, at, end)?;
        at = end;
        world.pause(random.millis(0, 60));
    }
    client.shut()?;
    client.expect_end(at)
}
