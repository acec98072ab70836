//! Carries log events from whoever logs to a thread of its own that writes them: natively to journald where
//! systemd connected stderr to it, else as lines on stderr, with priorities where systemd started the process. The queue between is bounded: who logs never waits,
//! and what finds no room is counted and the count logged. How a record looks is up to `line` and `journal`.

mod journal;
mod line;

pub use journal::is_stderr as is_stderr_the_journal;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

use super::signals::leave_to_others;
use crate::config::LogLevel;
use journal::Journal;
pub use line::{moment, timestamp};

/// Records that may wait to be written; of a few hundred bytes each, as a rule.
const QUEUE: usize = 4096;
/// The longest text of a record, in bytes. Longer ones are cut: a datagram to journald holds some 200 KiB.
const MAX_TEXT: usize = 16 * 1024;

/// The running log. Clones are handles of the same one.
#[derive(Clone)]
pub struct Logging {
    level: Arc<AtomicU8>,
    lost: Arc<AtomicU64>,
    queue: SyncSender<Item>,
    /// Writes past the queue: the last words.
    direct: fn(&Record),
}

/// What was logged, detached from whoever logged it.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    at: SystemTime,
    level: Level,
    /// The place in the code; `None` for what the log itself has to say.
    origin: Option<&'static Metadata<'static>>,
    message: String,
    fields: Vec<(&'static str, String)>,
}

enum Item {
    /// Boxed, because a queue has room for all it may hold from the first moment.
    Record(Box<Record>),
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts the log of the process: from now on every `tracing` event from `level` up is written.
///
/// # Errors
/// Where no thread can be had.
pub fn start(level: LogLevel) -> io::Result<Logging> {
    let (logging, dispatch) = if is_stderr_the_journal() {
        let journal = || {
            let mut journal = Journal::open();
            move |record: &Record| journal.write(record)
        };
        Logging::writing(level, journal, journal::write_last)?
    } else if is_of_systemd() {
        Logging::writing(level, || to_systemd, |record| drop(to_systemd(record)))?
    } else {
        Logging::writing(level, to_stderr, |record| drop(to_stderr()(record)))?
    };
    // A second start in one process (tests) leaves the first log in place.
    let _ = tracing::dispatcher::set_global_default(dispatch);
    Ok(logging)
}

/// Whether systemd started this very process, with a stderr that is no journal: a file, or the kernel's log.
fn is_of_systemd() -> bool {
    let started = std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    (started || std::env::var_os("NOTIFY_SOCKET").is_some()) && !io::stderr().is_terminal()
}

fn to_systemd(record: &Record) -> io::Result<()> {
    io::stderr().write_all(journal::prefixed_line(record).as_bytes())
}

fn to_stderr() -> impl FnMut(&Record) -> io::Result<()> {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    move |record| io::stderr().write_all(line::of(record, colour).as_bytes())
}

impl Logging {
    /// A log, and what has to be told of events. `writer` is made on the writing thread: that too may wait.
    fn writing<W: FnMut(&Record) -> io::Result<()>>(
        level: LogLevel,
        writer: impl FnOnce() -> W + Send + 'static,
        direct: fn(&Record),
    ) -> io::Result<(Self, Dispatch)> {
        let (queue, records) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("lbd-log".into()).spawn(move || {
            leave_to_others();
            write_all(&records, &counter, writer());
        })?;
        let logging = Self { level: Arc::new(AtomicU8::new(rank(level))), lost, queue, direct };
        let dispatch = Dispatch::new(registry().with(logging.clone()));
        Ok((logging, dispatch))
    }

