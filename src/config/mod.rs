//! What the operator asked for: text → file as written, with positions → [`Config`], checked. Pure.

mod check;
mod cross;
mod defaults;
mod diff;
mod file;
pub mod keys;
mod model;
mod place;
mod pool;
mod problem;
mod reader;
mod spelled;
mod value;

pub use diff::{BackendId, Changes, ConfigDiff, Edit};
pub use keys::nearest;
pub use model::*;
pub use problem::{Problem, render};
