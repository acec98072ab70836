//! Takes and gives back the place of the control socket: a lock beside it says whose it is, a stale
//! socket is replaced, a living one never. Nobody can connect before mode and group are set.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Group, getegid, geteuid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::node::{self, Node};
use super::place::{Folder, Place};

/// Connections that may wait while all places of the server are taken.
const BACKLOG: i32 = 128;

/// A control socket of ours: removed, and its lock given back, when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    lock_path: PathBuf,
    /// What another daemon, or another user, put in our place is not ours to remove or to change.
    id: node::Id,
    /// Held for life; the kernel gives it back when the process ends, however it ends.
    _lock: Flock<File>,
}

/// Why the control socket could not be had. Nothing was changed but, maybe, a folder made.
#[derive(Debug)]
pub enum SocketError {
    /// Another daemon holds the lock; its process id, where the lock tells.
    Running(PathBuf, Option<u32>),
    /// Somebody answers at the path who holds no lock of ours.
    Taken(PathBuf),
    /// What is at the path is no socket.
    NotASocket(PathBuf),
    /// What is at the path is not what lbd made there.
    Replaced(PathBuf),
    /// The lock is no plain file, or has another name.
    NotALock(PathBuf),
    /// The folder is another user's, or others may write into it.
    Untrusted(PathBuf),
    /// No group has this name.
    NoGroup(String),
    /// The socket could not be given to the group.
    Group(String, io::Error),
    /// The kernel refused something: what, at which path, why.
    Io(&'static str, PathBuf, io::Error),
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(path, pid) => {
                let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                let path = path.display();
                write!(
                    f,
                    "control socket {path}: another lbd{pid} is running with this control socket; \
                     stop it or choose another with --control"
                )
            }
            Self::Taken(path) => write!(
                f,
                "control socket {}: another program answers there; stop it or choose another path with --control",
                path.display()
            ),
            Self::NotASocket(path) => write!(
                f,
                "control socket {}: there is something that is no socket; move it away or choose another path with --control",
                path.display()
            ),
            Self::Replaced(path) => write!(
                f,
                "control socket {}: something else is at its path now, and is left as it is; restart lbd, and see who may write \
                 into the folder",
                path.display()
            ),
            Self::NotALock(path) => write!(
                f,
                "control socket: the lock {} is no plain file of one name, and is left as it is; move it away, and see who may \
                 write into the folder",
                path.display()
            ),
            Self::Untrusted(folder) => write!(
                f,
                "control socket: the folder {} is another user's, or others may write into it; \
                 set XDG_RUNTIME_DIR or choose a path with --control",
                folder.display()
            ),
            Self::NoGroup(name) => {
                write!(f, "control.group: there is no group \"{name}\"; create it or name another")
            }
            Self::Group(name, error) => write!(
                f,
                "control.group: the socket cannot be given to the group \"{name}\": {error}; run as root or as a member of it"
            ),
            Self::Io(what, path, error) => write!(f, "control socket: {what} {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for SocketError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, _, error) | Self::Group(_, error) => Some(error),
            _ => None,
        }
    }
}

/// Takes the place and listens there, with these permission bits and this group (`None`: the daemon's own).
/// The listener is non-blocking, ready for `tokio::net::UnixListener::from_std`.
pub fn bind(place: &Place, mode: u32, group: Option<&str>) -> Result<(UnixListener, ControlSocket), SocketError> {
    let group = group.map(find_group).transpose()?;
    make_folder(place)?;

    let path = &place.path;
    let mut lock_path = path.clone().into_os_string();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = take_lock(path, &lock_path)?;

    clear(path)?;
    let (listener, id) = listen(path, mode, group.as_ref())?;
    Ok((listener, ControlSocket { path: path.clone(), lock_path, id, _lock: lock }))
}

/// A control socket as another program in this very process takes it over. The socket itself is apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CarriedSocket {
    path: PathBuf,
    lock_path: PathBuf,
    id: node::Id,
    /// The open file that holds the lock.
    pub lock: RawFd,
}

impl ControlSocket {
    /// What a successor needs to have it.
    pub fn carry(&self) -> CarriedSocket {
        let (path, lock_path) = (self.path.clone(), self.lock_path.clone());
        CarriedSocket { path, lock_path, id: self.id, lock: self._lock.as_raw_fd() }
    }

