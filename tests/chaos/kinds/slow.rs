//! Slow readers of whole answers, who take much longer than `half_close_timeout` and `idle_timeout` while the kernel still
//! holds bytes for them. They read all the time, so that nothing is ended for time.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::{Kind, Request, Setup, at, read_to_end};
use crate::client::{Broken, Client, How};
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "slow", by_default: true, begin };

/// The timeouts that are tried.
const LIMIT: Duration = Duration::from_secs(2);

fn begin(setup: &mut Setup) {
    // It ends after the answer, as many do: half_close_timeout.
    let ending = Server::start(|socket| {
        Request::read(socket)?.answer(socket)?;
        socket.shutdown(Shutdown::Write)?;
        read_to_end(socket).map(drop)
    });
    // It stays for the next request: idle_timeout.
    let staying = Server::start(|socket| {
        Request::read(socket)?.answer(socket)?;
        read_to_end(socket).map(drop)
    });
    setup.service("slow", "", "half_close_timeout: 2s", vec![("a", at(&ending))]);
    setup.service("slow-idle", "idle_timeout: 2s", "", vec![("a", at(&staying))]);
    setup.tasks("slow", 3, |world, mut random| {
        while !world.pause(random.millis(1, 300)) {
            read_slowly(world, "slow", true, &mut random);
        }
    });
    setup.tasks("slow", 3, |world, mut random| {
        while !world.pause(random.millis(1, 300)) {
            read_slowly(world, "slow-idle", false, &mut random);
        }
    });
}

fn read_slowly(world: &World, listener: &'static str, ends: bool, random: &mut Random) {
    let bytes = random.between(120_000, 260_000);
    let request = Request::new(random, bytes);
    let Some(client) = Client::open_with(world, listener, Some(4_096)) else { return };
    let rate = random.between(25_000, 40_000) as f64;
    let mut reader = Reader { at: 0, longest: Duration::ZERO };
    match reader.read(world, &client, request, rate, ends) {
        // It was this client that stood still: the machine did not run it.
        Err(broken) if broken.how == How::Reset && (reader.longest > LIMIT / 4 || world.is_too_slow_for(LIMIT)) => {
            world.journal.count("too slow a machine")
        }
        Err(broken) => client.violated("slow", &format!("{bytes} bytes from {listener} at {rate} a second"), broken),
        Ok(()) => {}
    }
}

struct Reader {
    at: usize,
    /// Between two reads.
    longest: Duration,
}

impl Reader {
    fn read(
        &mut self,
        world: &World,
        client: &Client<'_>,
        request: Request,
        rate: f64,
        ends: bool,
    ) -> Result<(), Broken> {
        client.send(&request.encoded())?;
        let (begun, mut last) = (Instant::now(), Instant::now());
        while self.at < request.bytes {
            match client.read_some(request.text, self.at, (request.bytes - self.at).min(2_048))? {
                0 => return Err(Broken { how: How::Closed, at: self.at, after: client.since.elapsed() }),
                n => self.at += n,
            }
            self.longest = self.longest.max(last.elapsed());
            last = Instant::now();
            let due = begun + Duration::from_secs_f64(self.at as f64 / rate);
            world.pause(due.saturating_duration_since(last));
        }
        if ends {
            return client.expect_end(self.at);
        }
        client.shut()?;
        client.expect_end(self.at)
    }
}
