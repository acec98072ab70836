//! Builds the picture from what the operator asked for and what is known of each backend. Who is
//! eligible is decided here, once a change, so that a session's choice need not ask.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::cells::{BackendCell, Cells};
use super::model::{Backend, Listener, Pool, Revision, Snapshot};
use crate::balance::{Balancer, Candidate};
use crate::config::{self, Config};
use crate::words::{Address, AdminState, Algorithm, BackendRef, Generation, Health, PoolName};

/// What is known of a backend beside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendFacts {
    /// What probes say.
    pub health: Health,
    /// What the operator wants.
    pub admin: AdminState,
}

/// Builds a snapshot. `cells` must have been settled for `config`. `previous` lends balancers whose
/// candidates have not changed: a Maglev table takes milliseconds.
pub fn build(
    (generation, revision): (Generation, Revision),
    config: &Config,
    cells: &Cells,
    facts: impl Fn(&BackendCell) -> BackendFacts,
    previous: Option<&Snapshot>,
) -> Snapshot {
    let pools: Vec<Arc<Pool>> = config
        .pools
        .iter()
        .filter_map(|(name, asked)| pool(name, asked, cells, &facts, previous).map(Arc::new))
        .collect();
    let listeners: Vec<Arc<Listener>> = config
        .listeners
        .iter()
        .filter_map(|(name, asked)| {
            Some(Arc::new(Listener {
                cell: Arc::clone(cells.listener(name)?),
                addresses: asked.bind.clone(),
                pool: Arc::clone(&pools[pools.binary_search_by(|p| p.cell.name.cmp(&asked.pool)).ok()?]),
                max_connections: asked.max_connections,
                idle_timeout: asked.idle_timeout.unwrap_or(Duration::MAX),
                keepalive: asked.keepalive,
                accept_proxy: asked.accept_proxy.clone(),
            }))
        })
        .collect();
    Snapshot {
        generation,
        revision,
        by_address: by_address(&listeners),
        listeners,
        pools,
        removed_timeout: config.removed_timeout,
        log: config.log.connections,
    }
}

fn by_address(listeners: &[Arc<Listener>]) -> HashMap<Address, Arc<Listener>> {
    listeners.iter().flat_map(|l| l.addresses.iter().map(|a| (a.clone(), Arc::clone(l)))).collect()
}

/// The snapshot that follows where only what is known of some backends has changed, these cells: all pools but theirs are
/// shared with the one before, and of theirs the other backends are not asked about.
pub fn update<'a>(
    (generation, revision): (Generation, Revision),
    changed: impl Iterator<Item = &'a Arc<BackendCell>>,
    facts: impl Fn(&BackendCell) -> BackendFacts,
    previous: &Snapshot,
) -> Snapshot {
    let mut changed_pools: BTreeMap<&PoolName, HashMap<*const BackendCell, BackendFacts>> = BTreeMap::new();
    for cell in changed {
        changed_pools.entry(&cell.reference.pool).or_default().insert(Arc::as_ptr(cell), facts(cell));
    }
    let pools: Vec<Arc<Pool>> = (previous.pools.iter())
        .map(|pool| match changed_pools.get(&pool.cell.name) {
            Some(facts) => Arc::new(pool_with(pool, facts)),
            None => Arc::clone(pool),
        })
        .collect();
    let listeners: Vec<Arc<Listener>> = (previous.listeners.iter())
        .map(|listener| match pools.binary_search_by(|p| p.cell.name.cmp(&listener.pool.cell.name)) {
            Ok(at) if !Arc::ptr_eq(&pools[at], &listener.pool) => {
                Arc::new(Listener { pool: Arc::clone(&pools[at]), ..Listener::clone(listener) })
            }
            _ => Arc::clone(listener),
        })
        .collect();
    Snapshot {
        generation,
        revision,
        by_address: by_address(&listeners),
        listeners,
        pools,
        removed_timeout: previous.removed_timeout,
        log: previous.log,
    }
}

fn pool_with(previous: &Pool, facts: &HashMap<*const BackendCell, BackendFacts>) -> Pool {
    let mut backends = previous.backends.clone();
    for backend in &mut backends {
        if let Some(BackendFacts { health, admin }) = facts.get(&Arc::as_ptr(&backend.cell)) {
            (backend.health, backend.admin) = (*health, *admin);
        }
    }
    let eligible = eligible(&backends);
    let awaits_verdict = awaits_verdict(&backends, &eligible);
    let balancer = balancer(previous.balance, &backends, &eligible, Some(previous));
    Pool { backends, eligible, awaits_verdict, balancer, ..previous.clone() }
}

