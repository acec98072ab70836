//! The pools of the file: backends, health check, queue. What a pool says of itself is checked here; what it says
//! together with listeners, in `cross.rs`.

use std::collections::HashMap;
use std::sync::Arc;

use super::defaults;
use super::file::{Node, Value};
use super::keys;
use super::model::{Backend, Pool, Queue};
use super::place;
use super::reader::{Element, Fields, Item, Path, Placed, Plain, Reader};
use super::value::{MILLISECOND, boolean, bytes, duration, found, hex, limit, number, number32, one_of, percent};
use crate::words::{Address, Algorithm, BackendName, CheckSpec, PoolName, ProxyVersion, Weight};

/// A pool as far as it could be read.
pub(super) struct PoolDraft {
    /// As written: a listener may name it though it is no right name.
    pub written: String,
    pub name: Option<PoolName>,
    pub addresses: Vec<Placed<Address>>,
    pub pool: Option<Pool>,
}

pub(super) fn pools(r: &mut Reader, item: Item<'_>) -> Option<Vec<PoolDraft>> {
    let named = r.named(item, &keys::POOL)?;
    let drafts = named.into_iter().map(|element| {
        let path = item.path.then(&element.name, element.at);
        let name = r.name(&path);
        let (pool, addresses) = pool(r, Item { node: &element.value, path: &path }).unzip();
        PoolDraft { name, addresses: addresses.unwrap_or_default(), pool, written: element.name }
    });
    Some(drafts.collect())
}

fn pool(r: &mut Reader, item: Item<'_>) -> Option<(Pool, Vec<Placed<Address>>)> {
    let fields = r.fields(item, &keys::POOL)?;
    let balance = r.optional(&fields, "balance", Plain(balance));
    let backends = r.required(&fields, "backends", "backends: { web-1: \"10.0.0.7:8080\" }", backends);
    let health_check = r.optional(&fields, "health_check", health_check);
    let connect_timeout = r.optional(&fields, "connect_timeout", Plain(duration(MILLISECOND)));
    let half_close_timeout = r.optional(&fields, "half_close_timeout", Plain(duration(MILLISECOND)));
    let retries = r.optional(&fields, "retries", Plain(number32(0, 255)));
    let queue = r.optional(&fields, "queue", queue);
    let abort_on_close = r.optional(&fields, "abort_on_close", Plain(boolean));
    let send_proxy = r.optional(&fields, "send_proxy", Plain(proxy_version));
    let spare_connections = r.optional(&fields, "spare_connections", Plain(number32(0, 10_000)));
    let spare_max_idle = r.optional(&fields, "spare_max_idle", Plain(duration(MILLISECOND)));
    let (backends, addresses) = backends?;
    let pool = Pool {
        balance: balance.unwrap_or(defaults::BALANCE),
        backends,
        health_check: health_check.map(|check| CheckSpec { send_proxy, ..check }),
        connect_timeout: connect_timeout.unwrap_or(defaults::CONNECT_TIMEOUT),
        half_close_timeout: half_close_timeout.unwrap_or(defaults::HALF_CLOSE_TIMEOUT),
        retries: retries.unwrap_or(defaults::RETRIES),
        queue: queue.unwrap_or(Some(defaults::QUEUE)),
        abort_on_close: abort_on_close.unwrap_or(defaults::ABORT_ON_CLOSE),
        send_proxy,
        spare_connections: spare_connections.unwrap_or(defaults::SPARE_CONNECTIONS),
        spare_max_idle: spare_max_idle.unwrap_or(defaults::SPARE_MAX_IDLE),
    };
    Some((pool, addresses))
}

fn balance(node: &Node) -> Result<Algorithm, String> {
    let mut words: Vec<_> = Algorithm::ALL.iter().map(|algorithm| (algorithm.as_str(), *algorithm)).collect();
    words.insert(1, ("weighted_round_robin", Algorithm::RoundRobin));
    let also = &[
        ("rr", "round_robin"),
        ("wrr", "weighted_round_robin"),
        ("lc", "least_connections"),
        ("leastconn", "least_connections"),
        ("leastrequest", "least_connections"),
        ("p2c", "random_two"),
        ("poweroftwo", "random_two"),
        ("twochoices", "random_two"),
        ("iphash", "source_hash"),
        ("hash", "source_hash"),
        ("sticky", "source_hash"),
        ("failover", "first"),
    ];
    one_of(words, also)(node)
}

