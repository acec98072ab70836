//! The real lbd with a file and a control socket in a folder of its own, and the real lbctl to drive it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lbd::proxy::carry::{Descriptors, close_on_exec, keep_on_exec};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::backend::Backend;
use crate::client::{PATIENCE, until};

/// A running lbd; killed when it is dropped.
pub struct Lbd {
    child: Child,
    dir: Arc<TempDir>,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    upgrading: Option<Upgrading>,
}

/// What it has written to stderr.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    changed: Condvar,
    /// It was told to end: whatever breaks off from then on is no wonder.
    told_to_end: AtomicBool,
    /// No upgrade is made beside the test any more; held while one is.
    left_alone: Mutex<bool>,
}

/// What a program came to.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Lbd {
    /// Serves by this file.
    pub fn start(config: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::write(dir.path().join("lbd.yaml"), config).unwrap();
        Self::start_in(dir)
    }

    /// Serves by the file that is in this folder already.
    pub fn start_in(dir: Arc<TempDir>) -> Self {
        let lbd = Self::spawn(lbd_command(dir.path()), dir);
        lbd.await_log("serving;");
        lbd
    }

    /// The same with as many descriptors only.
    pub fn with_descriptors(limit: u32, config: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::write(dir.path().join("lbd.yaml"), config).unwrap();
        let lbd = lbd_command(dir.path());
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\"")).arg(lbd.get_program());
        shell.args(lbd.get_args());
        let lbd = Self::spawn(shell, dir);
        lbd.await_log("serving;");
        lbd
    }

    /// Starts this command, and waits for nothing.
    pub fn spawn(command: Command, dir: Arc<TempDir>) -> Self {
        Self::spawn_passing(command, dir, &[])
    }

    /// The same; it inherits these descriptors, which no other one does.
    pub fn spawn_passing(mut command: Command, dir: Arc<TempDir>, descriptors: &[RawFd]) -> Self {
        have_descriptors();
        let mut passed = Descriptors::default();
        descriptors.iter().for_each(|fd| passed.add(*fd).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = {
            let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            keep_on_exec(descriptors).unwrap();
            let child = command.spawn();
            close_on_exec(&passed).unwrap();
            child.unwrap()
        };
        let log = Arc::new(Log::default());
        let (stderr, to) = (child.stderr.take().unwrap(), Arc::clone(&log));
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                to.lines.lock().unwrap().push(line);
                to.changed.notify_all();
            }
        });
        let upgrading = Upgrading::as_asked(dir.path(), child.id(), &log);
        Self { child, dir, log, reader: Some(reader), upgrading }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its folder, for a successor.
    pub fn shared_dir(&self) -> Arc<TempDir> {
        Arc::clone(&self.dir)
    }

    /// Its file.
    pub fn file(&self) -> PathBuf {
        self.dir().join("lbd.yaml")
    }

    /// Where the only address of a listener is.
    pub fn address(&self, listener: &str) -> SocketAddr {
        let stats = self.stats();
        let all = stats["listeners"].as_array().unwrap();
        let found = all.iter().find(|l| l["name"] == listener).unwrap_or_else(|| panic!("no {listener}: {all:?}"));
        found["addresses"][0].as_str().unwrap().parse().unwrap()
    }

    /// Where the listener `web` is.
    pub fn web(&self) -> SocketAddr {
        self.address("web")
    }

    /// Runs lbctl.
    pub fn lbctl(&self, args: &[&str]) -> Ran {
        ran(self.lbctl_command(args).output().unwrap())
    }

    /// Runs lbctl, which must succeed, and returns what it printed.
    pub fn done(&self, args: &[&str]) -> String {
        let ran = self.lbctl(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran.out
    }

    /// lbctl about to run.
    pub fn lbctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        command.args(args).env("LBD_SOCKET", self.dir().join("control.sock")).stdin(Stdio::null());
        command
    }

    /// The statistics.
    pub fn stats(&self) -> Value {
        serde_json::from_str(&self.done(&["--json", "stats"])).unwrap()
    }

    /// The statistics of one backend, `pool/backend`; null where there is none.
    pub fn backend(&self, name: &str) -> Value {
        let (pool, backend) = name.split_once('/').unwrap();
        let stats = self.stats();
        let pool = stats["pools"].as_array().unwrap().iter().find(|p| p["name"] == pool).cloned();
        let all = pool.map_or(Value::Null, |p| p["backends"].clone());
        all.as_array().and_then(|all| all.iter().find(|b| b["name"] == backend)).cloned().unwrap_or_default()
    }

    /// Waits until a number or word of a backend is as wanted.
    pub fn await_backend(&self, name: &str, key: &str, wanted: impl Into<Value>) {
        let wanted = wanted.into();
        until(&format!("{name} has {key} {wanted}"), || (self.backend(name)[key] == wanted).then_some(()));
    }

    /// The statistics of one listener.
    pub fn listener(&self, name: &str) -> Value {
        let stats = self.stats();
        stats["listeners"].as_array().unwrap().iter().find(|l| l["name"] == name).cloned().unwrap_or_default()
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.stats()["generation"].as_u64().unwrap()
    }

    /// Writes the file and has it applied.
    pub fn reload(&self, config: &str) -> Ran {
        fs::write(self.file(), config).unwrap();
        self.lbctl(&["reload"])
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if signal != Signal::SIGHUP {
            self.log.told_to_end.store(true, SeqCst);
        }
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// One of its threads.
    pub fn thread(&self, name: &str) -> Pid {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut tasks = tasks.map(|task| task.unwrap().path());
        let found = tasks.find(|task| fs::read_to_string(task.join("comm")).unwrap().trim() == name);
        let number = found.unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        Pid::from_raw(number)
    }

    /// Waits for its end; returns the exit code and what it said.
    pub fn end(&mut self) -> Ran {
        let status = until("lbd ends", || self.child.try_wait().unwrap());
        self.reader.take().unwrap().join().unwrap();
        Ran { code: status.code(), out: String::new(), err: self.log() }
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        // A wait in vain panics with the lines in its hands.
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits until it has said this; returns the line.
    pub fn await_log(&self, text: &str) -> String {
        self.await_log_times(text, 1)
    }

    /// The same so many times; returns the last line.
    pub fn await_log_times(&self, text: &str, times: usize) -> String {
        let lines = self.log.lines.lock().unwrap();
        let unsaid = |lines: &mut Vec<String>| lines.iter().filter(|line| line.contains(text)).count() < times;
        let (lines, waited) = self.log.changed.wait_timeout_while(lines, PATIENCE, unsaid).unwrap();
        assert!(!waited.timed_out(), "no {text:?} in the log:\n{}", lines.join("\n"));
        lines.iter().filter(|line| line.contains(text)).nth(times - 1).unwrap().clone()
    }

    /// How many sessions it has descriptors for, as it said at its start.
    pub fn most_sessions(&self) -> u64 {
        let line = self.await_log(" starts");
        line.rsplit("sessions=").next().unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Takes descriptors away from it, or gives them back.
    pub fn limit_descriptors(&self, limit: u32) {
        // A program that takes over has as many as it may, as at a start.
        let mut left_alone = self.log.left_alone.lock().unwrap();
        *left_alone = true;
        // prlimit(1) of util-linux, for there is no safe call. The hard limit stays.
        let pid = self.child.id().to_string();
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:")]).status().unwrap();
        assert!(status.success());
    }

    /// Bytes of memory it has in use.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Seconds of CPU it has used.
    pub fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) as f64 / 100.0
    }
}

