#![doc = include_str!("ARCHITECTURE.md")]

pub mod words;

pub mod config;
