//! What one value means: numbers, durations, sizes, shares, bytes. Strict, because a lenient reading of `5` or `64k` is
//! a guess; and each refusal says what to write, because the reader of the message is not the reader of the manual.

use std::sync::Arc;
use std::time::Duration;

use super::file::{Node, Style, Text, Value};
use super::keys::nearest;

/// What stands there, as a message names it.
pub(super) fn found(node: &Node) -> String {
    match &*node.value {
        Value::Null => "nothing".into(),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a mapping".into(),
        Value::Text(scalar) => match kind(scalar) {
            Kind::Text => format!("the text \"{}\"", clip(&scalar.text)),
            Kind::Bool => clip(&scalar.text),
            Kind::Number => format!("the number {}", clip(&scalar.text)),
        },
    }
}

enum Kind {
    Text,
    Bool,
    Number,
}

/// The YAML 1.2 core schema.
fn kind(scalar: &Text) -> Kind {
    let text = scalar.text.as_str();
    let digits = text.trim_start_matches(['-', '+']);
    match () {
        () if scalar.style != Style::Plain => Kind::Text,
        () if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") => Kind::Bool,
        () if digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok() => {
            Kind::Number
        }
        () => Kind::Text,
    }
}

/// A text short enough for a message, on one line.
pub(super) fn clip(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    shown = shown.replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\");
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

/// The scalar, or what else there is instead of `expected`.
pub(super) fn scalar<'a>(node: &'a Node, expected: &str) -> Result<&'a Text, String> {
    match &*node.value {
        Value::Text(scalar) => Ok(scalar),
        Value::Null => Err(format!("the value is missing; write {expected}")),
        _ => Err(format!("expected {expected}, found {}", found(node))),
    }
}

/// A text of the operator's own choice.
pub(super) fn text(expected: &'static str) -> impl Fn(&Node) -> Result<String, String> {
    move |node| match scalar(node, expected)?.text.as_str() {
        "" => Err(format!("the text is empty; write {expected}")),
        text => Ok(text.into()),
    }
}

/// `true` or `false`, as YAML 1.2 has them.
pub(super) fn boolean(node: &Node) -> Result<bool, String> {
    let scalar = scalar(node, "true or false")?;
    let meant = match scalar.text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" | "1" | "enabled" => Some(true),
        "false" | "no" | "off" | "n" | "0" | "disabled" | "never" => Some(false),
        _ => None,
    };
    match (meant, kind(scalar)) {
        (Some(value), Kind::Bool) => Ok(value),
        (Some(value), _) if scalar.style != Style::Plain => {
            Err(format!("expected true or false, found {}; write {value} without quotes", found(node)))
        }
        (Some(value), _) => Err(format!("expected true or false, found {}; write {value}", found(node))),
        (None, _) => Err(format!("expected true or false, found {}", found(node))),
    }
}

/// A whole number within bounds.
pub(super) fn number(min: u64, max: u64) -> impl Fn(&Node) -> Result<u64, String> {
    let expected = if max >= u64::from(u32::MAX) {
        format!("a whole number of {min} or more")
    } else {
        format!("a whole number from {min} to {max}")
    };
    move |node| {
        let scalar = scalar(node, &expected)?;
        let digits = scalar.text.trim();
        if scalar.style != Style::Plain {
            let mend =
                if digits.parse::<u64>().is_ok() { format!("; write {digits} without quotes") } else { String::new() };
            return Err(format!("expected {expected}, found {}{mend}", found(node)));
        }
        match digits.parse::<u64>() {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            Ok(value) if value > max => Err(format!("{digits} is out of range; write at most {max}")),
            Ok(_) => Err(format!("{digits} is out of range; write {expected}")),
            Err(_) if matches!(kind(scalar), Kind::Number) => {
                Err(format!("{} is out of range; write {expected}", clip(digits))).map_err(|out: String| {
                    if digits.contains(['.', 'e', 'E']) {
                        format!("{} is not whole; write {expected}", clip(digits))
                    } else {
                        out
                    }
                })
            }
            Err(_) => Err(format!("expected {expected}, found {}", found(node))),
        }
    }
}

