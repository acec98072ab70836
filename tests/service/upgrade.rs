//! An upgrade in place as a real service: what systemd knows of it and allows it stays as it was.

use std::net::TcpStream;
use std::thread;

use crate::client::until;
use crate::load::{Load, LongOnes};
use crate::machine::{CONFIG, Machine};
use crate::skip::skipped;

/// What the kernel allows a process, and holds against it.
fn rights(machine: &Machine) -> String {
    let status = machine.done(&["cat", &format!("/proc/{}/status", machine.property("MainPID"))]);
    let kinds = ["Name", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Sig"];
    // What is pending comes and goes.
    let lasting =
        status.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind)) && !line.starts_with("SigQ"));
    lasting.map(|line| format!("{line}\n")).collect()
}

/// What systemd knows of the service that an upgrade must not change.
fn known(machine: &Machine) -> Vec<String> {
    let properties =
        ["MainPID", "NRestarts", "ActiveState", "SubState", "ControlGroup", "NFileDescriptorStore", "WatchdogUSec"];
    properties.iter().map(|name| format!("{name}={}", machine.property(name))).collect()
}

#[test]
fn systemd_and_the_kernel_see_the_same_service_as_before() {
    let Some(machine) = Machine::serving() else { return };
    machine.configure(&CONFIG.replace("127.0.0.1:8081", "127.0.0.1:81"));
    machine.done(&["systemctl", "reload", "lbd"]);
    let (load, sessions) = (Load::start(&machine), LongOnes::open(&machine));
    let (before, rights_before) = (known(&machine), rights(&machine));
    for upgrades in 1..=3 {
        let said = machine.done(&["lbctl", "upgrade"]);
        assert!(said.starts_with("lbd "), "{said}");
        assert_eq!(known(&machine), before);
        assert_eq!(rights(&machine), rights_before);
        machine.inside(|| TcpStream::connect(("127.0.0.1", 81)).unwrap());
        machine.done(&["systemctl", "daemon-reexec"]);
        assert_eq!(known(&machine), before, "after upgrade {upgrades}");
        // The new program may do what the old one might: bind a low port.
        machine.configure(&CONFIG.replace("127.0.0.1:8081", &format!("127.0.0.1:{}", 81 + upgrades % 2)));
        machine.done(&["systemctl", "reload", "lbd"]);
        machine.configure(&CONFIG.replace("127.0.0.1:8081", "127.0.0.1:81"));
        machine.done(&["systemctl", "reload", "lbd"]);
    }
    sessions.end_unharmed();
    let sessions = LongOnes::open(&machine);
    sessions.end_unharmed();
    let status = machine.property("StatusText");
    assert!(status.contains("upgraded in place: 3"), "{status}");
    load.ends_unharmed();
    // systemd hears that it is well.
    machine.done(&["systemctl", "stop", "lbd"]);
    assert_eq!(machine.property("Result"), "success");
}

