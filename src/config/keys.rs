//! Which keys each mapping of the file may have: one table a mapping, the only place where a key is named to be known.
//! And what an unknown key was likely meant to be. `full.yaml` is tested against these tables.

use strsim::damerau_levenshtein;

/// The keys of one mapping.
#[derive(Debug)]
pub struct Keys {
    /// What the mapping describes, with its article: "a pool".
    pub what: &'static str,
    /// Where such a mapping stands: `pools.NAME`; empty for the top level.
    pub at: &'static str,
    /// The shortest right one, as an element of what holds it.
    pub example: &'static str,
    /// What may be written in it.
    pub keys: &'static [Key],
    /// Planned, and not in this version.
    pub later: &'static [&'static str],
    /// Words used elsewhere for a key of this mapping: what is written, what is meant.
    pub synonyms: &'static [(&'static str, &'static str)],
    /// Words that are no key, and what to do instead.
    pub advice: &'static [(&'static str, &'static str)],
}

/// A key, and what its value is.
#[derive(Debug)]
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    /// What stands behind it.
    pub holds: Holds,
}

/// What the value of a key is.
#[derive(Debug, Clone, Copy)]
pub enum Holds {
    /// A value, or a list of values.
    Value,
    /// A mapping with keys of its own.
    Section(&'static Keys),
    /// A mapping of names, chosen by the operator, to mappings.
    Named(&'static Keys),
}

const fn value(name: &'static str) -> Key {
    Key { name, holds: Holds::Value }
}

const fn section(name: &'static str, keys: &'static Keys) -> Key {
    Key { name, holds: Holds::Section(keys) }
}

const fn named(name: &'static str, keys: &'static Keys) -> Key {
    Key { name, holds: Holds::Named(keys) }
}

/// The top level.
pub static TOP: Keys = Keys {
    what: "the file",
    at: "",
    example: "",
    keys: &[
        named("listeners", &LISTENER),
        named("pools", &POOL),
        section("process", &PROCESS),
        value("watch"),
        value("drain_timeout"),
        value("restart_drain"),
        value("removed_timeout"),
        section("control", &CONTROL),
        section("log", &LOG),
    ],
    later: &["admin"],
    synonyms: &[
        ("frontends", "listeners"),
        ("frontend", "listeners"),
        ("listen", "listeners"),
        ("upstreams", "pools"),
        ("upstream", "pools"),
        ("clusters", "pools"),
        ("logging", "log"),
    ],
    advice: &[],
};

/// One listener.
pub static LISTENER: Keys = Keys {
    what: "a listener",
    at: "listeners.NAME",
    example: "web: { bind: \"0.0.0.0:8080\", pool: web }",
    keys: &[
        value("bind"),
        value("pool"),
        value("max_connections"),
        value("idle_timeout"),
        section("keepalive", &KEEPALIVE),
        section("accept_proxy", &ACCEPT_PROXY),
        value("mode"),
        value("group"),
    ],
    later: &[],
    synonyms: &[
        ("address", "bind"),
        ("addr", "bind"),
        ("listen", "bind"),
        ("backend", "pool"),
        ("upstream", "pool"),
        ("default_backend", "pool"),
        ("target", "pool"),
        ("maxconn", "max_connections"),
        ("keep_alive", "keepalive"),
        ("proxy_protocol", "accept_proxy"),
        ("permissions", "mode"),
    ],
    advice: &[
        ("port", "write it in the address, as in `bind: \"0.0.0.0:8080\"`"),
        ("name", "the name is the key above it; remove it"),
    ],
};

/// TCP keepalive of a listener's sessions.
pub static KEEPALIVE: Keys = Keys {
    what: "keepalive",
    at: "listeners.NAME.keepalive",
    example: "",
    keys: &[value("idle"), value("interval"), value("count")],
    later: &[],
    synonyms: &[("time", "idle"), ("probes", "count")],
    advice: &[],
};

/// Whose connections begin with a PROXY header.
pub static ACCEPT_PROXY: Keys = Keys {
    what: "accept_proxy",
    at: "listeners.NAME.accept_proxy",
    example: "",
    keys: &[value("from")],
    later: &[],
    synonyms: &[("trusted", "from"), ("networks", "from"), ("sources", "from")],
    advice: &[],
};

/// One pool.
pub static POOL: Keys = Keys {
    what: "a pool",
    at: "pools.NAME",
    example: "web: { backends: { web-1: \"10.0.0.7:8080\" } }",
    keys: &[
        value("balance"),
        named("backends", &BACKEND),
        section("health_check", &HEALTH_CHECK),
        value("connect_timeout"),
        value("half_close_timeout"),
        value("retries"),
        section("queue", &QUEUE),
        value("abort_on_close"),
        value("send_proxy"),
        value("spare_connections"),
        value("spare_max_idle"),
    ],
    later: &[],
    synonyms: &[
        ("algorithm", "balance"),
        ("lb", "balance"),
        ("strategy", "balance"),
        ("policy", "balance"),
        ("method", "balance"),
        ("servers", "backends"),
        ("server", "backends"),
        ("targets", "backends"),
        ("members", "backends"),
        ("endpoints", "backends"),
        ("check", "health_check"),
        ("health", "health_check"),
        ("retry", "retries"),
        ("abortonclose", "abort_on_close"),
        ("proxy_protocol", "send_proxy"),
    ],
    advice: &[("name", "the name is the key above it; remove it")],
};

/// One backend written as a mapping.
pub static BACKEND: Keys = Keys {
    what: "a backend",
    at: "pools.NAME.backends.NAME",
    example: "web-1: \"10.0.0.7:8080\"",
    keys: &[value("address"), value("weight"), value("max_connections"), value("backup")],
    later: &[],
    synonyms: &[
        ("host", "address"),
        ("ip", "address"),
        ("server", "address"),
        ("addr", "address"),
        ("maxconn", "max_connections"),
    ],
    advice: &[
        ("port", "write it in the address, as in `address: \"10.0.0.7:8080\"`"),
        ("name", "the name is the key above it; remove it"),
    ],
};

/// A pool's active health check.
pub static HEALTH_CHECK: Keys = Keys {
    what: "health_check",
    at: "pools.NAME.health_check",
    example: "",
    keys: &[
        value("type"),
        value("interval"),
        value("fast_interval"),
        value("down_interval"),
        value("timeout"),
        value("rise"),
        value("fall"),
        value("jitter"),
        value("port"),
        value("send"),
        value("send_hex"),
        value("expect"),
        value("expect_hex"),
    ],
    later: &[],
    synonyms: &[
        ("inter", "interval"),
        ("period", "interval"),
        ("healthy_threshold", "rise"),
        ("unhealthy_threshold", "fall"),
        ("kind", "type"),
    ],
    advice: &[],
};

/// Where sessions wait for a backend.
pub static QUEUE: Keys = Keys {
    what: "queue",
    at: "pools.NAME.queue",
    example: "",
    keys: &[value("max"), value("timeout")],
    later: &[],
    synonyms: &[("size", "max"), ("length", "max"), ("max_connections", "max")],
    advice: &[],
};

/// What takes effect at restart alone.
pub static PROCESS: Keys = Keys {
    what: "process",
    at: "process",
    example: "",
    keys: &[value("workers"), value("buffer_memory")],
    later: &[],
    synonyms: &[
        ("threads", "workers"),
        ("nbthread", "workers"),
        ("worker_processes", "workers"),
        ("memory", "buffer_memory"),
    ],
    advice: &[],
};

/// The control socket.
pub static CONTROL: Keys = Keys {
    what: "control",
    at: "control",
    example: "",
    keys: &[value("socket"), value("mode"), value("group")],
    later: &[],
    synonyms: &[("path", "socket"), ("permissions", "mode")],
    advice: &[],
};

/// What is logged.
pub static LOG: Keys = Keys {
    what: "log",
    at: "log",
    example: "",
    keys: &[value("level"), value("connections")],
    later: &[],
    synonyms: &[("sessions", "connections"), ("severity", "level")],
    advice: &[],
};

/// Every table.
pub static ALL: [&Keys; 11] =
    [&TOP, &LISTENER, &KEEPALIVE, &ACCEPT_PROXY, &POOL, &BACKEND, &HEALTH_CHECK, &QUEUE, &PROCESS, &CONTROL, &LOG];

impl Keys {
    /// The key of that name.
    pub fn find(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// What a word that is no key of this mapping was meant to be.
    pub fn guess(&self, word: &str) -> Guess {
        if ALL.iter().any(|keys| keys.later.contains(&word)) {
            return Guess::Later;
        }
        let folded = fold(word);
        let synonym = self.synonyms.iter().find(|(other, _)| fold(other) == folded);
        let nearest = nearest(word, self.keys.iter().map(|key| key.name));
        if let Some((_, advice)) = self.advice.iter().find(|(other, _)| *other == folded) {
            return Guess::Advice(advice);
        }
        if let Some((_, meant)) = synonym {
            return Guess::Meant(meant);
        }
        match nearest {
            Some((meant, 0 | 1)) => return Guess::Meant(meant),
            _ if ALL.iter().any(|keys| keys.find(word).is_some()) => return Guess::Elsewhere,
            _ => {}
        }
        nearest.map_or(Guess::Unknown, |(meant, _)| Guess::Meant(meant))
    }

    /// Where `word` is a key, as the operator would write the path; those inside this mapping first.
    pub fn homes(&self, word: &str) -> Vec<&'static Keys> {
        let mut homes: Vec<&Keys> = ALL.into_iter().filter(|keys| keys.find(word).is_some()).collect();
        if homes.iter().any(|keys| self.holds(keys)) {
            homes.retain(|keys| self.holds(keys));
        }
        homes
    }

    /// Whether a section or the elements of this mapping have that other table.
    pub fn holds(&self, other: &Keys) -> bool {
        let mut sections = self.keys.iter().filter_map(|key| match key.holds {
            Holds::Value => None,
            Holds::Section(keys) | Holds::Named(keys) => Some(keys),
        });
        sections.any(|keys| std::ptr::eq(keys, other))
    }
}

/// What an unknown key was likely meant to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Guess {
    /// A key that a later version will have.
    Later,
    /// This key of the same mapping.
    Meant(&'static str),
    /// No key, and what to do instead.
    Advice(&'static str),
    /// A key of another mapping.
    Elsewhere,
    /// No idea.
    Unknown,
}

/// The name nearest to a word, with its distance in edits, if a reader would call it the same word.
/// Case, `-` and `_` do not count.
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    // No name is longer than 63; a longer word costs time and is near nothing.
    if word.is_empty() || word.len() > 80 {
        return None;
    }
    let folded = fold(word);
    let near = names.into_iter().map(|name| (name, damerau_levenshtein(&folded, &fold(name))));
    near.min_by_key(|&(_, distance)| distance).filter(|&(name, distance)| {
        let shorter = fold(name).chars().count().min(folded.chars().count());
        distance
            <= match shorter {
                0..=2 => 0,
                3..=4 => 1,
                5..=8 => 2,
                _ => 3,
            }
    })
}

fn fold(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase).collect()
}
