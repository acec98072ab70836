//! Reads on where the syntax or the indentation is at fault: of the edits that may undo the slip it takes those that
//! leave the fewest problems, because one slip is likelier than many. What a slip looks like is left to `syntax.rs` and `depth.rs`.

use std::collections::HashSet;

use super::file::{Fault, File};
use super::mend::{Mended, Slip};
use super::problem::{Pos, Problem};
use super::reader::Checked;
use super::{depth, syntax, tree};

/// The longest text that is repaired: longer ones are written by programs.
const MAX_LENGTH: usize = 64 * 1024;
/// What may be read in all attempts together, in bytes: a tenth of a second.
const MAX_READ: usize = 2 * 1024 * 1024;
/// What a text may grow by, in bytes: two moves of a line may each be the reason for the other, and double it.
const MAX_GROWTH: usize = 8 * 1024;
/// The most slips undone in one text.
const MAX_SLIPS: usize = 32;
/// The most attempts, however short the text is.
const MAX_ATTEMPTS: usize = 200;
/// How many of the candidates for a slip are followed to the end.
const FOLLOWED: usize = 4;

/// Reads a text, as repaired as it can be, with every problem of it.
pub(super) fn read(text: &str, check: &dyn Fn(&File) -> Checked) -> (File, Vec<Problem>) {
    let (attempts, longest) = if text.len() <= MAX_LENGTH { (MAX_ATTEMPTS, text.len() + MAX_GROWTH) } else { (0, 0) };
    let mut repair = Repair { check, attempts, unread: MAX_READ, longest, seen: HashSet::from([text.to_owned()]) };
    let mut first = repair.reading(Mended::new(text), Vec::new(), 0);
    if first.fault.is_some() || !first.problems.is_empty() {
        first = repair.begun(first);
    }
    let best = repair.settle(first);
    let problems = best.told();
    (best.file, problems)
}

/// What a line counts that was moved to where nobody looks at it: as many problems as that may hide.
const UNSEEN: usize = 8;

struct Repair<'a> {
    check: &'a dyn Fn(&File) -> Checked,
    attempts: usize,
    /// How many bytes may still be read.
    unread: usize,
    /// The most bytes of a text.
    longest: usize,
    /// Texts that were read already.
    seen: HashSet<String>,
}

/// A text read with some slips undone.
struct Reading {
    file: File,
    /// Why the text could not be read to its end.
    fault: Option<Fault>,
    slips: Vec<Undone>,
    /// How unlikely they are.
    weight: usize,
    /// What is wrong beside the slips.
    problems: Vec<Problem>,
    /// What moved lines may have hidden, in problems.
    hidden: usize,
}

/// A slip that was undone.
#[derive(Clone)]
struct Undone {
    told: Problem,
    moves: bool,
}

