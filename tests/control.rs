//! The operator's door from outside: the real server on a real socket, a supervisor played by the
//! test, and the real lbctl. What each exit code promises, and what strangers may throw at it.

#![allow(clippy::unwrap_used)] // clippy sees tests in #[test] functions alone, not in what they call

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lbd::control::client::{ClientError, ask};
use lbd::control::server::{Limits, serve};
use lbd::control::socket::{self, ControlSocket};
use lbd::control::{
    Asked, LiveSessions, Names, Place, Pools, ProblemLine, ReloadOutcome, Reply, Request, Roll, ShutdownMode, Target,
    Wait,
};
use lbd::observe::{PoolStats, Stats};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Longer than any answer takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short enough for a test to see it pass.
const SHORT: Duration = Duration::from_millis(300);

/// A daemon's door, behind which the test plays the supervisor.
struct Door {
    asks: mpsc::Receiver<Asked>,
    serving: JoinHandle<()>,
    path: PathBuf,
    _socket: ControlSocket,
    _dir: TempDir,
}

impl Door {
    fn open() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (listener, socket) = socket::bind(&Place::named(&path), 0o600, None).unwrap();
        let (sender, asks) = mpsc::channel(8);
        let names = Names::start(|| ()).unwrap();
        let serving =
            tokio::spawn(serve(UnixListener::from_std(listener).unwrap(), Roll::default(), sender, limits, names));
        Self { asks, serving, path, _socket: socket, _dir: dir }
    }

    async fn next(&mut self) -> Asked {
        timeout(PATIENCE, self.asks.recv()).await.expect("something is asked").expect("the server lives")
    }

    fn lbctl(&self, args: &[&str]) -> Command {
        let mut lbctl = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        lbctl.args(args).env("LBD_SOCKET", &self.path).stdin(Stdio::null());
        lbctl
    }

    /// Runs lbctl and answers what it asks; gives back what was asked and what came out.
    async fn run(&mut self, args: &[&str], reply: Reply) -> (Request, Output) {
        let mut lbctl = self.lbctl(args);
        let run = spawn_blocking(move || lbctl.output().unwrap());
        let asked = self.next().await;
        asked.answer.send(reply).unwrap();
        (asked.request, timeout(PATIENCE, run).await.unwrap().unwrap())
    }

    /// Sends bytes as they are and reads until the server closes.
    async fn throw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        let _ = stream.write_all(bytes).await; // the server may have had enough before the end
        read_all(&mut stream).await
    }

    /// The door is whole: a request goes through it.
    async fn still_works(&mut self) {
        let path = self.path.clone();
        let answer = tokio::spawn(async move { ask(&path, &Request::Reload, Some(PATIENCE)).await });
        self.next().await.answer.send(unchanged()).unwrap();
        assert_eq!(answer.await.unwrap().unwrap(), unchanged());
    }
}

