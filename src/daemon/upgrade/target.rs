//! The program that is to take over, found out before anything is touched: it is opened once, looked at, and tried in a child
//! of that very descriptor, which says what it is and checks the configuration in force. What is executed later is what was
//! tried here, whatever has become of the path meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use super::elf::{self, judge};
use super::{Reserve, misbehave, process, record};
use crate::config::Config;
use crate::daemon::children::{self, Ended, Unheard};
use crate::daemon::worker_count;
use crate::observe::json;

/// How long a program may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(2);
/// And how much longer for each MiB of the configuration.
const FOR_EACH_MIB: Duration = Duration::from_secs(10);
/// Asks a program what it is: reads a configuration from standard input, answers on standard output. Not for people.
pub const CHECK: &str = "--handover-check";

/// A program that can take over.
#[derive(Debug)]
pub struct Target {
    /// What will be executed.
    pub file: File,
    /// Where it was found.
    pub path: PathBuf,
    /// What it says that it is.
    pub version: String,
    /// What it needs of the kernel.
    pub reserve: Reserve,
}

/// What a program says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    lbd: String,
    /// The oldest and the newest record that it reads.
    records: (u32, u32),
    /// What is wrong with the configuration.
    problems: Vec<String>,
    /// How many workers it would have by that, where it says so.
    #[serde(default)]
    workers: Option<usize>,
}

/// Where this program was started from, without what the kernel adds where it is not there any more.
pub fn own_path() -> PathBuf {
    let link = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let text = link.to_string_lossy();
    text.strip_suffix(" (deleted)").map_or_else(|| link.clone(), PathBuf::from)
}

/// Finds out whether a program can take over from this one, which has so many workers, with this configuration; and whether the kernel
/// has what that takes.
///
/// # Errors
/// It cannot; says why, and how to mend it.
pub async fn check(path: &Path, content: &[u8], workers: usize) -> Result<Target, String> {
    let name = path.display();
    misbehave::calls_begin();
    let its = path.to_owned();
    let file = match timeout(PATIENCE, children::beside(move || look(&its))).await {
        Ok(Ok(looked)) => looked.map_err(|why| format!("{name} {why}"))?,
        Ok(Err(e)) => return Err(format!("{name} cannot be looked at: {e}")),
        Err(_) => return Err(format!("{name} cannot be looked at: its file system does not answer")),
    };
    let said = ask(&file, content).await.map_err(|why| format!("{name} {why}"))?;
    let own = env!("CARGO_PKG_VERSION");
    if is_older(&said.lbd, own) {
        return Err(format!(
            "{name} is lbd {}, older than {own}, which runs; to go back, install it and restart the service",
            said.lbd
        ));
    }
    let (oldest, newest, ours) = (said.records.0, said.records.1, *record::VERSIONS.end());
    if !(oldest..=newest).contains(&ours) {
        return Err(format!(
            "{name} is lbd {}, which takes over from records of version {oldest} to {newest}, and this one writes {ours}; \
             restart the service instead",
            said.lbd
        ));
    }
    if !said.problems.is_empty() {
        let problems = said.problems.join("\n");
        return Err(format!("{name} is lbd {}, which refuses the configuration in force:\n{problems}", said.lbd));
    }
    let reserve = Reserve::of(workers, said.workers.unwrap_or(workers))?;
    Ok(Target { file, path: path.to_owned(), version: said.lbd, reserve })
}

