//! What is asked of the machine: a core for the proxy and one for the load, descriptors, free ports, and what a process
//! has used.

use std::fs;
use std::io::{self, Error};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// For everyone: what 9,500 sessions of two sockets each need.
pub const DESCRIPTORS: u64 = 20_000;

/// Which core the proxies have, and which the clients and backends.
#[derive(Clone, Copy)]
pub struct Cores {
    pub proxy: usize,
    pub load: usize,
}

impl Cores {
    pub fn choose() -> io::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        match (cores.next(), cores.next()) {
            (Some(proxy), Some(load)) => Ok(Self { proxy, load }),
            _ => Err(Error::other(
                "this process may use one CPU; the comparison needs one for the proxy, one for the load",
            )),
        }
    }
}

/// Keeps this thread, and what it starts from now on, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

/// Sets the same limit for this process and all it starts; what it came to.
pub fn limit_descriptors() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < DESCRIPTORS && setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_ok() {
        return Ok(DESCRIPTORS);
    }
    let limit = hard.min(DESCRIPTORS);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(limit)
}

/// A free port below those that the kernel gives to clients, so that no connection takes it before its owner does.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768);
    loop {
        let port = NEXT.fetch_add(1, Relaxed);
        if port >= end {
            return Err(Error::other(format!("no port is free from 20000 to {end}")));
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

/// CPU time in ns of all threads of these processes, also of threads that have ended.
pub fn cpu_time(processes: &[Pid]) -> io::Result<u64> {
    let mut sum = 0;
    for pid in processes {
        let time = clock_gettime(clock_getcpuclockid(*pid)?)?;
        sum += time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
    }
    Ok(sum)
}

/// Resident bytes of these processes.
pub fn resident(processes: &[Pid]) -> io::Result<u64> {
    let mut sum = 0;
    for pid in processes {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        sum += kib.ok_or_else(|| Error::other(format!("/proc/{pid}/smaps_rollup has no Rss")))? * 1024;
    }
    Ok(sum)
}

/// A process and its children.
pub fn family(pid: Pid) -> io::Result<Vec<Pid>> {
    let mut found = vec![pid];
    for entry in fs::read_dir("/proc")? {
        let Some(other) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        // pid (name, which may hold anything) state ppid ...
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if parent == Some(pid.as_raw()) {
            found.push(Pid::from_raw(other));
        }
    }
    Ok(found)
}

/// For the record.
pub fn processor() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpus.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    line.split_once(':').map_or(String::new(), |(_, model)| model.trim().to_owned())
}

pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
