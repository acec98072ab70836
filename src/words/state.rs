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
        /// It finishes its sessions and takes no new one.
        Draining = "draining",
        /// It takes no new session until it is enabled again, and is not probed.
        Disabled = "disabled",
    }
);

spelled!(
    /// What probes say of a backend. Kept apart from its [`AdminState`].
    Health {
        /// No verdict yet. Eligible where the pool has no check, or none of its backends a verdict.
        Unproven = "unproven",
        /// Fit to serve.
        Up = "up",
        /// Not fit to serve.
        Down = "down",
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
