//! Why a take-over failed, as one line. It is put into words where the heap may be in ruins, so that nothing here allocates.

use std::fmt;

/// One line of a length that people read, whatever is written to it.
pub struct Line {
    text: [u8; Line::MOST],
    length: usize,
}

impl Line {
    /// The longest, in bytes.
    pub const MOST: usize = 1024;
    const CUT: &str = " ...";

    /// Nothing yet.
    pub fn new() -> Self {
        Self { text: [0; Self::MOST], length: 0 }
    }

    /// What it is.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if self.length + c.len_utf8() + Self::CUT.len() > Self::MOST {
                self.text[self.length..][..Self::CUT.len()].copy_from_slice(Self::CUT.as_bytes());
                self.length += Self::CUT.len();
                return Err(fmt::Error);
            }
            self.length += c.encode_utf8(&mut self.text[self.length..]).len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn a_reason_is_one_line_of_a_length_that_people_read() {
        let line = |text: &str| {
            let mut line = Line::new();
            let whole = line.write_str(text).is_ok();
            (line.text().to_owned(), whole)
        };
        assert_eq!(line("it\0 broke\nhere"), ("it  broke here".to_owned(), true));
        let (text, whole) = line(&"\u{20ac}".repeat(100_000));
        assert!(!whole && text.ends_with(Line::CUT) && (Line::MOST - 3..=Line::MOST).contains(&text.len()), "{text}");
    }
}
