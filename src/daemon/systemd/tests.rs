//! What systemd hears, played by sockets of the tests.

use super::*;
use std::process::Command;

/// Set for the copy of this test program that plays the daemon: sd_notify reads the environment, and
/// setting that of a process with threads is unsafe.
const PLAY: &str = "LBD_TEST_SYSTEMD";

/// Runs `test` again in a process of its own, where it comes here to `play`; here, what systemd then received.
fn heard(test: &str, variables: &[(&str, &str)], play: fn(&Notifier)) -> Option<Vec<String>> {
    if std::env::var_os(PLAY).is_some() {
        play(&Notifier::new(Calls::default()));
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("daemon::systemd::tests::{test}")])
        .env(PLAY, "1")
        .env("NOTIFY_SOCKET", &path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("1 passed"), "{report}");
    systemd.set_nonblocking(true).unwrap();
    let mut room = [0; 1024];
    let message = || systemd.recv(&mut room).ok().map(|n| String::from_utf8_lossy(&room[..n]).into());
    Some(std::iter::from_fn(message).collect())
}

#[test]
fn systemd_hears_each_state() {
    let said = heard("systemd_hears_each_state", &[], |systemd| {
        systemd.ready("3 listeners");
        systemd.status("generation 2");
        systemd.reloading();
        systemd.stopping("12 sessions left");
        systemd.extend_timeout(Duration::from_secs(3));
        systemd.extend_timeout(Duration::MAX);
        systemd.watchdog();
    });
    let Some(said) = said else { return };
    let (reloading, others): (Vec<_>, Vec<_>) = said.iter().partition(|m| m.starts_with("RELOADING"));
    assert_eq!(
        others,
        [
            "READY=1\nSTATUS=3 listeners\n",
            "STATUS=generation 2\n",
            "STOPPING=1\nSTATUS=12 sessions left\n",
            "EXTEND_TIMEOUT_USEC=3000000\n",
            "EXTEND_TIMEOUT_USEC=4294967295\n",
            "WATCHDOG=1\n",
        ]
    );
    let when = reloading[0].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::trim_end);
    assert!(when.is_some_and(|usec| usec.parse::<u64>().is_ok_and(|usec| usec > 0)), "{reloading:?}");
}

#[test]
fn a_status_cannot_smuggle_in_another_assignment() {
    let said = heard("a_status_cannot_smuggle_in_another_assignment", &[], |systemd| {
        systemd.status("a\nMAINPID=1\r\nREADY=1");
    });
    let Some(said) = said else { return };
    assert_eq!(said, ["STATUS=a MAINPID=1  READY=1\n"]);
}

#[test]
fn the_watchdog_is_fed_twice_as_often_as_asked() {
    heard("the_watchdog_is_fed_twice_as_often_as_asked", &[("WATCHDOG_USEC", "4000000")], |systemd| {
        assert_eq!(systemd.watchdog_interval(), Some(Duration::from_secs(2)));
    });
}

#[test]
fn what_is_passed_to_another_process_is_left_alone() {
    let of_another = [("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "web")];
    heard("what_is_passed_to_another_process_is_left_alone", &of_another, |_| {
        assert!(passed().unwrap().is_empty());
    });
}

#[test]
fn names_in_the_store_are_such_as_systemd_takes_and_tell_addresses_apart() {
    for (address, name) in [
        ("127.0.0.1:80", "lbd/127.0.0.1_80"),
        ("[::1]:8080", "lbd/[__1]_8080"),
        ("unix:/run/lbd/a_b.sock", "lbd/unix_/run/lbd/a%5fb.sock"),
        ("unix:/run/ü:x", "lbd/unix_/run/%c3%bc_x"),
    ] {
        assert_eq!(store_name(&address.parse().unwrap()), name);
        assert!(is_ours(name));
    }
    for of_a_unit in ["lbd.socket", "lbd-web.socket", "lbd"] {
        assert!(!is_ours(of_a_unit));
    }
    let long = |last: char| store_name(&format!("unix:/{}{last}", "_".repeat(105)).parse().unwrap());
    assert_eq!((long('a').len(), long('b').len()), (255, 255));
    assert!(long('a') != long('b') && is_ours(&long('a')));
}

#[test]
fn a_deaf_systemd_harms_nothing() {
    heard("a_deaf_systemd_harms_nothing", &[("NOTIFY_SOCKET", "/nowhere/notify")], |systemd| {
        systemd.ready("up");
        systemd.watchdog();
        assert!(systemd.complained.load(Ordering::Relaxed));
    });
}

/// A manager that has read nothing for so long that there is no room left.
fn full(folder: &std::path::Path) -> (UnixDatagram, Notifier) {
    let path = folder.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let notifier = Notifier {
        socket: Some(UnixDatagram::unbound().unwrap()),
        manager: Some(UnixAddr::new(&path).unwrap()),
        ..Notifier::default()
    };
    while notifier.pending.borrow().messages.is_empty() {
        notifier.watchdog();
    }
    manager.set_nonblocking(true).unwrap();
    (manager, notifier)
}

fn read(manager: &UnixDatagram) -> Vec<String> {
    let mut room = [0; 1024];
    let message = || manager.recv(&mut room).ok().map(|n| String::from_utf8_lossy(&room[..n]).into());
    std::iter::from_fn(message).filter(|said: &String| said != "WATCHDOG=1\n").collect()
}

#[test]
fn a_manager_that_does_not_read_keeps_nobody_and_hears_the_last_of_each_kind_once_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, notifier) = full(folder.path());
    let socket = || [OwnedFd::from(UnixDatagram::unbound().unwrap())];
    for turn in 0..1000 {
        notifier.reloading();
        notifier.status("reads");
        notifier.ready(&format!("generation {turn}"));
        notifier.store("lbd/a", &socket()).unwrap();
        notifier.forget("lbd/a");
        notifier.watchdog();
    }
    notifier.store("lbd/b", &socket()).unwrap();
    notifier.store("lbd/b", &socket()).unwrap();
    let now = Instant::now();
    let again = notifier.catch_up(now + LATEST).expect("there is no room yet");
    assert!(again > now + LATEST && again <= now + LATEST * 2);
    assert!(notifier.catch_up(now + LATEST).is_some(), "it is not time yet");
    read(&manager);
    assert_eq!(notifier.catch_up(again), None);
    let said = read(&manager);
    assert!(said[0].starts_with("RELOADING=1"), "{said:?}");
    let store = "FDSTORE=1\nFDNAME=lbd/b\nFDPOLL=0\n";
    let rest = ["READY=1\nSTATUS=generation 999\n", "FDSTOREREMOVE=1\nFDNAME=lbd/a\n", store, store];
    assert_eq!(said[1..], rest, "in the order in which they were said");
    notifier.status("as usual");
    assert_eq!(read(&manager), ["STATUS=as usual\n"]);
}
