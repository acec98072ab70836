//! A file by its descriptor: the control socket's folder may be another user's, who may put a link to any file at any name in it.
//! So a name is looked up once, never through a link, and what is found is told by device and inode; what is done to it is done
//! to what was found.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::AtFlags;
use nix::libc::{O_NOFOLLOW, O_PATH};
use nix::unistd::{Gid, fchownat};

/// Device and inode.
pub type Id = (u64, u64);

/// What is at a name, held open, so that its inode is no other file's meanwhile.
#[derive(Debug)]
pub struct Node {
    file: File,
    found: fs::Metadata,
}

impl Node {
    /// What is at `path` now: a link itself, where there is one.
    ///
    /// # Errors
    /// There is nothing, or it may not be looked at.
    pub fn at(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW).open(path)?;
        let found = file.metadata()?;
        Ok(Self { file, found })
    }

    /// Which one it is.
    pub fn id(&self) -> Id {
        id_of(&self.found)
    }

    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        self.found.file_type().is_socket()
    }

    /// Whether it is a socket that this user has made, and that has no other name.
    pub fn is_own_socket(&self) -> bool {
        self.is_socket() && self.found.nlink() == 1 && self.found.uid() == nix::unistd::geteuid().as_raw()
    }

    /// Gives it to a group.
    ///
    /// # Errors
    /// This user may not.
    pub fn give(&self, group: Gid) -> io::Result<()> {
        Ok(fchownat(&self.file, "", None, Some(group), AtFlags::AT_EMPTY_PATH)?)
    }

    /// Sets its permission bits.
    ///
    /// # Errors
    /// This user may not, or there is no /proc.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        if self.found.mode() & 0o777 == mode & 0o777 {
            return Ok(());
        }
        // fchmod(2) refuses such a descriptor, and fchmodat2(2) is of Linux 6.6; this name is the descriptor's, not a path's.
        fs::set_permissions(format!("/proc/self/fd/{}", self.file.as_raw_fd()), Permissions::from_mode(mode & 0o777))
    }
}

/// Which file it is.
pub fn id_of(found: &fs::Metadata) -> Id {
    (found.dev(), found.ino())
}

/// Takes a name away where it is still this file's.
pub fn remove(path: &Path, id: Id) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|now| id_of(&now) == id) { fs::remove_file(path) } else { Ok(()) }
}
