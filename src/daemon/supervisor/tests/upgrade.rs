//! Upgrades in place: who may ask for one and when, in which order things stand still, and what a successor knows.

use std::fs::File;

use super::*;
use crate::control::{Earnest, Upgrade};
use crate::daemon::event::TookOver;
use crate::daemon::supervisor::CarriedSupervisor;
use crate::daemon::upgrade::{Reserve, Target as Program};
use crate::snapshot::Cells;
use crate::words::{Generation, Health};

fn facts() -> Facts {
    let config_path = Some("lbd.yaml".into());
    Facts { version: "1".into(), pid: 1, uid: 7, workers: 2, pulse: None, keeps: true, kept_file: false, config_path }
}

fn upgrade(earnest: Earnest) -> Request {
    Request::Upgrade(Upgrade { program: None, earnest })
}

fn fit() -> Result<Program, String> {
    let (file, reserve) = (File::open("/dev/null").unwrap(), Reserve::default());
    Ok(Program { file, path: "/usr/sbin/lbd".into(), version: "2".into(), reserve })
}

fn refusal(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Answer(_, Reply::Refused { message, .. }) => Some(message.as_str()),
        _ => None,
    })
}

/// What is done upon these events, one after the other.
fn kinds(actions: &[Action]) -> Vec<&'static str> {
    let kind = |action: &Action| match action {
        Action::CheckTarget(..) => "check",
        Action::ForgetTarget(_) => "forget",
        Action::Freeze => "freeze",
        Action::HandOver(..) => "hand over",
        Action::Notify(Notice::Reloading) => "reloading",
        Action::Notify(Notice::Ready(_)) => "ready",
        Action::Answer(..) => "answer",
        Action::Probe(..) => "probe",
        _ => "other",
    };
    actions.iter().map(kind).collect()
}

fn carried(actions: Vec<Action>) -> CarriedSupervisor {
    let found = actions.into_iter().find_map(|action| match action {
        Action::HandOver(_, carried) => Some(*carried),
        _ => None,
    });
    let text = crate::observe::json::compact(&found.unwrap());
    crate::observe::json::read(text.as_bytes()).unwrap()
}

/// Has everything come to the point where the other program would be executed.
fn handed_over(daemon: &mut Daemon) -> CarriedSupervisor {
    daemon.ask(9, upgrade(Earnest::Done));
    daemon.on(Event::Checked(AskId(9), fit(), 0));
    carried(daemon.on(Event::Frozen(Ok(()))))
}

fn successor(daemon: &Daemon, carried: CarriedSupervisor) -> Supervisor {
    let config = Config::parse(daemon.file.unwrap().as_bytes()).unwrap();
    let cells = Cells::inherit(&carried.cells, 3).unwrap();
    let facts = Facts { version: "2".into(), workers: 3, ..facts() };
    Supervisor::inherit(facts, config, cells, carried, 7, now(daemon.start, daemon.now)).unwrap()
}

#[test]
fn a_program_is_tried_first_and_nothing_is_begun_between_the_freeze_and_the_end_of_it() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    daemon.on(Event::Probed(a(), Ok(())));
    assert_eq!(kinds(&daemon.ask(9, upgrade(Earnest::Done))), ["check"]);
    assert_eq!(kinds(&daemon.on(Event::Checked(AskId(9), fit(), 0))), ["reloading", "freeze"]);
    let frozen = daemon.after(Duration::from_secs(5), Event::Frozen(Ok(())));
    assert_eq!(kinds(&frozen), ["hand over"], "though probes are due");
    let back = daemon.on(Event::NotHandedOver("no memory".into(), None));
    assert!(refusal(&back).is_some_and(|why| why.contains("no memory") && why.contains("lbd 1 serves on")));
    assert!(kinds(&back).contains(&"ready") && kinds(&back).contains(&"probe"), "it goes on: {back:?}");
    assert_eq!(kinds(&daemon.ask(10, upgrade(Earnest::Done))), ["check"], "and may be asked again");
}

