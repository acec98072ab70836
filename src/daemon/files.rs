//! What asks file systems and name services on behalf of the main thread: reads the configuration file, looks up the group that it
//! names, gives the control socket another mode. On a thread, one thing after the other, for each of them may hang.

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::error;

use super::event::FileRead;
use super::folder::Folder;
use super::in_force::{self, InForce};
use super::machine;
use super::signals::leave_to_others;
use super::stall::{Calls, within};
use crate::config::{Config, Control};
use crate::control::socket::Permissions;

/// The longest file that is read, in bytes; one byte more tells the parser that it is too long.
pub const MOST_READ: u64 = 1024 * 1024 + 1;
/// Jobs that may wait: one read, for the supervisor asks for one at a time, and what came of the last one.
const JOBS: usize = 4;

/// How long the start waits for the file, and for what is kept.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let (read, content) = read_file(path);
    (machine::looked_at(read, &content, &path.display().to_string()), content)
}

/// What the daemon is to start with: the file, or what was last in force of it, where that is kept and the file cannot be served by.
///
/// # Errors
/// There is neither; says why the file is not, and what it holds.
pub fn read_at_start(path: &Path) -> Result<First, Read> {
    let kept = Folder::of_service().map(|folder| {
        let its = std::path::absolute(path).unwrap_or_else(|_| path.to_owned()); // as it is kept
        within(PATIENCE, "lbd-kept", move || in_force::recall(&folder, &its)).ok().flatten().unwrap_or(Ok(None))
    });
    let (kept, odd) = match kept {
        Some(Ok(kept)) => (kept, None),
        Some(Err(odd)) => (None, Some(odd)),
        None => (None, None),
    };
    let look: fn(&Path) -> Read = if kept.is_some() { read_and_look_up } else { read_file };
    let its = path.to_owned();
    let read = within(PATIENCE, "lbd-read", move || look(&its)).ok().flatten();
    let seconds = PATIENCE.as_secs();
    let late = || {
        (
            FileRead::Unreadable(format!("{}: not read within {seconds} s; is its file system there?", path.display())),
            Vec::new(),
        )
    };
    match (read.unwrap_or_else(late), kept) {
        ((FileRead::Right(config, _), content), kept) => {
            let kept = kept.filter(|kept| kept.content != content); // the same would be of no help
            Ok(First { config: *config, content, refused: None, kept })
        }
        (refused, Some(kept)) => {
            let InForce { config, content } = kept.clone();
            Ok(First { config, content, refused: Some(refused), kept: Some(kept) })
        }
        ((FileRead::Unreadable(why), content), None) => {
            let odd = odd.map_or_else(String::new, |odd| format!("\n{odd}"));
            Err((FileRead::Unreadable(why + &odd), content))
        }
        (refused, None) => Err(refused),
    }
}

/// What the daemon starts with.
#[derive(Debug)]
pub struct First {
    /// The file's, or what is kept.
    pub config: Config,
    /// The bytes it was read from.
    pub content: Vec<u8>,
    /// Why it is not the file's.
    pub refused: Option<Read>,
    /// What is kept.
    pub kept: Option<InForce>,
}

/// Reads and checks a file; returns its content too.
pub fn read_file(path: &Path) -> Read {
    let name = path.display().to_string();
    match read_some(path) {
        Ok(content) => match Config::parse(&content) {
            Ok(config) => (FileRead::Right(Box::new(config), Vec::new()), content),
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
