//! Puts it together: the start, the loop and the stop are on one screen here. Workers have threads of their
//! own; everything else (supervisor, probes, control socket, watcher, signals) shares the main thread.

pub mod action;
mod beginning;
pub mod children;
mod clock;
pub mod crew;
pub mod demo;
pub mod effects;
pub mod event;
pub mod files;
pub mod folder;
pub mod in_force;
pub mod logging;
pub mod machine;
pub mod signals;
pub mod sockets;
mod sources;
mod stall;
pub mod state;
pub mod supervisor;
pub mod systemd;
pub mod unit;
mod unix_listener;
pub mod upgrade;
pub mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::config::{Config, Workers};
use crate::control::server::{self, Asked};
use crate::control::{Names, Place};
use crate::probe::Prober;
use crate::proxy::{self, Limits, Setup, Worker};
use crate::snapshot::publish_first;
use crate::words::{Address, Happening};
use action::Exit;
use beginning::Origin;
use crew::Crew;
use effects::{Effects, Source, most_probes};
use event::{Event, FileRead, Now, ReloadBy};
use files::Files;
use folder::Folder;
use in_force::InForce;
use sources::{Sources, told_by_probe};
use stall::{Calls, Outside};
use supervisor::{Facts, Supervisor};
use unix_listener::Paths;
use upgrade::{Heritage, LONG, or_back, persist};

/// Requests of operators that may wait for the supervisor.
const ASKS: usize = 64;
/// Failed dials that may wait for it.
const OUTCOMES: usize = 1024;
/// Fewer sessions than this are worth a warning at the start.
const FEW: u32 = 64;
/// How long to wait where nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
/// How long the last answers and the last lines of the log may take at the end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What may hang outside.
const FILE: &str = "the file system of the configuration file, or the name service that is asked for a group,";

/// What the daemon is started with.
#[derive(Debug)]
pub struct Start {
    /// Checked already: a wrong file is told before anything is started.
    pub config: Config,
    /// The bytes it was read from.
    pub content: Vec<u8>,
    /// The file was refused, for this reason, and holds this: the configuration is what is kept.
    pub refused: Option<files::Read>,
    /// What was last in force, where it is kept.
    pub kept: Option<InForce>,
    /// Where it came from.
    pub source: Source,
    /// Where the control socket is to be; wins over the file's.
    pub control: Option<Place>,
    /// What systemd has passed to the process, with the names it has there ([`systemd::passed`]).
    pub passed: Vec<(OwnedFd, String)>,
    /// What another program has left that this one was executed in place of.
    pub heritage: Option<Heritage>,
}

/// Why the daemon could not start or go on. Says how to mend it.
pub type Broken = String;

