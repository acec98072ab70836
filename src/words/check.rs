//! What a health check does and when it believes what it saw.

use std::sync::Arc;
use std::time::Duration;

use super::{Percent, ProxyVersion};

/// A pool's active health check: a TCP connect, and where `send` or `expect` are given a short exchange after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckSpec {
    /// The port to probe; `None`: the backend's own. Ignored for backends on Unix sockets.
    pub port: Option<u16>,
    /// The PROXY header that its own port expects before anything else. Another port is taken to expect none.
    pub send_proxy: Option<ProxyVersion>,
    /// Bytes to send once connected.
    pub send: Option<Arc<[u8]>>,
    /// Bytes that the answer must begin with.
    pub expect: Option<Arc<[u8]>>,
    /// Time between two probes of a backend that is up and settled.
    pub interval: Duration,
    /// Time between two probes while unproven or in transition.
    pub fast_interval: Duration,
    /// Time between two probes of a backend that is down and settled.
    pub down_interval: Duration,
    /// The longest a probe may take, from connect to the last expected byte.
    pub timeout: Duration,
    /// Consecutive successes that turn down into up.
    pub rise: u32,
    /// Consecutive failures that turn up into down.
    pub fall: u32,
    /// How far a probe may be moved from its time, either way, as a share of the interval.
    pub jitter: Percent,
}
