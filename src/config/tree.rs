//! Text → tree: the parser's events put together, without recursion. The one doorway of the YAML parser. Knows YAML's
//! traps (aliases, merge keys, tags, two documents, bombs), and stops at the first fault of syntax.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

use super::file::{Entry, Fault, File, Node, Style, Text, Value};
use super::problem::Pos;
use super::syntax;
use crate::words::{Address, PoolName};

/// The most values of a file, those behind aliases counted at each use: at most 100 MB, for 60,000 backends.
const MAX_VALUES: usize = 128_000;
/// The deepest nesting; a right file has six levels.
const MAX_DEPTH: usize = 32;

/// The tree of a text, as far as it could be read, and why no farther.
pub(super) fn build(text: &str) -> (File, Option<Fault>) {
    let mut tree = Tree::default();
    let mut parser = Parser::new_from_str(text);
    let fault = tree.feed(&mut parser).err();
    while let Some(open) = tree.open.pop() {
        tree.close(open);
    }
    (tree.file, fault)
}

#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    values: usize,
    last: Option<Pos>,
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
    fn feed(&mut self, parser: &mut Parser<'_, StrInput<'_>>) -> Result<(), Fault> {
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let at = Pos::new(error.marker().line(), error.marker().col() + 1);
                self.fault(at, error.info().into(), false)
            })?;
            let at = Pos::new(span.start.line(), span.start.col() + 1);
            match &event {
                Event::DocumentStart(_) if documents == 1 => {
                    let message = "a second document begins here; put everything into one, without \"---\"";
                    self.file.problems.push((at, message.into()));
                    self.file.lost_from = Some(at.line);
                    return Ok(());
                }
                Event::DocumentStart(_) => documents += 1,
                Event::Scalar(text, style, ..) => {
                    self.last = Some(at);
                    if self.hides_a_key(text, *style, at, span.end.line()) {
                        let below = Pos::new((at.line as usize + 1).min(span.end.line()), 1);
                        return Err(self.fault(below, syntax::HIDDEN_KEY.into(), false));
                    }
                }
                _ => {}
            }
            self.take(event, at).map_err(|words| self.fault(at, words, true))?;
        }
        Ok(())
    }

    /// `pool:web` or `pool web` on lines of their own are texts for YAML, and slips for whoever reads a configuration,
    /// which has no text over several lines.
    fn hides_a_key(&self, text: &str, style: ScalarStyle, at: Pos, last_line: usize) -> bool {
        match style {
            ScalarStyle::Plain => {}
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                return last_line > at.line as usize && text.contains(": ");
            }
            ScalarStyle::Literal | ScalarStyle::Folded => return false,
        }
        let own_line = self.pending_key().is_some_and(|key| key.line < at.line);
        let keyed =
            || text.split_once(':').is_some_and(|(key, rest)| !rest.is_empty() && key.parse::<PoolName>().is_ok());
        last_line > at.line as usize || own_line && keyed() && text.parse::<Address>().is_err()
    }

    fn fault(&self, at: Pos, words: String, ours: bool) -> Fault {
        let open = self.open.last().map(|open| open.at);
        Fault { at, words, ours, last: self.last.unwrap_or(Pos::START), open }
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
