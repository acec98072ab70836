//! The operator's door: HTTP/1.1 with JSON on a Unix socket. What may be asked and answered is pure
//! (`request`, `target`, `route`, `reply`, `place`); `socket`, `server` and `client` carry it. Deciding is the supervisor's.

pub mod client;
mod names;
pub mod node;
mod noted;
mod place;
mod reply;
mod request;
mod roll;
mod route;
pub mod server;
pub mod socket;
mod target;

pub use names::Names;
pub use place::{Folder, Place};
pub use reply::{ProblemLine, ReloadOutcome, Reply};
pub use request::{Earnest, LiveSessions, Request, ShutdownMode, Upgrade, Wait};
pub use roll::Roll;
pub use route::{Unroutable, Wire, build, parse};
pub use server::{Asked, Peer};
pub use target::{Pools, Target, TargetError};
