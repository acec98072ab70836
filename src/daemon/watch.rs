//! Notices that the configuration file has other content than what was last read of it, however it came about:
//! written in place, renamed over, a symlink swapped, deleted and made anew. Reads and compares on a thread of its
//! own, for a file system may hang. What to do about the change is up to the supervisor.

mod chain;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::signals::beginning;
use super::stall::Calls;
use chain::Chain;

/// Bytes of the file that are compared; of what is beyond them only how many there are.
const COMPARED: u64 = 1024 * 1024;

/// When to look at the file.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Quiet time after an event before the file is read: who writes it is then likely done.
    pub quiet: Duration,
    /// The longest to wait for quiet while events keep coming.
    pub longest: Duration,
    /// Time between two looks without an event. They find what no event tells of (a network file system, a bind
    /// mount), and everything where no inotify instance is to be had.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(200), longest: Duration::from_secs(2), poll: Duration::from_secs(5) }
    }
}

/// Watches one file until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

impl Watcher {
    /// Watches the file at `path`, of which `content` has been read so far. Each time it is seen to be another one,
    /// and then once, `changed` gets a message; where one is still waiting there, that one tells of this change too. `calls` shows when it is at the file system.
    ///
    /// # Errors
    /// Where no thread can be had, or `path` is relative and there is no working directory.
    pub fn start(
        path: &Path,
        content: &[u8],
        changed: mpsc::Sender<()>,
        timing: Timing,
        calls: Calls,
    ) -> io::Result<Self> {
        Self::start_with(path, content, changed, timing, listen, calls)
    }

    fn start_with(
        path: &Path,
        content: &[u8],
        changed: mpsc::Sender<()>,
        timing: Timing,
        listen: Listen,
        calls: Calls,
    ) -> io::Result<Self> {
        let mut lookout = Lookout::new(path, content, changed, timing, listen)?;
        lookout.calls = calls;
        let shared = Arc::clone(&lookout.shared);
        let thread = thread::Builder::new().name("lbd-watch".into());
        beginning(|| thread.spawn(move || lookout.run()))?;
        Ok(Self { shared })
    }

    /// To be told whenever the file has been read, for whatever reason and whether or not it was then accepted: the same
    /// content is not reported again. Returns whether `content` differs from what was read before.
    pub fn has_read(&self, content: &[u8]) -> bool {
        let mut state = self.shared.state();
        state.reported = None;
        let content = Content::of(content);
        std::mem::replace(&mut state.read, content) != content
    }

    /// What an operator who asks should know: that there is no file to be read any more.
    pub fn complaint(&self) -> Option<String> {
        self.shared.state().gone.clone()
    }

    /// Lets go of what the kernel has for it, and returns when it has been let go of, but not later than after `patience`. The
    /// kernel takes up to some 30 ms to dismiss an inotify instance; who executes another program while it has one waits for that.
    pub fn pause(&self, patience: Duration) {
        let mut state = self.shared.state();
        state.paused = true;
        self.shared.wake.notify_all();
        drop(self.shared.wake.wait_timeout_while(state, patience, |state| state.ears > 0));
    }

    /// Watches again, and looks at once: whatever has changed meanwhile is reported.
    pub fn resume(&self) {
        self.shared.state().paused = false;
        self.shared.wake.notify_all();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.wake.notify_all();
    }
}

/// What the watching thread, notify's thread and the supervisor share. Held for moments only.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    stirred: bool,
    /// notify said that it can no longer be relied upon.
    deaf: bool,
    stop: bool,
    /// Nothing is to be watched for now.
    paused: bool,
    /// Inotify instances that notify has for us.
    ears: u32,
    chain: Chain,
    /// What the supervisor read last.
    read: Content,
    /// What it was told of and has not read yet.
    reported: Option<Content>,
    /// Why the file cannot be read, in an operator's words.
    gone: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes what tells `Shared` of events.
type Listen = fn(Arc<Shared>) -> notify::Result<RecommendedWatcher>;

fn listen(shared: Arc<Shared>) -> notify::Result<RecommendedWatcher> {
    let listening = Listening::to(shared);
    notify::recommended_watcher(move |event: notify::Result<Event>| {
        let mut state = listening.0.state();
        match event {
            Ok(event) => {
                // Reading and opening change nothing, and we do both ourselves.
                let idle =
                    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
                let ours = event.paths.iter().any(|path| state.chain.concerns(path));
                state.stirred |= event.need_rescan() || (ours && !idle);
            }
            Err(_) => (state.deaf, state.stirred) = (true, true),
        }
        if state.stirred {
            listening.0.wake.notify_all();
        }
    })
}

/// What notify keeps until it has closed its inotify instance.
struct Listening(Arc<Shared>);

impl Listening {
    fn to(shared: Arc<Shared>) -> Self {
        shared.state().ears += 1;
        Self(shared)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.state().ears -= 1;
        self.0.wake.notify_all();
    }
}

/// The watching thread.
struct Lookout {
    path: PathBuf,
    changed: mpsc::Sender<()>,
    timing: Timing,
    shared: Arc<Shared>,
    listen: Listen,
    ear: Option<RecommendedWatcher>,
    /// To the file system, which may hang.
    calls: Calls,
    /// What has been logged already, and is not to be logged again while it lasts.
    said_deaf: bool,
    said_gone: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Woken {
    Stirred,
    Time,
    Stop,
}

impl Lookout {
    fn new(path: &Path, content: &[u8], changed: mpsc::Sender<()>, timing: Timing, listen: Listen) -> io::Result<Self> {
        let state = State {
            stirred: false,
            deaf: false,
            stop: false,
            paused: false,
            ears: 0,
            chain: Chain::default(),
            read: Content::of(content),
            reported: None,
            gone: None,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() });
        let path = std::path::absolute(path)?;
        Ok(Self {
            path,
            changed,
            timing,
            shared,
            listen,
            ear: None,
            calls: Calls::default(),
            said_deaf: false,
            said_gone: false,
        })
    }

