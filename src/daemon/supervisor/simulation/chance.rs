//! Where the simulation's dice are: numbers that follow from a seed, and the files and requests made of them.
//! Names and addresses come from small sets, so that histories meet themselves again.

use std::sync::LazyLock;
use std::time::Duration;

use crate::config::{Config, LogLevel, Pool};
use crate::control::{Earnest, LiveSessions, Pools, Request, ShutdownMode, Target, Upgrade, Wait};
use crate::words::{Address, Algorithm, CheckSpec, Percent, Weight};

/// SplitMix64.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    pub fn happens(&mut self, percent: u64) -> bool {
        self.draw() % 100 < percent
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.draw() % (most + 1))
    }

    pub fn maybe<T>(&mut self, percent: u64, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.happens(percent).then(|| make(self))
    }
}

/// The least file; what is drawn is changed in copies of it.
static BASE: LazyLock<Config> = LazyLock::new(|| {
    let text =
        "listeners: { l1: { bind: 127.0.0.1:8001, pool: p1 } }\npools: { p1: { backends: { b1: 127.0.0.1:9001 } } }";
    Config::parse(text).unwrap()
});

/// A file as an operator might leave it: one to three of everything.
pub fn a_config(chance: &mut Chance) -> Config {
    let mut config = BASE.clone();
    let (listener, pool) =
        (config.listeners.values().next().unwrap().clone(), config.pools.values().next().unwrap().clone());
    config.pools.clear();
    config.listeners.clear();
    let first = chance.below(3);
    for n in 0..=chance.below(3) {
        config.pools.insert(format!("p{}", (first + n) % 3 + 1).parse().unwrap(), a_pool(&pool, chance));
    }
    let names: Vec<_> = config.pools.keys().cloned().collect();
    // Names and addresses are shifted against each other: listeners are renamed and moved.
    let (shift, first) = (chance.below(5), chance.below(3));
    for n in 0..=chance.below(3) {
        let mut listener = listener.clone();
        listener.pool = names[chance.below(names.len())].clone();
        listener.bind = vec![format!("127.0.0.1:{}", 8001 + (shift + n) % 5).parse().unwrap()];
        if chance.happens(20) {
            listener.bind.push(Address::Unix(format!("/run/lbd/{n}.sock").into()));
        }
        config.listeners.insert(format!("l{}", (first + n) % 3 + 1).parse().unwrap(), listener);
    }
    config.watch = chance.happens(80);
    config.log.level = chance.one_of(&[LogLevel::Info, LogLevel::Warn]);
    config.drain_timeout = chance.one_of(&[0, 50, 2000, 30_000].map(Duration::from_millis));
    config
}

fn a_pool(like: &Pool, chance: &mut Chance) -> Pool {
    let mut pool = like.clone();
    // Maglev's tables would take all the simulation's time, and the supervisor does not know one from the other.
    pool.balance = chance.one_of(&[Algorithm::RoundRobin, Algorithm::LeastConnections, Algorithm::First]);
    pool.health_check = chance.maybe(70, a_check);
    let (backend, first) = (like.backends[0].clone(), chance.below(4));
    pool.backends.clear();
    for n in 0..=chance.below(4) {
        let mut backend = backend.clone();
        let number = (first + n) % 4 + 1;
        backend.name = format!("b{number}").parse().unwrap();
        let moved = chance.one_of(&[0, 0, 10]);
        backend.address = format!("127.0.0.1:{}", 9000 + number + moved).parse().unwrap();
        backend.weight = Weight::new(chance.one_of(&[0, 1, 1, 3])).unwrap();
        backend.backup = chance.happens(15);
        pool.backends.push(backend);
    }
    pool
}

fn a_check(chance: &mut Chance) -> CheckSpec {
    let interval = Duration::from_millis(chance.one_of(&[500, 2000, 10_000]));
    CheckSpec {
        port: None,
        send_proxy: None,
        send: None,
        expect: None,
        interval,
        fast_interval: interval.min(Duration::from_millis(600)),
        down_interval: interval * 2,
        timeout: Duration::from_secs(1),
        rise: 1 + chance.below(2) as u32,
        fall: 1 + chance.below(3) as u32,
        jitter: Percent::new(10).unwrap(),
    }
}

/// What an operator may ask for, short of a stop.
pub fn a_request(chance: &mut Chance) -> Request {
    let target = a_target(chance);
    let expires = chance.maybe(30, |c| c.millis(5000));
    match chance.below(13) {
        12 => an_upgrade(chance),
        0 => Request::Status,
        1 => Request::Stats { pool: chance.maybe(50, |c| format!("p{}", c.below(5)).parse().unwrap()) },
        2..6 => {
            let wait = chance.maybe(60, |c| Wait { timeout: c.maybe(70, |c| c.millis(8000)) });
            Request::Drain { target, wait, reason: None, expires }
        }
        6..9 => Request::Enable { target },
        _ => {
            let live = chance.one_of(&[LiveSessions::Keep, LiveSessions::Close]);
            Request::Disable { target, live, reason: None, expires }
        }
    }
}

fn a_target(chance: &mut Chance) -> Target {
    let pools = chance.one_of(&[Pools::One, Pools::All]);
    let backend = format!("b{}", chance.below(6)); // b0 and b5 never exist
    match chance.maybe(70, |c| format!("p{}/{backend}", c.below(5))) {
        Some(exactly) => Target::parse(&exactly, Pools::One).unwrap(),
        None => Target::parse(&backend, pools).unwrap(),
    }
}

/// Another program is to take over.
pub fn an_upgrade(chance: &mut Chance) -> Request {
    Request::Upgrade(Upgrade { program: None, earnest: chance.one_of(&[Earnest::Done, Earnest::Done, Earnest::Tried]) })
}

/// A request to stop.
pub fn a_stop(chance: &mut Chance) -> Request {
    Request::Shutdown { mode: chance.one_of(&[ShutdownMode::Graceful, ShutdownMode::Now]) }
}
