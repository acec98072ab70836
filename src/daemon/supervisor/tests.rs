//! Single histories of the supervisor, named after what they promise or after what once went wrong.

mod listening;
mod reading;
mod service;
mod told;
mod upgrade;

use std::time::{Duration, Instant, SystemTime};

use super::{Facts, Supervisor};
use crate::config::Config;
use crate::control::{Peer, Pools, Reply, Request, ShutdownMode, Target, Wait};
use crate::daemon::action::{Action, Exit, Notice};
use crate::daemon::event::{AskId, BackendKey, Event, FileRead, Job, Now, ReloadBy};
use crate::words::{Address, AdminState};

const CHECKED: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001, b: 127.0.0.1:9002 }, health_check: { interval: 2s } } }
";
const ONLY_A: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001 }, health_check: { interval: 2s } } }
";
const ONLY_B: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { b: 127.0.0.1:9002 }, health_check: { interval: 2s } } }
";

/// A supervisor whose actions are performed at once, but for probes and acknowledgements: those come when told.
struct Daemon {
    supervisor: Supervisor,
    start: Instant,
    now: Instant,
    file: Result<&'static str, &'static str>,
    free: bool,
    /// The file system is away: nothing comes of reading the file.
    away: bool,
    /// What the operator should know of the file.
    warnings: Vec<String>,
    /// What the service manager answers; `None`: it is asked in vain for now.
    job: Option<Job>,
}

impl Daemon {
    fn serving(file: &'static str) -> Self {
        Self::with(
            Facts {
                version: "0".into(),
                pid: 1,
                uid: 0,
                workers: 2,
                pulse: None,
                keeps: false,
                kept_file: false,
                config_path: None,
            },
            file,
        )
    }

    fn with(facts: Facts, file: &'static str) -> Self {
        let start = Instant::now();
        let supervisor = Supervisor::new(facts, Vec::new(), 7, now(start, start));
        let mut daemon = Self {
            supervisor,
            start,
            now: start,
            file: Ok(file),
            free: true,
            away: false,
            warnings: Vec::new(),
            job: Some(Job::Stop),
        };
        daemon.on(Event::ReloadAsked(ReloadBy::Start));
        daemon.acknowledge();
        daemon
    }

    /// What is done upon an event, the reading and binding that follow from it included.
    fn on(&mut self, event: Event) -> Vec<Action> {
        let mut done = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.supervisor.handle(now(self.start, self.now), event) {
                match &action {
                    Action::ReadConfig if self.away => {}
                    Action::ReadConfig => events.push(Event::ConfigRead(match self.file {
                        Ok(text) => FileRead::Right(Box::new(Config::parse(text).unwrap()), self.warnings.clone()),
                        Err(why) => FileRead::Unreadable(why.into()),
                    })),
                    Action::Bind(addresses, _) if self.free => {
                        events.push(Event::Bound(addresses.iter().map(|a| (a.clone(), a.clone())).collect()));
                    }
                    Action::Bind(addresses, _) => {
                        events.push(Event::NotBound(vec![(addresses[0].clone(), "is in use".into())]));
                    }
                    Action::LookAtSockets(number) => events.push(Event::LookedAtSockets(*number, Vec::new())),
                    Action::AskJob => events.extend(self.job.map(Event::JobKnown)),
                    _ => {}
                }
                done.push(action);
            }
        }
        done
    }

    fn after(&mut self, time: Duration, event: Event) -> Vec<Action> {
        self.now += time;
        self.on(event)
    }

    fn ask(&mut self, id: u64, request: Request) -> Vec<Action> {
        self.on(Event::Asked(AskId(id), request, Peer { uid: 0, user: None }))
    }

    fn acknowledge(&mut self) -> Vec<Action> {
        self.on(Event::Acknowledged(self.supervisor.revision))
    }

    fn reload(&mut self, file: &'static str) -> Vec<Action> {
        self.file = Ok(file);
        self.on(Event::ReloadAsked(ReloadBy::Signal))
    }

    /// Holds a session of backend a.
    fn hold_session(&self) {
        let (listener, backend) =
            (&self.supervisor.snapshot.listeners[0], &self.supervisor.snapshot.pools[0].backends[0]);
        assert!(listener.cell.live.reserve(None) && backend.cell.live.reserve(None));
    }

    fn end_session(&self) {
        let (listener, backend) =
            (&self.supervisor.snapshot.listeners[0], &self.supervisor.snapshot.pools[0].backends[0]);
        listener.cell.live.release();
        backend.cell.live.release();
    }
}

