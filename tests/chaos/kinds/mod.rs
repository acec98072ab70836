//! The kinds of load, one file each, and what they are made of.

mod broken;
mod download;
mod drain;
mod echo;
mod fin_reset;
mod half_close;
mod head;
mod killed;
mod pause;
mod queue;
mod reload;
mod rolling;
mod shortage;
mod slow;
mod spare;
mod stop;
mod upgrade;
mod urgent;

use std::io::{self, Read, Write};
use std::sync::Arc;

use socket2::Socket;

use crate::file::{Backend, File, Listener, Pool};
use crate::pattern::Text;
use crate::random::Random;
use crate::server::Server;
use crate::world::World;

/// A kind of load.
pub struct Kind {
    pub name: &'static str,
    /// Whether it takes part where no kinds are named.
    pub by_default: bool,
    /// Adds its part of the configuration, its servers and its tasks.
    pub begin: fn(&mut Setup),
}

pub const ALL: &[Kind] = &[
    echo::KIND,
    download::KIND,
    broken::KIND,
    half_close::KIND,
    fin_reset::KIND,
    slow::KIND,
    pause::KIND,
    urgent::KIND,
    spare::KIND,
    queue::KIND,
    head::KIND,
    rolling::KIND,
    killed::KIND,
    drain::KIND,
    reload::KIND,
    upgrade::KIND,
    shortage::KIND,
    stop::SHORT,
    stop::LONG,
];

pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|kind| kind.name).collect()
}

/// What a kind does until the run is over.
pub type Task = Box<dyn FnOnce(&World, Random) + Send>;

/// What is set up before lbd starts.
pub struct Setup {
    pub file: File,
    pub listeners: Vec<String>,
    pub tasks: Vec<(&'static str, Task)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { file: File { workers: 2, ..File::default() }, listeners: Vec::new(), tasks: Vec::new() }
    }
}

impl Setup {
    /// A listener, and a pool of its name; `of_listener` and `of_pool` are more of their keys.
    pub fn service(&mut self, name: &str, of_listener: &str, of_pool: &str, backends: Vec<(&str, Backend)>) {
        let host = self.listeners.len() + 1;
        let listener = Listener { host, pool: name.to_owned(), rest: of_listener.to_owned() };
        self.file.listeners.insert(name.to_owned(), listener);
        let backends = backends.into_iter().map(|(name, backend)| (name.to_owned(), backend)).collect();
        self.file.pools.insert(name.to_owned(), Pool { backends, rest: of_pool.to_owned() });
        self.listeners.push(name.to_owned());
    }

    /// So many of these at a time.
    pub fn tasks(&mut self, kind: &'static str, count: usize, task: impl Fn(&World, Random) + Send + Sync + 'static) {
        let task = Arc::new(task);
        for _ in 0..count {
            let task = Arc::clone(&task);
            self.tasks.push((kind, Box::new(move |world, random| task(world, random))));
        }
    }
}

/// The backend where a server is.
fn at(server: &Server) -> Backend {
    Backend::at(&server.address.to_string())
}

/// What a client asks a server for: so many bytes of a text; the number tells sessions apart.
#[derive(Debug, Clone, Copy)]
struct Request {
    number: u64,
    text: Text,
    bytes: usize,
}

impl Request {
    const LENGTH: usize = 24;

    fn new(random: &mut Random, bytes: usize) -> Self {
        Self { number: random.next(), text: Text(random.between(0, 1 << 20)), bytes }
    }

    fn encoded(self) -> [u8; Self::LENGTH] {
        let mut out = [0; Self::LENGTH];
        for (part, value) in out.chunks_mut(8).zip([self.number, self.text.0 as u64, self.bytes as u64]) {
            part.copy_from_slice(&value.to_be_bytes());
        }
        out
    }

    /// The server's side of it.
    fn read(mut socket: &Socket) -> io::Result<Self> {
        let mut bytes = [0; Self::LENGTH];
        socket.read_exact(&mut bytes)?;
        let value = |n: usize| bytes[n * 8..][..8].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        Ok(Self { number: value(0), text: Text(value(1) as usize), bytes: value(2) as usize })
    }

    /// The server's answer.
    fn answer(self, mut socket: &Socket) -> io::Result<()> {
        let mut at = 0;
        while at < self.bytes {
            let piece = self.text.piece(at, (self.bytes - at).min(64 * 1024));
            socket.write_all(piece)?;
            at += piece.len();
        }
        Ok(())
    }
}

/// Reads until the other side has ended; how many bytes came.
fn read_to_end(mut socket: &Socket) -> io::Result<usize> {
    let mut buffer = [0; 64 * 1024];
    let mut count = 0;
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(count),
            n => count += n,
        }
    }
}
