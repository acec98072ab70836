//! The bytes of a request: made on the fly and compared on the fly, so that a gigabyte costs no memory. Each request's
//! bytes are unlike every other's, so an answer that belongs to another client or request is a wrong one. Pure.

/// What one request sends and expects back.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Pseudo-random bytes.
    Made {
        /// Decides every byte.
        key: u64,
        /// How many bytes.
        size: u64,
    },
    /// The user's own words.
    Text(String),
}

impl Payload {
    /// The bytes of one request of one client. Two requests of a run (one `seed`) differ in their first 8 bytes.
    pub fn made(seed: u64, client: u32, request: u32, size: u64) -> Self {
        Self::Made { key: (u64::from(client) << 32 | u64::from(request)) ^ seed, size }
    }

    /// The number of bytes.
    pub fn size(&self) -> u64 {
        match self {
            Payload::Made { size, .. } => *size,
            Payload::Text(text) => text.len() as u64,
        }
    }

    /// Writes the bytes from `offset` on into `buffer` and returns their number: less than its length only at the end.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let length = self.left(offset, buffer.len());
        match self {
            Payload::Made { key, .. } => {
                let mut at = offset;
                let mut rest = &mut buffer[..length];
                while !rest.is_empty() {
                    let word = word(*key, at / 8).to_le_bytes();
                    let skip = (at % 8) as usize;
                    let take = rest.len().min(8 - skip);
                    rest[..take].copy_from_slice(&word[skip..skip + take]);
                    rest = &mut rest[take..];
                    at += take as u64;
                }
            }
            Payload::Text(text) => buffer[..length].copy_from_slice(&text.as_bytes()[offset as usize..][..length]),
        }
        length
    }

    /// The offset of the first byte of `answer`, which begins at `offset`, that is not what was sent. Bytes past the
    /// end are not compared.
    pub fn mismatch(&self, offset: u64, answer: &[u8]) -> Option<u64> {
        let mut expected = [0; 512];
        let mut at = offset;
        for piece in answer[..self.left(offset, answer.len())].chunks(expected.len()) {
            let expected = &mut expected[..piece.len()];
            self.fill(at, expected);
            if piece != expected {
                let wrong = piece.iter().zip(expected).position(|(got, sent)| got != sent);
                return wrong.map(|index| at + index as u64);
            }
            at += piece.len() as u64;
        }
        None
    }

    fn left(&self, offset: u64, most: usize) -> usize {
        usize::try_from(self.size() - offset).unwrap_or(usize::MAX).min(most)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014), by index. One to one in `key` for a given index, hence no two keys share a word.
fn word(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(payload: &Payload) -> Vec<u8> {
        let mut bytes = vec![0; payload.size() as usize];
        assert_eq!(payload.fill(0, &mut bytes), bytes.len());
        bytes
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole(size in 1u64..3_000, cuts in prop::collection::vec(1usize..700, 1..20)) {
            let payload = Payload::made(7, 3, 11, size);
            let all = whole(&payload);
            let mut at = 0;
            for cut in cuts.into_iter().cycle() {
                let mut piece = vec![0; cut];
                let length = payload.fill(at, &mut piece);
                prop_assert_eq!(&piece[..length], &all[at as usize..][..length]);
                prop_assert_eq!(payload.mismatch(at, &piece[..length]), None);
                at += length as u64;
                if at == size { break }
            }
        }

        #[test]
        fn any_flipped_bit_is_found_where_it_is(size in 1usize..3_000, from in 0usize..3_000, bit in 0u8..8, at in 0usize..3_000) {
            let payload = Payload::made(7, 3, 11, size as u64);
            let (at, mut bytes) = (at % size, whole(&payload));
            let from = from % (at + 1);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(payload.mismatch(from as u64, &bytes[from..]), Some(at as u64));
        }

        #[test]
        fn no_two_requests_begin_alike(a: (u32, u32), b: (u32, u32), seed: u64) {
            prop_assume!(a != b);
            let first = |(client, request)| whole(&Payload::made(seed, client, request, 8));
            prop_assert_ne!(first(a), first(b));
        }
    }

    #[test]
    fn text_is_sent_as_it_is() {
        let text = Payload::Text("Hello World".into());
        assert_eq!(whole(&text), b"Hello World");
        assert_eq!(text.mismatch(6, b"World and more"), None);
        assert_eq!(text.mismatch(6, b"Wurld"), Some(7));
    }
}
