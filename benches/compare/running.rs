//! A proxy while it runs: started on its core with its file, asked what it has used, ended when dropped. A signal to the
//! comparison ends what it has started, too, and nothing else.

use std::fs::{self, File};
use std::io::{self, Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::backends::{Backends, Kind};
use crate::machine::{Cores, cpu_time, family, free_port, pin, resident};
use crate::peers::{Peer, prepare};

/// What a signal must clear up.
static STARTED: Mutex<(Vec<Pid>, Vec<PathBuf>)> = Mutex::new((Vec::new(), Vec::new()));

fn started() -> MutexGuard<'static, (Vec<Pid>, Vec<PathBuf>)> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Clears up when SIGINT or SIGTERM comes. Called before any thread is started.
pub fn clear_up_on_signals(dir: &Path) -> io::Result<()> {
    started().1.push(dir.into());
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = signals.wait();
        let (pids, dirs) = &*started();
        for pid in pids {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for dir in dirs {
            let _ = fs::remove_dir_all(dir);
        }
        std::process::exit(130);
    })?;
    Ok(())
}

/// Where the clients connect: a proxy, or the backends themselves.
pub struct Running {
    pub processes: Vec<Pid>,
    child: Option<Child>,
    fronts: Vec<(Kind, Vec<SocketAddr>)>,
}

impl Running {
    /// No proxy: the ceiling.
    pub fn direct(backends: &Backends) -> Self {
        let fronts = Kind::ALL.iter().map(|kind| (*kind, backends.of(*kind).to_vec())).collect();
        Self { processes: Vec::new(), child: None, fronts }
    }

    /// Starts it on its core and waits until it serves all its ports.
    pub fn start(peer: &Peer, backends: &Backends, cores: Cores, dir: &Path) -> io::Result<Self> {
        let mut values = Vec::new();
        let mut fronts = Vec::new();
        for kind in Kind::ALL {
            let name = format!("{kind:?}").to_lowercase();
            let port = free_port()?;
            fronts.push((kind, vec![SocketAddr::from(([127, 0, 0, 1], port))]));
            for (index, address) in backends.of(kind).iter().enumerate() {
                values.push((format!("{name}-{}", index + 1), address.to_string()));
            }
            values.push((name, port.to_string()));
        }
        let folder = tempfile::Builder::new().prefix(peer.name).tempdir_in(dir)?.keep();
        let arguments = prepare(peer, &folder, values)?;
        let log = folder.join("log");
        let output = File::create(&log)?;
        let mut command = Command::new(&peer.program);
        command.args(arguments).current_dir(&folder).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command, cores).map_err(|e| Error::new(e.kind(), format!("{}: {e}", peer.name)))?;
        let mut running = Self { processes: vec![pid_of(&child)], child: Some(child), fronts };
        running.wait_until_it_serves().map_err(|error| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let said: Vec<&str> = said.lines().take(12).collect();
            Error::other(format!("{} {error}\n{}", peer.name, said.join("\n")))
        })?;
        running.processes = family(running.processes[0])?;
        started().0.extend(&running.processes);
        Ok(running)
    }

    fn wait_until_it_serves(&mut self) -> io::Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        for address in self.fronts.iter().flat_map(|(_, addresses)| addresses) {
            while TcpStream::connect_timeout(address, Duration::from_secs(1)).is_err() {
                if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                    return Err(Error::other(format!("ended at once ({status}):")));
                }
                if Instant::now() > end {
                    return Err(Error::other(format!("does not serve {address} after 20 s:")));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Who is connected may still wait for a worker process to be forked; who is answered does not.
        self.of(Kind::Echo)
            .iter()
            .try_for_each(answers)
            .map_err(|e| Error::new(e.kind(), format!("does not serve: {e}")))
    }

    pub fn of(&self, kind: Kind) -> &[SocketAddr] {
        self.fronts.iter().find(|(k, _)| *k == kind).map_or(&[], |(_, addresses)| addresses)
    }

    pub fn is_proxy(&self) -> bool {
        self.child.is_some()
    }

    /// An error once its process has ended, with how it did.
    pub fn lives(&self) -> io::Result<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid_of(child)), flags)? {
            WaitStatus::StillAlive => Ok(()),
            status => Err(Error::other(format!("its process has ended: {status:?}"))),
        }
    }

    /// In ns, since its start.
    pub fn cpu_time(&self) -> io::Result<u64> {
        cpu_time(&self.processes)
    }

    pub fn resident(&self) -> io::Result<u64> {
        resident(&self.processes)
    }
}

fn answers(address: &SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// A child has the core and the signal mask of who starts it.
fn spawn(mut command: Command, cores: Cores) -> io::Result<Child> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // The lock is held, so that a signal just now finds the child in the list.
    let mut list = started();
    pin(cores.proxy)?;
    signals.thread_unblock()?;
    let child = command.spawn();
    signals.thread_block()?;
    pin(cores.load)?;
    if let Ok(child) = &child {
        list.0.push(pid_of(child));
    }
    child
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = kill(pid_of(&child), Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(4);
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                for pid in family(pid_of(&child)).unwrap_or_default() {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        started().0.retain(|pid| !self.processes.contains(pid));
    }
}
