//! One side ends, and the other goes on for as long as it likes: answers that come after the client's end, and uploads that
//! go on after the server's.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;

use super::{Kind, Request, Setup, at, read_to_end};
use crate::client::{Broken, Client, PATIENCE};
use crate::random::Random;
use crate::server::Server;
use crate::world::{Results, World};

pub const KIND: Kind = Kind { name: "half-close", by_default: true, begin };

fn begin(setup: &mut Setup) {
    // The client ends first: the answer comes only then.
    let late = Server::start(|socket| {
        let request = Request::read(socket)?;
        read_to_end(socket)?;
        request.answer(socket)
    });
    // The server ends first, and counts what still comes.
    let received = Arc::new(Results::default());
    let early = Server::start({
        let received = Arc::clone(&received);
        move |mut socket| {
            let request = Request::read(socket)?;
            socket.write_all(b"bye")?;
            socket.shutdown(Shutdown::Write)?;
            received.tell(request.number, read_to_end(socket)?);
            Ok(())
        }
    });
    setup.service("ask-and-shut", "", "", vec![("a", at(&late))]);
    setup.service("upload", "", "", vec![("a", at(&early))]);
    setup.tasks("half-close", 2, |world, mut random| {
        while !world.pause(random.millis(1, 40)) {
            let bytes = random.between(0, 100_000);
            let request = Request::new(&mut random, bytes);
            let Some(client) = Client::open(world, "ask-and-shut") else { return };
            if let Err(broken) = ask(world, &client, request, &mut random) {
                client.violated("half-close", "an answer after the client's end", broken);
            }
        }
    });
    setup.tasks("half-close", 2, move |world, mut random| {
        while !world.pause(random.millis(1, 40)) {
            let bytes = random.between(1, 300_000);
            let request = Request::new(&mut random, bytes);
            let Some(client) = Client::open(world, "upload") else { return };
            if let Err(broken) = upload(world, &client, request, &mut random) {
                client.violated("half-close", "an upload after the server's end", broken);
                continue;
            }
            match received.await_for(request.number, PATIENCE) {
                Some(count) if count == bytes => {}
                count => world.fail("half-close", &format!("{count:?} bytes of an upload of {bytes} have come")),
            }
        }
    });
}

fn ask(world: &World, client: &Client<'_>, request: Request, random: &mut Random) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    if random.percent(50) {
        world.pause(random.millis(1, 200));
    }
    client.shut()?;
    client.expect(request.text, 0, request.bytes)?;
    client.expect_end(request.bytes)
}

fn upload(world: &World, client: &Client<'_>, request: Request, random: &mut Random) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    client.expect_bytes(b"bye")?;
    client.expect_end(3)?;
    let half = random.between(0, request.bytes);
    client.send_text(request.text, 0, half)?;
    world.pause(random.millis(0, 400));
    client.send_text(request.text, half, request.bytes)?;
    client.shut()
}
