//! Entries that stand a level too high or too deep, the slip of whoever indents by hand: found by what they look like,
//! told once, and checked where they belong, so that one wrong indentation is one problem.

use std::collections::HashSet;
use std::rc::Rc;

use super::file::{Entry, Node, Style, Text, Value};
use super::keys::{ALL, Guess, Holds, Key, Keys};
use super::problem::Pos;
use super::reader::{Item, Path, Reader};
use super::value::clip;
use crate::words::Address;

/// What an entry is that stands among names and is none.
#[derive(Clone, Copy)]
enum Kin {
    /// A key of the elements: it stands too high.
    Element,
    /// A key of the mapping around: it stands too deep.
    Parent(&'static Keys),
    /// A key of a section, whose own key was forgotten.
    Section(&'static Key, &'static Keys),
}

impl Reader {
    /// The entries of a mapping with a table of keys; those that belong in a section, but stand beside it or have none,
    /// are put into it.
    pub(super) fn gathered(&mut self, path: &Path<'_>, keys: &Keys, entries: &[Entry]) -> Vec<Entry> {
        let written = |key: &Key| entries.iter().any(|entry| entry.name() == Some(key.name));
        let mut absent: Vec<&Key> =
            keys.keys.iter().filter(|key| !matches!(key.holds, Holds::Value) && !written(key)).collect();
        let mut gathered: Vec<Entry> = Vec::with_capacity(entries.len());
        let entries = self.parted(path, keys, &mut absent, entries);
        let mut rest = entries.iter().peekable();
        while let Some(entry) = rest.next() {
            let known = entry.name().and_then(|name| keys.find(name));
            // A misspelled key is that key, whatever stands behind it; "backend-1" is no misspelled key.
            let is_key = |name: &str| !name.contains(|c: char| c.is_ascii_digit());
            let meant = || entry.name().is_some_and(|name| is_key(name) && matches!(keys.guess(name), Guess::Meant(_)));
            let fitting = absent.iter().position(|key| known.is_none() && fits(key.holds, entry));
            let unsaid = fitting.filter(|_| !meant());
            let (section, mut run) = match (known, unsaid) {
                (Some(section), _) if is_null(&entry.value) => (section, Vec::new()),
                (None, Some(index)) => (absent.remove(index), vec![entry.clone()]),
                _ => {
                    gathered.push(entry.clone());
                    continue;
                }
            };
            let belongs =
                |next: &&Entry| next.name().is_some_and(|name| keys.find(name).is_none()) && fits(section.holds, next);
            while let Some(next) = rest.next_if(belongs) {
                run.push(next.clone());
            }
            let Some(first) = run.first().cloned() else {
                gathered.push(entry.clone());
                continue;
            };
            let (word, name) = (first.name().unwrap_or_default(), section.name);
            let message = match known {
                Some(_) => format!("\"{}\" stands beside \"{name}\", not in it; indent it more", clip(word)),
                None => format!(
                    "\"{}\" belongs under the key \"{name}\"; write `{name}:` above it and indent it more",
                    clip(word)
                ),
            };
            self.report(first.key.at, path.then(word, first.key.at), message);
            let key = if known.is_some() { entry.key.clone() } else { text(first.key.at, name) };
            gathered.push(Entry { key, value: map(first.key.at, run) });
        }
        gathered
    }

    /// The entries, where one mapping of names holds those of the next, whose own key was forgotten.
    fn parted(&mut self, path: &Path<'_>, keys: &Keys, absent: &mut Vec<&Key>, entries: &[Entry]) -> Vec<Entry> {
        let mut parted = Vec::with_capacity(entries.len() + 1);
        for entry in entries {
            let holds = entry.name().and_then(|name| keys.find(name)).map(|key| key.holds);
            let (Some(Holds::Named(own)), Value::Map(inner)) = (holds, &*entry.value.value) else {
                parted.push(entry.clone());
                continue;
            };
            let foreign = |key: &Key, entry: &Entry| match key.holds {
                Holds::Named(other) => looks_like(other, &entry.value) && !looks_like(own, &entry.value),
                Holds::Value | Holds::Section(_) => false,
            };
            let split = |key: &Key| inner.iter().position(|entry| foreign(key, entry)).filter(|index| *index > 0);
            let Some((index, at)) = absent.iter().enumerate().find_map(|(n, key)| Some((n, split(key)?))) else {
                parted.push(entry.clone());
                continue;
            };
            let (key, first) = (absent.remove(index), &inner[at]);
            let word = first.name().unwrap_or_default();
            let message = format!("\"{}\" does not look like {}; write `{}:` above it", clip(word), own.what, key.name);
            self.report(first.key.at, path.then(word, first.key.at), message);
            parted.push(Entry { key: entry.key.clone(), value: map(entry.value.at, inner[..at].to_vec()) });
            parted.push(Entry { key: text(first.key.at, key.name), value: map(first.key.at, inner[at..].to_vec()) });
        }
        parted
    }

