//! Which sessions are to be looked at, and when: a wheel of ticks, with an entry a session. Looking finds out what is due and when to
//! look next, so that nothing is taken out of the wheel where a deadline moves away, and an entry is added only where one comes
//! closer. What is farther away than the wheel is round is looked at once a round.

/// A tick, in microseconds: deadlines are late by up to that.
pub(super) const TICK: u64 = 20_000;
/// Ticks of a round: 20 s.
const SLOTS: usize = 1024;
/// A slot that had room for more gives its memory back.
const SPACIOUS: usize = 64;

/// The wheel. Entries whose session is gone, or is looked at earlier by now, stay until their tick comes.
#[derive(Debug)]
pub(super) struct Timers {
    slots: Box<[Vec<u32>]>,
    /// A bit for each slot that has entries.
    used: [u64; SLOTS / 64],
    /// Up to this tick all have been taken.
    done: u64,
    /// The first that has entries.
    next: u64,
}

impl Timers {
    /// No entry.
    pub fn new(now: u64) -> Self {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Self { slots, used: [0; SLOTS / 64], done: now / TICK, next: u64::MAX }
    }

    /// When the first entry's time has come.
    pub fn due(&self) -> u64 {
        self.next.saturating_mul(TICK)
    }

    /// Has an entry looked at when `at` has come, or earlier. `entry` is the tick at which it is looked at by now, 0 for none.
    pub fn set(&mut self, key: usize, entry: &mut u64, at: u64) {
        let tick = at.div_ceil(TICK).clamp(self.done + 1, self.done + SLOTS as u64 - 1);
        if *entry > self.done && *entry <= tick {
            return;
        }
        *entry = tick;
        let slot = slot(tick);
        self.slots[slot].push(key as u32);
        self.used[slot / 64] |= 1 << (slot % 64);
        self.next = self.next.min(tick);
    }

    /// Takes entries whose time has come, at most so many: each with its tick. An entry that has another tick by now is none.
    pub fn take(&mut self, now: u64, most: usize) -> Vec<(usize, u64)> {
        let mut taken = Vec::new();
        while self.next <= now / TICK && taken.len() < most {
            let (tick, slot) = (self.next, slot(self.next));
            let entries = &mut self.slots[slot];
            let from = entries.len().saturating_sub(most - taken.len());
            taken.extend(entries.drain(from..).map(|key| (key as usize, tick)));
            if entries.is_empty() {
                entries.shrink_to(SPACIOUS);
                self.used[slot / 64] &= !(1 << (slot % 64));
                self.done = tick;
                self.next = self.first_after(tick);
            } else {
                self.done = tick - 1;
            }
        }
        if self.next > now / TICK {
            self.done = self.done.max(now / TICK);
        }
        taken
    }

    /// The first tick behind `tick` whose slot has entries; all of them lie within a round.
    fn first_after(&self, tick: u64) -> u64 {
        let start = slot(tick + 1);
        for n in 0..=self.used.len() {
            let word = (start / 64 + n) % self.used.len();
            let mut bits = self.used[word];
            if n == 0 {
                bits &= u64::MAX << (start % 64);
            }
            if bits != 0 {
                let found = word * 64 + bits.trailing_zeros() as usize;
                return tick + 1 + ((found + SLOTS - start) % SLOTS) as u64;
            }
        }
        u64::MAX
    }
}

fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_entry_comes_once_and_by_its_time_or_after_a_round(
            start in 0u64..1 << 40,
            steps in prop::collection::vec((0u64..50 * TICK, prop::collection::vec(0u64..3000 * TICK, 0..4)), 1..60),
            most in 1usize..4,
        ) {
            let mut timers = Timers::new(start);
            let (mut now, mut entries) = (start, Vec::<(u64, u64)>::new()); // wanted, tick; 0 once it has come
            for (passes, sets) in steps.into_iter().chain([(0, vec![]); 1]) {
                for after in sets {
                    let mut tick = 0;
                    timers.set(entries.len(), &mut tick, now + after);
                    entries.push((now + after, tick));
                }
                now += passes;
                loop {
                    let taken = timers.take(now, most);
                    prop_assert!(taken.len() <= most);
                    if taken.is_empty() {
                        break;
                    }
                    for (key, tick) in taken {
                        let (wanted, entry) = &mut entries[key];
                        prop_assert_eq!(*entry, tick);
                        prop_assert!(tick * TICK <= now);
                        prop_assert!(tick * TICK <= *wanted + TICK);
                        *entry = 0;
                    }
                }
                prop_assert!(timers.due() > now);
                prop_assert!(entries.iter().all(|(_, tick)| *tick == 0 || tick * TICK > now));
                let first = entries.iter().map(|(_, tick)| *tick).filter(|tick| *tick > 0).min();
                prop_assert_eq!(timers.due(), first.map_or(u64::MAX, |tick| tick * TICK));
            }
        }
    }

    #[test]
    fn an_entry_that_moves_away_stays_and_one_that_comes_closer_is_added() {
        let (mut timers, mut entry) = (Timers::new(0), 0);
        timers.set(7, &mut entry, 10 * TICK);
        timers.set(7, &mut entry, 20 * TICK);
        assert_eq!((entry, timers.due()), (10, 10 * TICK));
        timers.set(7, &mut entry, 5 * TICK);
        assert_eq!((entry, timers.due()), (5, 5 * TICK));
        assert_eq!(timers.take(30 * TICK, 9), [(7, 5), (7, 10)], "the second has another tick: it is none");
    }
}
