//! Every way in which a file is changed in the field, each told by events alone and found by looking alone.

use super::*;
use std::os::unix::fs::symlink;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(10);

/// Looks only after events.
const EVENTS: Timing = Timing { quiet: SOON, longest: LONG, poll: Duration::from_secs(3600) };

/// As where all inotify instances are taken (EMFILE).
fn no_instance(_: Arc<Shared>) -> notify::Result<RecommendedWatcher> {
    Err(notify::Error::io(io::Error::from_raw_os_error(24)))
}

/// A way to change a file: how things lie at first, under which path it is watched, and the change to the given text.
struct Way {
    name: &'static str,
    path: &'static str,
    lay: fn(&Path),
    change: fn(&Path, &str),
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// As `ln -sfn` does not, but Kubernetes and careful people do.
fn swap(link: PathBuf, target: &str) {
    let next = PathBuf::from(format!("{}_tmp", link.display()));
    symlink(target, &next).unwrap();
    fs::rename(next, link).unwrap();
}

const WAYS: &[Way] = &[
    Way {
        name: "written in place",
        path: "etc/f",
        lay: |root| write(root.join("etc/f"), "old"),
        change: |root, text| write(root.join("etc/f"), text),
    },
    Way {
        name: "renamed over",
        path: "etc/f",
        lay: |root| write(root.join("etc/f"), "old"),
        change: |root, text| {
            write(root.join("etc/.f.swp"), text);
            fs::rename(root.join("etc/.f.swp"), root.join("etc/f")).unwrap();
        },
    },
    Way {
        name: "moved to a backup and written anew",
        path: "etc/f",
        lay: |root| write(root.join("etc/f"), "old"),
        change: |root, text| {
            fs::rename(root.join("etc/f"), root.join("etc/f~")).unwrap();
            write(root.join("etc/f"), text);
        },
    },
    Way {
        name: "deleted and made anew",
        path: "etc/f",
        lay: |root| write(root.join("etc/f"), "old"),
        change: |root, text| {
            fs::remove_file(root.join("etc/f")).unwrap();
            write(root.join("etc/f"), text);
        },
    },
    Way {
        name: "its folder deleted and made anew",
        path: "etc/lbd/f",
        lay: |root| write(root.join("etc/lbd/f"), "old"),
        change: |root, text| {
            fs::remove_dir_all(root.join("etc")).unwrap();
            write(root.join("etc/lbd/f"), text);
        },
    },
    Way {
        name: "its folder replaced by another",
        path: "etc/lbd/f",
        lay: |root| write(root.join("etc/lbd/f"), "old"),
        change: |root, text| {
            write(root.join("etc/new/f"), text);
            fs::rename(root.join("etc/lbd"), root.join("etc").join(text)).unwrap();
            fs::rename(root.join("etc/new"), root.join("etc/lbd")).unwrap();
        },
    },
    Way {
        name: "the symlink swapped",
        path: "etc/f",
        lay: |root| {
            write(root.join("a/old"), "old");
            fs::create_dir(root.join("etc")).unwrap();
            symlink("../a/old", root.join("etc/f")).unwrap();
        },
        change: |root, text| {
            write(root.join("a").join(text), text);
            swap(root.join("etc/f"), &format!("../a/{text}"));
        },
    },
    Way {
        name: "the symlink deleted and made anew",
        path: "etc/f",
        lay: |root| {
            write(root.join("a/old"), "old");
            fs::create_dir(root.join("etc")).unwrap();
            symlink("../a/old", root.join("etc/f")).unwrap();
        },
        change: |root, text| {
            write(root.join("a").join(text), text);
            fs::remove_file(root.join("etc/f")).unwrap();
            symlink(root.join("a").join(text), root.join("etc/f")).unwrap();
        },
    },
    Way {
        name: "the symlink's target written in place",
        path: "etc/f",
        lay: |root| {
            write(root.join("far/away/t"), "old");
            fs::create_dir(root.join("etc")).unwrap();
            symlink("../far/away/t", root.join("etc/f")).unwrap();
        },
        change: |root, text| write(root.join("far/away/t"), text),
    },
    Way {
        name: "the symlink's target renamed over",
        path: "etc/f",
        lay: |root| {
            write(root.join("far/away/t"), "old");
            fs::create_dir(root.join("etc")).unwrap();
            symlink("../far/away/t", root.join("etc/f")).unwrap();
        },
        change: |root, text| {
            write(root.join("far/next"), text);
            fs::rename(root.join("far/next"), root.join("far/away/t")).unwrap();
        },
    },
    Way {
        name: "a symlink on the way swapped",
        path: "current/conf/f",
        lay: |root| {
            write(root.join("releases/old/conf/f"), "old");
            symlink("releases/old", root.join("current")).unwrap();
        },
        change: |root, text| {
            write(root.join("releases").join(text).join("conf/f"), text);
            swap(root.join("current"), &format!("releases/{text}"));
        },
    },
    Way {
        name: "a Kubernetes ConfigMap updated",
        path: "etc/f",
        lay: |root| {
            write(root.join("etc/..old/f"), "old");
            symlink("..old", root.join("etc/..data")).unwrap();
            symlink("..data/f", root.join("etc/f")).unwrap();
        },
        change: |root, text| {
            write(root.join("etc").join(format!("..{text}")).join("f"), text);
            let old = fs::read_link(root.join("etc/..data")).unwrap();
            swap(root.join("etc/..data"), &format!("..{text}"));
            fs::remove_dir_all(root.join("etc").join(old)).unwrap();
        },
    },
];

/// Changes the file in the way three times: the first shows that it is noticed, the others that it still is.
async fn is_noticed(way: &Way, timing: Timing, listen: Listen) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(way.path);
    (way.lay)(folder.path());
    let (send, mut changed) = mpsc::channel(1);
    let watcher = Watcher::start_with(&path, b"old", send, timing, listen, Calls::default()).unwrap();
    for text in ["first", "second", "third"] {
        (way.change)(folder.path(), text);
        // A change may be seen half done; what counts is that the end of it is seen.
        loop {
            let told = timeout(LONG, changed.recv()).await;
            assert_eq!(told, Ok(Some(())), "{}: {text}", way.name);
            let content = fs::read(&path).unwrap_or_default();
            watcher.has_read(&content);
            if content == text.as_bytes() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn every_way_of_changing_the_file_is_told_by_events() {
    for way in WAYS {
        is_noticed(way, EVENTS, super::listen).await;
    }
}

#[tokio::test]
async fn every_way_of_changing_the_file_is_found_without_events() {
    for way in WAYS {
        is_noticed(way, Timing { poll: SOON, ..EVENTS }, no_instance).await;
    }
}

#[tokio::test]
async fn a_file_that_vanished_is_told_of_once_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("etc/f");
    let (send, mut changed) = mpsc::channel(1);
    // As if it had been read, and had vanished before the watch began.
    let _watcher = Watcher::start(&path, b"old", send, EVENTS, Calls::default()).unwrap();
    for step in ["etc", "etc/other"] {
        fs::create_dir(folder.path().join(step)).unwrap();
    }
    write(path, "new");
    assert_eq!(timeout(LONG, changed.recv()).await, Ok(Some(())));
}

#[tokio::test]
async fn a_change_before_the_watch_began_is_told() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("f"), "new");
    let (send, mut changed) = mpsc::channel(1);
    let _watcher = Watcher::start(&folder.path().join("f"), b"old", send, EVENTS, Calls::default()).unwrap();
    assert_eq!(timeout(LONG, changed.recv()).await, Ok(Some(())));
}

