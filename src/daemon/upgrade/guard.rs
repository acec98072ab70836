//! The way on and the way back: executes a program in place of this one, and holds a door open to the predecessor for as long
//! as a successor is taking over. Whatever ends the successor then (a panic, a crash, an exit, an error, a second without
//! getting there) executes the predecessor again, by its descriptor and with the same record; until the take-over is settled
//! nobody has touched a session. One of the three files with `unsafe`.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The last argument but one of who is to take over. It is not for people, and never among `--help`.
const TAKE_OVER: &str = "--takeover";
/// How long a successor may take. A program that is built for finding errors is slower by far.
const PATIENCE: Duration = if cfg!(debug_assertions) { Duration::from_secs(3) } else { Duration::from_secs(1) };
/// What ends a process without asking it.
const FATAL: [Signal; 5] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT];

/// The way back is open.
static OPEN: AtomicBool = AtomicBool::new(false);
static PREDECESSOR: OnceLock<Predecessor> = OnceLock::new();
/// What handled fatal signals before.
static BEFORE: OnceLock<Vec<(Signal, SigAction)>> = OnceLock::new();

/// What is needed to be the predecessor again.
struct Predecessor {
    program: RawFd,
    record: RawFd,
}

/// What a process was called with that is to take over.
#[derive(Debug)]
pub struct Called {
    /// The record.
    pub record: File,
    /// Why the successor, which was to take over, did not: this is the predecessor again.
    pub failure: Option<String>,
    /// The predecessor's program; its descriptor goes when the take-over is settled.
    _program: OwnedFd,
}

/// Whether this process is to take over: then the way back is open from now on. To be called first of all.
pub fn called() -> Option<Called> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let [.., flag, what] = &arguments[..] else { return None };
    if flag != TAKE_OVER {
        return None;
    }
    let mut parts = what.to_str()?.splitn(3, ':');
    let (record, program) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let failure = parts.next().map(str::to_owned);
    if failure.is_none() {
        open(Predecessor { program, record });
    }
    // SAFETY: the predecessor has left these two open for us, and nobody else knows of them.
    let (record, program) = unsafe { (File::from_raw_fd(record), OwnedFd::from_raw_fd(program)) };
    Some(Called { record, failure, _program: program })
}

/// The arguments of the process as it was started first.
pub fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if let [.., flag, _] = &arguments[..]
        && flag == TAKE_OVER
    {
        arguments.truncate(arguments.len() - 2);
    }
    arguments
}

/// Executes a program in place of this one, which is to take over by this record. `program` is this one's. Both are to
/// be kept open. Returns only where the kernel refuses.
pub fn execute(target: &File, record: RawFd, program: RawFd) -> io::Error {
    match replaced_by(target, &format!("{record}:{program}")) {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn replaced_by(target: impl std::os::fd::AsFd, what: &str) -> io::Result<Infallible> {
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
    let ours = [OsString::from(TAKE_OVER), OsString::from(what)];
    let arguments: Vec<CString> = arguments().into_iter().chain(ours).map(text).collect::<io::Result<_>>()?;
    let variable = |(name, value): (OsString, OsString)| {
        text(OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat()))
    };
    let environment: Vec<CString> = std::env::vars_os().map(variable).collect::<io::Result<_>>()?;
    nix::unistd::execveat(target, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH).map_err(io::Error::from)
}

/// Has an exec close these again. Those that are closed are passed over.
pub fn close_on_exec(descriptors: &[RawFd]) {
    for fd in descriptors {
        // SAFETY: it is borrowed for this call alone, which does not mind a closed one.
        let _ = fcntl(unsafe { BorrowedFd::borrow_raw(*fd) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// A descriptor that the record names. To be called once for each.
pub fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the predecessor has left it open for us; the record, which was verified, names each but once.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

impl Called {
    /// The take-over is done: the way back is closed, and what led there.
    pub fn settle(self) {
        close();
        drop(self);
    }
}

/// The reason itself; but while the way back is open, never returns: the predecessor goes on, and tells it.
pub fn or_back(why: String) -> String {
    if OPEN.swap(false, SeqCst) {
        go_back(&why);
    }
    why
}

fn open(predecessor: Predecessor) {
    let _ = PREDECESSOR.set(predecessor);
    OPEN.store(true, SeqCst);
    std::panic::set_hook(Box::new(|panic| {
        drop(or_back(format!("it panicked: {panic}").replace('\n', " ")));
        eprintln!("{panic}");
    }));
    // SAFETY: the function is one of this program, which ends with the process.
    unsafe { nix::libc::atexit(exited) };
    // On a stack of its own: the other one may be what has run out.
    let flags = SaFlags::SA_NODEFER | SaFlags::SA_ONSTACK;
    let handler = SigAction::new(SigHandler::Handler(crashed), flags, SigSet::empty());
    // SAFETY: the handler does nothing but execute another program, or leave.
    let taken = FATAL.iter().filter_map(|signal| Some((*signal, unsafe { sigaction(*signal, &handler) }.ok()?)));
    let _ = BEFORE.set(taken.collect());
    let watch = thread::Builder::new().name("lbd-guard".into()).spawn(|| {
        thread::sleep(PATIENCE);
        or_back(format!("it had not taken over within {} s", PATIENCE.as_secs()))
    });
    if let Err(e) = watch {
        or_back(format!("no thread could watch over it: {e}"));
    }
}

fn close() {
    OPEN.store(false, SeqCst);
    let _ = std::panic::take_hook();
    for (signal, before) in BEFORE.get().into_iter().flatten() {
        // SAFETY: it was so before: Rust's own handler, which tells of a stack that has run out, or none.
        let _ = unsafe { sigaction(*signal, before) };
    }
}

extern "C" fn exited() {
    or_back("it ended before it had taken over".into());
}

/// Allocates, which a handler should not: a crash within the allocator may hang here. Then the guard's thread goes back.
extern "C" fn crashed(signal: nix::libc::c_int) {
    let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
    if OPEN.load(SeqCst) {
        or_back(format!("it crashed ({name})"));
    }
    // SAFETY: always allowed.
    unsafe { nix::libc::_exit(128 + signal) };
}

fn go_back(why: &str) -> ! {
    if let Some(predecessor) = PREDECESSOR.get() {
        // SAFETY: it was left open for this, and stays so until the take-over is settled.
        let program = unsafe { BorrowedFd::borrow_raw(predecessor.program) };
        let what = format!("{}:{}:{why}", predecessor.record, predecessor.program);
        let Err(e) = replaced_by(program, &what);
        eprintln!("lbd: {why}; and its predecessor cannot be executed again: {e}");
    }
    // SAFETY: always allowed. No exit handler is to come back here.
    unsafe { nix::libc::_exit(1) }
}

/// The program that this process runs, whatever is at its path by now.
///
/// # Errors
/// There is no /proc, or no descriptor left.
pub fn own_program() -> io::Result<File> {
    File::open("/proc/self/exe")
}

/// Gives the process its name: one executed by its descriptor is called by that number.
pub fn take_name(name: &CStr) {
    let _ = nix::sys::prctl::set_name(name);
}
