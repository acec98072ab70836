//! Puts it together: the start, the loop and the stop are on one screen here. Workers have threads of their
//! own; everything else (supervisor, probes, control socket, watcher, signals) shares the main thread.

pub mod action;
pub mod demo;
pub mod effects;
pub mod event;
pub mod logging;
pub mod signals;
pub mod sockets;
pub mod state;
pub mod supervisor;
pub mod systemd;
pub mod unit;
pub mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use crate::config::{Config, Workers};
use crate::control::server::{self, Asked};
use crate::control::{Place, socket};
use crate::probe::{ProbeError, Probed, Prober};
use crate::proxy::{self, Limits, Outcome, Setup, Worker};
use crate::snapshot::{Reader, Snapshot, publish_first};
use crate::words::Happening;
use action::Exit;
use effects::{Effects, Source};
use event::{AskId, BackendKey, Decision, Event, FileRead, Job, Now, ReloadBy};
use sockets::Sockets;
use supervisor::{Facts, Supervisor};

/// Requests of operators that may wait for the supervisor.
const ASKS: usize = 64;
/// Results of probes and dials that may wait for it.
const OUTCOMES: usize = 1024;
/// How long to wait where nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
/// How long the last answers and the last lines of the log may take at the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the daemon is started with.
#[derive(Debug)]
pub struct Start {
    /// Checked already: a wrong file is told before anything is started.
    pub config: Config,
    /// The bytes it was read from.
    pub content: Vec<u8>,
    /// Where it came from.
    pub source: Source,
    /// Where the control socket is to be; wins over the file's.
    pub control: Option<Place>,
    /// What systemd has passed to the process, with the names it has there ([`systemd::passed`]).
    pub passed: Vec<(OwnedFd, String)>,
}

/// Why the daemon could not start or go on. Says how to mend it.
pub type Broken = String;

/// Runs until the daemon is asked to stop. `ready` is called once, when the first configuration is in force and
/// clients are accepted, with the addresses of the listeners and the control socket.
///
/// # Errors
/// An address or the control socket cannot be bound, or the kernel refuses something that nothing works without.
pub fn run(start: Start, logging: &logging::Logging, ready: impl FnOnce(&Ready<'_>)) -> Result<(), Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("the runtime cannot start: {e}"))?;
    runtime.block_on(serve(start, logging, ready))
}

/// What is there once the daemon serves.
#[derive(Debug)]
pub struct Ready<'a> {
    /// The listeners' addresses: as the file has them, and as they are.
    pub listening: &'a BTreeMap<crate::words::Address, crate::words::Address>,
    /// The control socket.
    pub control: &'a std::path::Path,
}

