//! The old program's side: has everything stand still, leaves the sessions to a stand-in, writes all down, and has the kernel
//! execute the new one. Whatever fails before that leaves everything as it was.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use super::record::Draft;
use super::stand_in::{Loss, StandIn, take_up};
use super::{CarriedDaemon, Target, guard, misbehave, process, stand_in, target};
use crate::daemon::effects::Effects;
use crate::daemon::event::AskId;
use crate::daemon::supervisor::CarriedSupervisor;
use crate::daemon::{children, now, signals};
use crate::observe::json;
use crate::proxy::Worker;
use crate::proxy::carry::{CarriedWorker, Roster, keep_on_exec};

/// How long the workers may take to come to a safe point.
const PARK: Duration = Duration::from_secs(1);
/// How long the workers may take before, for what is best done while they serve.
const MARK: Duration = Duration::from_millis(500);
/// How long the watcher may take to let go of its inotify instance; the exec would wait for it, with all sessions.
const UNWATCH: Duration = Duration::from_millis(200);
/// How long the log may take for what was logged before, and then for what was logged meanwhile.
const LOG: Duration = Duration::from_millis(100);
const LAST_LOG: Duration = Duration::from_millis(2);
const UNMARKED: &str =
    "a worker has not got over the last upgrade that came to nothing; see the journal, and ask again";

/// All workers at a safe point.
pub(in crate::daemon) struct Standing {
    workers: Vec<Worker>,
    /// Since when: microseconds of CLOCK_MONOTONIC.
    since: u64,
    stand_in: StandIn,
}

impl Effects {
    /// Tries a program, beside everything else.
    pub(in crate::daemon) fn check_target(&mut self, ask: AskId, program: Option<PathBuf>) {
        let program = program.unwrap_or_else(|| self.installed.clone());
        let (content, checked, workers) = (self.in_force.1.clone(), self.checked.clone(), self.crew.lines.len());
        // After an upgrade that came to nothing.
        self.crew.await_marks(MARK);
        let is_marked = self.crew.is_marked();
        let trying = tokio::spawn(async move {
            let result =
                if is_marked { target::check(&program, &content, workers).await } else { Err(UNMARKED.into()) };
            let _ = checked.send((ask, result)).await;
        });
        if let Some((_, former)) = self.trying.replace((ask, trying.abort_handle())) {
            former.abort();
        }
    }

    /// Nobody wants to know any more. The child is ended, which takes a moment.
    pub(in crate::daemon) fn forget_target(&mut self, ask: AskId) {
        if let Some((_, trying)) = self.trying.take_if(|(of, _)| *of == ask) {
            trying.abort();
        }
    }

    /// Whether a program is being tried for this request.
    pub(in crate::daemon) fn is_trying_for(&self, ask: AskId) -> bool {
        self.trying.as_ref().is_some_and(|(of, _)| *of == ask)
    }

    /// Has all workers come to a safe point, and keeps them; their sessions are a stand-in's from here on.
    ///
    /// # Errors
    /// One does not, there can be no stand-in, or a child is under way whose parent this program is; they all work on.
    pub(in crate::daemon) fn freeze(&mut self) -> Result<(), String> {
        if children::are_under_way() {
            return Err("a child of lbd's is at work right now; ask again in a moment".into());
        }
        let no_stand_in =
            |why: String| format!("no process can be had that serves meanwhile: {why}; ask again in a moment");
        let prepared = stand_in::Prepared::new().map_err(|e| no_stand_in(e.to_string()))?;
        // From here on, or a flood of them would wake every short sleep again and again.
        signals::hold();
        self.logging.flush_within(LOG);
        self.pause_watching();
        self.crew.keep_on_exec(MARK);
        let since = now().micros;
        let late = match self.crew.park(PARK) {
            Ok(mut workers) => match prepared.begin(&mut workers) {
                Ok(stand_in) => {
                    self.parked = Some(Standing { workers, since, stand_in });
                    return Ok(());
                }
                Err(why) => {
                    self.crew.go_on(workers);
                    return Err(self.go_on_instead(no_stand_in(why)));
                }
            },
            Err(late) => late.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        Err(self.go_on_instead(format!("worker {late} did not come to a safe point within {} s", PARK.as_secs())))
    }

    fn go_on_instead(&self, why: String) -> String {
        self.resume_watching();
        signals::take_again();
        why
    }

    /// Has the program execute in place of this one. Returns why it was not, and why sessions had to be cut where they had to;
    /// then the workers work on.
    pub(in crate::daemon) fn hand_over(
        &mut self,
        target: &Target,
        supervisor: CarriedSupervisor,
    ) -> (String, Option<String>) {
        let Some(standing) = self.parked.take() else {
            return ("nobody stood still".into(), None); // no supervisor asks for it then
        };
        let why = self.try_to_hand_over(target, supervisor, &standing);
        let (workers, lost) = standing.taken_back();
        self.crew.go_on(workers);
        (self.go_on_instead(format!("{} cannot be executed: {why}", target.path.display())), lost)
    }

    fn pause_watching(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.pause(UNWATCH);
        }
    }

