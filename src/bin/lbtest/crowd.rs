//! Many clients at once: `multiple` and `load`. Clients are tasks on one thread a core; each opens its connection, all
//! begin together, and each sends its next request when the last is done or (open loop) when one is due.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use crate::exchange::{close, connect, exchange};
use crate::fault::Fault;
use crate::interrupt::Interrupts;
use crate::pace::{self, Pace};
use crate::payload::Payload;
use crate::progress::Progress;
use crate::target::{Stream, Target};
use crate::verdict::Tally;

/// After a fault a client rests this long: a refusal takes microseconds, and counting millions of them helps nobody.
const REST: Duration = Duration::from_millis(10);

/// What the clients are to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom to connect to.
    pub target: Target,
    /// How many clients.
    pub clients: u32,
    /// Bytes a request.
    pub size: u64,
    /// For each of: the connect, the answer, the close.
    pub timeout: Duration,
    /// Whether connections outlive a request.
    pub connections: Connections,
    /// When it ends.
    pub until: Until,
    /// Requests a second of all clients together; `None`: as fast as answers come.
    pub rate: Option<u64>,
}

/// Whether a client keeps its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for all its requests, and a new one only after a fault.
    Kept,
    /// A new one for each request.
    New,
}

/// When the clients stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After so many requests of each.
    Requests(u32),
    /// After so long.
    Elapsed(Duration),
}

impl Until {
    fn is_timed(self) -> bool {
        matches!(self, Until::Elapsed(_))
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Run {
    /// The outcomes of all clients.
    pub tally: Tally,
    /// From the common start to the end: the last answer, or when the clients were told to stop if that was later.
    pub elapsed: Duration,
}

/// What the threads share.
struct Shared {
    plan: Plan,
    seed: u64,
    pace: Option<Arc<Pace>>,
    together: Barrier,
    start: OnceLock<Instant>,
    stop: AtomicBool,
    tallies: Vec<Mutex<Tally>>,
}

/// Runs the plan to its end. The first SIGINT or SIGTERM lets requests in flight finish; the second ends the process.
pub async fn run(plan: Plan) -> io::Result<Run> {
    let interrupts = Interrupts::new()?;
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get()).min(plan.clients as usize);
    // Every runtime before the first thread: a lack of descriptors is then an error here, not a missing thread.
    let runtimes = (0..threads).map(|_| Builder::new_current_thread().enable_all().build());
    let runtimes = runtimes.collect::<io::Result<Vec<_>>>()?;
    let shared = Arc::new(Shared {
        seed: seed(),
        pace: plan.rate.map(|rate| Arc::new(Pace::new(rate))),
        together: Barrier::new(plan.clients as usize + 1),
        start: OnceLock::new(),
        stop: AtomicBool::new(false),
        tallies: (0..threads).map(|_| Mutex::new(Tally::new())).collect(),
        plan,
    });
    // Each thread drops its sender when it is done; that closes the channel.
    let (running, all_done) = mpsc::channel(1);
    for (index, runtime) in runtimes.into_iter().enumerate() {
        let (shared, running) = (shared.clone(), running.clone());
        thread::Builder::new().name(format!("clients-{index}")).spawn(move || {
            runtime.block_on(work(&shared, index));
            drop(running);
        })?;
    }
    drop(running);

    let (stopped, not_sent) = conduct(&shared, interrupts, all_done).await?;
    let now = Instant::now();
    let mut tally = shared.total();
    tally.not_sent = not_sent;
    let end = stopped.map_or(now, |stopped| tally.last.map_or(stopped, |last| last.max(stopped)));
    Ok(Run { elapsed: end.saturating_duration_since(shared.start()), tally })
}

/// Starts all clients together, shows progress, and stops them in time. Returns when they were stopped, if they did not
/// end by themselves, and how many requests were due and never sent.
async fn conduct(
    shared: &Shared,
    mut interrupts: Interrupts,
    mut all_done: mpsc::Receiver<()>,
) -> io::Result<(Option<Instant>, u64)> {
    let mut progress = Progress::new(shared.plan.until);
    let (mut started, mut stopped, mut interrupted) = (false, None, false);
    let (mut pacing, mut not_sent) = (None, 0);
    let mut together = pin!(shared.together.wait());
    let mut seconds = interval(Duration::from_secs(1));
    let mut time_is_up = pin!(sleep(Duration::ZERO));
    loop {
        let stop = tokio::select! {
            biased;
            _ = &mut together, if !started => {
                started = true;
                pacing = shared.pace.clone().map(Pace::start).transpose()?;
                seconds.reset();
                if let Until::Elapsed(duration) = shared.plan.until {
                    time_is_up.set(sleep(duration.saturating_sub(shared.start().elapsed())));
                }
                false
            }
            _ = all_done.recv() => break,
            _ = interrupts.next() => {
                if interrupted {
                    std::process::exit(130);
                }
                interrupted = true;
                progress.stopping();
                true
            }
            _ = &mut time_is_up, if started && stopped.is_none() && shared.plan.until.is_timed() => true,
            _ = seconds.tick(), if started => {
                progress.second(&shared.total());
                false
            }
        };
        if stop {
            stopped.get_or_insert_with(Instant::now);
            shared.stop.store(true, Ordering::Relaxed);
            not_sent = pacing.take().map_or(not_sent, |pacing: pace::Running| pacing.stop());
        }
    }
    progress.end();
    Ok((stopped, not_sent))
}

/// One thread and its clients.
async fn work(shared: &Arc<Shared>, thread: usize) {
    let mut clients = JoinSet::new();
    for id in (thread as u32..shared.plan.clients).step_by(shared.tallies.len()) {
        clients.spawn(Client { id, thread, shared: shared.clone() }.run());
    }
    while clients.join_next().await.is_some() {}
}

struct Client {
    id: u32,
    thread: usize,
    shared: Arc<Shared>,
}

impl Client {
    async fn run(self) {
        let plan = &self.shared.plan;
        let kept = plan.connections == Connections::Kept;
        let mut connection = if kept { Some(self.connect().await) } else { None };
        self.shared.together.wait().await;
        self.shared.start();

        let mut request = 0;
        while let Some(due) = self.turn(request).await {
            let payload = Payload::made(self.shared.seed, self.id, request, plan.size);
            let opened = match connection.take() {
                Some(opened) => opened,
                None => self.connect().await,
            };
            match self.request(opened, &payload, due).await {
                Ok(stream) => connection = stream.map(Ok),
                Err(fault) => {
                    self.tally().failed(&fault, self.id, request);
                    sleep(REST).await;
                }
            }
            request = request.wrapping_add(1);
        }
        if let Some(Ok(stream)) = connection {
            let last = Payload::made(self.shared.seed, self.id, request, plan.size);
            if let Err(fault) = close(stream, &last, plan.timeout, |_| {}).await {
                self.tally().failed(&fault, self.id, request);
            }
        }
    }

