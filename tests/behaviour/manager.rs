//! A service manager that the tests play: it hears what lbd tells systemd, keeps the sockets that lbd gives into the store,
//! and starts it with descriptors as systemd would.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::client::PATIENCE;

pub struct Manager {
    ear: UnixDatagram,
    path: PathBuf,
    /// What is in the store, by name. The descriptors stay open for as long as the tests run, as systemd's do.
    pub store: Vec<(String, RawFd)>,
}

impl Manager {
    /// Listens in this folder.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        Self { ear: UnixDatagram::bind(&path).unwrap(), path, store: Vec::new() }
    }

    /// lbd about to run, told where its manager is, with all that the store has: which are to be passed when it is started.
    pub fn command(&self, lbd: &Command) -> Command {
        let mut command = passing(lbd, &self.store);
        command.env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// Has others fill its socket, so that there is no room for another message until it reads.
    pub fn has_no_room(&self) {
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send_to(b"X_OTHER=1\n", &self.path).is_ok() {}
    }

    /// The descriptors in the store.
    pub fn descriptors(&self) -> Vec<RawFd> {
        self.store.iter().map(|(_, fd)| *fd).collect()
    }

    /// The next message, carried out as far as it is about the store; `None` where none comes within this time.
    pub fn hear(&mut self, within: Duration) -> Option<String> {
        self.ear.set_read_timeout(Some(within)).unwrap();
        let mut room = [0; 4096];
        let mut cmsgs = nix::cmsg_space!([RawFd; 253]);
        let mut parts = [IoSliceMut::new(&mut room)];
        let got = recvmsg::<()>(self.ear.as_raw_fd(), &mut parts, Some(&mut cmsgs), MsgFlags::MSG_CMSG_CLOEXEC);
        let got = got.ok()?;
        let rights = |c| if let ControlMessageOwned::ScmRights(fds) = c { fds } else { Vec::new() };
        let fds: Vec<RawFd> = got.cmsgs().unwrap().flat_map(rights).collect();
        let length = got.bytes;
        let message = String::from_utf8_lossy(&room[..length]).into_owned();
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
        if message.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.store.retain(|(stored, _)| *stored != name);
        }
        self.store.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        Some(message)
    }

    /// Waits until it has heard a message with this line.
    pub fn await_line(&mut self, line: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some(message) = self.hear(left) else { break };
            if message.lines().any(|l| l.starts_with(line)) {
                return message;
            }
            heard.push(message);
        }
        panic!("never heard {line:?}, but {heard:?}")
    }
}

/// The same command with these descriptors passed as systemd passes them, from the third on.
pub fn passing(lbd: &Command, sockets: &[(String, RawFd)]) -> Command {
    // By way of numbers that are surely free: a socket may have the number that another is to get.
    let aside: String = sockets.iter().enumerate().map(|(n, (_, fd))| format!("exec {}<&{fd}\n", 600 + n)).collect();
    let place: String = (0..sockets.len()).map(|n| format!("exec {}<&{} {}<&-\n", 3 + n, 600 + n, 600 + n)).collect();
    let names: Vec<&str> = sockets.iter().map(|(name, _)| name.as_str()).collect();
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(format!("{aside}{place}export LISTEN_PID=$$\nexec \"$0\" \"$@\""));
    bash.arg(lbd.get_program()).args(lbd.get_args());
    for variable in ["NOTIFY_SOCKET", "JOURNAL_STREAM", "STATE_DIRECTORY"] {
        bash.env_remove(variable);
    }
    if sockets.is_empty() {
        return bash;
    }
    bash.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    bash
}
