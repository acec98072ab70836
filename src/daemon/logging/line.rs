//! A record as a person reads it: one line with time, level, message and fields. Control characters are escaped,
//! so that no text from outside draws on the terminal or forges a line.

use std::fmt::Write;
use std::time::SystemTime;

use tracing::Level;

use super::Record;

/// The field that names a [`crate::words::Happening`]: for programs, and in no line.
pub(super) const EVENT: &str = "event";

/// The fields that name a backend: two for programs, and `pool/backend` in a line, as operators write it.
const POOL: &str = "pool";
const BACKEND: &str = "backend";

/// The line, with its line break.
pub(super) fn of(record: &Record, colour: bool) -> String {
    let (time, level) = (timestamp(record.at), record.level);
    let text = text(record);
    if colour {
        // Dim, and red, yellow, green or blue: SGR, ECMA-48.
        let hue = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            _ => 34,
        };
        format!("\x1b[2m{time}\x1b[0m \x1b[{hue}m{level:>5}\x1b[0m {text}\n")
    } else {
        format!("{time} {level:>5} {text}\n")
    }
}

/// The message with the fields after it. Further lines of a message are indented: none can pass for an event.
pub(super) fn text(record: &Record) -> String {
    let mut text = String::with_capacity(record.message.len() + 32 * record.fields.len());
    for c in record.message.trim_end().chars() {
        match c {
            '\n' => text.push_str("\n    "),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    let pool = record.fields.iter().find(|(name, _)| *name == POOL).map(|(_, value)| value.as_str());
    let whole = |backend: &str| pool.map_or_else(|| backend.to_owned(), |pool| format!("{pool}/{backend}"));
    let has_backend = record.fields.iter().any(|(name, _)| *name == BACKEND);
    for (name, value) in record.fields.iter().filter(|(name, _)| *name != EVENT && !(*name == POOL && has_backend)) {
        let value = &if *name == BACKEND { whole(value) } else { value.clone() };
        let plain = !value.is_empty() && !value.contains(|c: char| c.is_control() || matches!(c, ' ' | '"' | '='));
        // Writing to a String cannot fail.
        let _ = if plain { write!(text, " {name}={value}") } else { write!(text, " {name}={value:?}") };
    }
    text
}

/// A time as people and journals write it, in UTC.
pub fn timestamp(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "?".into(), |at| format!("{at:.3}"))
}

/// The time that [`timestamp`] wrote.
pub fn moment(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn record(message: &str, fields: &[(&'static str, &str)]) -> Record {
        Record {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_120),
            level: Level::INFO,
            origin: None,
            message: message.into(),
            fields: fields.iter().map(|(name, value)| (*name, value.to_string())).collect(),
        }
    }

    #[test]
    fn a_line_has_time_level_message_and_fields() {
        let record = record("backend is down", &[("pool", "web"), ("reason", "connect: connection refused")]);
        assert_eq!(
            of(&record, false),
            "2023-11-14T22:13:20.120Z  INFO backend is down pool=web reason=\"connect: connection refused\"\n"
        );
        assert_eq!(
            of(&record, true),
            "\x1b[2m2023-11-14T22:13:20.120Z\x1b[0m \x1b[32m INFO\x1b[0m \
             backend is down pool=web reason=\"connect: connection refused\"\n"
        );
    }

    #[test]
    fn no_text_forges_a_line_or_draws_on_the_terminal() {
        for (message, fields, shown) in [
            ("two problems:\na\nb\n", &[][..], "two problems:\n    a\n    b"),
            ("red \x1b[31m", &[], "red \\u{1b}[31m"),
            ("m", &[("k", "a\nb")], "m k=\"a\\nb\""),
            ("m", &[("k", "\x1b[31m")], "m k=\"\\u{1b}[31m\""),
            ("m", &[("pool", "web"), ("k", "v"), ("backend", "web-2")], "m k=v backend=web/web-2"),
            ("m", &[("k", ""), ("l", "a=b"), ("n", "10.0.0.7:80")], "m k=\"\" l=\"a=b\" n=10.0.0.7:80"),
        ] {
            assert_eq!(text(&record(message, fields)), shown);
        }
    }
}
