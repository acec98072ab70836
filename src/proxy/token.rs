//! What an event is about, in the 64 bits that epoll keeps with a registration: the key of an entry in one of the worker's
//! tables. Registrations outlive the program (see [`super::carry`]): another one has to read the same out of them.

/// What an event is about; packed into the 64 bits that epoll keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The serial number tells this session from a former one of the same key: where a child is just being started, its copy of a
    /// socket that was closed here keeps the registration, and events go on coming.
    Client(usize, u16),
    /// The same; and the dial tells this socket from an earlier one of the same session.
    Server(usize, u16, u8),
    Door(usize),
    Inbox,
    Spare(usize),
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        let of = |key: usize, serial: u16, dial: u8, kind: u64| {
            (key as u64) << 32 | u64::from(serial) << 16 | u64::from(dial) << 8 | kind
        };
        match self {
            Token::Client(key, serial) => of(key, serial, 0, 0),
            Token::Server(key, serial, dial) => of(key, serial, dial, 1),
            Token::Door(key) => of(key, 0, 0, 2),
            Token::Inbox => 3,
            Token::Spare(key) => of(key, 0, 0, 4),
        }
    }

    pub(super) fn unpack(bits: u64) -> Self {
        let (key, serial) = ((bits >> 32) as usize, (bits >> 16) as u16);
        match bits & 0xff {
            0 => Token::Client(key, serial),
            1 => Token::Server(key, serial, (bits >> 8) as u8),
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
            Token::Client(0, 7),
            Token::Client(70_000, 65_535),
            Token::Server(3, 300, 255),
            Token::Door(9),
            Token::Inbox,
            Token::Spare(7),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
