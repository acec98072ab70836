//! What changes between two configurations, by name and key, for the operator to read and for the watcher's guard.
//! What to do about it is the supervisor's; identity is as the contract says: a backend is its pool, name and address.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::{Backend, Config, Listener};
use super::spelled::{self, Keyed};

/// The difference between the configuration in force and another. Travels over the control socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDiff {
    /// By name; one that only has another name is in `renamed_listeners`.
    pub listeners: Changes<String>,
    /// Old and new name of each listener whose addresses are all another's that went: its sockets stay open.
    pub renamed_listeners: Vec<(String, String)>,
    /// By name; what changes in a pool besides single backends.
    pub pools: Changes<String>,
    /// Those of added and removed pools too.
    pub backends: Changes<BackendId>,
    /// Keys outside listeners and pools that take effect at once.
    pub settings: Vec<Edit>,
    /// Keys that take effect at restart.
    pub at_restart: Vec<Edit>,
}

/// What came, went and became different among things of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes<Id> {
    /// In the new configuration alone.
    pub added: Vec<Id>,
    /// In the old configuration alone.
    pub removed: Vec<Id>,
    /// In both, with other values.
    pub changed: Vec<(Id, Vec<Edit>)>,
}

/// A key whose value changes, both spelled as in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// The key: whole for settings, else within its listener, pool or backend.
    pub key: String,
    /// The value in force.
    pub old: String,
    /// The value to come.
    pub new: String,
}

/// What makes a backend the same one across reloads. With another address it is another backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendId {
    /// Its pool.
    pub pool: String,
    /// Its name in the pool.
    pub name: String,
    /// Its address, spelled as in the file.
    pub address: String,
}

impl ConfigDiff {
    /// What changes if `new` follows `old`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut listeners = changes(
            old.listeners.iter().map(|(name, listener)| (name.to_string(), listener)),
            new.listeners.iter().map(|(name, listener)| (name.to_string(), listener)),
            |old, new| edits(spelled::listener(old), spelled::listener(new)),
        );
        let pools = changes(
            old.pools.iter().map(|(name, pool)| (name.to_string(), pool)),
            new.pools.iter().map(|(name, pool)| (name.to_string(), pool)),
            |old, new| {
                let mut edits = edits(spelled::pool(old), spelled::pool(new));
                edits.extend(reordered(&old.backends, &new.backends));
                // That a whole section comes or goes says enough.
                let whole: Vec<_> = edits.iter().map(|edit| format!("{}.", edit.key)).collect();
                edits.retain(|edit| !whole.iter().any(|section| edit.key.starts_with(section)));
                edits
            },
        );
        let backends =
            changes(backends(old), backends(new), |old, new| edits(spelled::backend(old), spelled::backend(new)));
        let renamed_listeners = renamed(old, new, &mut listeners);
        let (at_restart, settings) = edits(spelled::settings(old), spelled::settings(new))
            .into_iter()
            .partition(|edit| edit.key.starts_with("process.") || edit.key == "control.socket");
        Self { listeners, renamed_listeners, pools, backends, settings, at_restart }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Why the file watcher must not apply this alone, for a slip is likelier than a wish: it removes a pool, or more
    /// than half of one's backends (by name: a backend with a new address has not gone). `None`: it may.
    pub fn too_drastic(&self, old: &Config) -> Option<String> {
        let mend = "run `lbctl reload` to apply it";
        if let [first, more @ ..] = &self.pools.removed[..] {
            let others = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            return Some(format!(
                "pool {first}{others} would be removed, which the file watcher does not do alone; {mend}"
            ));
        }
        let came: HashSet<_> = self.backends.added.iter().map(|b| (&b.pool, &b.name)).collect();
        let mut gone: BTreeMap<&str, usize> = BTreeMap::new();
        for backend in self.backends.removed.iter().filter(|b| !came.contains(&(&b.pool, &b.name))) {
            *gone.entry(&backend.pool).or_default() += 1;
        }
        old.pools.iter().find_map(|(name, pool)| {
            let (of, gone) = (pool.backends.len(), *gone.get(name.as_str())?);
            (gone * 2 > of).then(|| {
                format!("{gone} of {of} backends of pool {name} would be removed, which the file watcher does not do alone; {mend}")
            })
        })
    }

    /// One line a change, for people.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (old, new) in &self.renamed_listeners {
            lines.push(format!("listener {old}: renamed to {new}"));
        }
        tell(&mut lines, "listener", &self.listeners, |_| true);
        tell(&mut lines, "pool", &self.pools, |_| true);
        // The pool's own line speaks for its backends.
        tell(&mut lines, "backend", &self.backends, |id| {
            !self.pools.added.contains(&id.pool) && !self.pools.removed.contains(&id.pool)
        });
        lines.extend(self.settings.iter().map(Edit::to_string));
        lines.extend(self.at_restart.iter().map(|edit| format!("{edit} (takes effect at restart)")));
        lines
    }
}

