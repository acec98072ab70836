//! Slips of indentation: tabs, odd spaces, lines that stand too deep or not deep enough. Each comes with the edits that
//! would undo it; which of them is right is decided by `repair.rs`.

use super::file::Fault;
use super::lines::{Lines, indent, is_idle, lead, place};
use super::mend::{Edit, Slip};
use super::problem::Pos;

/// The words of the fault that [`odd_space`] finds.
pub(super) const ODD_SPACE: &str = "a space that is none for YAML";

/// The first line that begins with a space beyond ASCII, as pasted text does: for YAML it is part of the key.
pub(super) fn odd_space(text: &str) -> Option<Fault> {
    let odd = |line: &str| !is_idle(line) && !lead(line).is_ascii();
    let at = Pos::new(text.lines().position(odd)? + 1, 1);
    Some(Fault { at, words: ODD_SPACE.into(), ours: false, last: at, open: None })
}

/// The most lines whose depth is doubted in a text without a fault of syntax.
const MAX_DOUBTED: usize = 8;

/// The most lines that are moved together.
const MAX_MOVED: usize = 500;

/// Slips of indentation that YAML takes without complaint, near lines with problems.
pub(super) fn depths(text: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<Slip> {
    let lines = Lines(text.lines().collect());
    let mut doubted: Vec<u32> = Vec::new();
    for number in numbers.into_iter().take(MAX_DOUBTED) {
        doubted.extend([Some(number), lines.above(number)].into_iter().flatten());
    }
    doubted.sort_unstable();
    doubted.dedup();
    let mut slips = Vec::new();
    for number in doubted {
        let depth = indent(lines.line(number));
        for wanted in
            [depth.wrapping_sub(2), depth + 2, depth.wrapping_sub(4), depth + 4, depth.wrapping_sub(1), depth + 1]
        {
            // Below zero there is nothing.
            if wanted <= depth + 4 {
                slips.extend(lines.moved(number, wanted));
            }
        }
    }
    slips
}

impl Lines<'_> {
    /// Anything but spaces before the first word of a line.
    pub fn tabs(&self, near: u32) -> Vec<Slip> {
        let is_odd = |n: &u32| !is_idle(self.line(*n)) && lead(self.line(*n)).contains(|c| c != ' ');
        let all: Vec<u32> = (1..=self.0.len() as u32).filter(is_odd).collect();
        let at_fault = |n: u32| all.contains(&n);
        if !(at_fault(near) || self.below(near).is_some_and(at_fault)) {
            return self.tab_after_colon(near);
        }
        let first = all[0];
        let column = lead(self.line(first)).chars().take_while(|c| *c == ' ').count();
        let what = if self.line(first).chars().nth(column) == Some('\t') { "a tab" } else { "a no-break space" };
        let more = if all.len() > 1 { format!(", here and on {} more lines", all.len() - 1) } else { String::new() };
        let message = format!("{what} in the indentation{more}, where YAML takes plain spaces only; write spaces");
        let deep = |n: &u32, depth: usize| Edit::indentation(*n, lead(self.line(*n)).chars().count(), depth);
        let wide = |width: usize| {
            let depth = |n: &u32| lead(self.line(*n)).chars().map(|c| if c == ' ' { 1 } else { width }).sum();
            all.iter().map(|n| deep(n, depth(n))).collect::<Vec<_>>()
        };
        let like = |other: u32| all.iter().map(|n| deep(n, indent(self.line(other)))).collect();
        let neighbours = [self.above(first), self.below(first)].into_iter().flatten().filter(|n| !all.contains(n));
        let edits = neighbours.map(like).chain([2, 4, 8, 1].map(wide));
        edits.map(|edits| Slip::new(place(first, column), message.clone(), edits)).collect()
    }

    fn tab_after_colon(&self, number: u32) -> Vec<Slip> {
        let line = self.line(number);
        let tab = line.find(":\t").map(|index| line[..index].chars().count() + 1);
        let message = "a tab after the colon; write a space";
        let slip = |column| Slip::new(place(number, column), message, vec![Edit::replace(number, column, 1, " ")]);
        tab.map(slip).into_iter().collect()
    }

    /// A line that stands deeper or less deep than its neighbours; or one above it does.
    pub fn indentation(&self, number: u32) -> Vec<Slip> {
        let depth = indent(self.line(number));
        let mut depths: Vec<usize> = Vec::new();
        let mut limit = usize::MAX;
        let mut shallower = None;
        for n in (1..number).rev().filter(|&n| !is_idle(self.line(n))) {
            let other = indent(self.line(n));
            if other < limit && depths.len() < MAX_DOUBTED {
                limit = other;
                depths.push(other);
            }
            if other < depth && shallower.is_none() {
                shallower = Some(n);
            }
            if other == 0 {
                break;
            }
        }
        let mut slips: Vec<Slip> = depths
            .into_iter()
            .filter(|wanted| *wanted != depth)
            .flat_map(|wanted| self.moved(number, wanted))
            .collect();
        slips.extend(shallower.into_iter().flat_map(|n| self.moved(n, depth)));
        // What stands right above, and deeper.
        let deeper: Vec<u32> = (1..number)
            .rev()
            .filter(|&n| !is_idle(self.line(n)))
            .take_while(|&n| indent(self.line(n)) > depth)
            .collect();
        if let Some(&first) = deeper.last() {
            slips.extend(self.moved(first, depth));
        }
        slips
    }

    /// A line put at another depth: alone, with what is in it, and with all that follows it as deep.
    fn moved(&self, number: u32, wanted: usize) -> Vec<Slip> {
        let depth = indent(self.line(number));
        let message =
            format!("the line is indented by {}, which does not fit; write {}", spaces(depth), spaces(wanted));
        let block = self.block(number);
        let inner = 1 + block[1..].iter().take_while(|&&n| indent(self.line(n)) > depth).count();
        let mut lengths = vec![1, inner, block.len()];
        lengths.dedup();
        lengths.retain(|length| *length <= MAX_MOVED);
        // Few files have odd depths, and a line rather stands too deep than not deep enough.
        let each = 4 * depth.abs_diff(wanted) + 2 * (wanted % 2) + usize::from(wanted > depth);
        let slip = |length: usize| {
            let edit = |n: u32| Edit::indentation(n, indent(self.line(n)), indent(self.line(n)) + wanted - depth);
            let edits = block[..length].iter().map(|&n| edit(n)).collect();
            Slip { moves: true, weight: each * length, ..Slip::new(place(number, depth), message.clone(), edits) }
        };
        lengths.into_iter().map(slip).collect()
    }
}

fn spaces(count: usize) -> String {
    match count {
        0 => "none".into(),
        1 => "1 space".into(),
        _ => format!("{count} spaces"),
    }
}
