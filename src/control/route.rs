//! How requests travel: each has one method, one path and at most one small JSON document. `build`
//! and `parse` are each other's inverse; what a request means is `request`'s to say.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::request::{Earnest, LiveSessions, Request, ShutdownMode, Upgrade, Wait};
use super::target::{Pools, Target};
use crate::observe::json;

/// The longest reason, in bytes: it is shown in one cell of a table.
const MAX_REASON: usize = 256;

/// The longest time that may be asked for: ten years, so that adding it to a clock never overflows.
const MAX_TIME_MS: u64 = 10 * 365 * 86_400_000;

/// Every route: what a request that knows none is told.
const ROUTES: [(&str, &str); 8] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/stats"),
    ("POST", "/v1/reload"),
    ("POST", "/v1/drain"),
    ("POST", "/v1/enable"),
    ("POST", "/v1/disable"),
    ("POST", "/v1/upgrade"),
    ("POST", "/v1/shutdown"),
];

/// A request as HTTP carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path with its query.
    pub path: String,
    /// JSON, or nothing.
    pub body: String,
}

/// Why what came is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unroutable {
    /// No such path.
    NoRoute,
    /// The path wants another method; holds it.
    Method(&'static str),
    /// The query or the document is wrong; says how.
    Malformed(String),
}

impl Unroutable {
    /// The HTTP status that says so.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::Method(_) => 405,
            Self::Malformed(_) => 400,
        }
    }
}

impl fmt::Display for Unroutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => {
                let all: Vec<_> = ROUTES.iter().map(|(method, path)| format!("{method} {path}")).collect();
                write!(f, "there is no such route; there are {}", all.join(", "))
            }
            Self::Method(right) => write!(f, "this route takes {right} alone"),
            Self::Malformed(how) => f.write_str(how),
        }
    }
}

impl std::error::Error for Unroutable {}

/// What `POST /v1/drain` takes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainBody {
    backend: String,
    #[serde(default)]
    all_pools: bool,
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    expires_in_ms: Option<u64>,
}

/// What `POST /v1/enable` takes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnableBody {
    backend: String,
    #[serde(default)]
    all_pools: bool,
}

/// What `POST /v1/disable` takes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DisableBody {
    backend: String,
    #[serde(default)]
    all_pools: bool,
    #[serde(default)]
    close: bool,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    expires_in_ms: Option<u64>,
}

/// What `POST /v1/upgrade` takes.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpgradeBody {
    #[serde(default)]
    program: Option<PathBuf>,
    #[serde(default)]
    dry_run: bool,
}

/// What `POST /v1/shutdown` takes.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownBody {
    #[serde(default)]
    now: bool,
}