    /// Logs from `level` up from now on.
    pub fn set_level(&self, level: LogLevel) {
        // Relaxed: an event that is filtered by the old level a moment longer harms nothing.
        self.level.store(rank(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Waits until everything logged so far is written, but no longer than `patience`. Tells whether it was.
    pub fn flush_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, written) = sync_channel(1);
        loop {
            match self.queue.try_send(Item::Flush(done.clone())) {
                Ok(()) => break,
                Err(TrySendError::Full(_)) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                Err(_) => return false,
            }
        }
        written.recv_timeout(deadline.saturating_duration_since(Instant::now())) != Err(RecvTimeoutError::Timeout)
    }

    /// Writes `text` as an error after everything logged so far, even where the log is stuck. For the reason of a
    /// failed start, just before the process exits; takes at most half a second.
    pub fn last_words(&self, text: &str) {
        self.flush_within(Duration::from_millis(200));
        let (direct, record) = (self.direct, Arc::new(Record::new(Level::ERROR, text.into())));
        let (done, written) = sync_channel(1);
        let its_record = Arc::clone(&record);
        let write = move || {
            direct(&its_record);
            let _ = done.send(());
        };
        // On a thread, because stderr may be stuck as well. That there is none left may be the very reason.
        match thread::Builder::new().spawn(write) {
            Ok(_) => drop(written.recv_timeout(Duration::from_millis(300))),
            Err(_) => direct(&record),
        }
    }

    fn passes(&self, metadata: &Metadata<'_>) -> bool {
        severity(metadata.level()) <= self.level.load(Ordering::Relaxed)
    }
}

/// The writing thread. Ends when the last handle is gone.
fn write_all(queue: &Receiver<Item>, lost: &AtomicU64, mut write: impl FnMut(&Record) -> io::Result<()>) {
    while let Ok(item) = queue.recv() {
        match item {
            Item::Record(record) if write(&record).is_err() => {
                lost.fetch_add(1, Ordering::Relaxed);
                continue; // nor could it be told now
            }
            Item::Record(_) => {}
            Item::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let count = lost.swap(0, Ordering::Relaxed);
        if count > 0 {
            let text = format!(
                "{count} log events were left out: they could not be written, or came faster than they could be"
            );
            if write(&Record::new(Level::WARN, text)).is_err() {
                lost.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

// Events alone: lbd has no spans.
impl<S: Subscriber> Layer<S> for Logging {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.passes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.passes(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level.load(Ordering::Relaxed) {
            0 => LevelFilter::ERROR,
            1 => LevelFilter::WARN,
            2 => LevelFilter::INFO,
            3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = Record::new(*event.metadata().level(), String::new());
        record.origin = Some(event.metadata());
        event.record(&mut record);
        if self.queue.try_send(Item::Record(record.into())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Record {
    fn new(level: Level, message: String) -> Self {
        Self { at: SystemTime::now(), level, origin: None, message, fields: Vec::new() }
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = String::from(value);
        if text.len() > MAX_TEXT {
            let end = (0..=MAX_TEXT).rev().find(|&end| text.is_char_boundary(end));
            text.truncate(end.unwrap_or(0));
            text.push('…');
        }
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push((name, text)),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn rank(level: LogLevel) -> u8 {
    match level {
        LogLevel::Error => 0,
        LogLevel::Warn => 1,
        LogLevel::Info => 2,
        LogLevel::Debug => 3,
        LogLevel::Trace => 4,
    }
}

fn severity(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};
    use tracing::dispatcher::with_default;

    const LONG: Duration = Duration::from_secs(10);

    fn collecting(level: LogLevel) -> (Logging, Dispatch, Receiver<Record>) {
        let (seen, records) = channel();
        let write = move |r: &Record| seen.send(r.clone()).map_err(io::Error::other);
        let (log, dispatch) = Logging::writing(level, || write, |_| {}).unwrap();
        (log, dispatch, records)
    }

    /// A log whose writer stands still until the sender is dropped.
    fn stuck(direct: fn(&Record)) -> (Logging, Dispatch, Receiver<Record>, Sender<()>) {
        let (seen, records) = channel();
        let (release, gate) = channel::<()>();
        let write = move |r: &Record| {
            let _ = gate.recv();
            seen.send(r.clone()).map_err(io::Error::other)
        };
        let (log, dispatch) = Logging::writing(LogLevel::Info, || write, direct).unwrap();
        (log, dispatch, records, release)
    }

    #[test]
    fn an_event_is_written_with_its_fields() {
        let (_log, dispatch, records) = collecting(LogLevel::Info);
        with_default(&dispatch, || {
            tracing::warn!(listener = "web", client = %"10.0.0.7:5", bytes = 7, "a session {}", "ended");
        });
        let record = records.recv_timeout(LONG).unwrap();
        assert_eq!((record.level, record.message.as_str()), (Level::WARN, "a session ended"));
        let fields = [("listener", "web"), ("client", "10.0.0.7:5"), ("bytes", "7")];
        assert_eq!(record.fields, fields.map(|(name, value)| (name, value.to_string())));
        assert_eq!(record.origin.unwrap().target(), module_path!());
    }

    #[test]
    fn the_level_can_be_changed_while_it_runs() {
        let (log, dispatch, records) = collecting(LogLevel::Error);
        with_default(&dispatch, || {
            for (level, passing) in [
                (LogLevel::Error, vec!["error"]),
                (LogLevel::Info, vec!["error", "warn", "info"]),
                (LogLevel::Trace, vec!["error", "warn", "info", "debug", "trace"]),
                (LogLevel::Debug, vec!["error", "warn", "info", "debug"]),
                (LogLevel::Warn, vec!["error", "warn"]),
            ] {
                log.set_level(level);
                tracing::error!("error");
                tracing::warn!("warn");
                tracing::info!("info");
                tracing::debug!("debug");
                tracing::trace!("trace");
                assert!(log.flush_within(LONG));
                assert_eq!(records.try_iter().map(|r| r.message).collect::<Vec<_>>(), passing, "{level:?}");
            }
        });
    }

    #[test]
    fn a_stuck_log_holds_up_nobody_and_counts_what_it_lost() {
        let (log, dispatch, records, release) = stuck(|_| {});
        let (few, many) = (3, QUEUE + 100);
        with_default(&dispatch, || {
            for n in 0..many {
                tracing::info!("{n}");
            }
        });
        drop(release);
        assert!(log.flush_within(LONG));
        let records: Vec<_> = records.try_iter().map(|r| r.message).collect();
        let written = records.iter().filter(|m| m.parse::<usize>().is_ok()).count();
        // One may be in the writer's hand, beside those that queue.
        assert!((QUEUE..=QUEUE + few).contains(&written), "{written}");
        let lost: usize = records.iter().filter_map(|m| m.strip_suffix(line_of_loss())?.parse::<usize>().ok()).sum();
        assert_eq!(written + lost, many);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_something_can_be() {
        let (seen, records) = channel();
        let mut deaf = 3;
        let write = move |r: &Record| {
            deaf -= i32::from(deaf > 0);
            if deaf > 0 {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                seen.send(r.message.clone()).map_err(io::Error::other)
            }
        };
        let (log, dispatch) = Logging::writing(LogLevel::Info, || write, |_| {}).unwrap();
        with_default(&dispatch, || (0..4).for_each(|n| tracing::info!("{n}")));
        assert!(log.flush_within(LONG));
        let lost = format!("2{}", line_of_loss());
        assert_eq!(records.try_iter().collect::<Vec<_>>(), ["2", &lost, "3"]);
    }

    fn line_of_loss() -> &'static str {
        " log events were left out: they could not be written, or came faster than they could be"
    }

    #[test]
    fn a_flush_of_a_stuck_log_is_bounded() {
        let (log, dispatch, _records, _release) = stuck(|_| {});
        let started = Instant::now();
        with_default(&dispatch, || tracing::info!("in the writer's hand"));
        assert!(!log.flush_within(Duration::from_millis(20)));
        with_default(&dispatch, || (0..QUEUE + 10).for_each(|n| tracing::info!("{n}")));
        assert!(!log.flush_within(Duration::from_millis(20)));
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn the_last_words_of_a_failed_start_come_last() {
        static WRITTEN: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());
        let write = |r: &Record| WRITTEN.lock().unwrap().push((r.level, r.message.clone()));
        let queued = move |r: &Record| {
            write(r);
            Ok(())
        };
        let (log, dispatch) = Logging::writing(LogLevel::Error, move || queued, write).unwrap();
        with_default(&dispatch, || tracing::error!("first"));
        log.last_words("0.0.0.0:80 is in use");
        let expected = [(Level::ERROR, "first".into()), (Level::ERROR, "0.0.0.0:80 is in use".into())];
        assert_eq!(*WRITTEN.lock().unwrap(), expected);
    }

    #[test]
    fn the_last_words_of_a_failed_start_are_written_when_the_log_is_stuck() {
        static WRITTEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let (log, dispatch, _records, _release) = stuck(|r| WRITTEN.lock().unwrap().push(r.message.clone()));
        with_default(&dispatch, || (0..QUEUE + 10).for_each(|n| tracing::info!("{n}")));
        log.last_words("0.0.0.0:80 is in use");
        assert_eq!(*WRITTEN.lock().unwrap(), ["0.0.0.0:80 is in use"]);
    }

    #[test]
    fn the_last_words_are_given_up_when_nothing_can_be_written() {
        let (log, dispatch, _records, _release) = stuck(|_| {
            loop {
                thread::park()
            }
        });
        with_default(&dispatch, || tracing::info!("in the writer's hand"));
        let started = Instant::now();
        log.last_words("0.0.0.0:80 is in use");
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn a_text_without_end_is_cut() {
        let (_log, dispatch, records) = collecting(LogLevel::Info);
        with_default(&dispatch, || tracing::info!("{}", "é".repeat(MAX_TEXT)));
        let message = records.recv_timeout(LONG).unwrap().message;
        assert!(message.len() <= MAX_TEXT + '…'.len_utf8() && message.ends_with("é…"));
    }
}
