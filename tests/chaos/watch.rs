//! The invariants that must hold after each second of the load.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::{World, named};

/// The longest that lbctl may wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How much memory may grow after the run's first third, which fills whatever is filled once.
const GROWTH: u64 = 48 << 20;

/// Looks each second until the time is over, and measures how late the machine wakes us in between.
pub fn each_second(world: &World, time: Duration) {
    let begun = Instant::now();
    let mut watch = Watch { begun, time, totals: Vec::new(), memory: 0 };
    let mut look = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(20);
    while begun.elapsed() < time {
        let before = Instant::now();
        if world.pause(STEP) {
            return;
        }
        world.was_late(before.elapsed().saturating_sub(STEP));
        if begun.elapsed() >= look {
            watch.look(world);
            look = begun.elapsed() + Duration::from_secs(1);
        }
    }
}

struct Watch {
    begun: Instant,
    time: Duration,
    totals: Vec<u64>,
    memory: u64,
}

impl Watch {
    fn look(&mut self, world: &World) {
        if let Some(how) = world.lbd.end() {
            return world.fail("watch", &format!("lbd has ended: {how}"));
        }
        self.memory(world);
        let asked = Instant::now();
        let Some(stats) = world.stats() else { return };
        if asked.elapsed() > ANSWER + world.allowance() && !world.was_held_up_since(asked) {
            world.fail("watch", &format!("lbctl stats took {:?}", asked.elapsed()));
        }
        self.counters(world, &stats);
    }

    /// Who has come stays counted, over every reload and upgrade; and nobody is counted who has not come.
    fn counters(&mut self, world: &World, stats: &Value) {
        let counts: Vec<(u64, u64, &String)> = world
            .accounts()
            .map(|(name, account)| {
                let total = named(&stats["listeners"], name)["connections_total"].as_u64().unwrap_or(0);
                (total, account.connected.load(std::sync::atomic::Ordering::SeqCst) as u64, name)
            })
            .collect();
        for (n, (total, connected, name)) in counts.iter().enumerate() {
            if self.totals.get(n).is_some_and(|before| before > total) {
                world.fail("watch", &format!("connections_total of {name} went back to {total}"));
            }
            // A client is counted here a moment after lbd may have accepted it.
            if *total > connected + 200 {
                world.fail("watch", &format!("{name}: {total} sessions of {connected} clients"));
            }
        }
        self.totals = counts.into_iter().map(|(total, ..)| total).collect();
    }

    fn memory(&mut self, world: &World) {
        let now = world.lbd.resident();
        if self.begun.elapsed() < self.time / 3 {
            self.memory = self.memory.max(now);
        } else if now > self.memory + GROWTH {
            world.fail("watch", &format!("memory grew from {} to {} KiB", self.memory / 1024, now / 1024));
        }
    }
}
