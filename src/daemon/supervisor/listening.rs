//! Addresses at which lbd is to accept and does not: their socket was ended by somebody else, or their path removed. Each is bound
//! anew, again and again where that fails, and told when it begins, when it cannot be helped, and when it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::reload::owner;
use super::{Stage, Supervisor};
use crate::daemon::action::Action;
use crate::daemon::event::Now;
use crate::words::{Address, Happening};

/// Why an address is bound anew, where no look has found it out.
pub const ENDED: &str = "the listening socket was ended from outside";
/// How long the news of several workers are gathered: who ends one socket of an address mostly ends all.
const GATHER: Duration = Duration::from_millis(5);
/// The first pause where an address cannot be bound anew, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the paths of Unix sockets are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What is known of the listening sockets beside that they are bound.
#[derive(Debug, Default)]
pub struct Listening {
    lost: BTreeMap<Address, Lost>,
    /// The last look that was asked for, and the last that has come to an end.
    asked: u64,
    looked: u64,
    look_at: Option<Instant>,
    /// Lost before this program took over.
    inherited: Vec<Address>,
}

#[derive(Debug)]
struct Lost {
    /// Whose sockets were ended.
    workers: BTreeSet<usize>,
    /// When it is to be bound; `None` while that is under way.
    bind_at: Option<Instant>,
    pause: Duration,
    /// Why it could not be bound.
    error: Option<String>,
}

impl Supervisor {
    /// A listening socket is of no use any more.
    pub(super) fn socket_ended(&mut self, address: Address, workers: &[usize], why: &str, now: Now) {
        let Some(actual) = self.bound.get(&address) else { return };
        if self.stage.is_stopping() {
            return;
        }
        let listener = self.config.as_ref().map_or("?", |config| owner(config, &address));
        let lost = self.listening.lost.entry(address).or_insert_with(|| {
            warn!(
                event = Happening::ListenerEnded.as_str(),
                listener, address = %actual, "{why}; the address is bound anew"
            );
            Lost { workers: BTreeSet::new(), bind_at: Some(now.at + GATHER), pause: FIRST_PAUSE, error: None }
        });
        if !workers.iter().all(|worker| lost.workers.contains(worker)) {
            lost.workers.extend(workers);
            lost.bind_at.get_or_insert(now.at + GATHER);
        }
    }

    /// The same, of an address at which no worker accepts.
    pub(super) fn nobody_accepts_at(&mut self, address: Address, why: &str, now: Now) {
        let workers: Vec<usize> = (0..self.facts.workers).collect();
        self.socket_ended(address, &workers, why, now);
    }

    /// What a predecessor had lost.
    pub(super) fn expect_lost(&mut self, addresses: Vec<Address>) {
        self.listening.inherited = addresses;
    }

    /// This program has taken over, and has bound what was missing, but for addresses at which nobody accepts: those are bound
    /// like any that is lost. A predecessor may not have seen that a path was removed.
    pub(super) fn take_over_listening(&mut self, silent: Vec<Address>, now: Now, out: &mut Vec<Action>) {
        for address in std::mem::take(&mut self.listening.inherited) {
            if let Some(actual) = self.bound.get(&address).filter(|_| !silent.contains(&address)) {
                self.tell_of_bound(&address, actual);
            }
        }
        for address in silent {
            self.nobody_accepts_at(address, ENDED, now);
        }
        self.look_at_sockets(now, out);
    }

    /// Binds anew what waits for that, before workers stand still.
    pub(super) fn rebind_before_upgrade(&mut self, out: &mut Vec<Action>) {
        let waiting = self.listening.lost.iter_mut().filter_map(|(address, lost)| {
            lost.bind_at.take()?;
            Some((address.clone(), lost.workers.clone()))
        });
        let lost: BTreeMap<_, _> = waiting.collect();
        if !lost.is_empty() {
            out.push(Action::Rebind(lost));
        }
    }

    fn tell_of_bound(&self, address: &Address, actual: &Address) {
        let listener = self.config.as_ref().map_or("?", |config| owner(config, address));
        info!(
            event = Happening::ListenerBound.as_str(),
            listener, address = %actual, "bound anew; clients are accepted again"
        );
    }