    /// `{pool:web}` and `{pool web}` are keys without a value until a colon and a space follow the key.
    pub(super) fn spaced(&mut self, path: &Path<'_>, keys: &Keys, entry: &Entry) -> Entry {
        self.unglued(path, entry, |key, _| keys.find(key).is_some())
    }

    /// The same for `{web-1:10.0.0.7:8080}`.
    pub(super) fn spaced_name(&mut self, path: &Path<'_>, entry: &Entry) -> Entry {
        self.unglued(path, entry, |_, value| value.parse::<Address>().is_ok())
    }

    fn unglued(&mut self, path: &Path<'_>, entry: &Entry, is_key: impl Fn(&str, &str) -> bool) -> Entry {
        let written = entry.name().filter(|_| is_null(&entry.value)).and_then(|name| name.split_once([':', ' ', '=']));
        let Some((key, value)) =
            written.map(|(key, value)| (key, value.trim())).filter(|(key, value)| is_key(key, value))
        else {
            return entry.clone();
        };
        let what = if entry.name().is_some_and(|name| name[key.len()..].starts_with(':')) { "space" } else { "colon" };
        let message = format!("a {what} is missing after \"{}\"; write `{}: {}`", clip(key), clip(key), clip(value));
        self.report(entry.key.at, path.then(key, entry.key.at), message);
        let behind = Pos { column: entry.key.at.column + key.chars().count() as u32 + 1, ..entry.key.at };
        Entry { key: text(entry.key.at, key), value: text(behind, value) }
    }

    /// A backend with `host` and `port` instead of `address`, as if it had that.
    pub(super) fn host_and_port(&mut self, item: Item<'_>) -> Option<Node> {
        let Value::Map(entries) = &*item.node.value else { return None };
        let of = |key: &str| entries.iter().find(|entry| entry.name() == Some(key));
        let host = ["host", "ip", "server", "addr"].into_iter().find_map(of).filter(|_| of("address").is_none())?;
        let (Value::Text(ip), Value::Text(number)) = (&*host.value.value, &*of("port")?.value.value) else {
            return None;
        };
        let ip6 = ip.text.contains(':');
        let address =
            if ip6 { format!("[{}]:{}", ip.text, number.text) } else { format!("{}:{}", ip.text, number.text) };
        let (word, written) = (host.name().unwrap_or_default(), clip(&address));
        let message = format!("unknown key \"{word}\"; IP and port stand together: write `address: \"{written}\"`");
        self.report(host.key.at, item.path.then(word, host.key.at), message);
        let own = entries.iter().filter(|entry| !matches!(entry.name(), Some("port")) && entry.key.at != host.key.at);
        let joined = Entry { key: text(host.key.at, "address"), value: text(host.value.at, &address) };
        Some(map(item.node.at, own.cloned().chain([joined]).collect()))
    }

