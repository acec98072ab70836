//! Listening sockets that are ended from outside, paths that are removed, and listeners at their limit.

use super::*;

const UNIX: &str = "listeners: { web: { bind: [\"unix:/run/web.sock\", 127.0.0.1:8080], pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001 } } }
";

fn tcp() -> Address {
    "127.0.0.1:8080".parse().unwrap()
}

fn rebinds(done: &[Action]) -> Vec<(Address, Vec<usize>)> {
    let lost = done.iter().filter_map(|action| match action {
        Action::Rebind(lost) => Some(lost.iter().map(|(a, workers)| (a.clone(), workers.iter().copied().collect()))),
        _ => None,
    });
    lost.flatten().collect()
}

#[test]
fn the_ends_of_all_sockets_of_an_address_are_one_rebinding_and_a_failing_one_is_made_again_with_pauses() {
    let mut daemon = Daemon::serving(ONLY_A);
    assert_eq!(rebinds(&daemon.on(Event::SocketEnded(tcp(), 0))), []);
    daemon.after(Duration::from_millis(1), Event::SocketEnded(tcp(), 1));
    let done = daemon.after(Duration::from_millis(5), Event::Tick);
    assert_eq!(rebinds(&done), [(tcp(), vec![0, 1])]);
    assert_eq!(rebinds(&daemon.after(Duration::from_secs(1), Event::Tick)), [], "one at a time");
    let mut pauses = Vec::new();
    for _ in 0..8 {
        daemon.on(Event::Rebound(vec![(tcp(), Err("is in use".into()))]));
        let before = daemon.now;
        loop {
            let next = daemon.supervisor.next_deadline().unwrap().max(daemon.now);
            daemon.now = next;
            if !rebinds(&daemon.on(Event::Tick)).is_empty() {
                break;
            }
            daemon.now += Duration::from_millis(1);
        }
        pauses.push((daemon.now - before).as_millis() / 100);
    }
    assert_eq!(pauses[..3], [1, 2, 4]);
    assert_eq!(pauses[7], 50);
    assert!(daemon.supervisor.stats(now(daemon.start, daemon.now)).listeners[0].unbound[0].contains("is in use"));

    daemon.on(Event::Rebound(vec![(tcp(), Ok(()))]));
    assert!(daemon.supervisor.stats(now(daemon.start, daemon.now)).listeners[0].unbound.is_empty());
    assert_eq!(rebinds(&daemon.after(Duration::from_secs(60), Event::Tick)), []);
}

#[test]
fn a_reload_tries_again_at_once_and_its_answer_waits_for_that() {
    let mut daemon = Daemon::serving(UNIX);
    daemon.on(Event::SocketEnded(tcp(), 0));
    daemon.after(Duration::from_millis(5), Event::Tick);
    daemon.on(Event::Rebound(vec![(tcp(), Err("is in use".into()))]));
    let done = daemon.ask(3, Request::Reload);
    assert_eq!(rebinds(&done), [(tcp(), vec![0])]);
    assert!(done.iter().any(|action| matches!(action, Action::LookAtSockets(_))));

    // A path that is missed meanwhile holds the answer back, too.
    let path: Address = "unix:/run/web.sock".parse().unwrap();
    daemon.on(Event::Rebound(vec![(tcp(), Ok(()))]));
    let look = daemon.supervisor.last_look();
    let done = daemon.on(Event::LookedAtSockets(look, vec![(path.clone(), "its socket file was removed".into())]));
    assert_eq!(rebinds(&done), [(path.clone(), vec![0, 1])], "at once");
    let answered = |done: &[Action]| done.iter().any(|action| matches!(action, Action::Answer(..)));
    let done = daemon.ask(4, Request::Reload);
    assert!(!answered(&done), "{done:?}");
    let done = daemon.on(Event::Rebound(vec![(path, Ok(()))]));
    assert!(answered(&done), "{done:?}");
}

#[test]
fn paths_are_looked_at_every_five_seconds_and_only_where_there_are_some() {
    let looks = |done: &[Action]| done.iter().filter(|action| matches!(action, Action::LookAtSockets(_))).count();
    let mut daemon = Daemon::serving(ONLY_A);
    assert_eq!(looks(&daemon.after(Duration::from_secs(30), Event::Tick)), 0);
    let mut daemon = Daemon::serving(UNIX);
    daemon.on(Event::Tick);
    assert!(daemon.supervisor.next_deadline().is_some_and(|at| at <= daemon.now + Duration::from_secs(5)));
    assert_eq!(looks(&daemon.after(Duration::from_secs(5), Event::Tick)), 1);
    assert_eq!(looks(&daemon.after(Duration::from_secs(1), Event::Tick)), 0);
}

#[test]
fn an_address_that_a_reload_lets_go_is_nobodys_loss() {
    let mut daemon = Daemon::serving(UNIX);
    daemon.on(Event::SocketEnded("unix:/run/web.sock".parse().unwrap(), 0));
    daemon.reload(ONLY_A);
    assert_eq!(rebinds(&daemon.after(Duration::from_secs(1), Event::Tick)), []);
    daemon.on(Event::SocketEnded("10.0.0.1:1".parse().unwrap(), 0));
    assert_eq!(rebinds(&daemon.after(Duration::from_secs(1), Event::Tick)), []);
}

#[test]
fn a_spell_at_the_limit_goes_on_while_clients_wait_and_is_over_after_some_calm() {
    let mut daemon = Daemon::serving(
        "listeners: { web: { bind: 127.0.0.1:8080, pool: web, max_connections: 1 } }
pools: { web: { backends: { a: 127.0.0.1:9001 } } }
",
    );
    let is_told = |daemon: &Daemon| !daemon.supervisor.at_limit.is_empty();
    daemon.after(Duration::from_secs(2), Event::Tick);
    assert!(!is_told(&daemon));
    daemon.hold_session();
    daemon.after(Duration::from_secs(2), Event::Tick);
    assert!(is_told(&daemon));
    for _ in 0..3 {
        daemon.end_session();
        daemon.after(Duration::from_secs(2), Event::Tick);
        daemon.hold_session();
        daemon.after(Duration::from_secs(2), Event::Tick);
        assert!(is_told(&daemon));
    }
    daemon.end_session();
    daemon.after(Duration::from_secs(4), Event::Tick);
    assert!(is_told(&daemon), "not yet");
    daemon.after(Duration::from_secs(2), Event::Tick);
    assert!(!is_told(&daemon));
    // Somebody was left waiting between two looks.
    let at = now(daemon.start, daemon.now).micros;
    daemon.supervisor.snapshot.listeners[0].cell.is_full(at);
    daemon.after(Duration::from_secs(2), Event::Tick);
    assert!(is_told(&daemon));
}
