//! Everything the daemon can do to the world. The supervisor decides on actions; [`super::effects`]
//! performs them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::event::{AskId, BackendKey, Decision};
use super::supervisor::CarriedSupervisor;
use super::upgrade::Target;
use crate::config::{Control, LogLevel, SocketAccess};
use crate::control::Reply;
use crate::probe::Outlook;
use crate::proxy::{Sessions, Unaccepted};
use crate::snapshot::Snapshot;
use crate::words::{Address, CheckSpec};

/// Something to be done.
#[derive(Debug)]
pub enum Action {
    /// Read and check the file; answered by `ConfigRead`, however late.
    ReadConfig,
    /// Take the file that was last in force, which is kept, in place of the one of the start; answered by `ConfigRead`.
    ReadKept,
    /// Nobody wants what is being read any more; answered by `LateReadIsOver` instead.
    ForgetRead,
    /// Bind these addresses, all or none, with paths accessible as given; answered by `Bound` or `NotBound`.
    Bind(Vec<Address>, BTreeMap<Address, SocketAccess>),
    /// Give Unix listeners these permission bits and groups.
    Permit(BTreeMap<Address, SocketAccess>),
    /// Bind these addresses anew, whose sockets in these workers were ended, each as far as it can be; answered by `Rebound`.
    Rebind(BTreeMap<Address, BTreeSet<usize>>),
    /// Look whether everybody who is to be accepted can come in; answered by `LookedAtSockets` with this number, and
    /// by `SocketEnded` for what workers find.
    LookAtSockets(u64),
    /// Put a snapshot in force, accept on what was bound for it, let go of what it no longer has; every worker
    /// acknowledges it.
    Publish {
        /// The snapshot.
        snapshot: Arc<Snapshot>,
        /// What changes in where clients are accepted.
        doors: Doors,
    },
    /// End sessions now.
    Cut(Sessions),
    /// Probe a backend once; answered by `Probed` or `NotProbed`, after `ProbeBegan` where it must wait for its turn.
    Probe(BackendKey, CheckSpec, Outlook),
    /// Write the operators' decisions down, in place of those before; answered by `Kept` with this number. Only where
    /// there is a folder to keep them in.
    Keep(u64, Vec<Decision>),
    /// Have every worker turn; answered by `Turned` with this number.
    AskTurns(u64),
    /// Find out under which job of the service manager the daemon stops; answered by `JobKnown` within a moment.
    AskJob,
    /// Find out whether a program can take over (`None`: the one at this program's place); answered by `Checked`.
    CheckTarget(AskId, Option<PathBuf>),
    /// Who asked for that has gone: give it up; nothing is answered.
    ForgetTarget(AskId),
    /// Have every worker come to a safe point and stay there; answered by `Frozen`.
    Freeze,
    /// Have a program take over, with all that the workers have and this. Answered by `NotHandedOver`, where it is answered.
    HandOver(Target, Box<CarriedSupervisor>),
    /// Answer an operator.
    Answer(AskId, Reply),
    /// Log from this level up.
    SetLogLevel(LogLevel),
    /// Apply changes of the file by themselves, or no longer.
    SetWatch(bool),
    /// Give the control socket these permission bits and this group.
    SetControl(Control),
    /// Tell systemd.
    Notify(Notice),
    /// Leave the loop.
    Exit(Exit),
}

/// What changes in where clients are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Doors {
    /// Bound and to be accepted on.
    pub listen: Vec<Address>,
    /// To be let go.
    pub release: Vec<Address>,
    /// What becomes of those who wait where it is let go.
    pub unaccepted: Unaccepted,
}

/// What systemd is told (sd_notify(3)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// READY=1, with a status.
    Ready(String),
    /// STATUS=.
    Status(String),
    /// RELOADING=1; READY always follows.
    Reloading,
    /// STOPPING=1, with a status.
    Stopping(String),
    /// WATCHDOG=1: the loop and all workers turn.
    Alive,
    /// Still stopping: EXTEND_TIMEOUT_USEC=.
    Extend(Duration, String),
}

/// Why the daemon ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// As it was asked to.
    Stopped,
    /// It could not start; says why, and how to mend it.
    CannotStart(String),
}
