//! Tells of what a test leaves out, and why.

use std::io::Write;

/// Not by `println!`: what a test that passes has printed is shown to nobody.
pub fn skipped(why: &str) {
    let _ = std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()); // there is nobody else to tell
}
