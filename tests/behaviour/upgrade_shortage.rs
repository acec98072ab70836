//! What an upgrade needs of the kernel, and does not get: it is refused before anything stands still, or the program that served goes
//! on with all its sessions and as many workers as it can have.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::unistd::{Uid, chown};
use socket2::Socket;

use crate::backend::{Backend, echo};
use crate::client::{connect, echoes, until};
use crate::daemon::{Lbd, lbd_command, web};
use crate::skip::skipped;
use crate::upgrade::status;

/// Nobody else's, so that the tasks of lbd are all that it has.
const USER: u32 = 61_234;

fn clients(lbd: &Lbd, count: usize) -> Vec<Socket> {
    let clients: Vec<Socket> = (0..count).map(|_| connect(lbd.web())).collect();
    clients.iter().for_each(|client| echoes(client).unwrap());
    clients
}

/// Whether it was done. A dry run has said so before, and whatever comes of it no session is lost.
fn upgraded(lbd: &Lbd, clients: &[Socket], circumstances: &str) -> bool {
    let tried = lbd.lbctl(&["upgrade", "--dry-run"]);
    let ran = lbd.lbctl(&["upgrade"]);
    assert_eq!(tried.code, ran.code, "{circumstances}: {tried:?}, but {ran:?}\n{}", lbd.log());
    let lives = |client: &Socket| echoes(client).unwrap_or_else(|e| panic!("{circumstances}: {e}\n{}", lbd.log()));
    clients.iter().for_each(lives);
    assert!(ran.code == Some(0) || ran.err.contains("nothing was changed"), "{circumstances}: {ran:?}");
    ran.code == Some(0)
}

#[test]
fn without_descriptors_an_upgrade_is_refused_or_done_and_costs_no_session() {
    let backend = Backend::start(echo);
    let config = |workers: usize| web(&[("a", &backend)], "").replace("workers: 2", &format!("workers: {workers}"));
    let lbd = Lbd::start(&config(2));
    let clients = clients(&lbd, 30);
    let pid = status(&lbd)["pid"].as_i64().unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let (mut done, mut refused, mut workers) = (0, 0, 2);
    for more in (20..=62).rev().step_by(6) {
        assert_eq!(lbd.reload(&config(9 - workers)).code, Some(0));
        let most = open + more;
        let limited = limit(pid, &format!("--nofile={most}:{most}")).status(); // a hard one can only become less
        assert!(limited.unwrap().success());
        if upgraded(&lbd, &clients, &format!("{more} descriptors more")) {
            (done, workers) = (done + 1, 9 - workers);
        } else {
            refused += 1;
        }
        assert_eq!(status(&lbd)["workers"], workers, "with {more} more");
    }
    assert!(done > 1 && refused > 1, "of both: {done} done, {refused} refused");
}

#[test]
fn a_predecessor_that_goes_on_has_as_many_workers_as_before_whatever_the_file_says() {
    if !cfg!(debug_assertions) {
        return skipped("what is built to be used fails at nothing that it is told to fail at");
    }
    let backend = Backend::start(echo);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", &backend)], "")).unwrap();
    let told = dir.path().join("told");
    let mut command = lbd_command(dir.path());
    command.env("LBD_TEST_TAKEOVER", &told);
    let lbd = Lbd::spawn(command, dir);
    lbd.await_log("serving;");
    let clients = clients(&lbd, 20);
    let config = |workers: usize| web(&[("a", &backend)], "").replace("workers: 2", &format!("workers: {workers}"));
    for workers in [1, 3, 2] {
        assert_eq!(lbd.reload(&config(workers)).code, Some(0));
        fs::write(&told, "panic@Built 0").unwrap();
        let ran = lbd.lbctl(&["upgrade"]);
        assert!(ran.code == Some(1) && ran.err.contains("no session was lost"), "{ran:?}");
        assert_eq!(status(&lbd)["workers"], 2);
        clients.iter().for_each(|client| echoes(client).unwrap());
    }
}

