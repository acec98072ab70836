#![doc = include_str!("ARCHITECTURE.md")]

pub mod words;

pub mod balance;
pub mod config;
pub mod health;

pub mod snapshot;

pub mod observe;

pub mod control;
pub mod probe;
pub mod proxy;

pub mod daemon;
