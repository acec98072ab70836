//! What the daemon begins with: nothing but its file, or all that another program has left in whose place it was executed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::errno::Errno;

use super::effects::{Asker, Effects};
use super::event::{AskId, Decision, TookOver};
use super::sockets::Sockets;
use super::supervisor::{Facts, Supervisor};
use super::upgrade::{
    Belongings, Heritage, LONG, Point, Settlement, extend_for, misbehave, or_back, own_path, persist,
};
use super::{Broken, Start, now};
use crate::config::Config;
use crate::control::socket::ControlSocket;
use crate::control::{Place, Roll, socket};
use crate::proxy::carry::{CarriedWorker, Persist, Unfit, recall, share_out};
use crate::proxy::{Setup, Worker};
use crate::snapshot::Cells;
use crate::words::Address;

/// What is there before there are workers.
pub struct Origin {
    pub supervisor: Supervisor,
    pub sockets: Sockets,
    pub control: ControlSocket,
    pub control_door: UnixListener,
    pub roll: Roll,
    pub answers: HashMap<AskId, Asker>,
    pub asked: u64,
    pub installed: PathBuf,
    pub seen: Vec<u8>,
    pub left: Option<Left>,
}

/// What a predecessor has left that is not made into workers yet.
pub struct Left {
    workers: Vec<CarriedWorker>,
    /// Which of them have a listening socket, by address as asked for.
    doors: BTreeMap<Address, BTreeSet<usize>>,
    settlement: Settlement,
}

/// A daemon that nobody was before.
pub fn anew(start: &mut Start, facts: Facts, kept: Vec<Decision>) -> Result<Origin, Broken> {
    let place = control_place(start);
    let asked_for = &start.config.control;
    let (control_door, control) =
        socket::bind(&place, asked_for.mode, asked_for.group.as_deref()).map_err(|e| e.to_string())?;
    let now = now();
    Ok(Origin {
        supervisor: Supervisor::new(facts, kept, now.micros, now),
        sockets: Sockets::new(std::mem::take(&mut start.passed)),
        control,
        control_door,
        roll: Roll::default(),
        answers: HashMap::new(),
        asked: 0,
        installed: own_path(),
        seen: start.refused.as_ref().map_or(&start.content, |(_, content)| content).clone(),
        left: None,
    })
}

/// A daemon that goes on where another program was.
pub fn inherited(heritage: Heritage, config: &Config, facts: Facts) -> Result<Origin, Broken> {
    let seen = heritage.seen.clone();
    let (belongings, mut workers, mut settlement) = heritage.take()?;
    if settlement.is_ours() {
        workers = settlement.mend(workers);
    }
    let Belongings { supervisor: carried, sockets, control, control_door, roll, askers, installed, asked } = belongings;
    extend_for(config.pools.values().map(|pool| pool.backends.len()).sum(), facts.workers);
    let workers = share_out(workers, facts.workers).map_err(|e| or_back(e.to_string()))?;
    let doors = doors(&workers);
    let mut cells = Cells::inherit(&carried.cells, facts.workers).map_err(or_back)?;
    recall(&workers, &mut cells);
    let now = now();
    let supervisor = Supervisor::inherit(facts, config.clone(), cells, carried, now.micros, now).map_err(or_back)?;
    let answers = askers.into_iter().collect();
    let left = Some(Left { workers, doors, settlement });
    Ok(Origin { supervisor, sockets, control, control_door, roll, answers, asked, installed, seen, left })
}

fn doors(workers: &[CarriedWorker]) -> BTreeMap<Address, BTreeSet<usize>> {
    let mut doors: BTreeMap<Address, BTreeSet<usize>> = BTreeMap::new();
    for (n, door) in workers.iter().enumerate().flat_map(|(n, worker)| worker.doors.iter().map(move |door| (n, door))) {
        doors.entry(door.address.0.clone()).or_default().insert(n);
    }
    doors
}

impl Left {
    /// Makes workers of it, closes the way back, and puts them to work.
    pub fn settle(mut self, setups: Vec<Setup>, supervisor: &Supervisor, effects: &mut Effects) -> TookOver {
        let count = setups.len();
        // Each by its own thread: that is a good part of the pause.
        let jobs = setups.into_iter().zip(self.workers).map(|(setup, carried)| {
            let cells = carried.names.cells(supervisor.cells());
            move || {
                misbehave(Point::Worker);
                Worker::assemble(setup, carried, &cells, PERSIST).unwrap_or_else(unfit)
            }
        });
        let mut assembled = effects.crew.all_do(jobs).unwrap_or_else(|| give_up("a worker's thread is gone"));
        if !self.settlement.is_ours() {
            assembled.iter().for_each(|worker| self.settlement.knows(worker).unwrap_or_else(unfit));
        }
        if let Some(at) = self.settlement.short_since {
            effects.limits.ran_short(at); // it was told of
        }
        self.settlement.catch_up(&mut assembled);
        let (mut how, mut stand_in) = self.settlement.settle(now().micros, supervisor.cells().sessions());
        effects.crew.begin(assembled.into_iter().map(|worker| worker.commit()));
        stand_in.end();
        how.silent = effects.sockets.bind_further(&self.doors, count, &effects.notifier);
        how
    }
}

/// A system call of a take-over: the predecessor that is executed again has time for it.
const PERSIST: Persist<'static> =
    &|attempt| persist(LONG, || Ok(attempt()?)).map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw));

fn unfit<T>(why: Unfit) -> T {
    give_up(&or_back(why.to_string()))
}

/// There is no way back, or the kernel did not let us: systemd starts lbd again, with the listening sockets that it holds.
fn give_up(why: &str) -> ! {
    eprintln!("lbd: what was left to it makes no worker: {why}");
    std::process::exit(1)
}

fn control_place(start: &Start) -> Place {
    if let Some(place) = &start.control {
        return place.clone();
    }
    if let Some(path) = &start.config.control.socket {
        return Place::named(path);
    }
    let (service, runtime) = (std::env::var_os("RUNTIME_DIRECTORY"), std::env::var_os("XDG_RUNTIME_DIR"));
    Place::of_daemon(nix::unistd::geteuid().as_raw(), service.as_deref(), runtime.as_deref())
}
