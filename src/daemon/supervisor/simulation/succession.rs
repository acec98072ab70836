//! Upgrades in the simulated world: a program is tried for as long as it likes while everything else goes on; from the freeze on
//! only what was on its way arrives; then another program takes over, or none does, or this one has to go on.

use std::fs::File;
use std::sync::Arc;

use super::laws;
use super::world::{Due, WORKERS, World, at};
use crate::daemon::event::{AskId, Event, TookOver};
use crate::daemon::supervisor::{CarriedSupervisor, Supervisor};
use crate::daemon::upgrade::{Reserve, Target};
use crate::observe::json;
use crate::snapshot::{BackendCell, Cells};

/// How often upgrades ended in each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ends {
    /// The program was not fit.
    pub unfit: u32,
    /// Nobody wanted to know any more.
    pub forgotten: u32,
    /// A worker was late.
    pub late: u32,
    /// The kernel did not execute it.
    pub not_executed: u32,
    /// It failed, and the one before went on.
    pub failed: u32,
    /// It took over.
    pub taken_over: u32,
}

impl World {
    pub(super) fn try_program(&mut self, ask: AskId) {
        let file = File::open("/dev/null").expect("it is everywhere");
        let target = Target { file, path: "/usr/sbin/lbd".into(), version: "1".into(), reserve: Reserve::default() };
        let is_fit = self.chance.happens(85);
        self.ends.unfit += u32::from(!is_fit);
        let result = if is_fit { Ok(target) } else { Err("is a script".into()) };
        let said = self.now + self.chance.millis(2500);
        self.later(said, Due::Event(Event::Checked(ask, result, 0)));
    }

    /// What it was found to be may be on its way.
    pub(super) fn forget_program(&mut self, ask: AskId) {
        self.ends.forgotten += 1;
        if self.chance.happens(70) {
            self.due.retain(|_, due| !matches!(due, Due::Event(Event::Checked(of, ..)) if *of == ask));
        }
    }

    /// All stand still. What probes and workers told before is heard, and who has gone is gone.
    pub(super) fn freeze(&mut self) {
        for _ in 0..self.chance.below(4) {
            let event = match self.chance.below(3) {
                0 => self.somebody_goes(),
                1 => self.a_result_that_is_there(),
                _ => self.supervisor.backends.iter().last().map(|(key, _)| Event::DialFailed(key.clone())),
            };
            self.at_once.extend(event);
        }
        let is_late = self.chance.happens(10);
        self.ends.late += u32::from(is_late);
        self.at_once.push_back(Event::Frozen(if is_late { Err("worker 1 is late".into()) } else { Ok(()) }));
    }

    fn a_result_that_is_there(&mut self) -> Option<Event> {
        let at = *self.due.iter().find(|(_, due)| matches!(due, Due::Probe(_)))?.0;
        match self.due.remove(&at) {
            Some(Due::Probe(key)) => Some(Event::Probed(key, Err("refused".into()))),
            _ => None,
        }
    }

    /// Another program's supervisor has nothing but what is carried, and its workers have their sessions. What was under way to the
    /// one before is lost.
    pub(super) fn hand_over(&mut self, carried: CarriedSupervisor) {
        if self.chance.happens(15) {
            self.ends.not_executed += 1;
            return self.at_once.push_back(Event::NotHandedOver("no memory".into(), None));
        }
        let pause = self.chance.millis(20);
        self.now += pause;
        let now = at(self.start, self.now);
        let carried = json::compact(&carried);
        let carried: CarriedSupervisor = json::read(carried.as_bytes()).expect("it is read as it was written");
        let asker = AskId(carried.asker);
        let cells = Cells::inherit(&carried.cells, WORKERS).expect("its words are words");
        let (facts, seed) = (self.supervisor.facts.clone(), self.numbers);
        let config = self.in_force.clone().expect("who serves has a configuration");
        let mut next = Supervisor::inherit(facts, config, cells, carried, seed, now).expect("it makes sense");
        next.first.clone_from(&self.supervisor.first);
        laws::a_successor_knows_the_same(&self.supervisor, &next);
        let same =
            |cell: &BackendCell| Arc::clone(next.cells.backend(&cell.reference, &cell.address).expect("it is carried"));
        for session in &mut self.sessions {
            session.backend = same(&session.backend);
            session.listener = Arc::clone(next.cells.listener(&session.listener.name).expect("it is carried"));
            assert!(session.backend.live.reserve(None) && session.listener.live.reserve(None));
        }
        let unanswered = self.asks.values_mut().filter(|ask| ask.answers == 0 && !ask.gone);
        for drained in unanswered.flat_map(|ask| &mut ask.drains) {
            if let Some(cell) = next.cells.backend(&drained.reference, &drained.address) {
                *drained = Arc::clone(cell);
            }
        }
        self.published.push(Arc::clone(&next.snapshot));
        self.taken = [(next.revision, self.now); WORKERS];
        self.probes.clear();
        self.due.clear();
        self.supervisor = next;
        let failure = self.chance.happens(20).then(|| "it panicked".to_owned());
        match failure {
            Some(_) => self.ends.failed += 1,
            None => self.ends.taken_over += 1,
        }
        self.at_once.push_back(Event::TookOver(TookOver {
            silent: Vec::new(),
            asker,
            from: "0".into(),
            failure,
            sessions: 1,
            pause,
            shut: pause,
            lost: None,
        }));
    }
}