impl<Id> Default for Changes<Id> {
    fn default() -> Self {
        Self { added: Vec::new(), removed: Vec::new(), changed: Vec::new() }
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ({})", self.pool, self.name, self.address)
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} → {}", self.key, self.old, self.new)
    }
}

fn tell<Id: fmt::Display>(lines: &mut Vec<String>, kind: &str, changes: &Changes<Id>, tells: impl Fn(&Id) -> bool) {
    lines.extend(changes.added.iter().filter(|id| tells(id)).map(|id| format!("{kind} {id}: added")));
    lines.extend(changes.removed.iter().filter(|id| tells(id)).map(|id| format!("{kind} {id}: removed")));
    for (id, edits) in &changes.changed {
        lines.extend(edits.iter().map(|edit| format!("{kind} {id}: {edit}")));
    }
}

fn backends(config: &Config) -> impl Iterator<Item = (BackendId, &Backend)> {
    config.pools.iter().flat_map(|(pool, settings)| {
        settings.backends.iter().map(move |backend| {
            let id = BackendId {
                pool: pool.to_string(),
                name: backend.name.to_string(),
                address: backend.address.to_string(),
            };
            (id, backend)
        })
    })
}

fn changes<Id: Ord, T>(
    old: impl Iterator<Item = (Id, T)>,
    new: impl Iterator<Item = (Id, T)>,
    compare: impl Fn(T, T) -> Vec<Edit>,
) -> Changes<Id> {
    let mut old: BTreeMap<Id, T> = old.collect();
    let mut changes = Changes::default();
    for (id, after) in new.collect::<BTreeMap<_, _>>() {
        match old.remove(&id) {
            None => changes.added.push(id),
            Some(before) => match compare(before, after) {
                edits if edits.is_empty() => {}
                edits => changes.changed.push((id, edits)),
            },
        }
    }
    changes.removed = old.into_keys().collect();
    changes
}

fn edits(old: Keyed, new: Keyed) -> Vec<Edit> {
    let differs = |((key, old), (_, new)): ((&'static str, String), (&'static str, String))| {
        (old != new).then(|| Edit { key: key.into(), old, new })
    };
    old.into_iter().zip(new).filter_map(differs).collect()
}

/// The order of the file counts (`first` follows it), where the backends are the same.
fn reordered(old: &[Backend], new: &[Backend]) -> Option<Edit> {
    let kept = |these: &[Backend], those: &[Backend]| -> Vec<String> {
        let those: HashSet<_> = those.iter().map(|b| (&b.name, &b.address)).collect();
        these.iter().filter(|b| those.contains(&(&b.name, &b.address))).map(|b| b.name.to_string()).collect()
    };
    let (before, after) = (kept(old, new), kept(new, old));
    (before != after).then(|| Edit { key: "order".into(), old: before.join(", "), new: after.join(", ") })
}

