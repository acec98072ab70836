//! One client waits for a place that does not become free, and those behind it could be served elsewhere: it holds up nobody.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use super::{Kind, Setup, echo};
use crate::client::Client;
use crate::file::Backend;
use crate::random::Random;
use crate::server::Server;
use crate::world::{World, named};

pub const KIND: Kind = Kind { name: "head", by_default: true, begin };

/// The longest that one may wait who could be served at once.
const AT_ONCE: Duration = Duration::from_secs(3);

fn begin(setup: &mut Setup) {
    let [many, one] = [(); 2].map(|()| {
        Server::start(|mut socket| {
            socket.write_all(b"hello")?;
            echo::echo(socket)
        })
    });
    let backends = vec![
        ("many", Backend::at_most(&many.address.to_string(), 50)),
        ("one", Backend::at_most(&one.address.to_string(), 1)),
    ];
    setup.service("head", "", "balance: first, queue: { max: 100, timeout: 20s }", backends);
    let many: Arc<Server> = many;
    setup.tasks("head", 1, move |world, mut random| {
        let _one = &one;
        while !world.pause(random.millis(50, 400)) {
            play(world, &many, &mut random);
            many.revive();
        }
    });
}

fn play(world: &World, many: &Arc<Server>, random: &mut Random) -> Option<()> {
    many.kill();
    let holder = Client::open(world, "head")?;
    served(&holder, "who takes the only place")?;
    let waiting = Client::open(world, "head")?;
    world.until("head", "the second client waits", Duration::from_secs(10), || {
        (named(&world.stats()?["pools"], "head")["queued"] == 1).then_some(())
    })?;
    many.revive();
    world.journal.note("head", "one waits, and the other backend is back");
    for _ in 0..random.between(2, 6) {
        let client = Client::open(world, "head")?;
        served(&client, "who comes later and could be served at once")?;
        client.was_served("head", AT_ONCE);
    }
    drop(holder);
    served(&waiting, "who waited for the only place")
}

fn served(client: &Client<'_>, who: &str) -> Option<()> {
    client.expect_bytes(b"hello").map_err(|broken| client.violated("head", who, broken)).ok()
}