async fn serve(start: Start, logging: &logging::Logging, ready: impl FnOnce(&Ready<'_>)) -> Result<(), Broken> {
    let Prepared { mut sources, mut effects, facts, kept, serving } = prepare(start, logging)?;
    let mut supervisor = Supervisor::new(facts, kept, proxy::monotonic_micros(), now());
    let mut events = VecDeque::from([Event::ReloadAsked(ReloadBy::Start)]);
    let mut ready = Some(ready);
    let exit = loop {
        if let Some(exit) = digest(&mut supervisor, &mut effects, &mut events) {
            break exit;
        }
        if let Some(ready) = ready.take() {
            ready(&Ready { listening: &effects.sockets.addresses(), control: effects.control.path() });
        }
        let deadline = supervisor.next_deadline().unwrap_or_else(|| Instant::now() + IDLE);
        events.push_back(sources.next(&mut effects, deadline).await);
        events.extend(effects.turned());
        events.extend(effects.gone().into_iter().map(Event::AskerGone));
    };
    drop(sources); // the server writes the last answers, then returns
    effects.answers.clear(); // who waits still is told that lbd stopped
    let _ = timeout(LAST_WORDS, serving).await;
    effects.clear_up();
    if let Some(keeper) = effects.keeper.take() {
        keeper.finish(LAST_WORDS);
    }
    drop(effects);
    match exit {
        Exit::Stopped => {
            info!(event = Happening::Stopped.as_str(), "stopped");
            Ok(())
        }
        Exit::CannotStart(why) => Err(why),
    }
}

/// What is there before anything is in force.
struct Prepared {
    sources: Sources,
    effects: Effects,
    facts: Facts,
    /// What operators decided before the start.
    kept: Vec<Decision>,
    /// The control server.
    serving: tokio::task::JoinHandle<()>,
}

/// Takes what the process needs before there is a configuration in force: signals, the control socket, descriptors,
/// workers. Nothing of it is seen by a client.
fn prepare(start: Start, logging: &logging::Logging) -> Result<Prepared, Broken> {
    let kernel = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let signals = signals::Signals::new().map_err(kernel("signals cannot be taken"))?;
    let place = control_place(&start);
    let asked_for = &start.config.control;
    let (door, control) =
        socket::bind(&place, asked_for.mode, asked_for.group.as_deref()).map_err(|e| e.to_string())?;
    let door = tokio::net::UnixListener::from_std(door).map_err(kernel("the control socket cannot be used"))?;
    let (ask_sender, asks) = mpsc::channel::<Asked>(ASKS);
    let serving = tokio::spawn(server::serve(door, ask_sender, server::Limits::default()));

    let (descriptors, refused) =
        proxy::raise_descriptor_limit().map_err(kernel("the limit of descriptors cannot be read"))?;
    if let Some(e) = refused {
        warn!(descriptors, "the limit of descriptors cannot be raised ({e}); there will be fewer sessions");
    }
    let workers = worker_count(start.config.process.workers);
    let limits = Arc::new(Limits::new(descriptors, start.config.process.buffer_memory));
    info!(workers, descriptors, sessions = limits.most, "lbd {} starts", env!("CARGO_PKG_VERSION"));
    let (publisher, reader) = publish_first(Snapshot::empty());
    let (outcome_sender, outcomes) = mpsc::channel(OUTCOMES);
    let acknowledged = Arc::new(Notify::new());
    let lines = start_workers(workers, &reader, &limits, &outcome_sender, &acknowledged)?;

    let (probe_sender, probes) = mpsc::channel(OUTCOMES);
    let (changed_sender, changed) = mpsc::channel(1);
    let config_path = match &start.source {
        Source::File(path) => Some(path.display().to_string()),
        Source::Demo => None,
    };
    let notifier = systemd::Notifier::new();
    let (job_sender, job) = mpsc::channel(1);
    let folder = state::folder().filter(|_| config_path.is_some());
    let (keeper, written, kept) =
        state::keep_in(folder.as_deref()).map_err(kernel("the thread that keeps decisions cannot start"))?;
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        workers,
        config_path,
        pulse: notifier.watchdog_interval(),
        keeps: keeper.is_some(),
    };
    let effects = Effects {
        control,
        publisher,
        lines,
        prober: Prober::new(probe_sender),
        notifier,
        logging: logging.clone(),
        first: Some(FileRead::Right(Box::new(start.config))),
        changed: changed_sender,
        watcher: None,
        seen: start.content,
        answers: HashMap::new(),
        sockets: Sockets::new(start.passed),
        keeper,
        job: job_sender,
        turned: 0,
        manager_asked: false,
        source: start.source,
    };
    let sources = Sources { signals, asks, asked: 0, changed, acknowledged, probes, outcomes, job, written };
    Ok(Prepared { sources, effects, facts, kept, serving })
}

/// Where events come from.
struct Sources {
    signals: signals::Signals,
    asks: mpsc::Receiver<Asked>,
    /// Requests so far; numbers them.
    asked: u64,
    changed: mpsc::Receiver<()>,
    acknowledged: Arc<Notify>,
    probes: mpsc::Receiver<Probed<BackendKey>>,
    outcomes: mpsc::Receiver<Outcome>,
    job: mpsc::Receiver<Job>,
    written: state::News,
}

