//! What is counted. Live sessions are one padded atomic a listener and a backend, because choices and
//! limits need them exact; everything else is a shard a worker, written without a locked instruction
//! and summed when somebody looks.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::histogram::Histogram;
use crate::words::{Cause, Refusal};

/// A value with cache lines of its own, so that two cores writing neighbours do not slow each other.
/// 128 bytes, as x86 prefetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

impl<T> Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it. Only the thread that owns it may: a load and a store are no atomic addition, and a third of its price.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Its value, perhaps a moment old.
    pub fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one worker counts of one listener.
#[derive(Debug, Default)]
pub struct ListenerShard {
    /// Clients accepted.
    pub accepted: Count,
    /// Bytes read from clients.
    pub bytes_in: Count,
    /// Bytes read from backends, for clients.
    pub bytes_out: Count,
    /// Dials given up and tried at another backend.
    pub retries: Count,
    /// Clients refused, by [`Refusal`].
    pub refused: [Count; Refusal::ALL.len()],
    /// Sessions ended, by [`Cause`].
    pub ended: [Count; Cause::ALL.len()],
    /// From accept to end.
    pub durations: Histogram,
}

/// What one worker counts of one backend.
#[derive(Debug, Default)]
pub struct BackendShard {
    /// Sessions established.
    pub established: Count,
    /// Bytes read from clients, for it.
    pub bytes_in: Count,
    /// Bytes read from it.
    pub bytes_out: Count,
    /// Connects that failed or took too long.
    pub connect_errors: Count,
    /// Of these, those tried again at another backend.
    pub retries: Count,
    /// From connect to established.
    pub connect_times: Histogram,
    /// From accept to end of the sessions established on it.
    pub durations: Histogram,
}