#[test]
fn after_a_crash_right_behind_an_upgrade_the_listeners_come_from_the_store() {
    let Some(machine) = Machine::serving() else { return };
    let load = Load::start(&machine);
    machine.done(&["lbctl", "upgrade"]);
    let before = machine.property("MainPID");
    machine.done(&["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "lbd"]);
    until("lbd is back", || {
        let now = machine.property("MainPID");
        (now != before && now != "0" && machine.property("ActiveState") == "active").then_some(())
    });
    load.refused_nobody(1);
}

/// A machine whose lbd has successors that do what a file says (`daemon/upgrade/misbehave.rs`).
pub fn failing() -> Option<Machine> {
    if !cfg!(debug_assertions) {
        skipped("only a program that is built for finding errors fails when it is told to");
        return None;
    }
    let machine = Machine::serving()?;
    machine.drop_in("lbd.service", &format!("[Service]\nEnvironment=LBD_TEST_TAKEOVER={TOLD}\n"));
    machine.done(&["systemctl", "restart", "lbd"]);
    Some(machine)
}

pub const TOLD: &str = "/etc/lbd/told";

#[test]
fn a_program_that_fails_while_it_takes_over_leaves_the_service_as_it_was() {
    let Some(machine) = failing() else { return };
    let (load, sessions) = (Load::start(&machine), LongOnes::open(&machine));
    let (before, rights_before) = (known(&machine), rights(&machine));
    for (told, why) in [
        ("panic@Built 0", "it panicked"),
        ("crash@Worker 0", "it crashed (SIGABRT)"),
        ("exit@Begun 0", "it ended before"),
        ("hang@Built 500000", "it had not taken over within"),
    ] {
        machine.put(told.as_bytes(), TOLD);
        let ran = machine.run(&["lbctl", "upgrade"]);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(1) && said.contains(why), "{told}: {ran:?}");
        assert_eq!(known(&machine), before, "{told}");
        assert_eq!(rights(&machine), rights_before, "{told}");
    }
    sessions.end_unharmed();
    load.ends_unharmed();
}

#[test]
fn after_a_crash_between_the_exec_and_the_end_of_an_upgrade_the_listeners_come_from_the_store() {
    let Some(machine) = failing() else { return };
    machine.put(b"hang@Built 60000000", TOLD);
    let load = Load::start(&machine);
    let before = machine.property("MainPID");
    thread::scope(|scope| {
        let upgrading = scope.spawn(|| machine.run(&["lbctl", "upgrade"]));
        until("the new program is about to take over", || {
            let arguments = machine.done(&["cat", &format!("/proc/{before}/cmdline")]);
            arguments.contains("--takeover").then_some(())
        });
        assert_eq!(machine.property("ActiveState"), "reloading");
        machine.done(&["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "lbd"]);
        until("lbd is back", || {
            let now = machine.property("MainPID");
            (now != before && now != "0" && machine.property("ActiveState") == "active").then_some(())
        });
        let ran = upgrading.join().unwrap();
        assert_eq!(ran.status.code(), Some(1), "who asked is told that it broke off: {ran:?}");
    });
    assert_eq!(machine.property("NRestarts"), "1");
    load.refused_nobody(1);
}

#[test]
fn the_watchdog_is_fed_after_an_upgrade() {
    let Some(machine) = Machine::serving() else { return };
    machine.drop_in("lbd.service", "[Service]\nWatchdogSec=2s\n");
    machine.done(&["systemctl", "restart", "lbd"]);
    machine.done(&["lbctl", "upgrade"]);
    let sessions = LongOnes::open(&machine);
    let fed = || machine.property("WatchdogTimestampMonotonic").parse::<u64>().unwrap();
    let first = fed();
    until("the watchdog is fed for twice its time", || (fed() > first + 4_000_000).then_some(()));
    assert_eq!(machine.property("NRestarts"), "0");
    sessions.end_unharmed();
}

#[test]
fn only_root_and_the_services_own_user_may_say_which_program() {
    let Some(machine) = Machine::serving() else { return };
    let member = ["setpriv", "--reuid=nobody", "--regid=lbd", "--clear-groups"];
    let ran = machine.run(&[&member[..], &["lbctl", "upgrade", "/usr/sbin/lbd"]].concat());
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && said.contains("only root and the user that lbd runs as"), "{said}");
    machine.done(&[&member[..], &["lbctl", "upgrade"]].concat());
    machine.done(&["lbctl", "upgrade", "/usr/sbin/lbd"]);
    // What the unit hides from lbd it cannot execute.
    machine.done(&["cp", "/usr/sbin/lbd", "/tmp/lbd"]);
    let ran = machine.run(&["lbctl", "upgrade", "/tmp/lbd"]);
    assert!(String::from_utf8_lossy(&ran.stderr).contains("/tmp/lbd does not exist, as lbd sees it"), "{ran:?}");
}
