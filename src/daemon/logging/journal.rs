//! Hands records to journald: natively with their fields through tracing-journald, or with a priority in front
//! through the stream that systemd made our stderr. Runs on the log's own thread, because both wait while
//! journald stands still. Which of the two a record takes is decided here, where both are known.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use tracing::field::Value;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Layered, SubscriberExt};
use tracing_subscriber::{Registry, registry};

use super::{Record, line};

/// The most fields of an event that are handed on; `tracing` itself had this limit for long.
const FIELDS: usize = 32;

/// How long journald usually takes to read a line, ten times over.
const LINGER: Duration = Duration::from_millis(100);

/// journald, where systemd connected stderr to it.
pub(super) struct Journal {
    /// Absent where the socket does not answer: in a container that has the stream alone, say.
    native: Option<Layered<tracing_journald::Layer, Registry>>,
}

impl Journal {
    /// Waits while journald stands still and its queue is full.
    pub(super) fn open() -> Self {
        let native = tracing_journald::layer().ok().map(|layer| registry().with(set_up(layer)));
        Self { native }
    }

    /// What the log itself has to say is no event, and takes the stream.
    pub(super) fn write(&self, record: &Record) {
        match (&self.native, record.origin) {
            (Some(native), Some(origin)) => replay(record, origin, native),
            _ => write_to_stream(record),
        }
    }
}

/// Whether systemd connected stderr to the journal. JOURNAL_STREAM is inherited by children whose stderr goes
/// elsewhere, so it must name the very file that stderr is (systemd.exec(5)).
pub(super) fn is_stderr() -> bool {
    let stderr = || std::fs::File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok();
    std::env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stderr().is_some_and(|file| stream == format!("{}:{}", file.dev(), file.ino())))
}

/// Writes by the stream, because tracing-journald drops what it cannot send without a word; then waits a moment,
/// because journald asks `/proc` which unit a message is of: of a process that has gone it cannot be told.
pub(super) fn write_last(record: &Record) {
    write_to_stream(record);
    thread::sleep(LINGER);
}

/// Writes to the stream that is our stderr. It has a buffer of its own, which works where the socket does not.
fn write_to_stream(record: &Record) {
    let _ = io::stderr().write_all(prefixed(record).as_bytes());
}

fn set_up(layer: tracing_journald::Layer) -> tracing_journald::Layer {
    layer.with_field_prefix(Some("LBD".into())).with_syslog_identifier("lbd".into()).with_priority_mappings(
        PriorityMappings {
            error: priority(Level::ERROR),
            warn: priority(Level::WARN),
            info: priority(Level::INFO),
            debug: priority(Level::DEBUG),
            trace: priority(Level::TRACE),
        },
    )
}

/// syslog(3). tracing-journald's own choice would make a notice of each `info`.
fn priority(level: Level) -> Priority {
    match level {
        Level::ERROR => Priority::Error,
        Level::WARN => Priority::Warning,
        Level::INFO => Priority::Informational,
        Level::DEBUG | Level::TRACE => Priority::Debug,
    }
}

/// Repeats the event that a record was made of. `journalctl` shows the message alone, so the fields are in it
/// too; by themselves they are there to be searched.
///
/// Goes to `to` directly: as the thread's default it would have a say in which events are let through everywhere.
fn replay(record: &Record, origin: &'static Metadata<'static>, to: &impl Subscriber) {
    let text = line::text(record);
    let value = |name: &str| match name {
        "message" => Some(&text as &dyn Value),
        _ => record.fields.iter().find(|(n, _)| *n == name).map(|(_, value)| value as &dyn Value),
    };
    let fields: Vec<_> = origin.fields().iter().collect();
    let Some(first) = fields.first() else { return };
    let mut values = [(first, None); FIELDS];
    for (place, field) in values.iter_mut().zip(&fields) {
        *place = (field, value(field.name()));
    }
    // Not in tracing's documents, which have no other way to an event; tracing-subscriber relies on it too.
    to.event(&Event::new(origin, &origin.fields().value_set(&values)));
}

/// The priority in front of each line (sd-daemon(3)).
fn prefixed(record: &Record) -> String {
    let priority = char::from(priority(record.level) as u8);
    line::text(record).lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogLevel;
    use crate::daemon::logging::Logging;
    use std::sync::{Arc, Mutex};
    use std::time::SystemTime;
    use tracing::field::{Field, Visit};
    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::Context;

    /// Stands where tracing-journald does, and keeps what it is given.
    #[derive(Clone, Default)]
    struct StandIn(Arc<Mutex<Vec<Given>>>);

    type Given = (Level, &'static str, Option<u32>, Vec<(String, String)>);

    impl<S: Subscriber> Layer<S> for StandIn {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let (mut seen, origin) = (Seen(Vec::new()), event.metadata());
            event.record(&mut seen);
            self.0.lock().unwrap().push((*origin.level(), origin.target(), origin.line(), seen.0));
        }
    }

    struct Seen(Vec<(String, String)>);

    impl Visit for Seen {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.push((field.name().into(), value.into()));
        }
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            panic!("{field} would be quoted in the journal: {value:?}");
        }
    }

    #[test]
    fn journald_is_given_the_event_as_it_was() {
        let stand_in = StandIn::default();
        let native = registry().with(stand_in.clone());
        let write = move |r: &Record| replay(r, r.origin.unwrap(), &native);
        let (log, dispatch) = Logging::writing(LogLevel::Info, || write, |_| {}).unwrap();
        let (backend, absent) = ("b\n2", None::<u64>);
        let here = line!() + 2;
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::warn!(target: "lbd::session", pool = "web", backend, bytes = 7, absent, "turned {}", "down");
        });
        assert!(log.flush_within(Duration::from_secs(10)));
        let fields = [
            ("message", "turned down pool=web backend=\"b\\n2\" bytes=7"),
            ("pool", "web"),
            ("backend", "b\n2"),
            ("bytes", "7"),
        ];
        let mut given = std::mem::take(&mut *stand_in.0.lock().unwrap());
        given[0].3.sort_by_key(|(name, _)| fields.iter().position(|(n, _)| n == name));
        let fields = fields.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
        assert_eq!(given, [(Level::WARN, "lbd::session", Some(here), fields)]);
    }

    #[test]
    fn each_level_has_its_syslog_priority() {
        for (level, lines) in [
            (Level::ERROR, "<3>a\n<3>    b backend=\"b\\n2\"\n"),
            (Level::WARN, "<4>a\n<4>    b backend=\"b\\n2\"\n"),
            (Level::INFO, "<6>a\n<6>    b backend=\"b\\n2\"\n"),
            (Level::DEBUG, "<7>a\n<7>    b backend=\"b\\n2\"\n"),
        ] {
            let fields = vec![("backend", "b\n2".to_string())];
            let record = Record { at: SystemTime::UNIX_EPOCH, level, origin: None, message: "a\nb".into(), fields };
            assert_eq!(prefixed(&record), lines);
        }
    }
}
