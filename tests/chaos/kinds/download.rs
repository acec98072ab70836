//! Whole downloads: the server sends as many bytes as it was asked for and ends; the client gets exactly these, then the end.

use std::net::Shutdown;

use super::{Kind, Request, Setup, at, read_to_end};
use crate::client::{Broken, Client};
use crate::server::Server;

pub const KIND: Kind = Kind { name: "download", by_default: true, begin };

fn begin(setup: &mut Setup) {
    let [a, b] = [(); 2].map(|()| {
        Server::start(|socket| {
            Request::read(socket)?.answer(socket)?;
            socket.shutdown(Shutdown::Write)?;
            read_to_end(socket).map(drop)
        })
    });
    setup.service("download", "", "balance: least_connections", vec![("a", at(&a)), ("b", at(&b))]);
    setup.tasks("download", 3, |world, mut random| {
        while !world.pause(random.millis(1, 60)) {
            let bytes = random.pick(&[0, 1, 3_000, 60_000, 300_000, 2_000_000]) + random.between(0, 1_000);
            let request = Request::new(&mut random, bytes);
            let Some(client) = Client::open(world, "download") else { return };
            if let Err(broken) = fetch(&client, request) {
                client.violated("download", &format!("a download of {} bytes", request.bytes), broken);
            }
        }
    });
}

fn fetch(client: &Client<'_>, request: Request) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    client.expect(request.text, 0, request.bytes)?;
    client.expect_end(request.bytes)
}
