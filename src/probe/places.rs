//! Who may probe now. There are so many places for all pools together, of which backends that keep their probes waiting
//! have a part; and each pool has a few of its own beside them. So whatever some backends do, those that answer are
//! probed on time. Pure: it counts, and the prober acts.

use std::collections::{BTreeMap, VecDeque};

use crate::words::PoolName;

/// Places of its own that a pool has for backends that are thought to answer: enough for a few at a distance.
const OWN: usize = 4;
/// And for others, so that one of them that has come back is found.
const OWN_SLOW: usize = 1;

/// What is thought of how a probe will go, by the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// The backend will answer.
    Good,
    /// It may keep the probe waiting: the last one failed.
    Doubtful,
}

/// A place, to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Of those for all.
    Common,
    /// Of those for all, of the part that slow ones have.
    Slow,
    /// Of the pool's own.
    Own(Outlook),
}

/// What one pool has beside the common places.
#[derive(Debug)]
struct Share<T> {
    own: usize,
    own_slow: usize,
    good: VecDeque<T>,
    doubtful: VecDeque<T>,
}

/// The places, and who waits for one.
#[derive(Debug)]
pub(super) struct Places<T> {
    common: usize,
    slow: usize,
    taken: usize,
    taken_slow: usize,
    /// Only of pools that have own places taken or somebody waiting: in other words, while the common places do not do.
    shares: BTreeMap<PoolName, Share<T>>,
    /// Pools with somebody waiting, in whose turn they are: of a good outlook, and of a doubtful one.
    turns: [VecDeque<PoolName>; 2],
}

impl<T> Places<T> {
    /// So many common places; three quarters of them are the most that slow ones have.
    pub(super) fn new(common: usize) -> Self {
        let common = common.max(4);
        let (shares, turns) = (BTreeMap::new(), [VecDeque::new(), VecDeque::new()]);
        Self { common, slow: common - common / 4, taken: 0, taken_slow: 0, shares, turns }
    }

    /// Gives one a place; otherwise it waits, behind those of its pool.
    pub(super) fn ask(&mut self, pool: &PoolName, outlook: Outlook, who: T) -> Option<(T, Place)> {
        let has_predecessors = self.shares.get(pool).is_some_and(|share| !share.waiting(outlook).is_empty());
        if !has_predecessors && let Some(place) = self.take(pool, outlook) {
            return Some((who, place));
        }
        let share = self.shares.entry(pool.clone()).or_default();
        share.waiting_mut(outlook).push_back(who);
        if !has_predecessors {
            self.turns[outlook as usize].push_back(pool.clone());
        }
        None
    }

    /// One that has had its place for long becomes a slow one, if there is room; says where it is now.
    pub(super) fn grow_old(&mut self, place: Place) -> Place {
        if place == Place::Common && self.taken_slow < self.slow {
            self.taken_slow += 1;
            return Place::Slow;
        }
        place
    }

    pub(super) fn give_back(&mut self, pool: &PoolName, place: Place) {
        match place {
            Place::Common => self.taken -= 1,
            Place::Slow => {
                self.taken -= 1;
                self.taken_slow -= 1;
            }
            Place::Own(outlook) => {
                if let Some(share) = self.shares.get_mut(pool) {
                    *share.own_mut(outlook) -= 1;
                    self.forget_unused(pool);
                }
            }
        }
    }

    /// One who has waited and has a place now. `freed` says where one was given back: who is of that kind comes first.
    pub(super) fn next(&mut self, pool: &PoolName, freed: Place) -> Option<(T, Place)> {
        let outlook = match freed {
            Place::Own(outlook) => return self.next_of(pool, outlook),
            Place::Common => Outlook::Good,
            Place::Slow => Outlook::Doubtful,
        };
        let other = if outlook == Outlook::Good { Outlook::Doubtful } else { Outlook::Good };
        [outlook, other].into_iter().find_map(|outlook| {
            let pool = self.turns[outlook as usize].front()?.clone();
            self.next_of(&pool, outlook)
        })
    }

    fn next_of(&mut self, pool: &PoolName, outlook: Outlook) -> Option<(T, Place)> {
        self.shares.get(pool).filter(|share| !share.waiting(outlook).is_empty())?;
        let place = self.take(pool, outlook)?;
        let share = self.shares.get_mut(pool)?;
        let who = share.waiting_mut(outlook).pop_front()?;
        let others_wait = !share.waiting(outlook).is_empty();
        let turns = &mut self.turns[outlook as usize];
        if turns.front() == Some(pool) {
            turns.pop_front();
        } else {
            turns.retain(|other| other != pool);
        }
        if others_wait {
            turns.push_back(pool.clone());
        }
        self.forget_unused(pool);
        Some((who, place))
    }

    fn take(&mut self, pool: &PoolName, outlook: Outlook) -> Option<Place> {
        if self.taken < self.common {
            if outlook == Outlook::Good {
                self.taken += 1;
                return Some(Place::Common);
            }
            if self.taken_slow < self.slow {
                self.taken += 1;
                self.taken_slow += 1;
                return Some(Place::Slow);
            }
        }
        let most = if outlook == Outlook::Good { OWN } else { OWN_SLOW };
        let share = self.shares.entry(pool.clone()).or_default();
        let own = share.own_mut(outlook);
        (*own < most).then(|| {
            *own += 1;
            Place::Own(outlook)
        })
    }

