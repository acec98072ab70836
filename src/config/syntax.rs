//! What a text that is no YAML was meant to be. A parser says where it stumbled; here is what the operator likely did,
//! where, and the edits that might undo it, so that the rest of the file can be checked in the same pass. Which of the
//! candidates is right is decided by `mend.rs`.

use super::file::Fault;
use super::lines::{Lines, bare_value, indent, is_idle, place};
use super::mend::{Edit, Slip};
use super::problem::Pos;
use super::value::clip;
use crate::words::Address;

/// The slips that may be behind a fault, the likeliest first; at least one.
pub(super) fn slips(text: &str, fault: &Fault) -> Vec<Slip> {
    let lines = Lines(text.lines().collect());
    let mut slips = Vec::new();
    if !fault.ours {
        let words = fault.words.as_str();
        let says = |word: &str| words.contains(word);
        slips.extend(lines.tabs(fault.at.line));
        if says("anchor") || says("unexpected character") {
            slips.extend(lines.special_character(fault.at));
        }
        if says("quoted scalar") || says("trailing content") || words == HIDDEN_KEY {
            slips.extend(lines.quotes(fault.at, words));
            // The quote that swallowed the lines between.
            if fault.last.line < fault.at.line {
                slips.extend(lines.quotes(lines.quote_from(fault.last), HIDDEN_KEY));
            }
        }
        if says("bracket") || says("expected node content") {
            slips.extend(lines.one_too_many(fault.at));
        }
        slips.extend(lines.bare_ipv6(fault.at.line));
        slips.extend(lines.open_bracket(fault));
        slips.extend(lines.no_colon(fault));
        slips.extend(lines.two_colons(fault));
        slips.extend(lines.quoted_host(fault.at.line));
        let near = [Some(fault.last.line), lines.above(fault.at.line), Some(fault.at.line)];
        slips.extend(near.into_iter().flatten().filter_map(|number| lines.marks(number)));
        slips.extend(lines.unkeyed(fault));
        slips.extend(lines.dash(fault.at.line));
        slips.extend(lines.indentation(fault.at.line));
        slips.extend(lines.below(fault.at.line).into_iter().flat_map(|n| lines.indentation(n)));
    }
    if slips.is_empty() {
        let message = if fault.ours { fault.words.clone() } else { format!("this is not YAML: {}", fault.words) };
        slips.push(Slip::new(fault.at, message, Vec::new()));
    }
    slips
}

/// Slips that are certain without a fault, in a text that has one: comments of other languages, and no-break spaces
/// after colons, as pasted text has them.
pub(super) fn certain(text: &str) -> Vec<Slip> {
    let mut slips: Vec<Slip> = Vec::new();
    let mut comments: Vec<(Pos, Edit)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let depth = indent(line);
        if line[depth..].starts_with("//") {
            comments.push((place(number, depth), Edit::replace(number, depth, 2, "# ")));
        } else if let Some((before, _)) = bare_value(line).split_once(":\u{a0}") {
            let column = before.chars().count() + 1;
            let message = "a no-break space after the colon; write a plain space";
            slips.push(Slip::new(place(number, column), message, vec![Edit::replace(number, column, 1, " ")]));
        }
    }
    if let Some((first, _)) = comments.first() {
        let more = match comments.len() {
            1 => String::new(),
            lines => format!(", here and on {} more lines", lines - 1),
        };
        let message = format!("a comment begins with #; write it instead of //{more}");
        let edits = comments.iter().map(|(_, edit)| edit.clone()).collect();
        slips.push(Slip { weight: 0, ..Slip::new(*first, message, edits) });
    }
    slips
}

/// The words of a fault that the parser does not see: a text where a key is likely meant.
pub(super) const HIDDEN_KEY: &str =
    "a text over several lines, or on a line of its own; write it behind its key, in quotes";