#[test]
fn an_upgrade_that_is_refused_says_why_and_leaves_systemd_with_a_service_that_is_ready() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    daemon.ask(9, upgrade(Earnest::Done));
    let refused = daemon.on(Event::Checked(AskId(9), Err("is a script".into()), 0));
    assert!(refusal(&refused).is_some_and(|why| why.contains("is a script")) && !kinds(&refused).contains(&"freeze"));
    daemon.ask(10, upgrade(Earnest::Done));
    daemon.on(Event::Checked(AskId(10), fit(), 0));
    let late = daemon.on(Event::Frozen(Err("worker 1 is late".into())));
    assert!(refusal(&late).is_some_and(|why| why.contains("worker 1 is late")));
    assert!(kinds(&late).contains(&"ready"), "{late:?}");
}

#[test]
fn a_dry_run_and_one_whose_asker_has_gone_do_nothing() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    daemon.hold_session();
    daemon.ask(9, upgrade(Earnest::Tried));
    let tried = daemon.on(Event::Checked(AskId(9), fit(), 0));
    let [(9, Reply::Upgradable { from, to, carried, .. })] = &answers(&tried)[..] else { panic!("{tried:?}") };
    assert_eq!((from.as_str(), to.as_str(), carried[0].as_str()), ("1", "2", "sessions: 1"));
    daemon.ask(10, upgrade(Earnest::Done));
    assert_eq!(kinds(&daemon.on(Event::AskerGone(AskId(10)))), ["forget"]);
    assert_eq!(kinds(&daemon.ask(11, upgrade(Earnest::Tried))), ["check"], "they are in nobody's way");
    assert_eq!(kinds(&daemon.on(Event::Checked(AskId(10), fit(), 0))), [""; 0]);
}

#[test]
fn it_is_refused_beside_another_one_in_a_demo_while_it_stops_and_to_those_who_may_not_name_a_program() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    daemon.ask(9, upgrade(Earnest::Tried));
    assert!(refusal(&daemon.ask(10, upgrade(Earnest::Done))).is_some_and(|why| why.contains("under way")));
    daemon.on(Event::Checked(AskId(9), fit(), 0));
    for (uid, may) in [(0, true), (7, true), (8, false)] {
        let program = Some("/tmp/lbd".into());
        let asked = Request::Upgrade(Upgrade { program, earnest: Earnest::Tried });
        let actions = daemon.on(Event::Asked(AskId(11), asked, Peer { uid, user: None }));
        assert_eq!(refusal(&actions).is_none(), may, "{uid}");
        daemon.on(Event::Checked(AskId(11), fit(), 0));
    }
    let mut demo = Daemon::with(Facts { config_path: None, ..facts() }, CHECKED);
    assert!(refusal(&demo.ask(9, upgrade(Earnest::Done))).is_some_and(|why| why.contains("demo")));
    daemon.hold_session();
    daemon.ask(12, upgrade(Earnest::Done));
    daemon.on(Event::StopAsked);
    let stopping = daemon.on(Event::Checked(AskId(12), fit(), 0));
    assert!(refusal(&stopping).is_some() && !kinds(&stopping).contains(&"freeze"));
}

