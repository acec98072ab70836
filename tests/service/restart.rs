//! Restarts, crashes and systemd's own re-execution refuse nobody: systemd keeps the listening sockets meanwhile.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lbd::words::Happening;
use serde_json::Value;

use crate::client::until;
use crate::load::{Load, LongOnes, settled};
use crate::machine::{CONFIG, Machine};
use crate::trial::TRIAL;

/// The default of `restart_drain`.
const RESTART_DRAIN: Duration = Duration::from_millis(500);

/// The latest that a session is cut which has been given it.
const CUT: Duration = Duration::from_secs(1);

/// How much later than it happened a record may be on its way to the journal.
const LAG: Duration = Duration::from_millis(100);

#[test]
fn a_restart_refuses_nobody_and_gives_sessions_the_time_of_restart_drain() {
    let Some(machine) = Machine::serving() else { return };
    let load = Load::start(&machine);
    for _ in 0..TRIAL.restarts {
        let (sessions, before) = (LongOnes::open(&machine), machine.property("MainPID"));
        machine.done(&["systemctl", "restart", "lbd"]);
        let stopping = when(machine.events("stopping").last().unwrap());
        for ended in sessions.cut() {
            let after = ended.at.duration_since(stopping).unwrap();
            assert!((RESTART_DRAIN - LAG..=CUT).contains(&after), "cut after {after:?}: {:?}", ended.why);
            let kind = ended.why.map(|why| why.kind());
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionReset), "a cut stream must not look whole");
        }
        assert_ne!(machine.property("MainPID"), before);
        let gap = when(machine.events("started").last().unwrap()).duration_since(stopping).unwrap();
        assert!((RESTART_DRAIN - LAG..=TRIAL.gap).contains(&gap), "nobody accepted for {gap:?}");
    }
    load.ends_unharmed();
}

/// When it was sent to the journal.
fn when(record: &Value) -> SystemTime {
    let micros = record["_SOURCE_REALTIME_TIMESTAMP"].as_str().unwrap().parse().unwrap();
    UNIX_EPOCH + Duration::from_micros(micros)
}

#[test]
fn a_crash_refuses_nobody_who_comes_after() {
    let Some(machine) = Machine::serving() else { return };
    let load = Load::start(&machine);
    let workers = machine.property("NFileDescriptorStore").parse::<usize>().unwrap() / 2; // two addresses
    for kill in 0..TRIAL.kills {
        let before = machine.property("MainPID");
        // With fewer workers than sockets, none of which may be without an owner, and with more.
        machine
            .configure(&format!("{CONFIG}process: {{ workers: {} }}\n", if kill % 2 == 0 { 1 } else { workers + 1 }));
        settled(&machine);
        machine.done(&["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "lbd"]);
        until("lbd is back", || {
            let now = machine.property("MainPID");
            (now != before && now != "0" && machine.property("ActiveState") == "active").then_some(())
        });
    }
    assert_eq!(machine.property("NFileDescriptorStore"), (2 * (workers + 1)).to_string());
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
    let stats: Value = serde_json::from_str(&machine.done(&["lbctl", "--json", "stats", "web"])).unwrap();
    let backends = stats["pools"][0]["backends"].as_array().unwrap();
    let drained: Vec<_> = backends.iter().filter(|b| b["state"] == "drained").map(|b| &b["name"]).collect();
    assert_eq!(drained, ["backend-2"], "{stats}");
    // Both times the journal has it so that it can be found.
    let events = machine.events("override");
    assert_eq!(events.len(), 2, "{events:?}");
    for event in events {
        let fields = ["LBD_POOL", "LBD_BACKEND", "MESSAGE_ID", "SYSLOG_IDENTIFIER"].map(|name| &event[name]);
        assert_eq!(fields, ["web", "backend-2", Happening::Override.message_id(), "lbd"], "{event}");
    }
}

#[test]
fn without_d_bus_a_restart_is_a_stop_and_says_so() {
    let Some(machine) = Machine::serving() else { return };
    machine.done(&["systemctl", "stop", "dbus.socket", "dbus.service"]);
    machine.done(&["systemctl", "restart", "lbd"]);
    for warning in ["systemd does not say whether this is a restart", "systemd cannot be asked about jobs"] {
        until(warning, || machine.journal().contains(warning).then_some(()));
    }
}
