//! Another lbd takes over in place, often with another number of workers: it succeeds, the process stays, and nobody notices,
//! which the clients of all other kinds tell.

use super::{Kind, Setup, at, echo};
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "upgrade", by_default: true, begin };

fn begin(setup: &mut Setup) {
    let server = Server::start(echo::echo);
    setup.service("upgrade", "", "", vec![("a", at(&server))]);
    setup.tasks("upgrade", 2, |world, mut random| {
        while !world.pause(random.millis(1, 80)) {
            echo::talk(world, "upgrade", "upgrade", &mut random);
        }
    });
    setup.tasks("upgrade", 1, |world, mut random| {
        while !world.pause(random.millis(100, 900)) {
            upgrade(world, &mut random);
        }
    });
}

fn upgrade(world: &World, random: &mut Random) {
    let mut operator = world.operator();
    if random.percent(50) {
        operator.file.workers = random.pick(&[1, 1, 2, 3, 4, 8, 16]);
        let workers = operator.file.workers;
        world.journal.note("upgrade", &format!("to {workers} workers"));
        operator.reload("upgrade");
    }
    let ran = operator.tries("upgrade", &["upgrade"]);
    // A machine that is too busy for the time that a successor has: then nothing else may be lost.
    let too_late = ran.err.contains("had not taken over within") && ran.err.contains("no session was lost");
    if ran.code != Some(0) && !too_late {
        world.fail("upgrade", &format!("lbctl upgrade ended with {:?}: {} {}", ran.code, ran.out, ran.err));
    }
    if let Some(how) = world.lbd.end() {
        world.fail("upgrade", &format!("lbd has ended: {how}"));
    }
}
