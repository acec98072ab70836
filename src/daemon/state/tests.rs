//! What is kept over a restart, in folders of the tests.

use super::*;
use std::fs;
use std::time::SystemTime;

fn decision(backend: &str, left: Option<u64>) -> Decision {
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 7);
    Decision {
        backend: (
            BackendRef { pool: "web".parse().unwrap(), backend: backend.parse().unwrap() },
            "unix:/run/a.sock".parse().unwrap(),
        ),
        admin: AdminState::Draining,
        by: "alice (uid 1000)".into(),
        reason: Some("new \"disk\"\n".into()),
        since: at(1_700_000_000),
        left: left.map(Duration::from_secs),
    }
}

fn start(folder: &Path) -> (Keeper, News, Vec<Decision>) {
    let folder = Folder::at(folder);
    let decided = decided_before(Some(&folder)).unwrap();
    let (keeper, news) = Keeper::start(folder, "/etc/lbd/lbd.yaml".into(), Calls::default()).unwrap();
    (keeper, news, decided)
}

/// A moment of the same boot as all others of these tests.
fn at(seconds: u64) -> Moment {
    let since_boot = Duration::from_secs(seconds);
    Moment { wall: SystemTime::UNIX_EPOCH + since_boot, boot: "b".into(), since_boot }
}

fn written(decisions: &[Decision]) -> String {
    json::pretty(&Document::of(decisions, &at(10)))
}

#[test]
fn what_is_kept_is_recalled_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (keeper, mut written, kept) = start(folder.path());
    assert_eq!(kept, []);
    let mut decided = vec![decision("a", None), decision("b", Some(3600))];
    keeper.keep(1, vec![decision("a", None)]);
    keeper.keep_in_force(b"pools: {}".to_vec());
    keeper.keep(2, decided.clone());
    keeper.finish(Duration::from_secs(20));
    assert_eq!(*written.borrow_and_update(), (2, Ok(())));
    let kept = start(folder.path()).2;
    let left = kept[1].left.unwrap();
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3500), "{left:?}");
    decided[1].left = Some(left);
    assert_eq!(kept, decided);
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [in_force::NAME, NAME], "nothing else is left");
    let in_force = fs::read_to_string(folder.path().join(in_force::NAME)).unwrap();
    assert_eq!(in_force, "# kept by lbd: what was last in force of \"/etc/lbd/lbd.yaml\"\npools: {}");
}

#[test]
fn what_is_left_of_a_decision_does_not_follow_a_wall_clock_that_was_wrong() {
    let text = written(&[decision("a", Some(3600)), decision("b", None)]);
    let left = |now: &Moment| {
        let (all, odd) = decisions(text.as_bytes(), now).unwrap();
        assert!(odd == 0 && all[1].left.is_none());
        all[0].left.unwrap().as_secs()
    };
    let heard = Moment { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), ..at(70) };
    assert_eq!(left(&heard), 3540, "the machine has heard what time it is since");
    let another = Moment { boot: "c".into(), ..at(5) };
    assert_eq!(left(&another), 3600, "another boot, and a clock that is behind");
    assert_eq!(left(&Moment { boot: "c".into(), ..at(1010) }), 2600, "another boot");
    assert_eq!(left(&Moment { boot: "c".into(), ..at(9999) }), 0);
}

#[test]
fn what_an_older_version_has_written_ends_by_the_wall_clock() {
    let older = r#"{ "version": 1, "overrides": [{ "pool": "web", "backend": "a", "address": "unix:/run/a.sock",
        "admin": "draining", "by": "alice", "reason": null, "since": "1970-01-01T00:00:10Z",
        "until": "1970-01-01T01:00:10Z" }] }"#;
    let (all, odd) = decisions(older.as_bytes(), &at(70)).unwrap();
    assert_eq!((all[0].left.map(|left| left.as_secs()), odd), (Some(3540), 0));
}

#[test]
fn a_damaged_file_is_set_aside_and_what_comes_next_is_kept() {
    let right = written(&[decision("a", None)]);
    assert_eq!(decisions(right.as_bytes(), &at(20)).unwrap(), (vec![decision("a", None)], 0));
    let newer = right.replace("\"by\"", "\"key of tomorrow\": 1, \"by\"");
    assert_eq!(decisions(newer.as_bytes(), &at(20)).unwrap(), (vec![decision("a", None)], 0));
    for damaged in [
        String::new(),
        right[..right.len() / 2].to_owned(),
        right.replace("draining", "enabled"),
        right.replace("draining", "gone"),
        right.replace("\"version\": 1", "\"version\": 2"),
        right.replace("web", "w/b"),
        right.replace("2023-", "soon-"),
        right.replace("\"by\"", "\"of\""),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), &damaged).unwrap();
        let (keeper, _, kept) = start(folder.path());
        assert_eq!(kept, [], "{damaged}");
        assert_eq!(fs::read_to_string(folder.path().join("overrides.json.damaged")).unwrap(), damaged);
        keeper.keep(1, vec![decision("b", None)]);
        keeper.finish(Duration::from_secs(20));
        assert_eq!(start(folder.path()).2, [decision("b", None)]);
    }
}

#[test]
fn an_entry_that_makes_no_sense_takes_no_other_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let both = written(&[decision("a", None), decision("b", None)]);
    for (n, (from, to)) in [("\"b\"", "\"b/b\""), ("\"backend\": \"b\",", "")].into_iter().enumerate() {
        let text = both.replace(from, to);
        fs::write(&path, &text).unwrap();
        assert_eq!(recall(&Folder::at(folder.path()), &at(20)), [decision("a", None)], "{text}");
        let aside = ["overrides.json.damaged", "overrides.json.damaged.1"][n];
        assert_eq!(fs::read_to_string(folder.path().join(aside)).unwrap(), text);
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told() {
    let (keeper, written, kept) = start(Path::new("/proc/nowhere"));
    assert_eq!(kept, []);
    keeper.keep(1, Vec::new());
    keeper.finish(Duration::from_secs(20));
    let (number, done) = written.borrow().clone();
    assert!(number == 1 && done.is_err_and(|why| why.contains("/proc/nowhere/overrides.json")));
}
