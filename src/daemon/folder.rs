//! The state folder (`StateDirectory=` of the unit): files in it are read, and replaced whole or not at all, by the folder's
//! descriptor and never through a link. The folder itself may be one: `DynamicUser=` makes it so.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::{OFlag, openat, renameat};
use nix::libc::O_DIRECTORY;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Files that were set aside under one name, at most.
const ASIDE: usize = 10;

/// A folder, which is opened anew each time.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The one that systemd gives the service, where it gives one.
    pub fn of_service() -> Option<Self> {
        let all = std::env::var_os("STATE_DIRECTORY")?;
        let first = std::env::split_paths(&all).next().filter(|first| !first.as_os_str().is_empty());
        first.map(Self)
    }

    /// One of the tests'.
    #[cfg(test)]
    pub fn at(path: &std::path::Path) -> Self {
        Self(path.to_owned())
    }

    /// Where a file of it is, for people.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What a file holds, up to so many bytes.
    ///
    /// # Errors
    /// There is none, it is no plain file, or it cannot be read.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC; // a FIFO would keep us
        let file = File::from(openat(self.open()?, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "is no regular file"));
        }
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Puts this in place of what a file holds, readable with these permission bits: whole or not at all, whatever happens meanwhile.
    ///
    /// # Errors
    /// It cannot be written; the file stays as it was.
    pub fn replace(&self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let folder = self.open()?;
        let fresh = format!("{name}.new");
        let _ = unlinkat(&folder, fresh.as_str(), UnlinkatFlags::NoRemoveDir); // left by one that did not come to the end
        let mut file = create(&folder, &fresh, mode)?;
        file.write_all(content)?;
        file.sync_all()?;
        renameat(&folder, fresh.as_str(), &folder, name)?;
        folder.sync_all()
    }

    /// Keeps what a damaged file holds under another name, beside earlier ones. Returns where.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_aside(&self, name: &str, content: &[u8]) -> (PathBuf, io::Result<()>) {
        let first = format!("{name}.damaged");
        let others = (1..ASIDE).map(|n| format!("{name}.damaged.{n}"));
        let unused = std::iter::once(first.clone()).chain(others).find(|name| !self.has(name)).unwrap_or(first);
        (self.path_of(&unused), self.replace(&unused, 0o644, content))
    }

    fn has(&self, name: &str) -> bool {
        self.path_of(name).symlink_metadata().is_ok()
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(&self.0)
    }
}

fn create(folder: &File, name: &str, mode: u32) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(folder, name, flags, Mode::from_bits_truncate(mode))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_written_or_read_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "secret").unwrap();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        for name in ["kept", "kept.new"] {
            symlink(&victim, state.join(name)).unwrap();
        }
        // systemd's may be a link.
        symlink(&state, dir.path().join("link")).unwrap();
        let folder = Folder::at(&dir.path().join("link"));
        assert!(folder.read("kept", 100).is_err());
        folder.replace("kept", 0o600, b"ours").unwrap();
        assert_eq!(folder.read("kept", 3).unwrap(), b"our");
        assert_eq!(fs::metadata(state.join("kept")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "secret");
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "nothing else is left");
        let asides: Vec<_> = (0..3).map(|_| folder.set_aside("kept", b"x").0).collect();
        assert_eq!(asides[2], folder.path_of("kept.damaged.2"));
    }
}