/// A number that limits something, or `unlimited`.
pub(super) fn limit(node: &Node) -> Result<Option<u32>, String> {
    let text = scalar(node, "a whole number of 1 or more, or unlimited")?.text.trim();
    match text.to_ascii_lowercase().as_str() {
        "unlimited" if text == "unlimited" => Ok(None),
        "unlimited" | "never" | "none" | "off" | "infinite" | "infinity" | "unbounded" | "false" | "no" | "0"
        | "-1" => Err(format!("{} is not a limit; write a whole number of 1 or more, or unlimited", found(node))),
        _ => number32(1, u32::MAX)(node).map(Some).map_err(|why| format!("{why}; or write unlimited")),
    }
}

/// [`number`] for what the model holds as 32 bits.
pub(super) fn number32(min: u32, max: u32) -> impl Fn(&Node) -> Result<u32, String> {
    let read = number(u64::from(min), u64::from(max));
    move |node| Ok(u32::try_from(read(node)?).expect("the upper bound is a u32"))
}

/// One of a few words, each with its meaning. `also` are words that other programs use.
pub(super) fn one_of<T: Copy>(
    words: Vec<(&'static str, T)>,
    also: &'static [(&'static str, &'static str)],
) -> impl Fn(&Node) -> Result<T, String> {
    move |node| {
        let names = || words.iter().map(|(word, _)| *word);
        let all = names().collect::<Vec<_>>().join(", ");
        let expected = if words.len() == 1 { all.clone() } else { format!("one of {all}") };
        let word = scalar(node, &expected)?.text.as_str();
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == word) {
            return Ok(*value);
        }
        let folded = word.to_ascii_lowercase().replace(['-', '_', ' '], "");
        let other = also.iter().find(|(other, _)| *other == folded).map(|(_, meant)| *meant);
        let begins = || names().find(|name| folded.len() >= 3 && name.replace('_', "").starts_with(&folded));
        match other.or_else(|| nearest(word, names()).map(|(name, _)| name)).or_else(begins) {
            Some(meant) => Err(format!("\"{}\" is unknown; did you mean \"{meant}\"? possible are {all}", clip(word))),
            None => Err(format!("\"{}\" is unknown; write {expected}", clip(word))),
        }
    }
}

/// The shortest duration that is not 0.
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
/// The longest duration: a year. Longer ones are slips, and `never` exists where it makes sense.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// A duration of at least `min`: `250ms`, `5s`, `1m 30s`.
pub(super) fn duration(min: Duration) -> impl Fn(&Node) -> Result<Duration, String> {
    move |node| {
        let text = scalar(node, "a duration such as 250ms, 5s or 10m")?.text.trim();
        let value = if text == "0" && !min.is_zero() { Duration::ZERO } else { parse_duration(text)? };
        if value < min {
            return Err(match value.is_zero() {
                true => format!("0 makes no sense here; write at least {}, such as 5s", spell(min)),
                false => format!("{text} is too short; write at least {}", spell(min)),
            });
        }
        Ok(value)
    }
}

/// A duration of whole seconds, from 1 s to `max`, as the kernel's keepalive takes.
pub(super) fn whole_seconds(max: u64) -> impl Fn(&Node) -> Result<Duration, String> {
    move |node| {
        let value = duration(Duration::from_millis(1))(node)?;
        let seconds = value.as_secs();
        if value.subsec_nanos() != 0 {
            return Err(format!(
                "{} is not in whole seconds, as the kernel needs; write {}s",
                spell(value),
                seconds.max(1)
            ));
        }
        if seconds > max {
            return Err(format!("{} is more than the kernel takes; write at most {max}s", spell(value)));
        }
        Ok(value)
    }
}

