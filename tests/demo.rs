//! What the README promises of `lbd --demo`: it starts without a file, says what to try, what it says is true,
//! and it ends as asked. The commands are run as they are printed, by a shell.

#![allow(clippy::unwrap_used)] // also outside #[test] functions: a test that cannot go on has failed

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longer than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each demo looks whether 8080 is free, then takes it: two that look at once would both believe so.
static STARTING: Mutex<()> = Mutex::new(());

/// A started demo; killed at the end of the test if it still runs.
struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    /// What it printed.
    text: String,
    folder: TempDir,
}

impl Demo {
    fn start() -> Self {
        let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_lbd"))
            .args(["--demo", "--control", "control.sock"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stderr) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
        let mut demo = Self { child, stdout, stderr, text: String::new(), folder };
        while !demo.text.contains("Ctrl-C") {
            if demo.stdout.read_line(&mut demo.text).unwrap() == 0 {
                let mut why = String::new();
                demo.stderr.read_to_string(&mut why).unwrap();
                panic!("the demo ended: {why}");
            }
        }
        demo
    }

    /// Where it listens, as it says.
    fn address(&self) -> &str {
        let (_, after) = self.text.split_once("lbd listens on ").unwrap();
        after.split(' ').next().unwrap()
    }

    /// The commands it says to try.
    fn commands(&self) -> Vec<&str> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("  "));
        lines.map(|line| line.split("   ").next().unwrap().trim()).collect()
    }

    fn shell(&self, command: &str) -> Output {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(self.folder.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn lbctl(&self, args: &[&str]) -> Output {
        let mut lbctl = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        lbctl.args(args).arg("--socket").arg(self.folder.path().join("control.sock")).output().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its exit code, and what it said on stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap(); // up to its end
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn right(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{:?}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn what_it_says_to_try_works_and_sigterm_ends_it() {
    let demo = Demo::start();
    let commands = demo.commands();
    let found: Vec<&str> = ["lbtest single", "lbtest load", "lbctl", "lbctl", "lbctl"].into();
    assert_eq!(commands.len(), found.len(), "{}", demo.text);
    let mut printed = Vec::new();
    for (command, program) in commands.iter().zip(found) {
        assert!(command.contains(program), "{command}");
        // The shortest load that lbtest knows: it is here to be right, not to be long.
        printed.push(right(&demo.shell(&command.replace("load 5 64", "load 1 64"))));
    }
    assert!(printed[0].starts_with("Hello World\n"), "{}", printed[0]);
    assert!(printed[1].ends_with("right: every byte of every answer\n"), "{}", printed[1]);
    assert!(["backend-1", "backend-2", "backend-3"].iter().all(|name| printed[2].contains(name)), "{}", printed[2]);
    assert_eq!(printed[3], "demo/backend-2 is drained; no session is left\n");
    assert!(printed[4].starts_with("demo/backend-2 is enabled"), "{}", printed[4]);

    demo.signal(Signal::SIGTERM);
    let (code, said) = demo.end();
    assert_eq!((code, said.as_str()), (Some(0), ""), "the terminal belongs to the text");
}

#[test]
fn it_takes_a_free_port_where_8080_is_taken_and_says_so() {
    let taken = TcpListener::bind("127.0.0.1:8080"); // an error: somebody else has it, which is as good
    let demo = Demo::start();
    assert_ne!(demo.address(), "127.0.0.1:8080");
    assert!(demo.commands()[0].ends_with(&format!("--target {}", demo.address())), "{}", demo.text);
    assert_eq!(right(&demo.shell(demo.commands()[0])).lines().next(), Some("Hello World"));
    drop(taken);
    right(&demo.lbctl(&["shutdown"]));
    assert_eq!(demo.end().0, Some(0));
}

#[test]
fn ctrl_c_lets_a_session_finish_and_a_second_one_does_not_wait() {
    let demo = Demo::start();
    let mut session = TcpStream::connect(demo.address()).unwrap();
    session.set_read_timeout(Some(PATIENCE)).unwrap();
    session.write_all(b"held").unwrap();
    let mut echoed = [0; 4];
    session.read_exact(&mut echoed).unwrap();

    demo.signal(Signal::SIGINT);
    // Only when it is known to drain is the next one a second one.
    let asked = Instant::now();
    while !right(&demo.lbctl(&["status", "--json"])).contains("\"draining\"") {
        assert!(asked.elapsed() < PATIENCE, "it does not drain");
    }
    session.write_all(b"more").unwrap();
    session.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"more", "the session goes on");

    demo.signal(Signal::SIGINT);
    let end = session.read(&mut echoed).map_err(|e| e.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "nobody takes a cut session for a whole one");
    assert_eq!(demo.end().0, Some(0));
}

#[test]
fn two_demos_do_not_share_a_control_socket() {
    let demo = Demo::start();
    let second = Command::new(env!("CARGO_BIN_EXE_lbd"))
        .args(["--demo", "--control"])
        .arg(demo.folder.path().join("control.sock"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains(&format!("another lbd (pid {})", demo.child.id())), "{said}");
    right(&demo.lbctl(&["status"]));
}
