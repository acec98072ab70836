//! The packages: nobody notices an upgrade, and what was purged has left nothing.

use crate::load::{Load, LongOnes};
use crate::machine::{CONFIG, Machine, NEW_VERSION, Package};

#[test]
fn an_upgrade_is_noticed_by_nobody() {
    let Some(machine) = Machine::serving() else { return };
    let (load, sessions, before) = (Load::start(&machine), LongOnes::open(&machine), machine.property("MainPID"));
    let idle = machine.inside(|| std::net::TcpStream::connect(("127.0.0.1", 8080)).unwrap());
    let said = machine.install(Package::New);
    assert!(said.contains("lbd: upgraded in place: lbd "), "{said}");
    assert_eq!((machine.property("MainPID"), machine.property("NRestarts")), (before.clone(), "0".into()));
    assert_eq!(machine.property("ActiveState"), "active");
    // The new version runs, not what of the old one is still in memory.
    assert_eq!(machine.done(&["readlink", &format!("/proc/{before}/exe")]), "/usr/sbin/lbd\n");
    assert_eq!(machine.done(&["dpkg-query", "-Wf", "${Version}", "lbd"]), NEW_VERSION);
    let status = machine.done(&["lbctl", "status"]);
    assert!(status.contains("upgraded in place, 1 so far"), "{status}");
    sessions.end_unharmed();
    crate::client::echoes(&idle.into()).unwrap();
    load.ends_unharmed();
    // The operator's own file was kept.
    assert_eq!(machine.done(&["cat", "/etc/lbd/lbd.yaml"]), CONFIG);
}

#[test]
fn an_upgrade_serves_by_the_file_in_force_whatever_has_become_of_it() {
    let Some(machine) = Machine::serving() else { return };
    let before = machine.property("MainPID");
    machine.configure(&CONFIG.replace("pool: web", "pool: wep"));
    let load = Load::start(&machine);
    machine.install(Package::New);
    assert_eq!(machine.property("MainPID"), before);
    load.ends_unharmed();
}

#[test]
fn where_no_upgrade_in_place_is_to_be_had_it_restarts_and_refuses_nobody_unless_it_would_not_come_back() {
    let Some(machine) = Machine::serving() else { return };
    // Nobody finds lbd's control socket there.
    let elsewhere = "[Service]\nExecStart=\nExecStart=/usr/sbin/lbd --control /run/lbd/elsewhere.sock\n";
    machine.drop_in("lbd.service", elsewhere);
    machine.done(&["systemctl", "restart", "lbd"]);
    let (load, before) = (Load::start(&machine), machine.property("MainPID"));
    machine.configure(&CONFIG.replace("pool: web", "pool: wep"));
    let said = machine.install(Package::New);
    assert!(said.contains("no pool is named \"wep\"") && said.contains("the old one goes on"), "{said}");
    // Nor is one right that only root can read.
    machine.configure(CONFIG);
    machine.done(&["chmod", "600", "/etc/lbd/lbd.yaml"]);
    let said = postinst(&machine, &["configure", "0.0.1-1"]);
    assert!(said.contains("the old one goes on"), "{said}");
    assert_eq!(machine.property("MainPID"), before);
    machine.done(&["chmod", "644", "/etc/lbd/lbd.yaml"]);
    let said = postinst(&machine, &["configure", "0.0.1-1"]);
    assert!(said.contains("restarted, for it cannot be upgraded in place"), "{said}");
    assert_ne!(machine.property("MainPID"), before, "the new version runs");
    load.ends_unharmed();

    // A restart that fails is not silent.
    machine.drop_in("lbd.service", &format!("{elsewhere}ExecStartPre=/bin/false\n"));
    let said = postinst(&machine, &["configure", "0.0.1-1"]);
    assert!(said.contains("the new version does not run"), "{said}");
}