/// Runs until the daemon is asked to stop. `ready` is called once, when the first configuration is in force and
/// clients are accepted, with the addresses of the listeners and the control socket.
///
/// # Errors
/// An address or the control socket cannot be bound, or the kernel refuses something that nothing works without.
pub fn run(start: Start, logging: &logging::Logging, ready: impl FnOnce(&Ready<'_>)) -> Result<(), Broken> {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().on_thread_start(signals::leave_to_others).build()
    };
    let runtime = persist(LONG, runtime).map_err(|e| or_back(format!("the runtime cannot start: {e}")))?;
    let served = runtime.block_on(serve(start, logging, ready));
    runtime.shutdown_background(); // a thread of it may hang
    served
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
    let Prepared { mut sources, mut effects, mut supervisor, first, serving } = prepare(start, logging)?;
    let mut events = VecDeque::from([first]);
    let mut ready = Some(ready);
    let exit = loop {
        if let Some(exit) = digest(&mut supervisor, &mut effects, &mut sources, &mut events) {
            break exit;
        }
        events.extend(effects.prober.drive(Instant::now()).into_iter().map(told_by_probe));
        if let Some(exit) = digest(&mut supervisor, &mut effects, &mut sources, &mut events) {
            break exit;
        }
        if let Some(ready) = ready.take() {
            ready(&Ready { listening: &effects.sockets.addresses(), control: effects.control.path() });
        }
        let deadline = supervisor.next_deadline().unwrap_or_else(|| Instant::now() + IDLE);
        let deadline = effects.notifier.catch_up(Instant::now()).map_or(deadline, |again| deadline.min(again));
        let next = sources.next(&mut effects, deadline).await;
        events.extend(effects.turned());
        effects.look_outside();
        // Who has gone is not in the way of who comes; but who comes and goes has come first.
        let (late, gone): (Vec<_>, Vec<_>) = effects
            .gone()
            .into_iter()
            .partition(|gone| matches!(&next, Some(Event::Asked(asked, ..)) if gone == asked));
        events.extend(gone.into_iter().map(Event::AskerGone));
        events.extend(next);
        events.extend(late.into_iter().map(Event::AskerGone));
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
    supervisor: Supervisor,
    /// What happens first.
    first: Event,
    /// The control server.
    serving: tokio::task::JoinHandle<()>,
}

/// Takes what the process needs before there is a configuration in force: signals, the control socket, descriptors,
/// workers. Nothing of it is seen by a client. Of what a predecessor has left nothing is dropped before all is there: each
/// error goes [back](or_back) to it.
fn prepare(mut start: Start, logging: &logging::Logging) -> Result<Prepared, Broken> {
    let kernel = |what: &'static str| move |e: io::Error| or_back(format!("{what}: {e}"));
    let signals = persist(LONG, signals::Signals::new).map_err(kernel("signals cannot be taken"))?;
    let (descriptors, refused) =
        proxy::raise_descriptor_limit().map_err(kernel("the limit of descriptors cannot be read"))?;
    if let Some(e) = refused {
        warn!(descriptors, "the limit of descriptors cannot be raised ({e}); there will be fewer sessions");
    }
    let limits = Arc::new(Limits::new(descriptors, start.config.process.buffer_memory));
    let (reading, watching, telling) = (Calls::default(), Calls::default(), Calls::default());
    let notifier = systemd::Notifier::new(telling.clone());
    let config_path = match &start.source {
        Source::File(path) => Some(path.display().to_string()),
        Source::Demo => None,
    };
    let folder = Folder::of_service().filter(|_| config_path.is_some());
    let writing = Calls::default();
    let path = std::path::Path::new(config_path.as_deref().unwrap_or_default());
    let (keeper, written) = persist(LONG, || state::keep_in(folder.clone(), path, writing.clone()))
        .map_err(kernel("the thread that keeps decisions cannot start"))?;
    let (files, read) = persist(LONG, || Files::start(reading.clone()))
        .map_err(kernel("the thread that reads the file cannot start"))?;
    let names = persist(LONG, || Names::start(signals::leave_to_others))
        .map_err(kernel("the thread that asks for names cannot start"))?;
    // A predecessor that is executed again has as many as before, whatever the file or the machine says now; or those for which there
    // are threads left.
    let (crew, seats) = match start.heritage.as_ref().filter(|heritage| heritage.is_ours()) {
        Some(heritage) => Crew::hire_who_can_be_had(heritage.workers.len()),
        None => Crew::hire(worker_count(start.config.process.workers)),
    }
    .map_err(kernel("a worker cannot start"))?;
    let workers = seats.len();
    set_aside(&limits, &start.config, workers);
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uid: nix::unistd::geteuid().as_raw(),
        workers,
        config_path,
        pulse: notifier.watchdog_interval(),
        keeps: keeper.is_some(),
        kept_file: start.kept.is_some(),
    };
    let Origin { supervisor, sockets, control, control_door, roll, answers, asked, installed, seen, left } =
        match start.heritage.take() {
            None => {
                machine::look_up_groups(&start.config)?;
                info!(workers, descriptors, sessions = limits.most(), "lbd {} starts", facts.version);
                warn_of_few(&limits, descriptors);
                let decided = state::decided_before(folder.as_ref())
                    .map_err(|e| format!("the thread that reads decisions cannot start: {e}"))?;
                beginning::anew(&mut start, facts, decided)?
            }
            Some(heritage) => beginning::inherited(heritage, &start.config, facts)?,
        };

    let (publisher, reader) = publish_first(Arc::clone(supervisor.snapshot()));
    let (outcome_sender, outcomes) = mpsc::channel(OUTCOMES);
    let acknowledged = Arc::new(Notify::new());
    let setup = |(index, (inbox, others))| Setup {
        index,
        inbox,
        reader: reader.clone(),
        limits: Arc::clone(&limits),
        outcomes: outcome_sender.clone(),
        acknowledged: Arc::clone(&acknowledged),
        others,
    };
    let setups: Vec<Setup> = seats.into_iter().enumerate().map(setup).collect();

    let (ask_sender, asks) = mpsc::channel::<Asked>(ASKS);
    // A copy: what fails here closes it, and whoever goes back wants the other.
    let control_door = ManuallyDrop::new(control_door);
    let door = persist(LONG, || control_door.try_clone().and_then(tokio::net::UnixListener::from_std))
        .map_err(kernel("the control socket cannot be used"))?;
    let connected = (roll.clone(), door.as_raw_fd());
    let serving = tokio::spawn(server::serve(door, roll, ask_sender, server::Limits::default(), names));
    let (changed_sender, changed) = mpsc::channel(1);
    let (job_sender, job) = mpsc::channel(1);
    let (checked_sender, checked) = mpsc::channel(1);
    let (paths, looked) = Paths::new();
    let prober = persist(LONG, || Prober::new(descriptors)).map_err(kernel("probes cannot be made"))?;
    let mut effects = Effects {
        control,
        publisher,
        crew,
        prober,
        notifier,
        logging: logging.clone(),
        first: None,
        files,
        forgotten: false,
        watching: watching.clone(),
        outside: vec![
            Outside::new(FILE, "changes of it are not seen, and what is in force stays", vec![reading, watching]),
            Outside::new("the disk of the state folder", "what is decided may not survive a restart", vec![writing]),
            Outside::new("systemd", "it does not hear how lbd is doing", vec![telling]),
        ],
        changed: changed_sender,
        watcher: None,
        seen,
        in_force: (supervisor.snapshot().generation, start.content.clone()),
        read: start.content,
        kept: start.kept,
        answers,
        connected,
        checked: checked_sender,
        trying: None,
        installed,
        limits: Arc::clone(&limits),
        asked,
        parked: None,
        sockets,
        paths,
        keeper,
        job: job_sender,
        turned: 0,
        manager_asked: false,
        source: start.source,
    };
    let sources = Sources {
        signals,
        asks,
        changed,
        read,
        acknowledged,
        outcomes,
        job,
        written,
        looked,
        checked,
        held: None,
        signals_held: false,
    };
    let first = match left {
        None => {
            let no_worker = |e| format!("a worker cannot start: {e}");
            let workers = setups.into_iter().map(Worker::new).collect::<Result<Vec<_>, _>>().map_err(no_worker)?;
            effects.crew.begin(workers);
            let notes = machine::notes(&start.config, &effects.seen, &effects.source.name());
            let refused = start.refused.map(|(read, _)| read);
            effects.first = Some(refused.unwrap_or_else(|| FileRead::Right(Box::new(start.config), notes)));
            Event::ReloadAsked(ReloadBy::Start)
        }
        Some(left) => {
            effects.keep_in_force(); // what was being written when the other program ended may not be on the disk
            Event::TookOver(left.settle(setups, &supervisor, &mut effects))
        }
    };
    signals::ignore_others();
    tokio::spawn(children::reap_others());
    drop(ManuallyDrop::into_inner(control_door));
    signals::take_again();
    Ok(Prepared { sources, effects, supervisor, first, serving })
}

