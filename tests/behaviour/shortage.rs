//! Descriptors run out: accepting pauses, it is said once, little CPU is used, and all is well again by itself.

use std::time::{Duration, Instant};

use socket2::Socket;

use crate::backend::{Backend, greeting};
use crate::client::{connect, echoes, until};
use crate::daemon::{Lbd, web};

#[test]
fn a_small_limit_at_the_start_bounds_the_sessions_and_the_others_wait() {
    let backend = Backend::start(greeting("hello"));
    let lbd = Lbd::with_descriptors(128, &web(&[("a", &backend)], ""));
    let mut clients: Vec<Socket> = (0..100).map(|_| connect(lbd.web())).collect();
    let most = lbd.most_sessions();
    assert!((20..32).contains(&most), "{most} of 128 descriptors");
    backend.await_accepted(most as usize);
    let (cpu, start) = (lbd.cpu(), Instant::now());
    until("a second passes", || (start.elapsed() > Duration::from_secs(1)).then_some(()));
    let used = lbd.cpu() - cpu;
    assert!(used < 0.3, "{used} s of CPU in a second of waiting");
    let active = lbd.listener("web")["connections_active"].as_u64().unwrap();
    assert_eq!((active, backend.accepted() as u64), (most, most));
    while !clients.is_empty() {
        clients.drain(..clients.len().min(20));
        until("their places are taken", || {
            let web = lbd.listener("web");
            (web["connections_total"].as_u64() >= Some(100 - clients.len() as u64)).then_some(())
        });
    }
    until("all are served", || (lbd.listener("web")["connections_total"] == 100).then_some(()));
    assert_eq!(lbd.log().matches("as many sessions as its descriptors allow").count(), 1, "{}", lbd.log());
    // The spell must be over, or the next one is not told.
    lbd.await_log("accepting as before");
}

#[test]
fn descriptors_taken_away_while_it_runs_make_it_pause_and_no_longer_than_they_are_missing() {
    let backend = Backend::start(greeting("hello"));
    let lbd = Lbd::start(&web(&[("a", &backend)], ""));
    let to = lbd.web();
    let held: Vec<Socket> = (0..10).map(|_| connect(to)).collect();
    backend.await_accepted(10);
    lbd.limit_descriptors(24);
    let late: Vec<Socket> = (0..40).map(|_| connect(to)).collect();
    lbd.await_log("out of resources");
    let (cpu, start) = (lbd.cpu(), Instant::now());
    until("a second passes", || (start.elapsed() > Duration::from_secs(1)).then_some(()));
    let used = lbd.cpu() - cpu;
    assert!(used < 0.3, "{used} s of CPU in a second of waiting");
    held.iter().for_each(echoes_after_greeting);
    lbd.limit_descriptors(4096);
    late.iter().for_each(echoes_after_greeting);
    assert_eq!(lbd.log().matches("out of resources").count(), 1, "{}", lbd.log());
    assert_eq!(lbd.listener("web")["refused"], serde_json::json!({}));
}

fn echoes_after_greeting(mut client: &Socket) {
    use std::io::Read;
    client.read_exact(&mut [0; 5]).unwrap();
    echoes(client).unwrap();
}
