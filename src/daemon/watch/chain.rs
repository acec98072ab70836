//! What must be watched to notice any change of the file behind a path: of its bytes, and of every symlink that
//! leads to it. Reads the file system, keeps nothing.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// As many symlinks as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The way from a path to its file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Chain {
    /// The file, and each folder in which a symlink of the way or the file itself has its name. Where the way breaks
    /// off, the last folder there is. All without symlinks, so that a watch is of what is meant.
    pub(super) watched: Vec<PathBuf>,
    /// The names in those folders that matter; other files there may change as they like.
    pub(super) names: Vec<PathBuf>,
}

impl Chain {
    /// The way from the absolute `path`, as it is now.
    pub(super) fn of(path: &Path) -> Self {
        let mut chain = Self::default();
        let mut at = PathBuf::from("/");
        let mut ahead: Vec<Step> = steps(path);
        let mut links = 0;
        while let Some(step) = ahead.pop() {
            let name = match step {
                Step::Root => {
                    at = PathBuf::from("/");
                    continue;
                }
                Step::Up => {
                    at.pop();
                    continue;
                }
                Step::Down(name) => at.join(name),
            };
            match name.symlink_metadata() {
                Ok(found) if found.is_symlink() && links < MAX_LINKS => {
                    links += 1;
                    chain.note(&at, &name);
                    ahead.extend(name.read_link().map(|target| steps(&target)).unwrap_or_default());
                }
                Ok(_) if !ahead.is_empty() => at = name,
                Ok(_) => {
                    chain.note(&at, &name);
                    chain.watched.push(name);
                }
                Err(_) => {
                    chain.note(&at, &name);
                    break;
                }
            }
        }
        chain
    }

    fn note(&mut self, folder: &Path, name: &Path) {
        if !self.watched.iter().any(|known| known == folder) {
            self.watched.push(folder.into());
        }
        self.names.push(name.into());
    }

    /// Whether something that happened to `path` may concern the file.
    pub(super) fn concerns(&self, path: &Path) -> bool {
        self.watched.iter().chain(&self.names).any(|known| known == path)
    }
}

enum Step {
    Root,
    Up,
    Down(OsString),
}

/// The steps of a path, the first one last.
fn steps(path: &Path) -> Vec<Step> {
    let step = |component| match component {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Down(name.into())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// The chain from `path` under `root`, as two lists of names under it.
    fn chain(root: &Path, path: &str) -> (Vec<String>, Vec<String>) {
        let chain = Chain::of(&root.join(path));
        let below = |paths: Vec<PathBuf>| {
            paths.iter().map(|p| p.strip_prefix(root).unwrap().display().to_string()).collect::<Vec<_>>()
        };
        (below(chain.watched), below(chain.names))
    }

    fn expected(watched: &[&str], names: &[&str]) -> (Vec<String>, Vec<String>) {
        let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        (owned(watched), owned(names))
    }

    #[test]
    fn every_folder_of_the_way_is_watched_and_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for path in ["plain/deep", "k8s/..v1", "target", "hop"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for path in ["plain/deep/f", "k8s/..v1/f", "target/f"] {
            fs::write(root.join(path), "").unwrap();
        }
        symlink("..v1", root.join("k8s/..data")).unwrap();
        symlink("..data/f", root.join("k8s/f")).unwrap();
        symlink(root.join("target"), root.join("hop/folder")).unwrap();
        symlink("../hop/folder/f", root.join("plain/far")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("gone/f", root.join("dangling")).unwrap();
        for (path, watched, names) in [
            ("plain/deep/f", &["plain/deep", "plain/deep/f"][..], &["plain/deep/f"][..]),
            ("plain/./deep/../deep/f", &["plain/deep", "plain/deep/f"], &["plain/deep/f"]),
            ("k8s/f", &["k8s", "k8s/..v1", "k8s/..v1/f"], &["k8s/f", "k8s/..data", "k8s/..v1/f"]),
            ("plain/far", &["plain", "hop", "target", "target/f"], &["plain/far", "hop/folder", "target/f"]),
            ("plain/none", &["plain"], &["plain/none"]),
            ("none/deep/f", &[""], &["none"]),
            ("dangling", &[""], &["dangling", "gone"]),
        ] {
            assert_eq!(chain(&root, path), expected(watched, names), "{path}");
        }
        assert_eq!(chain(&root, "loop").0, ["", "loop"]);
    }
}
