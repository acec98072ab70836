//! A checked configuration spelled as the file spells it, key by key: what a difference shows. Every field of the model
//! stands here once; a key left out here would change without anybody being told.

use std::sync::Arc;
use std::time::Duration;

use super::model::{Backend, Config, Keepalive, Listener, Pool, Workers};
use super::value::{spell, spell_size};
use crate::words::CheckSpec;

/// Keys with their values. Two lists of the same kind have the same keys in the same order.
pub(super) type Keyed = Vec<(&'static str, String)>;

pub(super) fn listener(listener: &Listener) -> Keyed {
    let Listener { bind, pool, max_connections, idle_timeout, keepalive, accept_proxy, access } = listener;
    let Keepalive { idle, interval, count } = keepalive;
    let trusted = accept_proxy.as_ref().map(|from| {
        let unix = from.unix.then(|| "unix:".to_owned());
        from.networks.iter().map(ToString::to_string).chain(unix).collect::<Vec<_>>().join(", ")
    });
    vec![
        ("bind", bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ("pool", pool.to_string()),
        ("max_connections", or_unlimited(*max_connections)),
        ("idle_timeout", or_never(*idle_timeout)),
        ("keepalive.idle", spell(*idle)),
        ("keepalive.interval", spell(*interval)),
        ("keepalive.count", count.to_string()),
        ("accept_proxy.from", or_none(trusted.as_ref())),
        ("mode", access.mode.map_or("none".into(), |mode| format!("{mode:04o}"))),
        ("group", or_none(access.group.as_ref())),
    ]
}

/// All of a pool but its backends.
pub(super) fn pool(pool: &Pool) -> Keyed {
    let Pool {
        balance,
        backends: _,
        health_check,
        connect_timeout,
        half_close_timeout,
        retries,
        queue,
        abort_on_close,
        send_proxy,
        spare_connections,
        spare_max_idle,
    } = pool;
    let mut keys = vec![
        ("balance", balance.to_string()),
        ("connect_timeout", spell(*connect_timeout)),
        ("half_close_timeout", spell(*half_close_timeout)),
        ("retries", retries.to_string()),
        ("queue", if queue.is_some() { "on".into() } else { "off".into() }),
        ("queue.max", or_none(queue.map(|queue| queue.max).as_ref())),
        ("queue.timeout", queue.map_or("none".into(), |queue| spell(queue.timeout))),
        ("abort_on_close", abort_on_close.to_string()),
        ("send_proxy", or_none(send_proxy.as_ref())),
        ("spare_connections", spare_connections.to_string()),
        ("spare_max_idle", spell(*spare_max_idle)),
        ("health_check", if health_check.is_some() { "tcp".into() } else { "none".into() }),
    ];
    keys.extend(check(health_check.as_ref()));
    keys
}

fn check(spec: Option<&CheckSpec>) -> Keyed {
    let show = |value: &dyn Fn(&CheckSpec) -> String| spec.map_or("none".into(), value);
    let quoted = |bytes: &Option<Arc<[u8]>>| match bytes.as_deref().map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => "none".into(),
        Some((_, Ok(text))) => format!("{text:?}"),
        Some((bytes, Err(_))) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    };
    vec![
        ("health_check.port", show(&|c| or_none(c.port.as_ref()))),
        ("health_check.send", show(&|c| quoted(&c.send))),
        ("health_check.expect", show(&|c| quoted(&c.expect))),
        ("health_check.interval", show(&|c| spell(c.interval))),
        ("health_check.fast_interval", show(&|c| other_interval(c, c.fast_interval))),
        ("health_check.down_interval", show(&|c| other_interval(c, c.down_interval))),
        ("health_check.timeout", show(&|c| spell(c.timeout))),
        ("health_check.rise", show(&|c| c.rise.to_string())),
        ("health_check.fall", show(&|c| c.fall.to_string())),
        ("health_check.jitter", show(&|c| c.jitter.to_string())),
    ]
}

pub(super) fn backend(backend: &Backend) -> Keyed {
    let Backend { name: _, address: _, weight, max_connections, backup } = backend;
    vec![
        ("weight", weight.to_string()),
        ("max_connections", or_unlimited(*max_connections)),
        ("backup", backup.to_string()),
    ]
}

/// All that is not of a listener or a pool.
pub(super) fn settings(config: &Config) -> Keyed {
    let Config { listeners: _, pools: _, process, watch, drain_timeout, restart_drain, removed_timeout, control, log } =
        config;
    let workers = match process.workers {
        Workers::Auto => "auto".into(),
        Workers::Count(count) => count.to_string(),
    };
    vec![
        ("process.workers", workers),
        ("process.buffer_memory", spell_size(process.buffer_memory)),
        ("watch", watch.to_string()),
        ("drain_timeout", spell(*drain_timeout)),
        ("restart_drain", spell(*restart_drain)),
        ("removed_timeout", or_never(*removed_timeout)),
        ("control.socket", or_none(control.socket.as_ref().map(|path| path.display()).as_ref())),
        ("control.mode", format!("{:04o}", control.mode)),
        ("control.group", or_none(control.group.as_ref())),
        ("log.level", log.level.as_str().into()),
        ("log.connections", log.connections.as_str().into()),
    ]
}

/// One that follows `interval` does not change with it: only what the operator has written is told.
fn other_interval(spec: &CheckSpec, this: Duration) -> String {
    if this == spec.interval { "as interval".into() } else { spell(this) }
}

fn or_never(duration: Option<Duration>) -> String {
    duration.map_or("never".into(), spell)
}

fn or_unlimited(limit: Option<u32>) -> String {
    limit.map_or("unlimited".into(), |limit| limit.to_string())
}

fn or_none<T: ToString>(value: Option<&T>) -> String {
    value.map_or("none".into(), T::to_string)
}
