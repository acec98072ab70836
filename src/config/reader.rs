//! Walks the tree by the tables of keys and gathers every problem on the way: wrong shapes, unknown, repeated, missing
//! and misplaced keys. Whoever calls it decides what a value means. A fault is reported once and causes no other.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use super::file::{Entry, Node, Value};
use super::keys::{Guess, Keys};
use super::problem::{Pos, Problem};
use super::stray::joined;
use super::value::{clip, found};
use crate::words::NameError;

/// Where in the file's keys a value stands.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    key: &'a str,
    /// Where the key stands: what lacks a key has no better place to point at.
    pub key_at: Pos,
}

impl<'a> Path<'a> {
    /// The whole file.
    pub fn root(at: Pos) -> Self {
        Self { parent: None, key: "", key_at: at }
    }

    /// One step down.
    pub fn then(&'a self, key: &'a str, key_at: Pos) -> Path<'a> {
        Path { parent: Some(self), key, key_at }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent.filter(|parent| !parent.key.is_empty()) {
            write!(f, "{parent}.")?;
        }
        match self.parent {
            Some(_) if self.key.is_empty() => f.write_str("\"\""),
            _ => f.write_str(&clip(self.key)),
        }
    }
}

/// A value on its path.
#[derive(Clone, Copy)]
pub(super) struct Item<'a> {
    pub node: &'a Node,
    pub path: &'a Path<'a>,
}

/// A mapping whose keys are those of a table, each once.
pub(super) struct Fields<'a> {
    path: &'a Path<'a>,
    entries: Vec<(&'static str, Entry)>,
    /// Whether each key could be read: else one that seems missing may be there.
    readable: bool,
}

impl Fields<'_> {
    /// Whether the key was written, rightly or not.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| *name == key)
    }
}

/// Gathers the problems of a file.
#[derive(Default)]
pub(super) struct Reader {
    problems: Vec<Problem>,
    /// Missing keys: the mapping, the key, the index of the problem.
    missing: Vec<(String, &'static str, usize)>,
    /// Keys that stand in a wrong mapping: that mapping, the key.
    astray: Vec<(String, String)>,
    /// Keys whose values nobody looked at.
    unseen: Vec<Pos>,
    /// The line from which on the file could not be read: nothing is missing for certain.
    lost_from: Option<u32>,
}

/// What the check of a tree brought to light.
pub(super) struct Checked {
    pub problems: Vec<Problem>,
    /// Keys whose values nobody looked at.
    pub unseen: Vec<Pos>,
}

/// More problems than anybody reads; bounds the memory that a file of garbage takes.
const MAX_PROBLEMS: usize = 1000;

impl Reader {
    pub fn new(lost_from: Option<u32>) -> Self {
        Self { lost_from, ..Self::default() }
    }

    /// Whether the whole file could be read.
    pub fn is_whole(&self) -> bool {
        self.lost_from.is_none()
    }

    /// Notes a problem.
    pub fn report(&mut self, at: Pos, path: impl fmt::Display, message: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS && self.lost_from.is_none_or(|line| at.line < line) {
            self.problems.push(Problem::new(at, path.to_string(), message));
        }
    }

    /// Notes that a mapping lacks a key.
    fn report_missing(&mut self, path: &Path<'_>, key: &'static str, example: &str) {
        if self.is_whole() && self.problems.len() < MAX_PROBLEMS {
            self.missing.push((path.to_string(), key, self.problems.len()));
            self.report(path.key_at, path.then(key, path.key_at), format!("the key is missing; write `{example}`"));
        }
    }

    /// Every problem, in the order of the file.
    pub fn finish(mut self) -> Checked {
        self.forgive_missing();
        self.problems.retain(|problem| !problem.message.is_empty());
        self.problems.sort_by_key(Problem::at);
        // What an alias names is seen once for each use.
        self.problems.dedup_by(|b, a| (a.at(), &a.message) == (b.at(), &b.message));
        Checked { problems: self.problems, unseen: self.unseen }
    }

    /// Notes that nobody looks at the value of a key.
    pub fn pass_over(&mut self, path: &Path<'_>) {
        if self.unseen.len() < MAX_PROBLEMS {
            self.unseen.push(path.key_at);
        }
    }

    /// A key that strayed to a mapping above or below is not missing as well: that is one fault.
    fn forgive_missing(&mut self) {
        for (place, key) in std::mem::take(&mut self.astray) {
            let related = |mapping: &str| under(mapping, &place) || under(&place, mapping);
            let of_the_same = self.missing.iter().rposition(|(mapping, k, _)| *k == key && related(mapping));
            if let Some(index) = of_the_same {
                let (_, _, problem) = self.missing.remove(index);
                self.problems[problem].message.clear();
            }
        }
    }

