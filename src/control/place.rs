//! Where the control socket is when nobody says. Pure: the user and the environment are arguments.
//! Making and trusting the place is `socket`'s.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A path for the socket, and whose its folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The socket.
    pub path: PathBuf,
    /// Its folder.
    pub folder: Folder,
}

/// Whose a socket's folder is. Decides how it is made where it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// Anybody may look into it; the socket's mode says who may connect. Made with mode 0755.
    Shared,
    /// The user's alone, made with mode 0700. Where it exists it must be theirs: /tmp is everybody's.
    Private,
}

impl Place {
    /// Where an operator said.
    pub fn named(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), folder: Folder::Shared }
    }

    /// The system's own: `/run/lbd/control.sock`.
    pub fn system() -> Self {
        Self::named("/run/lbd/control.sock")
    }

    /// A user's: `lbd/control.sock` in the runtime folder (`XDG_RUNTIME_DIR`), or where there is none,
    /// `/tmp/lbd-UID/control.sock`.
    pub fn of_user(uid: u32, runtime_dir: Option<&OsStr>) -> Self {
        let folder = match runtime_dir.map(Path::new) {
            Some(dir) if dir.is_absolute() => dir.join("lbd"),
            _ => PathBuf::from(format!("/tmp/lbd-{uid}")),
        };
        Self { path: folder.join("control.sock"), folder: Folder::Private }
    }

    /// Where a daemon puts it by default: the system's place for root and for the service (systemd sets
    /// `RUNTIME_DIRECTORY` for `RuntimeDirectory=lbd`), else the user's.
    pub fn of_daemon(uid: u32, service_dir: Option<&OsStr>, runtime_dir: Option<&OsStr>) -> Self {
        let is_service = service_dir.is_some_and(|dirs| dirs.to_string_lossy().split(':').any(|dir| dir == "/run/lbd"));
        if uid == 0 || is_service { Self::system() } else { Self::of_user(uid, runtime_dir) }
    }

    /// Where `lbctl` looks when nobody says, in this order.
    pub fn searched(uid: u32, runtime_dir: Option<&OsStr>) -> [Self; 2] {
        [Self::system(), Self::of_user(uid, runtime_dir)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_its_user_expects_it() {
        let system = Place::system();
        let mine = Place { path: "/run/user/7/lbd/control.sock".into(), folder: Folder::Private };
        let fallback = Place { path: "/tmp/lbd-7/control.sock".into(), folder: Folder::Private };
        for (uid, service, runtime, place) in [
            (0, None, None, &system),
            (0, None, Some("/run/user/0"), &system),
            (7, Some("/run/lbd"), None, &system),
            (7, Some("/run/other:/run/lbd"), Some("/run/user/7"), &system),
            (7, Some("/run/other"), Some("/run/user/7"), &mine),
            (7, None, Some("/run/user/7"), &mine),
            (7, None, Some("relative"), &fallback),
            (7, None, Some(""), &fallback),
            (7, None, None, &fallback),
        ] {
            let found = Place::of_daemon(uid, service.map(OsStr::new), runtime.map(OsStr::new));
            assert_eq!(&found, place, "{uid} {service:?} {runtime:?}");
        }
    }

    #[test]
    fn lbctl_looks_where_daemons_and_demos_put_it() {
        for uid in [0, 7] {
            for runtime in [None, Some(OsStr::new("/run/user/7"))] {
                let searched = Place::searched(uid, runtime);
                assert!(searched.contains(&Place::of_daemon(uid, None, runtime)));
                assert!(searched.contains(&Place::of_user(uid, runtime)));
            }
        }
    }
}
