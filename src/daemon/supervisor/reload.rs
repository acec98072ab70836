//! A change of configuration, whoever asked for it: read, check, diff, bind what is new, swap, let go of what
//! is old. Everything that can fail comes before the swap; one reload is under way at a time.

use std::collections::BTreeMap;

use tracing::{error, info, warn};

use super::{Reload, Stage, Supervisor, Then};
use crate::config::{Config, ConfigDiff, Problem, SocketAccess};
use crate::control::{ProblemLine, ReloadOutcome, Reply};
use crate::daemon::action::{Action, Doors, Exit, Notice};
use crate::daemon::event::{BackendKey, FileRead, Now, ReloadBy};
use crate::daemon::logging::timestamp;
use crate::health::Verdict;
use crate::observe::{LastReload, ReloadAsker, ReloadResult};
use crate::words::{Address, BackendRef, Happening};

const STOPPING: &str = "lbd is stopping; nothing was changed";

impl Supervisor {
    pub(super) fn reload_asked(&mut self, by: ReloadBy, now: Now, out: &mut Vec<Action>) {
        if self.stage.is_stopping() {
            if let ReloadBy::Operator(ask) = by {
                info!("a reload is refused: {STOPPING}");
                out.push(Action::Answer(ask, Reply::refused(STOPPING)));
            }
            return;
        }
        if self.reload.is_some() {
            // Who cannot be answered is served by what is read for another one of them.
            if matches!(by, ReloadBy::Operator(_)) || !self.next_reload.contains(&by) {
                self.next_reload.push_back(by);
            }
            return;
        }
        self.reload = Some(Reload { by, asked_at: now.at, config: None });
        if by != ReloadBy::Start {
            out.push(Action::Notify(Notice::Reloading));
        }
        self.look_at_sockets(now, out);
        self.read_file(out);
    }

    pub(super) fn config_read(&mut self, read: FileRead, now: Now, out: &mut Vec<Action>) {
        self.has_read();
        let Some(Reload { by, asked_at, .. }) = self.reload else { return };
        let (config, warnings) = match read {
            FileRead::Right(config, warnings) => (*config, warnings),
            FileRead::Unreadable(why) => return self.refuse_reload(&why, Vec::new(), now, out),
            FileRead::Wrong(file, problems) => {
                let lines: Vec<ProblemLine> = problems.into_iter().map(|p| line(&file, p)).collect();
                let count = lines.len();
                let what = if count == 1 { "a problem".to_owned() } else { format!("{count} problems") };
                let after = if by == ReloadBy::Start { "" } else { "; nothing was changed" };
                return self.refuse_reload(&format!("{file} has {what}{after}"), lines, now, out);
            }
        };
        let diff = match &self.config {
            Some(old) => ConfigDiff::between(old, &config),
            None => ConfigDiff::default(),
        };
        if let Some(old) = &self.config {
            if *old == config {
                if self.is_no_fallback_any_more() {
                    out.push(Action::SetWatch(config.watch));
                }
                return self.finish_reload(ReloadResult::Unchanged, Vec::new(), warnings, now, out);
            }
            if let Some(why) = diff.too_drastic(old).filter(|_| by == ReloadBy::Watcher && self.fallback.is_none()) {
                return self.refuse_reload(&why, Vec::new(), now, out);
            }
        }
        let new: Vec<Address> = addresses(&config).filter(|a| !self.bound.contains_key(*a)).cloned().collect();
        let access: BTreeMap<_, _> = access(&config).filter(|(address, _)| new.contains(address)).collect();
        self.reload = Some(Reload { by, asked_at, config: Some((config, diff, warnings)) });
        if new.is_empty() { self.bound(BTreeMap::new(), now, out) } else { out.push(Action::Bind(new, access)) }
    }

    pub(super) fn not_bound(&mut self, reasons: Vec<(Address, String)>, now: Now, out: &mut Vec<Action>) {
        let Some(Reload { config: Some((config, ..)), .. }) = &self.reload else { return };
        let texts: Vec<String> = reasons
            .iter()
            .map(|(address, why)| format!("listeners.{}: {address} {why}", owner(config, address)))
            .collect();
        self.refuse_reload(&texts.join("\n"), Vec::new(), now, out);
    }

