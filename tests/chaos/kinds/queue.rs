//! A pool with one place and many clients, some of whom go away while they wait: nobody is refused, and nobody is overtaken by
//! more than a few rounds of the others, however many workers there are. Another pool's queue is too short for all: who is
//! refused there is so at once, and only while others wait.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::{Kind, Setup};
use crate::client::{Client, How};
use crate::file::Backend;
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "queue", by_default: true, begin };

const CLIENTS: usize = 24;

/// The queue's timeout.
const PATIENT: Duration = Duration::from_secs(20);

/// The length of the queue that is too short.
const SHORT: usize = 8;

/// In the order of their coming it would be once everybody; twice that is allowed, and some for who had just been let in.
const OVERTAKEN: usize = 2 * CLIENTS + CLIENTS / 2;

fn begin(setup: &mut Setup) {
    let server = Server::start(|mut socket| {
        if socket.read(&mut [0; 8])? > 0 {
            thread::park_timeout(Duration::from_millis(10));
            socket.write_all(b"served")?;
        }
        Ok(())
    });
    let one = Backend::at_most(&server.address.to_string(), 1);
    setup.service("queue", "", &format!("queue: {{ max: 200, timeout: {}s }}", PATIENT.as_secs()), vec![("a", one)]);
    let one = Backend::at_most(&server.address.to_string(), 1);
    setup.service("queue-short", "", &format!("queue: {{ max: {SHORT}, timeout: 20s }}"), vec![("a", one)]);
    setup.tasks("queue", 2 * SHORT, too_many);
    let served = Arc::new(AtomicUsize::new(0));
    setup.tasks("queue", CLIENTS, move |world, mut random| {
        while !world.is_over() {
            let before = served.load(SeqCst);
            let Some(client) = Client::open(world, "queue") else { return };
            let answer = client.send(b"x").and_then(|()| client.expect_bytes(b"served"));
            let by = served.fetch_add(1, SeqCst) - before;
            if let Err(broken) = answer {
                // The place was in use all the time; it is the machine that took so long.
                if broken.after >= PATIENT && by >= CLIENTS / 2 && world.is_too_slow_for(PATIENT / 20) {
                    world.journal.count("too slow a machine");
                    continue;
                }
                client.violated("queue", &format!("a client in the queue; {by} were served meanwhile"), broken);
            }
            // Who waits to be accepted while descriptors are short is in no order of lbd's.
            if by > OVERTAKEN && !world.is_over() && !world.was_held_up_since(client.since) {
                let waited = client.since.elapsed().as_secs_f64();
                world.fail("queue", &format!("{by} were served before one of {CLIENTS}, who waited {waited:.2} s"));
            }
            drop(client);
            if random.percent(10) {
                world.pause(random.millis(1, 100));
            }
        }
    });
    setup.tasks("queue", 2, |world, mut random| {
        while !world.pause(random.millis(10, 200)) {
            let Some(client) = Client::open(world, "queue") else { return };
            world.pause(random.millis(0, 50));
            if random.percent(50) { client.reset() } else { drop(client) }
        }
    });
}

fn too_many(world: &World, mut random: Random) {
    let open = || world.account("queue-short").open.load(SeqCst);
    while !world.pause(random.millis(1, 120)) {
        let before = open();
        let Some(client) = Client::open(world, "queue-short") else { return };
        match client.send(b"x").and_then(|()| client.expect_bytes(b"served")) {
            Ok(()) => {}
            // Others may have come and gone meanwhile; half as many as fit is never a full queue.
            Err(broken) if broken.how == How::Reset && before.max(open()) > SHORT / 2 => {
                world.journal.count("queue-short, refused");
                client.was_served("queue", Duration::from_secs(10));
            }
            Err(broken) => {
                client.violated("queue", &format!("a client in a queue of {SHORT}, {before} others"), broken)
            }
        }
    }
}
