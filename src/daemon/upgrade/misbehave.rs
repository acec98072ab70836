//! What the tests have go wrong in a successor: they have none but this very program. Only one that is built for finding
//! errors does any of it, and only where the environment names a file that asks for it.

use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::guard::{self, Turn};
use super::{process, record};

/// How far a take-over is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Nothing has been read.
    Begun,
    /// Descriptors have owners.
    Taken,
    /// A worker is about to be built, on a thread of its own.
    Worker,
    /// Everything is there, and the stand-in serves.
    Built,
    /// It does not any more; but the way back is open.
    Caught,
}

/// Nobody has failed here yet.
static FIRST: AtomicBool = AtomicBool::new(true);

/// Fails here, where it is asked to.
pub fn misbehave(point: Point) {
    let is_to_go_back = |asked: &Asked| asked.how == "refuse" && asked.at.starts_with("Back");
    if point == Point::Built && guard::turn() == Some(Turn::First) && asked().is_some_and(|asked| is_to_go_back(&asked))
    {
        panic!("as it was told to");
    }
    let Some(asked) = asked().filter(|asked| asked.at == format!("{point:?}") && asked.is_for(guard::turn())) else {
        return;
    };
    let _ = std::fs::write(asked.file.with_extension("begun"), "");
    match asked.how.as_str() {
        "panic" => panic!("as it was told to"),
        "nul" => panic!("a\0b"),
        "long" => panic!("{}", "long ".repeat(40_000)),
        "exit" => std::process::exit(0),
        "crash" => std::process::abort(),
        "error" => drop(guard::or_back("it erred as it was told to".into())),
        "hang" => hang(),
        "wait" => wait_for_nobody_to_serve(),
        "pause" => {
            while asked.file.exists() {
                std::thread::yield_now();
            }
        }
        "late" if FIRST.swap(false, SeqCst) => guard::unless_settled(format_args!("{Stuck}")),
        "late" => {
            while !guard::is_taken() {
                std::thread::yield_now();
            }
            std::process::exit(0) // while another thread is about to go back
        }
        "stuck" => guard::unless_settled(format_args!("{Stuck}")),
        #[cfg(debug_assertions)]
        "heap" => loop {
            guard::ruin_the_heap();
        },
        _ => {}
    }
}

/// Calls to the kernel so far that may be refused.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// They are counted from here on.
pub fn calls_begin() {
    CALLS.store(0, SeqCst);
}

/// To be asked before a call to the kernel that may be refused for want of something: whether this one is. `refuse@New7` refuses the seventh of a
/// successor, `Old` those of the program that runs, `Back` those of the predecessor that is executed again. How many there
/// are is left in files of these names.
///
/// # Errors
/// It is.
pub fn refused() -> io::Result<()> {
    let Some(asked) = asked().filter(|asked| asked.how == "refuse") else { return Ok(()) };
    let (number, who) = (CALLS.fetch_add(1, SeqCst) + 1, who());
    // Never half written: whoever writes may be ended at any moment.
    let draft = asked.file.with_extension(format!("{who}.{}", std::process::id()));
    let _ = std::fs::write(&draft, number.to_string());
    let _ = std::fs::rename(&draft, asked.file.with_extension(who));
    if asked.at == format!("{who}{number}") {
        return Err([Errno::EMFILE, Errno::ENOMEM, Errno::EAGAIN][number % 3].into());
    }
    Ok(())
}

fn who() -> &'static str {
    match guard::turn() {
        None => "Old",
        Some(Turn::First) => "New",
        Some(Turn::Again) => "Back",
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Until the stand-in has been ended by somebody else.
fn wait_for_nobody_to_serve() {
    let _ = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
}

/// Who begins to go back for this reason does not get there.
struct Stuck;

impl std::fmt::Display for Stuck {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        hang()
    }
}

/// Why nobody is to serve meanwhile, as where no thread can be had.
///
/// # Errors
/// It is so.
pub fn begin() -> io::Result<()> {
    let told = asked().is_some_and(|asked| asked.how == "nobody");
    if told { Err(io::Error::other("as it was told to")) } else { Ok(()) }
}

/// Has who serves meanwhile leave, where that is asked for.
pub fn desert() {
    if asked().is_some_and(|asked| asked.at == "Deserted") {
        process::leave(1);
    }
}

/// How long it may take.
pub fn patience(turn: Turn) -> Option<Duration> {
    asked().filter(|asked| asked.is_for(Some(turn)))?.patience
}

/// The records that it reads.
pub fn records() -> RangeInclusive<u32> {
    let other = asked().is_some_and(|asked| asked.how == "record" && asked.is_for(guard::turn()));
    if other { 98..=99 } else { record::VERSIONS }
}

/// The records that it says it reads, when it is tried.
pub fn said_records() -> RangeInclusive<u32> {
    if asked().is_some_and(|asked| asked.how == "foreign") { 98..=99 } else { record::VERSIONS }
}

/// Why the log is not to start, as where no thread can be had.
pub fn log_fails() -> Option<io::Error> {
    let told = asked().is_some_and(|asked| asked.how == "nolog" && asked.is_for(guard::turn()));
    told.then(|| io::Error::other("as it was told to"))
}

/// Makes its own program one that cannot be executed, after it was tried and found fit.
pub fn spoil_itself() {
    if asked().is_some_and(|asked| asked.how == "unfit") {
        let spoilt =
            std::env::current_exe().and_then(|own| std::fs::set_permissions(own, PermissionsExt::from_mode(0o644)));
        spoilt.unwrap_or_else(|e| panic!("it cannot spoil itself: {e}"));
    }
}

/// What is asked for.
struct Asked {
    /// Where it is asked.
    file: PathBuf,
    how: String,
    at: String,
    patience: Option<Duration>,
    /// Of the predecessor that is executed again, too.
    again: bool,
}

impl Asked {
    fn is_for(&self, turn: Option<Turn>) -> bool {
        turn == Some(Turn::First) || (turn == Some(Turn::Again) && self.again)
    }
}

/// `LBD_TEST_TAKEOVER` names a file of one line: `HOW@POINT`, microseconds of patience (0: as usual), and maybe `again`.
fn asked() -> Option<Asked> {
    if !cfg!(debug_assertions) {
        return None;
    }
    let file = PathBuf::from(std::env::var_os("LBD_TEST_TAKEOVER")?);
    let line = std::fs::read_to_string(&file).ok()?;
    let mut words = line.split_whitespace();
    let (how, at) = words.next()?.split_once('@')?;
    let micros: u64 = words.next()?.parse().ok()?;
    let patience = (micros > 0).then(|| Duration::from_micros(micros));
    Some(Asked { file, how: how.to_owned(), at: at.to_owned(), patience, again: words.next() == Some("again") })
}
