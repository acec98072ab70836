//! A record as journald takes it, one datagram a record (systemd.io/JOURNAL_NATIVE_PROTOCOL), and whether
//! journald reads our stderr at all. Written by hand: tracing-journald drops a record that cannot be sent without
//! a word, which would lose the last error of a failed start, and its socket's path cannot be set in a test.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use tracing::Level;

use super::{Record, line};

/// journald's native socket.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    pub(super) fn open() -> io::Result<Self> {
        Self::at("/run/systemd/journal/socket".into())
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::unbound()?, path })
    }

    /// Sends by path each time, not by a connection: journald may be restarted. Waits where its queue is full.
    pub(super) fn send(&self, record: &Record) -> io::Result<()> {
        self.socket.send_to(&datagram(record), &self.path).map(drop)
    }
}

/// Whether systemd connected stderr to the journal. JOURNAL_STREAM is inherited by children whose stderr goes
/// elsewhere, so it must name the very file that stderr is (systemd.exec(5)).
pub(super) fn is_stderr() -> bool {
    let stderr = || std::fs::File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok();
    std::env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stderr().is_some_and(|file| stream == format!("{}:{}", file.dev(), file.ino())))
}

/// The record for journald's stream, which is our stderr: the priority in front (sd-daemon(3)), of each line.
pub(super) fn line(record: &Record) -> String {
    let priority = priority(record.level);
    line::text(record).lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

/// `journalctl` shows MESSAGE alone, so the fields are in it too; by themselves they are there to be searched.
fn datagram(record: &Record) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(512);
    put(&mut datagram, "MESSAGE", &line::text(record));
    put(&mut datagram, "PRIORITY", priority(record.level));
    put(&mut datagram, "SYSLOG_IDENTIFIER", "lbd");
    put(&mut datagram, "TARGET", record.target);
    for (name, value) in &record.fields {
        put(&mut datagram, &field_name(name), value);
    }
    datagram
}

/// The length-prefixed form, which takes any value, line breaks too.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    datagram.extend_from_slice(name.as_bytes());
    datagram.push(b'\n');
    datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

/// `listener` becomes LBD_LISTENER. journald takes A-Z, 0-9 and _, 64 characters (journal-fields(7)).
fn field_name(name: &str) -> String {
    let upper = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    "LBD_".chars().chain(upper).take(64).collect()
}

/// syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn record(level: Level, message: &str) -> Record {
        let fields = vec![("backend", "b\n2".to_string()), ("connect.time", "1ms".to_string())];
        Record { at: SystemTime::UNIX_EPOCH, level, target: "lbd::daemon", message: message.into(), fields }
    }

    /// Reads a datagram as journald does.
    fn parsed(mut datagram: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !datagram.is_empty() {
            let (name, rest) = datagram.split_at(datagram.iter().position(|b| *b == b'\n').unwrap());
            let (length, rest) = rest[1..].split_at(8);
            let (value, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            assert_eq!(rest[0], b'\n');
            fields.push((String::from_utf8(name.into()).unwrap(), String::from_utf8(value.into()).unwrap()));
            datagram = &rest[1..];
        }
        fields
    }

    #[test]
    fn journald_receives_priority_message_and_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journald = UnixDatagram::bind(&path).unwrap();
        Journal::at(path).unwrap().send(&record(Level::INFO, "turned up")).unwrap();
        let mut room = [0; 4096];
        let n = journald.recv(&mut room).unwrap();
        let expected = [
            ("MESSAGE", "turned up backend=\"b\\n2\" connect.time=1ms"),
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "lbd"),
            ("TARGET", "lbd::daemon"),
            ("LBD_BACKEND", "b\n2"),
            ("LBD_CONNECT_TIME", "1ms"),
        ];
        assert_eq!(parsed(&room[..n]), expected.map(|(name, value)| (name.to_string(), value.to_string())));
    }

    #[test]
    fn a_record_that_journald_cannot_take_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::at(folder.path().join("nobody")).unwrap();
        assert!(journal.send(&record(Level::ERROR, "cannot start")).is_err());
    }

    #[test]
    fn each_level_has_its_syslog_priority() {
        for (level, line) in [
            (Level::ERROR, "<3>a\n<3>    b backend=\"b\\n2\" connect.time=1ms\n"),
            (Level::WARN, "<4>a\n<4>    b backend=\"b\\n2\" connect.time=1ms\n"),
            (Level::INFO, "<6>a\n<6>    b backend=\"b\\n2\" connect.time=1ms\n"),
            (Level::DEBUG, "<7>a\n<7>    b backend=\"b\\n2\" connect.time=1ms\n"),
        ] {
            assert_eq!(super::line(&record(level, "a\nb")), line);
        }
    }
}
