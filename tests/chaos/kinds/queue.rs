//! A pool with one place and many clients, some of whom go away while they wait: nobody is refused, and nobody is overtaken by
//! more than a few rounds of the others, however many workers there are.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::{Kind, Setup};
use crate::client::Client;
use crate::file::Backend;
use crate::server::Server;

pub const KIND: Kind = Kind { name: "queue", by_default: false, begin };

const CLIENTS: usize = 30;

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
    setup.service("queue", "", "queue: { max: 200, timeout: 20s }", vec![("a", one)]);
    let served = Arc::new(AtomicUsize::new(0));
    setup.tasks("queue", CLIENTS, move |world, mut random| {
        while !world.is_over() {
            let before = served.load(SeqCst);
            let Some(client) = Client::open(world, "queue") else { return };
            let answer = client.send(b"x").and_then(|()| client.expect_bytes(b"served"));
            let by = served.fetch_add(1, SeqCst) - before;
            if let Err(broken) = answer {
                client.violated("queue", "a client in the queue", broken);
            }
            if by > OVERTAKEN && !world.is_over() {
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
