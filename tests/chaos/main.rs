//! One seeded load that mixes everything lbd promises to survive, and the invariants that must hold meanwhile and at the end.
//!
//! `cargo test --test chaos` runs for 20 s. By hand: `cargo test --test chaos -- --seconds 3600 --seed 7 --only slow,upgrade`.
//! Each kind of load (`kinds/`) is one file: its part of the configuration, its clients and servers, and what it accepts as
//! right. The first violation ends the run; seed, violation, what the load did last and the end of lbd's log are printed.

#![allow(clippy::unwrap_used)] // a load that cannot go on has failed

mod arguments;
mod client;
mod daemon;
mod file;
mod finish;
mod journal;
mod kinds;
mod pattern;
mod random;
mod server;
mod watch;
mod world;

use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use arguments::{Arguments, Order};
use kinds::{Kind, Setup};
use random::Random;
use world::World;

/// The longest that clients may take to end after they were told to.
const ENDING: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = match arguments::read(std::env::args().skip(1), &kinds::names()) {
        Ok(Order::Run(arguments)) => arguments,
        Ok(Order::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("chaos: {why}");
            return ExitCode::from(2);
        }
    };
    let kinds: Vec<&Kind> = kinds::ALL.iter().filter(|kind| arguments.includes(kind.name, kind.by_default)).collect();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    println!("chaos: seed {}, {} s: {}", arguments.seed, arguments.time.as_secs_f64(), names.join(", "));
    match run(&arguments, &kinds) {
        Ok(summary) => {
            println!("chaos: nothing lost; {summary}");
            ExitCode::SUCCESS
        }
        Err(report) => {
            eprintln!("{report}");
            eprintln!("again: cargo test --test chaos -- --seed {} --only {}", arguments.seed, names.join(","));
            // Not by returning: clients may still wait for an lbd that does not answer.
            std::process::exit(1);
        }
    }
}

/// Sets the world up, lets all kinds loose on it until the time is over, and looks whether everything is as before.
fn run(arguments: &Arguments, kinds: &[&Kind]) -> Result<String, String> {
    daemon::have_descriptors();
    let mut seeds = Random::new(arguments.seed);
    let mut setup = Setup::default();
    setup.file.workers = seeds.pick(&[1, 2, 2, 3, 8]);
    for kind in kinds {
        (kind.begin)(&mut setup);
    }
    let world = World::start(arguments.programs.as_deref(), setup.file, setup.listeners)?;
    let before = finish::baseline(&world);
    let (ended, ends) = channel();
    let mut running = Vec::new();
    for (name, task) in setup.tasks {
        let (world, random, ended) = (world.clone(), Random::new(seeds.next()), ended.clone());
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(&world, random)));
            if let Err(panic) = result {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                world.fail(name, &format!("the load itself broke: {}", text.unwrap_or("a panic")));
            }
            let _ = ended.send(name);
        });
        thread.map_err(|e| format!("no thread for {name}: {e}"))?;
        running.push(name);
    }
    watch::each_second(&world, arguments.time);
    world.end();
    let deadline = Instant::now() + ENDING;
    while !running.is_empty() && !world.has_failed() {
        match ends.recv_timeout(Duration::from_millis(100)) {
            Ok(name) => drop(running.swap_remove(running.iter().position(|n| *n == name).unwrap())),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => world.fail("end", &format!("do not come to an end in {} s: {running:?}", ENDING.as_secs())),
        }
    }
    if !world.has_failed() {
        finish::look(&world, &before);
    }
    let verdict = world.verdict();
    if verdict.is_err() {
        world.lbd.kill(); // clients may wait for it still, and keep the world from being dropped
    }
    verdict
}
