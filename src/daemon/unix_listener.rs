//! Listening sockets that have a path: how one is bound, whose file it is, and whether the file is still there. What is at a path is
//! told by device and inode ([`node`]): what somebody else has put there is neither taken for lbd's nor removed.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group, getegid};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::mpsc;

use super::signals::leave_to_others;
use crate::control::node::{self, Id, Node};
use crate::proxy::BACKLOG;
use crate::words::Address;

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Permission bits; `None`: as the umask leaves them.
    pub mode: Option<u32>,
    /// The group that has the file; `None`: lbd's own.
    pub group: Option<Gid>,
}

/// Listens at a path. A socket file that nobody listens on is a former process's leaving and is replaced.
///
/// # Errors
/// Somebody listens there, what is there is no socket, or the kernel refuses.
pub fn bind(path: &Path, access: &Access) -> io::Result<(OwnedFd, Id)> {
    clear(path)?;
    let socket = stream_socket()?;
    if let Some(mode) = access.mode {
        // The kernel makes the file with the socket's own mode, less the umask: nobody finds it wider than it is to be.
        fchmod(&socket, Mode::from_bits_truncate(mode & 0o777))?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    let node = Node::at(path).ok().filter(Node::is_own_socket).ok_or_else(|| replaced(path))?;
    // Until it listens the kernel refuses every connect.
    if let Err(e) = set(&node, access).and_then(|()| socket.listen(BACKLOG)) {
        let _ = node::remove(path, node.id());
        return Err(e);
    }
    Ok((socket.into(), node.id()))
}

/// Gives a socket that listens another mode and group (`None`: lbd's own).
///
/// # Errors
/// What is at the path is another file, or this user may not.
pub fn permit(path: &Path, id: Id, access: &Access) -> io::Result<()> {
    let node = Node::at(path).ok().filter(|node| node.id() == id).ok_or_else(|| replaced(path))?;
    if access.group.is_none() {
        node.give(getegid())?;
    }
    set(&node, access)
}

fn set(node: &Node, access: &Access) -> io::Result<()> {
    if let Some(group) = access.group {
        node.give(group)?;
    }
    access.mode.map_or(Ok(()), |mode| node.set_mode(mode))
}

fn replaced(path: &Path) -> io::Error {
    io::Error::other(format!("something else is at {} now; see who may write into the folder", path.display()))
}

/// Groups that were looked up, so that nobody waits for a name service when a socket is bound.
static GROUPS: Mutex<BTreeMap<String, Gid>> = Mutex::new(BTreeMap::new());

/// Looks a group up, as long as a name service takes; then it is [known](known_group). `None`: there is none of this name.
///
/// # Errors
/// It cannot be looked up.
pub fn look_up_group(name: &str) -> Result<Option<Gid>, Errno> {
    let group = Group::from_name(name)?.map(|group| group.gid);
    if let Some(gid) = group {
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), gid);
    }
    Ok(group)
}

/// A group that was looked up.
pub fn known_group(name: &str) -> Option<Gid> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
}

/// What is at a path, where it is a socket.
pub fn file_at(path: &Path) -> Option<Id> {
    Node::at(path).ok().filter(Node::is_socket).map(|node| node.id())
}

/// The same of an address.
pub fn file_of(address: &Address) -> Option<Id> {
    let Address::Unix(path) = address else { return None };
    file_at(path)
}

/// Takes the file of an address away where it is still this one.
pub fn remove_file_of(address: &Address, file: Option<Id>) {
    if let (Address::Unix(path), Some(id)) = (address, file) {
        let _ = node::remove(path, id); // it may be gone already
    }
}

/// Removes a socket file that nobody listens on.
///
/// # Errors
/// Somebody does, or what is there is no socket.
pub fn clear(path: &Path) -> io::Result<()> {
    let in_use = |what: &str| Err(io::Error::new(ErrorKind::AddrInUse, what));
    let found = match Node::at(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(found) if !found.is_socket() => {
            return in_use("is in use by a file that is no socket; move it away or choose another path");
        }
        Ok(found) => found,
    };
    // Not blocking: where the queue of whoever listens is full, a connect would wait for as long as it is.
    match stream_socket()?.connect(&SockAddr::unix(path)?) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => node::remove(path, found.id()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        _ => in_use("is in use by another process; stop it or choose another path"),
    }
}

fn stream_socket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
}

/// A socket whose path is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As the file has it.
    pub address: Address,
    /// Where it is.
    pub path: PathBuf,
    /// Which file it was.
    pub id: Id,
}

/// Why nobody can come in by the path any more; `None`: they can.
fn missing(listed: &Listed) -> Option<String> {
    match Node::at(&listed.path) {
        Ok(node) if node.id() == listed.id => None,
        Ok(_) => Some("another file is at its path".into()),
        Err(e) if e.kind() == ErrorKind::NotFound => Some("its socket file was removed".into()),
        Err(_) => None, // nobody knows
    }
}

