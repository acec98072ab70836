//! Everything that can happen to the daemon. Effects and the loop make events; only the supervisor
//! decides what follows from one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::upgrade::Target;
use crate::config::{Config, Problem};
use crate::control::{Peer, Request};
use crate::snapshot::Revision;
use crate::words::{Address, AdminState, BackendRef};

/// When something happened, by the three clocks that somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines.
    pub at: Instant,
    /// For the workers' tables: microseconds of CLOCK_MONOTONIC.
    pub micros: u64,
    /// For people.
    pub wall: SystemTime,
}

/// Under which number an operator's request waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// Which backend a probe was of.
pub type BackendKey = (BackendRef, Address);

/// How it came to be that this program serves in place of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TookOver {
    /// The operator who asked for it.
    pub asker: AskId,
    /// The version of the program that served before.
    pub from: String,
    /// Why the program that was to take over did not: this is the one that served before.
    pub failure: Option<String>,
    /// How many sessions were carried over.
    pub sessions: u64,
    /// The longest time for which established sessions were not served.
    pub pause: Duration,
    /// For how long nobody new was.
    pub shut: Duration,
    /// Established sessions had to be cut, for this reason.
    pub lost: Option<String>,
    /// Addresses at which nobody accepts, as asked for: their sockets were ended just before.
    pub silent: Vec<Address>,
}

/// Who wants the configuration read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadBy {
    /// The start of the process.
    Start,
    /// The file watcher.
    Watcher,
    /// SIGHUP.
    Signal,
    /// `lbctl reload`, which waits for the answer.
    Operator(AskId),
}

/// What an operator has decided about a backend, as it outlives the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// About which backend.
    pub backend: BackendKey,
    /// What is wanted of it.
    pub admin: AdminState,
    /// Who decided.
    pub by: String,
    /// Why, in their words.
    pub reason: Option<String>,
    /// When.
    pub since: SystemTime,
    /// For how long still; `None`: until it is taken back.
    pub left: Option<Duration>,
}

/// Under which job of the service manager the daemon stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// It is not to come back, or nobody knows.
    Stop,
    /// A successor starts as soon as it has exited.
    Restart(Queues),
}

/// What becomes of the clients that nobody has accepted when the daemon exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// The service manager holds the listening sockets: the successor accepts them.
    Kept,
    /// They would be reset.
    Lost,
}

/// What came of reading the file.
#[derive(Debug)]
pub enum FileRead {
    /// It is right; with what the operator should know of it, a line each.
    Right(Box<Config>, Vec<String>),
    /// It is wrong; holds the file's name and all its problems.
    Wrong(String, Vec<Problem>),
    /// It could not be read, or there is none; says which and how to mend it.
    Unreadable(String),
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// Somebody wants the configuration read.
    ReloadAsked(ReloadBy),
    /// It was read.
    ConfigRead(FileRead),
    /// The read that was to be forgotten has come to an end.
    LateReadIsOver,
    /// The addresses asked for are bound: each as asked for, and as it is (port 0 has a number now).
    Bound(BTreeMap<Address, Address>),
    /// Not all could be bound, so none is; each with the reason.
    NotBound(Vec<(Address, String)>),
    /// Somebody else has ended the listening socket that this worker has at an address, as asked for.
    SocketEnded(Address, usize),
    /// The listening sockets were looked at, for at least this time; those that lead nowhere, and why.
    LookedAtSockets(u64, Vec<(Address, String)>),
    /// These addresses are bound anew, or are not for this reason.
    Rebound(Vec<(Address, Result<(), String>)>),
    /// An operator asks.
    Asked(AskId, Request, Peer),
    /// An operator who waited has gone.
    AskerGone(AskId),
    /// Every worker has acknowledged at least this snapshot.
    Acknowledged(Revision),
    /// A probe of a backend ended: it succeeded, or failed for this reason.
    Probed(BackendKey, Result<(), String>),
    /// A probe could not be made for want of something of our own; says of what, and how to mend it.
    NotProbed(BackendKey, String),
    /// A probe that had to wait so long for its turn has begun.
    ProbeBegan(BackendKey, Duration),
    /// A client's connect to a backend failed.
    DialFailed(BackendKey),
    /// The operators' decisions with this number are on the disk; or why they are not.
    Kept(u64, Result<(), String>),
    /// Every worker has turned since it was asked to for at least this time.
    Turned(u64),
    /// A program was tried: it can take over, or cannot for this reason. So many requests of operators have come only in part.
    Checked(AskId, Result<Target, String>, usize),
    /// Every worker has come to a safe point and is kept there; or they all work on, for this reason.
    Frozen(Result<(), String>),
    /// The program that was to take over was not executed, for this reason; the workers work on. Sessions had to be cut, where that has
    /// a reason.
    NotHandedOver(String, Option<String>),
    /// This program has taken over, and the workers are at work.
    TookOver(TookOver),
    /// SIGTERM or SIGINT.
    StopAsked,
    /// What the service manager has in mind, where it was asked.
    JobKnown(Job),
    /// Some time has passed.
    Tick,
}
