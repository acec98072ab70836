//! What the README promises, tried on the real programs: lbd started with a file, driven by lbctl and signals,
//! between clients and backends that the tests play. Nobody sleeps for a result; ports are the kernel's choice.

#![allow(clippy::unwrap_used)] // clippy sees tests in #[test] functions alone, not in what they call

mod backend;
mod client;
mod daemon;
mod load;
mod manager;
mod skip;

mod balancing;
mod health;
mod hot_change;
mod limits;
mod listening;
mod operator;
mod proxy_protocol;
mod proxying;
mod queue;
mod service;
mod shortage;
mod spare;
mod starting;
mod stopping;
mod timeouts;
mod upgrade;
mod upgrade_interrupted;
mod upgrade_shortage;
mod way_back;
