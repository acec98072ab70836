//! The way on and the way back: executes a program in place of this one, and holds a door open to the predecessor for as long
//! as a successor is taking over. Whatever ends the successor then (a panic, a crash, an exit, an error, a second without
//! getting there) executes the predecessor again, by its descriptor and with the same record; until the take-over is settled
//! nobody but a stand-in has touched a session. Going back is one system call that is prepared: it may follow on a heap in ruins.
//! One of the five files with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString, c_char};
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::reason::Line;
use super::{misbehave, record};

/// The last argument but one of who is to take over. It is not for people, and never among `--help`. With it comes where the
/// record is, this program, and a file for what goes wrong; and [`BACK`], where that has happened.
const TAKE_OVER: &str = "--takeover";
const BACK: &str = "back";
/// How long a successor may take. A program that is built for finding errors is slower by far.
const PATIENCE: Duration = if cfg!(debug_assertions) { Duration::from_secs(3) } else { Duration::from_secs(1) };
/// And how much longer for each MiB of the record; it takes a tenth of that.
const FOR_EACH_MIB: Duration = Duration::from_millis(100);
/// And for each backend of each worker beyond those that cost next to nothing; it takes a fifth of that.
const FOR_EACH_CELL: Duration = Duration::from_micros(if cfg!(debug_assertions) { 100 } else { 25 });
const USUAL: usize = 4000;
/// So many times as long has the predecessor that is executed again: behind it there is only a restart.
const LAST: u32 = 3;
/// How often, and after which pause, a predecessor is executed again that the kernel has no memory for just now.
const AT_LAST: usize = 500;
const MOMENT: Duration = Duration::from_millis(10);
/// What ends a process without asking it, and how that is told.
const FATAL: [(Signal, &str); 8] = [
    (Signal::SIGSEGV, "it crashed (SIGSEGV)"),
    (Signal::SIGBUS, "it crashed (SIGBUS)"),
    (Signal::SIGILL, "it crashed (SIGILL)"),
    (Signal::SIGFPE, "it crashed (SIGFPE)"),
    (Signal::SIGABRT, "it crashed (SIGABRT)"),
    (Signal::SIGSYS, "it did what it may not (SIGSYS)"),
    (Signal::SIGTRAP, "it crashed (SIGTRAP)"),
    (Signal::SIGXFSZ, "it wrote a file that is too large (SIGXFSZ)"),
];

/// Where the take-over is: nothing to go back from, or not any more.
const SHUT: u8 = 0;
/// Under way: whoever fails goes back, and whoever settles it shuts this way.
const OPEN: u8 = 1;
/// Somebody goes back. Who comes later waits for that; nothing is settled any more.
const TAKEN: u8 = 2;

static WAY: AtomicU8 = AtomicU8::new(SHUT);
/// There is none where this process is the predecessor again.
static PREDECESSOR: OnceLock<Predecessor> = OnceLock::new();
/// When who takes over began, and the microseconds that it may take.
static BEGUN: OnceLock<Instant> = OnceLock::new();
static PATIENT_FOR: AtomicU64 = AtomicU64::new(0);
/// What handled fatal signals before.
static BEFORE: OnceLock<Vec<(Signal, SigAction)>> = OnceLock::new();

/// What is needed to be the predecessor again.
struct Predecessor {
    ready: Ready,
    /// Where it finds why.
    why: RawFd,
    /// The signals that it is to find held, whoever goes back.
    held: SigSet,
}

/// An exec of which nothing is left but the call.
struct Ready {
    program: RawFd,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    _texts: Vec<CString>,
}

// SAFETY: the pointers are to texts that it owns and that nobody changes.
unsafe impl Send for Ready {}
// SAFETY: as above.
unsafe impl Sync for Ready {}

/// What a process was called with that is to take over.
#[derive(Debug)]
pub struct Called {
    /// The record.
    pub record: File,
    /// Why the successor, which was to take over, did not: this is the predecessor again.
    pub failure: Option<String>,
    /// The predecessor's program, and what went wrong; their descriptors go when the take-over is settled.
    others: [OwnedFd; 2],
}

impl Called {
    /// All three.
    pub fn descriptors(&self) -> [RawFd; 3] {
        let [program, why] = &self.others;
        [self.record.as_raw_fd(), program.as_raw_fd(), why.as_raw_fd()]
    }
}