/// A backend as far as it could be read.
struct BackendDraft {
    name: Option<BackendName>,
    address: Option<Placed<Address>>,
    /// `None`: it is wrong.
    weight: Option<Weight>,
    max_connections: Option<u32>,
    backup: bool,
    repeated: bool,
}

fn backends(r: &mut Reader, item: Item<'_>) -> Option<(Vec<Backend>, Vec<Placed<Address>>)> {
    let named = r.named(item, &keys::BACKEND)?;
    let mut drafts: Vec<_> = named.iter().map(|element| backend(r, item.path, element)).collect();
    if drafts.iter().all(|draft| draft.weight.is_some_and(|weight| weight.value() == 0)) && r.is_whole() {
        let message = "every backend has weight 0, so none takes a session; give one a weight of 1 or more";
        r.report(item.path.key_at, item.path, message);
    }
    let mut first = HashMap::new();
    for draft in drafts.iter().filter(|draft| !draft.repeated) {
        let Some(address) = &draft.address else { continue };
        if let Some(other) = first.get(&address.value) {
            let message =
                format!("{} is the address of {other} too; remove one, or give one more weight", address.value);
            r.report(address.at, &address.path, message);
        } else {
            first.insert(address.value.clone(), address.path.clone());
        }
    }
    let backends = drafts.iter().filter_map(|draft| {
        Some(Backend {
            name: draft.name.clone()?,
            address: draft.address.as_ref()?.value.clone(),
            weight: draft.weight?,
            max_connections: draft.max_connections,
            backup: draft.backup,
        })
    });
    let backends = backends.collect();
    Some((backends, drafts.iter_mut().filter_map(|draft| draft.address.take()).collect()))
}

fn backend(r: &mut Reader, pool: &Path<'_>, element: &Element) -> BackendDraft {
    let path = pool.then(&element.name, element.at);
    let item = Item { node: &element.value, path: &path };
    let mut draft = BackendDraft {
        name: r.name(&path),
        address: None,
        weight: Some(Weight::default()),
        max_connections: None,
        backup: false,
        repeated: element.repeated,
    };
    if !matches!(&*element.value.value, Value::Map(_)) {
        draft.address = r.placed(item, place::backend);
        return draft;
    }
    let joined = r.host_and_port(item);
    let item = Item { node: joined.as_ref().unwrap_or(item.node), path: item.path };
    let Some(fields) = r.fields(item, &keys::BACKEND) else { return draft };
    draft.address = r.required(&fields, "address", "address: \"10.0.0.7:8080\"", |r: &mut Reader, item: Item<'_>| {
        r.placed(item, place::backend)
    });
    if fields.has("weight") {
        draft.weight = r.optional(&fields, "weight", Plain(weight));
    }
    draft.max_connections = r.optional(&fields, "max_connections", Plain(limit)).flatten();
    draft.backup = r.optional(&fields, "backup", Plain(boolean)).unwrap_or(false);
    draft
}

fn weight(node: &Node) -> Result<Weight, String> {
    let value = number(0, u64::from(Weight::MAX.value()))(node)?;
    Ok(Weight::new(value).expect("checked against the greatest weight"))
}

