//! `systemctl reload` tells whether the file was taken, and never leaves the unit in between.

use crate::load::Load;
use crate::machine::{CONFIG, Machine};

#[test]
fn a_refused_reload_fails_visibly_and_changes_nothing() {
    let Some(machine) = Machine::serving() else { return };
    let (load, before) = (Load::start(&machine), machine.property("MainPID"));
    machine.configure(&CONFIG.replace("pool: web", "pool: wep"));
    let reload = machine.run(&["systemctl", "reload", "lbd"]);
    assert!(!reload.status.success(), "{reload:?}");
    let journal = machine.journal();
    let problem = "/etc/lbd/lbd.yaml:2:40: listeners.web.pool: no pool is named \"wep\"";
    assert!(journal.contains(problem), "{journal}");
    assert_eq!(machine.property("ActiveState"), "active");
    machine.configure(CONFIG);
    machine.done(&["systemctl", "reload", "lbd"]);
    assert_eq!((machine.property("ActiveState"), machine.property("MainPID")), ("active".into(), before));
    load.ends_unharmed();
}

#[test]
fn a_wrong_file_at_the_start_is_not_tried_again_and_again() {
    let Some(machine) = Machine::serving() else { return };
    machine.done(&["systemctl", "stop", "lbd"]);
    machine.configure("listeners: {}\n");
    assert!(!machine.run(&["systemctl", "start", "lbd"]).status.success());
    assert_eq!(machine.property("ExecMainStatus"), "78");
    assert_eq!((machine.property("ActiveState"), machine.property("NRestarts")), ("failed".into(), "0".into()));
    assert!(machine.journal().contains("/etc/lbd/lbd.yaml:1:12: listeners"), "{}", machine.journal());
}