fn pool(
    name: &PoolName,
    asked: &config::Pool,
    cells: &Cells,
    facts: &impl Fn(&BackendCell) -> BackendFacts,
    previous: Option<&Snapshot>,
) -> Option<Pool> {
    let backends: Vec<Backend> = asked
        .backends
        .iter()
        .filter_map(|b| {
            let reference = BackendRef { pool: name.clone(), backend: b.name.clone() };
            let cell = cells.backend(&reference, &b.address)?;
            let BackendFacts { health, admin } = facts(cell);
            let health = if asked.health_check.is_some() { health } else { Health::Unchecked };
            Some(Backend {
                cell: Arc::clone(cell),
                weight: b.weight,
                max_connections: b.max_connections,
                backup: b.backup,
                health,
                admin,
            })
        })
        .collect();
    let eligible = eligible(&backends);
    let awaits_verdict = awaits_verdict(&backends, &eligible);
    let balancer = balancer(asked.balance, &backends, &eligible, previous.and_then(|p| p.pool(name)).map(|p| &**p));
    Some(Pool {
        cell: Arc::clone(cells.pool(name)?),
        balance: asked.balance,
        backends,
        eligible,
        awaits_verdict,
        balancer,
        connect_timeout: asked.connect_timeout,
        half_close_timeout: asked.half_close_timeout,
        retries: asked.retries,
        queue: asked.queue,
        abort_on_close: asked.abort_on_close,
        send_proxy: asked.send_proxy,
        spare_connections: asked.spare_connections,
        spare_max_idle: asked.spare_max_idle,
    })
}

fn balancer(balance: Algorithm, backends: &[Backend], eligible: &[u16], previous: Option<&Pool>) -> Arc<Balancer> {
    if let Some(previous) = previous
        && previous.balance == balance
        && same_candidates(previous, backends, eligible)
    {
        return Arc::clone(&previous.balancer);
    }
    let candidates: Vec<_> = eligible
        .iter()
        .map(|&i| &backends[usize::from(i)])
        .map(|b| Candidate { name: b.cell.reference.backend.as_str(), weight: b.weight })
        .collect();
    Arc::new(Balancer::new(balance, &candidates))
}

/// Who may be chosen: enabled, of some weight, and up or unchecked. Backups count only while no other is left.
fn eligible(backends: &[Backend]) -> Vec<u16> {
    let tier = |backup: bool| -> Vec<u16> {
        (0u16..)
            .zip(backends)
            .filter(|(_, b)| b.backup == backup && is_wanted(b) && b.health.is_fit())
            .map(|(i, _)| i)
            .collect()
    };
    let primary = tier(false);
    if primary.is_empty() { tier(true) } else { primary }
}

/// Whether nobody may be chosen yet, and the next probe may change that: sessions then wait for its verdict rather than being
/// refused.
fn awaits_verdict(backends: &[Backend], eligible: &[u16]) -> bool {
    eligible.is_empty() && backends.iter().any(|b| is_wanted(b) && b.health == Health::Unproven)
}

fn is_wanted(backend: &Backend) -> bool {
    backend.admin == AdminState::Enabled && backend.weight.value() > 0
}

