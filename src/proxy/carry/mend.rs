//! What a predecessor that is executed again does with a picture that contradicts itself: it keeps what it can verify and lets go of
//! the rest, for nobody else can serve. A successor refuses such a picture, as the predecessor may know better. Pure.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use super::check::{Check, fits};
use super::sessions::Writing;
use super::{CarriedQueue, CarriedStock, CarriedWorker, Descriptors};
use crate::proxy::session::State;

/// What had to be let go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// Sessions.
    pub cut: usize,
    /// Why, each once and not more than a few.
    pub reasons: Vec<String>,
}

impl Faults {
    /// More reasons than these tell nobody anything.
    const MOST: usize = 8;

    fn because(&mut self, why: String) {
        if self.reasons.len() < Self::MOST {
            self.reasons.push(why);
        }
    }
}

impl CarriedWorker {
    /// What of it can be verified, and nothing else: none of its descriptors is among `taken` before, all are after. Those of sessions
    /// that are let go are closed by whoever takes over.
    #[must_use]
    pub fn mended(self, taken: &mut Descriptors, faults: &mut Faults) -> Self {
        let mut is_new =
            |fd: RawFd, faults: &mut Faults| taken.add(fd).map_err(|unfit| faults.because(unfit.0)).is_ok();
        let (mut doors, mut spares, mut stocks, names) = (self.doors, self.spares, self.stocks, self.names);
        let epoll = self.epoll.filter(|fd| is_new(*fd, faults));
        let mut retired: Vec<RawFd> = self.retired.into_iter().filter(|fd| is_new(*fd, faults)).collect();
        let mut keys = BTreeSet::new();
        doors.retain(|door| {
            let fits = keys.insert(door.key) && fits(door.key).is_ok();
            is_new(door.fd, faults)
                && (fits || {
                    faults.because(format!("a listening socket of {} has no key of its own", door.address.0));
                    retired.push(door.fd);
                    false
                })
        });
        keys.clear();
        spares.retain(|spare| {
            let fits = keys.insert(spare.key) && fits(spare.key).is_ok() && names.has_backend(spare.backend);
            is_new(spare.fd, faults)
                && (fits || {
                    faults.because(format!("spare connection {} is no other's or nobody's", spare.key));
                    retired.push(spare.fd);
                    false
                })
        });
        stocks.retain(|stock| names.has_backend(stock.backend));
        let mut unstocked: BTreeSet<u32> = spares.iter().map(|spare| spare.key).collect();
        stocks.iter_mut().for_each(|stock| stock.keys.retain(|key| unstocked.remove(key)));
        for spare in spares.iter().filter(|spare| unstocked.contains(&spare.key)) {
            let (backend, keys) = (spare.backend, vec![spare.key]);
            stocks.push(CarriedStock { backend, keys, not_before: 0, full: false });
        }

        let (mut sessions, mut read) = (Writing::with_room_for(0), 0);
        let (mut there, mut queued) = (BTreeSet::new(), BTreeSet::new());
        for session in self.sessions.iter() {
            let session = match session {
                Ok(session) => session,
                Err(unfit) => {
                    faults.cut += self.sessions.len() - read;
                    faults.because(unfit.0);
                    break;
                }
            };
            read += 1;
            let ends = [Some(session.client.fd), session.server.as_ref().map(|end| end.fd)];
            let ends: Vec<RawFd> = ends.into_iter().flatten().filter(|fd| is_new(*fd, faults)).collect();
            let whole = ends.len() == 1 + usize::from(session.server.is_some());
            let fit = names.know(&session).and_then(|()| Check::behind(there.last().copied()).session(&session));
            let written = fit.is_ok() && whole && sessions.add(&session).is_ok();
            if !written {
                faults.cut += 1;
                fit.err().into_iter().for_each(|unfit| faults.because(unfit.0));
                retired.extend(ends);
                continue;
            }
            there.insert(session.key);
            if session.state == State::Queued {
                queued.insert((session.key, session.pool));
            }
        }
        let mut again = self.again;
        again.retain(|key| there.contains(key));
        let mut queues = self.queues;
        queues.iter_mut().for_each(|queue| queue.keys.retain(|key| queued.remove(&(*key, queue.pool))));
        for (key, pool) in queued {
            match queues.iter_mut().find(|queue| queue.pool == pool) {
                Some(queue) => queue.keys.push(key),
                None => queues.push(CarriedQueue { pool, keys: vec![key] }),
            }
        }
        queues.retain(|queue| !queue.keys.is_empty());
        Self { epoll, retired, names, doors, sessions: sessions.done(), again, queues, spares, stocks, ..self }
    }
}
