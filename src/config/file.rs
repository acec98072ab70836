//! The file as written: text → a tree of values, each with its position. The one doorway of the YAML parser.
//! Knows YAML and its traps (tabs, aliases, merge keys, two documents, bombs), and nothing of what a key means.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

use super::problem::Pos;

/// The longest file that is read, in bytes.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
/// The most values of a file, those behind aliases counted at each use: about 30 MB.
const MAX_VALUES: usize = 250_000;
/// The deepest nesting; a right file has six levels.
const MAX_DEPTH: usize = 32;

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
    /// The text could not be read to its end: what is missing from the tree may stand in the file.
    pub truncated: bool,
    pub problems: Vec<(Pos, String)>,
}

/// Reads a whole file. Bounded in time and memory whatever the bytes are.
pub(super) fn read(bytes: &[u8]) -> File {
    let text = match plain_text(bytes) {
        Ok(text) => text,
        Err(problem) => return File { problems: vec![problem], truncated: true, ..File::default() },
    };
    let (mut file, fault) = Tree::default().build(text);
    if let Some(fault) = fault {
        file.problems.push((fault.at, fault.words));
        file.truncated = true;
    } else if file.problems.is_empty() && file.root.as_ref().is_none_or(|root| matches!(*root.value, Value::Null)) {
        let message = "the file is empty; it needs at least the keys \"listeners\" and \"pools\"";
        file.problems.push((Pos::START, message.into()));
    }
    file
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
    Ok(text)
}

/// Why the parser stopped, in its own words and at its own place.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub at: Pos,
    pub words: String,
}

/// Builds the tree from the parser's events, without recursion.
#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
    file: File,
}

/// A list or mapping whose end has not been seen.
struct Open {
    at: Pos,
    anchor: usize,
    values_before: usize,
    holds: Holds,
}

enum Holds {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<Node>),
}

impl Tree {
    fn build(mut self, text: &str) -> (File, Option<Fault>) {
        let mut parser = Parser::new_from_str(text);
        let fault = self.feed(&mut parser).err();
        while let Some(open) = self.open.pop() {
            self.close(open);
        }
        (self.file, fault)
    }

    fn feed(&mut self, parser: &mut Parser<'_, StrInput<'_>>) -> Result<(), Fault> {
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| Fault {
                at: Pos::new(error.marker().line(), error.marker().col() + 1),
                words: error.info().into(),
            })?;
            let at = Pos::new(span.start.line(), span.start.col() + 1);
            if let Event::DocumentStart(_) = event {
                documents += 1;
                if documents == 2 {
                    let message = "a second document begins here; put everything into one, without \"---\"";
                    self.file.problems.push((at, message.into()));
                    return Ok(());
                }
            }
            self.take(event, at).map_err(|words| Fault { at, words })?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'_>, at: Pos) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(at, tag.as_deref());
                let value = match style {
                    ScalarStyle::Plain if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") => {
                        let left_out = text.is_empty().then(|| self.pending_key()).flatten();
                        return self.add(Node { at: left_out.unwrap_or(at), value: Rc::new(Value::Null) }, anchor, 1);
                    }
                    ScalarStyle::Plain => Text { text: text.into_owned(), style: Style::Plain },
                    ScalarStyle::DoubleQuoted => Text { text: text.into_owned(), style: Style::Escaped },
                    _ => Text { text: text.into_owned(), style: Style::Raw },
                };
                self.add(Node { at, value: Rc::new(Value::Text(value)) }, anchor, 1)
            }
            Event::SequenceStart(anchor, tag) => self.start(at, anchor, tag.as_deref(), Holds::List(Vec::new())),
            Event::MappingStart(anchor, tag) => self.start(at, anchor, tag.as_deref(), Holds::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let (anchor, before) = (open.anchor, open.values_before);
                    let node = self.close(open);
                    self.remember(anchor, node, self.values - before);
                }
                Ok(())
            }
            Event::Alias(id) => match self.anchors.get(&id) {
                Some((node, size)) => {
                    let (value, size) = (Rc::clone(&node.value), *size);
                    self.add(Node { at, value }, 0, size)
                }
                None => Err("an alias stands inside the value it names; write the value out".into()),
            },
            _ => Ok(()),
        }
    }

    fn start(&mut self, at: Pos, anchor: usize, tag: Option<&Tag>, holds: Holds) -> Result<(), String> {
        self.refuse_tag(at, tag);
        self.count(1)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("values are nested more than {MAX_DEPTH} deep here; a configuration has 6 levels"));
        }
        self.open.push(Open { at, anchor, values_before: self.values - 1, holds });
        Ok(())
    }

    /// Adds a finished scalar or alias, which counts as `size` values.
    fn add(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), String> {
        self.count(size)?;
        self.place(node.clone());
        self.remember(anchor, node, size);
        Ok(())
    }

    fn count(&mut self, more: usize) -> Result<(), String> {
        self.values = self.values.saturating_add(more);
        if self.values > MAX_VALUES {
            return Err(format!(
                "the file holds more than {MAX_VALUES} values, aliases counted at each use; shorten it"
            ));
        }
        Ok(())
    }

    fn remember(&mut self, anchor: usize, node: Node, size: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, (node, size));
        }
    }

    fn place(&mut self, node: Node) {
        match self.open.last_mut().map(|open| &mut open.holds) {
            None => self.file.root = Some(node),
            Some(Holds::List(items)) => items.push(node),
            Some(Holds::Map(entries, key)) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push(Entry { key, value: node }),
            },
        }
    }

    fn close(&mut self, open: Open) -> Node {
        let value = match open.holds {
            Holds::List(items) => Value::List(items),
            Holds::Map(entries, _) => Value::Map(self.merged(entries)),
        };
        let node = Node { at: open.at, value: Rc::new(value) };
        self.place(node.clone());
        node
    }

    fn pending_key(&self) -> Option<Pos> {
        match self.open.last().map(|open| &open.holds) {
            Some(Holds::Map(_, Some(key))) => Some(key.at),
            _ => None,
        }
    }

    fn refuse_tag(&mut self, at: Pos, tag: Option<&Tag>) {
        if let Some(tag) = tag {
            self.file.problems.push((at, format!("the tag {tag} is not used here; remove it")));
        }
    }

    /// Puts the entries that `<<` names after the mapping's own, which win.
    fn merged(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let is_merge = |entry: &Entry| matches!(&*entry.key.value, Value::Text(Text { text, style: Style::Plain }) if text == "<<");
        let (merges, mut entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_merge);
        for merge in merges {
            let sources = match &*merge.value.value {
                Value::List(items) => items.clone(),
                _ => vec![merge.value.clone()],
            };
            for source in sources {
                let Value::Map(more) = &*source.value else {
                    let message = "the merge key \"<<\" takes a mapping, such as *defaults; write the keys out instead";
                    self.file.problems.push((merge.key.at, message.into()));
                    continue;
                };
                self.values += more.len();
                if self.values <= MAX_VALUES {
                    let own: HashSet<String> = entries.iter().filter_map(|e| e.name().map(str::to_owned)).collect();
                    entries.extend(more.iter().filter(|e| e.name().is_none_or(|name| !own.contains(name))).cloned());
                }
            }
        }
        entries
    }
}