    /// Everything is there: swaps.
    pub(super) fn bound(&mut self, bound: BTreeMap<Address, Address>, now: Now, out: &mut Vec<Action>) {
        let Some((config, diff, warnings)) = self.reload.as_mut().and_then(|reload| reload.config.take()) else {
            return;
        };
        let was_fallback = self.is_no_fallback_any_more();
        for (asked, got) in &bound {
            info!(listener = owner(&config, asked), address = %got, asked = %asked, "listening");
        }
        let listen: Vec<Address> = bound.keys().cloned().collect();
        self.bound.extend(bound);
        let release: Vec<Address> =
            self.bound.keys().filter(|address| !addresses(&config).any(|a| a == *address)).cloned().collect();
        self.bound.retain(|address, _| !release.contains(address));
        self.forget_lost();
        if self.config.as_ref().is_none_or(|old| old.log.level != config.log.level) {
            out.push(Action::SetLogLevel(config.log.level));
        }
        if was_fallback || self.config.as_ref().is_none_or(|old| old.watch != config.watch) {
            out.push(Action::SetWatch(config.watch || self.fallback.is_some()));
        }
        if let Some(old) = self.config.as_ref().filter(|old| old.control != config.control) {
            // The path itself takes effect at restart.
            if (old.control.mode, &old.control.group) != (config.control.mode, &config.control.group) {
                out.push(Action::SetControl(config.control.clone()));
            }
        }
        let permitted: BTreeMap<Address, SocketAccess> = self.config.iter().flat_map(access).collect();
        let changed =
            |(address, access): &(Address, SocketAccess)| permitted.get(address).is_some_and(|was| was != access);
        let changed: BTreeMap<_, _> = access(&config).filter(changed).collect();
        if !changed.is_empty() {
            out.push(Action::Permit(changed));
        }
        self.cells.settle(&config, now.micros);
        let overrides = self.overrides.len();
        let mut notes = self.know(&config, now);
        if self.overrides.len() < overrides {
            self.keep_overrides(now, out);
        }
        self.first.get_or_insert_with(|| config.clone());
        self.config = Some(config);
        self.generation = self.generation.next();
        self.publish(Doors { listen, release, ..Doors::default() }, out);
        notes.iter().for_each(|note| warn!("{note}"));
        self.warn_once(&warnings);
        notes.extend(warnings);
        self.finish_reload(ReloadResult::Applied, diff.summary(), notes, now, out);
    }

    /// Brings what is known of backends in line with a configuration: new ones are unproven, known ones keep
    /// their verdict, and those that are not checked have none. Returns what the operator should know of it.
    pub(super) fn know(&mut self, config: &Config, now: Now) -> Vec<String> {
        let mut notes = Vec::new();
        let mut wanted: BTreeMap<BackendKey, Option<&crate::words::CheckSpec>> = BTreeMap::new();
        for (name, pool) in &config.pools {
            for backend in &pool.backends {
                let reference = BackendRef { pool: name.clone(), backend: backend.name.clone() };
                wanted.insert((reference, backend.address.clone()), pool.health_check.as_ref());
            }
        }
        self.backends.retain(|key| wanted.contains_key(key));
        self.overrides.retain(|key, o| {
            let kept = wanted.contains_key(key);
            if !kept {
                notes
                    .push(format!("{} at {} is gone from the file, and with it that it was {}", key.0, key.1, o.admin));
            }
            kept
        });
        for (key, check) in wanted {
            let unasked = self.overrides.contains_key(&key);
            let probing = self.probing.contains(&key);
            self.backends.add(key.clone(), now.at);
            self.backends.change(&key, |known| match check {
                None => {
                    known.next_probe = None;
                    if known.verdict.health() != crate::words::Health::Unproven {
                        known.verdict = Verdict::unproven(now.at);
                    }
                }
                Some(spec) if !probing && !unasked => {
                    // A new one at once: clients may wait for its verdict. An interval that has become shorter counts from now on.
                    known.next_probe = Some(known.next_probe.map_or(now.at, |at| at.min(now.at + spec.interval)));
                }
                Some(_) => {}
            });
        }
        notes
    }

    /// Warns of what the configuration before has not been warned of as well.
    fn warn_once(&mut self, warnings: &[String]) {
        warnings.iter().filter(|warning| !self.warned.contains(warning)).for_each(|warning| warn!("{warning}"));
        self.warned = warnings.to_vec();
    }

    fn finish_reload(
        &mut self,
        result: ReloadResult,
        changed: Vec<String>,
        notes: Vec<String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(Reload { by, .. }) = self.reload.take() else { return };
        self.note_reload(by, result, Vec::new(), now);
        match (result, by) {
            (_, ReloadBy::Start) => {
                self.stage = Stage::Serving;
                info!(
                    event = Happening::Started.as_str(),
                    generation = self.generation.0,
                    "serving; {}",
                    self.status_line()
                );
            }
            (ReloadResult::Applied, _) => {
                info!(
                    event = Happening::ReloadApplied.as_str(),
                    generation = self.generation.0,
                    by = spelled(by),
                    "configuration applied: {}",
                    changed.join("; ")
                );
            }
            _ => info!(generation = self.generation.0, by = spelled(by), "the file says what is in force already"),
        }
        if let ReloadBy::Operator(ask) = by {
            let outcome =
                if result == ReloadResult::Applied { ReloadOutcome::Applied } else { ReloadOutcome::Unchanged };
            let reply = Reply::Reloaded { generation: self.generation.0, outcome, changed, notes };
            // Where nothing has changed too: the watcher may have been quicker by a moment.
            self.answer_when_known(ask, Then::Answer(reply), now, out);
            let look = self.last_look();
            self.waiting.iter_mut().filter(|waiting| waiting.ask == ask).for_each(|waiting| waiting.look = look);
        }
        self.reload_over(now, out);
    }

