//! What the operator asked for: text → file as written, with positions → [`Config`], checked. Pure.
//!
//! Text to tree: `file.rs`, `tree.rs` (the YAML parser), and where the syntax is at fault `repair.rs`, `syntax.rs`,
//! `depth.rs`, `mend.rs`. Tree to configuration: [`keys`] (every key, once), `reader.rs` and `stray.rs` (mappings),
//! `value.rs` and `place.rs` (values), `check.rs`, `pool.rs` and `cross.rs` (meaning), `defaults.rs`. What is told:
//! `problem.rs`, `warning.rs`, `diff.rs`. A new key is a line in its table of `keys.rs`, a field of the model, its reading in
//! `check.rs` or `pool.rs`, its spelling in `spelled.rs`, and a line of `config/full.yaml`; tests tell what was forgotten.

mod check;
mod cross;
mod defaults;
mod depth;
mod diff;
mod file;
pub mod keys;
#[cfg(test)]
mod laws;
mod lines;
mod mend;
mod model;
mod place;
mod pool;
mod problem;
mod reader;
mod repair;
mod spelled;
mod stray;
mod syntax;
#[cfg(test)]
mod tests;
mod tree;
mod value;
mod warning;

pub use diff::{BackendId, Changes, ConfigDiff, Edit};
pub use keys::nearest;
pub use model::*;
pub use problem::{Problem, render, render_warnings};
pub use warning::{Warning, placed};
