//! What is measured: the rows of the table, each with what is done and what is counted.

use crate::backends::Kind;
use crate::load::{Connection, Work};

pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub figures: &'static [Figure],
    pub doing: Doing,
    /// Much is moved, so that splice may gain.
    pub bulk: bool,
}

/// One number of a measurement; less is better.
pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
}

pub enum Doing {
    /// Sessions that work, beside others that rest.
    Serve { work: Work, sessions: usize, resting: usize },
    /// One session, a request now and then: how much later its answer comes than without a proxy.
    Delay,
    /// Sessions that have carried 64 KiB both ways and rest, in a proxy that was just started.
    Rest { sessions: usize },
}

const REQUEST: &[Figure] = &[Figure { name: "CPU", unit: "µs a request" }];
const CONNECTION: &[Figure] = &[Figure { name: "CPU", unit: "µs a connection" }];
const GIGABYTE: &[Figure] = &[Figure { name: "CPU", unit: "ms a GB" }];
const ADDED: &[Figure] = &[Figure { name: "p50", unit: "µs added" }, Figure { name: "p99", unit: "µs added" }];
const RESTING: &[Figure] =
    &[Figure { name: "memory", unit: "bytes a session" }, Figure { name: "CPU", unit: "µs a second, all at rest" }];

const fn serve(kind: Kind, request: u64, sessions: usize, resting: usize) -> Doing {
    Doing::Serve { work: Work { kind, request, connection: Connection::Kept }, sessions, resting }
}

const fn echo(name: &'static str, title: &'static str, sessions: usize) -> Row {
    Row { name, title, figures: REQUEST, doing: serve(Kind::Echo, 64, sessions, 0), bulk: false }
}

const fn bulk(name: &'static str, title: &'static str, kind: Kind, streams: usize) -> Row {
    Row { name, title, figures: GIGABYTE, doing: serve(kind, 0, streams, 0), bulk: true }
}

pub const ROWS: &[Row] = &[
    echo("echo-1", "64 B echo, 1 session", 1),
    echo("echo-8", "64 B echo, 8 sessions", 8),
    echo("echo-64", "64 B echo, 64 sessions", 64),
    echo("echo-512", "64 B echo, 512 sessions", 512),
    echo("echo-2000", "64 B echo, 2,000 sessions", 2_000),
    echo("echo-9500", "64 B echo, 9,500 sessions", 9_500),
    Row {
        name: "echo-resting",
        title: "64 B echo, 64 sessions beside 9,000 at rest",
        figures: REQUEST,
        doing: serve(Kind::Echo, 64, 64, 9_000),
        bulk: false,
    },
    Row {
        name: "echo-16k",
        title: "16 KiB echo, 64 sessions",
        figures: REQUEST,
        doing: serve(Kind::Echo, 16 * 1024, 64, 0),
        bulk: false,
    },
    Row {
        name: "connect",
        title: "connect, 64 B echo, close, 64 clients",
        figures: CONNECTION,
        doing: Doing::Serve {
            work: Work { kind: Kind::Echo, request: 64, connection: Connection::OneRequest },
            sessions: 64,
            resting: 0,
        },
        bulk: false,
    },
    Row {
        name: "answer-100k",
        title: "100 KiB answers, 64 sessions",
        figures: REQUEST,
        doing: serve(Kind::Answer, 64, 64, 0),
        bulk: true,
    },
    bulk("down-1", "bulk to the client, 1 stream", Kind::Source, 1),
    bulk("down-8", "bulk to the client, 8 streams", Kind::Source, 8),
    bulk("up-1", "bulk to the backend, 1 stream", Kind::Sink, 1),
    bulk("up-8", "bulk to the backend, 8 streams", Kind::Sink, 8),
    Row {
        name: "resting",
        title: "9,500 sessions at rest after 64 KiB both ways",
        figures: RESTING,
        doing: Doing::Rest { sessions: 9_500 },
        bulk: false,
    },
    Row {
        name: "delay",
        title: "64 B echo, 1 session, a pause between requests",
        figures: ADDED,
        doing: Doing::Delay,
        bulk: false,
    },
];

impl Row {
    /// Work is counted in bytes, not in requests.
    pub fn bytes_are_counted(&self) -> bool {
        matches!(self.doing, Doing::Serve { work: Work { kind: Kind::Source | Kind::Sink, .. }, .. })
    }

    /// Sockets that the load or a proxy has at once.
    pub fn descriptors(&self) -> u64 {
        let sessions = match self.doing {
            Doing::Serve { sessions, resting, .. } => sessions + resting,
            Doing::Rest { sessions } => sessions,
            Doing::Delay => 1,
        };
        2 * sessions as u64 + 200
    }
}
