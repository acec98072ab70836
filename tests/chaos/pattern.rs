//! Bytes that are checked by their position and by whose they are: loss, repetition, another order, invention and bytes of
//! another session all show.

use std::sync::LazyLock;

/// The period is prime, so that no multiple of a buffer's size looks right.
const PERIOD: usize = 1_048_583;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..PERIOD).map(next).collect()
});

/// One conversation's bytes, told from others' by where in the pattern they begin.
#[derive(Debug, Clone, Copy)]
pub struct Text(pub usize);

impl Text {
    /// The bytes at a position, at most so many; fewer where the pattern begins anew.
    pub fn piece(self, at: usize, most: usize) -> &'static [u8] {
        let rest = &PATTERN[(self.0 + at) % PERIOD..];
        &rest[..rest.len().min(most)]
    }

    /// Where these bytes differ from those at a position.
    pub fn differs(self, at: usize, bytes: &[u8]) -> Option<usize> {
        let mut seen = 0;
        while seen < bytes.len() {
            let wanted = self.piece(at + seen, bytes.len() - seen);
            let got = &bytes[seen..seen + wanted.len()];
            if got != wanted {
                return Some(at + seen + got.iter().zip(wanted).position(|(g, w)| g != w).unwrap_or(0));
            }
            seen += wanted.len();
        }
        None
    }
}