/// Whether this process is to take over: then the way back is open from now on. To be called first of all.
///
/// # Errors
/// It is, but by nothing that lbd has left. Nothing must be begun then: whose the open descriptors are is not known.
pub fn called() -> Result<Option<Called>, String> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let [.., flag, what] = &arguments[..] else { return Ok(None) };
    if flag != TAKE_OVER {
        return Ok(None);
    }
    let strange = |why: String| format!("{TAKE_OVER} is for lbd itself, which leaves it to its successor: {why}");
    let (record, program, why, back) =
        numbers(what).ok_or_else(|| strange(format!("{} names no three descriptors", what.display())))?;
    // SAFETY: it is borrowed for these calls alone, which do not mind a closed one.
    let [left, of_program, of_why] = [record, program, why].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    record::is_sealed(left).map_err(strange)?;
    for fd in [of_program, of_why] {
        fcntl(fd, FcntlArg::F_GETFD).map_err(|_| strange(format!("descriptor {} is not open", fd.as_raw_fd())))?;
    }
    // SAFETY: the predecessor has left these open for us, as the record is a sealed one; nobody else knows of them.
    let (file, others) =
        unsafe { (File::from_raw_fd(record), [program, why].map(|number| OwnedFd::from_raw_fd(number))) };
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let patience = PATIENCE + FOR_EACH_MIB * u32::try_from(size >> 20).unwrap_or(u32::MAX >> 8);
    if back {
        WAY.store(OPEN, SeqCst);
        watch_over(misbehave::patience(Turn::Again).unwrap_or(patience) * LAST);
        let failure = Some(told(&others[1]));
        return Ok(Some(Called { record: file, failure, others }));
    }
    let ready = Ready::new(program, &format!("{record}:{program}:{why}:{BACK}")).map_err(|e| strange(e.to_string()))?;
    open(Predecessor { ready, why, held: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()) });
    watch_over(misbehave::patience(Turn::First).unwrap_or(patience));
    Ok(Some(Called { record: file, failure: None, others }))
}

fn numbers(what: &OsString) -> Option<(RawFd, RawFd, RawFd, bool)> {
    let parts: Vec<&str> = what.to_str()?.split(':').collect();
    let (numbers, back) = match &parts[..] {
        [numbers @ .., BACK] => (numbers, true),
        numbers => (numbers, false),
    };
    let [record, program, why] = numbers else { return None };
    let number = |text: &str| text.parse().ok().filter(|fd| *fd > 2);
    Some((number(record)?, number(program)?, number(why)?, back))
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
    // A file, for a reason may have any length, and an argument is seen by everybody for as long as the process lives.
    let why = match misbehave::refused().and_then(|()| Ok(memfd_create("lbd-why", MFdFlags::empty())?)) {
        Ok(why) => why,
        Err(e) => return e,
    };
    if let Err(e) = misbehave::refused() {
        return e;
    }
    match Ready::new(target.as_raw_fd(), &format!("{record}:{program}:{}", why.as_raw_fd())) {
        Ok(ready) => ready.go().into(),
        Err(e) => e,
    }
}

impl Ready {
    /// The program of this descriptor, with the arguments and the environment of this one.
    fn new(program: RawFd, what: &str) -> io::Result<Self> {
        let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
        let ours = [OsString::from(TAKE_OVER), OsString::from(what)];
        let mut texts: Vec<CString> = arguments().into_iter().chain(ours).map(text).collect::<io::Result<_>>()?;
        let count = texts.len();
        for (name, value) in std::env::vars_os() {
            texts.push(text(OsString::from_vec([name.as_bytes(), b"=", value.as_bytes()].concat()))?);
        }
        let list = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        let (arguments, environment) = (list(&texts[..count]), list(&texts[count..]));
        Ok(Self { program, arguments, environment, _texts: texts })
    }

    /// Neither allocates nor locks. Returns only where the kernel refuses.
    fn go(&self) -> Errno {
        // SAFETY: both lists end with null, and are of texts that live as long as they.
        unsafe {
            let (arguments, environment) = (self.arguments.as_ptr(), self.environment.as_ptr());
            libc::syscall(libc::SYS_execveat, self.program, c"".as_ptr(), arguments, environment, libc::AT_EMPTY_PATH);
        }
        Errno::last()
    }

