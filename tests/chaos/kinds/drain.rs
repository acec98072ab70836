//! Backends are drained, disabled and enabled under load: sessions that they have go on, new ones go elsewhere, nobody notices.

use super::{Kind, Setup, at, echo};
use crate::server::Server;
use crate::world::backend;

pub const KIND: Kind = Kind { name: "drain", by_default: true, begin };

fn begin(setup: &mut Setup) {
    let [a, b, c] = [(); 3].map(|()| Server::start(echo::echo));
    setup.service("drain", "", "balance: random_two", vec![("a", at(&a)), ("b", at(&b)), ("c", at(&c))]);
    setup.tasks("drain", 3, |world, mut random| {
        while !world.pause(random.millis(1, 80)) {
            echo::talk(world, "drain", "drain", &mut random);
        }
    });
    setup.tasks("drain", 1, |world, mut random| {
        while !world.pause(random.millis(100, 700)) {
            let name = random.pick(&["a", "b", "c"]);
            let full = format!("drain/{name}");
            world.operator().does("drain", &[random.pick(&["drain", "disable"]), &full]);
            let before = world.stats().map(|stats| backend(&stats, "drain", name)["connections_total"].clone());
            world.pause(random.millis(50, 500));
            let after = world.stats().map(|stats| backend(&stats, "drain", name)["connections_total"].clone());
            if before != after {
                world.fail(
                    "drain",
                    &format!("{full} takes no sessions and is still given sessions: {before:?}, then {after:?}"),
                );
            }
            world.operator().does("drain", &["enable", &full]);
        }
    });
}
