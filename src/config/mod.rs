//! What the operator asked for: text → file as written, with positions → [`Config`], checked. Pure.

mod model;

pub use model::*;
