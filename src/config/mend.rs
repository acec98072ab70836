//! Edits that turn a text that is no YAML into what it was meant to be, tried out on a copy, and the way back from a
//! place in the copy to the place in the file. Only so can a file with a missing colon on line 4 and an unknown key on
//! line 20 be reported in one pass.

use std::collections::BTreeMap;

use super::problem::Pos;

/// A likely slip, with the edits that undo it; none where nobody can tell.
#[derive(Debug, Clone)]
pub(super) struct Slip {
    pub at: Pos,
    pub message: String,
    pub edits: Vec<Edit>,
    /// Whether lines move to another depth, where their faults may go unseen.
    pub moves: bool,
    /// How unlikely it is, among candidates that explain as much.
    pub weight: usize,
}

impl Slip {
    pub fn new(at: Pos, message: impl Into<String>, edits: Vec<Edit>) -> Self {
        Self { at, message: message.into(), edits, moves: false, weight: 4 }
    }
}

/// Characters taken out of a line and others put in their place. Never makes or removes a line.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    /// From 1.
    line: u32,
    /// From 0, in characters.
    column: usize,
    removed: usize,
    inserted: String,
}

impl Edit {
    pub fn insert(line: u32, column: usize, text: &str) -> Self {
        Self::replace(line, column, 0, text)
    }

    pub fn replace(line: u32, column: usize, removed: usize, text: &str) -> Self {
        Self { line, column, removed, inserted: text.into() }
    }

    /// So many spaces instead of so many characters at the beginning.
    pub fn indentation(line: u32, from: usize, to: usize) -> Self {
        Self::replace(line, 0, from, &" ".repeat(to))
    }
}

/// A text with edits, and the way back.
#[derive(Debug, Clone, Default)]
pub(super) struct Mended {
    pub text: String,
    /// By line, each in the order made.
    edits: BTreeMap<u32, Vec<Edit>>,
}

impl Mended {
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), edits: BTreeMap::new() }
    }

    /// The text with more edits, each made on what the one before left.
    pub fn with(&self, edits: &[Edit]) -> Self {
        let mut lines: Vec<String> = self.text.split_inclusive('\n').map(str::to_owned).collect();
        let mut all = self.edits.clone();
        for edit in edits {
            all.entry(edit.line).or_default().push(edit.clone());
            let Some(line) = lines.get_mut(edit.line as usize - 1) else { continue };
            let chars: Vec<char> = line.chars().collect();
            let from = edit.column.min(chars.len());
            let to = (from + edit.removed).min(chars.len());
            *line =
                chars[..from].iter().copied().chain(edit.inserted.chars()).chain(chars[to..].iter().copied()).collect();
        }
        Self { text: lines.concat(), edits: all }
    }

    /// Where in the file as written a place of the mended text is.
    pub fn origin(&self, at: Pos) -> Pos {
        let mut column = at.column as usize - 1;
        for edit in self.edits.get(&at.line).into_iter().flatten().rev() {
            let inserted = edit.inserted.chars().count();
            if column >= edit.column + inserted {
                column = column - inserted + edit.removed;
            } else if column > edit.column {
                column = edit.column;
            }
        }
        Pos::new(at.line as usize, column + 1)
    }
}
