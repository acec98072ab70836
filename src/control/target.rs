//! Which backend an operator means: `pool/backend`, or a bare name. Whether there is such a backend
//! is the supervisor's to find out.

use std::fmt;

use crate::words::{BackendName, BackendRef, NameError, PoolName};

/// Which backend is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `pool/backend`.
    Exactly(BackendRef),
    /// A bare `backend`.
    Named {
        /// Its name.
        backend: BackendName,
        /// In which pools.
        pools: Pools,
    },
}

/// Where a bare name is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pools {
    /// Just one pool may have it; otherwise the request is refused and names the candidates.
    One,
    /// Every pool that has it (`--all-pools`).
    All,
}

/// Why a text is no target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetError {
    /// One of its names is none; holds the text.
    Name(String, NameError),
    /// It names one pool, and all pools were asked for; holds the bare name.
    OneOfAll(BackendName),
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text, error) => write!(f, "{text:?} is not pool/backend or backend: {error}"),
            Self::OneOfAll(bare) => {
                write!(f, "a target with a pool is in that pool alone; write \"{bare}\", or leave all pools out")
            }
        }
    }
}

impl std::error::Error for TargetError {}

impl Target {
    /// Reads what an operator typed.
    pub fn parse(text: &str, pools: Pools) -> Result<Self, TargetError> {
        let wrong = |error| TargetError::Name(text.to_owned(), error);
        let Some((pool, backend)) = text.split_once('/') else {
            return Ok(Self::Named { backend: text.parse().map_err(wrong)?, pools });
        };
        let pool: PoolName = pool.parse().map_err(wrong)?;
        let backend: BackendName = backend.parse().map_err(wrong)?;
        match pools {
            Pools::One => Ok(Self::Exactly(BackendRef { pool, backend })),
            Pools::All => Err(TargetError::OneOfAll(backend)),
        }
    }

    /// In which pools it is looked for.
    pub fn pools(&self) -> Pools {
        match self {
            Self::Exactly(_) => Pools::One,
            Self::Named { pools, .. } => *pools,
        }
    }
}

impl fmt::Display for Target {
    /// As it was typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(backend) => backend.fmt(f),
            Self::Named { backend, .. } => backend.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_bare_name_or_one_of_a_pool() {
        let name = |text: &str| text.parse::<BackendName>().unwrap();
        let exactly = Target::Exactly(BackendRef { pool: "web".parse().unwrap(), backend: name("b1") });
        for (text, pools, target) in [
            ("b1", Pools::One, Ok(Target::Named { backend: name("b1"), pools: Pools::One })),
            ("b1", Pools::All, Ok(Target::Named { backend: name("b1"), pools: Pools::All })),
            ("web/b1", Pools::One, Ok(exactly)),
            ("web/b1", Pools::All, Err(TargetError::OneOfAll(name("b1")))),
            ("", Pools::One, Err(TargetError::Name("".into(), NameError::Empty))),
            ("web/", Pools::One, Err(TargetError::Name("web/".into(), NameError::Empty))),
            ("/b1", Pools::One, Err(TargetError::Name("/b1".into(), NameError::Empty))),
            ("a/b/c", Pools::One, Err(TargetError::Name("a/b/c".into(), NameError::Character('/')))),
        ] {
            assert_eq!(Target::parse(text, pools), target, "{text:?}");
            if let Ok(target) = target {
                assert_eq!(target.to_string(), text);
            }
        }
    }
}