fn now(start: Instant, at: Instant) -> Now {
    Now { at, micros: 1 + (at - start).as_micros() as u64, wall: SystemTime::UNIX_EPOCH + (at - start) }
}

fn a() -> BackendKey {
    let Target::Exactly(reference) = Target::parse("web/a", Pools::One).unwrap() else { unreachable!() };
    (reference, "127.0.0.1:9001".parse().unwrap())
}

fn target() -> Target {
    Target::Exactly(a().0)
}

fn drain(wait: Option<Wait>) -> Request {
    Request::Drain { target: target(), wait, reason: None, expires: None }
}

fn answers(actions: &[Action]) -> Vec<(u64, &Reply)> {
    let answers = actions.iter().filter_map(|action| match action {
        Action::Answer(ask, reply) => Some((ask.0, reply)),
        _ => None,
    });
    answers.collect()
}

fn probes_of(actions: &[Action], key: &BackendKey) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Probe(k, ..) if k == key)).count()
}

fn has_exit(actions: &[Action]) -> bool {
    matches!(actions.last(), Some(Action::Exit(Exit::Stopped)))
}

#[test]
fn trouble_with_probing_is_shown_while_it_lasts_and_is_no_failure_of_the_backend() {
    let mut daemon = Daemon::serving(CHECKED);
    let shown = |daemon: &Daemon| daemon.supervisor.status(now(daemon.start, daemon.now)).warnings;
    daemon.after(Duration::from_secs(1), Event::Tick);
    daemon.on(Event::NotProbed(a(), "too many open files".into()));
    daemon.on(Event::ProbeBegan(a(), Duration::from_millis(900)));
    let warnings = shown(&daemon);
    assert!(
        warnings.iter().any(|w| w.contains("cannot be probed") && w.contains("too many open files")),
        "{warnings:?}"
    );
    assert!(!warnings.iter().any(|w| w.contains("late")), "less than half of an interval: {warnings:?}");
    daemon.on(Event::ProbeBegan(a(), Duration::from_secs(8)));
    let warnings = shown(&daemon);
    assert!(warnings.iter().any(|w| w.contains("probes of pool web are 8.0 s late")), "{warnings:?}");
    assert_eq!(daemon.supervisor.backends[&a()].probes_failed, 0);
    let again = daemon.after(Duration::from_millis(500), Event::Tick);
    assert_eq!(probes_of(&again, &a()), 1, "it is tried again soon");
    daemon.on(Event::Probed(a(), Ok(())));
    (0..20).for_each(|_| drop(daemon.after(Duration::from_millis(500), Event::Tick)));
    let warnings = shown(&daemon);
    assert!(!warnings.iter().any(|w| w.contains("probe")), "{warnings:?}");
}

#[test]
fn a_probe_that_is_due_while_stopping_keeps_nobody_awake() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.hold_session();
    daemon.on(Event::StopAsked);
    daemon.after(Duration::from_secs(10), Event::Tick);
    let deadline = daemon.supervisor.next_deadline();
    assert!(deadline.is_some_and(|at| at > daemon.now), "{deadline:?}");
}

#[test]
fn a_stop_at_once_lets_go_of_the_doors_and_does_not_last_however_often_it_is_asked_for() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.hold_session();
    let asked = daemon.ask(1, Request::Shutdown { mode: ShutdownMode::Now });
    let door: Address = "127.0.0.1:8080".parse().unwrap();
    assert!(
        asked.iter().any(|a| matches!(a, Action::Publish { doors, .. } if doors.release == [door.clone()])),
        "{asked:?}"
    );
    assert!(asked.iter().any(|a| matches!(a, Action::Notify(Notice::Stopping(_)))), "{asked:?}");
    assert!(!has_exit(&asked));
    daemon.now += Duration::from_millis(900);
    assert!(has_exit(&daemon.ask(2, Request::Shutdown { mode: ShutdownMode::Now })));
}