    /// The mapping that a table describes.
    pub fn fields<'a>(&mut self, item: Item<'a>, keys: &'static Keys) -> Option<Fields<'a>> {
        let Value::Map(entries) = &*item.node.value else {
            let keys = list(keys.keys.iter().map(|key| key.name));
            if let Value::Null = &*item.node.value {
                self.report(
                    item.node.at,
                    item.path,
                    format!("nothing stands in it; write one of its keys ({keys}) or remove it"),
                );
                return None;
            }
            self.report(
                item.node.at,
                item.path,
                format!("expected a mapping with the keys {keys}, found {}", found(item.node)),
            );
            return None;
        };
        let mut fields = Fields { path: item.path, entries: Vec::new(), readable: true };
        let mut meant = Vec::new();
        let mut repeats = 0;
        let mut seen = HashMap::new();
        for entry in self.gathered(item.path, keys, entries) {
            let entry = self.spaced(item.path, keys, &entry);
            let Some(name) = self.key_of(&entry, item.path) else {
                fields.readable = false;
                continue;
            };
            let path = item.path.then(name, entry.key.at);
            let first = *seen.entry(name.to_owned()).or_insert(entry.key.at);
            if first != entry.key.at {
                self.report_repeated(&path, first);
                let own = fields.entries.iter_mut().find(|(key, _)| *key == name).map(|(_, own)| own);
                // Joining takes time by the square: a few are slips, many are garbage.
                repeats += 1;
                if let Some(own) = own.filter(|_| repeats < 10)
                    && let Some(joined) = joined(own, &entry)
                {
                    *own = joined;
                }
            } else if let Some(key) = keys.find(name) {
                fields.entries.push((key.name, entry));
            } else if let Some(key) = self.unknown(&path, keys) {
                meant.push((key, entry));
            }
        }
        // What a misspelled key was meant to be is not missing, and its value is checked too.
        for (key, entry) in meant {
            if !fields.has(key) {
                fields.entries.push((key, entry));
            }
        }
        Some(fields)
    }

    fn key_of<'a>(&mut self, entry: &'a Entry, path: &Path<'_>) -> Option<&'a str> {
        let name = entry.name();
        if name.is_none() {
            let message =
                "a key must be a text, found {}; a template must be rendered first, a text with braces quoted";
            self.report(entry.key.at, path, message.replace("{}", &found(&entry.key)));
        }
        name
    }

    fn report_repeated(&mut self, path: &Path<'_>, first: Pos) {
        let message =
            format!("\"{}\" is written twice, first on line {}; remove one or rename it", clip(path.key), first.line);
        self.report(path.key_at, path, message);
    }

    /// Reports a key that the mapping does not have, and returns the one it was meant to be.
    fn unknown(&mut self, path: &Path<'_>, keys: &'static Keys) -> Option<&'static str> {
        if self.problems.len() >= MAX_PROBLEMS {
            return None;
        }
        let word = clip(path.key);
        let mut meant = None;
        let message = match keys.guess(path.key) {
            Guess::Later => format!("\"{word}\" is not supported by this version of lbd yet; remove it"),
            Guess::Meant(key) => {
                meant = Some(key);
                format!("unknown key \"{word}\"; did you mean \"{key}\"?")
            }
            Guess::Advice(advice) => format!("\"{word}\" is no key of {}; {advice}", keys.what),
            Guess::Elsewhere => {
                if let Some(parent) = path.parent {
                    self.stray(parent, path.key);
                }
                format!("\"{word}\" does not belong in {}; it is {}", keys.what, homes(keys, path.key))
            }
            Guess::Unknown => {
                let known = list(keys.keys.iter().map(|key| key.name));
                format!("unknown key \"{word}\"; {} has the keys {known}", keys.what)
            }
        };
        self.report(path.key_at, path, message);
        if meant.is_none() {
            self.pass_over(path);
        }
        meant
    }

    /// Notes that a key stands in a mapping where it does not belong.
    pub fn stray(&mut self, mapping: &Path<'_>, key: &str) {
        if self.astray.len() < MAX_PROBLEMS {
            self.astray.push((mapping.to_string(), key.into()));
        }
    }