    /// The entries of a mapping of names, with those that are keys of an element moved into the one above, and those
    /// that are keys of the mapping around left out. An element that lacks its name is called `NAME`.
    pub(super) fn sorted_out(&mut self, path: &Path<'_>, keys: &'static Keys, entries: &[Entry]) -> Vec<Entry> {
        let mut sorted: Vec<Entry> = Vec::with_capacity(entries.len());
        let mut rest = entries.iter().peekable();
        while let Some(entry) = rest.next() {
            let name = entry.name().unwrap_or_default();
            let here = path.then(name, entry.key.at);
            let word = clip(name);
            match kin(entry, keys) {
                None => sorted.push(entry.clone()),
                Some(Kin::Parent(parent)) => {
                    let what = if parent.at.is_empty() { "the top level" } else { parent.what };
                    self.report(entry.key.at, here, format!("\"{word}\" is a key of {what}; indent it less"));
                    self.pass_over(&here);
                    self.stray(path, name);
                }
                Some(Kin::Section(section, table)) => {
                    let same =
                        |next: &&Entry| matches!(kin(next, keys), Some(Kin::Section(_, t)) if std::ptr::eq(t, table));
                    self.pass_over(&here);
                    while rest.next_if(same).is_some() {}
                    let message = format!("\"{word}\" is a key of {}; write `{}:` above it", table.what, section.name);
                    self.report(entry.key.at, here, message);
                }
                Some(Kin::Element) => {
                    let mut run = vec![entry.clone()];
                    while let Some(next) = rest.next_if(|next| matches!(kin(next, keys), Some(Kin::Element))) {
                        run.push(next.clone());
                    }
                    let owner =
                        sorted.last_mut().filter(|owner| matches!(&*owner.value.value, Value::Null | Value::Map(_)));
                    let mend = if let Some(owner) = owner {
                        *owner = with(owner, run);
                        format!("; indent it more, so that it stands in \"{}\"", clip(owner.name().unwrap_or_default()))
                    } else {
                        sorted.push(Entry { key: text(entry.key.at, NAMELESS), value: map(entry.key.at, run) });
                        let example = keys.example.split(':').next().unwrap_or_default();
                        format!(
                            ", whose name is missing; write a name above, such as `{example}:`, and indent what is in it"
                        )
                    };
                    self.report(entry.key.at, here, format!("\"{word}\" is a key of {}{mend}", keys.what));
                }
            }
        }
        sorted
    }
}

/// The entries of two mappings behind the same key, as one: what is in the second is there, though the key is at fault.
pub(super) fn joined(first: &Entry, second: &Entry) -> Option<Entry> {
    let (Value::Map(own), Value::Map(more)) = (&*first.value.value, &*second.value.value) else { return None };
    let names: HashSet<_> = own.iter().map(Entry::name).collect();
    let new = more.iter().filter(|entry| !names.contains(&entry.name()));
    Some(Entry { key: first.key.clone(), value: map(first.value.at, own.iter().chain(new).cloned().collect()) })
}

/// What [`Reader::sorted_out`] calls an element without a name.
pub(super) const NAMELESS: &str = "NAME";

fn kin(entry: &Entry, keys: &'static Keys) -> Option<Kin> {
    let name = entry.name()?;
    let parent = ALL.into_iter().find(|table| table.holds(keys))?;
    // A backend called "address" is a forgotten name.
    let forgotten = name == "address" && !matches!(&*entry.value.value, Value::Map(_));
    if looks_like(keys, &entry.value) && !forgotten {
        return None;
    }
    if keys.find(name).is_some() {
        return Some(Kin::Element);
    }
    if parent.find(name).is_some() {
        return Some(Kin::Parent(parent));
    }
    if matches!(*entry.value.value, Value::Map(_) | Value::Null) {
        return None;
    }
    parent.keys.iter().find_map(|key| match key.holds {
        Holds::Section(table) => table.find(name).map(|_| Kin::Section(key, table)),
        Holds::Value | Holds::Named(_) => None,
    })
}

/// Whether a value may be what a section or a mapping of names holds.
fn fits(holds: Holds, entry: &Entry) -> bool {
    match holds {
        Holds::Value => false,
        Holds::Section(keys) => entry.name().is_some_and(|name| keys.find(name).is_some()),
        Holds::Named(keys) => looks_like(keys, &entry.value),
    }
}

/// Whether a value looks like an element with that table of keys; a backend may be an address alone.
fn looks_like(keys: &Keys, value: &Node) -> bool {
    match &*value.value {
        Value::Map(entries) => entries.iter().any(|entry| entry.name().is_some_and(|name| keys.find(name).is_some())),
        Value::Text(scalar) => keys.find("address").is_some() && scalar.text.parse::<Address>().is_ok(),
        Value::Null | Value::List(_) => false,
    }
}

fn is_null(node: &Node) -> bool {
    matches!(*node.value, Value::Null)
}

fn with(owner: &Entry, more: Vec<Entry>) -> Entry {
    let mut entries = match &*owner.value.value {
        Value::Map(entries) => entries.clone(),
        _ => Vec::new(),
    };
    entries.extend(more);
    Entry { key: owner.key.clone(), value: map(owner.key.at, entries) }
}

fn map(at: Pos, entries: Vec<Entry>) -> Node {
    Node { at, value: Rc::new(Value::Map(entries)) }
}

fn text(at: Pos, text: &str) -> Node {
    Node { at, value: Rc::new(Value::Text(Text { text: text.into(), style: Style::Plain })) }
}