/// A duration of at least `min`, or `never`.
pub(super) fn duration_or_never(min: Duration) -> impl Fn(&Node) -> Result<Option<Duration>, String> {
    move |node| {
        let text = scalar(node, "a duration such as 10m, or never")?.text.trim();
        match text.to_ascii_lowercase().as_str() {
            "never" if text == "never" => Ok(None),
            "never" | "none" | "off" | "infinite" | "infinity" | "unlimited" | "forever" | "false" | "no" | "-1" => {
                Err(format!("\"{text}\" is not a duration; write never"))
            }
            _ => duration(min)(node).map(Some).map_err(|why| format!("{why}; or write never")),
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let shown = clip(text);
    if text.is_empty() {
        return Err("the duration is empty; write one such as 250ms, 5s or 10m".into());
    }
    if let Some(positive) = text.strip_prefix('-') {
        return Err(format!(
            "the duration {shown} is negative; write {}",
            lenient(positive).map_or("5s".into(), spell)
        ));
    }
    if text.trim_start_matches('+').parse::<f64>().is_ok() && text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(match text.parse::<u64>() {
            Ok(0) => "the duration 0 has no unit; write 0s".into(),
            Ok(number) => format!("the duration {number} has no unit; write {number}s, {number}ms or {number}m"),
            Err(_) => format!("the duration {shown} has no unit; write whole numbers with one, such as 1500ms"),
        });
    }
    let Some(value) = lenient(text) else {
        return Err(format!(
            "\"{shown}\" is not a duration; write numbers with units, such as 250ms, 5s, 10m, 1h or \"1m 30s\""
        ));
    };
    if value > MAX_DURATION {
        return Err(format!("{shown} is more than a year; write at most 365d"));
    }
    if !value.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(format!(
            "{shown} is finer than a millisecond; write {}",
            spell(value.max(Duration::from_millis(1)))
        ));
    }
    match text.split_whitespace().all(is_strict) {
        true => Ok(value),
        false => Err(format!("\"{shown}\" is not how lbd writes a duration; write {}", spell(value))),
    }
}

/// What the operator meant, in more spellings than the file may have.
fn lenient(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).or_else(|_| humantime::parse_duration(&text.to_ascii_lowercase())).ok()
}

/// Numbers with the units `ms`, `s`, `m`, `h`, `d`, without spaces between.
fn is_strict(word: &str) -> bool {
    let mut rest = word;
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        if unit.len() == rest.len() {
            return false;
        }
        let end = unit.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(unit.len());
        if !matches!(&unit[..end], "ms" | "s" | "m" | "h" | "d") {
            return false;
        }
        rest = &unit[end..];
    }
    true
}

/// A duration as it is written in the file, in its greatest whole unit.
pub(super) fn spell(value: Duration) -> String {
    let ms = value.as_millis();
    match ms {
        0 => "0s".into(),
        _ if !ms.is_multiple_of(1000) => format!("{ms}ms"),
        _ if !ms.is_multiple_of(60_000) => format!("{}s", ms / 1000),
        _ if !ms.is_multiple_of(3_600_000) => format!("{}m", ms / 60_000),
        _ if !ms.is_multiple_of(86_400_000) => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A number of bytes within bounds: `64KiB`, `32MiB`.
pub(super) fn size(min: u64, max: u64) -> impl Fn(&Node) -> Result<u64, String> {
    move |node| {
        let text = scalar(node, "a size such as 64KiB or 32MiB")?.text.trim();
        let shown = clip(text);
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let Ok(number) = number.parse::<u64>() else {
            return Err(format!("\"{shown}\" is not a size; write a whole number with a unit, such as 64KiB or 32MiB"));
        };
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let meant = match unit.trim().to_ascii_lowercase().chars().next() {
                Some('k') => format!("{number}KiB"),
                Some('m') => format!("{number}MiB"),
                Some('g') => format!("{number}GiB"),
                None if number < 1 << 20 => format!("{number}KiB or {number}MiB"),
                Some('b') | None => spell_size(number),
                _ => return Err(format!("\"{shown}\" has an unknown unit; write B, KiB, MiB or GiB")),
            };
            let what = if unit.is_empty() { "the size has no unit" } else { "sizes are in B, KiB, MiB or GiB" };
            return Err(format!("\"{shown}\": {what}; write {meant}"));
        };
        match number.checked_mul(*factor) {
            Some(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
            _ => Err(format!("{shown} is out of range; write {} to {}", spell_size(min), spell_size(max))),
        }
    }
}

/// A size as it is written in the file, in its greatest whole unit.
pub(super) fn spell_size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes.is_multiple_of(*factor) && bytes >= *factor;
    let (unit, factor) = UNITS.iter().rev().find(fits).unwrap_or(&UNITS[0]);
    format!("{}{unit}", bytes / factor)
}

/// A share of a whole: `10%`.
pub(super) fn percent(node: &Node) -> Result<crate::words::Percent, String> {
    let text = scalar(node, "a share such as 10%")?.text.trim();
    let shown = clip(text);
    let Some(number) = text.strip_suffix('%') else {
        return Err(match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share < 1.0 => format!("{shown} has no %; write {}%", (share * 100.0).round()),
            Ok(share) if (0.0..=100.0).contains(&share) => format!("{shown} has no %; write {}%", share.round()),
            _ => format!("\"{shown}\" is not a share; write one from 0% to 100%, such as 10%"),
        });
    };
    match number.trim().parse::<f64>() {
        Ok(share) if !(0.0..=100.0).contains(&share) => Err(format!("{shown} is out of range; write 0% to 100%")),
        Ok(share) => match number.parse().ok().and_then(crate::words::Percent::new) {
            Some(percent) => Ok(percent),
            None => Err(format!("{shown} is not a whole number of percent; write {}%", share.round())),
        },
        Err(_) => Err(format!("\"{shown}\" is not a share; write one from 0% to 100%, such as 10%")),
    }
}

