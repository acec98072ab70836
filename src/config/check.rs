//! The file as written → [`Config`], checked; the only place that makes one. One function a mapping of the file, each
//! key with its bounds; what two mappings must not say together is in `cross.rs`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::cross;
use super::defaults;
use super::file::{self, File, Node, Value};
use super::keys;
use super::model::*;
use super::place;
use super::pool;
use super::problem::Problem;
use super::reader::{Checked, Item, Path, Placed, Plain, Read, Reader};
use super::value::{self, MILLISECOND, boolean, duration, duration_or_never, number, number32, one_of, whole_seconds};
use crate::words::{Address, ListenerName};

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Every problem of the file, in its order.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Config, Vec<Problem>> {
        let (file, problems) = file::read(text.as_ref(), |file| check(file).1);
        match check(&file).0 {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }
}

pub(super) fn check(file: &File) -> (Option<Config>, Checked) {
    let mut reader = Reader::new(file.lost_from);
    let root = file.root.as_ref().filter(|root| !matches!(*root.value, Value::Null));
    let config = root.and_then(|root| whole(&mut reader, root));
    (config, reader.finish())
}

fn whole(r: &mut Reader, root: &Node) -> Option<Config> {
    let path = Path::root(root.at);
    let top = r.fields(Item { node: root, path: &path }, &keys::TOP)?;
    let listeners =
        r.required(&top, "listeners", "listeners: { web: { bind: \"0.0.0.0:8080\", pool: web } }", listeners);
    let pools = r.required(&top, "pools", "pools: { web: { backends: { web-1: \"10.0.0.7:8080\" } } }", pool::pools);
    let process = r.optional(&top, "process", process);
    let watch = r.optional(&top, "watch", Plain(boolean));
    let drain_timeout = r.optional(&top, "drain_timeout", Plain(duration(Duration::ZERO)));
    let restart_drain = r.optional(&top, "restart_drain", Plain(duration(Duration::ZERO)));
    let removed_timeout = r.optional(&top, "removed_timeout", Plain(duration_or_never(Duration::ZERO)));
    let control = r.optional(&top, "control", control);
    let log = r.optional(&top, "log", log);
    let socket = control.as_ref().and_then(|control| control.socket.as_deref());
    cross::check(r, listeners.as_deref().unwrap_or_default(), pools.as_deref(), socket);
    Some(Config {
        listeners: listeners?.into_iter().filter_map(|l| Some((l.name?, l.listener?))).collect(),
        pools: pools?.into_iter().filter_map(|p| Some((p.name?, p.pool?))).collect(),
        process: process.unwrap_or(defaults::PROCESS),
        watch: watch.unwrap_or(defaults::WATCH),
        drain_timeout: drain_timeout.unwrap_or(defaults::DRAIN_TIMEOUT),
        restart_drain: restart_drain.unwrap_or(defaults::RESTART_DRAIN),
        removed_timeout: removed_timeout.unwrap_or(defaults::REMOVED_TIMEOUT),
        control: control.unwrap_or(defaults::CONTROL),
        log: log.unwrap_or(defaults::LOG),
    })
}

/// A listener as far as it could be read.
pub(super) struct ListenerDraft {
    pub name: Option<ListenerName>,
    pub binds: Vec<Placed<Address>>,
    pub pool: Option<Placed<String>>,
    pub listener: Option<Listener>,
    /// Its name is another one's: what they share is no fault of its own.
    pub repeated: bool,
}

fn listeners(r: &mut Reader, item: Item<'_>) -> Option<Vec<ListenerDraft>> {
    let named = r.named(item, &keys::LISTENER)?;
    let drafts = named.iter().map(|element| {
        let path = item.path.then(&element.name, element.at);
        let name = r.name(&path);
        let mut draft = listener(r, Item { node: &element.value, path: &path });
        draft.name = name;
        draft.repeated = element.repeated;
        draft
    });
    Some(drafts.collect())
}

