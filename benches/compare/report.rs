//! What is told of a row: a table for people, a document for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::figures::{Compared, compare, spread};
use crate::load::Tally;
use crate::measure::Sample;
use crate::plot::Bars;
use crate::rows::{Doing, Row};

/// The samples of a row: of each peer, one a round.
pub struct Measured {
    pub row: &'static Row,
    pub samples: Vec<(&'static str, Vec<Sample>)>,
    /// Who could not be measured, and why.
    pub failed: Vec<String>,
}

pub const DIRECT: &str = "direct";

impl Measured {
    /// A figure of all proxies. A delay is told as what is added to direct in the same round.
    pub fn compared(&self, figure: usize) -> Vec<Compared> {
        let direct = self.samples.iter().find(|(peer, _)| *peer == DIRECT);
        let base = |round: usize| match (&self.row.doing, direct) {
            (Doing::Delay, Some((_, samples))) => samples.get(round).map_or(f64::NAN, |sample| sample.figures[figure]),
            _ => 0.0,
        };
        let value = |(round, sample): (usize, &Sample)| Some(sample.figures.get(figure)? - base(round));
        let proxies = self.samples.iter().filter(|(peer, _)| *peer != DIRECT);
        let values = proxies.map(|(peer, samples)| (*peer, samples.iter().enumerate().filter_map(value).collect()));
        compare(&values.collect::<Vec<_>>())
    }

    fn median(&self, peer: &str, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let (_, samples) = self.samples.iter().find(|(name, _)| *name == peer)?;
        Some(spread(&samples.iter().filter_map(of).collect::<Vec<_>>())?.median)
    }

    pub fn faults(&self) -> Tally {
        let mut sum = Tally::default();
        for sample in self.samples.iter().flat_map(|(_, samples)| samples) {
            sum.wrong += sample.tally.wrong;
            sum.broken += sample.tally.broken;
            sum.no_address += sample.tally.no_address;
        }
        sum
    }

    pub fn table(&self) -> String {
        let mut text = format!("\n{} ({})\n", self.row.title, self.row.name);
        for (index, figure) in self.row.figures.iter().enumerate() {
            let head = format!("{}, {}", figure.name, figure.unit);
            let _ = writeln!(
                text,
                "  {head:<32}{:>10}{:>21}{:>11}{:>8}{:>14}{:>7}",
                "median", "min..max", "/haproxy", "/best", "rate", "busy"
            );
            for line in self.compared(index) {
                let spread = format!("{}..{}", short(line.spread.min), short(line.spread.max));
                let _ = writeln!(
                    text,
                    "  {:<32}{:>10}{spread:>21}{:>11}{:>8}{:>14}{:>7}",
                    line.peer,
                    short(line.spread.median),
                    times(line.to_haproxy),
                    times(line.to_best),
                    self.rate(line.peer),
                    self.median(line.peer, |s| s.busy).map_or(String::new(), |busy| format!("{:.0} %", busy * 100.0)),
                );
            }
        }
        let ceiling = match self.row.doing {
            Doing::Delay => self.median(DIRECT, |s| s.figures.first().copied()).map(|p50| format!("{} µs", short(p50))),
            _ => Some(self.rate(DIRECT)).filter(|rate| !rate.is_empty()),
        };
        if let Some(ceiling) = ceiling {
            let _ = writeln!(text, "  {:<82}{ceiling:>14}", "direct: no proxy, the same clients and backends");
        }
        let Tally { wrong, broken, no_address, .. } = self.faults();
        if wrong + broken + no_address > 0 {
            let _ = writeln!(text, "  wrong answers {wrong}, broken connections {broken}, EADDRNOTAVAIL {no_address}");
        }
        for failure in &self.failed {
            let _ = writeln!(text, "  not measured: {failure}");
        }
        text
    }

    fn rate(&self, peer: &str) -> String {
        match self.median(peer, |sample| sample.rate) {
            Some(rate) if self.row.bytes_are_counted() => format!("{:.2} GB/s", rate / 1e9),
            Some(rate) => format!("{:.1} k/s", rate / 1e3),
            None => String::new(),
        }
    }

    /// For the picture: the row's figures as ratios to HAProxy, but for the CPU at rest, which is noise.
    pub fn bars(&self) -> Vec<Bars> {
        let shown = if matches!(self.row.doing, Doing::Rest { .. }) { 1 } else { self.row.figures.len() };
        let told = self.row.figures.iter().take(shown).enumerate().map(|(index, figure)| {
            let bars = self.compared(index).into_iter().filter_map(|line| Some((line.peer, line.to_haproxy?)));
            Bars { title: format!("{}: {}", self.row.title, figure.name), bars: bars.collect() }
        });
        told.filter(|row| !row.bars.is_empty()).collect()
    }

    pub fn json(&self) -> Value {
        let peer_json = |line: Compared| {
            json!({
                "peer": line.peer, "median": line.spread.median, "min": line.spread.min, "max": line.spread.max,
                "to_haproxy": line.to_haproxy, "to_best": line.to_best, "rounds": line.values,
            })
        };
        let figures = self.row.figures.iter().enumerate().map(|(index, figure)| {
            let peers: Vec<Value> = self.compared(index).into_iter().map(peer_json).collect();
            json!({ "name": figure.name, "unit": figure.unit, "peers": peers })
        });
        let rates = self.samples.iter().map(|(peer, _)| {
            let (rate, busy) = (self.median(peer, |s| s.rate), self.median(peer, |s| s.busy));
            json!({ "peer": peer, "rate_a_second": rate, "core_busy": busy })
        });
        let Tally { wrong, broken, no_address, .. } = self.faults();
        json!({
            "row": self.row.name, "title": self.row.title,
            "figures": figures.collect::<Vec<_>>(), "rates": rates.collect::<Vec<_>>(),
            "wrong": wrong, "broken": broken, "eaddrnotavail": no_address, "failed": self.failed,
        })
    }
}

/// Three digits are more than the noise allows.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"))
}