#[test]
fn where_the_new_version_fails_as_it_takes_over_the_old_one_goes_on() {
    let Some(machine) = crate::upgrade::failing() else { return };
    machine.put(b"panic@Built 0", crate::upgrade::TOLD);
    let (load, before) = (Load::start(&machine), machine.property("MainPID"));
    let said = machine.install(Package::New);
    assert!(said.contains("not restarted: lbctl: the new program failed: it panicked"), "{said}");
    assert_eq!((machine.property("MainPID"), machine.property("ActiveState")), (before, "active".into()));
    load.ends_unharmed();
}

#[test]
fn what_dpkg_takes_back_leaves_lbd_as_it_was() {
    let Some(machine) = Machine::up() else { return };
    machine.install(Package::Old);
    machine.install(Package::New);
    assert_eq!(machine.property("ActiveState"), "inactive", "an upgrade starts nothing that was stopped");
    machine.done(&["systemctl", "enable", "--now", "lbd"]);
    let before = machine.property("MainPID");
    postinst(&machine, &["abort-upgrade", NEW_VERSION]);
    assert_eq!(machine.property("MainPID"), before);
    // A removal that fails when lbd has been stopped.
    machine.done(&["sh", "-c", "echo exit 1 >>/var/lib/dpkg/info/lbd.prerm"]);
    assert!(!machine.run(&["dpkg", "--remove", "lbd"]).status.success());
    assert_ne!(machine.property("MainPID"), before);
    assert_eq!(machine.property("ActiveState"), "active");
    machine.done(&["sed", "-i", "$d", "/var/lib/dpkg/info/lbd.prerm"]);

    // The user cannot go while a process of it lives. A purge says so, and ends.
    machine.done(&["systemd-run", "--uid=lbd", "sleep", "infinity"]);
    let said = machine.told(&["dpkg", "--purge", "lbd"]);
    assert!(said.contains("the user lbd is left"), "{said}");
}

/// Runs the package's script as dpkg does; what it printed.
fn postinst(machine: &Machine, args: &[&str]) -> String {
    let script =
        ["env", "DPKG_MAINTSCRIPT_PACKAGE=lbd", "DPKG_MAINTSCRIPT_NAME=postinst", "/var/lib/dpkg/info/lbd.postinst"];
    machine.told(&[&script[..], args].concat())
}

#[test]
fn what_was_purged_has_left_nothing() {
    let Some(machine) = Machine::up() else { return };
    let before = files(&machine);
    machine.install(Package::Old);
    machine.install(Package::Lbtest);
    machine.done(&["lbtest", "--version"]);
    machine.done(&["systemctl", "enable", "--now", "lbd"]);
    machine.done(&["lbctl", "disable", "web/backend-1"]);
    machine.done(&["dpkg", "--remove", "lbd"]);
    // What was configured stays until a purge.
    machine.done(&["test", "-e", "/etc/lbd/lbd.yaml"]);
    let purge = machine.told(&["dpkg", "--purge", "lbd", "lbtest"]);
    assert!(!purge.contains("warning"), "{purge}");
    let after = files(&machine);
    let left: Vec<_> = after.lines().filter(|path| !before.lines().any(|other| other == *path)).collect();
    assert_eq!(left, [""; 0]);
    for database in ["passwd", "group", "shadow", "gshadow"] {
        assert!(!machine.run(&["getent", database, "lbd"]).status.success(), "{database}");
        assert!(!machine.run(&["grep", "^lbd:", &format!("/etc/{database}")]).status.success(), "{database}");
    }
    assert!(!machine.run(&["systemctl", "cat", "lbd.service"]).status.success());
    assert_eq!(machine.done(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "lbd*"]), "");
    assert!(!machine.run(&["dpkg", "-s", "lbd"]).status.success());
}

/// All files with the letters in their names, by the machine's own /usr too.
fn files(machine: &Machine) -> String {
    let find = ["find", "/etc", "/usr", "/var", "/run", "/tmp", "-xdev"];
    machine
        .done(&[&find[..], &["(", "-name", "*lbd*", "-o", "-name", "*lbctl*", "-o", "-name", "*lbtest*", ")"]].concat())
}
