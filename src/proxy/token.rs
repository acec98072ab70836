//! What an event is about, in the 64 bits that epoll keeps with a registration: the key of an entry in one of the worker's
//! tables. Registrations outlive the program (see [`super::carry`]): another one has to read the same out of them.

/// What an event is about; packed into the 64 bits that epoll keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Client(usize),
    /// The dial tells this socket from an earlier one of the same session.
    Server(usize, u8),
    Door(usize),
    Inbox,
    Spare(usize),
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        match self {
            Token::Client(key) => (key as u64) << 16,
            Token::Server(key, dial) => (key as u64) << 16 | u64::from(dial) << 8 | 1,
            Token::Door(key) => (key as u64) << 16 | 2,
            Token::Inbox => 3,
            Token::Spare(key) => (key as u64) << 16 | 4,
        }
    }

    pub(super) fn unpack(bits: u64) -> Self {
        let key = (bits >> 16) as usize;
        match bits & 0xff {
            0 => Token::Client(key),
            1 => Token::Server(key, (bits >> 8) as u8),
            2 => Token::Door(key),
            4 => Token::Spare(key),
            _ => Token::Inbox,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_packing() {
        for token in [
            Token::Client(0),
            Token::Client(70_000),
            Token::Server(3, 255),
            Token::Door(9),
            Token::Inbox,
            Token::Spare(7),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
