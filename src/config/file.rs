//! The file as written: a tree of values, each with its position. Refuses what is no text; how a text becomes a tree is
//! left to `tree.rs` and `repair.rs`, what a key means to `check.rs`.

use std::rc::Rc;

use super::mend::Mended;
use super::problem::{Pos, Problem};
use super::reader::Checked;
use super::repair;
use super::value::clip;

/// The longest file that is read, in bytes.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// A value and where it stands. Cheap to clone: an alias shares what it names.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Its first character; for a value left out, its key's.
    pub at: Pos,
    pub value: Rc<Value>,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Text(Text),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A scalar: its text, and whether quotes or a block made it text for certain.
#[derive(Debug)]
pub(super) struct Text {
    pub text: String,
    pub style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    /// Single quotes or a block: backslashes are themselves.
    Raw,
    /// Double quotes: backslashes begin escapes, already read.
    Escaped,
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: Node,
    pub value: Node,
}

impl Entry {
    /// The key as text; `None` where it is a list or a mapping.
    pub fn name(&self) -> Option<&str> {
        match &*self.key.value {
            Value::Text(scalar) => Some(&scalar.text),
            Value::Null => Some(""),
            Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// What was read, and what was wrong with the text itself.
#[derive(Debug, Default)]
pub(super) struct File {
    /// `None`: nothing to check.
    pub root: Option<Node>,
    /// The line from which on the text could not be read. What the tree lacks may stand there.
    pub lost_from: Option<u32>,
    /// What is wrong with the syntax, or with what lbd takes of it.
    pub problems: Vec<(Pos, String)>,
    /// The text that was read: the file's, but for slips that were undone. Places in the tree are places in it.
    pub text: Mended,
}

impl File {
    /// The key path of the value that stands at a place of the file.
    pub fn path_at(&self, at: Pos) -> String {
        let mut path = Vec::new();
        let mut node = self.root.as_ref();
        while let Some(Value::Map(entries)) = node.map(|node| &*node.value) {
            let before = entries.iter().rev().find(|entry| entry.key.at <= at);
            // Undoing the slip may have moved its line to the right.
            let on_line = entries.iter().find(|entry| entry.key.at.line == at.line);
            let Some(entry) = before.filter(|entry| entry.key.at.line == at.line).or(on_line).or(before) else { break };
            path.push(clip(entry.name().unwrap_or_default()));
            if entry.key.at.line == at.line && entry.value.at >= at {
                break;
            }
            node = Some(&entry.value);
        }
        path.join(".")
    }
}

/// Reads a whole file and checks it. Bounded in time and memory whatever the bytes are.
pub(super) fn read(bytes: &[u8], check: impl Fn(&File) -> Checked) -> (File, Vec<Problem>) {
    let text = match plain_text(bytes) {
        Ok(text) => text,
        Err((at, message)) => return (File::default(), vec![Problem::new(at, "", message)]),
    };
    let (file, mut problems) = repair::read(text, &check);
    if problems.is_empty() && file.root.as_ref().is_none_or(|root| matches!(*root.value, Value::Null)) {
        let message = "the file is empty; it needs at least the keys \"listeners\" and \"pools\"";
        problems.push(Problem::new(Pos::START, "", message));
    }
    (file, problems)
}

/// Text that a YAML parser may be given, without its byte order mark.
fn plain_text(bytes: &[u8]) -> Result<&str, (Pos, String)> {
    if bytes.len() > MAX_BYTES {
        return Err((Pos::START, format!("the file has {} bytes; at most 1 MiB is read", bytes.len())));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            return Err((Pos::after(&before), "the file is not UTF-8 here; save it as UTF-8".into()));
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let stray = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    if let Some((index, c)) = text.char_indices().find(|&(_, c)| stray(c)) {
        let message = format!("the file holds the control character {c:?}; remove it");
        return Err((Pos::after(&text[..index]), message));
    }
    let is_marker = |line: &str| {
        line.get(..7).is_some_and(|marks| matches!(marks, "<<<<<<<" | "=======" | ">>>>>>>"))
            && matches!(line.chars().nth(7), None | Some(' '))
    };
    if let Some(index) = text.lines().position(is_marker) {
        let message = "a merge conflict marker; resolve the conflict, and remove its marker lines";
        return Err((Pos::new(index + 1, 1), message.into()));
    }
    Ok(text)
}

/// Where and why the reading stopped.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub at: Pos,
    pub words: String,
    /// A bound of lbd, not a slip in the syntax.
    pub ours: bool,
    /// The last value that was read; a fault behind it may have begun there.
    pub last: Pos,
    /// The innermost list or mapping whose end had not come.
    pub open: Option<Pos>,
}