fn health_check(r: &mut Reader, item: Item<'_>) -> Option<CheckSpec> {
    let fields = r.fields(item, &keys::HEALTH_CHECK)?;
    let interval = || Plain(duration(MILLISECOND));
    r.optional(&fields, "type", Plain(check_type));
    let usual = r.optional(&fields, "interval", interval()).unwrap_or(defaults::CHECK_INTERVAL);
    Some(CheckSpec {
        port: r.optional(&fields, "port", Plain(port)),
        send_proxy: None, // the pool's, which sets it
        send: text_or_hex(r, &fields, "send", "send_hex"),
        expect: text_or_hex(r, &fields, "expect", "expect_hex"),
        interval: usual,
        fast_interval: r.optional(&fields, "fast_interval", interval()).unwrap_or(usual),
        down_interval: r.optional(&fields, "down_interval", interval()).unwrap_or(usual),
        timeout: r.optional(&fields, "timeout", Plain(duration(MILLISECOND))).unwrap_or(defaults::CHECK_TIMEOUT),
        rise: r.optional(&fields, "rise", Plain(number32(1, 1000))).unwrap_or(defaults::RISE),
        fall: r.optional(&fields, "fall", Plain(number32(1, 1000))).unwrap_or(defaults::FALL),
        jitter: r.optional(&fields, "jitter", Plain(percent)).unwrap_or(defaults::JITTER),
    })
}

/// Bytes that are written in one of two ways.
fn text_or_hex(r: &mut Reader, fields: &Fields<'_>, text: &'static str, in_hex: &'static str) -> Option<Arc<[u8]>> {
    let written = r.optional(fields, text, Plain(bytes));
    let both = fields.has(text).then(|| format!("{text} says what these bytes are already; remove one of the two"));
    written.or(r.optional(fields, in_hex, Plain(|node: &Node| both.map_or_else(|| hex(node), Err))))
}

fn check_type(node: &Node) -> Result<(), String> {
    one_of(vec![("tcp", ())], &[])(node)
}

fn port(node: &Node) -> Result<u16, String> {
    let port = number(1, u64::from(u16::MAX))(node)?;
    Ok(u16::try_from(port).expect("checked against 65535"))
}

fn proxy_version(node: &Node) -> Result<ProxyVersion, String> {
    let words = ProxyVersion::ALL.iter().map(|version| (version.as_str(), *version)).collect();
    one_of(words, &[("1", "v1"), ("2", "v2"), ("true", "v2"), ("on", "v2"), ("yes", "v2")])(node)
}

/// `None` for `off`: whoever finds no place is refused at once.
fn queue(r: &mut Reader, item: Item<'_>) -> Option<Option<Queue>> {
    if let Value::Text(word) = &*item.node.value {
        if word.text == "off" {
            return Some(None);
        }
        let found = found(item.node);
        let message = format!(
            "expected a mapping with the keys max, timeout, or off, found {found}; write `off` or `{{ max: 1000, timeout: 5s }}`"
        );
        r.report(item.node.at, item.path, message);
        return None;
    }
    let fields = r.fields(item, &keys::QUEUE)?;
    let Queue { max, timeout } = defaults::QUEUE;
    Some(Some(Queue {
        max: r.optional(&fields, "max", Plain(number32(1, u32::MAX))).unwrap_or(max),
        timeout: r.optional(&fields, "timeout", Plain(duration(MILLISECOND))).unwrap_or(timeout),
    }))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn a_check_may_send_and_expect_any_bytes() {
        for (written, send) in [
            ("send_hex: \"16 03 ff 00\"", &[0x16, 3, 0xff, 0][..]),
            ("send_hex: 1603FF00", &[0x16, 3, 0xff, 0]),
            ("send: \"\\x16\\x7f\\0\"", &[0x16, 0x7f, 0]),
            ("send: 'é'", "é".as_bytes()),
            ("send: \"\\u20ac\"", "€".as_bytes()),
        ] {
            let text = format!(
                "listeners: {{ web: {{ bind: 0.0.0.0:80, pool: web }} }}\n\
                 pools: {{ web: {{ backends: {{ a: 10.0.0.1:1 }}, health_check: {{ {written} }} }} }}"
            );
            let config = Config::parse(&text).unwrap_or_else(|problems| panic!("{written}: {problems:?}"));
            let check = config.pools.values().next().and_then(|pool| pool.health_check.clone()).unwrap();
            assert_eq!(check.send.as_deref(), Some(send), "{written}");
        }
    }
}
