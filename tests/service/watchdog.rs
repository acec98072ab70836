//! The watchdog proves work: one worker that hangs is enough for the process to be killed and started again.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::client::until;
use crate::machine::Machine;

const WATCHDOG: Duration = Duration::from_secs(2);

#[test]
fn a_worker_that_hangs_has_lbd_restarted_within_twice_the_watchdogs_time() {
    let Some(machine) = Machine::serving() else { return };
    machine.drop_in("lbd.service", &format!("[Service]\nWatchdogSec={}\n", WATCHDOG.as_secs()));
    machine.done(&["systemctl", "restart", "lbd"]);
    let before = machine.property("MainPID");
    let worker = worker_of(machine.pid_here(&before));
    ptrace::seize(worker, Options::empty()).unwrap();
    ptrace::interrupt(worker).unwrap();
    let stopped = Instant::now();
    until("lbd is restarted", || {
        // Who traces a thread must bury it, or its process stays a zombie.
        let _ = waitpid(worker, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
        let now = machine.property("MainPID");
        (now != before && now != "0" && machine.property("ActiveState") == "active").then_some(())
    });
    let took = stopped.elapsed();
    assert!(took <= 2 * WATCHDOG, "{took:?}");
    assert_eq!(machine.property("NRestarts"), "1");
    let journal = machine.journal();
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    machine.inside(|| std::net::TcpStream::connect(("127.0.0.1", 8080)).unwrap());
}

fn worker_of(process: u32) -> Pid {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &std::path::Path| fs::read_to_string(path.join("comm")).unwrap_or_default();
    let all: Vec<_> = threads.map(|path| (name(&path), path)).collect();
    let found = all.iter().find(|(name, _)| name.contains("worker"));
    let (_, path) = found.unwrap_or_else(|| panic!("no worker among {all:?}"));
    Pid::from_raw(path.file_name().unwrap().to_str().unwrap().parse().unwrap())
}