/// What came of a look: its number, and who cannot be reached and why.
pub type Looked = (u64, Vec<(Address, String)>);

/// Looks at paths on a thread of its own, for a file system may hang. It is begun with the first look: who has no Unix socket needs none.
#[derive(Debug)]
pub struct Paths {
    jobs: Option<SyncSender<Job>>,
    tell: mpsc::Sender<Looked>,
}

type Job = (u64, Vec<Listed>);

impl Paths {
    /// One that has looked at nothing; what is found comes in at the receiver.
    pub fn new() -> (Self, mpsc::Receiver<Looked>) {
        let (tell, told) = mpsc::channel(2);
        (Self { jobs: None, tell }, told)
    }

    /// Has these looked at; where the last look hangs, nothing comes of it.
    pub fn look(&mut self, number: u64, listed: Vec<Listed>) {
        if self.jobs.is_none() {
            self.jobs = self.begin().ok();
        }
        match &self.jobs {
            Some(jobs) => drop(jobs.try_send((number, listed))),
            // There is no thread to be had now. The next look may have one.
            None => drop(self.tell.try_send((number, Vec::new()))),
        }
    }

    fn begin(&self) -> io::Result<SyncSender<Job>> {
        let (jobs, to_do): (_, Receiver<Job>) = sync_channel(1);
        let tell = self.tell.clone();
        thread::Builder::new().name("lbd-paths".into()).spawn(move || {
            leave_to_others();
            while let Ok((number, listed)) = to_do.recv() {
                let found = listed.iter().filter_map(|l| Some((l.address.clone(), missing(l)?))).collect();
                let _ = tell.blocking_send((number, found)); // the daemon may have ended
            }
        })?;
        Ok(jobs)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn refused(path: &Path) -> ErrorKind {
        bind(path, &Access::default()).expect_err("it must not be bound").kind()
    }

    #[test]
    fn a_stale_socket_file_is_replaced_a_live_one_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        drop(UnixListener::bind(place("stale")).unwrap());
        let live = UnixListener::bind(place("live")).unwrap();
        fs::write(place("file"), "dear").unwrap();
        symlink(place("file"), place("link")).unwrap();

        let (_socket, id) = bind(&place("stale"), &Access::default()).unwrap();
        assert!(UnixStream::connect(place("stale")).is_ok());
        assert_eq!(file_at(&place("stale")), Some(id));
        for name in ["live", "file", "link"] {
            assert_eq!(refused(&place(name)), ErrorKind::AddrInUse, "{name}");
        }
        UnixStream::connect(place("live")).unwrap();
        assert!(live.accept().is_ok());
        assert_eq!(fs::read_to_string(place("file")).unwrap(), "dear");
        assert_eq!(refused(&place("none/here")), ErrorKind::NotFound);
    }

    #[test]
    fn a_path_is_missed_when_it_is_removed_or_another_files_and_that_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_socket, id) = bind(&path, &Access::default()).unwrap();
        let listed = Listed { address: Address::Unix(path.clone()), path: path.clone(), id };
        assert_eq!(missing(&listed), None);
        let (mut paths, mut told) = Paths::new();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap(); // so that the inode is not given to another file
        assert_eq!(missing(&listed), Some("its socket file was removed".into()));
        let _other = UnixListener::bind(&path).unwrap();
        paths.look(7, vec![listed]);
        assert_eq!(
            told.blocking_recv(),
            Some((7, vec![(Address::Unix(path.clone()), "another file is at its path".into())]))
        );
        remove_file_of(&Address::Unix(path.clone()), Some(id));
        assert!(UnixStream::connect(&path).is_ok(), "it is the other's");
    }

    #[test]
    fn mode_and_group_are_set_before_anybody_can_connect_and_changed_by_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mode = || fs::symlink_metadata(&path).unwrap().mode() & 0o777;
        let group = nix::unistd::getegid();
        let (_socket, id) = bind(&path, &Access { mode: Some(0o606), group: Some(group) }).unwrap();
        assert_eq!(mode(), 0o606, "whatever the umask is");
        permit(&path, id, &Access { mode: Some(0o600), group: None }).unwrap();
        assert_eq!((mode(), fs::symlink_metadata(&path).unwrap().gid()), (0o600, group.as_raw()));

        let file = folder.path().join("file");
        fs::write(&file, "dear").unwrap();
        let before = fs::metadata(&file).unwrap().mode();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        symlink(&file, &path).unwrap();
        assert!(permit(&path, id, &Access { mode: Some(0o666), group: None }).is_err());
        assert_eq!(fs::metadata(&file).unwrap().mode(), before);
    }
}