    /// A predecessor's, with the open file of its lock, which is held all along.
    ///
    /// # Errors
    /// The file is no lock.
    pub fn inherit(carried: CarriedSocket, lock: OwnedFd) -> io::Result<Self> {
        let lock = Flock::lock(File::from(lock), FlockArg::LockExclusiveNonblock);
        // Nothing of a predecessor's is closed here: it may have to go on.
        let lock = lock.map_err(|(file, error)| (std::mem::forget(file), error).1)?;
        Ok(Self { path: carried.path, lock_path: carried.lock_path, id: carried.id, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For changes of its mode and group.
    pub fn permissions(&self) -> Permissions {
        Permissions { path: self.path.clone(), id: self.id }
    }
}

/// Who may use a control socket.
#[derive(Debug)]
pub struct Permissions {
    path: PathBuf,
    id: node::Id,
}

impl Permissions {
    /// Gives the socket other permission bits and another group (`None`: the daemon's own), while it is in use. Asks the name
    /// service, which may hang.
    ///
    /// # Errors
    /// There is no such group, the daemon may not give the socket to it, or what is at the path is not the socket; the socket
    /// stays as it was.
    pub fn set(&self, mode: u32, group: Option<&str>) -> Result<(), SocketError> {
        let group = group.map(find_group).transpose()?;
        let node = Node::at(&self.path).ok().filter(|node| node.id() == self.id);
        let node = node.ok_or_else(|| SocketError::Replaced(self.path.clone()))?;
        match &group {
            Some(group) => give(&node, group)?,
            None => node.give(getegid()).map_err(io_error("set the group of", &self.path))?,
        }
        node.set_mode(mode).map_err(io_error("set the mode of", &self.path))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Both are best effort: what stays behind is found stale by the next daemon.
        let _ = node::remove(&self.path, self.id);
        if let Ok(lock) = self._lock.metadata() {
            let _ = node::remove(&self.lock_path, node::id_of(&lock));
        }
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |error| SocketError::Io(what, path, error)
}

fn find_group(name: &str) -> Result<Group, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group),
        Ok(None) => Err(SocketError::NoGroup(name.to_owned())),
        Err(error) => Err(SocketError::Group(name.to_owned(), error.into())),
    }
}

fn make_folder(place: &Place) -> Result<(), SocketError> {
    let Some(folder) = place.path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    let mode = match place.folder {
        Folder::Shared => 0o755,
        Folder::Private => 0o700,
    };
    DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(io_error("make the folder", folder))?;
    if is_trusted(place) { Ok(()) } else { Err(SocketError::Untrusted(folder.to_owned())) }
}

/// Whether the place's folder is fit to hold a control socket. In /tmp anybody may have made it first,
/// to catch what operators say; `lbctl` asks this too.
pub fn is_trusted(place: &Place) -> bool {
    let Some(folder) = place.path.parent().filter(|_| place.folder == Folder::Private) else {
        return true;
    };
    // Not through a symlink: its target may be ours while the link is not.
    fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0)
}

/// Locks the file beside the socket and writes our process id into it.
fn take_lock(socket: &Path, lock_path: &Path) -> Result<Flock<File>, SocketError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK) // a FIFO would keep us
            .open(lock_path)
            .map_err(io_error("open the lock", lock_path))?;
        let found = file.metadata().map_err(io_error("read", lock_path))?;
        if !found.is_file() || found.nlink() > 1 {
            return Err(SocketError::NotALock(lock_path.to_owned())); // what is written there would be another file's, too
        }
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::Error::EWOULDBLOCK)) => {
                return Err(SocketError::Running(socket.to_owned(), read_pid(file)));
            }
            Err((_, error)) => return Err(io_error("lock", lock_path)(error.into())),
        };
        // Whoever held it may have removed the file between our open and our lock.
        if !fs::symlink_metadata(lock_path).is_ok_and(|now| node::id_of(&now) == node::id_of(&found)) {
            continue;
        }
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())); // told, not relied on
        return Ok(lock);
    }
}

fn read_pid(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Removes a socket at which nobody listens any more. We hold the lock: no other lbd is here.
fn clear(path: &Path) -> Result<(), SocketError> {
    let found = match Node::at(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("read", path)(error)),
        Ok(found) if !found.is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(found) => found,
    };
    let address = SockAddr::unix(path).map_err(io_error("bind", path))?;
    let knock = stream_socket(path)?;
    match knock.connect(&address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            node::remove(path, found.id()).map_err(io_error("remove the stale", path))
        }
        // Also where its backlog is full, or where we may not connect: somebody's it is.
        _ => Err(SocketError::Taken(path.to_owned())),
    }
}

fn stream_socket(path: &Path) -> Result<Socket, SocketError> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None).map_err(io_error("make", path))?;
    // A blocking connect would wait for a place in a full backlog.
    socket.set_nonblocking(true).map_err(io_error("make", path))?;
    Ok(socket)
}

fn give(node: &Node, group: &Group) -> Result<(), SocketError> {
    node.give(group.gid).map_err(|error| SocketError::Group(group.name.clone(), error))
}

/// Binds, sets group and mode, and only then listens: until then the kernel refuses every connect.
fn listen(path: &Path, mode: u32, group: Option<&Group>) -> Result<(UnixListener, node::Id), SocketError> {
    let address = SockAddr::unix(path).map_err(io_error("bind", path))?;
    let socket = stream_socket(path)?;
    // The kernel makes the file with the socket's own mode, less the umask: nobody finds it wider than it is to be.
    fchmod(&socket, Mode::from_bits_truncate(mode & 0o777)).map_err(|e| io_error("set the mode of", path)(e.into()))?;
    socket.bind(&address).map_err(io_error("bind", path))?;
    let node = Node::at(path).ok().filter(Node::is_own_socket);
    let node = node.ok_or_else(|| SocketError::Replaced(path.to_owned()))?;
    let listening = (|| {
        if let Some(group) = group {
            give(&node, group)?;
        }
        node.set_mode(mode).map_err(io_error("set the mode of", path))?;
        socket.listen(BACKLOG).map_err(io_error("listen at", path))
    })();
    match listening {
        Ok(()) => Ok((OwnedFd::from(socket).into(), node.id())),
        Err(error) => {
            let _ = node::remove(path, node.id());
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests;
