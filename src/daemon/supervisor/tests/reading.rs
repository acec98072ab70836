//! A file system that is away, and everything else that goes on.

use super::*;
use crate::daemon::supervisor::reading::PATIENCE;

fn refusals(done: &[Action]) -> Vec<(u64, String)> {
    let refusal = |action: &Action| match action {
        Action::Answer(ask, Reply::Refused { message, .. }) => Some((ask.0, message.clone())),
        _ => None,
    };
    done.iter().filter_map(refusal).collect()
}

fn is_ready(done: &[Action]) -> bool {
    done.iter().any(|action| matches!(action, Action::Notify(Notice::Ready(_))))
}

fn reads(done: &[Action]) -> usize {
    done.iter().filter(|action| matches!(action, Action::ReadConfig)).count()
}

#[test]
fn while_the_file_hangs_probes_go_on_and_everybody_who_waits_for_it_is_refused_in_time() {
    let mut daemon = Daemon::serving(CHECKED);
    (daemon.away, daemon.file) = (true, Ok(ONLY_A));
    let reload = |n| Event::Asked(AskId(n), Request::Reload, Peer { uid: 0, user: None });
    assert_eq!(reads(&daemon.on(reload(1))), 1);
    daemon.on(Event::Probed(a(), Ok(())));
    let probed = daemon.after(Duration::from_secs(3), Event::Tick);
    assert!(probed.iter().any(|action| matches!(action, Action::Probe(..))), "{probed:?}");
    assert_eq!(reads(&daemon.on(reload(2))), 0, "one thing at a time");
    for _ in 0..100 {
        daemon.on(Event::ReloadAsked(ReloadBy::Signal));
    }
    assert_eq!(daemon.supervisor.next_reload.len(), 2, "who cannot be answered waits once");
    let over = daemon.start + PATIENCE;
    assert!(daemon.supervisor.next_deadline().is_some_and(|at| at <= over));
    let done = daemon.after(PATIENCE, Event::Tick);
    let told = refusals(&done);
    assert_eq!(told.iter().map(|(ask, _)| *ask).collect::<Vec<_>>(), [2, 1]);
    assert!(told.iter().all(|(_, why)| why.contains("does not answer; what is in force stays")), "{told:?}");
    assert!(is_ready(&done) && done.iter().any(|action| matches!(action, Action::ForgetRead)));

    // It hangs on. Who asks now waits for the thread, and is told in time too.
    assert_eq!(reads(&daemon.on(reload(3))), 0);
    let done = daemon.after(PATIENCE, Event::Tick);
    assert_eq!(refusals(&done).len(), 1);
    assert!(!done.iter().any(|action| matches!(action, Action::ForgetRead)), "it is forgotten already");

    // It answers. What was read then is nobody's; the signal, which nobody could refuse, is a reload now.
    daemon.away = false;
    let done = daemon.on(Event::LateReadIsOver);
    assert_eq!(reads(&done), 1);
    assert!(daemon.supervisor.generation.0 == 2 && is_ready(&done));
}

#[test]
fn a_reload_that_waits_for_the_thread_has_the_file_as_it_is_then() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.away = true;
    let reload = |n| Event::Asked(AskId(n), Request::Reload, Peer { uid: 0, user: None });
    daemon.on(reload(1));
    daemon.after(PATIENCE, Event::Tick);
    daemon.on(reload(2));
    (daemon.away, daemon.file) = (false, Ok(ONLY_A));
    daemon.on(Event::LateReadIsOver);
    assert_eq!(daemon.supervisor.generation.0, 2);
    assert!(daemon.supervisor.reload.is_none() && daemon.supervisor.next_reload.is_empty());
}

#[test]
fn a_successor_reads_the_file_for_whoever_waits_for_it() {
    let mut daemon = Daemon::serving(CHECKED);
    daemon.away = true;
    daemon.on(Event::ReloadAsked(ReloadBy::Watcher));
    daemon.on(Event::Asked(AskId(4), Request::Reload, Peer { uid: 0, user: None }));
    let unfinished: Vec<ReloadBy> = daemon.supervisor.unfinished_reloads().collect();
    assert_eq!(unfinished, [ReloadBy::Watcher, ReloadBy::Operator(AskId(4))]);
}
