//! What is carried, looked through before a worker is made of it: whatever contradicts itself is found here, and not in the middle of
//! a turn.

use std::collections::HashSet;

use super::assemble::Unfit;
use super::descriptors::Descriptors;
use super::{CarriedFlow, CarriedSession, CarriedWorker};
use crate::proxy::session::State;

/// More than there ever were sessions at the same time: each takes two descriptors.
const MOST_KEYS: u32 = 1 << 24;

/// Everything that a worker relies on and would otherwise find out in the middle of a turn.
#[derive(Debug, Default)]
pub(super) struct Check {
    pub descriptors: Descriptors,
    /// The last session's key.
    last: Option<u32>,
    /// Sessions that wait.
    waiting: usize,
}

impl Check {
    /// Of a session behind one of this key.
    pub fn behind(last: Option<u32>) -> Self {
        Self { last, ..Self::default() }
    }

    /// What there is besides sessions.
    pub fn of(carried: &CarriedWorker) -> Result<Self, Unfit> {
        let mut check = Self::default();
        carried.few().try_for_each(|fd| check.descriptors.add(fd))?;
        let keys = carried.doors.iter().map(|door| door.key).chain(carried.spares.iter().map(|spare| spare.key));
        keys.into_iter().try_for_each(fits)?;
        if let Some(key) = twice(carried.doors.iter().map(|door| door.key)) {
            return Err(Unfit(format!("two listening sockets have the key {key}")));
        }
        if let Some(key) = twice(carried.spares.iter().map(|spare| spare.key)) {
            return Err(Unfit(format!("two spare connections have the key {key}")));
        }
        let mut stocked: Vec<u32> = carried.stocks.iter().flat_map(|stock| stock.keys.iter().copied()).collect();
        let mut there: Vec<u32> = carried.spares.iter().map(|spare| spare.key).collect();
        stocked.sort_unstable();
        there.sort_unstable();
        if stocked != there {
            let (kept, there) = (stocked.len(), there.len());
            return Err(Unfit(format!("{kept} spare connections are kept and {there} are there")));
        }
        Ok(check)
    }

    /// One session after the other.
    pub fn session(&mut self, session: &CarriedSession) -> Result<(), Unfit> {
        let CarriedSession { key, state, client, server, backend, up, down, .. } = session;
        self.descriptors.add(client.fd)?;
        server.as_ref().map_or(Ok(()), |server| self.descriptors.add(server.fd))?;
        if let Some(last) = self.last.replace(*key).filter(|last| last >= key) {
            return Err(Unfit(format!("session {key} stands behind session {last}")));
        }
        fits(*key)?;
        up.check(*key as usize)?;
        down.check(*key as usize)?;
        let served = matches!(state, State::Connecting | State::Relaying);
        if *state == State::Gone || server.is_some() != served || backend.is_some() != served {
            let (server, backend) = (server.is_some(), backend.is_some());
            let what = format!("session {key} is {state:?}, with a server: {server}, with a backend: {backend}");
            return Err(Unfit(what));
        }
        self.waiting += usize::from(*state == State::Queued);
        Ok(())
    }

    /// Those who stand in a row for something, when all sessions are known.
    pub fn rows(&self, carried: &CarriedWorker, state: impl Fn(u32) -> Option<State>) -> Result<(), Unfit> {
        if let Some(key) = carried.again.iter().find(|key| state(**key).is_none()) {
            return Err(Unfit(format!("session {key} is to have a turn and is not there")));
        }
        let mut queued = HashSet::new();
        for key in carried.queues.iter().flat_map(|queue| &queue.keys) {
            if state(*key) != Some(State::Queued) || !queued.insert(*key) {
                return Err(Unfit(format!(
                    "session {key} stands in a queue and is not waiting, or stands there twice"
                )));
            }
        }
        if queued.len() != self.waiting {
            return Err(Unfit(format!("{} sessions wait and {} stand in queues", self.waiting, queued.len())));
        }
        Ok(())
    }
}

impl CarriedFlow {
    /// What could not be so.
    pub(super) fn check(&self, key: usize) -> Result<(), Unfit> {
        let (header, held) = (usize::from(self.header), self.held.len());
        if header <= held {
            Ok(())
        } else {
            Err(Unfit(format!("session {key} holds {held} bytes of a header of {header}")))
        }
    }
}

/// A table has room for everything below its highest key, so that a wrong one would be all memory there is.
pub(super) fn fits(key: u32) -> Result<(), Unfit> {
    if key < MOST_KEYS { Ok(()) } else { Err(Unfit(format!("no table ever had a key like {key}"))) }
}

fn twice(mut keys: impl Iterator<Item = u32>) -> Option<u32> {
    let mut seen = HashSet::new();
    keys.find(|key| !seen.insert(*key))
}
