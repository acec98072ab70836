//! The bytes that travel: one long pseudo-random text, of which every session reads and writes a place of its own, so
//! that lost, doubled, stale and foreign bytes are all found by one memcmp.

/// Prime, so that no buffer size or request size divides it.
const PERIOD: usize = 65_521;

/// The most that is written or compared at once.
pub const CHUNK: usize = 256 * 1024;

/// The text, long enough for a whole chunk from any place of the period.
pub struct Pattern(Vec<u8>);

impl Pattern {
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        Self(period.iter().copied().cycle().take(PERIOD + CHUNK).collect())
    }

    /// What stands at `place` of the endless text: at most a chunk.
    pub fn at(&self, place: u64, length: usize) -> &[u8] {
        let start = (place % PERIOD as u64) as usize;
        &self.0[start..start + length.min(CHUNK)]
    }
}

/// Where the text of a session begins.
pub fn place_of(session: usize) -> u64 {
    (session as u64 + 1) * 7_919
}

/// Where an answer begins, which the request names by its own first bytes: whoever gets another's answer sees it.
pub fn place_of_answer(request: &[u8]) -> u64 {
    request.iter().take(8).fold(0, |place, byte| (place << 8 | u64::from(*byte)) & 0xff_ffff_ffff)
}
