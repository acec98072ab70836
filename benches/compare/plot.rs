//! The picture: for each row, bars of what each proxy costs, HAProxy being 1. Pure.

use std::fmt::Write;

/// A row of the picture: its title, and each peer with its ratio to HAProxy.
pub struct Bars {
    pub title: String,
    pub bars: Vec<(&'static str, f64)>,
}

const LEFT: f64 = 330.0;
const UNIT: f64 = 300.0;
/// Longer bars are cut, and say how long they are.
const MOST: f64 = 1.5;
const BAR: f64 = 11.0;

pub fn svg(heading: &str, rows: &[Bars]) -> String {
    let height = 60.0 + rows.iter().map(|row| row.bars.len() as f64 * BAR + 10.0).sum::<f64>();
    let width = LEFT + MOST * UNIT + 140.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\" fill=\"#202020\">{}</text>\n",
        escaped(heading)
    );
    let mut y = 36.0;
    for row in rows {
        let middle = y + (row.bars.len() as f64 * BAR) / 2.0 + 4.0;
        let title = escaped(&row.title);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{title}</text>", LEFT - 8.0);
        for (peer, ratio) in &row.bars {
            let length = ratio.clamp(0.0, MOST) * UNIT;
            let (end, base, bar) = (LEFT + length + 4.0, y + BAR - 2.0, BAR - 1.0);
            let _ = writeln!(
                text,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{bar}\" fill=\"{}\"/>\n\
                 <text x=\"{end:.1}\" y=\"{base}\" font-size=\"9\" fill=\"#404040\">{} {ratio:.2}</text>",
                colour(peer),
                escaped(peer)
            );
            y += BAR;
        }
        y += 10.0;
    }
    let line = LEFT + UNIT;
    let _ = writeln!(
        text,
        "<line x1=\"{line}\" y1=\"30\" x2=\"{line}\" y2=\"{y}\" stroke=\"#404040\" stroke-dasharray=\"3 3\"/>\n</svg>"
    );
    text
}

fn colour(peer: &str) -> &'static str {
    match peer {
        "lbd" => "#d9480f",
        "haproxy" => "#1c7ed6",
        "haproxy-splice" => "#74c0fc",
        _ => "#868e96",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
