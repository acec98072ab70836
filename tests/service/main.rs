//! lbd under the real systemd, installed from its package: what operators are promised of a service. Each scenario has a
//! throw-away machine of its own (`systemd-box`), for which it must be root; where there can be none it says why.
//!
//! `LBD_TRIAL=full cargo test --release --test service` runs them at full size, one after the other; that takes minutes.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

#[allow(dead_code)] // not all of it is needed here
#[path = "../behaviour/client.rs"]
mod client;

mod load;
mod machine;
mod packages;
mod reload;
mod restart;
mod stop;
mod trial;
mod unit;
mod upgrade;
mod watchdog;
