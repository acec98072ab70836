//! What operators are told: by answers, by the status and by the statistics.

use super::*;
use crate::control::LiveSessions;
use crate::observe::Status;

const UNCHECKED: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001, b: 127.0.0.1:9002 } } }
";

fn lines(actions: &[Action]) -> Vec<String> {
    match answers(actions)[..] {
        [(_, Reply::Changed { lines, .. })] => lines.clone(),
        _ => panic!("{actions:?}"),
    }
}

fn status(daemon: &mut Daemon) -> Status {
    match answers(&daemon.ask(90, Request::Status))[..] {
        [(90, Reply::Status(status))] => (**status).clone(),
        ref others => panic!("{others:?}"),
    }
}

fn backend_a(daemon: &mut Daemon) -> crate::observe::BackendStats {
    match answers(&daemon.ask(91, Request::Stats { pool: None }))[..] {
        [(91, Reply::Stats(stats))] => stats.pools[0].backends[0].clone(),
        ref others => panic!("{others:?}"),
    }
}

fn of_b() -> Target {
    Target::parse("web/b", Pools::One).unwrap()
}

#[test]
fn who_takes_the_last_backend_out_is_warned() {
    let mut daemon = Daemon::serving(UNCHECKED);
    daemon.ask(1, drain(None));
    assert_eq!(lines(&daemon.acknowledge()), ["web/a is draining; sessions: 0"]);
    daemon.ask(2, Request::Disable { target: of_b(), live: LiveSessions::Keep, reason: None, expires: None });
    let told = lines(&daemon.acknowledge());
    assert!(told.len() == 2 && told[1].starts_with("warning: no backend of pool web can take a session"), "{told:?}");
    daemon.ask(3, Request::Enable { target: of_b() });
    assert_eq!(lines(&daemon.acknowledge()).len(), 1);

    daemon.ask(4, Request::Enable { target: target() });
    daemon.acknowledge();
    let wait = Some(Wait { timeout: None });
    daemon.ask(5, Request::Drain { target: of_b(), wait, reason: None, expires: None });
    assert!(matches!(answers(&daemon.acknowledge())[..], [(5, Reply::Drained { notes, .. })] if notes.is_empty()));
    daemon.ask(6, drain(wait));
    assert!(matches!(answers(&daemon.acknowledge())[..], [(6, Reply::Drained { notes, .. })] if notes.len() == 1));
}

#[test]
fn who_cuts_sessions_is_told_how_many() {
    let mut daemon = Daemon::serving(UNCHECKED);
    daemon.hold_session();
    daemon.ask(1, Request::Disable { target: target(), live: LiveSessions::Close, reason: None, expires: None });
    daemon.end_session();
    assert_eq!(lines(&daemon.acknowledge()), ["web/a is disabled; sessions cut: 1"]);
}

#[test]
fn a_drain_of_a_second_has_a_second_left_until_it_is_over() {
    let mut daemon = Daemon::serving(UNCHECKED);
    let expires = Some(Duration::from_secs(1));
    daemon.ask(1, Request::Drain { target: target(), wait: None, reason: None, expires });
    assert_eq!(backend_a(&mut daemon).override_ends_in_seconds, Some(1));
    daemon.after(Duration::from_millis(999), Event::Tick);
    assert_eq!(backend_a(&mut daemon).override_ends_in_seconds, Some(1));
    daemon.after(Duration::from_millis(1), Event::Tick);
    assert_eq!(backend_a(&mut daemon).override_ends_in_seconds, None);
}

#[test]
fn a_backend_that_nobody_checks_is_not_called_up() {
    let mut daemon = Daemon::serving(UNCHECKED);
    let it = status(&mut daemon);
    assert_eq!((it.backends_up, it.backends_unchecked, it.backends_total), (0, 2, 2));
    let a = backend_a(&mut daemon);
    assert_eq!((a.state.as_str(), a.health.as_str()), ("unchecked", "unchecked"));
    daemon.reload(CHECKED);
    let it = status(&mut daemon);
    assert_eq!((it.backends_up, it.backends_unchecked, it.backends_total), (0, 0, 2));
    assert_eq!(backend_a(&mut daemon).health, "unproven");
}

#[test]
fn a_stop_says_how_long_it_may_last() {
    let mut daemon = Daemon::serving(UNCHECKED);
    daemon.hold_session();
    assert_eq!(status(&mut daemon).stops_in_seconds, None);
    daemon.on(Event::StopAsked);
    assert_eq!(status(&mut daemon).stops_in_seconds, Some(30));
    daemon.after(Duration::from_millis(28_500), Event::Tick);
    assert_eq!(status(&mut daemon).stops_in_seconds, Some(2));
}

#[test]
fn what_a_file_is_warned_of_is_in_the_answer() {
    let mut daemon = Daemon::serving(UNCHECKED);
    let told = |daemon: &mut Daemon| {
        // At once where nothing changes, else when the workers know.
        let mut done = daemon.ask(1, Request::Reload);
        done.extend(daemon.acknowledge());
        match answers(&done)[..] {
            [(1, Reply::Reloaded { notes, .. })] => notes.clone(),
            ref others => panic!("{others:?}"),
        }
    };
    assert_eq!(told(&mut daemon), [""; 0]);
    daemon.warnings = vec!["lbd.yaml:1:1: pools.x: no listener uses this pool".into()];
    for file in [UNCHECKED, CHECKED] {
        daemon.file = Ok(file);
        let warnings = daemon.warnings.clone();
        assert_eq!(told(&mut daemon), warnings);
    }
}
