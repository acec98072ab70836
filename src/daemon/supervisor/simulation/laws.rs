//! What must be so after each event, whatever came before it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::world::World;
use crate::config::Config;
use crate::daemon::action::Action;
use crate::daemon::event::{BackendKey, Event, FileRead};
use crate::daemon::supervisor::{Override, Supervisor};
use crate::snapshot::{BackendCell, Snapshot};
use crate::words::{Address, AdminState, Generation, Health};

/// How things stood before an event, as far as laws compare it with what follows.
pub struct Before {
    generation: Generation,
    config: Option<Config>,
    bound: BTreeMap<Address, Address>,
    overrides: BTreeMap<BackendKey, Override>,
    snapshot: Arc<Snapshot>,
    publish_was_due: bool,
    event: Kind,
    /// From the first wish to stop on.
    pub stopping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// May put a configuration in force.
    MayApply,
    /// Must change nothing.
    Refuses,
    /// An operator's word.
    Asked,
    Other,
}

impl Before {
    pub fn of(world: &World, event: &Event) -> Self {
        let s = &world.supervisor;
        Self {
            generation: s.generation,
            config: s.config.clone(),
            bound: s.bound.clone(),
            overrides: s.overrides.clone(),
            snapshot: Arc::clone(&s.snapshot),
            publish_was_due: s.publish_at.is_some_and(|at| at <= world.now),
            event: match event {
                Event::ConfigRead(FileRead::Right(..)) | Event::Bound(_) => Kind::MayApply,
                Event::ConfigRead(_) | Event::NotBound(_) => Kind::Refuses,
                Event::Asked(..) => Kind::Asked,
                _ => Kind::Other,
            },
            stopping: s.stage.is_stopping(),
        }
    }
}

/// All that holds after every event.
pub fn hold(world: &mut World, before: &Before) {
    a_change_counts_once_and_a_refusal_changes_nothing(world, before);
    what_is_bound_is_what_the_file_has(world);
    overrides_stay(world, before);
    what_is_known_is_published(world);
    who_is_checked_will_be_probed(world);
    let is_upgrading = world.supervisor.is_frozen() || !world.at_once.is_empty();
    if world.supervisor.reload.is_none() && !is_upgrading {
        assert!(!world.reloading, "RELOADING is followed by READY");
    }
    if world.exit.is_some() {
        for ask in world.asks.values().filter(|ask| !ask.gone) {
            assert_eq!(ask.answers, 1, "nobody is left without an answer: {}", ask.what);
        }
    }
}

/// From the freeze on nothing is decided that would be lost. What is bound anew is so at once, before the freeze.
pub fn nothing_is_begun_while_all_stand_still(world: &World, action: &Action) {
    let is_right = matches!(action, Action::Notify(_) | Action::Rebind(_) | Action::Freeze | Action::HandOver(..));
    assert!(is_right || !world.supervisor.is_frozen(), "{action:?} is begun while all stand still");
}

/// Another program's supervisor has all that was known, and nothing else.
pub fn a_successor_knows_the_same(before: &Supervisor, after: &Supervisor) {
    assert_eq!((after.generation, after.keeping, &after.bound), (before.generation, before.keeping, &before.bound));
    assert!(after.revision > before.revision && after.config == before.config);
    assert_eq!(after.cells.carry(), before.cells.carry());
    assert_eq!(after.waiting.len(), before.waiting.len());
    assert!(
        after.next_reload.iter().copied().eq(before.unfinished_reloads()),
        "whoever waits for the file waits for it still"
    );
    let decided = |s: &Supervisor| -> Vec<_> {
        s.overrides.iter().map(|(key, o)| (key.clone(), o.admin, o.by.clone(), o.since, o.until.is_some())).collect()
    };
    assert_eq!(decided(after), decided(before));
    let found = |s: &Supervisor| -> Vec<_> {
        let known = s.backends.iter();
        known
            .map(|(key, k)| (key.clone(), k.verdict.health(), k.verdict.against(), k.probes_ok, k.probes_failed))
            .collect()
    };
    assert_eq!(found(after), found(before));
}

fn a_change_counts_once_and_a_refusal_changes_nothing(world: &mut World, before: &Before) {
    let s = &world.supervisor;
    if s.generation == before.generation {
        assert!(s.config == before.config, "a configuration in force has a number of its own");
        if before.stopping || !s.stage.is_stopping() {
            assert_eq!(s.bound, before.bound);
        }
    } else {
        assert_eq!(s.generation, before.generation.next());
        assert_eq!(before.event, Kind::MayApply);
        assert!(!before.stopping, "no configuration is applied while stopping");
        assert!(s.config != before.config, "nothing that has not changed is counted");
        assert!(s.config == world.read, "what was read is in force");
        world.in_force = s.config.clone();
    }
    assert!(s.config == world.in_force);
    if before.event == Kind::Refuses && !before.publish_was_due {
        assert!(Arc::ptr_eq(&s.snapshot, &before.snapshot), "a refused reload publishes nothing");
    }
}

