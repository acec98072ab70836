//! The faults operators make, each with what they are told: line, column, key path, and the words that mend it. A row
//! lists every problem of its text, so that none is missed and none invented.

mod meaning;

use std::time::Duration;

use super::{Config, Problem, render};
use crate::words::ProxyVersion;

pub(super) const BASE: &str = r#"listeners:
  web:
    bind: 0.0.0.0:8080
    pool: web
pools:
  web:
    balance: round_robin
    backends:
      b1: 127.0.0.1:9001
      b2: { address: "127.0.0.1:9002", weight: 2 }
    health_check: { interval: 2s, timeout: 1s }
drain_timeout: 30s
"#;

/// What is changed in `BASE`: a text, and what stands in its place.
type Change = (&'static str, &'static str);
/// `LINE:COLUMN`, key path, and words of the message.
type Told = (&'static str, &'static str, &'static str);
/// A text as changed, and every problem of it.
type Row = (&'static [Change], &'static [Told]);

fn changed(changes: &[Change]) -> String {
    changes.iter().fold(BASE.to_owned(), |text, (from, to)| {
        assert_eq!(text.matches(from).count(), 1, "{from:?} is not just once in the text");
        text.replace(from, to)
    })
}

pub(super) fn problems(text: &str) -> Vec<Problem> {
    Config::parse(text).err().unwrap_or_default()
}

fn assert_told(text: &str, told: &[Told]) {
    let problems = problems(text);
    let shown = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(problems.len(), told.len(), "in:\n{text}\ngot:\n{shown}");
    for (problem, (place, path, words)) in problems.iter().zip(told) {
        assert_eq!(format!("{}:{}", problem.line, problem.column), *place, "in:\n{text}\ngot:\n{shown}");
        assert_eq!(problem.path, *path, "in:\n{text}\ngot:\n{shown}");
        assert!(problem.message.contains(words), "{words:?} not in {:?}", problem.message);
    }
}

fn assert_table(rows: &[Row]) {
    for (changes, told) in rows {
        assert_told(&changed(changes), told);
    }
}

#[test]
fn the_base_of_the_tables_is_right() {
    assert_told(BASE, &[]);
}

const KEYS: &[Row] = &[
    (&[("balance:", "ballance:")], &[("7:5", "pools.web.ballance", "did you mean \"balance\"")]),
    (&[("listeners:", "listener:")], &[("1:1", "listener", "did you mean \"listeners\"")]),
    (&[("pools:", "pool:")], &[("5:1", "pool", "did you mean \"pools\"")]),
    (&[("backends:", "backend:")], &[("8:5", "pools.web.backend", "did you mean \"backends\"")]),
    (&[("backends:", "servers:")], &[("8:5", "pools.web.servers", "did you mean \"backends\"")]),
    (&[("address:", "adress:")], &[("10:13", "pools.web.backends.b2.adress", "did you mean \"address\"")]),
    (&[("health_check:", "healthCheck:")], &[("11:5", "pools.web.healthCheck", "did you mean \"health_check\"")]),
    (&[("drain_timeout:", "Drain-Timeout:")], &[("12:1", "Drain-Timeout", "did you mean \"drain_timeout\"")]),
    (&[("drain_timeout:", "colour:")], &[("12:1", "colour", "has the keys listeners, pools")]),
    // The value of a misspelled key is checked as well.
    (
        &[("interval: 2s", "intervall: 2")],
        &[
            ("11:21", "pools.web.health_check.intervall", "did you mean \"interval\""),
            ("11:32", "pools.web.health_check.intervall", "write 2s"),
        ],
    ),
    (&[("    pool: web\n", "")], &[("2:3", "listeners.web.pool", "is missing; write `pool: NAME`")]),
    (&[("address: \"127.0.0.1:9002\", ", "")], &[("10:7", "pools.web.backends.b2.address", "is missing")]),
    (
        &[("    pool: web\n", "    pool: web\n    pool: web\n")],
        &[("5:5", "listeners.web.pool", "written twice, first on line 4")],
    ),
    (
        &[("drain", "  web: { backends: { x: 10.0.0.1 } }\ndrain")],
        &[("12:3", "pools.web", "written twice, first on line 6"), ("12:25", "pools.web.backends.x", "has no port")],
    ),
    (&[("b2:", "b1:")], &[("10:7", "pools.web.backends.b1", "written twice, first on line 9")]),
    (
        &[("pool: web", "pool: api"), ("drain", "pools: { api: { backends: { x: 10.0.0.1:1 } } }\ndrain")],
        &[("12:1", "pools", "written twice, first on line 5")],
    ),
    (&[("drain_timeout: 30s", "retries: 3")], &[("12:1", "retries", "it is a key of a pool: pools.NAME.retries")]),
    (
        &[("    pool: web", "    pool: web\n    weight: 3")],
        &[("5:5", "listeners.web.weight", "pools.NAME.backends.NAME.weight")],
    ),
    (
        &[("    balance", "    interval: 2s\n    balance")],
        &[("7:5", "pools.web.interval", "a key of health_check: pools.NAME.health_check.interval")],
    ),
    (
        &[("    balance", "    send_proxy: 2\n    balance")],
        &[("7:17", "pools.web.send_proxy", "\"2\" is unknown; did you mean \"v2\"? possible are v1, v2")],
    ),
    (
        &[("    pool: web", "    pool: web\n    accept_proxy: {}")],
        &[("5:5", "listeners.web.accept_proxy.from", "the key is missing; write `from: [\"10.0.0.0/8\"]`")],
    ),
    (
        &[("    pool: web", "    pool: web\n    accept_proxy: { from: [] }")],
        &[("5:27", "listeners.web.accept_proxy.from", "write at least one network")],
    ),
    (
        &[("    pool: web", "    pool: web\n    accept_proxy: { from: [10.0.0.0/8, 10.0.0.1/8, lan, \"unix:/a\"] }")],
        &[
            ("5:40", "listeners.web.accept_proxy.from.1", "write \"10.0.0.0/8\", or the address alone"),
            ("5:52", "listeners.web.accept_proxy.from.2", "\"lan\" is not a network"),
            ("5:57", "listeners.web.accept_proxy.from.3", "write \"unix:\""),
        ],
    ),
    (&[("drain_timeout: 30s", "admin: { listen: 127.0.0.1:9900 }")], &[("12:1", "admin", "not supported")]),
    (&[("weight: 2", "port: 80")], &[("10:40", "pools.web.backends.b2.port", "write it in the address")]),
    (
        &[("pool: web", "? [a]\n    : b\n    pool: web")],
        &[("4:7", "listeners.web", "a key must be a text, found a list")],
    ),
];

#[test]
fn keys_that_are_unknown_missing_repeated_or_elsewhere() {
    assert_table(KEYS);
}

const DEPTHS: &[Row] = &[
    (&[("    backends:\n", "  backends:\n")], &[("8:3", "pools.web.backends", "write 4 spaces")]),
    (
        &[("    bind: 0.0.0.0:8080\n    pool: web", "  bind: 0.0.0.0:8080\n  pool: web")],
        &[("3:3", "listeners.bind", "indent it more, so that it stands in \"web\"")],
    ),
    (
        &[("  web:\n    bind: 0.0.0.0:8080\n    pool: web", "  bind: 0.0.0.0:8080\n  pool: web")],
        &[("2:3", "listeners.bind", "whose name is missing; write a name above")],
    ),
    (
        &[("  web:\n    bind: 0.0.0.0:8080\n    pool: web", "web:\n  bind: 0.0.0.0:8080\n  pool: web")],
        &[("2:1", "web", "stands beside \"listeners\", not in it")],
    ),
    (
        &[("      b1: 127.0.0.1:9001\n      b2:", "    b1: 127.0.0.1:9001\n    b2:")],
        &[("9:5", "pools.web.b1", "stands beside \"backends\", not in it")],
    ),
    (
        &[("    backends:\n      b1: 127.0.0.1:9001\n      b2:", "    b1: 127.0.0.1:9001\n    b2:")],
        &[("8:5", "pools.web.b1", "write `backends:` above it")],
    ),
    (&[("    health_check", "      health_check")], &[("11:7", "pools.web.backends.health_check", "indent it less")]),
    (
        &[("    health_check: { interval: 2s, timeout: 1s }", "      retries: 2")],
        &[("11:7", "pools.web.backends.retries", "a key of a pool; indent it less")],
    ),
    (
        &[("    pool: web", "    keepalive:\n      idle: 5s\n      pool: web")],
        &[("6:7", "listeners.web.keepalive.pool", "does not belong in keepalive")],
    ),
    (
        &[("drain_timeout", "  drain_timeout")],
        &[("12:3", "pools.drain_timeout", "a key of the top level; indent it less")],
    ),
    (
        &[("{ interval: 2s, timeout: 1s }", ""), ("drain", "    interval: 5\n    timeout: 2s\ndrain")],
        &[
            ("12:5", "pools.web.interval", "stands beside \"health_check\""),
            ("12:15", "pools.web.health_check.interval", "has no unit"),
        ],
    ),
];

#[test]
fn entries_at_the_wrong_depth_are_one_problem_each() {
    assert_table(DEPTHS);
}

const VALUES: &[Row] = &[
    (
        &[("weight: 2", "weight: -1")],
        &[("10:48", "pools.web.backends.b2.weight", "write a whole number from 0 to 256")],
    ),
    (&[("weight: 2", "weight: 257")], &[("10:48", "pools.web.backends.b2.weight", "out of range")]),
    (&[("weight: 2", "weight: 1.5")], &[("10:48", "pools.web.backends.b2.weight", "is not whole")]),
    (&[("weight: 2", "weight: \"2\"")], &[("10:48", "pools.web.backends.b2.weight", "write 2 without quotes")]),
    (&[("weight: 2", "weight: heavy")], &[("10:48", "pools.web.backends.b2.weight", "found the text \"heavy\"")]),
    (&[("weight: 2", "weight: ")], &[("10:40", "pools.web.backends.b2.weight", "the value is missing")]),
    (&[("weight: 2", "weight: 2, backup: yes")], &[("10:59", "pools.web.backends.b2.backup", "write true")]),
    (&[("interval: 2s", "interval: 2")], &[("11:31", "pools.web.health_check.interval", "no unit; write 2s")]),
    (&[("interval: 2s", "interval: 0s")], &[("11:31", "pools.web.health_check.interval", "write at least 1ms")]),
    (&[("interval: 2s", "interval: 2 sec")], &[("11:31", "pools.web.health_check.interval", "write 2s")]),
    (&[("interval: 2s", "interval: 1.5s")], &[("11:31", "pools.web.health_check.interval", "write 1500ms")]),
    (&[("interval: 2s", "interval: soon")], &[("11:31", "pools.web.health_check.interval", "is not a duration")]),
    (&[("interval: 2s", "interval: [2s]")], &[("11:31", "pools.web.health_check.interval", "found a list")]),
    (
        &[("{ address", "{ naïve: 1, address"), ("weight: 2", "weight: -2")],
        &[
            ("10:13", "pools.web.backends.b2.naïve", "unknown key"),
            ("10:58", "pools.web.backends.b2.weight", "write a whole number from 0 to 256"),
        ],
    ),
    (&[("interval: 2s", "interval: 0")], &[("11:31", "pools.web.health_check.interval", "0 makes no sense here")]),
    (&[("30s", "-30s")], &[("12:16", "drain_timeout", "is negative; write 30s")]),
    (&[("30s", "400d")], &[("12:16", "drain_timeout", "at most 365d")]),
    (&[("drain_timeout: 30s", "removed_timeout: forever")], &[("12:18", "removed_timeout", "write never")]),
    (&[("drain_timeout: 30s", "watch: yes")], &[("12:8", "watch", "write true")]),
    (&[("drain_timeout: 30s", "watch: \"false\"")], &[("12:8", "watch", "write false without quotes")]),
    (&[("round_robin", "leastconn")], &[("7:14", "pools.web.balance", "did you mean \"least_connections\"")]),
    (&[("round_robin", "roundrobin")], &[("7:14", "pools.web.balance", "did you mean \"round_robin\"")]),
    (&[("round_robin", "ip_hash")], &[("7:14", "pools.web.balance", "did you mean \"source_hash\"")]),
    (&[("round_robin", "fastest")], &[("7:14", "pools.web.balance", "write one of round_robin")]),
    (&[("timeout: 1s", "type: http")], &[("11:41", "pools.web.health_check.type", "write tcp")]),
    (
        &[("timeout: 1s", "jitter: 10, rise: 0, fall: -1, port: 0")],
        &[
            ("11:43", "pools.web.health_check.jitter", "write 10%"),
            ("11:53", "pools.web.health_check.rise", "from 1 to"),
            ("11:62", "pools.web.health_check.fall", "from 1 to"),
            ("11:72", "pools.web.health_check.port", "from 1 to 65535"),
        ],
    ),
    (&[("timeout: 1s", "send: PING\\r\\n")], &[("11:41", "pools.web.health_check.send", "write \"PING\\r\\n\"")]),
    (
        &[("timeout: 1s", "send: \"\\x16\\x80\"")],
        &[("11:41", "pools.web.health_check.send", "\"\\x80\" would be two bytes")],
    ),
    (&[("timeout: 1s", "expect: \"\\xff\"")], &[("11:43", "pools.web.health_check.expect", "expect_hex")]),
    (&[("timeout: 1s", "send_hex: 1 603")], &[("11:45", "pools.web.health_check.send_hex", "two for each")]),
    (
        &[("timeout: 1s", "send_hex: 1g")],
        &[("11:45", "pools.web.health_check.send_hex", "'g' is no hexadecimal digit")],
    ),
    (&[("timeout: 1s", "expect_hex: \" \"")], &[("11:47", "pools.web.health_check.expect_hex", "remove the key")]),
    (
        &[("timeout: 1s", "send: a, send_hex: 61")],
        &[("11:54", "pools.web.health_check.send_hex", "send says what these bytes are already")],
    ),
    (&[("timeout: 1s", "expect: \"\"")], &[("11:43", "pools.web.health_check.expect", "remove the key")]),
    (&[("{ interval: 2s, timeout: 1s }", "true")], &[("11:19", "pools.web.health_check", "found true")]),
    (
        &[("    balance", "    queue: 100\n    balance")],
        &[("7:12", "pools.web.queue", "keys max, timeout, or off, found the number 100")],
    ),
    (
        &[("    pool: web", "    pool: web\n    max_connections: 10k")],
        &[("5:22", "listeners.web.max_connections", "found the text \"10k\"")],
    ),
    (
        &[("    pool: web", "    pool: web\n    keepalive: { idle: 500ms, interval: 40000s, count: 128 }")],
        &[
            ("5:24", "listeners.web.keepalive.idle", "write 1s"),
            ("5:41", "listeners.web.keepalive.interval", "at most 32767s"),
            ("5:56", "listeners.web.keepalive.count", "at most 127"),
        ],
    ),
    (
        &[("drain_timeout: 30s", "process: { workers: 0, buffer_memory: 64k }")],
        &[("12:21", "process.workers", "from 1 to 1024"), ("12:39", "process.buffer_memory", "write 64KiB")],
    ),
    (
        &[("drain_timeout: 30s", "control: { mode: 0660, socket: run/x, group: [] }")],
        &[
            ("12:18", "control.mode", "write \"0660\" in quotes"),
            ("12:32", "control.socket", "is not absolute"),
            ("12:46", "control.group", "found a list"),
        ],
    ),
    (
        &[("drain_timeout: 30s", "log: { connections: of, level: warning }")],
        &[("12:21", "log.connections", "one of off"), ("12:32", "log.level", "did you mean \"warn\"")],
    ),
    (&[("pool: web", "pool: wbe")], &[("4:11", "listeners.web.pool", "did you mean \"web\"")]),
    (&[("b1:", "b/1:")], &[("9:7", "pools.web.backends.b/1", "must not contain '/'")]),
];

#[test]
fn values_that_are_wrong_say_what_to_write() {
    assert_table(VALUES);
}

const ADDRESSES: &[Row] = &[
    (&[("127.0.0.1:9001", "127.0.0.1")], &[("9:11", "pools.web.backends.b1", "has no port")]),
    (&[("127.0.0.1:9001", "127.0.0.1:99999")], &[("9:11", "pools.web.backends.b1", "\"99999\" is not a port")]),
    (&[("127.0.0.1:9001", "127.0.0.1:0")], &[("9:11", "pools.web.backends.b1", "port 0")]),
    (&[("127.0.0.1:9001", "9001:127.0.0.1")], &[("9:11", "pools.web.backends.b1", "write \"127.0.0.1:9001\"")]),
    (&[("127.0.0.1:9001", "localhost:9001")], &[("9:11", "pools.web.backends.b1", "write \"127.0.0.1:9001\"")]),
    (&[("127.0.0.1:9001", "db.example:9001")], &[("9:11", "pools.web.backends.b1", "is a host name")]),
    (&[("127.0.0.1:9001", "10.0.0.256:9001")], &[("9:11", "pools.web.backends.b1", "from 0 to 255")]),
    (&[("127.0.0.1:9001", "::1:9001")], &[("9:11", "pools.web.backends.b1", "write \"[::1]:9001\"")]),
    (&[("127.0.0.1:9001", "tcp://10.0.0.1:80")], &[("9:11", "pools.web.backends.b1", "write \"10.0.0.1:80\"")]),
    (
        &[("127.0.0.1:9001", "127.0.0.1:9002")],
        &[("10:22", "pools.web.backends.b2.address", "is the address of pools.web.backends.b1 too")],
    ),
    (
        &[("127.0.0.1:9001", "127.0.0.1:8080")],
        &[("9:11", "pools.web.backends.b1", "is listeners.web.bind of lbd itself")],
    ),
    (&[("0.0.0.0:8080", "8080")], &[("3:11", "listeners.web.bind", "write \"0.0.0.0:8080\"")]),
    (&[("0.0.0.0:8080", ":8080")], &[("3:11", "listeners.web.bind", "write \"0.0.0.0:8080\"")]),
    (&[("0.0.0.0:8080", "[]")], &[("3:11", "listeners.web.bind", "at least one address")]),
    (&[("0.0.0.0:8080", "unix:web.sock")], &[("3:11", "listeners.web.bind", "is not absolute")]),
    (
        &[("0.0.0.0:8080", "[ 0.0.0.0:80, 10.0.0.1:80 ]")],
        &[("3:25", "listeners.web.bind.1", "overlaps with 0.0.0.0:80 of listeners.web.bind.0 on line 3")],
    ),
    (
        &[("0.0.0.0:8080", "[ 127.0.0.1:0, 127.0.0.1:0 ]")],
        &[("3:26", "listeners.web.bind.1", "is bound twice, first by listeners.web.bind.0 on line 3; ask for port 0")],
    ),
    (
        &[("pools:", "  v6: { bind: \"[::]:8080\", pool: web }\npools:")],
        &[("5:15", "listeners.v6.bind", "overlaps with 0.0.0.0:8080 of listeners.web.bind on line 3")],
    ),
    (
        &[("0.0.0.0:8080", "unix:/run/a.sock"), ("drain_timeout: 30s", "control: { socket: /run//a.sock }")],
        &[("3:11", "listeners.web.bind", "is the control socket")],
    ),
    (
        &[("b1: 127.0.0.1:9001", "b1: { address: 127.0.0.1:9001, weight: 0 }"), ("weight: 2", "weight: 0")],
        &[("8:5", "pools.web.backends", "every backend has weight 0")],
    ),
];

#[test]
fn addresses_that_are_wrong_or_clash() {
    assert_table(ADDRESSES);
}

#[test]
fn addresses_that_only_look_alike_do_not_clash() {
    assert_table(&[
        (&[("0.0.0.0:8080", "[ 127.0.0.1:0, 127.0.0.2:0, 0.0.0.0:0, \"[::1]:80\", 127.0.0.1:80, 10.0.0.1:80 ]")], &[]),
        (&[("127.0.0.1:9001", "10.0.0.7:8080")], &[]),
        (
            &[("weight: 2", "backup: true"), ("b1: 127.0.0.1:9001", "b1: { address: 127.0.0.1:9001, backup: true }")],
            &[],
        ),
    ]);
}

const SYNTAX: &[Row] = &[
    (&[("pool: web", "pool:web")], &[("4:5", "listeners.web.pool", "a space is missing after \"pool:\"")]),
    (&[("bind: 0", "bind:0")], &[("3:5", "listeners.web.bind", "a space is missing after \"bind:\"")]),
    (
        &[("b1: 127", "b1:127"), ("b2: { address: \"127.0.0.1:9002\", weight: 2 }", "b2:127.0.0.1:9002")],
        &[
            ("9:7", "pools.web.backends.b1", "a space is missing"),
            ("10:7", "pools.web.backends.b2", "a space is missing"),
        ],
    ),
    (&[("weight: 2", "weight:2")], &[("10:40", "pools.web.backends.b2.weight", "a space is missing")]),
    (&[("pool: web", "pool web")], &[("4:5", "listeners.web.pool", "a colon is missing after \"pool\"")]),
    (&[("pools:", "pools")], &[("5:1", "pools", "a colon is missing after \"pools\"")]),
    (&[("pool: web", "pool = web")], &[("4:5", "listeners.web.pool", "followed by a colon")]),
    (&[("    pool: web", "\tpool: web")], &[("4:1", "listeners.web.pool", "a tab in the indentation, where")]),
    (&[("pool: web", "pool:\tweb")], &[("4:10", "listeners.web.pool", "a tab after the colon")]),
    (&[("    pool: web", "    \u{a0}pool: web")], &[("4:5", "listeners.web.pool", "a no-break space")]),
    (&[("    pool: web", "      pool: web")], &[("4:7", "listeners.web.pool", "write 4 spaces")]),
    (&[("    pool: web", "   pool: web")], &[("4:4", "listeners.web.pool", "write 4 spaces")]),
    (&[("0.0.0.0:8080", "\"0.0.0.0:8080")], &[("3:11", "listeners.web.bind", "the quote is not closed")]),
    (&[("9002\", weight", "9002, weight")], &[("10:22", "pools.web.backends.b2.address", "the quote is not closed")]),
    (&[("weight: 2 }", "weight: 2")], &[("10:11", "pools.web.backends.b2", "the bracket is not closed")]),
    (&[("weight: 2 }", "weight: 2 }}")], &[("10:51", "pools.web.backends.b2.weight", "one \"}\" too many")]),
    (
        &[("interval: 2s, ", "interval: 2s ")],
        &[("11:33", "pools.web.health_check.interval", "a comma is missing before \"timeout\"")],
    ),
    (&[("0.0.0.0:8080", "[::]:8080")], &[("3:11", "listeners.web.bind", "write \"[::]:8080\"")]),
    (&[("0.0.0.0:8080", "*:8080")], &[("3:11", "listeners.web.bind", "write 0.0.0.0:8080")]),
    (&[("0.0.0.0:8080", "@web")], &[("3:11", "listeners.web.bind", "put it in quotes")]),
    (&[("0.0.0.0:8080", "0.0.0.0: 8080")], &[("3:11", "listeners.web.bind", "write `bind: 0.0.0.0:8080`")]),
    (&[("    bind", "    - bind")], &[("3:5", "listeners.web.bind", "the dash begins a list")]),
    (&[("timeout: 1s", "send: \"\\q\"")], &[("11:42", "pools.web.health_check.send", "an unknown escape")]),
    (&[("0.0.0.0:8080", "0.0.0.0:8080:")], &[("3:11", "listeners.web.bind", "one colon too many")]),
    (&[("{ interval: 2s, timeout: 1s }", "interval: 2s")], &[("11:19", "pools.web.health_check", "stand in braces")]),
    (&[("30s", "30s watch: true")], &[("12:20", "drain_timeout", "write \"watch\" on a line of its own")]),
    (&[("127.0.0.1:9001", "\"127.0.0.1\":9001")], &[("9:11", "pools.web.backends.b1", "write \"127.0.0.1:9001\"")]),
    (
        &[("0.0.0.0:8080", "\n    - 0.0.0.0:80\n    -0.0.0.0:81")],
        &[("5:5", "listeners.web.bind", "a space is missing after the dash")],
    ),
    (
        &[("{ address: \"127.0.0.1:9002\", weight: 2 }", "\n        127.0.0.1:9002\n        weight: 2")],
        &[("11:9", "pools.web.backends.b2.address", "write `address: 127.0.0.1:9002`")],
    ),
    (&[("pools:", "pools: web")], &[("5:8", "pools", "cannot both belong to \"pools\"")]),
    (&[("interval: 2s", "interval 2s")], &[("11:21", "pools.web.health_check.interval", "a colon is missing")]),
    (&[("drain", "---\ndrain")], &[("12:1", "", "a second document begins here")]),
    (&[("pools:", "---\npools:")], &[("5:1", "", "a second document begins here")]),
    (&[("pools:", "<<<<<<< HEAD\npools:")], &[("5:1", "", "a merge conflict marker")]),
    (&[("    balance", "=======\n    balance")], &[("7:1", "", "a merge conflict marker")]),
    (&[("    pool: web", "    // old\n    pool: web")], &[("4:5", "", "write it instead of //")]),
    (&[("pools:", "// old: one\n// two\npools:")], &[("5:1", "", "instead of //, here and on 1 more lines")]),
    (&[("pool: web", "pool:\u{a0}web")], &[("4:10", "listeners.web.pool", "a no-break space after the colon")]),
    (&[("b1: 127", "b1:\u{a0}127")], &[("9:10", "pools.web.backends.b1", "a no-break space after the colon")]),
    (&[("b1: 127.0.0.1:9001", "b1: {{ backend }}")], &[("9:12", "pools.web.backends.b1", "found a mapping")]),
    (
        &[("b1: 127.0.0.1:9001", "b1: { host: 10.0.0.1, port: 80 }")],
        &[("9:13", "pools.web.backends.b1.host", "write `address: \"10.0.0.1:80\"`")],
    ),
    (&[("2s", "!!str 2s")], &[("11:31", "", "the tag")]),
];

#[test]
fn slips_of_syntax_are_found_and_the_rest_of_the_file_is_read() {
    assert_table(SYNTAX);
}

#[test]
fn two_faults_are_told_as_each_alone() {
    let single = |row: &&Row| matches!(row.0, [(from, to)] if from.matches('\n').count() == to.matches('\n').count());
    let rows: Vec<&Row> = [KEYS, VALUES, SYNTAX].into_iter().flatten().filter(single).collect();
    let line = |row: &Row| BASE[..BASE.find(row.0[0].0).unwrap()].matches('\n').count();
    let place = |told: &Told| -> Vec<u32> { told.0.split(':').map(|number| number.parse().unwrap()).collect() };
    // All pairs pass; a share of them is enough for each run.
    let pairs = rows.iter().enumerate().flat_map(|(n, one)| rows[n + 1..].iter().map(move |other| (one, other)));
    for (one, other) in pairs.filter(|(one, other)| line(one).abs_diff(line(other)) > 1).step_by(11) {
        let text = changed(&[one.0[0]]).replace(other.0[0].0, other.0[0].1);
        let mut told: Vec<_> = one.1.iter().chain(other.1).map(place).collect();
        told.sort();
        let problems = problems(&text);
        let got: Vec<_> = problems.iter().map(|problem| vec![problem.line, problem.column]).collect();
        assert_eq!(got, told, "{problems:#?}\n{text}");
    }
}

#[test]
fn several_faults_are_all_told_in_the_order_of_the_file() {
    assert_table(&[
        (
            &[("round_robin", "robin"), ("pool: web", "pool:web"), ("drain_timeout", "drain_timout")],
            &[
                ("4:5", "listeners.web.pool", "a space is missing"),
                ("7:14", "pools.web.balance", "is unknown"),
                ("12:1", "drain_timout", "did you mean"),
            ],
        ),
        (
            &[("pool: web", "pool: wep"), ("round_robin", "roundrobin"), ("9001", "0"), ("30s", "30")],
            &[
                ("4:11", "listeners.web.pool", "did you mean \"web\""),
                ("7:14", "pools.web.balance", "did you mean"),
                ("9:11", "pools.web.backends.b1", "port 0"),
                ("12:16", "drain_timeout", "write 30s"),
            ],
        ),
        (
            &[("pool: web", "pool:web"), ("    balance", "   balance"), ("weight: 2 }", "weight: 2"), ("30s", "30")],
            &[
                ("4:5", "listeners.web.pool", "a space is missing"),
                ("7:4", "pools.web.balance", "write 4 spaces"),
                ("10:11", "pools.web.backends.b2", "the bracket is not closed"),
                ("12:16", "drain_timeout", "no unit"),
            ],
        ),
        // A pool with a broken field is still there for its listener.
        (
            &[("9001", "x"), ("weight: 2", "weight: x")],
            &[
                ("9:11", "pools.web.backends.b1", "is not a port"),
                ("10:48", "pools.web.backends.b2.weight", "whole number"),
            ],
        ),
        (
            &[("      b1: 127.0.0.1:9001\n", ""), ("weight: 2", "weight: -2")],
            &[("9:48", "pools.web.backends.b2.weight", "from 0")],
        ),
    ]);
}

#[test]
fn files_of_another_shape() {
    let one_line = r#"{"listeners": {"a": {"bind": "0.0.0.0:1", "pool": "p"}}, "pools": {"p": {"backends": {"b": "10.0.0.1:1"}}}}"#;
    for (text, told) in [
        (one_line, &[][..]),
        (&BASE.replace('\n', "\r\n"), &[]),
        (&format!("\u{feff}{BASE}"), &[]),
        (&format!("---\n{BASE}..."), &[]),
        (
            &BASE.replace("pool: web", "pool: wbe").replace('\n', "\r\n"),
            &[("4:11", "listeners.web.pool", "did you mean")],
        ),
        ("", &[("1:1", "", "the file is empty")]),
        ("# nothing\n\n", &[("1:1", "", "the file is empty")]),
        ("~", &[("1:1", "", "the file is empty")]),
        ("hello", &[("1:1", "", "expected a mapping with the keys listeners, pools")]),
        ("- a\n- b\n", &[("1:1", "", "found a list")]),
        ("{}", &[("1:1", "listeners", "is missing"), ("1:1", "pools", "is missing")]),
        ("listeners:\npools: {}\n", &[("1:1", "listeners", "there is none"), ("2:8", "pools", "there is none")]),
        (&BASE.replace("web\n", "w\0b\n"), &[("4:12", "", "control character")]),
    ] {
        assert_told(text, told);
    }
    let name_forgotten = BASE.replacen("  web:\n    balance", "  balance", 1).replace("\n    ", "\n  ");
    assert_told(
        &name_forgotten.replace("  bind", "    bind").replace("  pool", "    pool"),
        &[("6:3", "pools.balance", "whose name is missing")],
    );
    assert_told(&"x".repeat(2 << 20), &[("1:1", "", "at most 1 MiB is read")]);
    let latin = [b"listeners:\n  caf".as_slice(), b"\xe9: 1\n"].concat();
    assert_eq!(Config::parse(latin).unwrap_err()[0].to_string(), "2:6: the file is not UTF-8 here; save it as UTF-8");
}

#[test]
fn pools_inside_listeners_are_one_problem() {
    let alone = BASE.replace("pools:", "  pools:");
    assert_told(&alone, &[("5:3", "pools", "indented by 2 spaces, which does not fit; write none")]);
    let (listeners, pools) = BASE[..BASE.find("drain").unwrap()].split_at(BASE.find("pools:").unwrap());
    let whole = listeners.to_owned() + &pools.lines().map(|line| format!("  {line}\n")).collect::<String>();
    assert_told(&whole, &[("5:3", "listeners.pools", "is a key of the top level; indent it less")]);
}

#[test]
fn lists_instead_of_mappings_are_one_problem() {
    assert_told(
        "listeners: { a: { bind: 0.0.0.0:80, pool: p } }\npools:\n  p:\n    backends:\n      - 10.0.0.1:80\n      - 10.0.0.2:80\n",
        &[("5:7", "pools.p.backends", "expected a mapping of names, such as `web-1: \"10.0.0.7:8080\"`, found a list")],
    );
    assert_told(
        "listeners: { a: { bind: 0.0.0.0:80, pool: p } }\npools:\n  - name: p\n    backends: { b: 10.0.0.1:80 }\n",
        &[("3:3", "pools", "found a list")],
    );
}

#[test]
fn anchors_aliases_and_merge_keys_are_read() {
    let text = changed(&[
        ("{ interval: 2s, timeout: 1s }", "&hc { interval: 2s, timeout: 1s }"),
        ("drain", "  api: { backends: { x: 10.0.0.1:80 }, health_check: { <<: *hc, rise: 7 } }\ndrain"),
    ]);
    let config = Config::parse(text).unwrap();
    let check = config.pools[&"api".parse().unwrap()].health_check.clone().unwrap();
    assert_eq!((check.rise, check.timeout), (7, Duration::from_secs(1)));
    // A fault behind an alias is one fault.
    let text = changed(&[
        ("{ interval: 2s, timeout: 1s }", "&hc { interval: 2, timeout: 1s }"),
        ("drain", "  api: { backends: { x: 10.0.0.1:80 }, health_check: *hc }\ndrain"),
    ]);
    assert_told(&text, &[("11:35", "pools.web.health_check.interval", "no unit")]);
}

#[test]
fn a_problem_is_shown_with_its_line() {
    let text = changed(&[("30s", "30")]);
    let problems = problems(&text);
    assert_eq!(
        problems[0].one_line("lbd.yaml"),
        "lbd.yaml:12:16: drain_timeout: the duration 30 has no unit; write 30s, 30ms or 30m"
    );
    let shown = render(&problems, "lbd.yaml", text.as_bytes(), false);
    assert!(shown.contains("lbd.yaml:12:16") && shown.contains("drain_timeout: 30") && shown.contains("^^"), "{shown}");
}

#[test]
fn who_must_send_a_proxy_header_and_who_gets_one() {
    let text = |from: &str| {
        format!(
            "listeners: {{ web: {{ bind: 0.0.0.0:80, pool: p, accept_proxy: {{ from: {from} }} }} }}\n\
             pools: {{ p: {{ backends: {{ a: 10.0.0.1:1 }}, send_proxy: v1, health_check: {{}} }} }}"
        )
    };
    for (from, expects) in [
        ("10.0.0.0/8", [true, false, false]),
        ("[10.1.0.0/16, \"fd00::/8\"]", [true, true, false]),
        ("[\"unix:\"]", [false, false, true]),
    ] {
        let config = Config::parse(text(from)).unwrap();
        let trusted = config.listeners.values().next().unwrap().accept_proxy.clone().unwrap();
        let asked = [Some("10.1.2.3".parse().unwrap()), Some("fd00::1".parse().unwrap()), None];
        assert_eq!(asked.map(|ip| trusted.expects(ip)), expects, "{from}");
        let pool = config.pools.values().next().unwrap();
        let check = pool.health_check.as_ref().unwrap();
        assert_eq!((pool.send_proxy, check.send_proxy), (Some(ProxyVersion::V1), Some(ProxyVersion::V1)));
    }
}
