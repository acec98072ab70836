//! Backends of every temper, a thread a connection. They can be stopped as a killed process is, and started
//! again at the same address.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::client::PATIENCE;

/// How a backend treats one connection.
type Temper = Arc<dyn Fn(Socket) -> io::Result<()> + Send + Sync>;

/// A backend, until it is dropped.
pub struct Backend {
    /// Where it listens, as lbd's file spells it.
    pub address: String,
    at: SockAddr,
    temper: Temper,
    state: Arc<State>,
    listener: Option<Arc<Socket>>,
    /// Keeps the port while stopped: a test beside this one must not be given it.
    kept: Option<Socket>,
}

#[derive(Default)]
struct State {
    /// When each connection was accepted.
    accepted: Mutex<Vec<Instant>>,
    changed: Condvar,
    live: Mutex<HashMap<usize, Socket>>,
    stopped: AtomicBool,
}

impl Backend {
    /// On a free port of 127.0.0.1.
    pub fn start(temper: impl Fn(Socket) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", temper)
    }

    /// At an IP and port, 0 for a free one.
    pub fn at(address: &str, temper: impl Fn(Socket) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = listen(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
        let at = listener.local_addr().unwrap();
        Self::with(at.as_socket().unwrap().to_string(), at, listener, Arc::new(temper))
    }

    /// At a Unix socket.
    pub fn unix(path: &Path, temper: impl Fn(Socket) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let at = SockAddr::unix(path).unwrap();
        Self::with(format!("unix:{}", path.display()), at.clone(), listen(&at).unwrap(), Arc::new(temper))
    }

    fn with(address: String, at: SockAddr, listener: Socket, temper: Temper) -> Self {
        let mut backend = Self { address, at, temper, state: Arc::default(), listener: None, kept: None };
        backend.serve(listener);
        backend
    }

    fn serve(&mut self, listener: Socket) {
        let (listener, state, temper) = (Arc::new(listener), Arc::clone(&self.state), Arc::clone(&self.temper));
        self.listener = Some(Arc::clone(&listener));
        state.stopped.store(false, SeqCst);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let number = {
                    let mut accepted = state.accepted.lock().unwrap();
                    accepted.push(Instant::now());
                    accepted.len()
                };
                state.changed.notify_all();
                let mut live = state.live.lock().unwrap();
                if state.stopped.load(SeqCst) {
                    break;
                }
                live.insert(number, socket.try_clone().unwrap());
                drop(live);
                let (state, temper) = (Arc::clone(&state), Arc::clone(&temper));
                thread::spawn(move || {
                    let _ = temper(socket); // what lbd made of it, its clients tell
                    state.live.lock().unwrap().remove(&number);
                });
            }
        });
    }

    /// Dies as a killed process does: nobody listens any more and its connections break.
    pub fn stop(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        self.state.stopped.store(true, SeqCst);
        listener.shutdown(Shutdown::Both).unwrap(); // ends the accept
        drop(listener);
        self.kept = self.at.is_ipv4().then(|| bind(&self.at).unwrap());
        for (_, socket) in self.state.live.lock().unwrap().drain() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Comes back where it was.
    pub fn restart(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // The accepting thread lets go of the port a moment after the stop.
        let listener = loop {
            match listen(&self.at) {
                Ok(listener) => break listener,
                Err(e) => assert!(Instant::now() < deadline, "{} cannot be bound again: {e}", self.address),
            }
            thread::yield_now();
        };
        self.kept = None;
        self.serve(listener);
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.state.accepted.lock().unwrap().len()
    }

    /// How many of them it has not yet seen the end of.
    pub fn live(&self) -> usize {
        self.state.live.lock().unwrap().len()
    }

    /// Closes every connection, and goes on accepting.
    pub fn hang_up(&self) {
        for (_, socket) in self.state.live.lock().unwrap().drain() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// When it accepted the last one.
    pub fn last_accepted(&self) -> Option<Instant> {
        self.state.accepted.lock().unwrap().last().copied()
    }

    /// Waits until it has accepted as many.
    pub fn await_accepted(&self, count: usize) {
        let accepted = self.state.accepted.lock().unwrap();
        let waited = self.state.changed.wait_timeout_while(accepted, PATIENCE, |all| all.len() < count).unwrap();
        assert!(!waited.1.timed_out(), "{} has {} connections, wanted {count}", self.address, waited.0.len());
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Listens, but its queue is full: a connect to it neither succeeds nor fails.
pub struct Full {
    pub address: String,
    listener: Arc<Socket>,
    _sockets: Vec<Socket>,
}

impl Full {
    pub fn new() -> Self {
        let stream = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let listener = stream();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap();
        let (address, listener) = (at.as_socket().unwrap().to_string(), Arc::new(listener));
        let mut sockets = Vec::new();
        loop {
            let client = stream();
            let taken = client.connect_timeout(&at, Duration::from_millis(50)).is_ok();
            sockets.push(client);
            if !taken {
                return Self { address, listener, _sockets: sockets };
            }
        }
    }

    /// From now on it accepts, and echoes.
    pub fn accept(&self) {
        let listener = Arc::clone(&self.listener);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                thread::spawn(move || echo(socket));
            }
        });
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = self.listener.shutdown(Shutdown::Both); // ends the accept
    }
}

fn listen(at: &SockAddr) -> io::Result<Socket> {
    let socket = bind(at)?;
    socket.listen(1024)?;
    Ok(socket)
}

fn bind(at: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(i32::from(at.family())), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(at)?;
    Ok(socket)
}

/// Sends back what comes; shuts its side when the client has.
pub fn echo(mut socket: Socket) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match socket.read(&mut buffer)? {
            0 => return socket.shutdown(Shutdown::Write),
            n => socket.write_all(&buffer[..n])?,
        }
    }
}

/// Answers the first bytes with its name, then closes when the client does.
pub fn named(name: &'static str) -> impl Fn(Socket) -> io::Result<()> + Send + Sync {
    move |mut socket| {
        if socket.read(&mut [0; 1024])? > 0 {
            socket.write_all(name.as_bytes())?;
        }
        socket.shutdown(Shutdown::Write)?;
        socket.read(&mut [0; 1]).map(drop)
    }
}

/// Echoes, after it has said its name.
pub fn greeting(name: &'static str) -> impl Fn(Socket) -> io::Result<()> + Send + Sync {
    move |mut socket| {
        socket.write_all(name.as_bytes())?;
        echo(socket)
    }
}

/// Reads to the end and only then says how many bytes came.
pub fn counting(mut socket: Socket) -> io::Result<()> {
    let count = io::copy(&mut socket, &mut io::sink())?;
    socket.write_all(count.to_string().as_bytes())
}

/// Neither reads nor writes, until it is stopped.
pub fn silent(socket: Socket) -> io::Result<()> {
    nix::poll::poll(
        &mut [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&socket), nix::poll::PollFlags::empty())],
        nix::poll::PollTimeout::NONE,
    )?;
    Ok(())
}

/// Breaks off at once.
pub fn resetting(socket: Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}
