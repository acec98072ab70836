//! The lines of a text whose syntax is at fault, as a reader sees them: depth, content, neighbours.

use super::problem::Pos;

/// Lines, numbered from 1.
pub(super) struct Lines<'a>(pub Vec<&'a str>);

impl<'a> Lines<'a> {
    /// The line of a number from 1.
    pub fn line(&self, number: u32) -> &'a str {
        self.0.get(number as usize - 1).copied().unwrap_or_default()
    }

    /// The number of the nearest line above that is neither blank nor a comment.
    pub fn above(&self, number: u32) -> Option<u32> {
        (1..number).rev().find(|&n| !is_idle(self.line(n)))
    }

    /// Numbers of the lines from this one on that stand as deep or deeper; at least this one.
    pub fn block(&self, number: u32) -> Vec<u32> {
        let depth = indent(self.line(number));
        let inside = |n: &u32| is_idle(self.line(*n)) || indent(self.line(*n)) >= depth;
        let below = (number + 1..=self.0.len() as u32).take_while(inside).filter(|n| !is_idle(self.line(*n)));
        std::iter::once(number).chain(below).collect()
    }

    /// The number of the nearest line below that is neither blank nor a comment.
    pub fn below(&self, number: u32) -> Option<u32> {
        (number + 1..=self.0.len() as u32).find(|&n| !is_idle(self.line(n)))
    }
}

/// A place from a line from 1 and a column from 0.
pub(super) fn place(line: u32, column: usize) -> Pos {
    Pos::new(line as usize, column + 1)
}

pub(super) fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// The white space that a line begins with.
pub(super) fn lead(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

pub(super) fn is_idle(line: &str) -> bool {
    let content = line.trim();
    content.is_empty() || content.starts_with('#') || content == "---"
}

/// A text without the comment and the spaces at its end.
pub(super) fn bare_value(text: &str) -> &str {
    let comment = text.match_indices('#').find(|&(index, _)| index == 0 || text[..index].ends_with([' ', '\t']));
    comment.map_or(text, |(index, _)| &text[..index]).trim_end()
}