/// Permission bits: `"0660"` or `0o660`.
pub(super) fn mode(node: &Node) -> Result<u32, String> {
    let scalar = scalar(node, "permission bits such as \"0660\"")?;
    let text = scalar.text.trim();
    let octal = text.strip_prefix("0o");
    let digits = octal.unwrap_or(text);
    let is_octal = !digits.is_empty() && digits.chars().all(|c| ('0'..='7').contains(&c));
    match u32::from_str_radix(digits, 8) {
        Ok(bits) if is_octal && bits > 0o777 => {
            Err(format!("{} has bits beyond 0777; write one such as \"0660\"", clip(text)))
        }
        Ok(bits) if is_octal && (octal.is_some() || scalar.style != Style::Plain) => Ok(bits),
        Ok(bits) if is_octal => {
            Err(format!("{text} without quotes is a decimal number in YAML; write \"0{bits:o}\" in quotes"))
        }
        _ => Err(format!("\"{}\" is not an octal mode; write permission bits such as \"0660\" in quotes", clip(text))),
    }
}

/// The most bytes a probe sends or expects.
const MAX_PROBE: usize = 4096;

/// What a probe sends or expects, as a text.
pub(super) fn bytes(node: &Node) -> Result<Arc<[u8]>, String> {
    let scalar = scalar(node, "a text in double quotes, such as \"PING\\r\\n\"")?;
    let text = &scalar.text;
    if text.is_empty() {
        return Err("the text is empty; remove the key or write one, such as \"PING\\r\\n\"".into());
    }
    if text.len() > MAX_PROBE {
        return Err(format!("the text has {} bytes; write at most {MAX_PROBE}", text.len()));
    }
    if scalar.style != Style::Escaped && ["\\r", "\\n", "\\t", "\\x", "\\0"].iter().any(|escape| text.contains(escape))
    {
        return Err(format!("backslashes are read as escapes in double quotes only; write \"{}\"", clip(text)));
    }
    // "\x80" is a character in YAML, U+0080, which is two bytes. Nothing tells it from the character itself any more.
    if let Some(c) = text.chars().find(|c| scalar.style == Style::Escaped && ('\u{80}'..='\u{ff}').contains(c)) {
        return Err(format!(
            "\"\\x{:02x}\" would be two bytes, those of a character; write bytes from 80 up in hexadecimal, with send_hex or \
             expect_hex, and a text that has such characters in single quotes",
            u32::from(c)
        ));
    }
    Ok(text.as_bytes().into())
}

/// The same in hexadecimal.
pub(super) fn hex(node: &Node) -> Result<Arc<[u8]>, String> {
    let scalar = scalar(node, "bytes in hexadecimal, such as \"16 03 01\"")?;
    let digits: Vec<char> = scalar.text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if let Some(c) = digits.iter().find(|c| !c.is_ascii_hexdigit()) {
        return Err(format!("{c:?} is no hexadecimal digit; write bytes such as \"16 03 01\""));
    }
    if digits.is_empty() {
        return Err("there are no bytes; remove the key or write some, such as \"16 03 01\"".into());
    }
    if !scalar.text.split_ascii_whitespace().all(|word| word.len().is_multiple_of(2)) {
        return Err("a byte has one digit; write two for each, such as \"16 03 01\"".into());
    }
    if digits.len() / 2 > MAX_PROBE {
        return Err(format!("there are {} bytes; write at most {MAX_PROBE}", digits.len() / 2));
    }
    let value = |digit: char| digit.to_digit(16).unwrap_or(0) as u8; // each is one
    Ok(digits.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect())
}