/// Opens it, and says what can be seen.
fn look(path: &Path) -> Result<File, String> {
    // A FIFO would keep us for ever.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|e| match e.kind() {
        ErrorKind::NotFound => "does not exist, as lbd sees it (the unit may hide folders from it)".to_owned(),
        ErrorKind::PermissionDenied => "may not be read by the user that lbd runs as".to_owned(),
        _ => format!("cannot be opened: {e}"),
    })?;
    let unreadable = |e: io::Error| format!("cannot be read: {e}");
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err("is no regular file".into());
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err("has no execute bit; chmod +x it".into());
    }
    let head = |file: &File| {
        let mut head = vec![0; elf::HEAD];
        let mut filled = 0;
        loop {
            match file.read_at(&mut head[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        head.truncate(filled);
        io::Result::Ok(head)
    };
    let own = process::own_program().and_then(|own| head(&own)).map_err(|e| format!("cannot be judged: {e}"))?;
    let program = judge(&head(&file).map_err(unreadable)?, metadata.len(), &own).map_err(|flaw| flaw.to_string())?;
    match program.interpreter {
        Some(loader) if !Path::new(&loader).exists() => {
            Err(format!("needs the interpreter {loader}, which is not on this machine"))
        }
        _ => Ok(file),
    }
}

/// Has it say what it is.
async fn ask(file: &File, content: &[u8]) -> Result<Said, String> {
    let mut command = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    command.arg0("lbd").arg(CHECK).env_remove("NOTIFY_SOCKET");
    let heard = children::run(command, content.to_owned(), patience(content)).await;
    let Ended { status, out, err } = heard.map_err(|why| match why {
        Unheard::NotStarted(e) => why_not_executed(&e),
        Unheard::Lost(e) => format!("cannot be heard: {e}"),
        Unheard::Late => format!("did not say what it is within {} s", patience(content).as_secs()),
    })?;
    if let Some(signal) = status.signal() {
        let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |signal| signal.to_string());
        return Err(format!("crashes: it was ended by {name} when it was to say what it is"));
    }
    match json::read::<Said>(&out) {
        Ok(said) if status.success() => Ok(said),
        _ => Err(format!("is no lbd that can take over: {}", why_not(status, &err))),
    }
}

/// It reads the configuration, too.
fn patience(content: &[u8]) -> Duration {
    PATIENCE + FOR_EACH_MIB * u32::try_from(content.len() >> 20).unwrap_or(u32::MAX >> 8)
}

fn why_not_executed(e: &io::Error) -> String {
    match Errno::from_raw(e.raw_os_error().unwrap_or(0)) {
        Errno::EACCES => "may not be executed: by the user that lbd runs as, or on this file system (noexec)".into(),
        Errno::ETXTBSY => "is still being written; ask again when it is whole".into(),
        Errno::ENOEXEC => "is no program that this machine executes".into(),
        _ => format!("cannot be executed: {e}"),
    }
}

fn why_not(status: ExitStatus, err: &[u8]) -> String {
    let text = String::from_utf8_lossy(err);
    let code = status.code().unwrap_or_default();
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("it exits with {code}, saying: {}", line.trim()),
        None => format!("it exits with {code}, and does not say what it is"),
    }
}

/// Numbers alone count; what is no number is the oldest.
fn is_older(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        let release = text.split(['-', '+']).next().unwrap_or_default();
        release.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    numbers(version) < numbers(than)
}

/// The other side of it: says what this program is, and what it thinks of the configuration on standard input.
pub fn say() -> ExitCode {
    let mut content = Vec::new();
    if let Err(e) = io::stdin().lock().read_to_end(&mut content) {
        eprintln!("lbd: the configuration cannot be read: {e}");
        return ExitCode::FAILURE;
    }
    let (problems, workers) = match Config::parse(&content) {
        Ok(config) => (Vec::new(), Some(worker_count(config.process.workers))),
        Err(problems) => (problems.iter().map(|problem| problem.one_line("lbd.yaml")).collect(), None),
    };
    let lbd = test_version().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    misbehave::spoil_itself();
    let said = Said { lbd, records: misbehave::said_records().into_inner(), problems, workers };
    match writeln!(io::stdout(), "{}", json::compact(&said)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The tests have but one version to build.
fn test_version() -> Option<String> {
    if cfg!(debug_assertions) { std::env::var("LBD_TEST_VERSION").ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (older, newer) in [("0.1.0", "0.2.0"), ("0.9.0", "0.10.0"), ("0.1.9", "1"), ("", "0.1.0")] {
            assert!(is_older(older, newer) && !is_older(newer, older), "{older} {newer}");
        }
        assert!(!is_older("0.1.0", "0.1.0") && !is_older("0.1.0-rc.1", "0.1.0") && !is_older("0.1.0+7", "0.1.0"));
    }

    #[test]
    fn what_can_be_seen_of_a_file_is_told_without_trying_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8], mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        for (path, why) in [
            (folder.path().join("none"), "does not exist"),
            (folder.path().to_owned(), "is no regular file"),
            (file("plain", b"hello", 0o644), "has no execute bit"),
            (file("text", b"hello", 0o755), "is no program"),
            (file("script", b"#!/bin/sh\n", 0o755), "is a script"),
        ] {
            assert!(look(&path).unwrap_err().contains(why), "{path:?}");
        }
        assert!(look(&std::env::current_exe().unwrap()).is_ok());
    }

    #[tokio::test]
    async fn a_program_that_is_no_lbd_is_told_by_what_it_does() {
        for (program, why) in [("/bin/true", "exits with 0, and does not say"), ("/bin/false", "exits with 1")] {
            let why_not = check(Path::new(program), b"", 1).await.unwrap_err();
            assert!(why_not.contains(why), "{why_not}");
        }
    }
}
