//! The value of every key that the file leaves out. `config/full.yaml` shows them and is tested against them.

use std::time::Duration;

use super::model::{Control, Keepalive, Log, LogConnections, LogLevel, Process, Queue, Workers};
use crate::words::{Algorithm, Percent};

pub(super) const IDLE_TIMEOUT: Option<Duration> = Some(Duration::from_secs(3600));
pub(super) const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), count: 3 };

pub(super) const BALANCE: Algorithm = Algorithm::RoundRobin;
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const RETRIES: u32 = 2;
pub(super) const SPARE_CONNECTIONS: u32 = 0;
pub(super) const SPARE_MAX_IDLE: Duration = Duration::from_secs(5);
pub(super) const ABORT_ON_CLOSE: bool = false;
pub(super) const QUEUE: Queue = Queue { max: 1000, timeout: Duration::from_secs(5) };

/// Also the fast and the down interval, where they are left out and `interval` too.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(2);
pub(super) const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const RISE: u32 = 2;
pub(super) const FALL: u32 = 3;
pub(super) const JITTER: Percent = Percent::new(10).expect("10 is at most 100");

pub(super) const PROCESS: Process = Process { workers: Workers::Auto, buffer_memory: 32 << 20 };
pub(super) const WATCH: bool = true;
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const RESTART_DRAIN: Duration = Duration::from_millis(500);
pub(super) const REMOVED_TIMEOUT: Option<Duration> = None;
pub(super) const CONTROL: Control = Control { socket: None, mode: 0o660, group: None };
pub(super) const LOG: Log = Log { level: LogLevel::Info, connections: LogConnections::Errors };
