//! The real lbd in a folder of its own, lbctl to drive it, and what the kernel says about it.

use std::fs::{self, File as Log};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How many lines of lbd's log a report shows.
const TAIL: usize = 40;

pub struct Daemon {
    child: Mutex<Child>,
    pid: u32,
    folder: TempDir,
    lbctl: PathBuf,
}

/// What lbctl came to.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Daemon {
    /// Starts lbd by this file.
    pub fn start(programs: Option<&Path>, file: &str) -> Result<Self, String> {
        let program =
            |name: &str, built: &str| programs.map_or_else(|| PathBuf::from(built), |folder| folder.join(name));
        let lbd = program("lbd", env!("CARGO_BIN_EXE_lbd"));
        let lbctl = program("lbctl", env!("CARGO_BIN_EXE_lbctl"));
        let folder = tempfile::Builder::new().prefix("lbd-chaos-").tempdir().map_err(|e| e.to_string())?;
        let log = Log::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let path = folder.path().join("lbd.yaml");
        fs::write(&path, file).map_err(|e| e.to_string())?;
        // setpriv(1) of util-linux: whoever ends a run by a signal leaves no lbd behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&lbd)
            .arg("--config")
            .arg(path)
            .arg("--control")
            .arg(folder.path().join("control.sock"));
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").env_remove("STATE_DIRECTORY");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|e| format!("setpriv {}: {e}", lbd.display()))?;
        Ok(Self { pid: child.id(), child: Mutex::new(child), folder, lbctl })
    }

    /// How it ended, where it has.
    pub fn end(&self) -> Option<String> {
        self.child.lock().unwrap().try_wait().ok().flatten().map(|status| status.to_string())
    }

    pub fn write(&self, file: &str) {
        fs::write(self.folder.path().join("lbd.yaml"), file).unwrap();
    }

    pub fn lbctl(&self, args: &[&str]) -> Ran {
        let begun = Instant::now();
        let mut command = Command::new(&self.lbctl);
        command.args(args).env("LBD_SOCKET", self.folder.path().join("control.sock")).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        Ran { code: output.status.code(), out, err, took: begun.elapsed() }
    }

    /// `lbctl --json stats`.
    pub fn stats(&self) -> Result<Value, String> {
        let ran = self.lbctl(&["--json", "stats"]);
        if ran.code != Some(0) {
            return Err(format!("lbctl stats: {:?} {}", ran.code, ran.err));
        }
        serde_json::from_str(&ran.out).map_err(|e| format!("lbctl stats: {e}: {}", ran.out))
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// Bytes of memory in use.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Has it stand still, or go on.
    pub fn stop(&self, still: bool) {
        let signal = if still { Signal::SIGSTOP } else { Signal::SIGCONT };
        let _ = kill(Pid::from_raw(self.pid as i32), signal);
    }

    /// Takes descriptors away from it, or gives them back: prlimit(1) of util-linux, for there is no safe call.
    pub fn limit_descriptors(&self, limit: Option<usize>) -> bool {
        // It began with as many as we may have.
        let limit = limit.map_or_else(|| getrlimit(Resource::RLIMIT_NOFILE).unwrap().1, |limit| limit as u64);
        let (pid, limit) = (self.pid.to_string(), format!("--nofile={limit}:"));
        Command::new("prlimit").args(["--pid", &pid, &limit]).status().is_ok_and(|status| status.success())
    }

    /// The end of its log, and where the whole is; the folder stays.
    pub fn log_tail(&self) -> String {
        let kept = std::env::temp_dir().join(format!("lbd-chaos-{}.log", self.pid));
        let _ = fs::copy(self.folder.path().join("log"), &kept);
        let log = String::from_utf8_lossy(&fs::read(&kept).unwrap_or_default()).into_owned();
        // Of those that break off there are thousands, and each is one that breaks off.
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("listener=broken")).collect();
        let loud = |line: &&&str| line.contains("ERROR") || line.contains("WARN") || line.contains("panicked");
        let mut shown: Vec<&str> = lines.iter().rev().skip(TAIL).filter(loud).take(TAIL / 2).copied().collect();
        shown.reverse();
        let last = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- lbd's log (whole: {})\n{}\n...\n{}", kept.display(), shown.join("\n"), last.join("\n"))
    }
}

impl Daemon {
    /// Ends it at once.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The load plays both sides of hundreds of sessions.
pub fn have_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
