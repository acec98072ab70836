//! What a program says of itself: its `--help` and that of each of its commands, in the words that the pages are read into.

use std::collections::BTreeSet;
use std::process::Command;

/// The help of a program, and with its name that of each command.
pub struct Help {
    top: String,
    commands: Vec<(String, String)>,
}

impl Help {
    pub fn of(path: &str) -> Self {
        let say = |args: &[&str]| {
            let output = Command::new(path).args(args).arg("--help").output().unwrap();
            assert!(output.status.success(), "{path} {args:?} --help");
            String::from_utf8(output.stdout).unwrap()
        };
        let top = say(&[]);
        let listed = top.split_once("\nCommands:\n").map_or("", |(_, after)| after.split("\n\n").next().unwrap());
        let names = listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
        let commands = names.map(|name| (name.to_owned(), say(&[name]))).collect();
        Self { commands, top }
    }

    /// Commands with their arguments, options with their command, value and default. What every command takes as well
    /// (`--json` of lbctl) is the program's.
    pub fn usage(&self) -> BTreeSet<String> {
        let common = options(&self.top);
        let mut all = common.clone();
        for (name, text) in &self.commands {
            let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap();
            let words = usage.split(' ').skip(2).filter(|word| *word != "[OPTIONS]");
            let words: Vec<String> = words.map(|w| w.trim_matches(['<', '>']).to_owned()).collect();
            all.insert([vec![name.clone()], words].concat().join(" "));
            let own = options(text).into_iter().filter(|option| !common.contains(option));
            all.extend(own.map(|option| format!("{name} {option}")));
        }
        all
    }

    /// The numbers that the paragraph of exit codes begins its entries with.
    pub fn exit_statuses(&self) -> BTreeSet<u8> {
        let after = |title: &str| self.top.split_once(title).map(|(_, rest)| rest.split("\n\n").next().unwrap());
        let text = after("Exit codes:").or_else(|| after("Exit status:")).unwrap_or("");
        let entries = text.split(['\n', ',']).filter_map(|entry| entry.split_whitespace().next());
        entries.filter_map(|word| word.parse().ok()).collect()
    }

    /// Every option, of any command.
    pub fn words(&self) -> BTreeSet<String> {
        let texts = self.commands.iter().map(|(_, text)| text).chain([&self.top]);
        let all = texts.flat_map(|text| options(text));
        all.flat_map(|option| option.split([' ', '[', ',']).map(str::to_owned).collect::<Vec<_>>()).collect()
    }
}

/// `--name VALUE = default` of each option.
fn options(help: &str) -> BTreeSet<String> {
    let section = help.split_once("\nOptions:\n").map_or("", |(_, rest)| rest);
    let mut found: Vec<String> = Vec::new();
    let mut explained = String::new();
    let finish = |found: &mut Vec<String>, explained: &mut String| {
        let words = explained.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = words.split_once("[default: ").map(|(_, rest)| rest.split(']').next().unwrap());
        // `[default: a for root, else b]` is a sentence, and read by people only.
        if let (Some(last), Some(default)) = (found.last_mut(), default.filter(|d| !d.contains(' '))) {
            *last += &format!(" = {default}");
        }
        explained.clear();
    };
    for line in section.lines() {
        let bare = line.trim_start();
        if !line.starts_with(' ') && !line.is_empty() {
            break;
        }
        if !bare.starts_with('-') || bare.starts_with("- ") {
            explained.push_str(line);
            explained.push('\n');
            continue;
        }
        finish(&mut found, &mut explained);
        let (head, text) = bare.split_once("  ").unwrap_or((bare, ""));
        found.push(head.replace(['<', '>'], ""));
        explained.push_str(text);
        explained.push('\n');
    }
    finish(&mut found, &mut explained);
    // Every command has help; the page says so once.
    found.into_iter().collect()
}