fn listener(r: &mut Reader, item: Item<'_>) -> ListenerDraft {
    let mut draft = ListenerDraft { name: None, binds: Vec::new(), pool: None, listener: None, repeated: false };
    let Some(fields) = r.fields(item, &keys::LISTENER) else { return draft };
    let binds = r.required(&fields, "bind", "bind: \"0.0.0.0:8080\"", binds);
    draft.pool = r.required(&fields, "pool", "pool: NAME", |r: &mut Reader, item: Item<'_>| {
        r.placed(item, value::text("the name of a pool"))
    });
    let max_connections = r.optional(&fields, "max_connections", Plain(value::limit)).flatten();
    let idle_timeout = r.optional(&fields, "idle_timeout", Plain(duration_or_never(MILLISECOND)));
    let keepalive = r.optional(&fields, "keepalive", keepalive);
    let accept_proxy = r.optional(&fields, "accept_proxy", accept_proxy);
    let is_unix = |bind: &Placed<Address>| matches!(bind.value, Address::Unix(_));
    let unix = binds.as_ref().is_none_or(|binds| binds.is_empty() || binds.iter().any(is_unix));
    draft.binds = binds.unwrap_or_default();
    let mode = r.optional(&fields, "mode", of_unix(unix, value::mode));
    let group = r.optional(&fields, "group", of_unix(unix, value::text("the name of a group")));
    draft.listener = draft.pool.as_ref().and_then(|pool| pool.value.parse().ok()).map(|pool| Listener {
        bind: draft.binds.iter().map(|bind| bind.value.clone()).collect(),
        pool,
        max_connections,
        idle_timeout: idle_timeout.unwrap_or(defaults::IDLE_TIMEOUT),
        keepalive: keepalive.unwrap_or(defaults::KEEPALIVE),
        accept_proxy,
        access: SocketAccess { mode, group },
    });
    draft
}

/// Reads what has a meaning for Unix sockets alone.
fn of_unix<T>(
    unix: bool,
    read: impl FnOnce(&Node) -> Result<T, String>,
) -> impl FnOnce(&mut Reader, Item<'_>) -> Option<T> {
    move |r, item| {
        if unix {
            return Plain(read).read(r, item);
        }
        r.report(item.node.at, item.path, "this is for unix: addresses, and `bind` has none; remove it");
        None
    }
}

/// One address, or a list of them.
fn binds(r: &mut Reader, item: Item<'_>) -> Option<Vec<Placed<Address>>> {
    let Value::List(items) = &*item.node.value else {
        return r.placed(item, place::bind).map(|bind| vec![bind]);
    };
    if items.is_empty() {
        r.report(item.node.at, item.path, "the list is empty; write at least one address, such as \"0.0.0.0:8080\"");
    }
    let binds = items.iter().enumerate().filter_map(|(index, node)| {
        let key = index.to_string();
        let path = item.path.then(&key, node.at);
        r.placed(Item { node, path: &path }, place::bind)
    });
    Some(binds.collect())
}

fn keepalive(r: &mut Reader, item: Item<'_>) -> Option<Keepalive> {
    let fields = r.fields(item, &keys::KEEPALIVE)?;
    Some(Keepalive {
        idle: r.optional(&fields, "idle", Plain(whole_seconds(32_767))).unwrap_or(defaults::KEEPALIVE.idle),
        interval: r.optional(&fields, "interval", Plain(whole_seconds(32_767))).unwrap_or(defaults::KEEPALIVE.interval),
        count: r.optional(&fields, "count", Plain(number32(1, 127))).map_or(defaults::KEEPALIVE.count, |n| n as u8),
    })
}

fn accept_proxy(r: &mut Reader, item: Item<'_>) -> Option<AcceptProxy> {
    let fields = r.fields(item, &keys::ACCEPT_PROXY)?;
    r.required(&fields, "from", "from: [\"10.0.0.0/8\"]", |r: &mut Reader, item: Item<'_>| {
        let one = std::slice::from_ref(item.node);
        let nodes = if let Value::List(nodes) = &*item.node.value { nodes.as_slice() } else { one };
        if nodes.is_empty() {
            r.report(item.node.at, item.path, "the list is empty; write at least one network, such as \"10.0.0.0/8\"");
        }
        let mut from = AcceptProxy { networks: Vec::new(), unix: false };
        for (index, node) in nodes.iter().enumerate() {
            let key = index.to_string();
            let path = item.path.then(&key, node.at);
            let path = if std::ptr::eq(node, item.node) { item.path } else { &path };
            match r.placed(Item { node, path }, place::trusted) {
                Some(Placed { value: Some(network), .. }) => from.networks.push(network),
                Some(_) => from.unix = true,
                None => {}
            }
        }
        Some(from)
    })
}