    fn forget_unused(&mut self, pool: &PoolName) {
        let is_unused = |s: &Share<T>| s.own + s.own_slow == 0 && s.good.is_empty() && s.doubtful.is_empty();
        if self.shares.get(pool).is_some_and(is_unused) {
            self.shares.remove(pool);
        }
    }
}

impl<T> Default for Share<T> {
    fn default() -> Self {
        Self { own: 0, own_slow: 0, good: VecDeque::new(), doubtful: VecDeque::new() }
    }
}

impl<T> Share<T> {
    fn waiting(&self, outlook: Outlook) -> &VecDeque<T> {
        match outlook {
            Outlook::Good => &self.good,
            Outlook::Doubtful => &self.doubtful,
        }
    }

    fn waiting_mut(&mut self, outlook: Outlook) -> &mut VecDeque<T> {
        match outlook {
            Outlook::Good => &mut self.good,
            Outlook::Doubtful => &mut self.doubtful,
        }
    }

    fn own_mut(&mut self, outlook: Outlook) -> &mut usize {
        match outlook {
            Outlook::Good => &mut self.own,
            Outlook::Doubtful => &mut self.own_slow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Outlook::{Doubtful, Good};
    use super::*;
    use proptest::prelude::*;

    fn pool(n: usize) -> PoolName {
        format!("p{n}").parse().unwrap()
    }

    #[test]
    fn who_is_kept_waiting_leaves_room_for_those_who_answer() {
        let mut places = Places::new(8);
        let doubtful = (0..20).filter(|n| places.ask(&pool(0), Doubtful, *n).is_some()).count();
        assert_eq!(doubtful, 6 + OWN_SLOW);
        for n in 0..2 + OWN {
            assert!(places.ask(&pool(0), Good, n).is_some(), "{n}");
        }
        assert!(places.ask(&pool(0), Good, 99).is_none());
        assert_eq!(places.ask(&pool(1), Good, 7), Some((7, Place::Own(Good))), "another pool has its own");
        assert_eq!(places.ask(&pool(1), Doubtful, 8), Some((8, Place::Own(Doubtful))));
    }

    #[test]
    fn one_that_grows_old_makes_room_while_slow_ones_have_room() {
        let mut places = Places::new(4);
        assert!((0..4).all(|n| places.ask(&pool(0), Good, n).is_some_and(|(_, place)| place == Place::Common)));
        let now: Vec<Place> = (0..4).map(|_| places.grow_old(Place::Common)).collect();
        assert_eq!(now, [Place::Slow, Place::Slow, Place::Slow, Place::Common]);
        assert_eq!(places.grow_old(Place::Own(Good)), Place::Own(Good));
    }

    #[test]
    fn pools_take_turns() {
        let mut places = Places::new(4);
        let taken = 4 + OWN;
        (0..taken).for_each(|n| assert!(places.ask(&pool(0), Good, n).is_some()));
        (0..OWN).for_each(|n| assert!(places.ask(&pool(1), Good, n).is_some()));
        for n in [100, 101, 102] {
            assert!(places.ask(&pool(0), Good, n).is_none());
        }
        assert!(places.ask(&pool(1), Good, 200).is_none());
        let order: Vec<usize> = (0..4)
            .map(|_| {
                places.give_back(&pool(0), Place::Common);
                places.next(&pool(0), Place::Common).unwrap().0
            })
            .collect();
        assert_eq!(order, [100, 200, 101, 102]);
    }

    proptest! {
        /// Whatever is asked for and given back, no more are taken than there are, and nobody who could have a place waits.
        #[test]
        fn no_place_is_lost_or_given_twice(
            steps in prop::collection::vec((0usize..3, any::<bool>(), 0usize..4, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut places = Places::new(6);
            let mut running: Vec<(PoolName, Place, usize)> = Vec::new();
            let (mut asked, mut begun) = (0, 0);
            for (p, good, what, which) in steps {
                if what > 0 || running.is_empty() {
                    let outlook = if good { Good } else { Doubtful };
                    asked += 1;
                    if let Some((n, place)) = places.ask(&pool(p), outlook, p) {
                        begun += 1;
                        running.push((pool(n), place, n));
                    }
                } else {
                    let (name, mut place, _) = running.swap_remove(which.index(running.len()));
                    if good {
                        place = places.grow_old(place);
                    }
                    places.give_back(&name, place);
                    if let Some((n, place)) = places.next(&name, place) {
                        begun += 1;
                        running.push((pool(n), place, n));
                    }
                }
                let common = running.iter().filter(|(_, place, _)| !matches!(place, Place::Own(_))).count();
                prop_assert!(common <= 6 && common == places.taken);
                prop_assert!(places.taken_slow <= places.slow);
                let waiting: usize = places.shares.values().map(|s| s.good.len() + s.doubtful.len()).sum();
                prop_assert_eq!(waiting, asked - begun);
                prop_assert!(waiting == 0 || !running.is_empty(), "somebody waits for nobody");
            }
            while let Some((name, place, _)) = running.pop() {
                places.give_back(&name, place);
                if let Some((n, place)) = places.next(&name, place) {
                    begun += 1;
                    running.push((pool(n), place, n));
                }
            }
            prop_assert_eq!((begun, places.taken, places.taken_slow, places.shares.len()), (asked, 0, 0, 0));
        }
    }
}