/// What a route without settings takes.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// A request on its way out. Durations travel as whole milliseconds, rounded up.
pub fn build(request: &Request) -> Wire {
    let get = |path: &str| Wire { method: "GET", path: path.into(), body: String::new() };
    let post = |path: &str, body: String| Wire { method: "POST", path: path.into(), body };
    match request {
        Request::Status => get("/v1/status"),
        Request::Stats { pool: None } => get("/v1/stats"),
        Request::Stats { pool: Some(pool) } => get(&format!("/v1/stats?pool={pool}")),
        Request::Reload => post("/v1/reload", String::new()),
        Request::Drain { target, wait, reason, expires } => {
            let body = DrainBody {
                backend: target.to_string(),
                all_pools: target.pools() == Pools::All,
                wait: wait.is_some(),
                timeout_ms: wait.and_then(|wait| wait.timeout).map(millis),
                reason: reason.clone(),
                expires_in_ms: expires.map(millis),
            };
            post("/v1/drain", json::compact(&body))
        }
        Request::Enable { target } => {
            let body = EnableBody { backend: target.to_string(), all_pools: target.pools() == Pools::All };
            post("/v1/enable", json::compact(&body))
        }
        Request::Disable { target, live, reason, expires } => {
            let body = DisableBody {
                backend: target.to_string(),
                all_pools: target.pools() == Pools::All,
                close: *live == LiveSessions::Close,
                reason: reason.clone(),
                expires_in_ms: expires.map(millis),
            };
            post("/v1/disable", json::compact(&body))
        }
        Request::Upgrade(Upgrade { program, earnest }) => {
            let body = UpgradeBody { program: program.clone(), dry_run: *earnest == Earnest::Tried };
            post("/v1/upgrade", json::compact(&body))
        }
        Request::Shutdown { mode } => {
            post("/v1/shutdown", json::compact(&ShutdownBody { now: *mode == ShutdownMode::Now }))
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// What came in, as a request. `path` holds the query. Never panics, whatever came.
pub fn parse(method: &str, path: &str, body: &[u8]) -> Result<Request, Unroutable> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (right, path) = ROUTES.into_iter().find(|(_, known)| *known == path).ok_or(Unroutable::NoRoute)?;
    if method != right {
        return Err(Unroutable::Method(right));
    }
    if path != "/v1/stats" && !query.is_empty() {
        return Err(Unroutable::Malformed(format!("{path} takes no query")));
    }
    match path {
        "/v1/status" => Ok(Request::Status),
        "/v1/stats" => stats(query),
        "/v1/reload" => optional::<EmptyBody>(body).map(|_| Request::Reload),
        "/v1/drain" => drain(document(body)?),
        "/v1/enable" => enable(document(body)?),
        "/v1/disable" => disable(document(body)?),
        "/v1/upgrade" => upgrade(optional(body)?),
        "/v1/shutdown" => optional::<ShutdownBody>(body)
            .map(|body| Request::Shutdown { mode: if body.now { ShutdownMode::Now } else { ShutdownMode::Graceful } }),
        _ => Err(Unroutable::NoRoute),
    }
}

fn stats(query: &str) -> Result<Request, Unroutable> {
    if query.is_empty() {
        return Ok(Request::Stats { pool: None });
    }
    let pool = query.strip_prefix("pool=").ok_or_else(|| malformed("/v1/stats takes one query: pool=NAME"))?;
    let pool = pool.parse().map_err(|error| malformed(format!("pool={pool}: {error}")))?;
    Ok(Request::Stats { pool: Some(pool) })
}

fn drain(body: DrainBody) -> Result<Request, Unroutable> {
    if body.timeout_ms.is_some() && !body.wait {
        return Err(malformed("timeout_ms bounds a wait; add \"wait\": true, or leave it out"));
    }
    let timeout = time("timeout_ms", body.timeout_ms)?;
    Ok(Request::Drain {
        target: target(&body.backend, body.all_pools)?,
        wait: body.wait.then_some(Wait { timeout }),
        reason: reason(body.reason)?,
        expires: time("expires_in_ms", body.expires_in_ms)?,
    })
}

fn enable(body: EnableBody) -> Result<Request, Unroutable> {
    Ok(Request::Enable { target: target(&body.backend, body.all_pools)? })
}

fn disable(body: DisableBody) -> Result<Request, Unroutable> {
    Ok(Request::Disable {
        target: target(&body.backend, body.all_pools)?,
        live: if body.close { LiveSessions::Close } else { LiveSessions::Keep },
        reason: reason(body.reason)?,
        expires: time("expires_in_ms", body.expires_in_ms)?,
    })
}

fn upgrade(body: UpgradeBody) -> Result<Request, Unroutable> {
    if let Some(program) = body.program.as_ref().filter(|program| !program.is_absolute()) {
        return Err(malformed(format!("program: the path \"{}\" is not absolute", program.display())));
    }
    let earnest = if body.dry_run { Earnest::Tried } else { Earnest::Done };
    Ok(Request::Upgrade(Upgrade { program: body.program, earnest }))
}

fn target(text: &str, all_pools: bool) -> Result<Target, Unroutable> {
    let pools = if all_pools { Pools::All } else { Pools::One };
    Target::parse(text, pools).map_err(|error| malformed(format!("backend: {error}")))
}

fn time(key: &str, ms: Option<u64>) -> Result<Option<Duration>, Unroutable> {
    match ms {
        Some(ms) if ms > MAX_TIME_MS => Err(malformed(format!("{key}: {ms} is longer than ten years"))),
        ms => Ok(ms.map(Duration::from_millis)),
    }
}

fn reason(text: Option<String>) -> Result<Option<String>, Unroutable> {
    match text {
        Some(text) if text.len() > MAX_REASON => {
            Err(malformed(format!("the reason has {} bytes; at most {MAX_REASON} are allowed", text.len())))
        }
        Some(text) if text.contains(char::is_control) => {
            Err(malformed("the reason holds a line break or another control character; write one line"))
        }
        text => Ok(text),
    }
}

fn optional<T: Default + DeserializeOwned>(body: &[u8]) -> Result<T, Unroutable> {
    if body.trim_ascii().is_empty() { Ok(T::default()) } else { document(body) }
}

fn document<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unroutable> {
    json::read(body).map_err(|error| malformed(format!("the document is wrong: {error}")))
}

fn malformed(how: impl Into<String>) -> Unroutable {
    Unroutable::Malformed(how.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn a_target() -> impl Strategy<Value = Target> {
        let name = "[A-Za-z0-9._-]{1,63}";
        (proptest::option::of(name), name, any::<bool>()).prop_map(|(pool, backend, all)| match pool {
            Some(pool) => Target::parse(&format!("{pool}/{backend}"), Pools::One).unwrap(),
            None => Target::parse(&backend, if all { Pools::All } else { Pools::One }).unwrap(),
        })
    }

    fn a_time() -> impl Strategy<Value = Option<Duration>> {
        proptest::option::of((0..=MAX_TIME_MS).prop_map(Duration::from_millis))
    }

    fn a_request() -> impl Strategy<Value = Request> {
        let reason = || proptest::option::of("[^\\p{Cc}]{0,64}");
        let pool = proptest::option::of("[A-Za-z0-9._-]{1,63}".prop_map(|name| name.parse().unwrap()));
        prop_oneof![
            Just(Request::Status),
            pool.prop_map(|pool| Request::Stats { pool }),
            Just(Request::Reload),
            (a_target(), proptest::option::of(a_time()), reason(), a_time()).prop_map(
                |(target, wait, reason, expires)| {
                    let wait = wait.map(|timeout| Wait { timeout });
                    Request::Drain { target, wait, reason, expires }
                }
            ),
            a_target().prop_map(|target| Request::Enable { target }),
            (a_target(), any::<bool>(), reason(), a_time()).prop_map(|(target, close, reason, expires)| {
                let live = if close { LiveSessions::Close } else { LiveSessions::Keep };
                Request::Disable { target, live, reason, expires }
            }),
            (proptest::option::of("/[^\\p{Cc}]{0,64}"), any::<bool>()).prop_map(|(program, tried)| {
                let earnest = if tried { Earnest::Tried } else { Earnest::Done };
                Request::Upgrade(Upgrade { program: program.map(PathBuf::from), earnest })
            }),
            prop_oneof![Just(ShutdownMode::Graceful), Just(ShutdownMode::Now)]
                .prop_map(|mode| Request::Shutdown { mode }),
        ]
    }

    proptest! {
        #[test]
        fn the_server_reads_what_the_client_builds(request in a_request()) {
            let wire = build(&request);
            prop_assert_eq!(parse(wire.method, &wire.path, wire.body.as_bytes()), Ok(request));
        }

        #[test]
        fn nothing_that_comes_in_panics(method in "GET|POST|.*", route in 0..ROUTES.len(), tail in ".*", body: Vec<u8>) {
            let _ = parse(&method, &format!("{}{tail}", ROUTES[route].1), &body);
        }
    }

    #[test]
    fn what_is_no_request_is_told_how_to_become_one() {
        for (method, path, body, told) in [
            ("GET", "/", "", "there is no such route; there are GET /v1/status, "),
            ("GET", "/v1/status/", "", "there is no such route"),
            ("POST", "/v1/status", "", "this route takes GET alone"),
            ("DELETE", "/v1/drain", "", "this route takes POST alone"),
            ("GET", "/v1/status?x=1", "", "/v1/status takes no query"),
            ("GET", "/v1/stats?pools=a", "", "/v1/stats takes one query: pool=NAME"),
            ("GET", "/v1/stats?pool=a%20b", "", "pool=a%20b: a name must not contain '%'"),
            ("POST", "/v1/drain", "", "the document is wrong: EOF"),
            ("POST", "/v1/drain", "{}", "the document is wrong: missing field `backend`"),
            ("POST", "/v1/drain", r#"{"backend":"a b"}"#, "backend: \"a b\" is not pool/backend or backend"),
            ("POST", "/v1/drain", r#"{"backend":"b","wiat":true}"#, "the document is wrong: unknown field `wiat`"),
            ("POST", "/v1/drain", r#"{"backend":"b","timeout_ms":5}"#, "timeout_ms bounds a wait"),
            ("POST", "/v1/drain", r#"{"backend":"p/b","all_pools":true}"#, "backend: a target with a pool"),
            (
                "POST",
                "/v1/drain",
                r#"{"backend":"b","expires_in_ms":400000000000}"#,
                "expires_in_ms: 400000000000 is longer",
            ),
            ("POST", "/v1/disable", r#"{"backend":"b","reason":"a\nb"}"#, "the reason holds a line break"),
            ("POST", "/v1/upgrade", r#"{"program":"lbd"}"#, "program: the path \"lbd\" is not absolute"),
            ("POST", "/v1/reload", r#"{"force":true}"#, "the document is wrong: unknown field `force`"),
        ] {
            let told_in_fact = parse(method, path, body.as_bytes()).unwrap_err().to_string();
            assert!(told_in_fact.starts_with(told), "{method} {path} {body}: {told_in_fact}");
        }
    }

    #[test]
    fn a_document_may_be_left_out_where_it_says_nothing() {
        assert_eq!(parse("POST", "/v1/reload", b""), Ok(Request::Reload));
        assert_eq!(parse("POST", "/v1/reload", b"{}\n"), Ok(Request::Reload));
        assert_eq!(parse("POST", "/v1/shutdown", b""), Ok(Request::Shutdown { mode: ShutdownMode::Graceful }));
    }

    #[test]
    fn a_time_is_rounded_up_never_to_nothing() {
        let target = Target::parse("b", Pools::One).unwrap();
        let expires = Some(Duration::from_nanos(1));
        let wire = build(&Request::Drain { target, wait: None, reason: None, expires });
        assert!(wire.body.contains(r#""expires_in_ms":1"#), "{}", wire.body);
    }
}
