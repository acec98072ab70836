//! Descriptors run out for a while, with more clients than there are: who is there goes on, who comes waits, and afterwards
//! all is as before.

use std::time::Duration;

use super::{Kind, Setup, at, echo};
use crate::client::Client;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "shortage", by_default: true, begin };

const FLOOD: usize = 40;

fn begin(setup: &mut Setup) {
    let server = Server::start(echo::echo);
    setup.service("shortage", "", "", vec![("a", at(&server))]);
    setup.tasks("shortage", 1, |world, mut random| {
        while !world.pause(random.millis(2_000, 8_000)) {
            run_out(world, random.millis(300, 1_200), random.between(0, 30));
        }
    });
}

fn run_out(world: &World, time: Duration, left: usize) -> Option<()> {
    let early = Client::open(world, "shortage")?;
    echoes(&early, "who came before descriptors ran out")?;
    let short = world.alone();
    world.hold_up();
    let limit = world.lbd.descriptors() + left;
    if !world.lbd.limit_descriptors(Some(limit)) {
        world.fail("shortage", "prlimit(1) does not work");
    }
    world.journal.note("shortage", &format!("{limit} descriptors for {} ms", time.as_millis()));
    let late: Vec<Client<'_>> = (0..FLOOD).map_while(|_| Client::open(world, "shortage")).collect();
    echoes(&early, "who was there when descriptors ran out")?;
    world.pause(time);
    if !world.lbd.limit_descriptors(None) {
        world.fail("shortage", "lbd does not get its descriptors back");
    }
    world.go_on();
    world.journal.note("shortage", "over");
    drop(short);
    for client in &late {
        echoes(client, "who came while descriptors were short")?;
    }
    echoes(&early, "who came before descriptors ran out")
}

fn echoes(client: &Client<'_>, who: &str) -> Option<()> {
    let exchanged = client.send(b"hello").and_then(|()| client.expect_bytes(b"hello"));
    exchanged.map_err(|broken| client.violated("shortage", who, broken)).ok()
}
