//! How the real lbd fails to start: each time it says why and how to mend it, exits with the promised code, and
//! leaves nothing behind.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::client::until;

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