    /// The same, again and again where the kernel is short of something: who executes this has nobody else.
    fn go_at_last(&self) -> Errno {
        let mut refused = self.go();
        for _ in 0..AT_LAST {
            if !matches!(refused, Errno::EAGAIN | Errno::ENOMEM | Errno::ENFILE | Errno::EMFILE | Errno::EINTR) {
                break;
            }
            thread::sleep(MOMENT); // a system call
            refused = self.go();
        }
        refused
    }
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

/// The take-over is done, there is no way back any more. Never returns where somebody has gone back already. To be called
/// before anything is done that the predecessor would not find as it left it.
pub fn settle() {
    if WAY.compare_exchange(OPEN, SHUT, SeqCst, SeqCst) == Err(TAKEN) {
        end_here();
    }
    if PREDECESSOR.get().is_some() {
        let _ = std::panic::take_hook();
    }
    for (signal, before) in BEFORE.get().into_iter().flatten() {
        // SAFETY: it was so before: Rust's own handler, which tells of a stack that has run out, or none.
        let _ = unsafe { sigaction(*signal, before) };
    }
}

/// Who is taking over here and has not settled, if anybody.
pub fn turn() -> Option<Turn> {
    let turn = if PREDECESSOR.get().is_some() { Turn::First } else { Turn::Again };
    (WAY.load(SeqCst) != SHUT).then_some(turn)
}

/// How long who takes over here has still, if anybody does.
pub fn time_left() -> Option<Duration> {
    turn().and(BEGUN.get()).map(|begun| patience().saturating_sub(begun.elapsed()))
}

/// How long it may take in all.
fn patience() -> Duration {
    Duration::from_micros(PATIENT_FOR.load(SeqCst))
}

/// So much longer may it take where there are so many backends and workers, each of which counts for itself.
pub fn extend_for(backends: usize, workers: usize) {
    let cells = backends.saturating_mul(workers).saturating_sub(USUAL);
    extend(FOR_EACH_CELL * u32::try_from(cells).unwrap_or(u32::MAX >> 8));
}

/// It may take so much longer: there is more to do than could be known, or the kernel is short of something.
pub fn extend(more: Duration) {
    PATIENT_FOR.fetch_add(u64::try_from(more.as_micros()).unwrap_or(u64::MAX >> 1), SeqCst);
}

/// Somebody goes back.
pub fn is_taken() -> bool {
    WAY.load(SeqCst) == TAKEN
}

/// Who takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// A successor.
    First,
    /// The predecessor, executed again.
    Again,
}

/// The reason itself; but while the way back is open, never returns: the predecessor goes on, and tells it.
pub fn or_back(why: String) -> String {
    unless_settled(format_args!("{why}"));
    why
}

/// Goes back for this reason, which is put into words only then.
pub fn unless_settled(why: fmt::Arguments<'_>) {
    if PREDECESSOR.get().is_none() {
        return; // nobody to go back to: the error is told, and ends the process
    }
    match WAY.compare_exchange(OPEN, TAKEN, SeqCst, SeqCst) {
        Ok(_) => {
            let mut line = Line::new();
            let _ = line.write_fmt(why); // an error is one that was too long
            go_back(line.text())
        }
        // Else this thread would go on to end the process before the other one has gone back.
        Err(TAKEN) => end_here(),
        Err(_) => {}
    }
}

/// Until an exec, or the end of the process, ends this thread.
fn end_here() -> ! {
    loop {
        thread::park();
    }
}

fn open(predecessor: Predecessor) {
    let _ = PREDECESSOR.set(predecessor);
    WAY.store(OPEN, SeqCst);
    std::panic::set_hook(Box::new(|panic| {
        unless_settled(format_args!("it panicked: {panic}"));
        eprintln!("{panic}");
    }));
    // SAFETY: the function is one of this program, which ends with the process.
    unsafe { libc::atexit(exited) };
    // On a stack of its own: the other one may be what has run out.
    let flags = SaFlags::SA_NODEFER | SaFlags::SA_ONSTACK;
    let handler = SigAction::new(SigHandler::Handler(crashed), flags, SigSet::empty());
    // SAFETY: the handler does nothing but execute another program, or leave.
    let taken = FATAL.iter().filter_map(|(signal, _)| Some((*signal, unsafe { sigaction(*signal, &handler) }.ok()?)));
    let _ = BEFORE.set(taken.collect());
}