    /// The value of a key, if it is there and right.
    pub fn optional<T>(&mut self, fields: &Fields<'_>, key: &'static str, read: impl Read<T>) -> Option<T> {
        let (_, entry) = fields.entries.iter().find(|(name, _)| *name == key)?;
        let path = fields.path.then(entry.name().unwrap_or(key), entry.key.at);
        read.read(self, Item { node: &entry.value, path: &path })
    }

    /// The value of a key that must be there, if it is right.
    pub fn required<T>(
        &mut self,
        fields: &Fields<'_>,
        key: &'static str,
        example: &str,
        read: impl Read<T>,
    ) -> Option<T> {
        if fields.readable && !fields.has(key) {
            self.report_missing(fields.path, key, example);
        }
        self.optional(fields, key, read)
    }

    /// The elements of a mapping whose keys are names that the operator chose; `None` where it is none or has none.
    pub fn named(&mut self, item: Item<'_>, keys: &'static Keys) -> Option<Vec<Element>> {
        let entries = match &*item.node.value {
            Value::Map(entries) if !entries.is_empty() => entries,
            Value::Map(_) | Value::Null if !self.is_whole() => return None,
            Value::Map(_) | Value::Null => {
                let message = format!("there is none; write at least one, such as `{}`", keys.example);
                self.report(item.node.at, item.path, message);
                return None;
            }
            _ => {
                let found = found(item.node);
                let message = format!("expected a mapping of names, such as `{}`, found {found}", keys.example);
                self.report(item.node.at, item.path, message);
                return None;
            }
        };
        let mut seen = HashMap::new();
        let mut elements = Vec::new();
        for entry in &self.sorted_out(item.path, keys, entries) {
            let entry = &self.spaced_name(item.path, entry);
            let Some(name) = self.key_of(entry, item.path) else { continue };
            let first = *seen.entry(name.to_owned()).or_insert(entry.key.at);
            let repeated = first != entry.key.at;
            if repeated {
                self.report_repeated(&item.path.then(name, entry.key.at), first);
            }
            elements.push(Element { name: name.into(), at: entry.key.at, value: entry.value.clone(), repeated });
        }
        Some(elements)
    }

    /// A name that the operator chose, if it is one.
    pub fn name<T: FromStr<Err = NameError>>(&mut self, path: &Path<'_>) -> Option<T> {
        path.key.parse().map_err(|error: NameError| self.report(path.key_at, path, error.to_string())).ok()
    }

    /// A value with its place.
    pub fn placed<T>(&mut self, item: Item<'_>, read: impl FnOnce(&Node) -> Result<T, String>) -> Option<Placed<T>> {
        Plain(read).read(self, item).map(|value| Placed { value, at: item.node.at, path: item.path.to_string() })
    }
}

/// A value of the file with its place, for what is checked later.
pub(super) struct Placed<T> {
    pub value: T,
    pub at: Pos,
    pub path: String,
}

/// A named value.
pub(super) struct Element {
    pub name: String,
    /// Where the name stands.
    pub at: Pos,
    pub value: Node,
    /// The name is another one's: what they share is no fault of its own.
    pub repeated: bool,
}

/// How the value of a key is read: a function from the text, or from the place in the tree.
pub(super) trait Read<T> {
    fn read(self, reader: &mut Reader, item: Item<'_>) -> Option<T>;
}

/// Reads a value that needs no more than itself.
pub(super) struct Plain<F>(pub F);

impl<T, F: FnOnce(&Node) -> Result<T, String>> Read<T> for Plain<F> {
    fn read(self, reader: &mut Reader, item: Item<'_>) -> Option<T> {
        (self.0)(item.node).map_err(|message| reader.report(item.node.at, item.path, message)).ok()
    }
}

impl<T, F: FnOnce(&mut Reader, Item<'_>) -> Option<T>> Read<T> for F {
    fn read(self, reader: &mut Reader, item: Item<'_>) -> Option<T> {
        self(reader, item)
    }
}

fn homes(from: &Keys, word: &str) -> String {
    let homes = from.homes(word);
    let place = |keys: &&Keys| if keys.at.is_empty() { word.to_owned() } else { format!("{}.{word}", keys.at) };
    let what = match &homes[..] {
        [one] if one.at.is_empty() => return "a key of the top level: indent it less".into(),
        [one] => format!("a key of {}", one.what),
        _ => "a key of other mappings".into(),
    };
    format!("{what}: {}", homes.iter().map(place).collect::<Vec<_>>().join(", "))
}

/// Names as a sentence lists them.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn under(mapping: &str, place: &str) -> bool {
    place.is_empty() || mapping == place || mapping.strip_prefix(place).is_some_and(|rest| rest.starts_with('.'))
}
