//! What all kinds share: the lbd under test, its file, the hand that operates it, the end of the run, and the journal.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{Daemon, Ran};
use crate::file::File;
use crate::journal::Journal;

/// The longest that lbd may take to serve.
const STARTING: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct World(Arc<Inner>);

pub struct Inner {
    pub lbd: Daemon,
    pub journal: Journal,
    listeners: BTreeMap<String, Account>,
    operator: Mutex<File>,
    /// Written while lbd has no descriptors, or stands still: lbctl would get no answer.
    running: RwLock<()>,
    over: Mutex<bool>,
    ended: Condvar,
    failed: AtomicBool,
    /// How late threads of this process are woken: what the machine itself makes everybody wait.
    late: AtomicU64,
    /// When sessions last were kept waiting by the load itself.
    held_up: Mutex<Option<Instant>>,
}

/// What the load knows of a listener.
pub struct Account {
    pub address: SocketAddr,
    pub connected: AtomicUsize,
    pub open: AtomicUsize,
}

impl std::ops::Deref for World {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl World {
    /// Starts lbd and learns where its listeners are.
    pub fn start(programs: Option<&Path>, file: File, listeners: Vec<String>) -> Result<Self, String> {
        let lbd = Daemon::start(programs, &file.text())?;
        let deadline = Instant::now() + STARTING;
        let wait = (Mutex::new(()), Condvar::new());
        let stats = loop {
            match lbd.stats() {
                Ok(stats) => break stats,
                Err(why) if lbd.end().is_some() || Instant::now() > deadline => {
                    return Err(format!("lbd does not serve: {why}\n{}\n{}", file.text(), lbd.log_tail()));
                }
                Err(_) => drop(wait.1.wait_timeout(wait.0.lock().unwrap(), Duration::from_millis(20))),
            }
        };
        let mut accounts = BTreeMap::new();
        for name in listeners {
            let address = named(&stats["listeners"], &name)["addresses"][0].as_str().and_then(|a| a.parse().ok());
            let address = address.ok_or_else(|| format!("no address of {name}: {stats}"))?;
            accounts.insert(name, Account { address, connected: AtomicUsize::new(0), open: AtomicUsize::new(0) });
        }
        Ok(Self(Arc::new(Inner {
            lbd,
            journal: Journal::new(),
            listeners: accounts,
            operator: Mutex::new(file),
            running: RwLock::new(()),
            over: Mutex::new(false),
            ended: Condvar::new(),
            failed: AtomicBool::new(false),
            late: AtomicU64::new(0),
            held_up: Mutex::new(None),
        })))
    }

    /// The hand that changes things: one at a time.
    pub fn operator(&self) -> Operator<'_> {
        let file = self.operator.lock().unwrap_or_else(PoisonError::into_inner);
        Operator { world: self, file, _running: self.while_it_runs() }
    }

    /// What lbd knows and counts; a violation where it does not answer.
    pub fn stats(&self) -> Option<Value> {
        let _running = self.while_it_runs();
        self.lbd.stats().map_err(|why| self.fail("lbctl", &why)).ok()
    }

    /// The verdict on the run.
    pub fn verdict(&self) -> Result<String, String> {
        if !self.has_failed() {
            return Ok(self.journal.summary());
        }
        self.pause_even_if_over(Duration::from_millis(300)); // others may see the same, which helps who reads
        Err(format!("{}\n{}", self.journal.report(), self.lbd.log_tail()))
    }
}

impl Inner {
    pub fn account(&self, listener: &str) -> &Account {
        &self.listeners[listener]
    }

    pub fn accounts(&self) -> impl Iterator<Item = (&String, &Account)> {
        self.listeners.iter()
    }

    pub fn is_over(&self) -> bool {
        *self.over.lock().unwrap()
    }

    /// Waits so long, or until the run is over; tells whether it is.
    pub fn pause(&self, time: Duration) -> bool {
        let over = self.over.lock().unwrap();
        *self.ended.wait_timeout_while(over, time, |over| !*over).unwrap().0
    }

    /// Waits so long in any case.
    pub fn pause_even_if_over(&self, time: Duration) {
        let (begun, quiet) = (Instant::now(), Mutex::new(()));
        while begun.elapsed() < time {
            drop(Condvar::new().wait_timeout(quiet.lock().unwrap(), time - begun.elapsed()));
        }
    }

    /// Tells everybody to come to an end.
    pub fn end(&self) {
        *self.over.lock().unwrap() = true;
        self.ended.notify_all();
    }