    fn run(&mut self) {
        loop {
            // In this order: what changes after the watches are set is told by them.
            let calls = self.calls.clone();
            if calls
                .make(|| {
                    self.watch();
                    self.look()
                })
                .is_err()
                || self.wait() == Woken::Stop
            {
                return;
            }
        }
    }

    /// Sets the watches anew along the path as it is now: a watch is of an inode, not of a name.
    fn watch(&mut self) {
        let outcome = self.try_watch();
        if let Err(error) = &outcome
            && !self.said_deaf
        {
            let (path, every) = (self.path.display(), self.timing.poll);
            tracing::warn!(%path, %error, "the kernel does not tell of every change of the file; looking every {every:?}");
        }
        self.said_deaf = outcome.is_err();
    }

    fn try_watch(&mut self) -> notify::Result<()> {
        if self.shared.state().paused {
            return Ok(());
        }
        if std::mem::take(&mut self.shared.state().deaf) {
            self.ear = None;
        }
        let ear = match &mut self.ear {
            Some(ear) => ear,
            ear => ear.insert((self.listen)(Arc::clone(&self.shared))?),
        };
        let mut outcome = Ok(());
        // What is swapped while the watches are being set has the way walked again; it cannot go on for ever.
        for _ in 0..4 {
            let chain = Chain::of(&self.path);
            let before = std::mem::replace(&mut self.shared.state().chain, chain.clone());
            for path in &before.watched {
                let _ = ear.unwatch(path); // the kernel may have done so already
            }
            outcome = Ok(());
            for path in &chain.watched {
                match ear.watch(path, RecursiveMode::NonRecursive) {
                    Err(error) if !is_gone(&error) => outcome = Err(error),
                    _ => {}
                }
            }
            if Chain::of(&self.path) == chain {
                break;
            }
        }
        outcome
    }

    /// Reads the file and reports it if it is news. An error: nobody listens any more.
    fn look(&mut self) -> Result<(), ()> {
        let content = match Content::at(&self.path) {
            Ok(content) => content,
            Err(error) => {
                let path = self.path.display();
                self.shared.state().gone = Some(format!(
                    "the configuration file {path} cannot be read ({error}); what is in force stays, and a start would fail"
                ));
                if !std::mem::replace(&mut self.said_gone, true) {
                    tracing::warn!(%path, %error, "the configuration file cannot be read; what is in force stays");
                }
                return Ok(());
            }
        };
        if std::mem::take(&mut self.said_gone) {
            tracing::info!(path = %self.path.display(), "the configuration file is back");
        }
        let mut state = self.shared.state();
        state.gone = None;
        let news = content != state.read && Some(content) != state.reported;
        state.reported = (content != state.read).then_some(content);
        if news && let Err(TrySendError::Closed(())) = self.changed.try_send(()) {
            return Err(());
        }
        Ok(())
    }

    /// Waits for an event and then for quiet, or for the time of the next look; but while it is paused, for the end of that.
    fn wait(&mut self) -> Woken {
        let shared = Arc::clone(&self.shared);
        let sleep = |state, longest| {
            let quiet = |state: &mut State| !state.stirred && !state.stop && !state.paused;
            let woken = shared.wake.wait_timeout_while(state, longest, quiet);
            woken.unwrap_or_else(PoisonError::into_inner).0
        };
        let mut state = sleep(shared.state(), self.timing.poll);
        if state.paused {
            state = self.pause(state, &shared);
        }
        if !state.stirred && !state.stop {
            return Woken::Time;
        }
        let end = Instant::now() + self.timing.longest;
        while state.stirred && !state.stop {
            state.stirred = false;
            state = sleep(state, self.timing.quiet.min(end.saturating_duration_since(Instant::now())));
            if state.paused {
                state = self.pause(state, &shared);
            } else if Instant::now() >= end {
                state.stirred = false;
            }
        }
        if state.stop { Woken::Stop } else { Woken::Stirred }
    }

    /// Lets go of the watches until it is to go on. Then whatever came meanwhile has stirred, so that who still writes has quiet time.
    fn pause<'a>(&mut self, state: MutexGuard<'a, State>, shared: &'a Shared) -> MutexGuard<'a, State> {
        drop(state);
        self.ear = None;
        let waited = shared.wake.wait_while(shared.state(), |state| state.paused && !state.stop);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.stirred = true;
        state
    }
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// What a file holds, for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    length: u64,
    hash: u64,
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        let compared = &bytes[..bytes.len().min(COMPARED as usize)];
        let mut hasher = DefaultHasher::new();
        compared.hash(&mut hasher);
        Self { length: bytes.len() as u64, hash: hasher.finish() }
    }

    fn at(path: &Path) -> io::Result<Self> {
        // Asked before it is opened: opening a FIFO would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = Vec::new();
        file.take(COMPARED).read_to_end(&mut bytes)?;
        let content = Self::of(&bytes);
        Ok(if length > COMPARED { Self { length, ..content } } else { content })
    }
}

#[cfg(test)]
mod tests;
