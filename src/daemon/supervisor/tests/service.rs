//! What the supervisor does as a service: what a stop is for, and the proof that everything turns.

use super::*;
use crate::daemon::event::Queues;
use crate::proxy::Unaccepted;

const PATIENT: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001 } } }
drain_timeout: 30s
restart_drain: 400ms
";

/// What becomes of those who wait where the doors are let go.
fn let_go(actions: &[Action]) -> Option<Unaccepted> {
    actions.iter().find_map(|action| match action {
        Action::Publish { doors, .. } if !doors.release.is_empty() => Some(doors.unaccepted),
        _ => None,
    })
}

fn cuts(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Cut(_)))
}

#[test]
fn a_stop_drains_for_drain_timeout_and_a_restart_for_restart_drain() {
    for (job, unaccepted, patience) in [
        (Job::Stop, Unaccepted::Accept, 30_000),
        (Job::Restart(Queues::Kept), Unaccepted::Leave, 400),
        (Job::Restart(Queues::Lost), Unaccepted::Accept, 400),
    ] {
        let mut daemon = Daemon::serving(PATIENT);
        daemon.job = Some(job);
        daemon.hold_session();
        let asked = daemon.on(Event::StopAsked);
        assert_eq!(let_go(&asked), Some(unaccepted), "{job:?}");
        daemon.acknowledge();
        let before = daemon.after(Duration::from_millis(patience - 1), Event::Tick);
        assert!(!cuts(&before) && !has_exit(&before), "{job:?}: not before");
        assert!(cuts(&daemon.after(Duration::from_millis(1), Event::Tick)), "{job:?}");
        daemon.end_session();
        assert!(has_exit(&daemon.after(Duration::from_millis(50), Event::Tick)));
    }
}

#[test]
fn it_serves_until_it_is_known_what_the_stop_is_for_and_a_second_wish_does_not_wait() {
    let mut daemon = Daemon::serving(PATIENT);
    daemon.job = None;
    daemon.hold_session();
    let asked = daemon.on(Event::StopAsked);
    assert!(matches!(asked[..], [Action::AskJob]), "{asked:?}");
    daemon.acknowledge();
    assert!(matches!(answers(&daemon.ask(1, Request::Reload))[..], [(1, Reply::Reloaded { .. })]));
    let again = daemon.on(Event::StopAsked);
    assert_eq!(let_go(&again), Some(Unaccepted::Accept));
    assert!(cuts(&again));
    let late = daemon.on(Event::JobKnown(Job::Restart(Queues::Kept)));
    assert!(let_go(&late).is_none(), "the answer comes too late: {late:?}");
}

#[test]
fn lbctl_shutdown_is_a_stop_whatever_the_service_manager_has_in_mind() {
    let mut daemon = Daemon::serving(PATIENT);
    daemon.job = Some(Job::Restart(Queues::Kept));
    let asked = daemon.ask(1, Request::Shutdown { mode: ShutdownMode::Graceful });
    assert!(!asked.iter().any(|action| matches!(action, Action::AskJob)));
    assert_eq!(let_go(&asked), Some(Unaccepted::Accept));
}

fn asked_to_turn(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::AskTurns(number) => Some(*number),
        _ => None,
    })
}

fn is_told(actions: &[Action]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Notify(Notice::Alive)))
}

#[test]
fn the_watchdog_is_fed_only_when_all_workers_have_turned() {
    let pulse = Some(Duration::from_secs(5));
    let mut daemon = Daemon::with(
        Facts {
            version: "0".into(),
            pid: 1,
            uid: 0,
            workers: 2,
            pulse,
            keeps: false,
            kept_file: false,
            config_path: None,
        },
        PATIENT,
    );
    assert!(is_told(&daemon.on(Event::Turned(1))), "asked for at the start");
    assert_eq!(asked_to_turn(&daemon.after(Duration::from_secs(4), Event::Tick)), None);
    assert_eq!(asked_to_turn(&daemon.after(Duration::from_secs(1), Event::Tick)), Some(2));
    // One hangs: whatever else happens, nothing is told, and nobody is asked again.
    for _ in 0..20 {
        let done = daemon.after(Duration::from_secs(1), Event::Tick);
        assert!(!is_told(&done) && asked_to_turn(&done).is_none(), "{done:?}");
    }
    assert!(is_told(&daemon.on(Event::Turned(2))));
}

#[test]
fn the_watchdog_is_fed_each_second_of_a_drain_and_on_the_same_terms() {
    let pulse = Some(Duration::from_secs(5));
    let mut daemon = Daemon::with(
        Facts {
            version: "0".into(),
            pid: 1,
            uid: 0,
            workers: 2,
            pulse,
            keeps: false,
            kept_file: false,
            config_path: None,
        },
        PATIENT,
    );
    daemon.on(Event::Turned(1));
    daemon.hold_session();
    daemon.on(Event::StopAsked);
    for number in 2..5 {
        let done = daemon.after(Duration::from_secs(1), Event::Tick);
        assert_eq!(asked_to_turn(&done), Some(number));
        assert!(done.iter().any(|action| matches!(action, Action::Notify(Notice::Extend(..)))));
        assert!(is_told(&daemon.on(Event::Turned(number))));
    }
    daemon.after(Duration::from_secs(1), Event::Tick);
    let done = daemon.after(Duration::from_secs(1), Event::Tick);
    assert!(!is_told(&done), "{done:?}");
}

#[test]
fn a_wall_clock_that_jumps_ends_no_override_and_has_what_is_left_written_down_anew() {
    let facts = Facts { keeps: true, ..Daemon::serving(CHECKED).supervisor.facts.clone() };
    let mut daemon = Daemon::with(facts, CHECKED);
    let target = Target::Named { backend: "a".parse().unwrap(), pools: Pools::One };
    let expires = Some(Duration::from_secs(3600));
    let drain = Request::Drain { target, wait: None, reason: None, expires };
    daemon.on(Event::Asked(AskId(1), drain, Peer { uid: 0, user: None }));
    let kept = |done: &[Action]| {
        let left = |action: &Action| match action {
            Action::Keep(_, decisions) => decisions[0].left,
            _ => None,
        };
        done.iter().filter_map(left).collect::<Vec<_>>()
    };
    assert!(kept(&daemon.after(Duration::from_secs(60), Event::Tick)).is_empty(), "nothing has happened");
    let year = Duration::from_secs(365 * 24 * 3600);
    daemon.now += Duration::from_secs(60);
    let now = now(daemon.start, daemon.now);
    let heard = Now { wall: now.wall + 30 * year, ..now };
    assert_eq!(kept(&daemon.supervisor.handle(heard, Event::Tick)), [Duration::from_secs(3480)]);
    let later = Now {
        at: heard.at + Duration::from_secs(60),
        micros: heard.micros + 60_000_000,
        wall: heard.wall + Duration::from_secs(60),
    };
    assert!(kept(&daemon.supervisor.handle(later, Event::Tick)).is_empty());
    assert!(!daemon.supervisor.overrides.is_empty());
}
