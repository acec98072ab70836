//! Hands records to journald: natively with their fields, or with a priority in front through the stream that systemd made
//! our stderr. Runs on the log's own thread, because both wait while journald stands still. Which of the two a record
//! takes is decided here, where both are known.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use tracing::Level;

use super::{Record, line};
use crate::words::Happening;

/// Where journald takes records (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";
/// How long journald usually takes to read a line, ten times over.
const LINGER: Duration = Duration::from_millis(100);

/// journald, where systemd connected stderr to it.
pub(super) struct Journal {
    path: PathBuf,
    /// Absent where the socket does not answer: in a container that has the stream alone, say.
    native: Option<UnixDatagram>,
}

impl Journal {
    pub(super) fn open() -> Self {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), native: connected(path).ok() }
    }

    /// Waits while journald stands still and its queue is full.
    ///
    /// # Errors
    /// It takes the record by neither way.
    pub(super) fn write(&mut self, record: &Record) -> io::Result<()> {
        let bytes = datagram(record);
        self.send(&bytes).or_else(|_| write_to_stream(record))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(native) = &self.native {
            match native.send(bytes) {
                Ok(_) => return Ok(()),
                // Too long: another socket would not take it either.
                Err(e) if e.raw_os_error() == Some(Errno::EMSGSIZE as i32) => return Err(e),
                Err(_) => {}
            }
        }
        // It may have been made anew meanwhile, and then the stream is dead for good.
        self.native = None;
        self.native.insert(connected(&self.path)?).send(bytes).map(drop)
    }
}

fn connected(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// Whether systemd connected stderr to the journal. JOURNAL_STREAM is inherited by children whose stderr goes
/// elsewhere, so it must name the very file that stderr is (systemd.exec(5)).
pub fn is_stderr() -> bool {
    let stderr = || std::fs::File::from(io::stderr().as_fd().try_clone_to_owned().ok()?).metadata().ok();
    std::env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stderr().is_some_and(|file| stream == format!("{}:{}", file.dev(), file.ino())))
}

/// Writes by the stream, because tracing-journald drops what it cannot send without a word; then waits a moment,
/// because journald asks `/proc` which unit a message is of: of a process that has gone it cannot be told.
pub(super) fn write_last(record: &Record) {
    let _ = write_to_stream(record);
    thread::sleep(LINGER);
}

/// Writes to the stream that is our stderr. It has a buffer of its own, which works where the socket does not.
fn write_to_stream(record: &Record) -> io::Result<()> {
    io::stderr().write_all(prefixed(record).as_bytes())
}

/// A record as journald takes it (systemd.io/JOURNAL_NATIVE_PROTOCOL). `journalctl` shows the message alone, so the fields are
/// in it too; by themselves they are there to be searched.
fn datagram(record: &Record) -> Vec<u8> {
    let mut all = Vec::with_capacity(512);
    let mut put = |name: &str, value: &str| {
        all.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            all.push(b'\n');
            all.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            all.push(b'=');
        }
        all.extend_from_slice(value.as_bytes());
        all.push(b'\n');
    };
    put("MESSAGE", &line::text(record));
    put("PRIORITY", &priority(record.level).to_string());
    put("SYSLOG_IDENTIFIER", "lbd");
    if let Some(origin) = record.origin {
        put("TARGET", origin.target());
        if let (Some(file), Some(line)) = (origin.file(), origin.line()) {
            put("CODE_FILE", file);
            put("CODE_LINE", &line.to_string());
        }
    }
    for (name, value) in &record.fields {
        put(&format!("LBD_{}", name.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")), value);
    }
    let event = record.fields.iter().find(|(name, _)| *name == line::EVENT);
    if let Some(happening) = event.and_then(|(_, name)| Happening::from_name(name)) {
        put("MESSAGE_ID", happening.message_id());
    }
    all
}

/// syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The priority in front of each line (sd-daemon(3)).
fn prefixed(record: &Record) -> String {
    with_priority(record.level, &line::text(record))
}

/// The same for what is no journal, which does not know the time.
pub(super) fn prefixed_line(record: &Record) -> String {
    with_priority(record.level, &line::of(record, false))
}

fn with_priority(level: Level, text: &str) -> String {
    let priority = priority(level);
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogLevel;
    use crate::daemon::logging::Logging;
    use std::time::SystemTime;

    #[test]
    fn journald_is_given_the_event_with_its_fields_and_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let journald = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        let mut journal = Journal::at(&folder.path().join("socket"));
        let write = move |r: &Record| journal.write(r);
        let (log, dispatch) = Logging::writing(LogLevel::Info, || write, |_| {}).unwrap();
        let (backend, absent) = ("b\n2", None::<u64>);
        let here = line!() + 2;
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::warn!(event = "backend-down", pool = "web", backend, bytes = 7, absent, "turned {}", "down");
        });
        assert!(log.flush_within(Duration::from_secs(10)));
        let mut room = [0; 4096];
        let length = journald.recv(&mut room).unwrap();
        let wanted = format!(
            "MESSAGE=turned down backend=\"web/b\\n2\" bytes=7\nPRIORITY=4\nSYSLOG_IDENTIFIER=lbd\n\
             TARGET={}\nCODE_FILE={}\nCODE_LINE={here}\nLBD_EVENT=backend-down\nLBD_POOL=web\n\
             LBD_BACKEND\n\u{3}\0\0\0\0\0\0\0b\n2\nLBD_BYTES=7\nMESSAGE_ID={}\n",
            module_path!(),
            file!(),
            Happening::BackendDown.message_id()
        );
        assert_eq!(String::from_utf8_lossy(&room[..length]), wanted);
    }

    #[test]
    fn a_socket_made_anew_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut journal = Journal::at(&path);
        let record = Record {
            at: SystemTime::UNIX_EPOCH,
            level: Level::INFO,
            origin: None,
            message: "a".into(),
            fields: vec![],
        };
        for _ in 0..2 {
            let journald = UnixDatagram::bind(&path).unwrap();
            journal.send(&datagram(&record)).unwrap();
            assert!(journald.recv(&mut [0; 512]).unwrap() > 0);
            std::fs::remove_file(&path).unwrap();
        }
        assert!(journal.send(b"MESSAGE=nobody\n").is_err());
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

    #[test]
    fn a_file_in_place_of_the_journal_gets_the_time_too() {
        let (at, level, message) = (SystemTime::UNIX_EPOCH, Level::WARN, "a\nb".into());
        let record = Record { at, level, origin: None, message, fields: Vec::new() };
        assert_eq!(prefixed_line(&record), "<4>1970-01-01T00:00:00.000Z  WARN a\n<4>    b\n");
    }
}
