//! Clients that ask all the time, each on a new connection, while a test changes something. They never retry.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use crate::client::{ask, connect_from, until};

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// `clients` at a time; each request is to come back as it was sent.
    pub fn start(to: SocketAddr, clients: usize) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |number: usize| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                let mut errors = Vec::new();
                for turn in 0.. {
                    if stop.load(SeqCst) {
                        break;
                    }
                    match request(to, &format!("{number}:{turn}")) {
                        Ok(()) => drop(served.fetch_add(1, SeqCst)),
                        Err(e) => errors.push(e.to_string()),
                    }
                }
                errors
            })
        };
        let threads = (0..clients).map(client).collect();
        Self { stop, served, threads }
    }

    /// Waits until so many more requests have been served.
    pub fn go_on(&self, requests: usize) {
        let goal = self.served.load(SeqCst) + requests;
        until("the load goes on", || (self.served.load(SeqCst) >= goal).then_some(()));
    }

    /// Ends it; returns how many were served, and every error.
    pub fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, SeqCst);
        let errors = self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        (self.served.load(SeqCst), errors)
    }
}

fn request(to: SocketAddr, text: &str) -> io::Result<()> {
    let answer = ask(connect_from(None, to)?, text.as_bytes())?;
    if answer == text { Ok(()) } else { Err(io::Error::other(format!("{answer:?} for {text:?}"))) }
}
