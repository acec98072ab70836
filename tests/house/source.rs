//! Reads the source for the rules of `house.rs`: which files there are, their code without comments, literals and tests,
//! and every path that it names. No parser: the few tokens that the rules ask about.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// A file, named from the folder that it was looked for in.
pub struct File {
    pub name: String,
    pub text: String,
    /// The text without comments, literals and tests.
    pub code: String,
}

pub fn files(folder: &str) -> Vec<File> {
    fn collect(root: &Path, folder: &Path, out: &mut Vec<File>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, &path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let code = without_tests(&bare(&text)).0;
                out.push(File { name, text, code });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut all = Vec::new();
    collect(&root, &root, &mut all);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!all.is_empty());
    all
}

/// The files of src that are part of the programs: not those that only tests include.
pub fn sources() -> &'static [File] {
    static READ: LazyLock<Vec<File>> = LazyLock::new(programs);
    &READ
}

fn programs() -> Vec<File> {
    let all = files("src");
    let mut tests = BTreeSet::new();
    for file in &all {
        let stem = file.name.trim_end_matches(".rs");
        // A module's own modules lie in a folder of its name; those of a root file beside it.
        let is_root = ["mod", "main", "lib"].contains(&stem.rsplit('/').next().unwrap());
        let folder = if is_root { stem.rsplit_once('/').map_or("", |(folder, _)| folder) } else { stem };
        tests.extend(without_tests(&bare(&file.text)).1.iter().map(|module| format!("{folder}/{module}")));
    }
    let is_test = |name: &str| {
        tests
            .iter()
            .any(|module| name.strip_prefix(module.as_str()).is_some_and(|end| end == ".rs" || end.starts_with('/')))
    };
    all.into_iter().filter(|file| !is_test(&file.name)).collect()
}

/// Rust with comments and the insides of literals made blank.
pub fn bare(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    while i < chars.len() {
        let before = if i == 0 { ' ' } else { chars[i - 1] };
        let hashes = (i + 1..).take_while(|&j| at(j) == '#').count();
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            ('/', '*') => {
                (i + 2..chars.len()).find(|&j| at(j) == '*' && at(j + 1) == '/').map_or(chars.len(), |j| j + 2)
            }
            ('r', _) if !is_word(before) && at(i + 1 + hashes) == '"' => (i + 2 + hashes..chars.len())
                .find(|&j| at(j) == '"' && (1..=hashes).all(|h| at(j + h) == '#'))
                .map_or(chars.len(), |j| j + 1 + hashes),
            ('"', _) => {
                let mut j = i + 1;
                while j < chars.len() && at(j) != '"' {
                    j += if at(j) == '\\' { 2 } else { 1 };
                }
                j + 1
            }
            ('\'', '\\') => (i + 3..chars.len()).find(|&j| at(j) == '\'').map_or(chars.len(), |j| j + 1),
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            (c, _) => {
                out.push(c);
                i += 1;
                continue;
            }
        };
        out.extend(chars[i..end.min(chars.len())].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
        i = end;
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bare code without what is only compiled for tests, and the names of the modules that are other files.
pub fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut kept, mut modules, mut rest) = (String::new(), Vec::new(), code);
    while let Some((before, after)) = rest.split_once(MARK) {
        kept.push_str(before);
        let is_use = after.trim_start().starts_with("use ");
        let end = after.find(|c| c == ';' || (c == '{' && !is_use)).unwrap_or(after.len() - 1);
        if after.as_bytes()[end] == b';' {
            modules.extend(after[..end].trim().strip_prefix("mod ").map(str::to_owned));
            rest = &after[end + 1..];
        } else {
            let mut depth = 0;
            let close = after[end..].find(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth == 0
            });
            rest = close.map_or("", |close| &after[end + close + 1..]);
        }
    }
    kept.push_str(rest);
    (kept, modules)
}

/// Every path in bare code, those of `use` written out: `use a::{b, c::d}` gives `a::b` and `a::c::d`.
pub fn paths(code: &str) -> Vec<Vec<&str>> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            _ if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => c.len_utf8(),
        };
        if !c.is_whitespace() {
            tokens.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    let is_name = |token: Option<&&str>| token.is_some_and(|t| t.starts_with(|c| is_word(c) && !c.is_numeric()));
    let (mut found, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if tokens[i] == "use" {
            i += 1;
            branches(&tokens, &mut i, &[], &mut found);
        } else if is_name(tokens.get(i)) {
            let mut path = vec![tokens[i]];
            while tokens.get(i + 1) == Some(&"::") && is_name(tokens.get(i + 2)) {
                path.push(tokens[i + 2]);
                i += 2;
            }
            found.push(path);
        }
        i += 1;
    }
    found
}

fn branches<'a>(tokens: &[&'a str], i: &mut usize, stem: &[&'a str], found: &mut Vec<Vec<&'a str>>) {
    let mut path = stem.to_vec();
    while let Some(&token) = tokens.get(*i) {
        match token {
            "::" => {}
            "{" => loop {
                *i += 1;
                branches(tokens, i, &path, found);
                if tokens.get(*i) != Some(&",") {
                    *i += 1;
                    return;
                }
            },
            "as" => *i += 1,
            "," | "}" | ";" => break,
            name => path.push(name),
        }
        *i += 1;
    }
    if path.len() > stem.len() {
        found.push(path);
    }
}
