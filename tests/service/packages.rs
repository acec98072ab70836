//! The package: nobody notices an upgrade, and what was purged has left nothing.

use crate::load::{Load, LongOnes};
use crate::machine::{CONFIG, Machine, Revision};

#[test]
fn an_upgrade_is_noticed_by_nobody() {
    let Some(machine) = Machine::serving() else { return };
    let (load, sessions, before) = (Load::start(&machine), LongOnes::open(&machine), machine.property("MainPID"));
    let idle = machine.inside(|| std::net::TcpStream::connect(("127.0.0.1", 8080)).unwrap());
    let said = machine.install(Revision::New);
    assert!(said.contains("lbd: upgraded in place: lbd "), "{said}");
    assert_eq!((machine.property("MainPID"), machine.property("NRestarts")), (before, "0".into()));
    assert_eq!(machine.property("ActiveState"), "active");
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
    machine.install(Revision::New);
    assert_eq!(machine.property("MainPID"), before);
    load.ends_unharmed();
}

#[test]
fn where_no_upgrade_in_place_is_to_be_had_it_restarts_and_refuses_nobody() {
    let Some(machine) = Machine::serving() else { return };
    // Nobody finds lbd's control socket there.
    machine.drop_in("[Service]\nExecStart=\nExecStart=/usr/sbin/lbd --control /run/lbd/elsewhere.sock\n");
    machine.done(&["systemctl", "restart", "lbd"]);
    let (load, before) = (Load::start(&machine), machine.property("MainPID"));
    machine.install(Revision::New);
    assert_ne!(machine.property("MainPID"), before, "the new version runs");
    load.ends_unharmed();
}

#[test]
fn an_upgrade_starts_nothing_that_was_stopped() {
    let Some(machine) = Machine::up() else { return };
    machine.install(Revision::Old);
    machine.install(Revision::New);
    assert_eq!(machine.property("ActiveState"), "inactive");
}

#[test]
fn what_was_purged_has_left_nothing() {
    let Some(machine) = Machine::serving() else { return };
    machine.done(&["systemctl", "enable", "lbd"]);
    machine.done(&["lbctl", "disable", "web/backend-1"]);
    machine.done(&["dpkg", "--remove", "lbd"]);
    // What was configured stays until a purge.
    machine.done(&["test", "-e", "/etc/lbd/lbd.yaml"]);
    machine.done(&["dpkg", "--purge", "lbd"]);
    let find = ["-name", "lbd", "-o", "-name", "lbd[.-]*", "-o", "-name", "*-lbd*", "-o", "-name", "*lbctl*"];
    let left = machine.done(&[&["find", "/etc", "/usr", "/var", "/run"], &find[..]].concat());
    assert_eq!(left, "");
    for database in ["passwd", "group"] {
        assert!(!machine.run(&["getent", database, "lbd"]).status.success(), "{database}");
    }
    assert!(!machine.run(&["systemctl", "cat", "lbd.service"]).status.success());
    assert_eq!(machine.done(&["systemctl", "list-units", "--all", "--plain", "--no-legend", "lbd*"]), "");
    assert!(!machine.run(&["dpkg", "-s", "lbd"]).status.success());
}