fn what_is_bound_is_what_the_file_has(world: &World) {
    let s = &world.supervisor;
    assert!(s.bound.keys().eq(world.held.iter()), "{:?} is held, {:?} is believed", world.held, s.bound);
    if s.stage.is_stopping() {
        assert!(world.held.is_empty(), "who stops lets go of every door");
    } else if let Some(config) = &s.config {
        let mut asked: Vec<&Address> = config.listeners.values().flat_map(|l| &l.bind).collect();
        asked.sort();
        assert!(asked.into_iter().eq(world.held.iter()), "{:?}", world.held);
    }
}

/// An operator's decision stays as long as the file has the backend, unless its time is over.
fn overrides_stay(world: &World, before: &Before) {
    if before.event == Kind::Asked {
        return;
    }
    let s = &world.supervisor;
    let is_over = |o: &Override| o.until.is_some_and(|until: Instant| until <= world.now);
    for (key, o) in before.overrides.iter().filter(|(key, o)| !is_over(o) && s.key_of(&key.0).as_ref() == Some(key)) {
        assert_eq!(s.overrides.get(key).map(|o| o.admin), Some(o.admin), "{key:?}");
    }
    for key in s.overrides.keys() {
        assert!(before.overrides.contains_key(key), "nobody decided on {key:?}");
        assert!(s.key_of(&key.0).as_ref() == Some(key), "{key:?} is gone, and so is what was decided on it");
    }
}

/// What workers see is what is known, but for a moment in which verdicts are gathered.
fn what_is_known_is_published(world: &World) {
    let s = &world.supervisor;
    if s.publish_at.is_some() {
        return;
    }
    for backend in s.snapshot.pools.iter().flat_map(|pool| &pool.backends) {
        let key = (backend.cell.reference.clone(), backend.cell.address.clone());
        assert_eq!((backend.health, backend.admin), (s.health_of(&key), s.admin_of(&key)), "{key:?}");
    }
}

fn who_is_checked_will_be_probed(world: &World) {
    let s = &world.supervisor;
    if s.stage.is_stopping() {
        return;
    }
    for (key, known) in s.backends.iter() {
        if s.check_of(key).is_some() && s.admin_of(key) == AdminState::Enabled {
            assert!(known.next_probe.is_some() || world.probes.contains(key), "{key:?} is not probed any more");
        }
    }
}

pub fn may_be_probed(world: &World, key: &BackendKey) {
    let s = &world.supervisor;
    assert!(s.check_of(key).is_some(), "{key:?} has no check");
    assert_eq!(s.admin_of(key), AdminState::Enabled, "{key:?}");
    assert!(!s.stage.is_stopping());
}

pub fn only_new_addresses_are_bound(world: &World, addresses: &[Address]) {
    assert!(!addresses.is_empty());
    for address in addresses {
        assert!(!world.held.contains(address), "{address} is bound already");
    }
}

/// A snapshot shows the configuration in force and nobody who may not be chosen.
pub fn a_snapshot_follows(world: &World, last: &Snapshot, snapshot: &Snapshot) {
    let s = &world.supervisor;
    assert!(snapshot.revision > last.revision, "{:?} after {:?}", snapshot.revision, last.revision);
    assert!(snapshot.generation >= last.generation);
    let config = s.config.as_ref().expect("what is published was configured");
    let shown = snapshot.listeners.iter().map(|l| (&l.cell.name, &l.addresses, &l.pool.cell.name));
    assert!(shown.eq(config.listeners.iter().map(|(name, l)| (name, &l.bind, &l.pool))));
    assert!(
        snapshot.pools.iter().map(|p| (&p.cell.name, p.balance)).eq(config.pools.iter().map(|(n, p)| (n, p.balance)))
    );
    for (pool, asked) in snapshot.pools.iter().zip(config.pools.values()) {
        let shown = pool.backends.iter().map(|b| (&b.cell.reference.backend, &b.cell.address, b.weight, b.backup));
        assert!(shown.eq(asked.backends.iter().map(|b| (&b.name, &b.address, b.weight, b.backup))));
        for &i in &pool.eligible {
            let b = &pool.backends[usize::from(i)];
            assert!(
                b.admin == AdminState::Enabled
                    && matches!(b.health, Health::Up | Health::Unchecked)
                    && b.weight.value() > 0,
                "{b:?}"
            );
        }
    }
}

/// Of backends that are said to be drained no session is left, and no worker sees a snapshot in which it could choose one.
pub fn are_drained<'a>(cells: &[Arc<BackendCell>], seen: impl Iterator<Item = &'a Arc<Snapshot>>) {
    for cell in cells {
        assert_eq!(cell.live.count(), 0, "{} has sessions", cell.reference);
    }
    for pool in seen.flat_map(|snapshot| &snapshot.pools) {
        for chosen in pool.eligible.iter().map(|&i| &pool.backends[usize::from(i)].cell) {
            assert!(!cells.iter().any(|cell| Arc::ptr_eq(cell, chosen)), "{} may be chosen", chosen.reference);
        }
    }
}
