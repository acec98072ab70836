//! The enumerations that the file, the control socket and the tables spell alike.

use std::fmt;

macro_rules! spelled {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order in which documents list them.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// How the value is spelled in the file, on the wire and in tables.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }

            /// The value spelled so, or `None`.
            pub fn from_spelling(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

spelled!(
    /// What the operator wants of a backend. Kept apart from its [`Health`].
    AdminState {
        /// It takes sessions while it is fit to.
        Enabled = "enabled",
        /// It finishes its sessions, takes no new one and is not probed.
        Draining = "draining",
        /// The same; its sessions may have been cut.
        Disabled = "disabled",
    }
);

spelled!(
    /// What probes say of a backend. Kept apart from its [`AdminState`].
    Health {
        /// Its pool has a check, and no probe has succeeded or failed yet. It takes no session.
        Unproven = "unproven",
        /// Fit to serve.
        Up = "up",
        /// Not fit to serve.
        Down = "down",
        /// Its pool has no check, so that it counts as fit.
        Unchecked = "unchecked",
    }
);

spelled!(
    /// How a pool chooses among its eligible backends.
    Algorithm {
        /// Smooth weighted round robin.
        RoundRobin = "round_robin",
        /// Fewest live sessions for its weight.
        LeastConnections = "least_connections",
        /// The better of two drawn at random.
        RandomTwo = "random_two",
        /// By the client's address; few clients move when the backends change.
        SourceHash = "source_hash",
        /// By the client's address; every node of a fleet chooses alike.
        Maglev = "maglev",
        /// The first of the file that has room.
        First = "first",
    }
);

spelled!(
    /// Why a client got no session.
    Refusal {
        /// No backend of the pool is eligible.
        NoBackend = "no_backend",
        /// No backend that was tried took the connection.
        ConnectFailed = "connect_failed",
        /// Every eligible backend is at its limit and the pool has no queue.
        Limit = "limit",
        /// The pool's queue is full.
        QueueFull = "queue_full",
        /// The pool's queue did not move in time.
        QueueTimeout = "queue_timeout",
        /// The PROXY header that was to come was malformed, cut short or late.
        BadProxyHeader = "bad_proxy_header",
    }
);

spelled!(
    /// Which PROXY header tells a backend who the client is (HAProxy's proxy-protocol.txt).
    ProxyVersion {
        /// A line of text.
        V1 = "v1",
        /// Binary.
        V2 = "v2",
    }
);

impl Health {
    /// Whether a backend of this health may take sessions.
    pub const fn is_fit(self) -> bool {
        matches!(self, Health::Up | Health::Unchecked)
    }
}

impl ProxyVersion {
    /// The header of a connection that is lbd's own, of no client's.
    pub const fn own(self) -> &'static [u8] {
        match self {
            ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
            ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", // LOCAL, no addresses
        }
    }
}

spelled!(
    /// Who or what ended a session: the first of the two letters that HAProxy's users know.
    Cause {
        /// Both sides closed in order (`-`).
        Normal = "normal",
        /// The client reset or aborted it (`C`).
        Client = "client",
        /// The backend reset, refused or aborted it (`S`).
        Server = "server",
        /// lbd had to: no backend, a limit, no resources (`P`).
        Proxy = "proxy",
        /// The operator or a stop cut it (`K`).
        Killed = "killed",
        /// The client was silent, or did not read, for too long (`c`).
        ClientTimeout = "client_timeout",
        /// The backend was silent, or did not answer the connect, for too long (`s`).
        ServerTimeout = "server_timeout",
    }
);

impl Cause {
    /// HAProxy's letter for it.
    pub const fn letter(self) -> char {
        match self {
            Cause::Normal => '-',
            Cause::Client => 'C',
            Cause::Server => 'S',
            Cause::Proxy => 'P',
            Cause::Killed => 'K',
            Cause::ClientTimeout => 'c',
            Cause::ServerTimeout => 's',
        }
    }
}

/// How far a session had come when it ended: the second of HAProxy's two letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a place (`Q`).
    Queue,
    /// Connecting to a backend (`C`).
    Connect,
    /// Relaying (`D`).
    Data,
    /// Over (`-`).
    Done,
}

impl Phase {
    /// HAProxy's letter for it.
    pub const fn letter(self) -> char {
        match self {
            Phase::Queue => 'Q',
            Phase::Connect => 'C',
            Phase::Data => 'D',
            Phase::Done => '-',
        }
    }
}
