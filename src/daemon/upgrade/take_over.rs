//! The new program's side: reads what it was left. Nothing of it is owned before everything is built ([`Settlement::settle`]): whoever
//! fails until then must not have closed anything.

use std::time::Duration;

use tracing::warn;

use super::guard::{self, Called, or_back, owned};
use super::misbehave::{self, Point, misbehave};
use super::stand_in::{Loss, StandIn, TakenUp, Times, take_up};
use super::{CarriedDaemon, DAEMON, IN_FORCE, SEEN, WORKERS, record};
use crate::control::Roll;
use crate::control::socket::ControlSocket;
use crate::daemon::effects::Asker;
use crate::daemon::event::{AskId, TookOver};
use crate::daemon::sockets::Sockets;
use crate::daemon::supervisor::CarriedSupervisor;
use crate::observe::json;
use crate::proxy::carry::{Assembled, CarriedWorker, Descriptors, Faults, Roster, Unfit, close_on_exec};

/// What a program is left by the one that it was executed in place of.
#[derive(Debug)]
pub struct Heritage {
    called: Called,
    daemon: CarriedDaemon,
    /// The configuration in force, as it was read.
    pub in_force: Vec<u8>,
    /// What the file last held.
    pub seen: Vec<u8>,
    /// The workers.
    pub workers: Vec<CarriedWorker>,
}

/// Reads and verifies it.
///
/// # Errors
/// It makes no sense to this program; while there is a way back, it is taken instead.
pub fn read(called: Called) -> Result<Heritage, String> {
    misbehave(Point::Begun);
    let sections = record::read(&called.record, &misbehave::records()).map_err(or_back)?;
    if sections.len() < WORKERS {
        return Err(or_back(format!("the record has {} sections only", sections.len())));
    }
    let daemon: CarriedDaemon =
        json::read(&sections[DAEMON]).map_err(|e| or_back(format!("the record makes no sense: {e}")))?;
    let (pairs, odd) = sections[WORKERS..].as_chunks::<2>();
    if !odd.is_empty() {
        return Err(or_back(format!("the record has {} sections, which is one too many", sections.len())));
    }
    let no_sense = |e| or_back(format!("a worker's record makes no sense: {e}"));
    let workers = pairs.iter().map(|[head, sessions]| CarriedWorker::read(head, sessions.clone()).map_err(no_sense));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let [in_force, seen] = [IN_FORCE, SEEN].map(|n| sections[n].to_vec());
    Ok(Heritage { called, daemon, in_force, seen, workers })
}

/// What is there for the daemon, but for the workers.
pub(in crate::daemon) struct Belongings {
    pub supervisor: CarriedSupervisor,
    pub sockets: Sockets,
    pub control: ControlSocket,
    pub control_door: std::os::unix::net::UnixListener,
    pub roll: Roll,
    pub askers: Vec<(AskId, Asker)>,
    pub installed: std::path::PathBuf,
    pub asked: u64,
}

/// What is left of it when the belongings have been taken: enough to settle.
pub(in crate::daemon) struct Settlement {
    called: Called,
    /// Those of the daemon.
    kept: Descriptors,
    from: String,
    /// In a spell of shortage, when something ran out last.
    pub short_since: Option<u64>,
    asker: u64,
    frozen_at: u64,
    stand_in: StandIn,
    /// What that one says of its time.
    times: Option<Times>,
    /// Or why it does not.
    lost: Option<Loss>,
}

impl Heritage {
    /// Whether it is this very program that has left it: its successor did not come to take over.
    pub(in crate::daemon) fn is_ours(&self) -> bool {
        self.called.failure.is_some()
    }