fn process(r: &mut Reader, item: Item<'_>) -> Option<Process> {
    let fields = r.fields(item, &keys::PROCESS)?;
    Some(Process {
        workers: r.optional(&fields, "workers", Plain(workers)).unwrap_or(defaults::PROCESS.workers),
        buffer_memory: r
            .optional(&fields, "buffer_memory", Plain(value::size(64 << 10, 1 << 40)))
            .unwrap_or(defaults::PROCESS.buffer_memory),
    })
}

fn workers(node: &Node) -> Result<Workers, String> {
    match value::scalar(node, "auto or a whole number from 1 to 1024")?.text.as_str() {
        "auto" => Ok(Workers::Auto),
        text if text.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            Err(format!("expected auto or a whole number from 1 to 1024, found {}", value::found(node)))
        }
        _ => {
            let count = usize::try_from(number(1, 1024)(node)?).ok().and_then(NonZeroUsize::new);
            Ok(Workers::Count(count.expect("1 to 1024 is a non-zero usize")))
        }
    }
}

fn control(r: &mut Reader, item: Item<'_>) -> Option<Control> {
    let fields = r.fields(item, &keys::CONTROL)?;
    Some(Control {
        socket: r.optional(&fields, "socket", Plain(socket)),
        mode: r.optional(&fields, "mode", Plain(value::mode)).unwrap_or(defaults::CONTROL.mode),
        group: r.optional(&fields, "group", Plain(value::text("the name of a group"))),
    })
}

fn socket(node: &Node) -> Result<PathBuf, String> {
    let text = value::text("the path of a socket, such as /run/lbd/control.sock")(node)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return Err(format!(
            "the control socket is always a Unix socket; write {} without \"unix:\"",
            value::clip(path)
        ));
    }
    if !text.starts_with('/') {
        return Err(format!(
            "the path \"{}\" is not absolute; write one such as /run/lbd/control.sock",
            value::clip(&text)
        ));
    }
    match format!("unix:{text}").parse() {
        Ok(Address::Unix(path)) if !text.ends_with('/') => Ok(path),
        Ok(_) => Err(format!(
            "\"{}\" is a folder; write the path of the socket in it, such as {}control.sock",
            value::clip(&text),
            value::clip(&text)
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn log(r: &mut Reader, item: Item<'_>) -> Option<Log> {
    let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    let connections = [LogConnections::Off, LogConnections::Errors, LogConnections::All];
    let levels = levels.map(|level| (level.as_str(), level)).to_vec();
    let connections = connections.map(|which| (which.as_str(), which)).to_vec();
    let fields = r.fields(item, &keys::LOG)?;
    let also = &[("false", "off"), ("none", "off"), ("no", "off"), ("true", "all"), ("on", "all"), ("yes", "all")];
    Some(Log {
        level: r
            .optional(
                &fields,
                "level",
                Plain(one_of(levels, &[("warning", "warn"), ("fatal", "error"), ("notice", "info")])),
            )
            .unwrap_or(defaults::LOG.level),
        connections: r
            .optional(&fields, "connections", Plain(one_of(connections, also)))
            .unwrap_or(defaults::LOG.connections),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_leaves_out_has_its_default() {
        let text =
            "listeners: { web: { bind: 0.0.0.0:80, pool: web } }\npools: { web: { backends: { b: 10.0.0.7:80 } } }";
        let config = Config::parse(text).unwrap();
        let listener = &config.listeners[&"web".parse().unwrap()];
        assert_eq!(listener.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(config.pools[&"web".parse().unwrap()].retries, 2);
        assert_eq!(config.log, defaults::LOG);
    }
}
