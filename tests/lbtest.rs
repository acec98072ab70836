//! What lbtest promises, on the real program: each temper of its servers, and that its clients find every kind of wrong
//! answer. The wrong answers come from servers in here, so that lbtest does not vouch for itself.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LBTEST: &str = env!("CARGO_BIN_EXE_lbtest");

/// A started lbtest; killed at the end of the test if it still runs.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    fn lbtest(args: &[&str]) -> Self {
        let mut command = Command::new(LBTEST);
        command.args(args);
        Self::start(command)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Reads stderr up to a line that contains `words`.
    fn await_stderr(&mut self, words: &str) {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "stderr ended without {words:?}");
        }
    }

    /// The exit status, and what is left of stdout and stderr.
    fn end(mut self) -> (i32, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.stderr.read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code().expect("no signal killed it"), out, err)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Servers and where they are.
struct Servers {
    running: Running,
    at: Vec<String>,
}

impl Servers {
    fn start(count: usize, args: &[&str]) -> Self {
        let count_arg = count.to_string();
        let mut running = Running::lbtest(&[&["servers", &count_arg, "0"], args].concat());
        let at = (1..=count).map(|n| announced(&mut running, n)).collect();
        Self { running, at }
    }

    fn mode(mode: &str) -> Self {
        Self::start(1, &["--mode", mode])
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.at[0]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Stops them; their summary.
    fn summary(self) -> String {
        self.running.signal(Signal::SIGTERM);
        let (code, out, err) = self.running.end();
        assert_eq!(code, 0, "{err}");
        out
    }
}

/// The address in the line that announces server `n`.
fn announced(running: &mut Running, n: usize) -> String {
    let mut line = String::new();
    running.stdout.read_line(&mut line).unwrap();
    let (what, at) = line.trim_end().rsplit_once(" on ").unwrap_or_else(|| panic!("{line:?}"));
    assert!(what.ends_with(&format!(" server backend-{n}")), "{line}");
    at.to_owned()
}

fn lbtest(args: &[&str]) -> (i32, String, String) {
    Running::lbtest(args).end()
}

/// Runs a client command at `target` and returns its exit status and document.
fn json(args: &[&str], target: &str) -> (i32, Value) {
    let (code, out, err) = lbtest(&[args, &["--target", target, "--json"]].concat());
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out:?}, {err:?}")))
}

/// A server that treats each 64 bytes it reads on a connection as it is told to.
fn liar(answer: fn(&mut TcpStream, [u8; 64])) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut request = [0; 64];
                while stream.read_exact(&mut request).is_ok() {
                    answer(&mut stream, request);
                }
            });
        }
    });
    at
}

#[test]
fn servers_announce_their_addresses_in_order_and_count_what_they_saw() {
    let servers = Servers::start(3, &[]);
    let mut ports: Vec<_> = servers.at.iter().map(|at| at.parse::<SocketAddr>().unwrap().port()).collect();
    ports.dedup();
    assert_eq!(ports.len(), 3);
    for (at, clients) in servers.at.iter().zip(["1", "2", "3"]) {
        let (code, ..) = lbtest(&["multiple", clients, "--requests", "2", "--size", "1KiB", "--target", at]);
        assert_eq!(code, 0);
    }
    let summary = servers.summary();
    for (line, (n, bytes)) in summary.lines().zip([(1, "2.00 KiB"), (2, "4.00 KiB"), (3, "6.00 KiB")]) {
        let wanted = format!(": {n} connections, {bytes} received, {bytes} sent");
        assert!(line.starts_with(&format!("backend-{n} on ")) && line.ends_with(&wanted), "{line}");
    }
    assert_eq!(summary.lines().count(), 3);
}

#[test]
fn a_port_in_use_is_named_and_no_server_is_announced() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let (code, out, err) = lbtest(&["servers", "1", &port.to_string()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains(&format!("127.0.0.1:{port}: in use by another process")), "{err}");
    let (code, out, _) = lbtest(&["servers", "2", &(port - 1).to_string()]);
    assert_eq!((code, out.as_str()), (1, ""), "all or none");
}

#[test]
fn echo_is_full_duplex_and_honours_half_close() {
    let servers = Servers::mode("echo");
    let mut stream = servers.connect();
    for piece in [&b"one"[..], b"two"] {
        stream.write_all(piece).unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, piece);
    }
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
}

