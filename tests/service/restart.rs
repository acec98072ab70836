//! Restarts, crashes and systemd's own re-execution refuse nobody: systemd keeps the listening sockets meanwhile.

use std::time::{Duration, Instant};

use crate::client::until;
use crate::load::{Load, LongOnes};
use crate::machine::Machine;
use crate::trial::TRIAL;

/// The default of `restart_drain`.
const RESTART_DRAIN: Duration = Duration::from_millis(500);

#[test]
fn a_restart_refuses_nobody_and_gives_sessions_the_time_of_restart_drain() {
    let Some(machine) = Machine::serving() else { return };
    let load = Load::start(&machine);
    for _ in 0..TRIAL.restarts {
        let (sessions, before) = (LongOnes::open(&machine), machine.property("MainPID"));
        let begun = Instant::now();
        machine.done(&["systemctl", "restart", "lbd"]);
        for ended in sessions.cut() {
            let after = ended.at - begun;
            assert!(after >= RESTART_DRAIN, "cut after {after:?}: {:?}", ended.why);
            let kind = ended.why.map(|why| why.kind());
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "a cut stream must not look whole");
        }
        assert_ne!(machine.property("MainPID"), before);
    }
    load.ends_unharmed();
}

#[test]
fn a_crash_refuses_nobody_who_comes_after() {
    let Some(machine) = Machine::serving() else { return };
    let load = Load::start(&machine);
    for _ in 0..TRIAL.kills {
        let before = machine.property("MainPID");
        machine.done(&["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "lbd"]);
        until("lbd is back", || {
            let now = machine.property("MainPID");
            (now != before && now != "0" && machine.property("ActiveState") == "active").then_some(())
        });
    }
    load.refused_nobody(TRIAL.kills);
}

#[test]
fn systemd_may_execute_itself_anew() {
    let Some(machine) = Machine::serving() else { return };
    let (load, sessions, before) = (Load::start(&machine), LongOnes::open(&machine), machine.property("MainPID"));
    machine.done(&["systemctl", "daemon-reexec"]);
    assert_eq!(machine.property("MainPID"), before);
    sessions.end_unharmed();
    // It still knows the sockets that it keeps.
    let sessions = LongOnes::open(&machine);
    machine.done(&["systemctl", "restart", "lbd"]);
    sessions.cut();
    load.ends_unharmed();
}

#[test]
fn what_operators_decided_survives_a_restart() {
    let Some(machine) = Machine::serving() else { return };
    machine.done(&["lbctl", "drain", "web/backend-2", "--wait", "--reason", "disk swap"]);
    machine.done(&["systemctl", "restart", "lbd"]);
    let stats: serde_json::Value = serde_json::from_str(&machine.done(&["lbctl", "--json", "stats", "web"])).unwrap();
    let backends = stats["pools"][0]["backends"].as_array().unwrap();
    let drained: Vec<_> = backends.iter().filter(|b| b["state"] == "drained").map(|b| &b["name"]).collect();
    assert_eq!(drained, ["backend-2"], "{stats}");
}
