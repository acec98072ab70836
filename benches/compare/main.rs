//! The comparison: lbd beside HAProxy and nginx, each on the same core with one thread, the clients and backends on
//! another, in turn, round by round. What is told is the CPU time a proxy's processes used for a unit of work, so that the
//! speed of the clients does not enter. Nothing of lbd is imported; every byte that comes back is verified.

mod backends;
mod figures;
mod load;
mod machine;
mod measure;
mod pattern;
mod peers;
mod plot;
mod report;
mod rows;
mod running;

use std::fs;
use std::io::{self, Error};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use backends::Backends;
use machine::{Cores, limit_descriptors, pin};
use peers::Peer;
use report::{DIRECT, Measured};
use rows::{Doing, ROWS, Row};
use running::{Running, clear_up_on_signals};

/// Compares what lbd, HAProxy and nginx cost, on this machine
#[derive(Parser)]
struct Arguments {
    /// How often each is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a measurement takes, in seconds
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only these rows, with commas between; a wrong name lists them all
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Two rounds of half a second: whether it works, not what it costs
    #[arg(long)]
    quick: bool,
    /// Writes all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws the ratios to HAProxy into this file, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Measures this lbd instead of the one that was just built
    #[arg(long, default_value = env!("CARGO_BIN_EXE_lbd"))]
    lbd: PathBuf,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let rows = chosen(&arguments.rows)?;
    let (rounds, seconds) = if arguments.quick { (2, 0.5) } else { (arguments.rounds, arguments.seconds) };
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| Error::other("--seconds takes a time, such as 1.5"))?;
    let (others, missing) = peers::others();
    let peers: Vec<Peer> = [peers::lbd(&arguments.lbd)?].into_iter().chain(others).collect();
    for line in &missing {
        println!("{line}");
    }
    let dir = tempfile::Builder::new().prefix("lbd-compare").tempdir()?;
    clear_up_on_signals(dir.path())?;
    let descriptors = limit_descriptors()?;
    let cores = Cores::choose()?;
    pin(cores.load)?;
    let backends = Backends::start()?;
    let bench = Bench { peers, backends, cores, dir: dir.path(), rounds, time };
    bench.tell(descriptors);

    let proxies = bench.start_all()?;
    let mut all = Vec::new();
    for row in rows {
        if row.descriptors() > descriptors {
            let needed = row.descriptors();
            println!("\n{} is left out: it needs {needed} descriptors of {descriptors}; raise `ulimit -n`", row.name);
            continue;
        }
        let measured = bench.measure(row, &proxies);
        print!("{}", measured.table());
        all.push(measured);
    }
    bench.write(&all, arguments)?;
    let wrong: u64 = all.iter().map(|measured| measured.faults().wrong).sum();
    let failed = all.iter().any(|measured| !measured.failed.is_empty());
    println!("\n{}", if wrong == 0 { "right: every byte that came back" } else { "wrong bytes came back" });
    Ok(if wrong == 0 && !failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn chosen(names: &[String]) -> io::Result<Vec<&'static Row>> {
    let all = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    let find = |name: &String| {
        let row = ROWS.iter().find(|row| row.name == name);
        row.ok_or_else(|| Error::other(format!("no row is named {name:?}; there are {}", all())))
    };
    if names.is_empty() { Ok(ROWS.iter().collect()) } else { names.iter().map(find).collect() }
}

struct Bench<'a> {
    peers: Vec<Peer>,
    backends: Backends,
    cores: Cores,
    dir: &'a Path,
    rounds: u32,
    time: Duration,
}

impl Bench<'_> {
    fn tell(&self, descriptors: u64) {
        let versions: Vec<String> = self.peers.iter().map(|peer| format!("{} {}", peer.name, peer.version)).collect();
        println!("{}", versions.join(", "));
        println!(
            "{} rounds of {:?} each, in turn; the proxy has core {}, clients and backends have core {}; {descriptors} descriptors",
            self.rounds, self.time, self.cores.proxy, self.cores.load
        );
        println!(
            "cost is the CPU time of all the proxy's processes; less is better; ratios are medians of the rounds' ratios\n\
             busy: the share of its core that the proxy had; the client closes first; counters, limits, timeouts are on"
        );
    }

    fn start_all(&self) -> io::Result<Vec<(&Peer, Running)>> {
        let start = |peer| Ok((peer, Running::start(peer, &self.backends, self.cores, self.dir)?));
        self.peers.iter().map(start).collect()
    }

    /// All rounds of a row. Who fails once is left out of the rest of the row.
    fn measure(&self, row: &'static Row, proxies: &[(&Peer, Running)]) -> Measured {
        let direct = Running::direct(&self.backends);
        let of_row = proxies.iter().filter(|(peer, _)| row.bulk || !peer.only_bulk);
        let mut runners: Vec<(Option<&Peer>, &Running)> = of_row.map(|(peer, proxy)| (Some(*peer), proxy)).collect();
        runners.push((None, &direct));
        let name = |peer: Option<&Peer>| peer.map_or(DIRECT, |peer| peer.name);
        let samples = runners.iter().map(|(peer, _)| (name(*peer), Vec::new())).collect();
        let mut measured = Measured { row, samples, failed: Vec::new() };
        for round in 0..self.rounds {
            eprint!("\r{} {}/{} ", row.name, round + 1, self.rounds);
            let turn = round as usize % runners.len();
            for (peer, proxy) in [&runners[turn..], &runners[..turn]].concat() {
                let Some(index) = measured.samples.iter().position(|(of, _)| *of == name(peer)) else { continue };
                match self.measure_once(row, peer, proxy) {
                    Ok(sample) => measured.samples[index].1.push(sample),
                    Err(error) => {
                        measured.samples.remove(index);
                        measured.failed.push(format!("{}: {error}", name(peer)));
                    }
                }
            }
        }
        eprint!("\r{:30}\r", "");
        measured
    }

    fn measure_once(&self, row: &Row, peer: Option<&Peer>, proxy: &Running) -> io::Result<measure::Sample> {
        match (&row.doing, peer) {
            (Doing::Rest { .. }, Some(peer)) => {
                let fresh = Running::start(peer, &self.backends, self.cores, self.dir)?;
                measure::measure(row, &fresh, &self.backends, self.time)
            }
            _ => measure::measure(row, proxy, &self.backends, self.time),
        }
    }

    fn write(&self, all: &[Measured], arguments: &Arguments) -> io::Result<()> {
        let name = |file: &Path, error: Error| Error::new(error.kind(), format!("{}: {error}", file.display()));
        if let Some(file) = &arguments.json {
            let peers: Vec<_> = self.peers.iter().map(|p| json!({ "name": p.name, "version": p.version })).collect();
            let document = json!({
                "processor": machine::processor(), "kernel": machine::kernel(), "peers": peers, "rounds": self.rounds,
                "seconds": self.time.as_secs_f64(), "rows": all.iter().map(Measured::json).collect::<Vec<_>>(),
            });
            fs::write(file, format!("{document:#}\n")).map_err(|error| name(file, error))?;
        }
        if let Some(file) = &arguments.plot {
            let versions: Vec<String> = self.peers.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
            let heading = format!("What each costs, HAProxy = 1, less is better ({})", versions.join(", "));
            let bars = all.iter().flat_map(Measured::bars).collect::<Vec<_>>();
            fs::write(file, plot::svg(&heading, &bars)).map_err(|error| name(file, error))?;
        }
        Ok(())
    }
}