/// Has the supervisor decide on everything that has happened, and performs it.
fn digest(
    supervisor: &mut Supervisor,
    effects: &mut Effects,
    sources: &mut Sources,
    events: &mut VecDeque<Event>,
) -> Option<Exit> {
    while let Some(event) = events.pop_front() {
        if matches!(event, Event::Frozen(_)) {
            // What nobody has heard when another program is executed is lost.
            let probes = effects.prober.arrived(Instant::now()).into_iter().map(told_by_probe);
            let earlier: Vec<Event> = probes.chain(std::iter::from_fn(|| sources.arrived(effects))).collect();
            if !earlier.is_empty() {
                events.push_front(event);
                earlier.into_iter().rev().for_each(|earlier| events.push_front(earlier));
                continue;
            }
        }
        for action in supervisor.handle(now(), event) {
            if let Some(exit) = effects.perform(action, events) {
                return Some(exit);
            }
        }
    }
    None
}

/// As the sockets of a configuration will have it once they are bound.
fn set_aside(limits: &Limits, config: &Config, workers: usize) {
    let addresses = config.listeners.values().flat_map(|listener| &listener.bind);
    let sockets = addresses.map(|address| if matches!(address, Address::Ip(_)) { workers } else { 1 }).sum();
    let backends = config.pools.values().map(|pool| pool.backends.len()).sum();
    limits.set_aside(workers, sockets, most_probes(backends, limits.descriptors()));
}

fn warn_of_few(limits: &Limits, descriptors: u64) {
    if limits.most() < FEW {
        warn!(
            descriptors,
            sessions = limits.most(),
            "beside what workers and listeners need there are descriptors for few sessions; raise LimitNOFILE= (ulimit -n)"
        );
    }
}

fn worker_count(asked: Workers) -> usize {
    match asked {
        Workers::Count(n) => n.get(),
        Workers::Auto => thread::available_parallelism().map_or(1, NonZeroUsize::get),
    }
}

fn now() -> Now {
    Now { at: Instant::now(), micros: proxy::monotonic_micros(), wall: SystemTime::now() }
}
