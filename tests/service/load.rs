//! Clients that never try again: new connections at a rate, and sessions that stay. Both verify every byte.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::{PATIENCE, until};
use crate::machine::Machine;
use crate::trial::TRIAL;

/// How many new connections are served at the same moment at most, each for some milliseconds.
const IN_FLIGHT: usize = 5;

/// How a session ends whose lbd is killed.
const CUT: [&str; 2] = ["reset", "closed_early"];

/// New connections, each with one request, due at fixed times.
pub struct Load(Option<Child>);

impl Load {
    pub fn start(machine: &Machine) -> Self {
        // Enough clients for what is due while one second's connections wait.
        let (clients, rate) = ((TRIAL.rate * 3).to_string(), TRIAL.rate.to_string());
        let args = ["load", "30m", &clients, "--rate", &rate, "--reconnect", "--timeout", "20s", "--json"];
        let mut command = machine.in_network(env!("CARGO_BIN_EXE_lbtest"), &args);
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()))
    }

    /// Ends it; every answer must have been right and in time.
    #[track_caller]
    pub fn ends_unharmed(self) {
        let found = self.end();
        assert_eq!(found["faults"], 0, "{found}");
        let p999 = found["latency_us"]["p999"].as_f64().unwrap();
        assert!(p999 <= TRIAL.p999.as_secs_f64() * 1e6, "{found}");
    }

    /// Ends it; those being served at a crash were cut, and nobody else.
    #[track_caller]
    pub fn refused_nobody(self, crashes: usize) {
        let found = self.end();
        let faults = found["faults_by_kind"].as_object().unwrap();
        let others = faults.iter().filter(|(kind, count)| **count != 0 && !CUT.contains(&kind.as_str()));
        assert_eq!(others.count(), 0, "{found}");
        assert!(found["faults"].as_u64().unwrap() <= (IN_FLIGHT * crashes) as u64, "{found}");
    }

    fn end(mut self) -> Value {
        let clients = self.0.take().expect("it ends once");
        kill(Pid::from_raw(clients.id().cast_signed()), Signal::SIGINT).unwrap();
        let output = clients.wait_with_output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("{found}");
        // What has just become due at the end is on its way to a client that is free; more would mean too few clients.
        assert!(found["not_sent"].as_u64().unwrap() <= u64::from(TRIAL.rate) / 10, "{found}");
        assert_ne!(found["answered"], 0, "{found}");
        found
    }
}

/// Returns when who waited for a successor has been served: they come all at once, and a kill meanwhile would cut them.
pub fn settled(machine: &Machine) {
    until("who waited is served", || {
        let status: Value = serde_json::from_str(&machine.done(&["lbctl", "--json", "status"])).unwrap();
        (status["sessions"].as_u64().unwrap() <= IN_FLIGHT as u64 / 2).then_some(())
    });
}

/// Of a test that has failed.
impl Drop for Load {
    fn drop(&mut self) {
        if let Some(clients) = &mut self.0 {
            let _ = clients.kill();
            let _ = clients.wait();
        }
    }
}

/// Sessions that say a word, hear it again, and stay.
pub struct LongOnes {
    threads: Vec<JoinHandle<Ended>>,
    over: Arc<AtomicBool>,
}

/// How a long session ended.
pub struct Ended {
    pub at: SystemTime,
    pub why: Option<io::Error>,
}

impl LongOnes {
    /// Opens them, and returns when each has heard its first word.
    pub fn open(machine: &Machine) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (ready, awaited) = mpsc::channel();
        let threads: Vec<_> = (0..TRIAL.long)
            .map(|_| {
                let (enter, over, ready) = (machine.network(), Arc::clone(&over), ready.clone());
                thread::spawn(move || {
                    enter();
                    let why = chat(&over, &ready).err();
                    Ended { at: SystemTime::now(), why }
                })
            })
            .collect();
        for _ in &threads {
            awaited.recv_timeout(PATIENCE).unwrap();
        }
        Self { threads, over }
    }

    /// How each was cut.
    pub fn cut(self) -> Vec<Ended> {
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    /// Ends them; none may have been cut.
    #[track_caller]
    pub fn end_unharmed(self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let ended = thread.join().unwrap();
            assert!(ended.why.is_none(), "{:?}", ended.why);
        }
    }
}

fn chat(over: &AtomicBool, ready: &mpsc::Sender<()>) -> io::Result<()> {
    let mut session = TcpStream::connect(("127.0.0.1", 8080))?;
    for word in 0_u64.. {
        session.set_read_timeout(Some(PATIENCE))?;
        session.write_all(&word.to_be_bytes())?;
        let mut answer = [0; 8];
        session.read_exact(&mut answer)?;
        assert_eq!(answer, word.to_be_bytes());
        let _ = ready.send(()); // nobody waits after the first word
        if over.load(Ordering::Relaxed) {
            break;
        }
        // Nothing is to come: whoever cuts the session is heard at once.
        session.set_read_timeout(Some(Duration::from_millis(100)))?;
        match session.read(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(count) => return Err(io::Error::other(format!("{count} bytes that nobody has sent"))),
        }
    }
    Ok(())
}