impl Drop for Lbd {
    fn drop(&mut self) {
        let refused = self.upgrading.take().map_or_else(Vec::new, Upgrading::end);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the log of lbd:\n{}", self.log());
        } else {
            assert_eq!(refused, [""; 0], "upgrades beside the test");
        }
    }
}

/// One at a time is started: for a moment what one is passed would be every other's, and stay open for as long as that runs.
static STARTING: Mutex<()> = Mutex::new(());

/// How long nothing happens between two upgrades that are made beside the tests.
const BESIDE: Duration = Duration::from_millis(150);

/// Another lbd takes over again and again while the test runs: `LBD_TEST_UPGRADE=1` has that done in every test but those that are
/// about it, as soon as it serves and then each 0.15 s; another number is that many seconds.
struct Upgrading {
    stop: Sender<()>,
    thread: JoinHandle<(usize, Vec<String>)>,
    of: Upgraded,
}

/// Whom they are made of.
#[derive(Clone)]
struct Upgraded {
    socket: PathBuf,
    pid: u32,
    log: Arc<Log>,
}

impl Upgrading {
    fn as_asked(dir: &Path, pid: u32, log: &Arc<Log>) -> Option<Self> {
        let every = match std::env::var("LBD_TEST_UPGRADE").ok()?.as_str() {
            "1" => BESIDE,
            seconds => Duration::from_secs_f64(seconds.parse().unwrap()),
        };
        if thread::current().name().is_some_and(|test| test.contains("upgrade") || test.starts_with("way_back")) {
            return None; // it makes its own
        }
        let of = Upgraded { socket: dir.join("control.sock"), pid, log: Arc::clone(log) };
        let (stop, stopped) = channel();
        let lbd = of.clone();
        let thread = thread::spawn(move || {
            let (mut upgrades, mut refused) = (0, Vec::new());
            loop {
                if lbd.is_ending() {
                    return (upgrades, refused); // another may be at its socket by now
                }
                let left_alone = lbd.log.left_alone.lock().unwrap();
                if *left_alone {
                    return (upgrades, refused);
                }
                let is_beginning = lbd.is_beginning();
                match lbd.upgrade() {
                    Ok(()) => upgrades += 1,
                    Err(_) if is_beginning || lbd.is_ending() => {}
                    // One beside a reload is refused by design.
                    Err(why) if why.contains("stopping or reloading") => {}
                    Err(why) => refused.push(why),
                }
                drop(left_alone);
                let wait = if upgrades == 0 { every.min(Duration::from_millis(5)) } else { every };
                if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return (upgrades, refused);
                }
            }
        });
        Some(Self { stop, thread, of })
    }

    /// Ends it, after one at least; returns what went wrong.
    fn end(self) -> Vec<String> {
        drop(self.stop);
        let (upgrades, mut refused) = self.thread.join().unwrap();
        let lbd = self.of;
        // It may have been too short for one, or have ended.
        if upgrades == 0
            && !lbd.is_beginning()
            && !lbd.is_ending()
            && !*lbd.log.left_alone.lock().unwrap()
            && let Err(why) = lbd.upgrade()
            && !lbd.is_ending()
        {
            refused.push(why);
        }
        refused
    }
}

