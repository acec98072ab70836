//! One fault of the file: where it is, what is so, what to write instead; and how it is shown, as a line or with the
//! lines around it. The one doorway of annotate-snippets.

use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize};

/// A fault of a configuration file. Travels over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// The key path, such as `pools.web.backends.b2.address`; empty where the file as a whole is at fault.
    pub path: String,
    /// What is so, and how to mend it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.said())
    }
}

impl Problem {
    pub(super) fn new(at: Pos, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { line: at.line, column: at.column, path: path.into(), message: message.into() }
    }

    pub(super) fn at(&self) -> Pos {
        Pos { line: self.line, column: self.column }
    }

    /// The same for what is only to be looked at.
    pub fn one_line_of_warning(&self, file: &str) -> String {
        format!("{file}:{}:{}: warning: {}", self.line, self.column, self.said())
    }

    pub(super) fn said(&self) -> String {
        if self.path.is_empty() { self.message.clone() } else { format!("{}: {}", self.path, self.message) }
    }

    /// The problem on one line, as compilers write it: `FILE:LINE:COLUMN: path: message`.
    pub fn one_line(&self, file: &str) -> String {
        format!("{file}:{self}")
    }
}

/// The problems with the lines they stand in, a mark under each place; coloured for a terminal if `colour`.
/// `text` is what [`super::Config::parse`] was given.
pub fn render(problems: &[Problem], file: &str, text: &[u8], colour: bool) -> String {
    render_as(&Level::ERROR, problems, file, text, colour)
}

/// As [`render`], of what is only to be looked at.
pub fn render_warnings(warnings: &[Problem], file: &str, text: &[u8], colour: bool) -> String {
    render_as(&Level::WARNING, warnings, file, text, colour)
}

fn render_as(level: &Level<'static>, problems: &[Problem], file: &str, text: &[u8], colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let text = String::from_utf8_lossy(text);
    let source = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<&str> = source.lines().collect();
    let shown = problems.iter().map(|problem| {
        let line = lines.get((problem.line as usize).saturating_sub(1)).copied().unwrap_or_default();
        let title = problem.said();
        let span = word_at(line, (problem.column as usize).saturating_sub(1));
        let snippet = Snippet::source(line)
            .line_start(problem.line as usize)
            .path(file)
            .annotation(AnnotationKind::Primary.span(span));
        renderer.render(&[level.clone().primary_title(title).element(snippet)])
    });
    shown.collect::<Vec<_>>().join("\n\n")
}

/// The bytes of the word that begins at a column.
fn word_at(line: &str, column: usize) -> std::ops::Range<usize> {
    let start = line.char_indices().nth(column).map_or(line.trim_end().len(), |(index, _)| index);
    let rest = &line[start..];
    let len = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => rest[1..].find(quote).map_or(rest.trim_end().len(), |end| end + 2),
        _ => rest.find([' ', '\t', ',', '}', ']', '\r', '\n']).unwrap_or(rest.len()),
    };
    start..start + len
}

/// A place in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pos {
    pub line: u32,
    pub column: u32,
}

impl Pos {
    pub const START: Pos = Pos { line: 1, column: 1 };

    /// Both from 1.
    pub fn new(line: usize, column: usize) -> Self {
        let bounded = |n: usize| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        Self { line: bounded(line), column: bounded(column) }
    }

    /// Right after a text that begins the file.
    pub fn after(text: &str) -> Self {
        let last = text.rsplit('\n').next().unwrap_or_default();
        Self::new(text.matches('\n').count() + 1, last.trim_start_matches('\u{feff}').chars().count() + 1)
    }
}
