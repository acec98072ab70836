//! Tells systemd how the daemon is doing (sd_notify(3)). Says nothing where no NOTIFY_SOCKET is set.
//! When to say what is the supervisor's; the one rule kept here is what each message consists of. Never waits: what a manager that
//! does not read has no room for is said later, the last of each kind. Takes what systemd passes at the start, too. One of the five
//! files with `unsafe`.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::now;
use super::stall::Calls;
use crate::words::Address;

/// How the names of sockets begin that are in the store. No socket unit is called so: the name of a unit, which is what its
/// sockets are called, has no slash.
const OURS: &str = "lbd/";
/// The longest name that systemd takes.
const LONGEST: usize = 255;
/// Descriptors a message; the kernel takes 253.
const BATCH: usize = 128;

/// When to try again to say what there was no room for: the first time, and at most.
const SOON: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_secs(1);
/// Messages that may wait: one of each kind, and those about the store. What finds no room is dropped, the oldest first.
const PENDING: usize = 1024;

/// What a message is about: of each kind the last one counts, but for sockets to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Ready,
    Status,
    Reloading,
    Stopping,
    Extend,
    Watchdog,
    Store(String),
    Forget(String),
}

/// What could not be said yet.
#[derive(Debug)]
struct Message {
    kind: Kind,
    text: String,
    descriptors: Vec<OwnedFd>,
}

#[derive(Debug, Default)]
struct Pending {
    messages: VecDeque<Message>,
    /// When it is tried again, and how long was waited last.
    next: Option<(Instant, Duration)>,
}

/// The service manager's ear.
///
/// The variables stay in the environment: a binary executed in place needs them too.
#[derive(Debug, Default)]
pub struct Notifier {
    /// Open for life: it must not fail for want of descriptors.
    socket: Option<UnixDatagram>,
    manager: Option<UnixAddr>,
    pending: RefCell<Pending>,
    /// That the manager is waited for.
    calls: Calls,
    /// So that a manager that does not listen is logged once, not each second.
    complained: AtomicBool,
}

impl Notifier {
    /// A notifier for the NOTIFY_SOCKET of the environment. `calls` shows when the manager does not read.
    pub fn new(calls: Calls) -> Self {
        let manager = std::env::var_os("NOTIFY_SOCKET").and_then(|path| match path.as_bytes() {
            [b'@', name @ ..] => UnixAddr::new_abstract(name).ok(),
            path => UnixAddr::new(path).ok(),
        });
        let socket = manager.and_then(|_| UnixDatagram::unbound().ok());
        Self { socket, manager, calls, ..Self::default() }
    }

    /// Start or reload is over. Must follow every [`Notifier::reloading`], of a refused reload too, or the
    /// unit stays in "reloading" until it is killed.
    pub fn ready(&self, status: &str) {
        self.tell(Kind::Ready, format!("READY=1\nSTATUS={}\n", one_line(status)));
    }

    /// The line that `systemctl status` shows.
    pub fn status(&self, text: &str) {
        self.tell(Kind::Status, format!("STATUS={}\n", one_line(text)));
    }

    /// A reload begins.
    pub fn reloading(&self) {
        // systemd 253 and later take RELOADING=1 only with the time at which it was said.
        self.tell(Kind::Reloading, format!("RELOADING=1\nMONOTONIC_USEC={}\n", now().micros));
    }

    /// The stop begins.
    pub fn stopping(&self, status: &str) {
        self.tell(Kind::Stopping, format!("STOPPING=1\nSTATUS={}\n", one_line(status)));
    }

    /// The start or stop may take `more` from now; to be repeated at least twice within that time.
    pub fn extend_timeout(&self, more: Duration) {
        let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        self.tell(Kind::Extend, format!("EXTEND_TIMEOUT_USEC={micros}\n"));
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// Puts listening sockets of an address into the store of the unit, where they survive this process. Those that are
    /// there already stay; what finds no room is dropped there without a word.
    ///
    /// # Errors
    /// They cannot be sent: the next restart will have to bind the address anew.
    pub fn store(&self, name: &str, sockets: &[OwnedFd]) -> io::Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        for batch in sockets.chunks(BATCH) {
            // FDPOLL=0: or systemd takes a socket out as soon as it looks broken to it.
            let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
            self.say(Kind::Store(name.to_owned()), text, batch)?;
        }
        Ok(())
    }

    /// Takes everything of this name out of the store.
    pub fn forget(&self, name: &str) {
        self.tell(Kind::Forget(name.to_owned()), format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
    }

    /// Every part of the process turns.
    pub fn watchdog(&self) {
        self.tell(Kind::Watchdog, "WATCHDOG=1\n".to_owned());
    }

    /// How often to call [`Notifier::watchdog`]: half of what systemd tolerates. `None`: it does not watch.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| limit / 2)
    }