impl Sources {
    /// Waits for whatever happens first, until `deadline` at the latest.
    async fn next(&mut self, effects: &mut Effects, deadline: Instant) -> Event {
        tokio::select! {
            Some(asked) = self.asks.recv() => {
                self.asked += 1;
                effects.answers.insert(AskId(self.asked), asked.answer);
                Event::Asked(AskId(self.asked), asked.request, asked.peer)
            }
            signal = self.signals.next() => match signal {
                signals::Asked::Reload => Event::ReloadAsked(ReloadBy::Signal),
                signals::Asked::Stop => Event::StopAsked,
            },
            Ok(()) = self.written.changed() => {
                let (number, result) = self.written.borrow_and_update().clone();
                Event::Kept(number, result)
            }
            Some(job) = self.job.recv() => Event::JobKnown(job),
            Some(()) = self.changed.recv() => Event::ReloadAsked(ReloadBy::Watcher),
            () = self.acknowledged.notified() => Event::Acknowledged(effects.acknowledged()),
            Some(probed) = self.probes.recv() => match probed.result {
                Ok(_) => Event::Probed(probed.key, Ok(())),
                Err(ProbeError::Failed(reason)) => Event::Probed(probed.key, Err(reason)),
                Err(ProbeError::Unable(_)) => Event::NotProbed(probed.key),
            },
            Some(Outcome::DialFailed(backend)) = self.outcomes.recv() => {
                Event::DialFailed((backend.reference.clone(), backend.address.clone()))
            }
            () = sleep_until(deadline.into()) => Event::Tick,
        }
    }
}

/// Has the supervisor decide on everything that has happened, and performs it.
fn digest(supervisor: &mut Supervisor, effects: &mut Effects, events: &mut VecDeque<Event>) -> Option<Exit> {
    while let Some(event) = events.pop_front() {
        for action in supervisor.handle(now(), event) {
            if let Some(exit) = effects.perform(action, events) {
                return Some(exit);
            }
        }
    }
    None
}

fn start_workers(
    count: usize,
    reader: &Reader,
    limits: &Arc<Limits>,
    outcomes: &mpsc::Sender<Outcome>,
    acknowledged: &Arc<Notify>,
) -> Result<Vec<proxy::Line>, Broken> {
    let no_worker = |e: &dyn std::fmt::Display| format!("a worker cannot start: {e}");
    let ends: Vec<_> = (0..count).map(|_| proxy::line()).collect::<Result<_, _>>().map_err(|e| no_worker(&e))?;
    let wakers: Vec<_> = ends.iter().map(|(line, _)| line.waker()).collect();
    let mut lines = Vec::new();
    for (index, (line, inbox)) in ends.into_iter().enumerate() {
        let others = wakers.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, w)| Arc::clone(w)).collect();
        let setup = Setup {
            index,
            inbox,
            reader: reader.clone(),
            limits: Arc::clone(limits),
            outcomes: outcomes.clone(),
            acknowledged: Arc::clone(acknowledged),
            others,
        };
        let mut worker = Worker::new(setup).map_err(|e| no_worker(&e))?;
        thread::Builder::new()
            .name(format!("lbd-worker-{index}"))
            .spawn(move || worker.run())
            .map_err(|e| no_worker(&e))?;
        lines.push(line);
    }
    Ok(lines)
}

fn worker_count(asked: Workers) -> usize {
    match asked {
        Workers::Count(n) => n.get(),
        Workers::Auto => thread::available_parallelism().map_or(1, NonZeroUsize::get),
    }
}

fn control_place(start: &Start) -> Place {
    if let Some(place) = &start.control {
        return place.clone();
    }
    if let Some(path) = &start.config.control.socket {
        return Place::named(path);
    }
    let (service, runtime) = (std::env::var_os("RUNTIME_DIRECTORY"), std::env::var_os("XDG_RUNTIME_DIR"));
    Place::of_daemon(nix::unistd::geteuid().as_raw(), service.as_deref(), runtime.as_deref())
}

fn now() -> Now {
    Now { at: Instant::now(), micros: proxy::monotonic_micros(), wall: SystemTime::now() }
}
