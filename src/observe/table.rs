//! Rows laid out for whoever reads them: columns and colour for a terminal, tabs and nothing else
//! for a pipe. What stands in the rows is the documents' to say.

use comfy_table::{CellAlignment, ContentArrangement, Table, TableStyle};
use owo_colors::OwoColorize;

/// Whether text may carry colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// It may.
    On,
    /// Plain.
    Off,
}

/// What is written on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paper {
    /// A screen: aligned columns, colour where wanted.
    Terminal(Colour),
    /// A program or a file: one tab between fields, never colour.
    Pipe,
}

/// How a row should strike the eye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Plain,
    /// Worth a look.
    Warn,
    /// Not serving.
    Bad,
    /// Set aside on purpose.
    Faint,
}

/// Which edge a column's cells share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edge {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A heading, or none, and rows under it.
pub(super) struct Sheet {
    edges: Vec<Edge>,
    heading: Option<Vec<&'static str>>,
    rows: Vec<(Tone, Vec<String>)>,
}

impl Sheet {
    /// A table with these columns.
    pub(super) fn new(columns: &[(&'static str, Edge)]) -> Self {
        let (names, edges) = columns.iter().copied().unzip();
        Self { edges, heading: Some(names), rows: Vec::new() }
    }

    /// Names and what they stand for, a pair a line.
    pub(super) fn pairs() -> Self {
        Self { edges: vec![Edge::Left; 2], heading: None, rows: Vec::new() }
    }

    /// Adds a row. An empty cell is shown as `-`, so that every row has every field.
    pub(super) fn row(&mut self, tone: Tone, cells: Vec<String>) {
        let cells = cells.iter().map(|cell| if cell.is_empty() { "-".into() } else { printable(cell) });
        self.rows.push((tone, cells.collect()));
    }

    /// The text, each line ended.
    pub(super) fn text(&self, paper: Paper) -> String {
        let (lines, colour) = match paper {
            Paper::Terminal(colour) => (self.aligned(), colour),
            Paper::Pipe => (self.tabbed(), Colour::Off),
        };
        let mut tones = self.rows.iter().map(|(tone, _)| *tone);
        let mut text = String::new();
        for (n, line) in lines.iter().enumerate() {
            let is_heading = n == 0 && self.heading.is_some();
            text += &match (colour, is_heading) {
                (Colour::Off, _) => line.clone(),
                (Colour::On, true) => line.bold().to_string(),
                (Colour::On, false) => tones.next().unwrap_or(Tone::Plain).paint(line),
            };
            text.push('\n');
        }
        text
    }

    fn tabbed(&self) -> Vec<String> {
        let heading = self.heading.iter().map(|names| names.join("\t"));
        heading.chain(self.rows.iter().map(|(_, cells)| cells.join("\t"))).collect()
    }

    fn aligned(&self) -> Vec<String> {
        let mut table = Table::new();
        table.load_style(TableStyle::new()).set_content_arrangement(ContentArrangement::Disabled);
        if let Some(names) = &self.heading {
            table.set_header(names.clone());
        }
        for (_, cells) in &self.rows {
            table.add_row(cells.clone());
        }
        for (column, edge) in table.column_iter_mut().zip(&self.edges) {
            column.set_padding((0, 2));
            column.set_cell_alignment(match edge {
                Edge::Left => CellAlignment::Left,
                Edge::Right => CellAlignment::Right,
            });
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect()
    }
}

impl Tone {
    fn paint(self, line: &str) -> String {
        match self {
            Self::Plain => line.to_owned(),
            Self::Warn => line.yellow().to_string(),
            Self::Bad => line.red().to_string(),
            Self::Faint => line.dimmed().to_string(),
        }
    }
}

/// Reasons hold what strangers wrote; a terminal must not obey it, and a line must stay one.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let mut sheet = Sheet::new(&[("NAME", Edge::Left), ("TOTAL", Edge::Right), ("NOTE", Edge::Left)]);
        sheet.row(Tone::Plain, vec!["a".into(), "7".into(), String::new()]);
        sheet.row(Tone::Bad, vec!["longer".into(), "1234567".into(), "down, see\u{1b}[2J\nlog".into()]);
        sheet
    }

    #[test]
    fn a_terminal_gets_aligned_columns() {
        let lines = ["NAME      TOTAL  NOTE", "a             7  -", "longer  1234567  down, see?[2J?log", ""];
        assert_eq!(sheet().text(Paper::Terminal(Colour::Off)), lines.join("\n"));
    }

    #[test]
    fn a_pipe_gets_tabs_and_neither_alignment_nor_escapes() {
        let lines = ["NAME\tTOTAL\tNOTE", "a\t7\t-", "longer\t1234567\tdown, see?[2J?log", ""];
        assert_eq!(sheet().text(Paper::Pipe), lines.join("\n"));
    }

    #[test]
    fn colour_changes_no_column() {
        let coloured = sheet().text(Paper::Terminal(Colour::On));
        let lines: Vec<_> = coloured.lines().collect();
        assert!(lines[0].starts_with("\u{1b}[1m"), "the heading is bold: {:?}", lines[0]);
        assert_eq!(lines[1], "a             7  -", "a plain row has no escape");
        assert!(lines[2].contains("\u{1b}[31mlonger  1234567"), "{:?}", lines[2]);
    }
}
