//! The last file that was in force, kept in the state folder. Where the file is invalid when lbd starts, as after a crash that follows a
//! refused reload, it serves by this one until the file is valid.

use std::io::ErrorKind;
use std::path::Path;

use super::folder::Folder;
use crate::config::Config;

/// Its name.
pub const NAME: &str = "in-force.yaml";
/// It may hold what others must not read.
pub const MODE: u32 = 0o600;
/// The longest one: that of a configuration, and the line before it.
const MOST_READ: u64 = (1 << 20) + (1 << 13);

/// A file that was in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// What it means to this program.
    pub config: Config,
    /// What it holds.
    pub content: Vec<u8>,
}

/// As it is kept: which file it is of stands before it.
pub fn kept(path: &Path, content: &[u8]) -> Vec<u8> {
    [head(path).as_bytes(), content].concat()
}

fn head(path: &Path) -> String {
    format!("# kept by lbd: what was last in force of {path:?}\n")
}

/// What was last in force of the file at `path`; `None` where nothing of it is kept.
///
/// # Errors
/// What is kept cannot be read, or this program cannot serve by it.
pub fn recall(folder: &Folder, path: &Path) -> Result<Option<InForce>, String> {
    let name = folder.path_of(NAME).display().to_string();
    let content = match folder.read(NAME, MOST_READ) {
        Ok(content) => content,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("{name}: what was last in force cannot be read: {e}")),
    };
    let Some(content) = content.strip_prefix(head(path).as_bytes()) else { return Ok(None) }; // it is another file's
    match Config::parse(content) {
        Ok(config) => Ok(Some(InForce { config, content: content.to_vec() })),
        Err(problems) => {
            let first = problems.first().map_or_else(String::new, |problem| problem.one_line(&name));
            Err(format!("{first}: what was last in force is not valid to this version of lbd"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_file_is_served_by_for_that_file_alone_and_only_where_it_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::at(dir.path());
        let (path, other) = (Path::new("/etc/lbd/lbd.yaml"), Path::new("/tmp/lbd.yaml"));
        assert!(recall(&folder, path).unwrap().is_none());
        let content = b"\xef\xbb\xbflisteners: { l: { bind: 127.0.0.1:1, pool: p } }\npools: { p: { backends: { b: 127.0.0.1:2 } } }\n";
        folder.replace(NAME, MODE, &kept(path, content)).unwrap();
        assert_eq!(recall(&folder, path).unwrap().unwrap().content, content);
        assert!(recall(&folder, other).unwrap().is_none());
        for damaged in [&b"pools: {}"[..], b"", &content[..40]] {
            folder.replace(NAME, MODE, &kept(path, damaged)).unwrap();
            assert!(recall(&folder, path).is_err(), "{damaged:?}");
        }
    }
}
