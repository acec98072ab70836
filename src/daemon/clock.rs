//! How much time has passed since something was written down, which another program may have done before a restart. The wall clock may
//! have been wrong then, or be wrong now: a machine without a battery begins in the past, until it hears of the time. So within a
//! boot the kernel's own clock tells, which also counts the time in which the machine was suspended; only over a boot the wall clock does,
//! and only where it goes forward.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// A moment as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock.
    pub wall: SystemTime,
    /// Which boot of the machine it is; empty where nobody knows.
    pub boot: String,
    /// Since then.
    pub since_boot: Duration,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self { wall: SystemTime::now(), boot: boot.trim().to_owned(), since_boot }
    }

    /// How much time has passed since an earlier one, as far as can be told.
    pub fn since(&self, earlier: &Self) -> Duration {
        if !self.boot.is_empty() && self.boot == earlier.boot {
            return self.since_boot.saturating_sub(earlier.since_boot);
        }
        self.wall.duration_since(earlier.wall).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_a_boot_the_wall_clock_counts_for_nothing_and_over_one_it_only_goes_forward() {
        let moment = |boot: &str, since_boot, wall| Moment {
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(wall),
            boot: boot.to_owned(),
            since_boot: Duration::from_secs(since_boot),
        };
        let written = moment("a", 100, 1_000_000);
        for (now, passed) in [
            (moment("a", 160, 1_000_060), 60),
            (moment("a", 160, 1_700_000_000), 60), // the machine has heard what time it is
            (moment("a", 160, 5), 60),
            (moment("a", 90, 1_000_060), 0),
            (moment("b", 7, 1_000_060), 60),
            (moment("b", 7, 5), 0), // it has not heard yet
            (moment("", 7, 1_000_060), 60),
        ] {
            assert_eq!(now.since(&written), Duration::from_secs(passed), "{now:?}");
        }
        assert!(!Moment::now().boot.is_empty() && Moment::now().since_boot > Duration::ZERO);
    }
}