impl Upgraded {
    fn upgrade(&self) -> Result<(), String> {
        let mut lbctl = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        let ran = ran(lbctl.arg("upgrade").env("LBD_SOCKET", &self.socket).stdin(Stdio::null()).output().unwrap());
        if ran.code == Some(0) { Ok(()) } else { Err(ran.err) }
    }

    fn has_said(&self, text: &str) -> bool {
        let lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().any(|line| line.contains(text))
    }

    fn is_beginning(&self) -> bool {
        !self.has_said("serving;")
    }

    fn is_ending(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ") || self.has_said("stopping") || self.log.told_to_end.load(SeqCst)
    }
}

/// lbd on the file of a folder, about to run.
pub fn lbd_command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lbd"));
    command.arg("--config").arg(dir.join("lbd.yaml")).arg("--control").arg(dir.join("control.sock"));
    command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").env_remove("STATE_DIRECTORY");
    command
}

/// Runs lbd to its end, which must come by itself.
pub fn run(mut lbd: Command) -> Ran {
    ran(lbd.stdin(Stdio::null()).output().unwrap())
}

/// What came of it.
pub fn ran(output: Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A file with a listener `web` and a pool `web` of these backends; `rest` are more keys of the pool.
pub fn web(backends: &[(&str, &Backend)], rest: &str) -> String {
    let backends: Vec<String> = backends.iter().map(|(name, b)| format!("{name}: \"{}\"", b.address)).collect();
    web_of(&backends.join(", "), rest)
}

/// The same with the backends written out.
pub fn web_of(backends: &str, rest: &str) -> String {
    format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", pool: web }} }}\n\
         pools: {{ web: {{ backends: {{ {backends} }}, {rest} }} }}\n\
         process: {{ workers: 2 }}\n"
    )
}

/// The tests play both sides of hundreds of sessions.
fn have_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