#[test]
fn a_successor_knows_what_its_predecessor_knew() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    daemon.on(Event::Probed(a(), Ok(())));
    daemon.reload(ONLY_A);
    daemon.hold_session();
    daemon.on(Event::Kept(1, Ok(())));
    let until = Duration::from_secs(60);
    daemon.ask(3, Request::Drain { target: target(), wait: None, reason: Some("disk".into()), expires: Some(until) });
    daemon.on(Event::Kept(2, Ok(())));
    daemon.ask(4, drain(Some(Wait { timeout: None })));
    daemon.acknowledge();
    daemon.after(Duration::from_secs(7), Event::Kept(3, Ok(())));
    let carried = handed_over(&mut daemon);
    let mut next = successor(&daemon, carried);
    assert_eq!(
        (next.generation, next.health_of(&a()), next.admin_of(&a())),
        (Generation(2), Health::Up, AdminState::Draining)
    );
    assert!(next.revision > daemon.supervisor.revision, "workers acknowledge by a greater number");
    let live = |supervisor: &Supervisor| supervisor.cells.backends().map(|cell| cell.live.count()).sum::<u32>();
    assert_eq!((live(&daemon.supervisor), live(&next)), (1, 0), "which follow from the sessions");
    next.cells.backends().for_each(|cell| assert!(cell.live.reserve(None)));

    let at = now(daemon.start, daemon.now);
    let how = TookOver {
        silent: Vec::new(),
        asker: AskId(9),
        from: "1".into(),
        failure: None,
        sessions: 1,
        pause: Duration::from_millis(3),
        shut: Duration::from_millis(8),
        lost: None,
    };
    let begun = next.handle(at, Event::TookOver(how));
    assert!(begun.iter().any(|action| matches!(action, Action::Keep(_, decisions) if decisions.len() == 1)));
    let told = answers(&begun);
    assert!(
        matches!(told[..], [(9, Reply::Upgraded { upgrades: 1, pause_us: 3000, wait_us: 8000, .. })]),
        "at once: {told:?}"
    );
    let number = next.keeping;
    let mut after = next.handle(at, Event::Kept(number, Ok(())));
    after.extend(next.handle(at, Event::Acknowledged(next.revision)));
    assert_eq!(answers(&after), [], "who waits for a drain waits on");
    next.cells.backends().for_each(|cell| _ = cell.live.release());
    let later = Now { at: at.at + Duration::from_secs(1), ..at };
    assert!(matches!(answers(&next.handle(later, Event::Tick))[..], [(4, Reply::Drained { .. })]));
    let status = next.status(later);
    assert_eq!((status.upgrades, status.version.as_str(), status.uptime_seconds), (1, "2", 8));
}

#[test]
fn a_predecessor_that_is_executed_again_answers_with_the_reason() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    let carried = handed_over(&mut daemon);
    let mut again = successor(&daemon, carried);
    let at = now(daemon.start, daemon.now);
    let failure = Some("it panicked".to_owned());
    let how = TookOver {
        silent: Vec::new(),
        asker: AskId(9),
        from: "1".into(),
        failure,
        sessions: 1,
        pause: Duration::ZERO,
        shut: Duration::ZERO,
        lost: None,
    };
    let actions = again.handle(at, Event::TookOver(how));
    assert!(refusal(&actions).is_some_and(|why| why.contains("it panicked") && why.contains("no session was lost")));
    assert!(kinds(&actions).contains(&"ready"));
    assert_eq!(again.status(at).upgrades, 0);
}

#[test]
fn a_backend_that_says_nothing_is_down_in_time_however_often_its_probe_is_broken_off() {
    let mut daemon = Daemon::with(facts(), CHECKED);
    let spec = daemon.supervisor.check_of(&a()).cloned().unwrap();
    let timeout_of = |actions: &[Action]| {
        let found = actions.iter().find_map(|action| match action {
            Action::Probe(key, spec, _) if *key == a() => Some(spec.timeout),
            _ => None,
        });
        found.unwrap()
    };
    daemon.on(Event::Probed(a(), Ok(())));
    let first = daemon.after(spec.interval * 2, Event::Tick);
    assert_eq!(timeout_of(&first), spec.timeout);
    let part = spec.timeout.mul_f64(0.4);
    for rest in [0.6, 0.2] {
        daemon.now += part;
        let carried = handed_over(&mut daemon);
        daemon.supervisor = successor(&daemon, carried);
        let how = TookOver {
            silent: Vec::new(),
            asker: AskId(9),
            from: "1".into(),
            failure: None,
            sessions: 1,
            pause: Duration::ZERO,
            shut: Duration::ZERO,
            lost: None,
        };
        let again = timeout_of(&daemon.on(Event::TookOver(how)));
        assert_eq!(again, spec.timeout.mul_f64(rest).max(Duration::from_millis(100)), "of {:?}", spec.timeout);
    }
    daemon.on(Event::Probed(a(), Err("no answer".into())));
    assert_eq!(timeout_of(&daemon.after(spec.interval * 2, Event::Tick)), spec.timeout, "the next one is whole");
}