impl Repair<'_> {
    /// The best reading that can be had by undoing more slips.
    fn settle(&mut self, reading: Reading) -> Reading {
        let text = &reading.file.text.text;
        let (candidates, given_up) = match &reading.fault {
            Some(fault) => {
                let candidates = syntax::slips(text, fault);
                let given_up = candidates.first().cloned();
                (candidates, given_up)
            }
            // One problem needs no other explanation.
            None if reading.problems.len() < 2 => return reading,
            None => (depth::depths(text, reading.problems.iter().map(|problem| problem.line)), None),
        };
        let mut children = Vec::new();
        for slip in candidates {
            if self.attempts == 0 || reading.slips.len() >= MAX_SLIPS {
                break;
            }
            let mended = reading.file.text.with(&slip.edits);
            let length = mended.text.len();
            if length > self.longest || length > self.unread || !self.seen.insert(mended.text.clone()) {
                continue;
            }
            self.attempts -= 1;
            self.unread -= length;
            children.extend(self.child(&reading, &slip, mended));
            children.sort_by_key(Reading::cost);
            children.truncate(FOLLOWED);
        }
        let least = reading.slips.len() + 1;
        let mut best = self.abandoned(reading, given_up);
        for child in children {
            let (unread, told, ..) = best.cost();
            if unread == 0 && told <= child.slips.len().max(least) {
                break;
            }
            let settled = self.settle(child);
            if settled.cost() < best.cost() {
                best = settled;
            }
        }
        best
    }

    /// The reading with every slip undone that is one for certain.
    fn begun(&mut self, reading: Reading) -> Reading {
        let certain = syntax::certain(&reading.file.text.text);
        if certain.is_empty() || self.attempts == 0 {
            return reading;
        }
        let text = certain.iter().fold(reading.file.text, |text, slip| text.with(&slip.edits));
        let undone = |slip: &Slip| Undone { told: Problem::new(slip.at, "", &slip.message), moves: false };
        let slips = certain.iter().map(undone).collect();
        let mut begun = self.reading(text, slips, 0);
        // A comment has no key.
        for (undone, slip) in begun.slips.iter_mut().zip(&certain).filter(|(_, slip)| slip.weight > 0) {
            undone.told.path = begun.file.path_at(slip.at);
        }
        begun
    }

    /// What comes of undoing a slip, if that leads further.
    fn child(&self, reading: &Reading, slip: &Slip, mended: Mended) -> Option<Reading> {
        let mut slips = reading.slips.clone();
        let told = Problem::new(reading.file.text.origin(slip.at), "", &slip.message);
        slips.push(Undone { told, moves: slip.moves });
        let mut child = self.reading(mended, slips, reading.weight + slip.weight);
        let path = child.file.path_at(slip.at);
        // A tree takes a hundred times what its text does; that of a file with slips is wanted no more.
        child.file.root = None;
        if let Some(undone) = child.slips.last_mut() {
            undone.told.path = path;
        }
        match (&reading.fault, &child.fault) {
            // The parser may stumble over another slip on the same line, or over one just above it.
            (Some(fault), next) => next.as_ref().is_none_or(|next| {
                next.at.line > fault.at.line || next.at.line + 1 >= fault.at.line && next.words != fault.words
            }),
            // Where YAML sees no fault, an edit explains problems away or it is none: it must not hide or make any.
            (None, next) => {
                let makes_none = || child.problems.iter().all(|problem| reading.problems.contains(problem));
                next.is_none() && child.hidden <= reading.hidden && makes_none()
            }
        }
        .then_some(child)
    }

    fn reading(&self, text: Mended, slips: Vec<Undone>, weight: usize) -> Reading {
        let (file, fault) = match depth::odd_space(&text.text) {
            Some(fault) => (File::default(), Some(fault)),
            None => tree::build(&text.text),
        };
        let lost_from = fault.as_ref().map(|fault| fault.last.line).or(file.lost_from);
        let file = File { text, lost_from, ..file };
        let Checked { mut problems, unseen } = (self.check)(&file);
        problems.extend(file.problems.iter().map(|(at, message)| Problem::new(*at, "", message)));
        for problem in &mut problems {
            let at = file.text.origin(problem.at());
            (problem.line, problem.column) = (at.line, at.column);
        }
        let moved = |at: Pos| slips.iter().any(|slip| slip.moves && slip.told.at() == at);
        let covered = problems.iter().filter(|problem| moved(problem.at())).count();
        let hidden = covered + UNSEEN * unseen.iter().filter(|at| moved(file.text.origin(**at))).count();
        // What an undone slip leaves at its own place is no problem of its own.
        problems.retain(|problem| slips.iter().all(|slip| slip.told.at() != problem.at()));
        Reading { file, fault, slips, weight, problems, hidden }
    }

    /// The reading with a fault that nobody can undo told as it is.
    fn abandoned(&self, mut reading: Reading, slip: Option<Slip>) -> Reading {
        if let Some(slip) = slip {
            let at = reading.file.text.origin(slip.at);
            reading.problems.push(Problem::new(at, "", slip.message));
        }
        reading
    }
}

impl Reading {
    /// The less the better: lines that could not be read, problems in all, unlikely slips.
    fn cost(&self) -> (u32, usize, usize) {
        let unread = self.fault.as_ref().map_or(0, |fault| u32::MAX - fault.at.line);
        (unread, self.slips.len() + self.problems.len() + self.hidden, self.weight)
    }

    fn told(&self) -> Vec<Problem> {
        let mut told: Vec<Problem> = self.slips.iter().map(|slip| &slip.told).chain(&self.problems).cloned().collect();
        told.sort_by_key(Problem::at);
        told
    }
}
