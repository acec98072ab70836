#![doc = include_str!("ARCHITECTURE.md")]

pub mod words;

pub mod balance;
pub mod config;

pub mod snapshot;

pub mod proxy;