#[test]
fn who_waits_for_a_drain_is_answered_before_the_daemon_leaves() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.hold_session();
    daemon.ask(1, drain(Some(Wait { timeout: None })));
    assert!(answers(&daemon.acknowledge()).is_empty());
    daemon.on(Event::StopAsked);
    daemon.on(Event::StopAsked);
    let last = daemon.after(Duration::from_secs(2), Event::Tick);
    assert!(matches!(answers(&last)[..], [(1, Reply::TimedOut { left: 1, .. })]), "{last:?}");
    assert!(has_exit(&last));
}

#[test]
fn a_drain_is_over_with_the_last_session_or_at_its_timeout_and_no_sooner() {
    for (ends, seconds) in [(true, 3), (false, 5)] {
        let mut daemon = Daemon::serving(CHECKED);
        daemon.hold_session();
        daemon.ask(1, drain(Some(Wait { timeout: Some(Duration::from_secs(5)) })));
        assert!(answers(&daemon.acknowledge()).is_empty());
        assert!(answers(&daemon.after(Duration::from_secs(seconds - 1), Event::Tick)).is_empty());
        if ends {
            daemon.end_session();
        }
        let then = daemon.after(Duration::from_secs(1), Event::Tick);
        let right = match answers(&then)[..] {
            [(1, Reply::Drained { .. })] => ends,
            [(1, Reply::TimedOut { left: 1, .. })] => !ends,
            _ => false,
        };
        assert!(right, "{then:?}");
    }
}

#[test]
fn a_drain_that_was_taken_back_is_not_answered_as_drained() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.hold_session();
    daemon.ask(1, drain(Some(Wait { timeout: None })));
    daemon.acknowledge();
    let then = daemon.ask(2, Request::Enable { target: target() });
    assert!(matches!(answers(&then)[..], [(1, Reply::Refused { .. })]), "{then:?}");
    daemon.end_session();
    assert!(matches!(answers(&daemon.acknowledge())[..], [(2, Reply::Changed { .. })]));
}

#[test]
fn a_drain_whose_time_was_over_before_a_reload_removed_the_backend_is_not_answered_as_drained() {
    let mut daemon = Daemon::serving(CHECKED);
    let (wait, expires) = (Some(Wait { timeout: None }), Some(Duration::from_secs(1)));
    daemon.ask(1, Request::Drain { target: target(), wait, reason: None, expires });
    let drained = daemon.supervisor.revision;
    let over = daemon.after(Duration::from_secs(1), Event::Tick);
    let told = answers(&over).len();
    daemon.reload(ONLY_B);
    let late = daemon.on(Event::Acknowledged(drained)); // a worker may still choose it by the snapshot in between
    assert!(!answers(&late).iter().any(|(_, reply)| matches!(reply, Reply::Drained { .. })), "{late:?}");
    assert_eq!(told, 1);
}

#[test]
fn a_drain_goes_on_when_a_reload_removes_the_backend() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.hold_session();
    let cell = std::sync::Arc::clone(&daemon.supervisor.snapshot.pools[0].backends[0].cell);
    daemon.ask(1, drain(Some(Wait { timeout: None })));
    daemon.acknowledge();
    assert!(answers(&daemon.reload(ONLY_B)).is_empty());
    assert!(answers(&daemon.acknowledge()).is_empty());
    cell.live.release();
    assert!(matches!(answers(&daemon.after(Duration::from_secs(1), Event::Tick))[..], [(1, Reply::Drained { .. })]));
}

#[test]
fn a_backend_that_comes_back_while_it_is_probed_is_not_probed_twice_at_a_time() {
    let mut daemon = Daemon::serving(CHECKED);
    assert!(daemon.supervisor.probing.contains(&a()), "the first verdict is sought at once");
    daemon.reload(ONLY_B);
    daemon.reload(CHECKED);
    assert_eq!(probes_of(&daemon.after(Duration::from_secs(1), Event::Tick), &a()), 0);
    daemon.on(Event::Probed(a(), Ok(())));
    assert_eq!(probes_of(&daemon.after(Duration::from_secs(3), Event::Tick), &a()), 1);
}

