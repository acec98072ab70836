//! Sessions as they travel: one behind the other, as bytes. They are read one by one when the table is made of them, for
//! thousands of them read at once would be memory that is had from the kernel page by page while everybody waits.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::CarriedSession;
use super::assemble::Unfit;

/// Bytes of a session's record, where nothing is held for it and its numbers are long.
const RECORD: usize = 128;
/// The least that it takes.
const LEAST: usize = 40;

/// A row of sessions. How many they are is in the worker's head; they are behind it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CarriedSessions {
    count: u32,
    bytes: Bytes,
}

impl CarriedSessions {
    /// A row as it has come, with the number of them that was told before.
    pub(super) fn behind(self, bytes: Bytes) -> Self {
        Self { bytes, ..self }
    }

    /// What is behind the head.
    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// How many they should be.
    pub(super) fn len(&self) -> usize {
        self.count as usize
    }

    /// Reads them.
    pub(super) fn iter(&self) -> Reading<'_> {
        Reading { left: self.count, bytes: &self.bytes }
    }

    /// All of them.
    ///
    /// # Errors
    /// One makes no sense, or they are not as many as there should be.
    #[cfg(test)]
    pub(super) fn all(&self) -> Result<Vec<CarriedSession>, Unfit> {
        self.iter().collect()
    }
}

impl fmt::Debug for CarriedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for CarriedSessions {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.count.serialize(to)
    }
}

impl<'de> Deserialize<'de> for CarriedSessions {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self { count: u32::deserialize(from)?, bytes: Bytes::new() })
    }
}

/// Sessions on their way out of bytes.
pub(super) struct Reading<'a> {
    left: u32,
    bytes: &'a [u8],
}

impl Reading<'_> {
    fn broken(&mut self, why: &dyn fmt::Display) -> Option<Result<CarriedSession, Unfit>> {
        let left = std::mem::take(&mut self.left);
        self.bytes = &[];
        Some(Err(Unfit(format!("a worker's sessions make no sense, {left} before their end: {why}"))))
    }
}

impl Iterator for Reading<'_> {
    type Item = Result<CarriedSession, Unfit>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.left, self.bytes) {
            (0, []) => None,
            (0, more) => self.broken(&format_args!("{} bytes are left over", more.len())),
            _ => match postcard::take_from_bytes(self.bytes) {
                Ok((session, rest)) => {
                    self.left -= 1;
                    self.bytes = rest;
                    Some(Ok(session))
                }
                Err(e) => self.broken(&e),
            },
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Whatever the head says, there are not more than these.
        ((self.bytes.len() / LEAST).min(self.left as usize), None)
    }
}

/// Sessions on their way into bytes.
pub(super) struct Writing {
    count: u32,
    bytes: Vec<u8>,
}

impl Writing {
    /// With memory for so many, as they are as a rule.
    pub(super) fn with_room_for(count: usize) -> Self {
        Self { count: 0, bytes: Vec::with_capacity(count * RECORD) }
    }

    pub(super) fn add(&mut self, session: &CarriedSession) -> Result<(), postcard::Error> {
        self.bytes = postcard::to_extend(session, std::mem::take(&mut self.bytes))?;
        self.count += 1;
        Ok(())
    }

    pub(super) fn done(self) -> CarriedSessions {
        CarriedSessions { count: self.count, bytes: self.bytes.into() }
    }
}

#[cfg(test)]
pub(super) fn row(sessions: &[CarriedSession]) -> CarriedSessions {
    let mut writing = Writing::with_room_for(sessions.len());
    sessions.iter().for_each(|session| writing.add(session).unwrap());
    assert!(writing.bytes.len() >= sessions.len() * LEAST);
    writing.done()
}
