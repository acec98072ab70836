//! Where events come from: the one place where the main thread waits. Whether another program that was tried may be executed is
//! seen here, too: it follows from what is on its way.

use std::collections::BTreeSet;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until};

use super::effects::{Asker, Effects, somebody_goes};
use super::event::{AskId, BackendKey, Event, Job, ReloadBy};
use super::files::Read;
use super::unix_listener::Looked;
use super::{children, signals, state, upgrade};
use crate::control::server::Asked;
use crate::probe::{ProbeError, Report};
use crate::proxy::Outcome;
use crate::words::Address;

/// How often it is looked whether all answers are written, and nobody is at systemd, before another program takes over; and
/// how long at most.
const MOMENT: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_secs(2);
/// How long a request that has come in part is waited for, since its first byte.
const PART: Duration = Duration::from_millis(500);

/// Where events come from.
pub struct Sources {
    pub signals: signals::Signals,
    pub asks: mpsc::Receiver<Asked>,
    pub changed: mpsc::Receiver<()>,
    pub read: mpsc::Receiver<Read>,
    pub acknowledged: Arc<Notify>,
    pub outcomes: mpsc::Receiver<Outcome>,
    pub job: mpsc::Receiver<Job>,
    pub written: state::News,
    pub looked: mpsc::Receiver<Looked>,
    pub checked: mpsc::Receiver<Checked>,
    /// Was tried, and waits for operators who asked before.
    pub held: Option<(Checked, Instant)>,
    /// Signals wait for what comes of that.
    pub signals_held: bool,
}

impl Sources {
    /// Waits for whatever happens first, until `deadline` at the latest. `None`: an operator has gone, or the prober has something
    /// to do.
    pub async fn next(&mut self, effects: &mut Effects, deadline: Instant) -> Option<Event> {
        loop {
            // Who asked has gone meanwhile: what was found out must not be in the way of what others ask for.
            self.held.take_if(|((ask, _), _)| !effects.is_trying_for(*ask));
            if self.held.is_none() {
                effects.connected.0.release();
                if std::mem::take(&mut self.signals_held) {
                    signals::take_again(); // nothing was executed
                }
            }
            if self.is_ripe(effects) {
                if !std::mem::replace(&mut self.signals_held, true) {
                    signals::hold();
                    sleep(MOMENT).await; // one that is on its way through the runtime arrives; it would be lost
                    continue;
                }
                if let Some(signal) = self.signals.now().await {
                    return Some(asked_by(signal)); // it counts first
                }
                if let Some(((ask, result), _)) = self.held.take() {
                    return Some(Event::Checked(ask, result, effects.connected.0.begun()));
                }
            }
            let deadline = if self.held.is_some() { deadline.min(Instant::now() + MOMENT) } else { deadline };
            return Some(tokio::select! {
                () = somebody_goes(&mut effects.answers) => return None,
                () = effects.prober.ready() => return None,
                Some(asked) = self.asks.recv() => {
                    effects.asked += 1;
                    let ask = AskId(effects.asked);
                    effects.answers.insert(ask, Asker::Here(asked.answer, asked.connection));
                    Event::Asked(ask, asked.request, asked.peer)
                }
                signal = self.signals.next() => asked_by(signal),
                Ok(()) = self.written.changed() => {
                    let (number, result) = self.written.borrow_and_update().clone();
                    Event::Kept(number, result)
                }
                Some(job) = self.job.recv() => Event::JobKnown(job),
                Some(checked) = self.checked.recv(), if self.held.is_none() => {
                    self.held = Some((checked, Instant::now() + LATEST));
                    effects.connected.0.hold(); // what comes from now on is the successor's to answer
                    continue;
                }
                Some(read) = self.read.recv() => effects.has_read(read),
                Some((number, missing)) = self.looked.recv() => Event::LookedAtSockets(number, missing),
                Some(()) = self.changed.recv() => Event::ReloadAsked(ReloadBy::Watcher),
                () = self.acknowledged.notified() => Event::Acknowledged(effects.acknowledged()),
                Some(outcome) = self.outcomes.recv() => match told_by_worker(outcome) {
                    Ok(event) => event,
                    Err((address, socket)) => {
                        effects.sockets.keep_too(&address, socket, &effects.notifier);
                        continue;
                    }
                },
                () = sleep_until(deadline.into()) => Event::Tick,
            });
        }
    }

    /// What workers have told and nobody has heard yet; they stand still.
    pub fn arrived(&mut self, effects: &Effects) -> Option<Event> {
        let lent = |(address, socket)| effects.sockets.keep_too(&address, socket, &effects.notifier);
        let outcomes = std::iter::from_fn(|| self.outcomes.try_recv().ok());
        outcomes.filter_map(|outcome| told_by_worker(outcome).map_err(lent).ok()).next()
    }

    /// Whether a program was tried and may be executed: once no request is on its way to the supervisor, no answer on its way out and no child under
    /// way: those would end with this program. Nothing runs beside this between the look and what follows from it.
    fn is_ripe(&self, effects: &Effects) -> bool {
        let Some((_, latest)) = self.held else { return false };
        let waiting: BTreeSet<RawFd> = effects.answers.values().map(Asker::number).collect();
        let in_transit = effects.connected.0.is_in_transit(PART, |connection| waiting.contains(&connection));
        let is_quiet = !in_transit && !children::are_under_way();
        is_quiet || latest <= Instant::now()
    }
}

/// What a report of a probe means.
pub fn told_by_probe(report: Report<BackendKey>) -> Event {
    match report {
        Report::Began(key, waited) => Event::ProbeBegan(key, waited),
        Report::Ended(key, Ok(_)) => Event::Probed(key, Ok(())),
        Report::Ended(key, Err(ProbeError::Failed(reason))) => Event::Probed(key, Err(reason)),
        Report::Ended(key, Err(ProbeError::Unable(why))) => Event::NotProbed(key, why),
    }
}

/// What has happened; or the socket that was asked for, which decides nothing.
fn told_by_worker(outcome: Outcome) -> Result<Event, (Address, OwnedFd)> {
    match outcome {
        Outcome::DialFailed(backend) => Ok(Event::DialFailed((backend.reference.clone(), backend.address.clone()))),
        Outcome::Ended { worker, address } => Ok(Event::SocketEnded(address, worker)),
        Outcome::Lent(address, socket) => Err((address, socket)),
    }
}

fn asked_by(signal: signals::Asked) -> Event {
    match signal {
        signals::Asked::Reload => Event::ReloadAsked(ReloadBy::Signal),
        signals::Asked::Stop => Event::StopAsked,
    }
}

/// Which request asked for a program to be tried, and what came of that.
pub type Checked = (AskId, Result<upgrade::Target, String>);
