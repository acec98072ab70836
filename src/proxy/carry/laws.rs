//! Laws of what is carried: it comes back as it was, is shared out whole, and what contradicts itself is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::{Arc, PoisonError};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use tokio::sync::{Notify, mpsc};

use super::check::Check;
use super::names::{NamedBackend, NamedListener, NamedPool};
use super::sessions::row;
use super::tests::{MARKS, closes};
use super::*;
use crate::proxy::{Limits, Setup, Worker, line};
use crate::snapshot::{BackendFacts, Cells, Revision, Snapshot, build, publish_first};
use crate::words::{AdminState, Generation, Health};

const FILE: &str = "listeners: { web: { bind: 127.0.0.1:8080, pool: web } }
pools: { web: { backends: { a: 127.0.0.1:9001, b: 127.0.0.1:9002 } } }
";

/// What the file has, and what a former one had.
fn names() -> Names {
    let backend = |pool, name: &str, address: &str, removed| NamedBackend {
        pool,
        name: Spelled(name.parse().unwrap()),
        address: Spelled(address.parse().unwrap()),
        removed,
    };
    let pool = |name: &str, ticket| NamedPool { name: Spelled(name.parse().unwrap()), ticket };
    let listener = |name: &str, removed| NamedListener { name: Spelled(name.parse().unwrap()), removed };
    Names {
        listeners: vec![listener("web", None), listener("old", Some(3))],
        pools: vec![pool("web", 7), pool("old", 0)],
        backends: vec![
            backend(0, "a", "127.0.0.1:9001", None),
            backend(0, "a", "127.0.0.1:9009", Some(4)),
            backend(1, "b", "unix:/run/b", Some(5)),
        ],
    }
}

fn end() -> impl Strategy<Value = CarriedEnd> {
    let streams = [Stream::Open, Stream::Ended, Stream::Cut];
    (any::<[bool; 6]>(), prop::sample::select(streams.to_vec())).prop_map(
        |([readable, writable, fin, broken, urgent, unix], stream)| CarriedEnd {
            fd: 0,
            readable,
            writable,
            fin,
            broken,
            stream,
            urgent,
            unix,
        },
    )
}

fn flow() -> impl Strategy<Value = CarriedFlow> {
    (any::<u64>(), prop::collection::vec(any::<u8>(), 0..20), any::<[bool; 6]>(), 0u8..108).prop_map(
        |(bytes, held, [bulk, sent, ended, closed, whole, last], header)| CarriedFlow {
            bytes,
            header: header.min(held.len() as u8),
            held: held.into(),
            bulk,
            sent,
            ended,
            closed,
            whole,
            last,
        },
    )
}

fn session() -> impl Strategy<Value = CarriedSession> {
    let states = [State::Preface, State::Queued, State::Pausing, State::Connecting, State::Relaying];
    let uses = [SpareUse::Never, SpareUse::Serving, SpareUse::Failed, SpareUse::Proven];
    let ends = (end(), end(), flow(), flow());
    let who = (0u32..2, 0u32..2, 0u32..3, prop::collection::vec(0u32..3, 0..3));
    let from = (any::<Option<([u8; 4], u16)>>(), any::<Option<([u16; 8], u16)>>(), prop::option::of(1u8..3));
    let rest = (
        prop::sample::select(states.to_vec()),
        prop::sample::select(uses.to_vec()),
        any::<[bool; 2]>(),
        any::<[u8; 2]>(),
    );
    (ends, who, from, rest, any::<[u64; 7]>()).prop_map(
        |(
            (client, server, up, down),
            (listener, pool, backend, tried),
            (peer, destination, send_proxy),
            rest,
            times,
        )| {
            let (state, spare, [kept_alive, crowded], [attempts, dial]) = rest;
            let served = matches!(state, State::Connecting | State::Relaying);
            let [ticket, accepted, since, active, deadline, idle, half_closed] = times;
            CarriedSession {
                key: 0,
                state,
                client,
                server: served.then_some(server),
                listener,
                pool,
                backend: served.then_some(backend),
                peer: peer.map(SocketAddr::from),
                destination: destination.map(SocketAddr::from),
                send_proxy,
                up,
                down,
                ticket,
                tried,
                attempts,
                failure: 0,
                serial: u16::from(dial) * 257,
                dial,
                spare,
                kept_alive,
                crowded,
                accepted,
                since,
                active,
                deadline,
                idle,
                half_closed,
            }
        },
    )
}