    /// Says what there was no room for, where it is time; returns when to call it again, where anything is left.
    pub fn catch_up(&self, now: Instant) -> Option<Instant> {
        let mut pending = self.pending.borrow_mut();
        let (at, waited) = pending.next?;
        if at > now {
            return Some(at);
        }
        while let Some(Message { text, descriptors, .. }) = pending.messages.front() {
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match self.send(text, &descriptors) {
                Err(e) if is_full(&e) => {
                    let wait = (waited * 2).min(LATEST);
                    pending.next = Some((now + wait, wait));
                    return Some(now + wait);
                }
                told => self.complain(told),
            }
            pending.messages.pop_front();
        }
        pending.next = None;
        self.calls.end();
        None
    }

    fn tell(&self, kind: Kind, text: String) {
        let told = self.say(kind, text, &[]);
        self.complain(told);
    }

    /// Says it now, or after what waits already.
    fn say(&self, kind: Kind, text: String, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut pending = self.pending.borrow_mut();
        if pending.messages.is_empty() {
            match self.send(&text, descriptors) {
                Err(e) if is_full(&e) => {
                    pending.next = Some((Instant::now() + SOON, SOON));
                    self.calls.begin();
                }
                told => return told,
            }
        }
        let descriptors = descriptors.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<_>>()?;
        pending.push(Message { kind, text, descriptors });
        Ok(())
    }

    fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let fresh = if self.socket.is_none() { Some(UnixDatagram::unbound()?) } else { None };
        let Some(socket) = self.socket.as_ref().or(fresh.as_ref()) else { return Ok(()) };
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg(socket.as_raw_fd(), &[IoSlice::new(text.as_bytes())], rights, flags, Some(manager))?;
        Ok(())
    }

    fn complain(&self, told: io::Result<()>) {
        if let Err(error) = told
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::debug!(%error, "systemd cannot be told of the daemon's state");
        }
    }
}

impl Pending {
    /// In place of what it makes void.
    fn push(&mut self, message: Message) {
        self.messages.retain(|earlier| match (&earlier.kind, &message.kind) {
            (Kind::Store(_), Kind::Store(_)) => true,
            (Kind::Store(stored), Kind::Forget(forgotten)) => stored != forgotten,
            // Each has the status with it.
            (Kind::Status, Kind::Ready | Kind::Stopping) => false,
            (earlier, now) => earlier != now,
        });
        if self.messages.len() >= PENDING {
            self.messages.pop_front();
        }
        self.messages.push_back(message);
    }
}

fn is_full(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR | Errno::ETOOMANYREFS))
}

/// What systemd has passed to the process: sockets of its own socket units, and what is in the store of the unit, each
/// with its name. The variables that tell of them are taken out of the environment: who is executed in place
/// of this process has its own.
///
/// To be called first of all. A second call finds nothing.
///
/// # Errors
/// The variables contradict each other, or the process has threads already.
pub fn passed() -> std::io::Result<Vec<(OwnedFd, String)>> {
    // They may be for the process that started us, as in `sh -c "lbd & wait"` (sd_listen_fds(3)).
    let for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if !for_us || std::env::var_os("LISTEN_FDS").is_none() {
        return Ok(Vec::new());
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(std::io::Error::other(
            "descriptors that systemd passes are to be taken before a thread is started",
        ));
    }
    // SAFETY: there is but this thread, as was seen; nobody else reads the environment.
    let all = unsafe { sd_notify::listen_fds_with_names_and_unset_env() }?;
    // SAFETY: systemd opened them for this process (LISTEN_PID was checked), and nobody else knows of them.
    Ok(all.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// Under which name the sockets of an address are stored. A hint for people: what a socket is, it says itself.
pub fn store_name(address: &Address) -> String {
    let mut name = String::from(OURS);
    for byte in address.to_string().bytes() {
        match byte {
            b':' => name.push('_'), // FDNAME= must not have one
            b'_' | b'%' | 0..=b' ' | 0x7f.. => _ = write!(name, "%{byte:02x}"),
            byte => name.push(char::from(byte)),
        }
    }
    if name.len() > LONGEST {
        // The socket itself says what it is; the name must only be another for another address.
        let rest = fnv(name.split_off(LONGEST - 17).as_bytes());
        _ = write!(name, "~{rest:016x}");
    }
    name
}

/// FNV-1a: the same in every version of this program, which a successor relies on.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// True of a name that [`store_name`] may have made.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

/// A line break would begin another assignment: a file name could say MAINPID=1.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\0'], " ")
}

#[cfg(test)]
mod tests;
