//! Random histories, each from a seed, played through the supervisor in a made-up world; the laws are checked after
//! every event. `LBD_SIM_SEED=17 cargo test --lib simulation -- --nocapture` plays one again and shows its story.

mod chance;
mod laws;
mod succession;
mod world;

use std::time::{Duration, Instant};

use crate::control::Request;
use crate::daemon::action::Exit;
use crate::daemon::event::{Event, ReloadBy};
use chance::{a_config, a_request, a_stop, an_upgrade};
use succession::Ends;
use world::{File, World};

const SEEDS: u64 = 300;
const STEPS: usize = 400;

/// Tells which history broke a law.
struct Teller {
    seed: u64,
    world: World,
}

impl Drop for Teller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.world.trace.iter().flatten().for_each(|line| eprintln!("{line}"));
            eprintln!("the history of LBD_SIM_SEED={} broke a law", self.seed);
        }
    }
}

#[test]
fn no_history_breaks_a_law() {
    let one = std::env::var("LBD_SIM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let mut ends = Ends::default();
    for seed in one.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let mut teller = Teller { seed, world: World::new(seed, one.is_some()) };
        let world = &mut teller.world;
        for _ in 0..world.chance.below(STEPS * 2) {
            step(world);
        }
        if world.chance.happens(50) {
            settle(world);
        }
        stop(world);
        let Ends { unfit, forgotten, late, not_executed, failed, taken_over } = world.ends;
        ends.unfit += unfit;
        ends.forgotten += forgotten;
        ends.late += late;
        ends.not_executed += not_executed;
        ends.failed += failed;
        ends.taken_over += taken_over;
    }
    let Ends { unfit, forgotten, late, not_executed, failed, taken_over } = ends;
    let least = [unfit, forgotten, late, not_executed, failed, taken_over].into_iter().min();
    assert!(one.is_some() || least > Some(5), "upgrades end in all ways: {ends:?}");
}

fn step(world: &mut World) {
    match world.chance.below(100) {
        0..25 => world.deliver(),
        25..45 => tick(world),
        45..56 => world.open_session(),
        56..64 => world.close_sessions(30, |_| true),
        64..74 => {
            let request = a_request(&mut world.chance);
            world.ask(request);
        }
        74..84 => {
            if world.chance.happens(70) {
                world.file = match world.chance.below(10) {
                    0 => File::Wrong,
                    1 => File::Unreadable,
                    _ => File::Right(Box::new(a_config(&mut world.chance))),
                };
            }
            match world.chance.below(3) {
                0 => world.happen(Event::ReloadAsked(ReloadBy::Watcher)),
                1 => world.happen(Event::ReloadAsked(ReloadBy::Signal)),
                _ => world.ask(Request::Reload),
            }
        }
        84..88 => {
            let backends: Vec<_> = world.supervisor.backends.iter().map(|(key, _)| key.clone()).collect();
            if let Some(key) = backends.get(world.chance.below(backends.len() + 1)).cloned() {
                world.happen(Event::DialFailed(key));
            }
        }
        88 => {
            if let Some(gone) = world.somebody_goes() {
                world.happen(gone);
            }
        }
        89 => {
            if world.chance.happens(60) {
                run_until(world, world.now + Duration::from_millis(500)); // one beside a reload is refused
            }
            let request = an_upgrade(&mut world.chance);
            world.ask(request);
            if world.chance.happens(60) {
                let end = world.now + world.chance.millis(3000);
                run_until(world, end);
            }
        }
        90..95 => world.now += world.chance.millis(8000),
        _ => world.happen(Event::Tick),
    }
}

/// Goes on to the next deadline; the supervisor must then be content for at least a moment.
fn tick(world: &mut World) {
    let Some(deadline) = world.supervisor.next_deadline() else { return };
    world.now = world.now.max(deadline);
    for _ in 0..4 {
        world.happen(Event::Tick);
        match world.supervisor.next_deadline() {
            _ if world.exit.is_some() => return,
            Some(next) if next <= world.now => {}
            _ => return,
        }
    }
    panic!("a tick at the deadline makes no progress: the daemon would spin");
}

/// Lets everything happen in order for a while.
fn run_until(world: &mut World, end: Instant) {
    while world.exit.is_none() {
        let deadline = world.supervisor.next_deadline();
        match world.next_due() {
            Some(due) if due <= end && deadline.is_none_or(|d| due <= d) => world.deliver(),
            _ if deadline.is_some_and(|d| d <= end) => tick(world),
            _ => break,
        }
    }
    world.now = world.now.max(end);
}

/// Without sessions and new wishes nothing is left that somebody waits for.
fn settle(world: &mut World) {
    world.hangs = false;
    run_until(world, world.now + Duration::from_secs(45)); // whatever hangs is over
    world.close_sessions(100, |_| true);
    run_until(world, world.now + Duration::from_secs(1));
    for ask in world.asks.values().filter(|ask| !ask.gone) {
        assert_eq!(ask.answers, 1, "{}", ask.what);
    }
    assert!(world.supervisor.waiting.is_empty() && world.supervisor.reload.is_none());
    assert!(world.supervisor.next_reload.is_empty());
}

fn stop(world: &mut World) {
    // A reload may still come in between the signal and the answer to what it is for.
    let patience = Duration::from_secs(30);
    let end = world.now + patience + Duration::from_secs(2);
    if world.chance.happens(50) {
        world.happen(Event::StopAsked);
    } else {
        let request = a_stop(&mut world.chance);
        world.ask(request);
    }
    while world.exit.is_none() {
        assert!(world.now <= end, "the daemon stops in time");
        match world.chance.below(20) {
            0 => world.open_session(),
            1 => world.close_sessions(10, |_| true),
            2 => {
                let request = a_request(&mut world.chance);
                world.ask(request);
            }
            3 => world.ask(Request::Reload),
            4 if world.chance.happens(10) => world.happen(Event::StopAsked),
            5 => {
                let request = a_stop(&mut world.chance);
                world.ask(request);
            }
            _ => {
                let next = [world.next_due(), world.supervisor.next_deadline()].into_iter().flatten().min();
                run_until(world, next.expect("who stops wants to look again"));
            }
        }
    }
    assert_eq!(world.exit, Some(Exit::Stopped));
}