/// A worker with some of everything. `fd` opens its descriptors.
fn worker(sessions: Vec<CarriedSession>, spares: Vec<(bool, u64)>, mut fd: impl FnMut() -> RawFd) -> CarriedWorker {
    let mut it = CarriedWorker { names: names(), ..CarriedWorker::default() };
    let mut table = Vec::new();
    // Holes in the tables, as time makes them.
    for (n, mut session) in sessions.into_iter().enumerate() {
        session.key = 1 + 2 * n as u32;
        session.client.fd = fd();
        session.server.iter_mut().for_each(|server| server.fd = fd());
        match session.state {
            State::Queued => match it.queues.iter_mut().find(|queue| queue.pool == session.pool) {
                Some(queue) => queue.keys.insert(0, session.key),
                None => it.queues.push(CarriedQueue { pool: session.pool, keys: vec![session.key] }),
            },
            State::Relaying if session.up.bulk => it.again.push(session.key),
            _ => {}
        }
        table.push(session);
    }
    it.sessions = row(&table);
    // In the order in which the worker has them: sessions as they came, pools by name.
    for queue in &mut it.queues {
        queue
            .keys
            .sort_by_key(|key| (table.iter().find(|session| session.key == *key).map(|session| session.since), *key));
    }
    it.queues.sort_by_key(|queue| std::cmp::Reverse(queue.pool));
    for (n, (connected, since)) in spares.into_iter().enumerate() {
        it.spares.push(CarriedSpare { key: 2 * n as u32, fd: fd(), backend: 0, connected, since });
    }
    if !it.spares.is_empty() {
        let keys = it.spares.iter().rev().map(|spare| spare.key).collect();
        it.stocks.push(CarriedStock { backend: 0, keys, not_before: 9, full: true });
    }
    let address = Spelled("127.0.0.1:8080".parse().unwrap());
    it.doors.push(CarriedDoor { key: 3, address, fd: fd(), held: Some(Hold::Limit), batch: 8 });
    it
}

fn workers(most: usize) -> impl Strategy<Value = Vec<CarriedWorker>> {
    let one = (prop::collection::vec(session(), 0..6), prop::collection::vec(any::<(bool, u64)>(), 0..3));
    prop::collection::vec(one, 1..=most).prop_map(|all| {
        let mut last = 10;
        let mut fd = || {
            last += 1;
            last
        };
        let workers = all.into_iter().map(|(sessions, spares)| {
            let epoll = Some(fd());
            CarriedWorker { epoll, ..worker(sessions, spares, &mut fd) }
        });
        workers.collect()
    })
}

fn all(worker: &CarriedWorker) -> Vec<CarriedSession> {
    worker.sessions.all().unwrap()
}

fn check(worker: &CarriedWorker) -> Result<(), Unfit> {
    let mut check = Check::of(worker)?;
    let all = all(worker);
    all.iter().try_for_each(|session| check.session(session))?;
    check.rows(worker, |key| all.iter().find(|session| session.key == key).map(|session| session.state))
}

/// By descriptor, which never changes, and with the numbers that [`names`] has.
fn by_descriptor(worker: &CarriedWorker) -> BTreeMap<RawFd, CarriedSession> {
    let mut names = names();
    let numbers = names.merge(&worker.names);
    assert_eq!(names, self::names(), "no other name");
    let sessions = all(worker).into_iter().map(|session| {
        let mut session = CarriedSession { key: 0, ..session };
        session.renumber(&numbers);
        (session.client.fd, session)
    });
    sessions.collect()
}

fn assemble(carried: CarriedWorker) -> (Result<Assembled, Unfit>, Arc<Limits>, Cells) {
    let config = crate::config::Config::parse(FILE.as_bytes()).unwrap();
    let mut cells = Cells::new(1);
    recall(std::slice::from_ref(&carried), &mut cells);
    cells.settle(&config, 1);
    let facts = |_: &_| BackendFacts { health: Health::Up, admin: AdminState::Enabled };
    let snapshot = build((Generation(1), Revision(1)), &config, &cells, facts, None);
    let (publisher, reader) = publish_first(Snapshot::empty());
    publisher.publish(Arc::new(snapshot));
    let limits = Arc::new(Limits::new(1000, 1 << 20));
    let setup = Setup {
        index: 0,
        inbox: line().unwrap().1,
        reader,
        limits: Arc::clone(&limits),
        outcomes: mpsc::channel(1).0,
        acknowledged: Arc::new(Notify::new()),
        others: vec![],
    };
    let resolved = carried.names.cells(&cells);
    let assembled = Worker::assemble(setup, carried, &resolved, ONCE);
    (assembled, limits, cells)
}