async fn read_all(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

fn unchanged() -> Reply {
    Reply::Reloaded { generation: 1, outcome: ReloadOutcome::Unchanged, changed: vec![], notes: vec![] }
}

fn stats(pools: usize) -> Reply {
    let pool =
        |n| PoolStats { name: format!("pool-{n}"), balance: "first".into(), eligible: 0, queued: 0, backends: vec![] };
    Reply::Stats(Stats { generation: 1, listeners: vec![], pools: (0..pools).map(pool).collect() })
}

fn out(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn each_command_asks_what_it_says() {
    let bare = |pools| Target::parse("b1", pools).unwrap();
    let exact = || Target::parse("web/b1", Pools::One).unwrap();
    let secs = Duration::from_secs;
    let drain = |wait| Request::Drain { target: exact(), wait, reason: None, expires: None };
    let disable = |live| Request::Disable { target: exact(), live, reason: None, expires: None };
    let mut door = Door::open();
    for (args, request) in [
        (&["status"][..], Request::Status),
        (&["stats"], Request::Stats { pool: None }),
        (&["stats", "web"], Request::Stats { pool: Some("web".parse().unwrap()) }),
        (&["reload"], Request::Reload),
        (&["drain", "web/b1"], drain(None)),
        (&["drain", "web/b1", "--wait"], drain(Some(Wait { timeout: None }))),
        (&["drain", "web/b1", "--wait", "--timeout", "10s"], drain(Some(Wait { timeout: Some(secs(10)) }))),
        (
            &["drain", "b1", "--all-pools", "--for", "2h", "--reason", "new kernel"],
            Request::Drain {
                target: bare(Pools::All),
                wait: None,
                reason: Some("new kernel".into()),
                expires: Some(secs(7200)),
            },
        ),
        (&["enable", "b1"], Request::Enable { target: bare(Pools::One) }),
        (&["disable", "web/b1"], disable(LiveSessions::Keep)),
        (&["disable", "web/b1", "--close"], disable(LiveSessions::Close)),
        (&["shutdown"], Request::Shutdown { mode: ShutdownMode::Graceful }),
        (&["shutdown", "--now"], Request::Shutdown { mode: ShutdownMode::Now }),
    ] {
        let (asked, output) = door.run(args, Reply::Stopping { sessions: 0 }).await;
        assert_eq!(asked, request, "{args:?}");
        assert_eq!(out(&output), (Some(0), "stopping\n".into(), String::new()), "{args:?}");
    }
}

#[tokio::test]
async fn the_supervisor_learns_who_asks() {
    let mut door = Door::open();
    let mut child = door.lbctl(&["enable", "web/a"]).stdout(Stdio::null()).spawn().unwrap();
    let asked = door.next().await;
    let known = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap();
    assert_eq!(asked.peer.user, known.map(|user| user.name));
    assert_eq!(asked.peer.uid, nix::unistd::geteuid().as_raw());
    asked.answer.send(unchanged()).unwrap();
    assert!(spawn_blocking(move || child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn results_go_to_stdout_and_reasons_to_stderr() {
    let problem = |line, path: &str| ProblemLine {
        file: "/etc/lbd/lbd.yaml".into(),
        line,
        column: 7,
        path: path.into(),
        message: "is wrong".into(),
    };
    let refused = Reply::Refused {
        message: "2 problems; generation 4 stays in force".into(),
        problems: vec![problem(3, "pools.web"), problem(9, "")],
    };
    let mut door = Door::open();
    for (args, reply, expected) in [
        (
            &["reload"],
            refused,
            (
                Some(1),
                "",
                "/etc/lbd/lbd.yaml:3:7: pools.web: is wrong\n/etc/lbd/lbd.yaml:9:7: is wrong\n\
                 lbctl: 2 problems; generation 4 stays in force\n",
            ),
        ),
        (
            &["reload"],
            Reply::Reloaded {
                generation: 5,
                outcome: ReloadOutcome::Applied,
                changed: vec!["pool web: b2 added".into()],
                notes: vec![],
            },
            (Some(0), "generation 5 is in force\n  pool web: b2 added\n", ""),
        ),
        (
            &["status"],
            Reply::TimedOut { message: "web/b1 is draining".into(), left: 2 },
            (Some(4), "", "lbctl: web/b1 is draining; sessions left: 2\n"),
        ),
    ] {
        let (_, output) = door.run(args, reply).await;
        assert_eq!(out(&output), (expected.0, expected.1.into(), expected.2.into()));
    }
}

#[tokio::test]
async fn json_is_one_document_whatever_the_answer() {
    let mut door = Door::open();
    for (args, reply, code) in [
        (&["--json", "stats"][..], stats(2), 0),
        (&["stats", "--json"], stats(0), 0),
        (&["reload", "--json"], Reply::refused("no"), 1),
    ] {
        let (_, output) = door.run(args, reply.clone()).await;
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(Reply::from_json(&output.stdout).unwrap(), reply);
    }
}

#[tokio::test]
async fn a_pipe_gets_tabs_and_no_escape() {
    let mut door = Door::open();
    let (_, output) = door.run(&["stats"], stats(1)).await;
    let (_, text, _) = out(&output);
    assert!(text.starts_with("POOL\tBALANCE\t"), "{text}");
    assert!(text.contains("pool-0\tfirst\t"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn wrong_usage_exits_2() {
    for args in [
        &[][..],
        &["no-such-command"],
        &["drain"],
        &["drain", "a b"],
        &["drain", "web/b1", "--all-pools"],
        &["drain", "b1", "--timeout", "5s"],
        &["drain", "b1", "--wait", "--timeout", "-5s"],
        &["drain", "b1", "--for", "soon"],
        &["stats", "a/b"],
        &["stats", "--watch=0s"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_lbctl")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn no_slip_is_answered_with_shutdown() {
    for slip in ["show", "shutdwn", "shut", "showdown", "down", "shutdow"] {
        let output = Command::new(env!("CARGO_BIN_EXE_lbctl")).arg(slip).output().unwrap();
        let (code, _, reason) = out(&output);
        assert!(code == Some(2) && !reason.contains("shutdown"), "{slip}: {reason}");
    }
    let (_, _, reason) = out(&Command::new(env!("CARGO_BIN_EXE_lbctl")).arg("relod").output().unwrap());
    assert!(reason.contains("'reload'"), "{reason}");
}

#[tokio::test]
async fn a_reload_by_systemd_says_nothing_that_the_daemon_has_logged() {
    let mut door = Door::open();
    for (mainpid, stream_is_stderr, is_said) in [(true, true, false), (false, true, true), (true, false, true)] {
        let file = tempfile::tempfile().unwrap();
        let found = file.metadata().unwrap();
        let stream = format!("{}:{}", found.dev(), found.ino() + u64::from(!stream_is_stderr));
        let mut lbctl = door.lbctl(&["reload"]);
        lbctl.env("JOURNAL_STREAM", stream).stdout(file.try_clone().unwrap()).stderr(file.try_clone().unwrap());
        if mainpid {
            lbctl.env("MAINPID", "1");
        } else {
            lbctl.env_remove("MAINPID");
        }
        let run = spawn_blocking(move || lbctl.status().unwrap());
        door.next().await.answer.send(Reply::refused("no")).unwrap();
        assert_eq!(run.await.unwrap().code(), Some(1));
        assert_eq!(file.metadata().unwrap().len() > 0, is_said, "{mainpid} {stream_is_stderr}");
    }
}

#[tokio::test]
async fn no_daemon_exits_3_whether_the_socket_is_missing_or_stale() {
    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [dir.path().join("missing.sock"), stale] {
        // Named after the subcommand, it wins over the environment.
        let args = ["status", "--socket", socket.to_str().unwrap()];
        let output = Command::new(env!("CARGO_BIN_EXE_lbctl")).args(args).env("LBD_SOCKET", "/x").output().unwrap();
        let (code, stdout, stderr) = out(&output);
        assert_eq!((code, stdout.as_str()), (Some(3), ""));
        assert!(stderr.starts_with(&format!("lbctl: no lbd listens at {}", socket.display())), "{stderr}");
    }
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_left_after_the_timeout() {
    let mut door = Door::open();
    let path = door.path.clone();
    let asking = tokio::spawn(async move { ask(&path, &Request::Status, Some(SHORT)).await });
    let mut asked = door.next().await;
    let error = asking.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Late(..)) && error.exit_code() == 4, "{error}");
    timeout(PATIENCE, asked.answer.closed()).await.expect("the request is dropped with its client");
}

#[tokio::test]
async fn a_wait_outlives_every_limit_of_the_server() {
    let mut door = Door::with(Limits { request: SHORT, answer: SHORT, ..Limits::default() });
    let mut lbctl = door.lbctl(&["drain", "b1", "--wait"]);
    let run = spawn_blocking(move || lbctl.output().unwrap());
    let asked = door.next().await;
    // Two clients in turn, each cut for being too slow: the limit has passed twice.
    for _ in 0..2 {
        door.throw(b"GET /v1/sta").await;
    }
    asked.answer.send(Reply::Drained { generation: 2, backends: vec!["web/b1".into()], notes: vec![] }).unwrap();
    let output = timeout(PATIENCE, run).await.unwrap().unwrap();
    assert_eq!(out(&output), (Some(0), "web/b1 is drained; no session is left\n".into(), String::new()));
}

#[tokio::test]
async fn an_interrupted_wait_takes_its_request_along() {
    let mut door = Door::open();
    let mut child = door.lbctl(&["drain", "b1", "--wait"]).spawn().unwrap();
    let mut asked = door.next().await;
    child.kill().unwrap();
    timeout(PATIENCE, asked.answer.closed()).await.expect("the supervisor sees that nobody waits");
    child.wait().unwrap();
    door.still_works().await;
}

#[tokio::test]
async fn garbage_harms_nothing() {
    let mut door = Door::with(Limits { request: SHORT, ..Limits::default() });
    for bytes in [
        &b"\0\0\0\0\xff\xfe garbage\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nnot json!",
        b"",
    ] {
        let answer = door.throw(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    door.still_works().await;
}

#[tokio::test]
async fn what_is_too_much_or_unknown_is_refused_with_its_status() {
    let mut door = Door::open();
    let head = |length: usize| format!("POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    let long_body = head(70_000) + &"x".repeat(70_000);
    let long_head = format!("GET /v1/status HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(20_000));
    for (bytes, status, said) in [
        (long_body, "413", "the document is longer than 65536 bytes"),
        (long_head, "431", ""),
        ("GET /v2/status HTTP/1.1\r\nhost: x\r\n\r\n".into(), "404", "there are GET /v1/status, GET /v1/stats, POST"),
        ("GET /v1/reload HTTP/1.1\r\nhost: x\r\n\r\n".into(), "405", "this route takes POST alone"),
        (head(2) + "{}", "400", "missing field `backend`"),
    ] {
        let answer = door.throw(bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        assert!(answer.contains(said), "{status}: {answer}");
    }
    door.still_works().await;
}

#[tokio::test]
async fn a_slow_sender_is_cut_in_the_head_and_in_the_document() {
    let mut door = Door::with(Limits { request: SHORT, ..Limits::default() });
    door.throw(b"").await;
    door.throw(b"GET /v1/status HTTP/1.1\r\nhos").await;
    let answer = door.throw(b"POST /v1/drain HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    door.still_works().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut() {
    let mut door = Door::with(Limits { connections: 1, answer: SHORT, ..Limits::default() });
    let mut deaf = UnixStream::connect(&door.path).await.unwrap();
    deaf.write_all(b"GET /v1/stats HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    door.next().await.answer.send(stats(100_000)).unwrap(); // far more than the socket's buffers hold
    door.still_works().await; // its place, the only one, is free again
}

#[tokio::test]
async fn more_clients_than_places_wait_for_one() {
    let mut door = Door::with(Limits { connections: 2, request: SHORT, ..Limits::default() });
    let mut idle = [UnixStream::connect(&door.path).await.unwrap(), UnixStream::connect(&door.path).await.unwrap()];
    door.still_works().await;
    let mut closed = 0;
    for stream in &mut idle {
        closed += u32::from(timeout(SHORT / 3, stream.read(&mut [0])).await.is_ok());
    }
    assert!(closed > 0, "the third was served while two idle ones held both places");
}

#[tokio::test]
async fn the_last_answers_are_still_given_at_the_stop() {
    let mut door = Door::open();
    let mut lbctl = door.lbctl(&["drain", "b1", "--wait"]);
    let waiting = spawn_blocking(move || lbctl.output().unwrap());
    let asked = door.next().await;

    let mut lbctl = door.lbctl(&["shutdown"]);
    let stopping = spawn_blocking(move || lbctl.output().unwrap());
    door.next().await.answer.send(Reply::Stopping { sessions: 3 }).unwrap();

    drop((door.asks, asked));
    timeout(PATIENCE, door.serving).await.expect("serve ends with its supervisor").unwrap();
    assert_eq!(out(&stopping.await.unwrap()), (Some(0), "stopping; sessions left: 3\n".into(), String::new()));
    let (code, _, stderr) = out(&waiting.await.unwrap());
    assert_eq!((code, stderr.as_str()), (Some(1), "lbctl: lbd stopped before it could answer\n"));
}

#[tokio::test]
async fn what_answers_but_is_no_lbd_exits_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    for answer in [&b""[..], b"220 smtp ready\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"] {
        let asking = {
            let path = path.clone();
            tokio::spawn(async move { ask(&path, &Request::Status, Some(PATIENCE)).await })
        };
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        stream.write_all(answer).await.unwrap();
        drop(stream);
        let error = asking.await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Nonsense(..)) && error.exit_code() == 1, "{error}");
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_causes_no_panic() {
    let mut door = Door::open();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut lbctl = door.lbctl(&["stats"]);
    lbctl.stdout(writer).stderr(Stdio::piped());
    let run = spawn_blocking(move || lbctl.spawn().unwrap().wait_with_output().unwrap());
    door.next().await.answer.send(stats(10_000)).unwrap();
    assert_eq!(out(&run.await.unwrap()), (Some(0), String::new(), String::new()));
}

#[tokio::test]
async fn watch_repeats_until_interrupted() {
    let mut door = Door::open();
    let mut lbctl = door.lbctl(&["stats", "--json", "--watch=100ms"]);
    let mut child = lbctl.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    for pools in 1..=3 {
        door.next().await.answer.send(stats(pools)).unwrap();
        let (line, rest) = spawn_blocking(move || {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            (line, lines)
        })
        .await
        .unwrap();
        assert_eq!(Reply::from_json(line.as_bytes()).unwrap(), stats(pools));
        lines = rest;
    }
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let status = spawn_blocking(move || {
        lines.read_to_string(&mut String::new()).unwrap();
        child.wait().unwrap()
    });
    assert_eq!(timeout(PATIENCE, status).await.unwrap().unwrap().code(), Some(0));
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_lbctl")).args(["completions", shell]).output().unwrap();
        let (code, script, _) = out(&output);
        assert_eq!(code, Some(0));
        assert!(script.contains("all-pools"), "{shell}");
    }
}
