//! The place of the control socket, taken, changed and given back in folders of the tests.

use std::os::unix::fs::{PermissionsExt, symlink};
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
    socket.permissions().set(0o600, None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(matches!(socket.permissions().set(0o666, Some("no-such-group-here")), Err(SocketError::NoGroup(_))));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "a refusal changes nothing");
}

#[test]
fn neither_a_change_of_mode_nor_the_end_touches_what_another_user_put_in_our_place() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lock) = (dir.path().join("control.sock"), dir.path().join("control.sock.lock"));
    for by_link in [true, false] {
        let victim = dir.path().join("victim");
        fs::write(&victim, "secret").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        let (listener, socket) = bound(&path).unwrap();
        for name in [&path, &lock] {
            fs::rename(name, dir.path().join("aside")).unwrap();
            if by_link { symlink(&victim, name) } else { fs::hard_link(&victim, name) }.unwrap();
        }
        let error = socket.permissions().set(0o666, None).unwrap_err();
        assert!(matches!(error, SocketError::Replaced(_)), "{error:?}");
        drop((listener, socket));
        assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o600);
        assert!(path.exists() && lock.exists(), "what is there is not ours to remove");
        let error = bound(&path).unwrap_err();
        assert!(matches!(error, SocketError::NotALock(_) | SocketError::Io("open the lock", ..)), "{error:?}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "secret");
        for name in [&path, &lock, &victim] {
            fs::remove_file(name).unwrap();
        }
    }
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
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
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