impl Lines<'_> {
    /// `*:80`, `@name`: a character that YAML keeps for itself begins the value.
    fn special_character(&self, at: Pos) -> Vec<Slip> {
        let start = at.column as usize - 1;
        let rest: String = self.line(at.line).chars().skip(start).collect();
        let value = bare_value(&rest);
        let Some(first) = value.chars().next() else { return Vec::new() };
        if let Some(port) = value.strip_prefix("*:") {
            let message = format!("\"*\" is no address; write 0.0.0.0:{} for every IPv4 address", clip(port));
            return vec![Slip::new(at, message, vec![Edit::replace(at.line, start, 1, "0.0.0.0")])];
        }
        let message = match first {
            '*' => format!("no anchor &{} stands above; define it, or put the text in quotes", clip(&value[1..])),
            _ => format!("a value cannot begin with {first:?}; put it in quotes: \"{}\"", clip(value)),
        };
        vec![Slip::new(at, message, quoted(at.line, start, value))]
    }

    fn quotes(&self, at: Pos, words: &str) -> Vec<Slip> {
        let line = self.line(at.line);
        let start = at.column as usize - 1;
        let rest: String = line.chars().skip(start).collect();
        if words.contains("escape") {
            let Some(column) = bad_escape(&rest) else { return Vec::new() };
            let at = place(at.line, start + column);
            let message =
                "an unknown escape in double quotes; write \\\\ for a backslash, or single quotes around the text";
            return vec![Slip::new(at, message, vec![Edit::insert(at.line, start + column, "\\")])];
        }
        if words.contains("trailing content") {
            if rest.starts_with(',') {
                let message = "a comma after the value; entries on lines of their own have none: remove it";
                return vec![Slip::new(at, message, vec![Edit::replace(at.line, start, 1, "")])];
            }
            let message = "something follows the closing quote; write a comma or a new line between two values, and \\\" for a quote inside quotes";
            let edits = vec![Edit::insert(at.line, start, ", ")];
            return vec![Slip::new(at, message, edits)];
        }
        let Some(quote @ ('"' | '\'')) = rest.chars().next() else { return Vec::new() };
        let text = &rest[1..];
        let message = format!("the quote is not closed; write {quote} after the text too");
        let ends = [text.find(','), text.find('}'), text.find(']'), text.find(if quote == '"' { '\'' } else { '"' })];
        let ends = ends.into_iter().flatten().chain([bare_value(text).len()]);
        let closed = ends.map(|end| {
            let column = start + 1 + text[..end].trim_end().chars().count();
            vec![Edit::insert(at.line, column, &quote.to_string())]
        });
        let edits = closed.chain([vec![Edit::replace(at.line, start, 1, "")]]);
        edits.map(|edits| Slip::new(at, message.clone(), edits)).collect()
    }

    /// The first quote from a place on, on its line.
    fn quote_from(&self, at: Pos) -> Pos {
        let rest = self.line(at.line).chars().skip(at.column as usize - 1);
        let ahead = rest.take_while(|c| !matches!(c, '"' | '\'')).count();
        Pos::new(at.line as usize, at.column as usize + ahead)
    }

    fn one_too_many(&self, at: Pos) -> Option<Slip> {
        let column = at.column as usize - 1;
        let c = self.line(at.line).chars().nth(column).filter(|c| matches!(c, '}' | ']' | ','))?;
        let message = format!("one \"{c}\" too many; remove it");
        Some(Slip::new(at, message, vec![Edit::replace(at.line, column, 1, "")]))
    }

    /// `bind: [::]:80`: the brackets begin a list unless they are quoted.
    fn bare_ipv6(&self, number: u32) -> Option<Slip> {
        let line = self.line(number);
        let close =
            line.match_indices("]:").find(|(index, _)| line[index + 2..].starts_with(|c: char| c.is_ascii_digit()))?.0;
        let open = line[..close].rfind('[')?;
        if line[..open].ends_with(['"', '\'']) || !line[open + 1..close].contains(':') {
            return None;
        }
        let length = line[close + 2..].find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len() - close - 2);
        let value = &line[open..close + 2 + length];
        let column = line[..open].chars().count();
        let message = format!("an IPv6 address stands in quotes, else [ begins a list; write \"{}\"", clip(value));
        Some(Slip::new(place(number, column), message, quoted(number, column, value)))
    }

    /// `{ a: 1` or `{ a: 1 b: 2 }`.
    fn open_bracket(&self, fault: &Fault) -> Vec<Slip> {
        let Some(open) = fault.open else { return Vec::new() };
        let line = self.line(open.line);
        let close = match line.chars().nth(open.column as usize - 1) {
            Some('{') => "}",
            Some('[') => "]",
            _ => return Vec::new(),
        };
        let mut slips = Vec::new();
        if fault.last.line == fault.at.line {
            // The value before has swallowed the next key.
            let value: String = self.line(fault.last.line).chars().skip(fault.last.column as usize - 1).collect();
            if let Some(space) = value.find(' ').filter(|&space| space + 1 < value.len()) {
                let column = fault.last.column as usize - 1 + value[..space].chars().count();
                let word = value[space..].trim_start().split([':', ' ']).next().unwrap_or_default();
                let message = format!("a comma is missing before \"{}\"; write one between two entries", clip(word));
                let at = place(fault.last.line, column);
                slips.push(Slip::new(at, message, vec![Edit::insert(at.line, column, ",")]));
            }
        }
        let mut ends = vec![open.line];
        ends.extend(self.above(fault.at.line).filter(|n| *n > open.line));
        if let Some(above) = self.above(fault.at.line).filter(|above| *above >= open.line) {
            let end = bare_value(self.line(above)).chars().count();
            let message = "a comma is missing at the end of the line; write one between two entries";
            slips.push(Slip::new(place(above, end), message, vec![Edit::insert(above, end, ",")]));
        }
        slips.extend(ends.into_iter().map(|n| {
            let line = self.line(n);
            let end = bare_value(line).trim_end_matches(',').trim_end().chars().count();
            let message = format!("the bracket is not closed; write \"{close}\" at the end");
            Slip::new(open, message, vec![Edit::insert(n, end, close)])
        }));
        slips
    }

    /// `pool:web`, `pool web`, `pool = web`, `pool`.
    fn no_colon(&self, fault: &Fault) -> Vec<Slip> {
        let mut numbers = vec![fault.last.line];
        numbers.extend(self.above(fault.at.line));
        numbers.push(fault.at.line);
        numbers.extend(self.below(fault.at.line));
        numbers.dedup();
        numbers.into_iter().filter_map(|n| self.colonless(n)).collect()
    }

    fn colonless(&self, number: u32) -> Option<Slip> {
        let line = self.line(number);
        let content = bare_value(line.trim_start());
        let lead = line.len() - line.trim_start().len();
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let end = content.find(|c| !is_word(c)).unwrap_or(content.len());
        let (key, rest) = content.split_at(end);
        let before_value = &content[..content.find(['{', '[', '"', '\'']).unwrap_or(content.len())];
        if key.is_empty() || key.starts_with('-') || before_value.contains(": ") || content.ends_with(':') {
            return None;
        }
        let slip = |message: String, edit: Edit| Some(Slip::new(place(number, lead), message, vec![edit]));
        let value = clip(rest.trim_start_matches([':', '=', ';', ' ']));
        if rest.starts_with(':') {
            let message = format!("a space is missing after \"{key}:\"; write `{key}: {value}`");
            return slip(message, Edit::insert(number, lead + end + 1, " "));
        }
        if let Some(equals) = rest.find(['=', ';']).filter(|&index| rest[..index].trim().is_empty()) {
            let message = format!("a key is followed by a colon; write `{key}: {value}`");
            return slip(message, Edit::replace(number, lead + end, equals + 1, ": "));
        }
        let message = match value.as_str() {
            "" => format!("a colon is missing after \"{key}\"; write `{key}:`"),
            _ => format!("a colon is missing after \"{key}\"; write `{key}: {value}`"),
        };
        slip(message, Edit::insert(number, lead + end, ":"))
    }

    /// `bind: 127.0.0.1: 80`, `pool: web:`, `health_check: interval: 2s`: a second colon.
    fn two_colons(&self, fault: &Fault) -> Vec<Slip> {
        let number = fault.at.line;
        let line = self.line(number);
        let Some((key, value)) = line.split_once(": ") else { return Vec::new() };
        let (key, value) = (clip(key.trim()), bare_value(value).trim_start());
        let column = line.find(value).map_or(0, |index| line[..index].chars().count());
        let (at, length) = (place(number, column), value.chars().count());
        if value.is_empty() || value.starts_with(['"', '\'', '{', '[']) {
            return Vec::new();
        }
        if let Some(bare) = value.strip_suffix(':') {
            let message = format!("one colon too many at the end; write `{key}: {}`", clip(bare));
            return vec![Slip::new(at, message, vec![Edit::replace(number, column + length - 1, 1, "")])];
        }
        let Some((first, _)) = value.split_once(": ") else { return Vec::new() };
        let instead = |what: &str, written: String| {
            let message = format!("{what}; write `{key}: {}`", clip(&written));
            Slip::new(at, message, vec![Edit::replace(number, column, length, &written)])
        };
        let joined = value.replace(": ", ":");
        if joined.parse::<Address>().is_ok() {
            return vec![instead("a space in the address", joined)];
        }
        if value.ends_with('}') && !value.contains('{') {
            return vec![instead("the bracket is closed but not opened", format!("{{ {value}"))];
        }
        let mut slips = vec![
            instead("keys of a key stand in braces, or on lines of their own", format!("{{ {value} }}")),
            instead("a text with a colon and a space in it stands in quotes", format!("\"{value}\"")),
        ];
        if let Some((own, next)) = first.rsplit_once(' ') {
            let start = column + own.chars().count();
            let message = format!("two keys on one line; write \"{}\" on a line of its own", clip(next));
            let edits = vec![Edit::replace(number, start, length + column - start, "")];
            slips.insert(0, Slip::new(place(number, start + 1), message, edits));
        }
        slips
    }

    /// `"10.0.0.7":80`
    fn quoted_host(&self, number: u32) -> Option<Slip> {
        let line = self.line(number);
        let (index, quote) = ["\":", "':"].iter().find_map(|end| line.find(end).map(|index| (index, &end[..1])))?;
        let open = line[..index].rfind(quote)?;
        let end = line[index + 1..].find([' ', ',', '}']).map_or(line.len(), |end| index + 1 + end);
        let written = format!("{}{}", &line[open + 1..index], &line[index + 1..end]);
        written.parse::<Address>().ok()?;
        let column = line[..open].chars().count();
        let edit = Edit::replace(number, column, line[open..end].chars().count(), &format!("\"{written}\""));
        let message = format!("the port stands outside the quotes; write \"{written}\"");
        Some(Slip::new(place(number, column), message, vec![edit]))
    }

    /// `-10.0.0.7:80`: a dash without what makes it a mark.
    fn marks(&self, number: u32) -> Option<Slip> {
        let line = self.line(number);
        let depth = indent(line);
        let content = line.trim_start();
        let item = content.strip_prefix('-').filter(|item| !item.starts_with(['-', ' ']) && !item.is_empty())?;
        let message = format!("a space is missing after the dash; write `- {}`", clip(bare_value(item)));
        Some(Slip::new(place(number, depth), message, vec![Edit::insert(number, depth + 1, " ")]))
    }

    /// A value behind the key of a section, or the address of a backend without its key.
    fn unkeyed(&self, fault: &Fault) -> Vec<Slip> {
        let mut slips = Vec::new();
        for number in [Some(fault.last.line), self.above(fault.at.line), Some(fault.at.line)].into_iter().flatten() {
            let line = self.line(number);
            let (depth, content) = (indent(line), bare_value(line.trim_start()));
            if content.trim_matches(['"', '\'']).parse::<Address>().is_ok() {
                let message = format!("a key is missing; write `address: {content}`");
                slips.push(Slip::new(place(number, depth), message, vec![Edit::insert(number, depth, "address: ")]));
            }
            let deeper = self.below(number).is_some_and(|below| indent(self.line(below)) > depth);
            if let Some((key, value)) = content.split_once(": ").filter(|_| deeper) {
                let column = depth + key.chars().count() + 2;
                let message = format!(
                    "\"{}\" and the deeper lines below cannot both belong to \"{}\"; remove one of them",
                    clip(value.trim()),
                    clip(key)
                );
                let edit = Edit::replace(number, column, value.chars().count(), "");
                slips.push(Slip { weight: 60, ..Slip::new(place(number, column), message, vec![edit]) });
            }
        }
        slips
    }

    /// A dash before the first of several keys.
    fn dash(&self, number: u32) -> Option<Slip> {
        let depth = indent(self.line(number));
        let dash = (1..number).rev().filter(|&n| !is_idle(self.line(n))).find(|&n| indent(self.line(n)) <= depth)?;
        let line = self.line(dash);
        if indent(line) != depth || !line.trim_start().starts_with("- ") {
            return None;
        }
        let message = "the dash begins a list, where keys are wanted; remove it";
        Some(Slip::new(place(dash, depth), message, vec![Edit::replace(dash, depth, 2, "")]))
    }
}

fn quoted(line: u32, column: usize, value: &str) -> Vec<Edit> {
    vec![Edit::insert(line, column + value.chars().count(), "\""), Edit::insert(line, column, "\"")]
}

/// The column of the backslash that begins no escape of YAML, in a text that begins with its quote.
fn bad_escape(text: &str) -> Option<usize> {
    let mut chars = text.chars().enumerate();
    while let Some((column, c)) = chars.next() {
        if c == '\\' {
            let (_, escape) = chars.next()?;
            if !"0abt\tnvfre \"/\\N_LPxuU".contains(escape) {
                return Some(column);
            }
        }
    }
    None
}
