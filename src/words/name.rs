//! Names of listeners, pools and backends. They identify things across reloads, so they are
//! parsed once, at the edge, and compared everywhere else.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest name, in bytes.
pub const MAX_NAME: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameError {
    /// The text is empty.
    Empty,
    /// The text is longer than 63 bytes; holds its length.
    TooLong(usize),
    /// The text holds a character that no name may hold.
    Character(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a name must not be empty"),
            Self::TooLong(n) => write!(f, "the name has {n} characters; at most {MAX_NAME} are allowed"),
            Self::Character(c) => {
                write!(f, "a name must not contain {c:?}; use letters, digits, '.', '_' and '-'")
            }
        }
    }
}

impl std::error::Error for NameError {}

fn checked(text: &str) -> Result<Arc<str>, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(c) = text.chars().find(|&c| !allowed(c)) {
        return Err(NameError::Character(c));
    }
    if text.len() > MAX_NAME {
        return Err(NameError::TooLong(text.len()));
    }
    Ok(text.into())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                checked(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// The name of a listener, unique in a configuration.
    ListenerName
);
name!(
    /// The name of a pool, unique in a configuration.
    PoolName
);
name!(
    /// The name of a backend, unique in its pool.
    BackendName
);

/// One backend of one pool, shown as `pool/backend`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendRef {
    /// The pool.
    pub pool: PoolName,
    /// The backend of that pool.
    pub backend: BackendName,
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.pool, self.backend))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_letters_digits_dot_underscore_and_hyphen() {
        assert_eq!("web-1.eu_west".parse::<PoolName>().map(|n| n.to_string()), Ok("web-1.eu_west".into()));
        for (text, error) in [
            ("", NameError::Empty),
            ("a/b", NameError::Character('/')),
            ("a b", NameError::Character(' ')),
            ("naïve", NameError::Character('ï')),
        ] {
            assert_eq!(text.parse::<PoolName>(), Err(error), "{text:?}");
        }
        assert!("x".repeat(63).parse::<PoolName>().is_ok());
        assert_eq!("x".repeat(64).parse::<PoolName>(), Err(NameError::TooLong(64)));
    }
}
