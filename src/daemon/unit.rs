//! Asks systemd what it has in mind with our own unit, through a short-lived `systemctl`: it knows how to reach the manager as
//! whom, and a manager that hangs holds up nobody here. An unprivileged service may ask all of this.

use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::children;
use super::event::{Job, Queues};

/// How long an answer may take: the stop waits for it.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long one may take whatever is made of it.
const LONGEST: Duration = Duration::from_secs(3);

/// When to ask again where the one who asked was killed.
const AGAIN: Duration = Duration::from_millis(5);

/// The unit of a process, and the manager that runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    name: String,
    of_user: bool,
}

/// Under which job the unit is now, where it has `sockets` in its store. No answer means a stop, which is told: new
/// clients are then refused for the whole of `drain_timeout`, where it was a restart.
pub async fn job(sockets: usize) -> Job {
    let Some(unit) = own() else { return Job::Stop };
    let (jobs, store) = tokio::join!(timeout(PATIENCE, ask(&unit, &JOBS)), timeout(PATIENCE, ask(&unit, &STORE)));
    let Ok(Some(jobs)) = jobs else {
        warn!(unit = unit.name, "systemd does not say whether this is a restart; it is taken for a stop");
        return Job::Stop;
    };
    if !is_restarted(&jobs, &unit.name) {
        return Job::Stop;
    }
    Job::Restart(queues(sockets, store.ok().flatten().as_deref()))
}

/// Whether the successor gets the sockets. Where nobody says, the store is taken to be as it was left: a queue is lost for
/// certain where its socket is shut.
fn queues(sockets: usize, store: Option<&str>) -> Queues {
    let kept = store.and_then(|properties| number(properties, "NFileDescriptorStore"));
    if sockets > 0 && kept.is_none_or(|kept| kept >= sockets) { Queues::Kept } else { Queues::Lost }
}

/// Whether systemd can be asked, so that a restart is known for what it is. True where it does not run us.
pub async fn answers() -> bool {
    let Some(unit) = own() else { return true };
    // Nobody waits for this one, and the machine may be busy with its start.
    matches!(timeout(10 * PATIENCE, ask(&unit, &JOBS)).await, Ok(Some(_)))
}

/// How many descriptors the unit's store may have; `None` where nobody says.
pub async fn store_room() -> Option<usize> {
    // systemd 254 and later say it by themselves.
    if let Some(most) = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok()) {
        return Some(most);
    }
    let unit = own()?;
    let properties = timeout(10 * PATIENCE, ask(&unit, &STORE)).await.ok()??;
    number(&properties, "FileDescriptorStoreMax")
}

const JOBS: [&str; 3] = ["list-jobs", "--no-legend", "--plain"];
const STORE: [&str; 2] = ["show", "--property=FileDescriptorStoreMax,NFileDescriptorStore"];

async fn ask(unit: &Unit, what: &[&str]) -> Option<String> {
    loop {
        let mut systemctl = Command::new("systemctl");
        systemctl.args(unit.of_user.then_some("--user")).arg("--no-pager").args(what).arg("--").arg(&unit.name);
        systemctl.env_remove("NOTIFY_SOCKET");
        let ended = children::run(systemctl, Vec::new(), LONGEST).await.ok()?;
        match ended.status.code() {
            Some(0) => return Some(String::from_utf8_lossy(&ended.out).into_owned()),
            Some(_) => return None,
            // With KillMode=control-group the signal that stops us is for every process of the unit, this one too.
            None => sleep(AGAIN).await,
        }
    }
}

fn own() -> Option<Unit> {
    unit_of(&std::fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The innermost service of a process, from its `/proc/PID/cgroup` (cgroups(7)).
fn unit_of(cgroup: &str) -> Option<Unit> {
    cgroup.lines().find_map(|line| {
        // The systemd of a container may know itself by one hierarchy, and the host by others.
        let (_, rest) = line.split_once(':')?;
        let (_, path) = rest.split_once(':')?;
        let name = path.rsplit('/').find(|part| part.ends_with(".service") && !part.starts_with("user@"))?;
        Some(Unit { name: name.to_owned(), of_user: path.contains("/user@") })
    })
}

/// A line is a job's number, unit, type and state. While a restart stops the unit its type is "restart", whatever
/// the job was called when it was asked for.
fn is_restarted(jobs: &str, unit: &str) -> bool {
    let mut lines = jobs.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.any(|words| words.len() >= 3 && words[1] == unit && matches!(words[2], "restart" | "try-restart"))
}

fn number(properties: &str, name: &str) -> Option<usize> {
    properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_unit() {
        let unit = |name: &str, of_user| Some(Unit { name: name.into(), of_user });
        for (cgroup, found) in [
            ("0::/system.slice/lbd.service\n", unit("lbd.service", false)),
            ("0::/system.slice/system-lbd.slice/lbd@a.service/x\n", unit("lbd@a.service", false)),
            ("9:name=systemd:/\n1:cpu:/\n0::/system.slice/lbd.service\n", unit("lbd.service", false)),
            ("0::/user.slice/user-1.slice/user@1.service/app.slice/lbd.service\n", unit("lbd.service", true)),
            ("0::/user.slice/user-1.slice/session-1.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(unit_of(cgroup), found, "{cgroup}");
        }
    }

    #[test]
    fn a_restart_is_told_from_a_stop() {
        for (jobs, restarted) in [
            ("512 lbd.service restart running\n", true),
            ("512 lbd.service try-restart running\n", true),
            ("512 lbd.service stop running\n", false),
            ("512 lbd.socket restart running\n", false),
            ("No jobs running.\n", false),
            ("", false),
        ] {
            assert_eq!(is_restarted(jobs, "lbd.service"), restarted, "{jobs}");
        }
    }

    #[test]
    fn what_is_in_the_store_outlives_a_restart() {
        let store = |kept: usize| format!("FileDescriptorStoreMax=64\nNFileDescriptorStore={kept}\n");
        assert_eq!(number(&store(3), "FileDescriptorStoreMax"), Some(64));
        for (sockets, said, queues_are) in [
            (3, Some(store(3)), Queues::Kept),
            (3, Some(store(2)), Queues::Lost),
            (3, None, Queues::Kept),
            (3, Some(String::new()), Queues::Kept),
            (0, Some(store(0)), Queues::Lost),
            (0, None, Queues::Lost),
        ] {
            assert_eq!(queues(sockets, said.as_deref()), queues_are, "{sockets} {said:?}");
        }
    }
}
