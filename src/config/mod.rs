//! What the operator asked for: text → file as written, with positions → [`Config`], checked. Pure.

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

pub use diff::{BackendId, Changes, ConfigDiff, Edit};
pub use keys::nearest;
pub use model::*;
pub use problem::{Problem, render};