#[tokio::test]
async fn a_dropped_watcher_ends() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("f"), "old");
    let (send, mut changed) = mpsc::channel(1);
    drop(Watcher::start(&folder.path().join("f"), b"old", send, EVENTS, Calls::default()).unwrap());
    // The thread held the only sender.
    assert_eq!(timeout(LONG, changed.recv()).await, Ok(None));
}

#[tokio::test]
async fn one_that_pauses_has_nothing_of_the_kernels_and_then_sees_what_it_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write(path.clone(), "old");
    let (send, mut changed) = mpsc::channel(1);
    let watcher = Watcher::start(&path, b"old", send, EVENTS, Calls::default()).unwrap();
    write(path.clone(), "first");
    assert_eq!(timeout(LONG, changed.recv()).await, Ok(Some(())));
    assert!(watcher.has_read(b"first"));
    for text in ["second", "third"] {
        assert_eq!(watcher.shared.state().ears, 1);
        let began = Instant::now();
        watcher.pause(LONG);
        assert!(began.elapsed() < LONG && watcher.shared.state().ears == 0);
        write(path.clone(), text);
        watcher.resume();
        assert_eq!(timeout(LONG, changed.recv()).await, Ok(Some(())), "{text}");
        assert!(watcher.has_read(text.as_bytes()));
    }
    write(path.clone(), "fourth");
    assert_eq!(timeout(LONG, changed.recv()).await, Ok(Some(())), "told by an event");
    watcher.pause(LONG);
    drop(watcher);
    assert_eq!(timeout(LONG, changed.recv()).await, Ok(None), "one that pauses can end");
}

/// The thread's work, step by step.
fn lookout(path: &Path, timing: Timing, listen: Listen) -> (Lookout, mpsc::Receiver<()>) {
    let (send, changed) = mpsc::channel(10);
    let mut lookout = Lookout::new(path, b"old", send, timing, listen).unwrap();
    lookout.watch();
    lookout.look().unwrap();
    (lookout, changed)
}

fn told(lookout: &mut Lookout, changed: &mut mpsc::Receiver<()>) -> usize {
    lookout.watch();
    lookout.look().unwrap();
    std::iter::from_fn(|| changed.try_recv().ok()).count()
}

