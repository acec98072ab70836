//! The configuration as the load sees it: parts that kinds add and operators change, written out as lbd's file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

#[derive(Debug, Clone, Default)]
pub struct File {
    pub listeners: BTreeMap<String, Listener>,
    pub pools: BTreeMap<String, Pool>,
    pub workers: usize,
}

#[derive(Debug, Clone)]
pub struct Listener {
    /// Of 127.0.0.0/24: two listeners at port 0 of one address would be the same.
    pub host: usize,
    pub pool: String,
    /// More keys, in YAML's flow style.
    pub rest: String,
}

#[derive(Debug, Clone, Default)]
pub struct Pool {
    pub backends: BTreeMap<String, Backend>,
    /// More keys, in YAML's flow style.
    pub rest: String,
}

#[derive(Debug, Clone)]
pub struct Backend {
    pub address: String,
    pub weight: usize,
    pub max_connections: Option<usize>,
}

impl Backend {
    pub fn at(address: &str) -> Self {
        Self { address: address.to_owned(), weight: 1, max_connections: None }
    }

    pub fn at_most(address: &str, sessions: usize) -> Self {
        Self { max_connections: Some(sessions), ..Self::at(address) }
    }
}

impl File {
    /// As lbd reads it. All ports are the kernel's choice.
    pub fn text(&self) -> String {
        let mut out = String::from("listeners:\n");
        for (name, listener) in &self.listeners {
            let Listener { host, pool, rest } = listener;
            writeln!(out, "  {name}: {{ bind: \"127.0.0.{host}:0\", pool: {pool}{} }}", comma(rest)).unwrap();
        }
        out.push_str("pools:\n");
        for (name, pool) in &self.pools {
            let backends: Vec<String> = pool.backends.iter().map(|(name, backend)| backend.text(name)).collect();
            writeln!(out, "  {name}: {{ backends: {{ {} }}{} }}", backends.join(", "), comma(&pool.rest)).unwrap();
        }
        writeln!(out, "process: {{ workers: {} }}", self.workers).unwrap();
        out.push_str("watch: false\ndrain_timeout: 1s\n");
        out
    }
}

impl Backend {
    fn text(&self, name: &str) -> String {
        let most = self.max_connections.map_or(String::new(), |most| format!(", max_connections: {most}"));
        format!("{name}: {{ address: \"{}\", weight: {}{most} }}", self.address, self.weight)
    }
}

fn comma(rest: &str) -> String {
    if rest.is_empty() { String::new() } else { format!(", {rest}") }
}