#[test]
fn slow_answers_after_the_delay() {
    let servers = Servers::start(1, &["--mode", "slow", "--delay", "80ms"]);
    let (code, answer) = json(&["single", "Hello"], &servers.at[0]);
    assert_eq!((code, &answer["answer"]), (0, &Value::from("Hello")));
    assert!(answer["latency_us"].as_f64().unwrap() >= 80_000.0, "{answer}");
}

#[test]
fn tempers_that_never_answer_right_are_told_apart() {
    for (mode, kind) in [("silent", "timeout"), ("refuse", "connect_refused"), ("reset", "reset")] {
        let servers = Servers::mode(mode);
        let (code, answer) = json(&["single", "Hello", "--timeout", "200ms"], &servers.at[0]);
        assert_eq!((code, &answer["fault"]), (1, &Value::from(kind)), "{mode}: {answer}");
        let args = ["multiple", "2", "--requests", "2", "--timeout", "200ms"];
        let (code, run) = json(&args, &servers.at[0]);
        assert_eq!((code, &run["faults_by_kind"][kind]), (1, &Value::from(4)), "{mode}: {run}");
        assert_eq!((&run["requests"], &run["answered"]), (&Value::from(4), &Value::from(0)));
    }
}

#[test]
fn half_close_ends_first_and_goes_on_reading() {
    let servers = Servers::mode("half-close");
    let mut stream = servers.connect();
    stream.write_all(b"request").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"request");
    // More than the sockets hold: it can only be written if it is read.
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&vec![7; 32 << 20]).unwrap();
    let summary = servers.summary();
    assert!(summary.contains(" MiB received, 7 B sent"), "{summary}");
}

#[test]
fn http_names_the_server_and_keeps_the_connection() {
    let servers = Servers::start(2, &["--mode", "http"]);
    let mut stream = TcpStream::connect(&servers.at[1]).unwrap();
    stream.write_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(answers.matches("backend-2\n").count(), 2, "{answers}");
}

#[test]
fn servers_survive_running_out_of_descriptors() {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 64; exec \"$0\" servers 1 0", LBTEST]);
    let mut running = Running::start(limited);
    let at = vec![announced(&mut running, 1)];
    let mut servers = Servers { running, at };
    let mut clients: Vec<_> = (0..100).map(|_| servers.connect()).collect();
    servers.running.await_stderr("accept: ");
    let mut last = clients.pop().unwrap();
    drop(clients);
    last.write_all(b"still there?").unwrap();
    let mut answer = [0; 12];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"still there?");
    servers.running.signal(Signal::SIGINT);
    let (code, out, err) = servers.running.end();
    assert!(code == 0 && out.contains(": 100 connections"), "{out}");
    assert_eq!(err, "", "it complains once");
}

#[test]
fn single_prints_the_answer_and_its_time() {
    let servers = Servers::mode("echo");
    let (code, out, err) = lbtest(&["single", "Hello World", "--target", &servers.at[0]]);
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "Hello World");
    assert!(lines[1].starts_with(&format!("{} answered in ", servers.at[0])), "{out}");
}

#[test]
fn single_shows_a_wrong_answer_and_says_what_is_wrong() {
    let servers = Servers::mode("http");
    let (code, out, err) = lbtest(&["single", "GET / HTTP/1.0\r\n\r\n", "--target", &servers.at[0]]);
    assert_eq!(code, 1);
    assert!(out.starts_with("HTTP/1.0 200 OK"), "{out}");
    assert!(err.contains("wrong bytes: byte 0 of 18 differs"), "{err}");
}

