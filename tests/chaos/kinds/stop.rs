//! lbd stands still for a moment, as a paused container or a machine that is moved does, and finds bytes, ends and resets all
//! at once. What waits in a socket is taken before anything is ended for time.

use std::net::Shutdown;
use std::ops::Range;
use std::time::Duration;

use super::{Kind, Request, Setup, at, echo, read_to_end};
use crate::client::{Broken, Client, How};
use crate::server::Server;

/// For as long as a loaded machine does it to everybody.
pub const SHORT: Kind = Kind { name: "stop", by_default: true, begin: |setup| stand_still(setup, "stop", 10..80) };

/// For longer than the timeouts.
pub const LONG: Kind = Kind { name: "freeze", by_default: true, begin: begin_long };

/// The timeouts of these sessions.
const LIMIT: Duration = Duration::from_millis(1_500);

fn begin_long(setup: &mut Setup) {
    let echoing = Server::start(echo::echo);
    // It answers for longer than half_close_timeout, a piece each 0.2 s.
    let ticking = Server::start(|socket| {
        let request = Request::read(socket)?;
        let pieces = 10;
        for n in 0..pieces {
            let (from, to) = (request.bytes * n / pieces, request.bytes * (n + 1) / pieces);
            Request { bytes: to - from, text: crate::pattern::Text(request.text.0 + from), ..request }
                .answer(socket)?;
            std::thread::park_timeout(Duration::from_millis(200));
        }
        socket.shutdown(Shutdown::Write)?;
        read_to_end(socket).map(drop)
    });
    setup.service("freeze", "idle_timeout: 1500ms", "", vec![("a", at(&echoing))]);
    setup.service("freeze-ticking", "", "half_close_timeout: 1500ms", vec![("a", at(&ticking))]);
    setup.tasks("freeze", 3, |world, mut random| {
        while !world.pause(random.millis(1, 60)) {
            echo::talk_within(world, "freeze", "freeze", &mut random, Some(LIMIT));
        }
    });
    setup.tasks("freeze", 3, |world, mut random| {
        while !world.pause(random.millis(1, 60)) {
            let bytes = random.between(100, 100_000);
            let request = Request::new(&mut random, bytes);
            let Some(client) = Client::open(world, "freeze-ticking") else { return };
            match ask(&client, request) {
                Err(broken) if broken.how == How::Reset && world.is_too_slow_for(LIMIT) => {
                    world.journal.count("too slow a machine");
                }
                Err(broken) => client.violated("freeze", "an answer in pieces to a client that has ended", broken),
                Ok(()) => {}
            }
        }
    });
    stand_still(setup, "freeze", 1_600..2_000);
}

/// Not while somebody waits for lbctl, and not during an upgrade, which has limits of its own.
fn stand_still(setup: &mut Setup, kind: &'static str, millis: Range<usize>) {
    setup.tasks(kind, 1, move |world, mut random| {
        while !world.pause(random.millis(millis.end * 2, millis.end * 6)) {
            let time = random.millis(millis.start, millis.end);
            let quiet = world.alone();
            let is_long = time > Duration::from_secs(1);
            if is_long {
                world.hold_up();
            }
            world.lbd.stop(true);
            world.pause_even_if_over(time);
            world.lbd.stop(false);
            if is_long {
                world.go_on();
                world.journal.note(kind, &format!("stood still for {} ms", time.as_millis()));
            }
            drop(quiet);
            world.journal.count(kind);
        }
    });
}

fn ask(client: &Client<'_>, request: Request) -> Result<(), Broken> {
    client.send(&request.encoded())?;
    client.shut()?;
    client.expect(request.text, 0, request.bytes)?;
    client.expect_end(request.bytes)
}
