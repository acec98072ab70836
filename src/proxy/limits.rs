//! What the whole process may have: sessions, held bytes, descriptors. Shared by the workers; says once,
//! not a thousand times, that something ran out.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::memory::Memory;
use crate::snapshot::Live;

/// How long nothing must run out before the shortage counts as over, in microseconds.
const CALM: u64 = 5_000_000;

/// The limits of the process, and how far they are used.
#[derive(Debug)]
pub struct Limits {
    /// Sessions that have not ended.
    pub sessions: Live,
    /// Spare connections, those that are being opened included: a descriptor each.
    pub spares: AtomicU32,
    /// Descriptors that the process may have.
    descriptors: u64,
    most: AtomicU32,
    /// Bytes that stalled sessions hold.
    pub memory: Memory,
    short: AtomicBool,
    last_short: AtomicU64,
}

impl Limits {
    /// Descriptors left to what does not grow with the configuration: the log, the file and its watcher, signals, lbctl, an upgrade.
    const BASE: usize = 64;
    /// What a worker has of its own: an epoll instance, an eventfd, a ring.
    const OF_A_WORKER: usize = 3;

    /// The limits that follow from the descriptors and the memory there are, where [nothing more](Self::set_aside) needs any.
    pub fn new(descriptors: u64, buffer_memory: u64) -> Self {
        let limits = Self {
            sessions: Live::default(),
            spares: AtomicU32::new(0),
            descriptors,
            most: AtomicU32::new(0),
            memory: Memory::new(buffer_memory),
            short: AtomicBool::new(false),
            last_short: AtomicU64::new(0),
        };
        limits.set_aside(0, 0, 0);
        limits
    }

    /// Descriptors that the process may have.
    pub fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Leaves descriptors to whatever is no session: so many workers, listening sockets, and probes at a time.
    pub fn set_aside(&self, workers: usize, sockets: usize, probes: usize) {
        let aside = Self::BASE + Self::OF_A_WORKER * workers + sockets + probes;
        let most = self.descriptors.saturating_sub(aside as u64).max(2) / 2;
        self.most.store(u32::try_from(most).unwrap_or(u32::MAX), Relaxed);
    }

    /// Sessions there may be: two descriptors each, less what the rest of the process needs.
    pub fn most(&self) -> u32 {
        self.most.load(Relaxed)
    }

    /// Whether spare connections may be opened: sessions come first, and need descriptors.
    pub fn have_room_for_spares(&self) -> bool {
        let used = 2 * u64::from(self.sessions.count()) + u64::from(self.spares.load(Relaxed));
        !self.are_short() && used < 2 * u64::from(self.most() - self.most() / 8)
    }

    /// Notes a shortage; true where it is the first of this spell and worth a line in the log.
    pub fn ran_short(&self, now: u64) -> bool {
        self.last_short.store(now, Relaxed);
        !self.short.swap(true, Relaxed)
    }

    /// When something ran out last, in a spell that is not over.
    pub fn short_since(&self) -> Option<u64> {
        self.are_short().then(|| self.last_short.load(Relaxed))
    }

    /// True during a spell of shortage.
    pub fn are_short(&self) -> bool {
        self.short.load(Relaxed)
    }

    /// True once, when a spell of shortage is over.
    pub fn recovered(&self, now: u64) -> bool {
        if self.sessions.count() >= self.most() {
            self.last_short.store(now, Relaxed); // whoever comes now waits, though nobody may have come
            return false;
        }
        self.short.load(Relaxed)
            && now.saturating_sub(self.last_short.load(Relaxed)) > CALM
            && self.short.swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spares_and_sessions_together_leave_an_eighth_of_the_descriptors() {
        let limits = Limits::new(64 + 2 * 80, 0);
        limits.sessions.count_in(60);
        for spares in 0..20 {
            assert!(limits.have_room_for_spares(), "{spares}");
            limits.spares.fetch_add(1, Relaxed);
        }
        assert!(!limits.have_room_for_spares());
        limits.sessions.release();
        assert!(limits.have_room_for_spares());
    }

    #[test]
    fn what_is_left_to_sessions_shrinks_with_workers_listeners_and_probes() {
        let limits = Limits::new(512, 0);
        for (workers, sockets, probes, most) in
            [(2, 2, 1, 219), (8, 64, 1, 179), (8, 8, 1, 207), (64, 1000, 128, 1), (2, 2, 1, 219)]
        {
            limits.set_aside(workers, sockets, probes);
            assert_eq!(limits.most(), most, "{workers} {sockets} {probes}");
        }
    }

    #[test]
    fn a_spell_of_shortage_is_told_once_at_its_start_and_once_at_its_end() {
        let limits = Limits::new(256, 0);
        assert_eq!(limits.most(), 96);
        assert!(limits.ran_short(10) && !limits.ran_short(20));
        assert!(!limits.recovered(20 + CALM) && limits.recovered(21 + CALM) && !limits.recovered(22 + CALM));
        assert!(limits.ran_short(30 + CALM));
        // While all places are taken it is not over, however quiet it is.
        limits.sessions.count_in(96);
        assert!(!limits.recovered(40 + 9 * CALM));
        limits.sessions.release();
        assert!(!limits.recovered(40 + 10 * CALM) && limits.recovered(41 + 10 * CALM));
    }
}
