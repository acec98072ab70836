//! Takes and gives back the place of the control socket: a lock beside it says whose it is, a stale
//! socket is replaced, a living one never. Nobody can connect before mode and group are set.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown as change_owner,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Group, geteuid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::place::{Folder, Place};

/// Connections that may wait while all places of the server are taken.
const BACKLOG: i32 = 128;

/// A control socket of ours: removed, and its lock given back, when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    lock_path: PathBuf,
    /// Device and inode: what another daemon put in our place is not ours to remove.
    id: (u64, u64),
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
    let listener = listen(path, mode, group.as_ref())?;
    let made = fs::symlink_metadata(path).map_err(io_error("read", path))?;
    Ok((listener, ControlSocket { path: path.clone(), lock_path, id: (made.dev(), made.ino()), _lock: lock }))
}

/// A control socket as another program in this very process takes it over. The socket itself is apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CarriedSocket {
    path: PathBuf,
    lock_path: PathBuf,
    id: (u64, u64),
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

    /// Why a group could not be given the socket, as far as can be known before.
    ///
    /// # Errors
    /// There is no such group.
    pub fn may_permit(&self, group: Option<&str>) -> Result<(), SocketError> {
        group.map(find_group).transpose().map(|_| ())
    }

    /// Gives the socket other permission bits and another group (`None`: the daemon's own), while it is in use.
    ///
    /// # Errors
    /// There is no such group, or the daemon may not give the socket to it; the socket stays as it was.
    pub fn permit(&self, mode: u32, group: Option<&str>) -> Result<(), SocketError> {
        match group.map(find_group).transpose()? {
            Some(group) => give(&self.path, &group)?,
            None => change_owner(&self.path, None, Some(nix::unistd::getegid().as_raw()))
                .map_err(io_error("set the group of", &self.path))?,
        }
        set_mode(&self.path, mode)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Both are best effort: what stays behind is found stale by the next daemon.
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = fs::remove_file(&self.lock_path);
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
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(lock_path)
            .map_err(io_error("open the lock", lock_path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, nix::Error::EWOULDBLOCK)) => {
                return Err(SocketError::Running(socket.to_owned(), read_pid(file)));
            }
            Err((_, error)) => return Err(io_error("lock", lock_path)(error.into())),
        };
        // Whoever held it may have removed the file between our open and our lock.
        let held = lock.metadata().map_err(io_error("read", lock_path))?;
        if !fs::symlink_metadata(lock_path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
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
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("read", path)(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let address = SockAddr::unix(path).map_err(io_error("bind", path))?;
    let knock = stream_socket(path)?;
    match knock.connect(&address) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io_error("remove the stale", path))
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

fn give(path: &Path, group: &Group) -> Result<(), SocketError> {
    change_owner(path, None, Some(group.gid.as_raw())).map_err(|error| SocketError::Group(group.name.clone(), error))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), SocketError> {
    fs::set_permissions(path, Permissions::from_mode(mode & 0o777)).map_err(io_error("set the mode of", path))
}

/// Binds, sets group and mode, and only then listens: until then the kernel refuses every connect.
fn listen(path: &Path, mode: u32, group: Option<&Group>) -> Result<UnixListener, SocketError> {
    let address = SockAddr::unix(path).map_err(io_error("bind", path))?;
    let socket = stream_socket(path)?;
    socket.bind(&address).map_err(io_error("bind", path))?;
    let listening = (|| {
        if let Some(group) = group {
            give(path, group)?;
        }
        set_mode(path, mode)?;
        socket.listen(BACKLOG).map_err(io_error("listen at", path))
    })();
    match listening {
        Ok(()) => Ok(std::os::fd::OwnedFd::from(socket).into()),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn bound(path: &Path) -> Result<(UnixListener, ControlSocket), SocketError> {
        bind(&Place::named(path), 0o660, None)
    }

    #[test]
    fn mode_and_folder_are_made_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, folder, folder_mode) in [(0o660, Folder::Shared, 0o755), (0o600, Folder::Private, 0o700)] {
            let path = dir.path().join(format!("{mode:o}/control.sock"));
            let (_listener, _socket) = bind(&Place { path: path.clone(), folder }, mode, None).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
            assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, folder_mode);
        }
    }

    #[test]
    fn mode_and_group_can_change_while_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (_listener, socket) = bound(&path).unwrap();
        socket.permit(0o600, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(socket.permit(0o666, Some("no-such-group-here")), Err(SocketError::NoGroup(_))));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "a refusal changes nothing");
    }

    #[test]
    fn nothing_is_left_behind_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let taken = bound(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(taken);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_second_daemon_is_refused_and_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (_listener, _socket) = bound(&path).unwrap();
        let error = bound(&path).unwrap_err();
        assert!(matches!(&error, SocketError::Running(_, Some(pid)) if *pid == std::process::id()), "{error:?}");
        assert!(error.to_string().contains("stop it or choose another with --control"), "{error}");
        assert!(UnixStream::connect(&path).is_ok(), "the first one still listens");
    }

    #[test]
    fn a_stale_socket_is_replaced_also_where_its_lock_stayed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        fs::write(dir.path().join("control.sock.lock"), "99999\n").unwrap();
        let (_listener, _socket) = bound(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn what_is_not_ours_is_neither_stolen_nor_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(bound(&file), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

        let living = dir.path().join("living");
        let _other = UnixListener::bind(&living).unwrap();
        assert!(matches!(bound(&living), Err(SocketError::Taken(_))));
        assert!(UnixStream::connect(&living).is_ok());
    }

    #[test]
    fn a_socket_put_in_our_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let taken = bound(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(taken);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_private_folder_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let place = Place { path: dir.path().join("control.sock"), folder: Folder::Private };
        assert!(matches!(bind(&place, 0o660, None), Err(SocketError::Untrusted(_))));

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(tempfile::tempdir().unwrap().keep(), &link).unwrap();
        let place = Place { path: link.join("control.sock"), folder: Folder::Private };
        assert!(matches!(bind(&place, 0o660, None), Err(SocketError::Untrusted(_))), "through a symlink");
    }

    #[test]
    fn an_unknown_group_is_named_and_our_own_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::named(dir.path().join("control.sock"));
        let error = bind(&place, 0o660, Some("no-such-group")).unwrap_err();
        assert_eq!(error.to_string(), "control.group: there is no group \"no-such-group\"; create it or name another");

        let own = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
        let (_listener, _socket) = bind(&place, 0o660, Some(&own.name)).unwrap();
        assert_eq!(fs::metadata(&place.path).unwrap().gid(), own.gid.as_raw());
    }

    #[test]
    fn a_path_too_long_for_the_kernel_is_an_error_not_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(bound(&dir.path().join("x".repeat(120))), Err(SocketError::Io("bind", _, _))));
    }
}