    /// Has what was lost bound anew, and the paths looked at, when their time has come.
    pub(super) fn tend_listening(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.stage != Stage::Serving {
            return;
        }
        let due = |lost: &mut Lost| lost.bind_at.take_if(|at| *at <= now.at).is_some();
        let lost = self.listening.lost.iter_mut().filter_map(|(a, l)| due(l).then(|| (a.clone(), l.workers.clone())));
        let lost: BTreeMap<_, _> = lost.collect();
        if !lost.is_empty() {
            out.push(Action::Rebind(lost));
        }
        if !self.bound.keys().any(|address| matches!(address, Address::Unix(_))) {
            self.listening.look_at = None;
        } else if *self.listening.look_at.get_or_insert(now.at + LOOK) <= now.at {
            self.listening.look_at = Some(now.at + LOOK);
            if self.listening.asked == self.listening.looked {
                self.look_at_sockets(now, out);
            }
        }
    }

    /// Has all listening sockets looked at, and tries those again at once that could not be bound.
    pub(super) fn look_at_sockets(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.stage != Stage::Serving {
            return;
        }
        self.listening.asked += 1;
        out.push(Action::LookAtSockets(self.listening.asked));
        for lost in self.listening.lost.values_mut() {
            lost.bind_at = lost.bind_at.map(|at| at.min(now.at));
        }
    }

    pub(super) fn looked_at_sockets(&mut self, number: u64, missing: Vec<(Address, String)>, now: Now) {
        self.listening.looked = self.listening.looked.max(number);
        for (address, why) in missing {
            self.nobody_accepts_at(address, &why, now);
        }
        if let Some(first) = self.listening.lost.values_mut().filter_map(|lost| lost.bind_at.as_mut()).min() {
            *first = (*first).min(now.at);
        }
    }

    /// What came of binding anew.
    pub(super) fn rebound(&mut self, results: Vec<(Address, Result<(), String>)>, now: Now) {
        for (address, result) in results {
            let Some(actual) = self.bound.get(&address) else { continue };
            let listener = self.config.as_ref().map_or("?", |config| owner(config, &address));
            let Some(lost) = self.listening.lost.get_mut(&address) else { continue };
            match result {
                Ok(()) => {
                    self.listening.lost.remove(&address);
                    self.tell_of_bound(&address, actual);
                }
                Err(why) => {
                    lost.bind_at = Some(now.at + lost.pause);
                    lost.pause = (lost.pause * 2).min(LONGEST_PAUSE);
                    if lost.error.as_ref() != Some(&why) {
                        let seconds = LONGEST_PAUSE.as_secs();
                        error!(
                            event = Happening::ListenerEnded.as_str(),
                            listener, address = %actual,
                            "{actual} {why}; it is tried again, at least each {seconds} s, and by each reload"
                        );
                        lost.error = Some(why);
                    }
                }
            }
        }
    }

    /// Addresses that the configuration has no more are nobody's loss.
    pub(super) fn forget_lost(&mut self) {
        let bound = &self.bound;
        self.listening.lost.retain(|address, _| bound.contains_key(address));
    }

    pub(super) fn next_for_listening(&self) -> Option<Instant> {
        let serving = self.stage == Stage::Serving;
        let binds = self.listening.lost.values().filter_map(|lost| lost.bind_at);
        binds.chain(self.listening.look_at).min().filter(|_| serving)
    }

    /// The number of the last look that was asked for.
    pub(super) fn last_look(&self) -> u64 {
        self.listening.asked
    }

    /// Whether a look has come to an end and what it found has been seen to, as far as it could be.
    pub(super) fn has_looked(&self, number: u64) -> bool {
        number == 0 || self.listening.looked >= number && self.listening.lost.values().all(|lost| lost.error.is_some())
    }

    /// As the file has them: at which addresses no client, or not every worker's, is accepted although there is a listener, and why.
    pub(super) fn lost_addresses(&self) -> impl Iterator<Item = (&Address, &str)> {
        self.listening
            .lost
            .iter()
            .map(|(address, lost)| (address, lost.error.as_deref().unwrap_or("is being bound anew")))
    }
}