    /// An invariant does not hold: the run ends.
    pub fn fail(&self, kind: &str, text: &str) {
        self.journal.violated(kind, text);
        self.failed.store(true, SeqCst);
        self.end();
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }

    /// Asks again and again until there is an answer; a violation where none comes in time.
    pub fn until<T>(
        &self,
        kind: &str,
        what: &str,
        most: Duration,
        mut question: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = question() {
                return Some(answer);
            }
            if self.has_failed() {
                return None;
            }
            if begun.elapsed() > most + self.allowance() {
                self.fail(kind, &format!("in vain for {:.1} s: {what}", begun.elapsed().as_secs_f64()));
                return None;
            }
            self.pause_even_if_over(Duration::from_millis(80)); // each question starts an lbctl
        }
    }

    fn while_it_runs(&self) -> RwLockReadGuard<'_, ()> {
        self.running.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held nobody runs lbctl.
    pub fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.running.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now until `go_on` waits are the load's own doing.
    pub fn hold_up(&self) {
        *self.held_up.lock().unwrap() = Some(Instant::now() + Duration::from_secs(3600));
    }

    pub fn go_on(&self) {
        *self.held_up.lock().unwrap() = Some(Instant::now());
    }

    /// Whether that was so at or after this moment, or until shortly before.
    pub fn was_held_up_since(&self, moment: Instant) -> bool {
        let margin = Duration::from_secs(2); // accepting pauses for up to a second
        self.held_up.lock().unwrap().is_some_and(|until| until + margin > moment)
    }

    /// A thread was woken so much too late.
    pub fn was_late(&self, by: Duration) {
        // Decays by half a second's measure, so that one bad moment does not excuse the whole run.
        let (by, before) = (by.as_micros() as u64, self.late.load(SeqCst));
        self.late.store(by.max(before - before / 64), SeqCst);
    }

    /// Whether this machine runs so late that what is to happen within such a time may not, whatever lbd does.
    pub fn is_too_slow_for(&self, time: Duration) -> bool {
        self.allowance() > time / 3
    }

    /// What a bound is to be extended by: the machine has other things to do than to run us.
    pub fn allowance(&self) -> Duration {
        Duration::from_micros(self.late.load(SeqCst) * 8)
    }
}

/// The one who changes things, with the file in hand.
pub struct Operator<'w> {
    world: &'w World,
    pub file: MutexGuard<'w, File>,
    _running: RwLockReadGuard<'w, ()>,
}

impl Operator<'_> {
    /// Runs lbctl; a violation where it does not succeed.
    pub fn does(&self, kind: &str, args: &[&str]) -> Option<Ran> {
        let ran = self.tries(kind, args);
        if ran.code == Some(0) {
            return Some(ran);
        }
        self.world.fail(kind, &format!("lbctl {} ended with {:?}: {} {}", args.join(" "), ran.code, ran.out, ran.err));
        None
    }

    /// Runs lbctl, whatever comes of it.
    pub fn tries(&self, kind: &str, args: &[&str]) -> Ran {
        let ran = self.world.lbd.lbctl(args);
        let code = ran.code.map_or("killed".to_owned(), |code| code.to_string());
        self.world.journal.note(kind, &format!("lbctl {} → {code} in {} ms", args.join(" "), ran.took.as_millis()));
        self.world.journal.count(&format!("lbctl {}", args[0]));
        ran
    }

    /// Puts the file in force as it is in hand.
    pub fn reload(&self, kind: &str) -> bool {
        self.world.lbd.write(&self.file.text());
        self.does(kind, &["reload"]).is_some()
    }
}

/// The entry of this name.
pub fn named<'v>(list: &'v Value, name: &str) -> &'v Value {
    list.as_array().and_then(|all| all.iter().find(|entry| entry["name"] == name)).unwrap_or(&Value::Null)
}

/// A backend's statistics.
pub fn backend<'v>(stats: &'v Value, pool: &str, name: &str) -> &'v Value {
    named(&named(&stats["pools"], pool)["backends"], name)
}

/// Results that one side of a session waits for from the other, by a number that both know.
#[derive(Default)]
pub struct Results {
    known: Mutex<HashMap<u64, usize>>,
    changed: Condvar,
}

impl Results {
    pub fn tell(&self, number: u64, result: usize) {
        self.known.lock().unwrap().insert(number, result);
        self.changed.notify_all();
    }

    pub fn await_for(&self, number: u64, most: Duration) -> Option<usize> {
        let known = self.known.lock().unwrap();
        let (mut known, _) =
            self.changed.wait_timeout_while(known, most, |known| !known.contains_key(&number)).unwrap();
        known.remove(&number)
    }
}