    pub(super) fn refuse_reload(&mut self, why: &str, problems: Vec<ProblemLine>, now: Now, out: &mut Vec<Action>) {
        let Some(Reload { by, .. }) = self.reload else { return };
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if by == ReloadBy::Start && self.facts.kept_file && self.fallback.is_none() {
            return self.fall_back(why, lines, now, out);
        }
        self.reload = None;
        if by == ReloadBy::Start {
            let mut text = why.to_owned();
            lines.iter().for_each(|line| text.push_str(&format!("\n{line}")));
            return out.push(Action::Exit(Exit::CannotStart(text)));
        }
        error!(
            event = Happening::ReloadRefused.as_str(),
            generation = self.generation.0,
            by = spelled(by),
            "configuration refused: {why}"
        );
        lines.iter().for_each(|line| error!(event = Happening::ReloadRefused.as_str(), "{line}"));
        self.note_reload(by, ReloadResult::Refused, if lines.is_empty() { vec![why.to_owned()] } else { lines }, now);
        if let ReloadBy::Operator(ask) = by {
            out.push(Action::Answer(ask, Reply::Refused { message: why.to_owned(), problems }));
        }
        self.reload_over(now, out);
    }

    /// systemd hangs in "reload" unless READY follows, whatever came of it. Then the next one's turn comes.
    fn reload_over(&mut self, now: Now, out: &mut Vec<Action>) {
        self.last_status = self.status_line();
        out.push(Action::Notify(Notice::Ready(self.last_status.clone())));
        if let Some(by) = self.next_reload.pop_front() {
            self.reload_asked(by, now, out);
        }
    }

    /// Who stops applies no configuration any more: neither the one under way nor those asked for since.
    pub(super) fn abandon_reloads(&mut self, out: &mut Vec<Action>) {
        let under_way = self.reload.take();
        if under_way.as_ref().is_some_and(|reload| reload.by != ReloadBy::Start) {
            out.push(Action::Notify(Notice::Ready(self.status_line())));
        }
        for by in under_way.map(|reload| reload.by).into_iter().chain(std::mem::take(&mut self.next_reload)) {
            if let ReloadBy::Operator(ask) = by {
                out.push(Action::Answer(ask, Reply::refused(STOPPING)));
            }
        }
    }

    pub(super) fn note_reload(&mut self, by: ReloadBy, result: ReloadResult, problems: Vec<String>, now: Now) {
        let by = match by {
            ReloadBy::Start if result != ReloadResult::Refused => return,
            ReloadBy::Start => ReloadAsker::Start,
            ReloadBy::Watcher => ReloadAsker::Watcher,
            ReloadBy::Signal => ReloadAsker::Signal,
            ReloadBy::Operator(_) => ReloadAsker::Control,
        };
        let (at, generation) = (timestamp(now.wall), self.generation.0);
        self.last_reload = Some((LastReload { at, seconds_ago: 0, by, result, generation, problems }, now.at));
    }
}

/// The name of the listener that has an address.
pub(super) fn owner<'a>(config: &'a Config, address: &Address) -> &'a str {
    config.listeners.iter().find(|(_, l)| l.bind.contains(address)).map_or("?", |(name, _)| name.as_str())
}

/// Who may connect to each Unix listener.
fn access(config: &Config) -> impl Iterator<Item = (Address, SocketAccess)> {
    let unix = |address: &&Address| matches!(address, Address::Unix(_));
    config.listeners.values().flat_map(move |listener| {
        listener.bind.iter().filter(unix).map(|address| (address.clone(), listener.access.clone()))
    })
}

fn addresses(config: &Config) -> impl Iterator<Item = &Address> {
    config.listeners.values().flat_map(|listener| &listener.bind)
}

fn line(file: &str, problem: Problem) -> ProblemLine {
    let Problem { line, column, path, message } = problem;
    ProblemLine { file: file.to_owned(), line, column, path, message }
}

fn spelled(by: ReloadBy) -> &'static str {
    match by {
        ReloadBy::Start => "start",
        ReloadBy::Watcher => "watcher",
        ReloadBy::Signal => "SIGHUP",
        ReloadBy::Operator(_) => "lbctl",
    }
}
