//! The comparison's parts that can be wrong without anyone seeing it: its statistics, the files that it writes for its
//! peers, its picture, and that its clients find a wrong byte. (`cargo bench --bench compare` runs the whole.)

#![allow(clippy::unwrap_used, dead_code)] // a test that cannot go on has failed; not all of each part is needed here

#[path = "../benches/compare/backends.rs"]
mod backends;
#[path = "../benches/compare/figures.rs"]
mod figures;
#[path = "../benches/compare/load.rs"]
mod load;
#[path = "../benches/compare/pattern.rs"]
mod pattern;
#[path = "../benches/compare/peers.rs"]
mod peers;
#[path = "../benches/compare/plot.rs"]
mod plot;
#[path = "../benches/compare/rows.rs"]
mod rows;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use backends::{ANSWER, Backends, Kind, PORTS};
use figures::{Spread, compare, ratio, spread};
use load::{Connection, Load, Work};

const LIMIT: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(30);

#[test]
fn the_median_is_the_middle_and_the_spread_the_ends() {
    for (values, wanted) in [
        (&[3.0, 1.0, 2.0][..], Some((2.0, 1.0, 3.0))),
        (&[4.0, 1.0, 2.0, 3.0], Some((2.5, 1.0, 4.0))),
        (&[5.0], Some((5.0, 5.0, 5.0))),
        (&[f64::NAN, 5.0], Some((5.0, 5.0, 5.0))),
        (&[], None),
    ] {
        assert_eq!(spread(values), wanted.map(|(median, min, max)| Spread { median, min, max }), "{values:?}");
    }
}

#[test]
fn a_slow_round_does_not_change_a_ratio() {
    assert_eq!(ratio(&[1.0, 10.0, 1.1], &[2.0, 20.0, 2.2]), Some(0.5));
    assert_eq!(ratio(&[], &[]), None);
}

#[test]
fn lbd_is_compared_with_haproxy_and_with_the_best_of_the_others() {
    let all = [("lbd", vec![1.0, 1.0]), ("haproxy", vec![4.0, 4.0]), ("nginx", vec![2.0, 2.0]), ("none", vec![])];
    let told: Vec<_> = compare(&all).iter().map(|line| (line.peer, line.to_haproxy, line.to_best)).collect();
    let wanted = [("lbd", Some(0.25), Some(0.5)), ("haproxy", Some(1.0), Some(2.0)), ("nginx", Some(0.5), Some(1.0))];
    assert_eq!(told, wanted);
}

/// What a run fills in, as an example.
fn values(own: &str) -> Vec<(String, String)> {
    let mut values = vec![("dir".to_owned(), "/somewhere".to_owned()), (own.to_owned(), String::new())];
    for (port, name) in (20_001..).zip(["echo", "answer", "source", "sink"]) {
        values.push((name.into(), port.to_string()));
        values.extend((1..=PORTS).map(|index| (format!("{name}-{index}"), format!("127.0.0.1:4000{index}"))));
    }
    values
}

const LBD: &str = include_str!("../benches/compare/peers/lbd.yaml");

#[test]
fn every_placeholder_of_every_peers_file_is_filled() {
    for (template, own) in [
        (LBD, ""),
        (include_str!("../benches/compare/peers/haproxy.cfg"), "splice"),
        (include_str!("../benches/compare/peers/nginx.conf"), "load_module"),
    ] {
        let filled = peers::fill(template, &values(own)).unwrap();
        assert!(!filled.contains('@'), "{filled}");
        for text in (1..=PORTS).map(|index| format!("127.0.0.1:4000{index}")) {
            assert_eq!(filled.matches(&text).count(), Kind::ALL.len(), "{text} in {filled}");
        }
    }
    assert_eq!(peers::fill("a @b@ c", &[]).unwrap_err().to_string(), "nothing fills @b@");
    assert_eq!(peers::fill("@dir@/x", &values("")).unwrap(), "/somewhere/x");
}

#[test]
fn lbd_takes_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lbd.yaml");
    std::fs::write(&file, peers::fill(LBD, &values("")).unwrap()).unwrap();
    let lbd = Command::new(env!("CARGO_BIN_EXE_lbd")).arg("--check").arg("--config").arg(&file).output().unwrap();
    assert!(lbd.status.success(), "{}", String::from_utf8_lossy(&lbd.stderr));
}

