//! Documents as JSON text and back. The one place that knows which crate writes it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a text is not the document asked for: what is wrong, at which line and column; or why a document cannot be a text.
#[derive(Debug)]
pub struct JsonError(serde_json::Error);

impl std::fmt::Display for JsonError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for JsonError {}

/// One line.
pub fn compact(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect(WRITABLE)
}

/// One line of a document that may hold what is no text, such as a path.
///
/// # Errors
/// It does.
pub fn try_compact(document: &impl Serialize) -> Result<String, JsonError> {
    serde_json::to_string(document).map_err(JsonError)
}

/// Indented, for a reader.
pub fn pretty(document: &impl Serialize) -> String {
    serde_json::to_string_pretty(document).expect(WRITABLE)
}

/// Reads a document.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(text).map_err(JsonError)
}

const WRITABLE: &str = "our documents have text keys only and no failing Serialize";
