//! The two ways to ask a running command to end: SIGINT (Ctrl-C) and SIGTERM. What is done about them is the command's.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on, SIGINT and SIGTERM no longer kill the process.
pub struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// Listens to both; must be called within a runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())? })
    }

    /// The next one. Cancel safe: one that comes while nobody waits is kept.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}