#[test]
fn the_picture_has_a_bar_for_each_peer_and_escapes_what_it_shows() {
    let bars = vec![("lbd", 0.5), ("haproxy", 1.0), ("nginx", 9.0)];
    let svg = plot::svg("a < b", &[plot::Bars { title: "R&D".into(), bars }]);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("a &lt; b") && svg.contains("R&amp;D"));
    assert!(svg.contains("width=\"150.0\"") && svg.contains("width=\"300.0\""), "bars are as long as their ratios");
    assert!(svg.contains("width=\"450.0\"") && svg.contains("nginx 9.00"), "a long bar is cut and says its length");
}

#[test]
fn rows_have_names_of_their_own() {
    let names: BTreeSet<&str> = rows::ROWS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows::ROWS.len());
}

fn work(kind: Kind, request: u64, connection: Connection) -> Work {
    Work { kind, request, connection }
}

#[test]
fn every_kind_of_work_is_done_right_without_a_proxy() {
    let backends = Backends::start().unwrap();
    for (kind, request, connection) in [
        (Kind::Echo, 64, Connection::Kept),
        (Kind::Echo, 300_000, Connection::Kept),
        (Kind::Echo, 64, Connection::OneRequest),
        (Kind::Answer, 64, Connection::Kept),
        (Kind::Source, 0, Connection::Kept),
        (Kind::Sink, 0, Connection::Kept),
    ] {
        let mut load = Load::open(work(kind, request, connection), 70, backends.of(kind), LIMIT).unwrap();
        let opened = load.tally;
        // A busy machine may need more than a moment.
        let end = Instant::now() + LIMIT;
        let moves = |load: &Load| match kind {
            Kind::Echo | Kind::Answer => load.tally.requests > opened.requests,
            Kind::Source => load.tally.received > 1 << 20,
            Kind::Sink => backends.seen.received.load(Relaxed) > 1 << 20,
        };
        while !moves(&load) {
            assert!(Instant::now() < end, "{kind:?} {request} {connection:?} stands still");
            load.drive(MOMENT);
        }
        let (now, case) = (load.tally, format!("{kind:?} {request} {connection:?}"));
        assert_eq!((now.wrong, now.broken, now.no_address), (0, 0, 0), "{case}");
        let answer = if kind == Kind::Answer { ANSWER as u64 } else { request };
        assert!(now.received >= now.requests * answer, "{case}");
    }
    assert_eq!(backends.seen.wrong.load(Relaxed), 0);
}

/// Answers one connection after the other with what `spoil` makes of the bytes.
fn spoiler(spoil: fn(&mut Vec<u8>)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut bytes = vec![0; 64];
            while stream.read_exact(&mut bytes).is_ok() {
                spoil(&mut bytes);
                if stream.write_all(&bytes).is_err() {
                    break;
                }
                bytes.resize(64, 0);
            }
        }
    });
    address
}

#[test]
fn a_flipped_bit_a_shifted_answer_and_another_sessions_bytes_are_found() {
    let spoilers: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes[63] ^= 1, |bytes| bytes.rotate_left(1), |bytes| *bytes = vec![7; 64]];
    for (index, spoil) in spoilers.into_iter().enumerate() {
        let echo = work(Kind::Echo, 64, Connection::Kept);
        let error = Load::open(echo, 1, &[spoiler(spoil)], Duration::from_millis(300)).err().unwrap().to_string();
        assert!(
            error.starts_with("0 of 1 sessions were served") && !error.contains(" 0 were wrong"),
            "{index}: {error}"
        );
    }
}

#[test]
fn a_sink_finds_wrong_bytes() {
    let backends = Backends::start().unwrap();
    let mut stream = std::net::TcpStream::connect(backends.of(Kind::Sink)[0]).unwrap();
    stream.write_all(&[0; 4096]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The sink closes when it has read all.
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert!(backends.seen.wrong.load(Relaxed) > 0);
    assert_eq!(backends.seen.received.load(Relaxed), 0);
}
