//! What a manual page says, read from its source (mdoc(7)): sections, and the tags of their lists with what explains them.

use std::collections::BTreeSet;

/// A page, as the list of its tags.
pub struct Page {
    tags: Vec<Tag>,
    commands: BTreeSet<String>,
}

/// One entry of a list.
struct Tag {
    section: String,
    subsection: String,
    /// The rest of its `.It` line.
    head: String,
    /// What follows, up to the next.
    text: String,
}

impl Page {
    pub fn parse(source: &str) -> Self {
        let (mut section, mut subsection) = (String::new(), String::new());
        let (mut tags, mut commands) = (Vec::<Tag>::new(), BTreeSet::new());
        for line in source.lines() {
            if let Some(name) = line.strip_prefix(".Sh ") {
                (section, subsection) = (name.to_owned(), String::new());
            } else if let Some(name) = line.strip_prefix(".Ss ") {
                subsection = plain(name);
                if section == "COMMANDS" {
                    commands.insert(subsection.clone());
                }
            } else if let Some(head) = line.strip_prefix(".It ") {
                let head = head.to_owned();
                tags.push(Tag { section: section.clone(), subsection: subsection.clone(), head, text: String::new() });
            } else if let Some(tag) = tags.last_mut() {
                tag.text += line;
                tag.text.push('\n');
            }
        }
        Self { tags, commands }
    }

    /// Commands with their arguments, options with their command, value and default.
    pub fn usage(&self) -> BTreeSet<String> {
        let options = self.tags.iter().filter(|tag| tag.head.starts_with("Fl ")).map(|tag| {
            let command = tag.subsection.split(' ').next().unwrap();
            let default =
                tag.text.split_once("The default is\n.Pa ").or_else(|| tag.text.split_once("The default is "));
            // A sentence that says where it depends on something has no single default.
            let default = default.map(|(_, rest)| rest.lines().next().unwrap()).filter(|line| line.ends_with('.'));
            let default = default.map_or(String::new(), |d| format!(" = {}", d.trim_end_matches('.').trim_end()));
            format!("{command} {}{default}", plain(&tag.head)).trim_start().to_owned()
        });
        options.chain(self.commands.iter().cloned()).collect()
    }

    /// Keys with their mapping and default.
    pub fn keys(&self) -> BTreeSet<String> {
        let keys = self.tags.iter().filter(|tag| tag.section == "KEYS" && tag.head.starts_with("Ic "));
        keys.map(|tag| format!("{}: {}", tag.subsection, plain(&tag.head).replace(" : ", " = "))).collect()
    }

    /// The names of the section EVENTS, each with its number.
    pub fn events(&self) -> BTreeSet<String> {
        let events = self.tags.iter().filter(|tag| tag.section == "EVENTS");
        events.map(|tag| plain(&tag.head).replace(" Pq ", " ")).collect()
    }

    /// The variables of the section ENVIRONMENT.
    pub fn variables(&self) -> BTreeSet<String> {
        let heads = self.tags.iter().filter(|tag| tag.section == "ENVIRONMENT").map(|tag| tag.head.as_str());
        heads.flat_map(|head| head.split(' ')).filter(|word| word.len() > 2).map(str::to_owned).collect()
    }

    /// The numbers of the section EXIT STATUS.
    pub fn exit_statuses(&self) -> BTreeSet<u8> {
        self.tags.iter().filter(|tag| tag.section == "EXIT STATUS").map(|tag| tag.head.parse().unwrap()).collect()
    }
}

/// A line without its macros: `Fl Fl watch Ns Op = Ns Ar INTERVAL` is `--watch[=INTERVAL]`.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let (mut glued, mut optional) = (true, false);
    for word in line.split(' ') {
        match word {
            "Fl" => {
                if !glued && !out.ends_with('-') {
                    out.push(' ');
                }
                out.push('-');
                glued = true;
            }
            "Ns" => glued = true,
            "Op" => {
                out += if glued { "[" } else { " [" };
                (glued, optional) = (true, true);
            }
            "Ar" | "Ic" | "Cm" => {}
            word => {
                if !glued {
                    out.push(' ');
                }
                out += &word.replace("\\(dq", "\"");
                glued = false;
            }
        }
    }
    if optional {
        out.push(']');
    }
    out.replace(" , ", ", ")
}
