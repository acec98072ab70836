//! What a valid file says and is hardly meant so: nothing is refused for it. And where in the text a key stands, for warnings that
//! are found in a checked configuration, here or by those who look at the machine.

use std::collections::HashSet;

use super::check::check;
use super::file::{self, Node, Value};
use super::model::{Config, Listener, Pool};
use super::problem::{Pos, Problem};
use super::value::spell;
use crate::words::{Address, Algorithm, Weight};

/// MySQL's port.
const MYSQL: u16 = 3306;

/// Something to look at, at a key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The keys that lead to it, and the numbers of elements of lists.
    pub path: Vec<String>,
    /// What is so, and how to mend it.
    pub message: String,
}

impl Warning {
    /// At these keys.
    pub fn new(path: &[&str], message: impl Into<String>) -> Self {
        Self { path: path.iter().map(|&key| key.to_owned()).collect(), message: message.into() }
    }

    /// At an address of a listener.
    pub fn at_bind(name: &str, listener: &Listener, address: &Address, message: impl Into<String>) -> Self {
        let mut it = Self::new(&["listeners", name, "bind"], message);
        if listener.bind.len() > 1 {
            it.path.extend(listener.bind.iter().position(|bind| bind == address).map(|index| index.to_string()));
        }
        it
    }
}

/// Warnings as problems: with their places in the text that the configuration was read from, in its order.
pub fn placed(warnings: Vec<Warning>, text: &[u8]) -> Vec<Problem> {
    if warnings.is_empty() {
        return Vec::new();
    }
    let (file, _) = file::read(text, |file| check(file).1);
    let at = |path: &[String]| file.root.as_ref().map_or(Pos::START, |root| place(root, path));
    let mut problems: Vec<Problem> =
        warnings.into_iter().map(|it| Problem::new(at(&it.path), it.path.join("."), it.message)).collect();
    problems.sort_by_key(Problem::at);
    problems
}

/// Where a value stands; a mapping or list by its key. What came by a merge key stands where its mapping does.
fn place(root: &Node, path: &[String]) -> Pos {
    let (mut node, mut at) = (root, root.at);
    for key in path {
        let next = match &*node.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.name() == Some(key)).map(|entry| {
                let is_leaf = matches!(*entry.value.value, Value::Text(_));
                (&entry.value, if is_leaf { entry.value.at } else { entry.key.at })
            }),
            Value::List(nodes) => {
                key.parse().ok().and_then(|index: usize| nodes.get(index)).map(|node| (node, node.at))
            }
            _ => None,
        };
        let Some(found) = next else { break };
        (node, at) = found;
    }
    at
}

impl Config {
    /// What is hardly meant so, on any machine.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let used: HashSet<_> = self.listeners.values().map(|listener| &listener.pool).collect();
        for (name, pool) in &self.pools {
            if !used.contains(name) {
                let message = "no listener uses this pool; name it in one, or remove it";
                warnings.push(Warning::new(&["pools", name.as_str()], message));
            }
            of_pool(name.as_str(), pool, &mut warnings);
        }
        for (name, listener) in &self.listeners {
            of_listener(name.as_str(), listener, &mut warnings);
        }
        if self.control.group.is_some() && self.control.mode & 0o070 == 0 {
            let message =
                format!("means nothing with the mode {:04o}, which gives the group no rights", self.control.mode);
            warnings.push(Warning::new(&["control", "group"], message));
        }
        warnings
    }
}

fn of_pool(name: &str, pool: &Pool, warnings: &mut Vec<Warning>) {
    let of_backend =
        |backend: &str, key, message: String| Warning::new(&["pools", name, "backends", backend, key], message);
    let everyone_is_backup = pool.backends.iter().all(|backend| backend.backup);
    if everyone_is_backup {
        let message = "every backend is a backup, so that none of them is one; leave `backup` out";
        warnings.push(Warning::new(&["pools", name, "backends"], message));
    }
    for backend in pool.backends.iter().filter(|_| pool.balance == Algorithm::First) {
        if backend.weight > Weight::default() {
            let message = "means nothing with `balance: first`, which takes them in the order of the file".to_owned();
            warnings.push(of_backend(backend.name.as_str(), "weight", message));
        }
    }
    let Some(check) = &pool.health_check else { return };
    let unix = pool.backends.iter().find(|backend| matches!(backend.address, Address::Unix(_)));
    if let (Some(port), Some(backend)) = (check.port, unix) {
        let message =
            format!("{port} means nothing for {name}/{}, which is a Unix socket and is probed there", backend.name);
        warnings.push(Warning::new(&["pools", name, "health_check", "port"], message));
    }
    if check.timeout > check.interval {
        let message = format!(
            "{} is longer than the interval of {}: a silent backend is probed less often than that; write at most the interval",
            spell(check.timeout),
            spell(check.interval)
        );
        warnings.push(Warning::new(&["pools", name, "health_check", "timeout"], message));
    }
    let probed = |address: &Address| match address {
        Address::Ip(ip) => Some(check.port.unwrap_or(ip.port())),
        Address::Unix(_) => None,
    };
    let is_bare = check.send.is_none() && check.expect.is_none();
    if is_bare && pool.backends.iter().any(|backend| probed(&backend.address) == Some(MYSQL)) {
        let message = "MySQL takes a check that only connects for a failed client, and after max_connect_errors of them refuses every \
                       connection from this machine; check another port (`port`), or set host_cache_size=0 in MySQL";
        warnings.push(Warning::new(&["pools", name, "health_check"], message));
    }
}

