//! How the real lbd fails to start: each time it says why and how to mend it, exits with the promised code, and
//! leaves nothing behind.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::backend::{Backend, named};
use crate::client::{until, who};
use crate::daemon::{Lbd, lbd_command, run, web};
use crate::manager::Manager;

fn lbd(config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lbd"))
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The exit code of an lbd that cannot start, and what it said.
fn failed(config: &Path) -> (Option<i32>, String) {
    let mut lbd = Killed(lbd(config));
    let code = until("it gives up", || lbd.0.try_wait().unwrap()).code();
    let mut said = String::new();
    lbd.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (code, said)
}

/// Does not outlive its test, should it have started after all.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write(folder: &TempDir, binds: &[&str]) -> std::path::PathBuf {
    let socket = folder.path().join("control.sock");
    let text = serde_json::json!({
        "listeners": { "web": { "bind": binds, "pool": "web" } },
        "pools": { "web": { "backends": { "b": "127.0.0.1:9" } } },
        "control": { "socket": socket },
    });
    let path = folder.path().join("lbd.yaml");
    fs::write(&path, text.to_string()).unwrap();
    path
}

/// What is in the folder beside the file.
fn left_in(folder: &TempDir) -> Vec<String> {
    let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "lbd.yaml").collect()
}

#[test]
fn a_file_that_is_not_there_is_a_wrong_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said) = failed(&folder.path().join("nothing.yaml"));
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("nothing.yaml") && said.contains("--config"), "{said}");
}

#[test]
fn every_address_that_cannot_be_bound_is_named_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let ours = format!("unix:{}", folder.path().join("web.sock").display());
    let config = write(&folder, &[&taken, &ours, "unix:/nowhere/at/all.sock"]);
    let (code, said) = failed(&config);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("listeners.web: {taken} is in use")), "{said}");
    assert!(said.contains("unix:/nowhere/at/all.sock is in a folder that does not exist"), "{said}");
    assert_eq!(left_in(&folder), Vec::<String>::new());
}

#[test]
fn a_socket_whose_owner_accepts_nobody_is_in_use_and_holds_up_no_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let owner = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    owner.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    owner.listen(0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap(); // the queue is full now
    let (code, said) = failed(&write(&folder, &[&format!("unix:{}", path.display())]));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("web.sock is in use"), "{said}");
    assert_eq!(left_in(&folder), ["web.sock"]);
}

/// lbd on the file of a folder, in which it keeps its state too.
fn keeping(folder: &TempDir) -> Command {
    let mut command = lbd_command(folder.path());
    command.env("STATE_DIRECTORY", folder.path().join("state"));
    command
}

#[test]
fn a_refused_file_and_then_a_crash_is_no_outage_nor_is_an_upgrade_then() {
    let (a, b) = (Backend::start(named("a")), Backend::start(named("b")));
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(dir.path().join("state")).unwrap();
    let file = dir.path().join("lbd.yaml");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let config = |backend: &Backend| web(&[("b", backend)], "");
    fs::write(&file, config(&a)).unwrap();
    let mut lbd = Lbd::spawn(keeping(&dir), Arc::clone(&dir));
    lbd.await_log("serving;");
    for (broken, why) in [
        (Some("listeners: {"), "has 2 problems"),
        (Some(""), "has "),
        (None, "No such file"),
        (Some(config(&b).replace("127.0.0.1:0", &taken).as_str()), "is in use"),
        (Some(&*(config(&b) + "control: { group: no-such-group-here }\n")), "there is no group"),
    ] {
        // What is in force is on the disk by then.
        let kept = || fs::read_to_string(dir.path().join("state/in-force.yaml")).ok();
        until("it is kept", || kept().filter(|kept| kept.contains(&a.address.to_string())));
        match broken {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        lbd.signal(Signal::SIGKILL);
        lbd.end();
        let mut manager = Manager::new(&tempfile::tempdir().unwrap().keep());
        let mut command = manager.command(&keeping(&dir));
        command.env("STATE_DIRECTORY", dir.path().join("state"));
        lbd = Lbd::spawn(command, Arc::clone(&dir));
        assert!(manager.await_line("READY=1").contains("the file is invalid, serving by what was last in force"));
        assert_eq!(who(lbd.web()), "a");
        lbd.await_log("the file is not in force");
        lbd.await_log(why);
        let status = lbd.done(&["status"]);
        assert!(status.contains("the file is not in force") && status.contains("refused"), "{status}");
        lbd.done(&["upgrade"]);
        assert!(lbd.done(&["status"]).contains("the file is not in force"), "a successor knows");
        // Corrected, it is taken without a word from anybody.
        fs::write(&file, config(&b)).unwrap();
        until("the file is in force", || (who(lbd.web()) == "b").then_some(()));
        until("that is told", || (!lbd.done(&["status"]).contains("not in force")).then_some(()));
        assert_eq!(lbd.reload(&config(&a)).code, Some(0));
        assert_eq!(who(lbd.web()), "a");
    }
}

#[test]
fn without_a_file_that_was_ever_in_force_an_invalid_one_is_refused_and_check_is_strict_in_any_case() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("lbd.yaml"), "listeners: {").unwrap();
    assert_eq!(run(keeping(&folder)).code, Some(78));
    // What was in force of another file is of no use to this one.
    let kept = "# kept by lbd: what was last in force of \"/etc/other.yaml\"\n".to_owned() + &web(&[], "");
    fs::write(folder.path().join("state/in-force.yaml"), kept).unwrap();
    assert_eq!(run(keeping(&folder)).code, Some(78));
    let mut check = Command::new(env!("CARGO_BIN_EXE_lbd"));
    check.args(["--check", "--config"]).arg(folder.path().join("lbd.yaml")).env("STATE_DIRECTORY", folder.path());
    assert_eq!(run(check).code, Some(78));
}
