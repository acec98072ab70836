//! A rolling restart: `enable` the one, `drain` the other, again and again, in a pool whose check takes its time. Nobody is
//! refused; who comes before the first verdict waits for it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Kind, Setup, at};
use crate::client::{Broken, Client};
use crate::random::Random;
use crate::server::Server;
use crate::world::{World, backend};

pub const KIND: Kind = Kind { name: "rolling", by_default: true, begin };

/// The longest that anybody may wait for a first verdict.
const VERDICT: Duration = Duration::from_secs(5);

fn begin(setup: &mut Setup) {
    let [a, b] = [(); 2].map(|()| {
        Server::start(|mut socket| {
            let mut buffer = [0; 64];
            loop {
                match socket.read(&mut buffer)? {
                    0 => return Ok(()),
                    _ if buffer.starts_with(b"PING") => {
                        thread::park_timeout(Duration::from_millis(250));
                        socket.write_all(b"PONG")?;
                    }
                    _ => socket.write_all(b"served")?,
                }
            }
        })
    });
    // Of the timeout is judged what other kinds do to the machine; probes are to succeed here.
    let check = "health_check: { send: PING, expect: PONG, interval: 1s, timeout: 20s }";
    setup.service("rolling", "", check, vec![("a", at(&a)), ("b", at(&b))]);
    setup.tasks("rolling", 1, move |world, mut random| {
        let mut servers = [("a", Arc::clone(&a)), ("b", Arc::clone(&b))];
        while !world.is_over() {
            if roll(world, &servers, &mut random).is_none() {
                return;
            }
            servers.reverse();
        }
    });
    setup.tasks("rolling", 4, |world, mut random| {
        // Before the first verdict everybody waits; that is not what is tried here.
        let up = |name: &str| backend_is(world, name, "health", "up");
        world.until("rolling", "both are up", Duration::from_secs(20), || (up("a")? && up("b")?).then_some(()));
        while !world.pause(random.millis(5, 60)) {
            let Some(client) = Client::open(world, "rolling") else { return };
            match ask(&client) {
                Ok(()) => client.was_served("rolling", VERDICT),
                Err(broken) => client.violated("rolling", "a client amid a rolling restart", broken),
            }
        }
    });
}

fn ask(client: &Client<'_>) -> Result<(), Broken> {
    client.send(b"x")?;
    client.expect_bytes(b"served")?;
    client.shut()?;
    client.expect_end(6)
}

fn backend_is(world: &World, name: &str, key: &str, wanted: &str) -> Option<bool> {
    Some(backend(&world.stats()?, "rolling", name)[key] == wanted)
}

/// The first is emptied, restarted and enabled; with the same breath the other is emptied. None when the run is over.
fn roll(world: &World, [(first, server), (second, _)]: &[(&str, Arc<Server>); 2], random: &mut Random) -> Option<()> {
    let (one, other) = (format!("rolling/{first}"), format!("rolling/{second}"));
    let most = Duration::from_secs(20);
    world.until("rolling", "both are up", most, || {
        (backend_is(world, first, "health", "up")? && backend_is(world, second, "health", "up")?).then_some(())
    })?;
    if world.pause(random.millis(10, 300)) {
        return None;
    }
    let away = random.pick(&["drain", "disable"]);
    world.operator().does("rolling", &[away, &one])?;
    world.until("rolling", "it has no session left", most, || {
        (backend(&world.stats()?, "rolling", first)["connections_active"] == 0).then_some(())
    })?;
    server.kill();
    world.pause(random.millis(1, 100));
    server.revive();
    let operator = world.operator();
    operator.does("rolling", &["enable", &one])?;
    operator.does("rolling", &["drain", &other])?;
    drop(operator);
    world.until("rolling", "the first verdict", most, || backend_is(world, first, "health", "up")?.then_some(()))?;
    world.operator().does("rolling", &["enable", &other])?;
    (!world.is_over()).then_some(())
}
