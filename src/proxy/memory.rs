//! How much the rests of stalled sessions may take, all together, and when what they took goes back to the kernel. Who holds
//! what is `relay.rs`'s.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How much all stalled sessions hold, and may hold, together.
#[derive(Debug)]
pub struct Memory {
    held: AtomicU64,
    /// The most that was held since freed memory was last given back.
    peak: AtomicU64,
    limit: u64,
}

/// Less than this is not worth the walk through the heap that gives it back.
const SLACK: u64 = 4 << 20;

impl Memory {
    /// Nothing held, of so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { held: AtomicU64::new(0), peak: AtomicU64::new(0), limit }
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Takes note of bytes that are held from now on.
    pub(super) fn hold(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        self.peak.fetch_max(held, Relaxed);
    }

    /// Takes note of bytes that are not held any more.
    pub(super) fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes as u64, Relaxed);
    }

    /// True while no more may be held.
    pub(super) fn is_used_up(&self) -> bool {
        self.held() >= self.limit
    }

    /// True, once, when so much has been freed that the heap should give it back to the kernel: by itself it does not, where
    /// something that lives lies behind it.
    pub fn has_slack(&self) -> bool {
        let (held, peak) = (self.held(), self.peak.load(Relaxed));
        peak.saturating_sub(held) > SLACK.max(held) && self.peak.compare_exchange(peak, held, Relaxed, Relaxed).is_ok()
    }
}
