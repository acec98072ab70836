//! Another program takes over in place: same process, same descriptors, no session that notices.
//!
//! `target` finds out which program can; `hand_over` has everything stand still, leaves established sessions to a `stand_in`, writes
//! all down in a `record` and has the kernel execute the program; there `take_over` reads it, while `guard` holds the way back
//! open until all is built. `misbehave` is what tests want to go wrong there.

mod elf;
mod guard;
mod hand_over;
mod misbehave;
mod process;
mod reason;
mod record;
mod reserve;
mod stand_in;
mod take_over;
mod target;

pub use guard::{Called, arguments, called, extend_for, or_back};
pub(in crate::daemon) use hand_over::Standing;
pub use misbehave::log_fails;
pub(in crate::daemon) use misbehave::{Point, misbehave};
pub use process::take_name;
pub use reserve::{LONG, Reserve, SHORT, persist};
pub(in crate::daemon) use take_over::{Belongings, Settlement};
pub use take_over::{Heritage, read};
pub use target::{CHECK, Target, own_path, say};

use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::stand_in::CarriedStandIn;
use super::sockets::CarriedSockets;
use super::supervisor::CarriedSupervisor;
use crate::control::socket::CarriedSocket;

/// What the daemon leaves beside its workers. It travels as JSON: fields newer than the record's version have a default, and an
/// older program that has to go on with it knows nothing of them.
#[derive(Debug, Serialize, Deserialize)]
struct CarriedDaemon {
    /// Since when nobody new is served: microseconds of CLOCK_MONOTONIC.
    frozen_at: u64,
    /// Who serves those who are there.
    stand_in: CarriedStandIn,
    installed: PathBuf,
    supervisor: CarriedSupervisor,
    sockets: CarriedSockets,
    control: CarriedSocket,
    /// The control socket itself.
    control_door: RawFd,
    /// Connections to it that have asked nothing yet.
    silent: Vec<RawFd>,
    /// Operators who wait: the number of what they asked, and their connection.
    askers: Vec<(u64, RawFd)>,
    /// Requests so far.
    asked: u64,
    /// When something ran out last, in a spell of shortage that has been told of.
    #[serde(default)]
    short_since: Option<u64>,
}

impl CarriedDaemon {
    fn descriptors(&self) -> Vec<RawFd> {
        let sockets = self.sockets.inherited.iter().map(|(fd, _)| *fd);
        let askers = self.askers.iter().map(|(_, fd)| *fd);
        let control = [self.control.lock, self.control_door];
        let control = control.into_iter().chain(self.stand_in.descriptors());
        control.chain(sockets).chain(askers).chain(self.silent.iter().copied()).collect()
    }
}

/// Sections of a record: what the daemon leaves, the content of the file by which it serves, what the file last held, and then
/// two for each worker: its head, and its sessions.
const DAEMON: usize = 0;
const IN_FORCE: usize = 1;
const SEEN: usize = 2;
const WORKERS: usize = 3;
