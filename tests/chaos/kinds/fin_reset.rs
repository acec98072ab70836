//! Servers that send a whole answer and their end, and reset the connection once lbd's kernel has all of it: what has come is
//! delivered, then the end. Clients read at once, late, or through a small window.

use std::fs;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{Kind, Request, Setup, at};
use crate::client::{Broken, Client, PATIENCE};
use crate::random::Random;
use crate::server::Server;
use crate::world::{Results, World};

pub const KIND: Kind = Kind { name: "fin-reset", by_default: true, begin };

/// In so many of a hundred cases lbd stands still from the request until the reset: it finds all of it at once.
const AT_ONCE: usize = 15;

/// The longest that it stands still: the kernel may be short of memory for what is sent meanwhile.
const STANDING_STILL: Duration = Duration::from_millis(300);

fn begin(setup: &mut Setup) {
    let steps = Arc::new(Steps::default());
    let resetting = Server::start({
        let steps = Arc::clone(&steps);
        move |socket| {
            let request = Request::read(socket)?;
            steps.asked.tell(request.number, 0);
            if steps.go.await_for(request.number, PATIENCE).is_none() {
                return Ok(());
            }
            request.answer(socket)?;
            socket.shutdown(Shutdown::Write)?;
            if has_been_acknowledged(socket) {
                // Some resets come with the end, some while it is passed on.
                thread::park_timeout(Duration::from_micros(request.number % 1_500));
                socket.set_linger(Some(Duration::ZERO))?;
            }
            steps.done.tell(request.number, 0);
            Ok(())
        }
    });
    setup.service("fin-reset", "", "", vec![("a", at(&resetting))]);
    setup.tasks("fin-reset", 2, move |world, mut random| {
        while !world.pause(random.millis(30, 200)) {
            let bytes = random.pick(&[0, 3_000, 3_000, 3_000, 12_000, 60_000]) + random.between(0, 100);
            let request = Request::new(&mut random, bytes);
            let window = random.percent(20).then_some(8_192);
            let Some(client) = Client::open_with(world, "fin-reset", window) else { return };
            if let Err(broken) = fetch(world, &client, &steps, request, &mut random) {
                client.violated("fin-reset", &format!("an answer of {bytes} bytes, its end and then a reset"), broken);
            }
        }
    });
}

/// What client and server tell each other beside the connection, by the request's number.
#[derive(Default)]
struct Steps {
    asked: Results,
    go: Results,
    done: Results,
}

fn fetch(
    world: &World,
    client: &Client<'_>,
    steps: &Steps,
    request: Request,
    random: &mut Random,
) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    // More than lbd's kernel takes in cannot be acknowledged while lbd stands still.
    if random.percent(AT_ONCE) && request.bytes < 20_000 && steps.asked.await_for(request.number, PATIENCE).is_some() {
        let alone = world.alone();
        world.lbd.stop(true);
        steps.go.tell(request.number, 0);
        let _ = steps.done.await_for(request.number, STANDING_STILL);
        world.pause_even_if_over(Duration::from_millis(5)); // the reset itself is the server's next act
        world.lbd.stop(false);
        drop(alone);
    } else {
        steps.go.tell(request.number, 0);
    }
    if random.percent(20) {
        world.pause(random.millis(1, 200));
    }
    client.expect(request.text, 0, request.bytes)?;
    client.expect_end(request.bytes)
}

/// Waits until the other side's kernel has every byte and the end: FIN_WAIT2 in /proc/net/tcp.
fn has_been_acknowledged(socket: &Socket) -> bool {
    let port = |at: Option<socket2::SockAddr>| at.and_then(|at| at.as_socket()).map_or(0, |at| at.port());
    let (local, remote) = (port(socket.local_addr().ok()), port(socket.peer_addr().ok()));
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let Ok(table) = fs::read_to_string("/proc/net/tcp") else { return false };
        // Thousands of lines, most of them connections in TIME_WAIT: only the right one is taken apart.
        let ours = table.lines().filter(|line| line.contains(&local) && line.contains(&remote));
        let found = ours
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields.len() > 3 && fields[1].ends_with(&local) && fields[2].ends_with(&remote));
        match found.as_deref() {
            Some([_, _, _, "05", ..]) => return true,
            Some([_, _, _, "04", ..]) => thread::park_timeout(Duration::from_millis(4)),
            _ => return false,
        }
    }
    false
}
