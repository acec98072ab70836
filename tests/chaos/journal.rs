//! What the load did last, and what went wrong: for whoever reads a failed run.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const KEPT: usize = 60;
const VIOLATIONS: usize = 8;

pub struct Journal {
    begun: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    notes: VecDeque<String>,
    violations: Vec<String>,
    counts: BTreeMap<String, u64>,
}

impl Journal {
    pub fn new() -> Self {
        Self { begun: Instant::now(), inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, kind: &str, text: &str) -> String {
        format!("{:8.3} s  {kind}: {text}", self.begun.elapsed().as_secs_f64())
    }

    /// Something that an operator did, or that befell a backend.
    pub fn note(&self, kind: &str, text: &str) {
        let line = self.line(kind, text);
        let mut inner = self.inner();
        if inner.notes.len() == KEPT {
            inner.notes.pop_front();
        }
        inner.notes.push_back(line);
    }

    pub fn violated(&self, kind: &str, text: &str) {
        let line = self.line(kind, text);
        let mut inner = self.inner();
        if inner.violations.len() < VIOLATIONS {
            inner.violations.push(line);
        }
    }

    pub fn count(&self, what: &str) {
        let mut inner = self.inner();
        match inner.counts.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(inner.counts.insert(what.to_owned(), 1)),
        }
    }

    pub fn counted(&self, what: &str) -> u64 {
        self.inner().counts.get(what).copied().unwrap_or(0)
    }

    /// How often everything happened, in one line.
    pub fn summary(&self) -> String {
        let inner = self.inner();
        inner.counts.iter().map(|(what, count)| format!("{what}: {count}")).collect::<Vec<_>>().join(", ")
    }

    /// The violations, then what was done before them.
    pub fn report(&self) -> String {
        let inner = self.inner();
        let mut out = String::from("VIOLATED\n");
        inner.violations.iter().for_each(|line| writeln!(out, "{line}").unwrap_or(()));
        out.push_str("--- what the load did last\n");
        inner.notes.iter().for_each(|line| writeln!(out, "{line}").unwrap_or(()));
        out
    }
}