#[test]
fn clients_reach_ipv6_and_unix_sockets() {
    let servers = Servers::start(1, &["--bind", "::1"]);
    assert!(servers.at[0].starts_with("[::1]:"));
    assert_eq!(lbtest(&["multiple", "3", "--target", &servers.at[0]]).0, 0);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("echo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    let target = format!("unix:{}", path.display());
    for args in [&["single", "Hello"][..], &["multiple", "3"], &["multiple", "3", "--reconnect"]] {
        let (code, out, err) = lbtest(&[args, &["--target", &target]].concat());
        assert_eq!(code, 0, "{args:?}: {out}{err}");
    }
}

#[test]
fn every_wrong_answer_is_found_and_counted_by_its_kind() {
    let flips = liar(|stream, mut request| {
        request[63] ^= 1;
        let _ = stream.write_all(&request);
    });
    let swaps_clients = liar(|stream, _| {
        let _ = stream.write_all(&[0; 64]);
    });
    let cuts = liar(|stream, request| {
        let _ = stream.write_all(&request[..63]);
        let _ = stream.shutdown(Shutdown::Both);
    });
    let closes = liar(|stream, _| {
        let _ = stream.shutdown(Shutdown::Both);
    });
    let adds = liar(|stream, request| {
        let _ = stream.write_all(&[&request[..], b"!"].concat());
    });
    for (at, kind) in [
        (flips, "wrong_bytes"),
        (swaps_clients, "wrong_bytes"),
        (cuts, "closed_early"),
        (closes, "closed_early"),
        (adds, "extra_bytes"),
    ] {
        for more in [&[][..], &["--reconnect"]] {
            let (code, run) = json(&[&["multiple", "3", "--requests", "2"], more].concat(), &at);
            assert_eq!((code, &run["ok"]), (1, &Value::from(false)), "{kind}: {run}");
            assert_eq!(run["faults_by_kind"][kind], 6, "{kind}, none tried again: {run}");
            assert_eq!((&run["faults"], &run["answered"]), (&Value::from(6), &Value::from(0)), "{kind}: {run}");
        }
    }
}

#[test]
fn one_wrong_answer_among_many_right_ones_fails_the_run() {
    let at = liar(|stream, mut request| {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SEEN: AtomicU32 = AtomicU32::new(0);
        request[17] ^= u8::from(SEEN.fetch_add(1, Ordering::Relaxed) == 50);
        let _ = stream.write_all(&request);
    });
    let (code, out, _) = lbtest(&["multiple", "10", "--requests", "10", "--target", &at]);
    assert_eq!(code, 1);
    assert!(out.contains("100, 99 answered right"), "{out}");
    assert!(out.contains("byte 17 of 64 differs"), "{out}");
    assert!(out.ends_with("wrong: 1 answer was wrong, short or missing\n"), "{out}");
}

#[test]
fn what_follows_the_answer_or_keeps_the_connection_open_is_a_fault() {
    // An answer to the client's end: only reading to the peer's end can find it.
    let says_goodbye = liar(|stream, request| {
        let _ = stream.write_all(&request);
        let _ = stream.read(&mut [0; 1]);
        let _ = stream.write_all(b"bye");
    });
    let never_closes = liar(|stream, request| {
        let _ = stream.write_all(&request);
        let _ = stream.read(&mut [0; 1]);
        thread::park();
    });
    for (at, kind) in [(says_goodbye, "extra_bytes"), (never_closes, "not_closed")] {
        for more in [&[][..], &["--reconnect"]] {
            let args = [&["multiple", "1", "--requests", "1", "--timeout", "300ms"], more].concat();
            let (code, run) = json(&args, &at);
            assert_eq!((code, &run["faults_by_kind"][kind]), (1, &Value::from(1)), "{more:?}: {run}");
        }
    }
}

#[test]
fn a_payload_larger_than_all_socket_buffers_does_not_deadlock() {
    let servers = Servers::mode("echo");
    let args = ["multiple", "1", "--requests", "1", "--size", "96MiB", "--timeout", "20s"];
    let (code, run) = json(&args, &servers.at[0]);
    assert_eq!((code, &run["verified_bytes"]), (0, &Value::from(96 << 20)), "{run}");
}

#[test]
fn connections_are_kept_or_one_a_request() {
    let servers = Servers::mode("echo");
    let args = ["multiple", "5", "--requests", "4"];
    assert_eq!(json(&args, &servers.at[0]).1["connections"], 5);
    assert_eq!(json(&[&args[..], &["--reconnect"]].concat(), &servers.at[0]).1["connections"], 20);
    assert!(servers.summary().contains(": 25 connections"));
}

#[test]
fn a_thousand_clients_are_connected_at_once() {
    let servers = Servers::mode("echo");
    let (code, run) = json(&["multiple", "1000", "--requests", "2"], &servers.at[0]);
    assert_eq!((code, &run["answered"]), (0, &Value::from(2_000)), "{run}");
}

#[test]
fn load_shows_progress_and_ends_with_percentiles() {
    let servers = Servers::mode("echo");
    let (code, out, err) = lbtest(&["load", "1.5", "8", "--target", &servers.at[0]]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(err.lines().count(), 1, "a line a second, and only the results on stdout: {err}");
    assert!(err.contains("requests/s") && err.contains("0 faults"), "{err}");
    assert!(out.contains("p50       p90       p99     p99.9       max"), "{out}");
    assert!(out.ends_with("right: every byte of every answer\n"), "{out}");
}

#[test]
fn a_rate_is_kept_and_latencies_count_from_the_time_a_request_was_due() {
    let servers = Servers::mode("echo");
    let (code, run) = json(&["load", "1", "4", "--rate", "200"], &servers.at[0]);
    let due = run["requests"].as_u64().unwrap() + run["not_sent"].as_u64().unwrap();
    assert!(code == 0 && (150..=260).contains(&due), "{run}");

    // One client and 60 ms an answer: 100 a second fall behind by more with each request.
    let slow = Servers::start(1, &["--mode", "slow", "--delay", "60ms"]);
    let (code, run) = json(&["load", "1", "1", "--rate", "100"], &slow.at[0]);
    assert_eq!(code, 0);
    assert!(run["latency_us"]["max"].as_f64().unwrap() > 500_000.0, "waiting counts: {run}");
    assert!(run["not_sent"].as_u64().unwrap() > 50, "what was due and never sent is told: {run}");
}

#[test]
fn one_interrupt_ends_a_load_with_its_summary_and_two_at_once() {
    let servers = Servers::mode("echo");
    let mut load = Running::lbtest(&["load", "600", "2", "--target", &servers.at[0]]);
    load.await_stderr("requests/s");
    load.signal(Signal::SIGINT);
    let (code, out, _) = load.end();
    assert_eq!(code, 0);
    assert!(out.ends_with("right: every byte of every answer\n"), "{out}");

    let silent = Servers::mode("silent");
    let mut load = Running::lbtest(&["load", "600", "2", "--timeout", "600s", "--target", &silent.at[0]]);
    load.await_stderr("requests/s");
    load.signal(Signal::SIGINT);
    load.await_stderr("again to stop at once");
    load.signal(Signal::SIGINT);
    let (code, out, _) = load.end();
    assert_eq!((code, out.as_str()), (130, ""));
}

#[test]
fn the_document_has_the_same_keys_whatever_happened() {
    let (echo, refusing) = (Servers::mode("echo"), Servers::mode("refuse"));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (right, wrong) = (json(&["multiple", "1"], &echo.at[0]).1, json(&["multiple", "1"], &refusing.at[0]).1);
    assert_eq!(keys(&right), keys(&wrong));
    assert_eq!(keys(&right["faults_by_kind"]), keys(&wrong["faults_by_kind"]));
    assert_eq!((&right["ok"], &right["command"]), (&Value::from(true), &Value::from("multiple")));
    assert_eq!(wrong["latency_us"], Value::Null);
}

#[test]
fn misuse_exits_2_and_says_how_to_mend_it() {
    for (args, words) in [
        (&["servers", "0", "9001"][..], "0 is not in 1.."),
        (&["servers", "3", "65534"], "choose a lower FIRST_PORT"),
        (&["servers", "1", "0", "--mode", "angry"], "half-close"),
        (&["single", "", "--target", "127.0.0.1:1"], "TEXT"),
        (&["single", "x", "--target", "127.0.0.1"], "no port; write HOST:PORT"),
        (&["multiple", "0"], "0 is not in 1.."),
        (&["multiple", "1", "--size", "64k"], "64KiB"),
        (&["multiple", "1", "--timeout", "5"], "write for example 250ms or 5s"),
        (&["load", "0", "1"], "seconds above 0"),
        (&["load", "1", "1", "--rate", "0"], "0 is not in 1.."),
        (&["load", "1"], "CLIENTS"),
        (&[], "Usage"),
    ] {
        let (code, out, err) = lbtest(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }
}