    /// When the next request is due, at once in a closed loop; `None` when there is none any more.
    async fn turn(&self, request: u32) -> Option<Instant> {
        let over = match self.shared.plan.until {
            Until::Requests(count) => request >= count,
            Until::Elapsed(_) => false,
        };
        if over || self.shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        match &self.shared.pace {
            Some(pace) => pace.next().await,
            None => Some(Instant::now()),
        }
    }

    async fn connect(&self) -> Result<Stream, Fault> {
        let began = Instant::now();
        let stream = connect(&self.shared.plan.target, self.shared.plan.timeout).await?;
        self.tally().connected(began.elapsed());
        Ok(stream)
    }

    /// One request, and what is left of its connection.
    async fn request(
        &self,
        opened: Result<Stream, Fault>,
        payload: &Payload,
        due: Instant,
    ) -> Result<Option<Stream>, Fault> {
        self.tally().requests += 1;
        let mut stream = opened?;
        let timeout = self.shared.plan.timeout;
        exchange(&mut stream, payload, timeout, |_| {}).await?;
        let now = Instant::now();
        let left = match self.shared.plan.connections {
            Connections::Kept => Some(stream),
            Connections::New => {
                close(stream, payload, timeout, |_| {}).await?;
                None
            }
        };
        self.tally().answered(due, now);
        Ok(left)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.shared.tally(self.thread)
    }
}

impl Shared {
    // One lock a thread, taken by no other thread but once a second: it is never waited for.
    fn tally(&self, thread: usize) -> MutexGuard<'_, Tally> {
        self.tallies[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the first client began.
    fn start(&self) -> Instant {
        *self.start.get_or_init(Instant::now)
    }

    fn total(&self) -> Tally {
        let mut total = Tally::new();
        (0..self.tallies.len()).for_each(|thread| total.add(self.tally(thread).clone()));
        total
    }
}

/// Unlike between runs, so that two of them at the same target notice each other's answers.
fn seed() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (since_epoch.as_nanos() as u64) ^ (u64::from(std::process::id()) << 32)
}