/// Takes the pairs of a removed and an added listener with the same addresses out of `listeners`.
fn renamed(old: &Config, new: &Config, listeners: &mut Changes<String>) -> Vec<(String, String)> {
    let mut renamed = Vec::new();
    listeners.removed.retain(|gone| {
        let Some(before) = listener(old, gone) else { return true };
        let same = |came: &&String| listener(new, came).is_some_and(|after| after.bind == before.bind);
        let Some(came) = listeners.added.iter().find(same).cloned() else { return true };
        let edits = listener(new, &came).map(|after| edits(spelled::listener(before), spelled::listener(after)));
        if let Some(edits) = edits.filter(|edits| !edits.is_empty()) {
            listeners.changed.push((came.clone(), edits));
        }
        listeners.added.retain(|name| *name != came);
        renamed.push((gone.clone(), came));
        false
    });
    renamed
}

fn listener<'a>(config: &'a Config, name: &str) -> Option<&'a Listener> {
    config.listeners.get(&name.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one listener `web` on port 80 and one pool `web` of these backends, and more.
    fn config(backends: &str, more: &str) -> Config {
        let text = format!(
            "listeners: {{ web: {{ bind: 0.0.0.0:80, pool: web }} }}\npools:\n  web:\n    backends: {{ {backends} }}\n{more}"
        );
        Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    const THREE: &str = "a: 10.0.0.1:1, b: 10.0.0.2:1, c: 10.0.0.3:1";

    #[test]
    fn each_change_is_told_once_in_words() {
        for (backends, more, told) in [
            (THREE, "", &[][..]),
            ("a: 10.0.0.1:1, b: 10.0.0.2:1", "", &["backend web/c (10.0.0.3:1): removed"]),
            (
                "a: 10.0.0.9:1, b: 10.0.0.2:1, c: 10.0.0.3:1",
                "",
                &["backend web/a (10.0.0.9:1): added", "backend web/a (10.0.0.1:1): removed"],
            ),
            (
                "a: { address: 10.0.0.1:1, weight: 5 }, b: 10.0.0.2:1, c: 10.0.0.3:1",
                "",
                &["backend web/a (10.0.0.1:1): weight: 1 → 5"],
            ),
            ("b: 10.0.0.2:1, a: 10.0.0.1:1, c: 10.0.0.3:1", "", &["pool web: order: a, b, c → b, a, c"]),
            (THREE, "    health_check: {}\n", &["pool web: health_check: none → tcp"]),
            (THREE, "  api: { backends: { a: 10.0.0.1:1 } }\n", &["pool api: added"]),
            (
                THREE,
                "drain_timeout: 5s\nprocess: { workers: 2 }\n",
                &["drain_timeout: 30s → 5s", "process.workers: auto → 2 (takes effect at restart)"],
            ),
        ] {
            assert_eq!(
                ConfigDiff::between(&config(THREE, ""), &config(backends, more)).summary(),
                told,
                "{backends} {more}"
            );
        }
    }

    #[test]
    fn no_key_changes_unseen() {
        let text = |listener: &str, backend: &str, pool: &str, top: &str| {
            format!(
                "listeners: {{ l: {{ bind: 0.0.0.0:80, pool: p{listener} }} }}\n\
                 pools: {{ p: {{ backends: {{ a: {{ address: 10.0.0.1:1{backend} }}, b: 10.0.0.2:1 }}{pool} }} }}\n{top}"
            )
        };
        let parse = |text: String| Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
        let old = parse(text("", "", ", health_check: {}, queue: {}", ""));
        let seen = |new: String, key: &str| {
            let told = ConfigDiff::between(&old, &parse(new)).summary();
            assert!(told.len() == 1 && told[0].contains(&format!("{key}: ")), "{key}: {told:?}");
        };
        let same = ", health_check: {}, queue: {}";
        seen(text("", "", &format!("{same}, abort_on_close: true"), ""), "abort_on_close");
        for (key, value) in [("max_connections", "5"), ("idle_timeout", "5s")] {
            seen(text(&format!(", {key}: {value}"), "", same, ""), key);
        }
        let unix = |more: &str| text(more, "", same, "").replace("0.0.0.0:80", "unix:/run/l.sock");
        for (key, value) in [("mode", "\"0600\""), ("group", "x")] {
            let diff = ConfigDiff::between(&parse(unix("")), &parse(unix(&format!(", {key}: {value}"))));
            assert_eq!(diff.summary().len(), 1, "{key}: {diff:?}");
        }
        for (key, value) in [("idle", "5s"), ("interval", "5s"), ("count", "5")] {
            seen(text(&format!(", keepalive: {{ {key}: {value} }}"), "", same, ""), &format!("keepalive.{key}"));
        }
        for (key, value) in [("weight", "5"), ("max_connections", "5"), ("backup", "true")] {
            seen(text("", &format!(", {key}: {value}"), same, ""), key);
        }
        for (key, value) in
            [("balance", "first"), ("connect_timeout", "1s"), ("half_close_timeout", "1s"), ("retries", "5")]
        {
            seen(text("", "", &format!("{same}, {key}: {value}"), ""), key);
        }
        for (key, value) in
            [("port", "5"), ("send", "x"), ("expect", "x"), ("timeout", "1500ms"), ("rise", "5"), ("fall", "5")]
        {
            seen(text("", "", &format!(", queue: {{}}, health_check: {{ {key}: {value} }}"), ""), key);
        }
        for (key, value) in [("fast_interval", "5s"), ("down_interval", "5s"), ("jitter", "5%")] {
            seen(text("", "", &format!(", queue: {{}}, health_check: {{ {key}: {value} }}"), ""), key);
        }
        for (key, value) in [("max", "5"), ("timeout", "6s")] {
            seen(text("", "", &format!(", health_check: {{}}, queue: {{ {key}: {value} }}"), ""), key);
        }
        for (section, key, value) in [
            ("process", "workers", "5"),
            ("process", "buffer_memory", "1MiB"),
            ("control", "socket", "/x"),
            ("control", "mode", "\"0600\""),
            ("control", "group", "x"),
            ("log", "level", "warn"),
            ("log", "connections", "all"),
        ] {
            seen(text("", "", same, &format!("{section}: {{ {key}: {value} }}")), &format!("{section}.{key}"));
        }
        for (key, value) in
            [("watch", "false"), ("drain_timeout", "5s"), ("restart_drain", "5s"), ("removed_timeout", "5s")]
        {
            seen(text("", "", same, &format!("{key}: {value}")), key);
        }
    }

    #[test]
    fn a_listener_with_the_addresses_of_one_that_went_is_renamed() {
        let old = Config::parse(
            "listeners: { web: { bind: 0.0.0.0:80, pool: p } }\npools: { p: { backends: { a: 10.0.0.1:1 } } }",
        );
        let new = Config::parse(
            "listeners: { www: { bind: 0.0.0.0:80, pool: p, idle_timeout: 1m } }\npools: { p: { backends: { a: 10.0.0.1:1 } } }",
        );
        let diff = ConfigDiff::between(&old.unwrap(), &new.unwrap());
        assert_eq!(diff.summary(), ["listener web: renamed to www", "listener www: idle_timeout: 1h → 1m"]);
    }

    #[test]
    fn the_watcher_alone_removes_no_pool_and_not_more_than_half_of_its_backends() {
        let old = config(
            "a: 10.0.0.1:1, b: 10.0.0.2:1, c: 10.0.0.3:1, d: 10.0.0.4:1",
            "  api: { backends: { a: 10.0.0.1:1 } }\n",
        );
        let api = "  api: { backends: { a: 10.0.0.1:1 } }\n";
        for (backends, more, refused) in [
            (THREE, api, false),
            ("a: 10.0.0.1:1, b: 10.0.0.2:1", api, false),
            ("a: 10.0.0.1:1", api, true),
            ("a: 10.0.0.1:1, x: 10.0.0.2:1, y: 10.0.0.3:1, z: 10.0.0.4:1", api, true),
            ("a: 10.0.0.1:1, b: 10.0.0.2:9, c: 10.0.0.3:9, d: 10.0.0.4:9", api, false),
            (THREE, "", true),
        ] {
            let diff = ConfigDiff::between(&old, &config(backends, more));
            let why = diff.too_drastic(&old);
            assert_eq!(why.is_some(), refused, "{backends} {more}: {why:?}");
            assert!(why.is_none_or(|why| why.contains("lbctl reload")));
        }
    }
}
