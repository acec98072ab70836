//! What an upgrade needs of the kernel beside what lbd has: tasks and descriptors. They are had before anything stands still and kept
//! until the exec lets go of them, so that a successor finds them free, and a predecessor that is executed again too. That one
//! moreover persists in asking for what it lacks all the same: nobody but it can serve.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use super::guard::{self, Turn};
use super::misbehave;
use crate::daemon::signals;

/// Tasks that a successor needs beside those that its predecessor had: who watches over it, and some in reserve, for a newer version may
/// have threads that this one has not.
const TASKS: usize = 6;
/// Descriptors: the record, both programs, the reason of a failure, what the loader opens, and some in reserve.
const DESCRIPTORS: usize = 16;
/// Enough for a thread that only waits.
const STACK: usize = 64 * 1024;
/// How long the predecessor waits before it asks the kernel again.
const PAUSE: Duration = Duration::from_millis(10);
/// How long it asks for what nothing works without; the stand-in serves meanwhile.
pub const LONG: Duration = Duration::from_secs(60);
/// And for what there is something instead of.
pub const SHORT: Duration = Duration::from_millis(300);

/// Tasks and descriptors that are kept for a successor.
#[derive(Debug, Default)]
pub struct Reserve {
    _tasks: Tasks,
    _descriptors: Vec<OwnedFd>,
}

impl Reserve {
    /// For a change from so many workers to so many. What the stand-in needs is tried, too, and free again when this returns.
    ///
    /// # Errors
    /// The process, its user or its control group is at a limit; says at which, and how to mend it.
    pub fn of(workers: usize, next: usize) -> Result<Self, String> {
        let more = next.saturating_sub(workers);
        // Another number of workers has epoll descriptors of its own; more of them have more inboxes.
        let descriptors = DESCRIPTORS + if next == workers { 0 } else { next + more };
        let null = || misbehave::refused().and_then(|()| File::open("/dev/null")).map(OwnedFd::from);
        let descriptors = (0..descriptors).map(|_| null()).collect::<io::Result<Vec<_>>>().map_err(|e| {
            let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
            format!(
                "an upgrade needs {descriptors} descriptors more than lbd has open, and the kernel refuses one ({e}; the limit \
                 is {most}); raise LimitNOFILE= of the unit (ulimit -n), or ask again with fewer sessions"
            )
        })?;
        let (stand_in, tasks) = (workers + 1, more + TASKS);
        let tasks = Tasks::begun(stand_in).and_then(|stand_ins| {
            let tasks = Tasks::begun(tasks)?;
            drop(stand_ins);
            Ok(tasks)
        });
        let tasks = tasks.map_err(|e| {
            format!(
                "an upgrade needs {} tasks more than lbd has, and the kernel refuses one ({e}); raise TasksMax= of the unit \
                 (pids.max of its control group) or the user's limit of processes (ulimit -u)",
                stand_in + more + TASKS
            )
        })?;
        Ok(Self { _tasks: tasks, _descriptors: descriptors })
    }
}

/// Threads that only wait until they are let go.
#[derive(Debug, Default)]
struct Tasks {
    threads: Vec<JoinHandle<()>>,
    over: Option<Sender<()>>,
}

impl Tasks {
    fn begun(count: usize) -> io::Result<Self> {
        let (over, waiting) = channel::<()>();
        let waiting: Arc<Mutex<Receiver<()>>> = Arc::new(Mutex::new(waiting));
        let mut tasks = Self { threads: Vec::with_capacity(count), over: Some(over) };
        for _ in 0..count {
            misbehave::refused()?;
            let waiting = Arc::clone(&waiting);
            let waits = move || {
                let _ = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv(); // ends with the sender
            };
            let thread = thread::Builder::new().name("lbd-reserve".into()).stack_size(STACK);
            let begun = signals::beginning(|| thread.spawn(waits));
            tasks.threads.push(begun?);
        }
        Ok(tasks)
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.over = None;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// The process, its user or the machine has run out of something.
fn is_shortage(e: &io::Error) -> bool {
    let kinds = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN, Errno::ENOBUFS, Errno::ENOSPC];
    e.raw_os_error().is_some_and(|errno| kinds.contains(&Errno::from_raw(errno)))
}

/// What an attempt comes to. A predecessor that is executed again makes it anew for so long where the kernel lacks something: there
/// is nobody to go back to, and the stand-in serves. Anybody else makes it once.
///
/// # Errors
/// That of the last attempt.
pub fn persist<T>(patience: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + patience;
    loop {
        let came_to = misbehave::refused().and_then(|()| attempt());
        let again = matches!(&came_to, Err(e) if is_shortage(e)) && guard::turn() == Some(Turn::Again);
        if !again || Instant::now() >= until {
            return came_to;
        }
        guard::extend(PAUSE);
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tasks() -> usize {
        let names = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
            fs::read_to_string(task.ok()?.path().join("comm")).ok() // it may have gone
        });
        names.filter(|name| name.trim() == "lbd-reserve").count()
    }

    #[test]
    fn tasks_and_descriptors_are_kept_for_as_long_as_they_are_wanted() {
        let reserve = Reserve::of(3, 5).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while tasks() < 2 + TASKS && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1)); // each gives itself its name once it runs
        }
        assert_eq!((tasks(), reserve._descriptors.len()), (2 + TASKS, DESCRIPTORS + 5 + 2));
        drop(reserve);
        assert_eq!(Reserve::of(4, 4).unwrap()._descriptors.len(), DESCRIPTORS);
        assert_eq!(Reserve::of(4, 2).unwrap()._descriptors.len(), DESCRIPTORS + 2);
    }

    #[test]
    fn nobody_persists_who_has_somebody_to_go_back_to() {
        let mut attempts = 0;
        let came_to: io::Result<()> = persist(LONG, || {
            attempts += 1;
            Err(Errno::EMFILE.into())
        });
        assert_eq!((came_to.unwrap_err().raw_os_error(), attempts), (Some(Errno::EMFILE as i32), 1));
    }
}