    fn resume_watching(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.resume();
        }
    }

    fn try_to_hand_over(&self, target: &Target, supervisor: CarriedSupervisor, standing: &Standing) -> io::Error {
        match self.written(supervisor, standing) {
            Ok((record, program, mut kept)) => {
                self.logging.flush_within(LAST_LOG);
                kept.extend([record.as_raw_fd(), program.as_raw_fd()]);
                if let Err(e) = misbehave::refused().and_then(|()| Ok(keep_on_exec(&kept)?)) {
                    return e;
                }
                let why = guard::execute(&target.file, record.as_raw_fd(), program.as_raw_fd());
                guard::close_on_exec(&kept);
                why
            }
            Err(e) => e,
        }
    }

    /// The record, this program, and every descriptor that is to survive, but for those of the workers, who have seen to it.
    fn written(
        &self,
        supervisor: CarriedSupervisor,
        Standing { workers, since, stand_in }: &Standing,
    ) -> io::Result<(File, File, Vec<RawFd>)> {
        let (roll, control_door) = &self.connected;
        // The number of a connection that is closed may be another descriptor's by now.
        let askers = self.answers.iter().filter(|(_, asker)| !asker.has_gone());
        let daemon = CarriedDaemon {
            frozen_at: *since,
            stand_in: stand_in.carry(),
            installed: self.installed.clone(),
            supervisor,
            sockets: self.sockets.carry(),
            control: self.control.carry(),
            control_door: *control_door,
            silent: roll.silent(),
            askers: askers.map(|(ask, asker)| (ask.0, asker.number())).collect(),
            asked: self.asked,
            short_since: self.limits.short_since(),
        };
        let kept = daemon.descriptors();
        let daemon = json::try_compact(&daemon).map_err(io::Error::other)?;
        let written = workers.iter().map(|worker| worker.write().map_err(io::Error::other));
        let written = written.collect::<io::Result<Vec<_>>>()?;
        // What this program cannot read it must not leave: it is the one that may have to go on with it.
        json::read::<CarriedDaemon>(daemon.as_bytes()).map_err(io::Error::other)?;
        let heads = written.iter().map(|worker| CarriedWorker::read(&worker.head, worker.sessions.clone()));
        heads.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        let mut sections = vec![daemon.as_bytes(), &self.in_force.1, &self.seen];
        written.iter().for_each(|worker| sections.extend([&worker.head[..], &worker.sessions]));
        Ok((Draft::new(0)?.write(&sections)?, process::own_program()?, kept))
    }
}

impl Standing {
    /// The workers, who go on where the stand-in stops; and why sessions had to be cut, where they had to.
    fn taken_back(self) -> (Vec<Worker>, Option<String>) {
        let Self { mut workers, mut stand_in, .. } = self;
        let roster = Roster::of_parked(&mut workers);
        let lost = take_up(roster, stand_in.stop(), drop).lost;
        stand_in.end();
        lost.iter().for_each(Loss::is_told);
        (workers, lost.map(|loss| loss.why))
    }
}