fn of_listener(name: &str, listener: &Listener, warnings: &mut Vec<Warning>) {
    let Some(from) = &listener.accept_proxy else { return };
    let has_unix = listener.bind.iter().any(|bind| matches!(bind, Address::Unix(_)));
    let has_ip = listener.bind.iter().any(|bind| matches!(bind, Address::Ip(_)));
    let message = match (from.unix && !has_unix, !from.networks.is_empty() && !has_ip) {
        (true, _) => "\"unix:\" means nothing here: the listener has no Unix socket",
        (_, true) => {
            "networks mean nothing here: the listener has Unix sockets only; write \"unix:\" for their clients"
        }
        _ => return,
    };
    warnings.push(Warning::new(&["listeners", name, "accept_proxy", "from"], message));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where in the text a problem is shown.
    fn shown<'a>(text: &'a str, problem: &Problem) -> &'a str {
        &text.lines().nth(problem.line as usize - 1).unwrap()[problem.column as usize - 1..]
    }

    #[test]
    fn what_means_nothing_or_harms_is_told_where_it_stands() {
        let file = |listener: &str, pool: &str, more: &str| {
            format!(
                "listeners:\n  web: {{ bind: 127.0.0.1:80, pool: web{listener} }}\npools:\n  web: {{ {pool} }}\n{more}"
            )
        };
        let plain = "backends: { a: 10.0.0.1:80 }";
        let backup = "backends: { a: { address: 10.0.0.1:80, backup: true } }";
        let heavy = "balance: first, backends: { a: { address: 10.0.0.1:80, weight: 2 } }";
        let unix = "backends: { a: unix:/a, b: 10.0.0.1:80 }, health_check: { port: 1 }";
        let slow = "backends: { a: 10.0.0.1:80 }, health_check: { timeout: 3s }";
        let accepts = ", accept_proxy: { from: [ 10.0.0.0/8, 'unix:' ] }";
        for (listener, pool, more, told) in [
            ("", plain, "  spare: { backends: { a: 10.0.0.1:80 } }\n", Some(("pools.spare: no listener", "spare:"))),
            ("", backup, "", Some(("pools.web.backends: every", "backends:"))),
            ("", heavy, "", Some(("pools.web.backends.a.weight: means nothing", "2 }"))),
            (
                "",
                "backends: { a: 10.0.0.1:3306 }, health_check: {}",
                "",
                Some(("pools.web.health_check: MySQL", "health_")),
            ),
            (
                "",
                "backends: { a: 10.0.0.1:80 }, health_check: { port: 3306 }",
                "",
                Some(("pools.web.health_check: M", "health_")),
            ),
            ("", "backends: { a: 10.0.0.1:3306 }, health_check: { port: 9200 }", "", None),
            ("", "backends: { a: 10.0.0.1:3306 }, health_check: { expect: J }", "", None),
            ("", unix, "", Some(("pools.web.health_check.port: 1 means nothing for web/a", "1 }"))),
            ("", slow, "", Some(("pools.web.health_check.timeout: 3s is longer than the interval of 2s", "3s }"))),
            (accepts, plain, "", Some(("listeners.web.accept_proxy.from: \"unix:\"", "from:"))),
            ("", plain, "control: { mode: '0600', group: x }\n", Some(("control.group: means nothing", "x }"))),
            ("", plain, "control: { mode: '0660', group: x }\n", None),
            ("", plain, "", None),
        ] {
            let text = file(listener, pool, more);
            let config = Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
            let warnings = placed(config.warnings(), text.as_bytes());
            assert_eq!(warnings.len(), usize::from(told.is_some()), "{text}: {warnings:?}");
            if let Some((said, place)) = told {
                assert!(warnings[0].said().starts_with(said), "{text}: {warnings:?}");
                assert!(shown(&text, &warnings[0]).starts_with(place), "{text}: {warnings:?}");
            }
        }
    }

    #[test]
    fn an_address_of_a_list_stands_by_itself() {
        let text = "listeners: { web: { bind: [ '127.0.0.1:80', '127.0.0.1:81' ], pool: web } }\npools: { web: { backends: { a: 10.0.0.1:80 } } }";
        let config = Config::parse(text).unwrap();
        let listener = &config.listeners[&"web".parse().unwrap()];
        let warning = Warning::at_bind("web", listener, &listener.bind[1], "so");
        let warnings = placed(vec![warning], text.as_bytes());
        assert_eq!(warnings[0].said(), "listeners.web.bind.1: so");
        assert!(shown(text, &warnings[0]).starts_with("'127.0.0.1:81'"), "{warnings:?}");
    }
}
