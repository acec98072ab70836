//! Urgent data among the rest, both ways: it stays in line, and what stands behind it comes at once.

use std::io::{self, Read, Write};
use std::net::Shutdown;

use socket2::Socket;

use super::{Kind, Setup, at};
use crate::client::{Broken, Client};
use crate::pattern::Text;
use crate::random::Random;
use crate::server::Server;

pub const KIND: Kind = Kind { name: "urgent", by_default: true, begin };

fn begin(setup: &mut Setup) {
    let server = Server::start(echo_urgently);
    setup.service("urgent", "", "", vec![("a", at(&server))]);
    setup.tasks("urgent", 3, |world, mut random| {
        while !world.pause(random.millis(1, 30)) {
            let Some(client) = Client::open(world, "urgent") else { return };
            let text = Text(random.between(0, 1 << 20));
            if let Err(broken) = converse(&client, text, &mut random) {
                client.violated("urgent", "an echo with urgent bytes in it", broken);
            }
        }
    });
}

/// Sends each last byte back as urgent.
fn echo_urgently(mut socket: &Socket) -> io::Result<()> {
    socket.set_out_of_band_inline(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        match socket.read(&mut buffer)? {
            0 => return socket.shutdown(Shutdown::Write),
            n => {
                socket.write_all(&buffer[..n - 1])?;
                socket.send_out_of_band(&buffer[n - 1..n])?;
            }
        }
    }
}

fn converse(client: &Client<'_>, text: Text, random: &mut Random) -> Result<(), Broken> {
    let _ = client.socket.set_out_of_band_inline(true);
    let mut at = 0;
    for _ in 0..random.between(1, 10) {
        let (before, after) = (random.between(0, 3_000), random.between(0, 3_000));
        client.send_text(text, at, at + before)?;
        let _ = client.socket.send_out_of_band(text.piece(at + before, 1));
        client.send_text(text, at + before + 1, at + before + 1 + after)?;
        client.expect(text, at, at + before + 1 + after)?;
        at += before + 1 + after;
    }
    client.shut()?;
    client.expect_end(at)
}