#[test]
fn a_result_that_comes_after_a_disable_counts_for_nothing_and_enable_probes_anew() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.after(Duration::from_secs(1), Event::Tick);
    let live = crate::control::LiveSessions::Keep;
    daemon.ask(1, Request::Disable { target: target(), live, reason: None, expires: None });
    daemon.on(Event::Probed(a(), Ok(())));
    assert_eq!(daemon.supervisor.backends[&a()].probes_ok, 0);
    assert_eq!(probes_of(&daemon.after(Duration::from_secs(9), Event::Tick), &a()), 0);
    assert_eq!(probes_of(&daemon.ask(2, Request::Enable { target: target() }), &a()), 1);
}

#[test]
fn overrides_survive_reloads_while_the_backend_stays_and_end_when_their_time_is_over() {
    let mut daemon = Daemon::serving(CHECKED);
    let expires = Some(Duration::from_secs(5));
    daemon.ask(1, Request::Drain { target: target(), wait: None, reason: None, expires });
    daemon.reload(ONLY_A);
    assert_eq!(daemon.supervisor.snapshot.pools[0].backends[0].admin, AdminState::Draining);
    daemon.after(Duration::from_secs(5), Event::Tick);
    daemon.after(Duration::from_secs(1), Event::Tick);
    assert_eq!(daemon.supervisor.snapshot.pools[0].backends[0].admin, AdminState::Enabled);

    daemon.ask(2, drain(None));
    daemon.reload(ONLY_B);
    daemon.reload(CHECKED);
    assert_eq!(daemon.supervisor.snapshot.pools[0].backends[0].admin, AdminState::Enabled, "it was gone meanwhile");
}

#[test]
fn what_the_watcher_may_not_do_lbctl_does() {
    let two = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001 } }, api: { backends: { a: 127.0.0.1:9003 } } }
";
    let mut daemon = Daemon::serving(two);
    daemon.file = Ok(ONLY_B);
    daemon.on(Event::ReloadAsked(ReloadBy::Watcher));
    assert_eq!(daemon.supervisor.generation.0, 1);
    daemon.ask(1, Request::Reload);
    assert!(matches!(answers(&daemon.acknowledge())[..], [(1, Reply::Reloaded { generation: 2, .. })]));
}

#[test]
fn a_refused_reload_changes_nothing_says_why_and_leaves_systemd_ready() {
    let moved = "listeners: { web: { bind: 127.0.0.1:8081, pool: web } }
pools: { web: { backends: { c: 127.0.0.1:9003 } } }
";
    for (file, free, why) in [(Err("lbd.yaml: is gone"), true, "is gone"), (Ok(moved), false, "listeners.web")] {
        let mut daemon = Daemon::serving(CHECKED);
        let before = std::sync::Arc::clone(&daemon.supervisor.snapshot);
        (daemon.file, daemon.free) = (file, free);
        let done = daemon.ask(1, Request::Reload);
        assert!(
            matches!(answers(&done)[..], [(1, Reply::Refused { message, .. })] if message.contains(why)),
            "{done:?}"
        );
        let notices: Vec<_> = done.iter().filter(|a| matches!(a, Action::Notify(_))).collect();
        assert!(
            matches!(notices[..], [Action::Notify(Notice::Reloading), Action::Notify(Notice::Ready(_))]),
            "{notices:?}"
        );
        assert!(std::sync::Arc::ptr_eq(&before, &daemon.supervisor.snapshot));
        assert_eq!(daemon.supervisor.generation.0, 1);
    }
}

#[test]
fn lbctl_waits_for_the_workers_where_the_watcher_was_quicker_too() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.file = Ok(ONLY_A);
    daemon.on(Event::ReloadAsked(ReloadBy::Watcher));
    assert_eq!(answers(&daemon.ask(1, Request::Reload)), [], "no worker has it yet");
    assert!(matches!(answers(&daemon.acknowledge())[..], [(1, Reply::Reloaded { generation: 2, .. })]));
    assert!(matches!(answers(&daemon.ask(2, Request::Reload))[..], [(2, Reply::Reloaded { generation: 2, .. })]));
}
