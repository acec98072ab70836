//! What asks file systems and name services on behalf of the main thread: reads the configuration file, looks up the group that it
//! names, gives the control socket another mode. On a thread, one thing after the other, for each of them may hang.

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::sync::mpsc;
use tracing::error;

use super::event::FileRead;
use super::signals::leave_to_others;
use super::stall::Calls;
use crate::config::{Config, Control};
use crate::control::socket::{self, Permissions};

/// The longest file that is read, in bytes; one byte more tells the parser that it is too long.
const MOST_READ: u64 = 1024 * 1024 + 1;
/// Jobs that may wait: one read, for the supervisor asks for one at a time, and what came of the last one.
const JOBS: usize = 4;

/// What came of reading a file, and what it holds.
pub type Read = (FileRead, Vec<u8>);

enum Job {
    Read(PathBuf),
    Permit(Permissions, Control),
}

/// The thread that asks.
#[derive(Debug)]
pub struct Files {
    jobs: SyncSender<Job>,
}

impl Files {
    /// Begins it; `calls` shows what it is at. What is read comes in at the receiver.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(calls: Calls) -> io::Result<(Self, mpsc::Receiver<Read>)> {
        Self::start_with(calls, read_and_look_up)
    }

    fn start_with(calls: Calls, read: fn(&Path) -> Read) -> io::Result<(Self, mpsc::Receiver<Read>)> {
        let (jobs, to_do) = sync_channel(JOBS);
        let (tell, told) = mpsc::channel(1);
        thread::Builder::new().name("lbd-files".into()).spawn(move || {
            leave_to_others();
            work(&to_do, &calls, read, &tell);
        })?;
        Ok((Self { jobs }, told))
    }

    /// Reads and checks a file; false where too much waits already.
    pub fn read(&self, path: &Path) -> bool {
        self.jobs.try_send(Job::Read(path.to_owned())).is_ok()
    }

    /// Gives the control socket another mode and group.
    pub fn permit(&self, socket: Permissions, control: Control) {
        if let Err(TrySendError::Full(_)) = self.jobs.try_send(Job::Permit(socket, control)) {
            error!("the control socket keeps its mode and group: what is asked for them does not answer");
        }
    }
}

fn work(jobs: &Receiver<Job>, calls: &Calls, read: fn(&Path) -> Read, tell: &mpsc::Sender<Read>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Read(path) => {
                let _ = tell.blocking_send(calls.make(|| read(&path))); // the daemon may have ended
            }
            Job::Permit(socket, control) => {
                if let Err(e) = calls.make(|| socket.set(control.mode, control.group.as_deref())) {
                    error!("{e}");
                }
            }
        }
    }
}

/// Everything that can fail is to fail before the swap.
fn read_and_look_up(path: &Path) -> Read {
    match read_file(path) {
        (FileRead::Right(config), content) => match socket::may_permit(config.control.group.as_deref()) {
            Ok(()) => (FileRead::Right(config), content),
            Err(e) => (FileRead::Unreadable(e.to_string()), content),
        },
        read => read,
    }
}

/// Reads and checks a file; returns its content too.
pub fn read_file(path: &Path) -> Read {
    let name = path.display().to_string();
    match read_some(path) {
        Ok(content) => match Config::parse(&content) {
            Ok(config) => (FileRead::Right(Box::new(config)), content),
            Err(problems) => (FileRead::Wrong(name, problems), content),
        },
        Err(e) => {
            let mend = match e.kind() {
                ErrorKind::NotFound => "; create it, or name another with --config",
                ErrorKind::PermissionDenied => "; let the user that lbd runs as read it",
                _ => "",
            };
            (FileRead::Unreadable(format!("{name}: {e}{mend}")), Vec::new())
        }
    }
}

fn read_some(path: &Path) -> io::Result<Vec<u8>> {
    // A FIFO or a device would keep the reader for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "is no regular file"));
    }
    let mut content = Vec::new();
    fs::File::open(path)?.take(MOST_READ).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    static AWAY: (Mutex<bool>, Condvar) = (Mutex::new(true), Condvar::new());

    /// A file on a file system that is away.
    fn hangs(_: &Path) -> Read {
        drop(AWAY.1.wait_while(AWAY.0.lock().unwrap(), |away| *away).unwrap());
        (FileRead::Unreadable("it is back".into()), Vec::new())
    }

    #[test]
    fn a_file_that_hangs_keeps_nobody_but_its_thread() {
        let (files, mut told) = Files::start_with(Calls::default(), hangs).unwrap();
        // The first is at work; whatever is asked for beyond what may wait is refused at once.
        let asked = (0..20).filter(|_| files.read(Path::new("/away"))).count();
        assert!((JOBS..20).contains(&asked), "{asked}");
        assert!(told.try_recv().is_err());
        *AWAY.0.lock().unwrap() = false;
        AWAY.1.notify_all();
        for _ in 0..asked {
            assert!(matches!(told.blocking_recv(), Some((FileRead::Unreadable(_), _))));
        }
    }
}
