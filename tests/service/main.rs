//! lbd under the real systemd, installed from its package: what operators are promised of a service. Each scenario has a
//! throw-away machine of its own (`systemd-box`), for which it must be root; for anybody else they are left out, and say so.
//!
//! `LBD_TRIAL=full cargo test --release --test service` runs them at full size, one after the other; that takes minutes.
//! `LBD_TRIAL=skip` leaves them out as root too.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

#[allow(dead_code)] // not all of it is needed here
#[path = "../behaviour/client.rs"]
mod client;
#[path = "../behaviour/skip.rs"]
mod skip;

mod applications;
mod guide;
mod load;
mod machine;
mod packages;
mod reload;
mod restart;
mod sockets;
mod stop;
mod trial;
mod unit;
mod upgrade;
mod watchdog;