/// Ends a take-over that is not settled by then, also where somebody has begun to go back and got stuck.
fn watch_over(patience: Duration) {
    let _ = BEGUN.set(Instant::now());
    extend(patience);
    let watch = misbehave::refused();
    let watch = watch.and_then(|()| {
        thread::Builder::new().name("lbd-guard".into()).spawn(move || {
            while let Some(left) = time_left().filter(|left| !left.is_zero()) {
                thread::sleep(left);
            }
            let mut line = Line::new();
            let _ = write!(line, "it had not taken over within {:?}", self::patience());
            insist(line.text());
        })
    });
    if let Err(e) = watch {
        or_back(format!("no thread could watch over it: {e}"));
    }
}

extern "C" fn exited() {
    unless_settled(format_args!("it ended before it had taken over"));
}

/// May be anywhere, in the allocator, too.
extern "C" fn crashed(signal: libc::c_int) {
    let why = FATAL.iter().find(|(fatal, _)| *fatal as libc::c_int == signal).map_or("it crashed", |(_, why)| why);
    insist(why);
    // SAFETY: always allowed.
    unsafe { libc::_exit(128 + signal) };
}

/// Goes back even where somebody else does already, unless it is settled.
fn insist(why: &str) {
    if WAY.compare_exchange(OPEN, TAKEN, SeqCst, SeqCst) != Err(SHUT) {
        go_back(why);
    }
}

/// Neither allocates nor locks.
fn go_back(why: &str) -> ! {
    let refused = PREDECESSOR.get().map(|predecessor| {
        predecessor.is_told(why);
        let _ = predecessor.held.thread_set_mask(); // it is the calling thread's that outlives an exec
        predecessor.ready.go_at_last()
    });
    let last = match refused {
        Some(e) => ["lbd: ", why, "; and its predecessor cannot be executed again: ", e.desc(), "\n"],
        None => ["lbd: the predecessor was to go on, but ", why, "", "", "\n"],
    };
    for part in last {
        // SAFETY: the kernel reads so many bytes of a text that is there.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: always allowed. No exit handler is to come back here.
    unsafe { libc::_exit(1) }
}

impl Predecessor {
    /// Who comes first is believed.
    fn is_told(&self, why: &str) {
        // SAFETY: it was left open for this, and stays so until the take-over is settled.
        let file = unsafe { BorrowedFd::borrow_raw(self.why) };
        if nix::sys::stat::fstat(file).is_ok_and(|of| of.st_size == 0) {
            let _ = nix::unistd::write(file, why.as_bytes());
        }
    }
}

/// What the successor has told.
fn told(why: &OwnedFd) -> String {
    let mut text = [0; Line::MOST];
    let length = why.try_clone().and_then(|fd| File::from(fd).read_at(&mut text, 0)).unwrap_or(0);
    match &text[..length] {
        [] => "it did not come to say why".to_owned(),
        text => String::from_utf8_lossy(text).into_owned(),
    }
}

/// Has the next larger allocation find the heap in ruins while it holds the heap's lock.
#[cfg(debug_assertions)]
pub fn ruin_the_heap() {
    let mut last = vec![0u8; 100_000];
    // SAFETY: none. It is what the tests want: to be told of by the allocator, which ends the process.
    unsafe {
        let end = last.as_mut_ptr().add(last.len());
        std::ptr::write_bytes(end, 0xff, 32);
    }
    std::mem::forget(std::hint::black_box(last)); // or an optimiser would see that nobody wants it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_three_descriptors_is_no_call_to_take_over() {
        let numbers = |text: &str| numbers(&OsString::from(text));
        assert_eq!(numbers("12:13:14"), Some((12, 13, 14, false)));
        assert_eq!(numbers("12:13:14:back"), Some((12, 13, 14, true)));
        for wrong in
            ["", "12", "12:13", "12:13:back", "12:13:14:15", "12:13:x", "2:13:14", "-1:13:14", "12:13:14:back:"]
        {
            assert_eq!(numbers(wrong), None, "{wrong}");
        }
    }
}
