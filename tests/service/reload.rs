//! `systemctl reload` tells whether the file was taken, and never leaves the unit in between.

use lbd::words::Happening;

use crate::load::{Load, LongOnes};
use crate::machine::{CONFIG, Machine};

#[test]
fn a_refused_reload_fails_visibly_and_changes_nothing() {
    let Some(machine) = Machine::serving() else { return };
    let (load, held, before) = (Load::start(&machine), LongOnes::open(&machine), machine.property("MainPID"));
    machine.configure(&CONFIG.replace("pool: web", "pool: wep"));
    let reload = machine.run(&["systemctl", "reload", "lbd"]);
    assert!(!reload.status.success(), "{reload:?}");
    let journal = machine.journal();
    let problem = "/etc/lbd/lbd.yaml:2:40: listeners.web.pool: no pool is named \"wep\"";
    assert!(journal.contains(problem), "{journal}");
    let refused = machine.events("reload-refused");
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|event| event["MESSAGE_ID"] == Happening::ReloadRefused.message_id()), "{refused:?}");
    assert_eq!(journal.matches(problem).count(), 1, "once: {journal}");
    assert_eq!(machine.property("ActiveState"), "active");
    machine.configure(CONFIG);
    machine.done(&["systemctl", "reload", "lbd"]);
    assert_eq!((machine.property("ActiveState"), machine.property("MainPID")), ("active".into(), before));
    held.end_unharmed();
    load.ends_unharmed();
}

#[test]
fn a_wrong_file_at_the_start_is_served_without_and_where_none_was_ever_in_force_not_tried_again_and_again() {
    let Some(machine) = Machine::serving() else { return };
    machine.done(&["systemctl", "stop", "lbd"]);
    machine.configure("listeners: {}\n");
    machine.done(&["systemctl", "start", "lbd"]);
    assert!(machine.property("StatusText").contains("serving by what was last in force"));
    assert!(!machine.events("fallback").is_empty());
    machine.done(&["systemctl", "stop", "lbd"]);
    machine.done(&["rm", "/var/lib/lbd/in-force.yaml"]);
    assert!(!machine.run(&["systemctl", "start", "lbd"]).status.success());
    assert_eq!(machine.property("ExecMainStatus"), "78");
    assert_eq!((machine.property("ActiveState"), machine.property("NRestarts")), ("failed".into(), "0".into()));
    assert!(machine.journal().contains("/etc/lbd/lbd.yaml:1:12: listeners"), "{}", machine.journal());
}