/// An lbd of a user who has nothing else; `None` where it takes root to have one.
fn of_another_user(backend: &Backend) -> Option<Lbd> {
    if !Uid::effective().is_root() {
        skipped("it takes root to start lbd as another user");
        return None;
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::write(dir.path().join("lbd.yaml"), web(&[("a", backend)], "")).unwrap();
    chown(dir.path(), Some(USER.into()), Some(USER.into())).unwrap();
    let mut command = lbd_command(dir.path());
    command.env("LBD_TEST_TAKEOVER", dir.path().join("told")).uid(USER).gid(USER);
    let lbd = Lbd::spawn(command, dir);
    lbd.await_log("serving;");
    Some(lbd)
}

/// prlimit(1) of util-linux, for there is no safe call.
fn limit(pid: i64, what: &str) -> Command {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &pid.to_string(), what]);
    command
}

fn limit_tasks(pid: i64, most: usize) {
    assert!(limit(pid, &format!("--nproc={most}:")).uid(USER).gid(USER).status().unwrap().success());
}

/// Tasks of the user who has nothing else.
fn tasks() -> usize {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let told = all.filter_map(|name| fs::read_to_string(format!("/proc/{name}/status")).ok());
    let of_user = told.filter(|told| told.contains(&format!("Uid:\t{USER}\t")));
    let number =
        |told: String| told.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse::<usize>().ok());
    of_user.filter_map(number).sum()
}

#[test]
fn without_tasks_an_upgrade_is_refused_or_done_and_a_predecessor_serves_with_those_it_can_have() {
    let backend = Backend::start(echo);
    let Some(lbd) = of_another_user(&backend) else { return };
    let clients = clients(&lbd, 30);
    let pid = status(&lbd)["pid"].as_i64().unwrap();
    let (mut done, mut refused) = (0, 0);
    for more in (0..=20).step_by(2) {
        limit_tasks(pid, tasks() + more);
        if upgraded(&lbd, &clients, &format!("{more} tasks more")) {
            done += 1
        } else {
            refused += 1
        }
        assert_eq!(status(&lbd)["workers"], 2, "with {more} more");
    }
    assert!(done > 1 && refused > 1, "of both: {done} done, {refused} refused");

    if !cfg!(debug_assertions) {
        return skipped("what is built to be used fails at nothing that it is told to fail at");
    }
    // The successor hangs; meanwhile others take what there was.
    for (more, workers) in [(0, 2), (5, 1), (6, 2)] {
        limit_tasks(pid, 1000);
        until("no reserve is left", || (tasks() < 10).then_some(()));
        if status(&lbd)["workers"] != 2 {
            fs::write(lbd.dir().join("told"), "well@Begun 0").unwrap();
            lbd.done(&["upgrade"]);
        }
        let reached = lbd.dir().join("told.begun");
        let _ = fs::remove_file(&reached);
        fs::write(lbd.dir().join("told"), "hang@Built 1500000").unwrap();
        let ran = thread::scope(|scope| {
            let asking = scope.spawn(|| lbd.lbctl(&["upgrade"]));
            until("it gets there", || reached.exists().then_some(()));
            // The predecessor finds itself and the stand-in, and needs a guard, a log, and workers, and threads for files
            // and names.
            limit_tasks(pid, 1 + 3 + more);
            if more == 0 {
                until("it has begun to go back", || arguments(pid).contains(":back").then_some(()));
                clients.iter().for_each(|client| echoes(client).unwrap());
                limit_tasks(pid, 1000);
            }
            asking.join().unwrap()
        });
        assert!(ran.code == Some(1) && ran.err.contains("no session was lost"), "{more}: {ran:?}\n{}", lbd.log());
        clients.iter().for_each(|client| echoes(client).unwrap());
        assert_eq!(status(&lbd)["workers"], workers, "with {more} more");
        echoes(&connect(lbd.web())).unwrap();
    }
}

fn arguments(pid: i64) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap()
}
