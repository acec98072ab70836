//! A backend: a thread a connection, treated as its kind says. It can be killed, and come back at the same address.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::client::PATIENCE;

/// How a backend treats one connection.
type Temper = dyn Fn(&Socket) -> io::Result<()> + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    temper: Arc<Temper>,
    /// Keeps its port while it is dead.
    listener: Socket,
    state: Mutex<State>,
    numbers: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Which of its lives this is; none while it is dead.
    life: Option<usize>,
    live: HashMap<u64, Arc<Socket>>,
    /// When it was killed.
    kills: Vec<Instant>,
}

impl Server {
    /// At a free port.
    pub fn start(temper: impl Fn(&Socket) -> io::Result<()> + Send + Sync + 'static) -> Arc<Self> {
        // Only a port that was asked for by its number stays a socket's own while that does not listen.
        let chosen = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = chosen.local_addr().unwrap().as_socket().unwrap();
        let listener = bound(address);
        let (temper, state, numbers) = (Arc::new(temper), Mutex::default(), AtomicU64::new(0));
        let server = Arc::new(Self { address, temper, listener, state, numbers });
        server.revive();
        server
    }

    /// Serves again.
    pub fn revive(self: &Arc<Self>) {
        let mut state = self.state.lock().unwrap();
        if state.life.is_some() {
            return;
        }
        let life = state.kills.len();
        state.life = Some(life);
        self.listener.listen(1024).unwrap();
        drop(state);
        let server = Arc::clone(self);
        spawn(move || {
            while let Ok((socket, _)) = server.listener.accept() {
                let mut state = server.state.lock().unwrap();
                if state.life.is_none() {
                    break; // killed meanwhile
                }
                // It may have slept through a death and still be heard of by the next life, whose client this is then.
                let is_last = state.life != Some(life);
                let (number, socket) = (server.numbers.fetch_add(1, SeqCst), Arc::new(socket));
                state.live.insert(number, Arc::clone(&socket));
                drop(state);
                let server = Arc::clone(&server);
                spawn(move || {
                    let _ = socket.set_tcp_nodelay(true);
                    let _ = socket.set_read_timeout(Some(PATIENCE * 4));
                    let _ = socket.set_write_timeout(Some(PATIENCE * 4));
                    let _ = (server.temper)(&socket); // what lbd makes of it, its clients tell
                    server.state.lock().unwrap().live.remove(&number);
                });
                if is_last {
                    break;
                }
            }
        });
    }

    /// Dies as a killed process does: nobody listens, and its connections break.
    pub fn kill(&self) {
        let mut state = self.state.lock().unwrap();
        if state.life.take().is_none() {
            return;
        }
        let _ = self.listener.shutdown(Shutdown::Both); // ends the accept; the port stays its own
        for (_, socket) in state.live.drain() {
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Both);
        }
        // Who has come by now may have met it dying.
        state.kills.push(Instant::now());
    }

    /// Whether it was killed at or after this moment.
    pub fn was_killed_since(&self, moment: Instant) -> bool {
        self.state.lock().unwrap().kills.iter().any(|kill| *kill >= moment)
    }
}

fn bound(at: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    // Hundreds of them; the default of 2 MiB a stack is address space for nothing.
    thread::Builder::new().stack_size(256 * 1024).spawn(work).unwrap();
}
