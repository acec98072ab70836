//! What an operator may ask, and how it travels: a method, a path and a small JSON document.
//! The client builds exactly what the server parses; who may ask is the socket's mode.

use std::path::PathBuf;
use std::time::Duration;

use super::target::Target;
use crate::words::PoolName;

/// One request of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The daemon at a glance.
    Status,
    /// The counters of everything, or of one pool.
    Stats {
        /// The pool.
        pool: Option<PoolName>,
    },
    /// Read the file again and apply it.
    Reload,
    /// Let a backend finish its sessions and give it no new one.
    Drain {
        /// Which.
        target: Target,
        /// Answer when its last session has ended; `None`: when every worker knows.
        wait: Option<Wait>,
        /// Why, for those who look at it later.
        reason: Option<String>,
        /// When the override ends by itself; `None`: never.
        expires: Option<Duration>,
    },
    /// Take drain and disable back.
    Enable {
        /// Which.
        target: Target,
    },
    /// Give a backend no new session and stop probing it.
    Disable {
        /// Which.
        target: Target,
        /// What becomes of the sessions it has.
        live: LiveSessions,
        /// Why, for those who look at it later.
        reason: Option<String>,
        /// When the override ends by itself; `None`: never.
        expires: Option<Duration>,
    },
    /// Have a program take over in place, sessions included.
    Upgrade(Upgrade),
    /// Stop the daemon.
    Shutdown {
        /// How.
        mode: ShutdownMode,
    },
}

impl Request {
    /// Whether it is told later who asked.
    pub fn is_signed(&self) -> bool {
        !matches!(self, Self::Status | Self::Stats { .. } | Self::Reload)
    }
}

/// What is to take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// The program; `None`: the one at the place that lbd was started from.
    pub program: Option<PathBuf>,
    /// Whether it is done, or only looked at.
    pub earnest: Earnest,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earnest {
    /// It is.
    Done,
    /// It is only said what would come of it.
    Tried,
}

/// How long a drain's answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// The longest; `None`: until the last session ends.
    pub timeout: Option<Duration>,
}

/// What becomes of the sessions of a backend that is disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveSessions {
    /// They finish.
    Keep,
    /// They are cut.
    Close,
}

/// How the daemon stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Sessions finish within `drain_timeout`.
    Graceful,
    /// Sessions are cut.
    Now,
}
