//! Reloads under load: weights, limits and timeouts change, backends and whole listeners come and go, and files that are wrong
//! are refused. Sessions stay as they are, those of removed backends too.

use std::sync::Arc;

use super::{Kind, Setup, at, echo};
use crate::file::{Backend, Listener, Pool};
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

pub const KIND: Kind = Kind { name: "reload", by_default: true, begin };

fn begin(setup: &mut Setup) {
    let servers: Arc<Vec<Arc<Server>>> = Arc::new((0..4).map(|_| Server::start(echo::echo)).collect());
    setup.service("reload", "", "", vec![("b0", at(&servers[0]))]);
    setup.tasks("reload", 4, |world, mut random| {
        while !world.pause(random.millis(1, 60)) {
            echo::talk(world, "reload", "reload", &mut random);
        }
    });
    setup.tasks("reload", 1, move |world, mut random| {
        while !world.pause(random.millis(50, 600)) {
            change(world, &servers, &mut random);
        }
    });
}

fn change(world: &World, servers: &[Arc<Server>], random: &mut Random) {
    let mut operator = world.operator();
    if random.percent(15) {
        world.lbd.write(&format!("{}extra: key\n", operator.file.text()));
        if operator.tries("reload", &["reload"]).code != Some(1) {
            world.fail("reload", "a file with an unknown key was taken");
        }
        return;
    }
    let pool = operator.file.pools.get_mut("reload").unwrap();
    let name = format!("b{}", random.between(1, servers.len()));
    match random.between(0, 5) {
        0 => {
            // b0 stays, so that there is always one.
            if pool.backends.remove(&name).is_none() {
                let server = &servers[name[1..].parse::<usize>().unwrap()];
                pool.backends.insert(name, at(server));
            }
        }
        1 => pool.backends.values_mut().for_each(|backend| backend.weight = random.between(1, 9)),
        2 => pool.rest = format!("connect_timeout: {}s, retries: {}", random.between(5, 20), random.between(1, 4)),
        3 => {
            pool.rest =
                format!("balance: {}", random.pick(&["round_robin", "least_connections", "random_two", "maglev"]))
        }
        _ => {
            let of_pool = Pool { backends: [("a".to_owned(), Backend::at("127.0.0.1:1"))].into(), rest: String::new() };
            if operator.file.listeners.remove("passing").is_some() {
                operator.file.pools.remove("passing");
            } else {
                let listener = Listener { host: 200, pool: "passing".to_owned(), rest: String::new() };
                operator.file.listeners.insert("passing".to_owned(), listener);
                operator.file.pools.insert("passing".to_owned(), of_pool);
            }
        }
    }
    operator.reload("reload");
}