    /// Takes it apart. What owns descriptors from here on is not to be dropped before it is settled.
    pub(in crate::daemon) fn take(self) -> Result<(Belongings, Vec<CarriedWorker>, Settlement), String> {
        let Heritage { called, daemon, workers, .. } = self;
        let mut kept = Descriptors::default();
        daemon
            .descriptors()
            .into_iter()
            .chain(called.descriptors())
            .try_for_each(|fd| kept.add(fd))
            .map_err(|e| or_back(e.to_string()))?;
        let settlement = Settlement {
            called,
            kept,
            from: daemon.supervisor.version.clone(),
            short_since: daemon.short_since,
            asker: daemon.supervisor.asker,
            frozen_at: daemon.frozen_at,
            stand_in: daemon.stand_in.inherit(),
            times: None,
            lost: None,
        };
        let lent = daemon.sockets.inherited.iter().map(|(fd, name)| (owned(*fd), name.clone())).collect();
        let sockets = Sockets::inherit(daemon.sockets, lent).map_err(or_back)?;
        let lock = owned(daemon.control.lock);
        let control = ControlSocket::inherit(daemon.control, lock)
            .map_err(|e| or_back(format!("the lock of the control socket is lost: {e}")))?;
        let belongings = Belongings {
            supervisor: daemon.supervisor,
            sockets,
            control,
            control_door: owned(daemon.control_door).into(),
            roll: Roll::with(daemon.silent.iter().map(|fd| owned(*fd).into()).collect()),
            askers: daemon.askers.iter().map(|(ask, fd)| (AskId(*ask), Asker::Late(owned(*fd).into()))).collect(),
            installed: daemon.installed,
            asked: daemon.asked,
        };
        misbehave(Point::Taken);
        Ok((belongings, workers, settlement))
    }
}

impl Settlement {
    /// A worker is built.
    ///
    /// # Errors
    /// Something of it is somebody else's, too.
    pub(in crate::daemon) fn knows(&mut self, worker: &Assembled) -> Result<(), Unfit> {
        self.kept.add_all(worker.descriptors())
    }

    /// Everything is built: the stand-in stops, and the workers know what it did. Nobody serves from here on. Where it does not come
    /// to tell, the predecessor asks it again; where nobody can, what it served is cut.
    pub(in crate::daemon) fn catch_up(&mut self, workers: &mut [Assembled]) {
        let roster = Roster::of_assembled(workers);
        misbehave(Point::Built);
        let TakenUp { times, lost } = take_up(roster, self.stand_in.stop(), |why| drop(or_back(why)));
        if times.is_none() {
            self.stand_in.kill(); // what it still heard would be heard by nobody else
        }
        self.times = times;
        self.lost = match self.lost.take() {
            None => lost,
            Some(loss) => Some(loss.and(lost)),
        };
    }

    /// Whether it is this very program that has left all this.
    pub(in crate::daemon) fn is_ours(&self) -> bool {
        self.called.failure.is_some()
    }

    /// What can be verified of the workers. There is nobody to go back to, so that what cannot is let go and told.
    pub(in crate::daemon) fn mend(&mut self, workers: Vec<CarriedWorker>) -> Vec<CarriedWorker> {
        let mut faults = Faults::default();
        let workers = workers.into_iter().map(|worker| worker.mended(&mut self.kept, &mut faults)).collect();
        let Faults { cut, reasons } = faults;
        if !reasons.is_empty() {
            let why = reasons.join("; ");
            warn!("what was left to it contradicts itself: {why}");
            let why = format!("sessions cut: {cut}; what was left of them contradicts itself: {why}");
            self.lost = (cut > 0).then_some(Loss { why, cut });
        }
        workers
    }

    /// There is no way back any more, and no other program has these descriptors; the stand-in is to be ended. `now` is
    /// microseconds of CLOCK_MONOTONIC; so many sessions there are.
    pub(in crate::daemon) fn settle(mut self, now: u64, sessions: u64) -> (TookOver, StandIn) {
        misbehave(Point::Caught);
        // First: a predecessor that is executed again must find all of them open, and nobody at work on them.
        guard::settle();
        if let Err(e) = close_on_exec(&self.kept) {
            warn!("what was carried over would survive the next program, too: {e}");
        }
        let failure = self.called.failure.take();
        drop(self.called);
        let since = |at: u64, then: u64| Duration::from_micros(then.saturating_sub(at));
        let shut = since(self.frozen_at, now);
        let pause =
            self.times.map_or(shut, |Times { begun, ended }| since(self.frozen_at, begun).max(since(ended, now)));
        let sessions = sessions.saturating_sub(self.lost.as_ref().map_or(0, |loss| loss.cut as u64));
        let lost = self.lost.map(|loss| {
            loss.is_told();
            loss.why
        });
        let (asker, from) = (AskId(self.asker), self.from);
        (TookOver { asker, from, failure, sessions, pause, shut, lost, silent: Vec::new() }, self.stand_in)
    }
}
