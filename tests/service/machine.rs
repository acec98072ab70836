//! A throw-away machine whose PID 1 is the real systemd, with lbd's package installed and three backends that echo.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::client::until;
use crate::trial::TRIAL;

/// What the machine serves by, unless told otherwise. Each listener is on the loopback of the machine's own network.
pub const CONFIG: &str = "\
listeners:
  web: { bind: \"127.0.0.1:8080\", pool: web }
  bulk: { bind: \"127.0.0.1:8081\", pool: bulk }
pools:
  web:
    backends: { backend-1: \"127.0.0.1:9001\", backend-2: \"127.0.0.1:9002\", backend-3: \"127.0.0.1:9003\" }
  bulk:
    backends: { backend-4: \"127.0.0.1:9004\" }
drain_timeout: 30s
";

/// A machine that is up; gone when it is dropped.
pub struct Machine {
    name: String,
    /// PID 1 of it, as seen from here.
    leader: u32,
    servers: Option<Child>,
    _alone: Option<MutexGuard<'static, ()>>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);
static ALONE: Mutex<()> = Mutex::new(());

/// The two revisions of lbd's package, an older and a newer one; or why there are none.
static PACKAGES: LazyLock<Result<[PathBuf; 2], String>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_BIN_EXE_lbd")).parent().unwrap();
    let profile = match folder.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = |revision: &str| {
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages").join(revision);
        let _ = fs::remove_dir_all(&output); // of an earlier run
        let mut command = Command::new(root.join("packaging/build"));
        command.args(["--built", "--fast", "--profile", profile, "--revision", revision, "--output"]).arg(&output);
        let ran = command.env("CARGO_TARGET_DIR", folder.parent().unwrap()).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "packaging/build: {}", String::from_utf8_lossy(&ran.stderr));
        let mut files = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("lbd_")).unwrap()
    };
    if Command::new("dpkg").arg("--version").output().is_err() {
        return Err("there is no dpkg; packages are Debian's".into());
    }
    Ok([build("1"), build("2")])
});

impl Machine {
    /// A machine without lbd; `None`, after having said why, where there can be none.
    pub fn up() -> Option<Self> {
        let packages = nix::unistd::geteuid().is_root().then(|| PACKAGES.clone());
        let why = match packages {
            None => "only root can make a machine".to_owned(),
            Some(Err(why)) => why,
            Some(Ok(_)) => {
                let alone = TRIAL.alone.then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
                match Self::boot(alone) {
                    Ok(machine) => return Some(machine),
                    Err(why) => why,
                }
            }
        };
        println!("skipped: {why}");
        None
    }

    fn boot(alone: Option<MutexGuard<'static, ()>>) -> Result<Self, String> {
        let name = format!("lbd-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut machine = Self { name, leader: 0, servers: None, _alone: alone };
        let owner = std::process::id().to_string();
        let up = machine.systemd_box(&["up", "--owner", &owner]).output().unwrap();
        match up.status.code() {
            Some(0) => {}
            Some(77) => return Err(String::from_utf8_lossy(&up.stderr).trim().to_owned()),
            _ => panic!("{}", String::from_utf8_lossy(&up.stderr)),
        }
        // "up (PID 1 of the box is 123 here; ..."
        let status = text(&machine.systemd_box(&["status"]).output().unwrap());
        machine.leader = status.split_once("box is ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
        Ok(machine)
    }

    /// One where lbd serves by [`CONFIG`].
    pub fn serving() -> Option<Self> {
        let mut machine = Self::up()?;
        machine.install(Revision::Old);
        machine.configure(CONFIG);
        machine.start_backends();
        machine.done(&["systemctl", "start", "lbd"]);
        Some(machine)
    }

    /// Starts the echo servers behind `web`.
    pub fn start_backends(&mut self) {
        let lbtest = env!("CARGO_BIN_EXE_lbtest");
        let mut servers = self.systemd_box(&["net", lbtest, "servers", "3", "9001"]);
        self.servers = Some(servers.stdout(Stdio::null()).spawn().unwrap());
        self.inside(|| {
            until("the backends listen", || std::net::TcpStream::connect(("127.0.0.1", 9003)).ok());
        });
    }

    /// Installs the package, over another one where there is one. Returns what dpkg and its scripts said.
    pub fn install(&self, revision: Revision) -> String {
        let [old, new] = PACKAGES.as_ref().unwrap();
        let package = if revision == Revision::Old { old } else { new };
        self.put(&fs::read(package).unwrap(), "/root/lbd.deb");
        self.done(&["dpkg", "-i", "/root/lbd.deb"])
    }

    /// Writes the configuration.
    pub fn configure(&self, config: &str) {
        self.put(config.as_bytes(), "/etc/lbd/lbd.yaml");
    }

    /// Adds to the unit.
    pub fn drop_in(&self, text: &str) {
        self.put(text.as_bytes(), "/etc/systemd/system/lbd.service.d/trial.conf");
        self.done(&["systemctl", "daemon-reload"]);
    }

    /// Writes a file that everybody may read.
    pub fn put(&self, content: &[u8], path: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let put = self.systemd_box(&["put", file.path().to_str().unwrap(), path, "644"]).output().unwrap();
        assert!(put.status.success(), "{put:?}");
    }

    /// Runs a command on the machine.
    pub fn run(&self, command: &[&str]) -> Output {
        self.systemd_box(&[&["run", "--"], command].concat()).output().unwrap()
    }

    /// The same; it must succeed. Returns what it printed.
    pub fn done(&self, command: &[&str]) -> String {
        let ran = self.run(command);
        let journal = || text(&self.systemd_box(&["journal", "-u", "lbd"]).output().unwrap());
        assert!(ran.status.success(), "{command:?}: {}\n{}", String::from_utf8_lossy(&ran.stderr), journal());
        text(&ran)
    }

    /// What the journal has of lbd's unit, a line a record.
    pub fn journal(&self) -> String {
        text(&self.systemd_box(&["journal", "-u", "lbd", "-o", "cat"]).output().unwrap())
    }

    /// One property of lbd's unit.
    pub fn property(&self, name: &str) -> String {
        self.done(&["systemctl", "show", "--value", "-p", name, "lbd"]).trim().to_owned()
    }

    /// A command of this machine in the network of that one.
    pub fn in_network(&self, program: &str, args: &[&str]) -> Command {
        self.systemd_box(&[&["net", program], args].concat())
    }

    /// Runs a closure in that network, on a thread of its own.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let enter = self.network();
            scope.spawn(move || (enter(), run()).1).join().unwrap()
        })
    }

    /// What a thread calls to be in that network from then on.
    pub fn network(&self) -> impl Fn() + Send + Clone + 'static {
        let path = format!("/proc/{}/ns/net", self.leader);
        move || setns(fs::File::open(&path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap()
    }

    /// The number here of a process there.
    pub fn pid_here(&self, there: &str) -> u32 {
        let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let wanted = space(self.leader);
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find(|line| line.starts_with("NSpid:"));
            numbers.is_some_and(|line| line.split_whitespace().last() == Some(there)) && space(*pid) == wanted
        };
        pids.into_iter().find(is_it).unwrap()
    }

    fn systemd_box(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/service/systemd-box"));
        command.args(["-n", &self.name]).args(args).stdin(Stdio::null());
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.systemd_box(&["down", "--kill"]).output();
        if let Some(servers) = &mut self.servers {
            let _ = servers.kill();
            let _ = servers.wait();
        }
    }
}

/// Of the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    Old,
    New,
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