fn same_candidates(previous: &Pool, backends: &[Backend], eligible: &[u16]) -> bool {
    previous.eligible.len() == eligible.len()
        && previous.eligible.iter().zip(eligible).all(|(&before, &after)| {
            let (before, after) = (&previous.backends[usize::from(before)], &backends[usize::from(after)]);
            before.cell.reference.backend == after.cell.reference.backend && before.weight == after.weight
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Control, Keepalive, Log, LogConnections, LogLevel, Process, Workers};
    use crate::words::{Algorithm, CheckSpec, Percent, Weight};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn config(backends: &[(&str, u64, bool)], checked: bool) -> Config {
        let check = CheckSpec {
            port: None,
            send_proxy: None,
            send: None,
            expect: None,
            interval: SECOND,
            fast_interval: SECOND,
            down_interval: SECOND,
            timeout: SECOND,
            rise: 2,
            fall: 3,
            jitter: Percent::new(10).unwrap(),
        };
        let pool = config::Pool {
            balance: Algorithm::RoundRobin,
            backends: (9001..)
                .zip(backends)
                .map(|(port, (name, weight, backup))| config::Backend {
                    name: name.parse().unwrap(),
                    address: format!("127.0.0.1:{port}").parse().unwrap(),
                    weight: Weight::new(*weight).unwrap(),
                    max_connections: None,
                    backup: *backup,
                })
                .collect(),
            health_check: checked.then_some(check),
            connect_timeout: SECOND,
            half_close_timeout: SECOND,
            retries: 2,
            queue: None,
            abort_on_close: false,
            send_proxy: None,
            spare_connections: 0,
            spare_max_idle: SECOND,
        };
        let listener = config::Listener {
            bind: vec!["127.0.0.1:8080".parse().unwrap()],
            pool: "web".parse().unwrap(),
            max_connections: None,
            idle_timeout: Some(SECOND),
            keepalive: Keepalive { idle: SECOND, interval: SECOND, count: 3 },
            accept_proxy: None,
            access: config::SocketAccess::default(),
        };
        Config {
            listeners: [("web".parse().unwrap(), listener)].into(),
            pools: [("web".parse().unwrap(), pool)].into(),
            process: Process { workers: Workers::Auto, buffer_memory: 1 << 25 },
            watch: true,
            drain_timeout: SECOND,
            restart_drain: SECOND,
            removed_timeout: None,
            control: Control { socket: None, mode: 0o660, group: None },
            log: Log { level: LogLevel::Info, connections: LogConnections::Errors },
        }
    }

    fn pool_of(config: &Config, facts: &[(Health, AdminState)]) -> Arc<Pool> {
        let mut cells = Cells::new(1);
        cells.settle(config, 1);
        let order: Vec<_> = config.pools.values().next().unwrap().backends.iter().map(|b| b.name.clone()).collect();
        let snapshot = build(
            (Generation(1), Revision(1)),
            config,
            &cells,
            |cell| {
                let at = order.iter().position(|n| *n == cell.reference.backend).unwrap();
                BackendFacts { health: facts[at].0, admin: facts[at].1 }
            },
            None,
        );
        Arc::clone(&snapshot.pools[0])
    }

    #[test]
    fn who_is_eligible_follows_from_health_admin_state_weight_and_backup() {
        use AdminState::{Disabled, Draining, Enabled};
        use Health::{Down, Unchecked, Unproven, Up};
        let three = [("a", 1, false), ("b", 1, false), ("spare", 1, true)];
        let weightless = [("a", 0, false), ("b", 1, false), ("spare", 1, true)];
        for (backends, facts, eligible, awaits_verdict) in [
            (three, [(Up, Enabled), (Up, Enabled), (Up, Enabled)], vec!["a", "b"], false),
            (three, [(Down, Enabled), (Up, Draining), (Up, Enabled)], vec!["spare"], false),
            (three, [(Down, Enabled), (Up, Disabled), (Down, Enabled)], vec![], false),
            (three, [(Unproven, Enabled); 3], vec![], true),
            (three, [(Unproven, Enabled), (Up, Enabled), (Up, Enabled)], vec!["b"], false),
            (three, [(Unproven, Enabled), (Down, Enabled), (Up, Enabled)], vec!["spare"], false),
            (three, [(Unproven, Enabled), (Up, Draining), (Down, Enabled)], vec![], true),
            (three, [(Unproven, Disabled), (Down, Enabled), (Unproven, Draining)], vec![], false),
            (three, [(Down, Enabled), (Down, Enabled), (Unproven, Enabled)], vec![], true),
            (three, [(Unchecked, Enabled); 3], vec!["a", "b"], false),
            (weightless, [(Unchecked, Enabled); 3], vec!["b"], false),
            (weightless, [(Unproven, Enabled), (Down, Enabled), (Down, Enabled)], vec![], false),
        ] {
            let pool = pool_of(&config(&backends, facts[0].0 != Unchecked), &facts);
            let name = |&i: &u16| pool.backends[usize::from(i)].cell.reference.backend.to_string();
            let names: Vec<String> = pool.eligible.iter().map(name).collect();
            assert_eq!(
                (names, pool.awaits_verdict),
                (eligible.iter().map(|n| (*n).into()).collect(), awaits_verdict),
                "{facts:?}"
            );
        }
    }

    #[test]
    fn an_unchanged_pool_keeps_its_balancer_and_its_cells() {
        let first = config(&[("a", 1, false), ("b", 2, false)], false);
        let mut cells = Cells::new(1);
        let facts = |_: &BackendCell| BackendFacts { health: Health::Unchecked, admin: AdminState::Enabled };
        cells.settle(&first, 1);
        let one = build((Generation(1), Revision(1)), &first, &cells, facts, None);
        let two = build((Generation(2), Revision(2)), &first, &cells, facts, Some(&one));
        assert!(Arc::ptr_eq(&one.pools[0].balancer, &two.pools[0].balancer));
        let changed = config(&[("a", 1, false), ("b", 3, false)], false);
        cells.settle(&changed, 2);
        let three = build((Generation(3), Revision(3)), &changed, &cells, facts, Some(&two));
        assert!(!Arc::ptr_eq(&two.pools[0].balancer, &three.pools[0].balancer));
        assert!(Arc::ptr_eq(&two.pools[0].backends[1].cell, &three.pools[0].backends[1].cell));
    }

    #[test]
    fn a_verdict_changes_its_own_pool_alone() {
        let mut two = config(&[("a", 1, false), ("b", 1, false)], true);
        let mut other = two.pools.values().next().unwrap().clone();
        other.backends.iter_mut().zip(["c", "d"]).for_each(|(b, name)| b.name = name.parse().unwrap());
        two.pools.insert("other".parse().unwrap(), other);
        let mut cells = Cells::new(1);
        cells.settle(&two, 1);
        let known = |down: Option<&'static str>| {
            move |cell: &BackendCell| {
                let is_down = down == Some(cell.reference.backend.as_str());
                BackendFacts { health: if is_down { Health::Down } else { Health::Up }, admin: AdminState::Enabled }
            }
        };
        let before = build((Generation(1), Revision(1)), &two, &cells, known(None), None);
        let b = cells.backends().filter(|cell| cell.reference.backend.as_str() == "b");
        let after = update((Generation(1), Revision(2)), b, known(Some("b")), &before);
        assert_eq!((after.generation, after.revision), (Generation(1), Revision(2)));
        let (other, web) = (&"other".parse().unwrap(), &"web".parse().unwrap());
        assert!(Arc::ptr_eq(after.pool(other).unwrap(), before.pool(other).unwrap()));
        assert_eq!(
            (&before.pool(web).unwrap().eligible[..], &after.pool(web).unwrap().eligible[..]),
            (&[0, 1][..], &[0][..])
        );
        assert_eq!(after.pool(web).unwrap().backends[1].health, Health::Down);
        let address = "127.0.0.1:8080".parse().unwrap();
        for listener in [&after.listeners[0], after.listener_at(&address).unwrap()] {
            assert!(Arc::ptr_eq(&listener.pool, after.pool(web).unwrap()));
        }
    }

    #[test]
    fn a_removed_backend_is_kept_until_its_last_session_ends() {
        let both = config(&[("a", 1, false), ("b", 1, false)], false);
        let one = config(&[("a", 1, false)], false);
        let mut cells = Cells::new(1);
        cells.settle(&both, 1);
        let b = Arc::clone(cells.backends().find(|c| c.reference.backend.as_str() == "b").unwrap());
        assert!(b.live.reserve(None));
        cells.settle(&one, 7);
        assert_eq!((cells.backends().count(), b.removed_since()), (2, Some(7)));
        cells.settle(&one, 9);
        assert_eq!(b.removed_since(), Some(7), "the first removal counts");
        b.live.release();
        cells.forget_empty();
        assert_eq!(cells.backends().count(), 1);
    }

    #[test]
    fn a_limit_is_exact_over_threads() {
        let live = super::super::cells::Live::default();
        let taken: usize = std::thread::scope(|s| {
            let threads: Vec<_> =
                (0..4).map(|_| s.spawn(|| (0..1000).filter(|_| live.reserve(Some(1234))).count())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!((taken, live.count()), (1234, 1234));
    }

    #[test]
    fn a_spare_takes_a_place_and_is_no_session_until_it_is_given_to_one() {
        let live = super::super::cells::Live::default();
        assert!(live.reserve(Some(3)) && live.reserve_spare(Some(3)) && live.reserve_spare(Some(3)));
        assert!(!live.reserve(Some(3)) && !live.reserve_spare(Some(3)));
        live.adopt_spare();
        assert_eq!((live.count(), live.spares()), (2, 1));
        live.release_spare();
        live.release();
        assert!(!live.is_empty());
        live.release();
        assert!(live.is_empty());
    }
}