#[test]
fn only_other_content_is_news_and_only_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write(path.clone(), "old");
    let (mut lookout, mut changed) = lookout(&path, EVENTS, super::listen);
    let watcher = Watcher { shared: Arc::clone(&lookout.shared) };
    let mut step = |act: &dyn Fn()| {
        act();
        told(&mut lookout, &mut changed)
    };
    assert_eq!(step(&|| write(path.clone(), "old")), 0, "touched");
    assert_eq!(step(&|| write(path.clone(), "new")), 1);
    assert_eq!(step(&|| {}), 0, "told already");
    assert_eq!(step(&|| assert!(watcher.has_read(b"new"))), 0, "read by now");
    assert_eq!(step(&|| assert!(!watcher.has_read(b"new"))), 0, "lbctl reload of the same");
    write(path.clone(), "by hand");
    assert_eq!(step(&|| assert!(watcher.has_read(b"by hand"))), 0, "lbctl reload came first");
    assert_eq!(watcher.complaint(), None);
    assert_eq!(step(&|| fs::remove_file(&path).unwrap()), 0, "gone");
    assert!(watcher.complaint().is_some_and(|said| said.contains("No such file")), "{:?}", watcher.complaint());
    assert_eq!(step(&|| write(path.clone(), "by hand")), 0, "back as it was");
    assert_eq!(watcher.complaint(), None);
    assert_eq!(step(&|| write(path.clone(), "bad")), 1);
    assert_eq!(step(&|| write(path.clone(), "by hand")), 0, "taken back unread");
    assert_eq!(step(&|| write(path.clone(), "bad")), 1, "and made again");
    assert_eq!(step(&|| assert!(!watcher.has_read(b"by hand"))), 1, "the supervisor read too early");
    assert_eq!(step(&|| write(path.clone(), "")), 1, "empty is content");
}

#[test]
fn reading_the_file_or_writing_another_wakes_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write(path.clone(), "old");
    let timing = Timing { poll: Duration::from_millis(50), ..EVENTS };
    let (mut lookout, mut changed) = lookout(&path, timing, super::listen);
    fs::read(&path).unwrap();
    write(folder.path().join("other"), "text");
    assert_eq!(lookout.wait(), Woken::Time);
    fs::rename(&path, folder.path().join("f~")).unwrap();
    write(path.clone(), "old");
    assert_eq!(lookout.wait(), Woken::Stirred);
    assert_eq!(told(&mut lookout, &mut changed), 0);
    write(folder.path().join("f~"), "the backup");
    assert_eq!(lookout.wait(), Woken::Time);
    write(path, "old");
    assert_eq!(lookout.wait(), Woken::Stirred);
}

#[test]
fn a_file_written_without_end_is_looked_at_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write(path.clone(), "old");
    let timing = Timing { quiet: LONG, longest: Duration::from_millis(50), poll: LONG };
    let (mut lookout, _changed) = lookout(&path, timing, super::listen);
    let started = Instant::now();
    write(path.clone(), "new");
    assert_eq!(lookout.wait(), Woken::Stirred);
    assert!((timing.longest..LONG).contains(&started.elapsed()));
}

#[test]
fn a_watch_that_broke_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write(path.clone(), "old");
    let (mut lookout, mut changed) = lookout(&path, EVENTS, super::listen);
    lookout.ear = Some(notify::recommended_watcher(|_| {}).unwrap()); // hears, and tells nobody
    {
        let mut state = lookout.shared.state();
        (state.deaf, state.stirred) = (true, true);
    }
    assert_eq!(lookout.wait(), Woken::Stirred);
    assert_eq!(told(&mut lookout, &mut changed), 0);
    write(path, "new");
    assert_eq!(lookout.wait(), Woken::Stirred);
    assert_eq!(told(&mut lookout, &mut changed), 1);
}

#[test]
fn instances_to_be_had_again_are_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    write(path.clone(), "old");
    let (mut lookout, mut changed) = lookout(&path, EVENTS, no_instance);
    assert!(lookout.said_deaf && lookout.ear.is_none());
    lookout.listen = super::listen;
    assert_eq!(told(&mut lookout, &mut changed), 0);
    assert!(!lookout.said_deaf);
    write(path, "new");
    assert_eq!(lookout.wait(), Woken::Stirred);
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(Content::at(&fifo).is_err());
    assert!(Content::at(folder.path()).is_err());
}

#[test]
fn content_is_compared_to_a_bound_and_its_length_beyond() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    for length in [0, 1, COMPARED - 1, COMPARED, COMPARED + 1, 2 * COMPARED] {
        let bytes = vec![b'x'; length as usize];
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Content::at(&path).unwrap(), Content::of(&bytes), "{length}");
        assert_ne!(Content::of(&bytes), Content::of(&[&bytes[..], b"x"].concat()), "{length}");
    }
}