fn open() -> RawFd {
    std::os::unix::net::UnixStream::pair().unwrap().0.into_raw_fd()
}

fn epoll() -> RawFd {
    nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0.into_raw_fd()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_assembled_is_carried_again_as_it_was(
        sessions in prop::collection::vec(session(), 0..5),
        spares in prop::collection::vec(any::<(bool, u64)>(), 0..3),
    ) {
        let carried = CarriedWorker { epoll: Some(epoll()), ..worker(sessions, spares, open) };
        let (assembled, limits, cells) = assemble(carried.clone());
        let worker = assembled.unwrap().commit();
        let Written { head, sessions } = worker.write().unwrap();
        let again = CarriedWorker::read(&head, sessions).unwrap();
        prop_assert_eq!(&again, &worker.carry().unwrap());
        prop_assert_eq!(by_descriptor(&again), by_descriptor(&carried));
        let keys = |worker: &CarriedWorker| all(worker).iter().map(|s| (s.key, s.client.fd)).collect::<Vec<_>>();
        let waiting = |worker: &CarriedWorker| worker.queues.iter().map(|queue| queue.keys.clone()).collect::<Vec<_>>();
        let stocked = |worker: &CarriedWorker| worker.stocks.iter().map(|stock| stock.keys.clone()).collect::<Vec<_>>();
        prop_assert_eq!(keys(&again), keys(&carried));
        prop_assert_eq!(waiting(&again), waiting(&carried));
        prop_assert_eq!(stocked(&again), stocked(&carried));
        prop_assert_eq!((&again.epoll, &again.doors, &again.again), (&carried.epoll, &carried.doors, &carried.again));
        // Every place and every byte is accounted for.
        let table = all(&carried);
        let all = table.len() as u32;
        let held: usize = table.iter().map(|s| s.up.held.len() + s.down.held.len()).sum();
        prop_assert_eq!((limits.sessions.count(), limits.memory.held()), (all, held as u64));
        prop_assert_eq!(cells.sessions(), u64::from(all));
        let served = table.iter().filter(|s| s.backend.is_some()).count() as u32;
        let places: (u32, u32) = cells.backends().fold((0, 0), |(l, s), b| (l + b.live.count(), s + b.live.spares()));
        prop_assert_eq!(places, (served, carried.spares.len() as u32));
    }

    #[test]
    fn what_does_not_contradict_itself_needs_no_mending(workers in workers(3)) {
        let (mut taken, mut faults) = (Descriptors::default(), Faults::default());
        for worker in workers {
            prop_assert_eq!(&worker.clone().mended(&mut taken, &mut faults), &worker);
            prop_assert!(worker.descriptors().into_iter().all(|fd| taken.add(fd).is_err()));
        }
        prop_assert_eq!(faults, Faults::default());
    }

    #[test]
    fn nothing_is_lost_or_doubled_when_it_is_shared_out(workers in workers(4), count in 1usize..5) {
        let shares = share_out(workers.clone(), count).unwrap();
        prop_assert_eq!(shares.len(), count);
        prop_assert_eq!(shares == workers, workers.len() == count, "the same number changes nothing");
        let open = |workers: &[CarriedWorker]| workers.iter().flat_map(CarriedWorker::descriptors).collect::<BTreeSet<_>>();
        prop_assert_eq!(open(&shares), open(&workers));
        let sessions = |workers: &[CarriedWorker]| workers.iter().flat_map(by_descriptor).collect::<BTreeMap<_, _>>();
        prop_assert_eq!(sessions(&shares), sessions(&workers));
        for share in &shares {
            prop_assert_eq!(check(share), Ok(()));
        }
        if workers.len() != count {
            let sizes = || shares.iter().map(|share| share.sessions.len());
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1, "all have as much to do");
            for share in &shares {
                let table = all(share);
                let since = |key: &u32| table[*key as usize].since;
                prop_assert!(share.queues.iter().all(|queue| queue.keys.is_sorted_by_key(since)));
            }
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused_and_no_descriptor_is_touched() {
    type Spoil = fn(&mut CarriedWorker, &mut Vec<CarriedSession>);
    let cases: [(&str, Spoil); 16] = [
        ("is carried twice", |_, s| s[1].client.fd = s[0].client.fd),
        ("can be none", |_, s| s[1].client.fd = -1),
        ("stands behind session", |_, s| s[1].key = s[0].key),
        ("like 16777216", |_, s| s[1].key = 1 << 24),
        ("like 4294967295", |it, _| it.spares[0].key = u32::MAX),
        ("like 4294967295", |it, _| it.doors[0].key = u32::MAX),
        ("is Gone", |_, s| s[0].state = State::Gone),
        ("with a server: false", |_, s| s[0].server = None),
        ("is not there", |it, _| it.again.push(2)),
        ("stand in queues", |it, _| it.queues.clear()),
        ("stands there twice", |it, s| it.queues[0].keys.push(s[1].key)),
        ("pool number 9 has no name", |_, s| s[0].pool = 9),
        ("backend number 4 has no name", |it, _| it.spares[0].backend = 4),
        ("no version 3 of the PROXY header", |_, s| s[0].send_proxy = Some(3)),
        ("of a header of 99", |_, s| s[0].up.header = 99),
        ("spare connections are kept", |it, _| it.stocks.clear()),
    ];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut one = |state: State, served: bool| {
        let any = session().prop_filter("served", |s| s.backend.is_some());
        let session = any.new_tree(&mut runner).unwrap().current();
        let CarriedSession { server, backend, .. } = session.clone();
        CarriedSession { state, server: server.filter(|_| served), backend: backend.filter(|_| served), ..session }
    };
    let sessions = vec![one(State::Relaying, true), one(State::Queued, false)];
    let right = CarriedWorker { epoll: Some(epoll()), ..worker(sessions, vec![(true, 5)], open) };
    for (why, spoil) in cases {
        let (mut carried, mut table) = (right.clone(), all(&right));
        spoil(&mut carried, &mut table);
        carried.sessions = row(&table);
        let (refused, ..) = assemble(carried);
        let told = refused.unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
    }
    for (why, spoil) in cases {
        let (mut carried, mut table) = (right.clone(), all(&right));
        spoil(&mut carried, &mut table);
        carried.sessions = row(&table);
        let spoilt = carried.descriptors();
        let (mut taken, mut faults) = (Descriptors::default(), Faults::default());
        let mended = carried.mended(&mut taken, &mut faults);
        assert_eq!(check(&mended), Ok(()), "{why}");
        assert_eq!(mended.sessions.len() + faults.cut, 2, "{why}: {faults:?}");
        assert!(faults.cut == 0 || !faults.reasons.is_empty(), "{why}: {faults:?}");
        assert!(mended.descriptors().into_iter().all(|fd| taken.add(fd).is_err()), "{why}");
        let open = |all: Vec<RawFd>| all.into_iter().filter(|fd| *fd >= 0).collect::<BTreeSet<_>>();
        assert_eq!(open(mended.descriptors()), open(spoilt), "{why}: who is let go is closed");
    }
    let table_of = |worker: &CarriedWorker| worker.sessions.clone().into_bytes().to_vec();
    for (why, head, bytes) in [
        ("bytes are left over", 2, [&table_of(&right)[..], &[0]].concat()),
        ("2 before their end", 2, vec![0xff; 3]),
        ("1 before their end", 2, table_of(&right)[..table_of(&right).len() - 1].to_vec()),
        ("1 before their end", 3, table_of(&right)),
    ] {
        let mut carried = right.clone();
        carried.sessions = postcard::from_bytes::<CarriedSessions>(&[head]).unwrap().behind(bytes.into());
        let told = assemble(carried.clone()).0.unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
        let (mut taken, mut faults) = (Descriptors::default(), Faults::default());
        let mended = carried.mended(&mut taken, &mut faults);
        assert_eq!((check(&mended), faults.reasons.len()), (Ok(()), 1), "{faults:?}");
        assert_eq!(mended.sessions.len() + faults.cut, usize::from(head), "{why}: {faults:?}");
    }
    let _alone = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    let open = right.descriptors();
    let mut one_is_not = open.clone();
    one_is_not.push(-1);
    assert_eq!(keep_on_exec(&one_is_not), Err(nix::errno::Errno::EBADF));
    assert!(open.iter().all(|fd| closes(*fd)), "all or none");
    keep_on_exec(&open).unwrap();
    assert!(!open.iter().any(|fd| closes(*fd)));
    let assembled = assemble(right).0.unwrap();
    assert_eq!(assembled.descriptors().iter().collect::<BTreeSet<_>>(), open.iter().copied().collect());
    close_on_exec(assembled.descriptors()).unwrap();
    assert!(open.iter().all(|fd| closes(*fd)));
    drop(assembled.commit());
}
