//! One measurement: a proxy, a row, a moment. What it gives is per unit of work, and a share of it is thrown away before,
//! while the sessions get going.

use std::io::{self, Error};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::backends::{Backends, Kind};
use crate::load::{Connection, Load, Tally, Work, latencies};
use crate::rows::{Doing, Row};
use crate::running::Running;

/// What one measurement gave.
#[derive(Clone, Default)]
pub struct Sample {
    /// As the row's figures; none for direct, where no proxy has cost anything.
    pub figures: Vec<f64>,
    /// Requests or bytes a second.
    pub rate: Option<f64>,
    /// The share of its core that the proxy had.
    pub busy: Option<f64>,
    pub tally: Tally,
}

/// How long opening all sessions of a row may take.
const OPENING: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(300);
/// After the last byte, until sessions are at rest: what a proxy does once after the work is not the cost of rest.
const SETTLING: Duration = Duration::from_secs(2);

/// A proxy for `Rest` was just started.
pub fn measure(row: &Row, proxy: &Running, backends: &Backends, time: Duration) -> io::Result<Sample> {
    proxy.lives()?;
    wait_until_all_are_closed(backends)?;
    let wrong = backends.seen.wrong.load(Relaxed);
    let mut sample = match row.doing {
        Doing::Serve { work, sessions, resting } => serve(work, sessions, resting, proxy, backends, time),
        Doing::Rest { sessions } => rest(sessions, proxy, time),
        Doing::Delay => delay(proxy, time),
    }
    .map_err(|error| proxy.lives().err().unwrap_or(error))?;
    sample.tally.wrong += backends.seen.wrong.load(Relaxed) - wrong;
    Ok(sample)
}

/// So that no measurement pays for the connections of the one before.
fn wait_until_all_are_closed(backends: &Backends) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while backends.seen.open.load(Relaxed) > 0 {
        if Instant::now() > end {
            let open = backends.seen.open.load(Relaxed);
            return Err(Error::other(format!("{open} backend connections stay open though their clients have closed")));
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn serve(
    work: Work,
    sessions: usize,
    resting: usize,
    proxy: &Running,
    backends: &Backends,
    time: Duration,
) -> io::Result<Sample> {
    let targets = proxy.of(work.kind);
    let _resting = Load::open(work, resting, targets, OPENING)?;
    let mut load = Load::open(work, sessions, targets, OPENING)?;
    load.drive(time / 5);
    let read = |load: &Load| {
        let units = match work.kind {
            Kind::Echo | Kind::Answer => load.tally.requests,
            Kind::Source => load.tally.received,
            Kind::Sink => backends.seen.received.load(Relaxed),
        };
        proxy.cpu_time().map(|cpu| (units, cpu, Instant::now()))
    };
    let (units_before, cpu_before, begun) = read(&load)?;
    load.drive(time);
    let (units_after, cpu_after, ended) = read(&load)?;
    let (units, cpu) = ((units_after - units_before) as f64, (cpu_after - cpu_before) as f64);
    if units == 0.0 {
        return Err(Error::other(format!("nothing was served in {time:?}")));
    }
    let elapsed = (ended - begun).as_secs_f64();
    let of_a_proxy = |figure: f64| proxy.is_proxy().then_some(figure);
    // ns a request to µs a request; ns a byte is s a GB, to ms a GB.
    let figure = match work.kind {
        Kind::Echo | Kind::Answer => cpu / units / 1e3,
        Kind::Source | Kind::Sink => cpu / units * 1e3,
    };
    Ok(Sample {
        figures: of_a_proxy(figure).into_iter().collect(),
        rate: Some(units / elapsed),
        busy: of_a_proxy(cpu / 1e9 / elapsed),
        tally: load.tally,
    })
}

fn rest(sessions: usize, proxy: &Running, time: Duration) -> io::Result<Sample> {
    let work = Work { kind: Kind::Echo, request: 64 * 1024, connection: Connection::Kept };
    if !proxy.is_proxy() {
        return Ok(Sample::default());
    }
    let before = proxy.resident()?;
    let load = Load::open(work, sessions, proxy.of(Kind::Echo), OPENING)?;
    sleep(SETTLING);
    let (cpu_before, begun) = (proxy.cpu_time()?, Instant::now());
    sleep(time);
    let cpu = (proxy.cpu_time()? - cpu_before) as f64 / 1e3 / begun.elapsed().as_secs_f64();
    let bytes = (proxy.resident()? as f64 - before as f64) / sessions as f64;
    Ok(Sample { figures: vec![bytes, cpu], tally: load.tally, ..Sample::default() })
}

fn delay(proxy: &Running, time: Duration) -> io::Result<Sample> {
    let target = proxy.of(Kind::Echo).first().ok_or_else(|| Error::other("there is no echo port"))?;
    let times = latencies(*target, time, PAUSE)?;
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).map_or(f64::NAN, |ns| *ns as f64 / 1e3);
    Ok(Sample { figures: vec![at(0.5), at(0.99)], ..Sample::default() })
}
