//! The events that an operator filters the journal by: each has a name, which is the field `LBD_EVENT`, and a number that no
//! other program uses, which is `MESSAGE_ID` (systemd.journal-fields(7)). Both are a promise and never change.

macro_rules! happenings {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $id:literal;)+) => {
        /// Something that has happened, as the journal knows it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Happening { $($(#[$doc])* $name),+ }

        impl Happening {
            /// All of them.
            pub const ALL: &'static [Happening] = &[$(Happening::$name),+];

            /// Its name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Happening::$name => $text),+ }
            }

            /// Its number: 128 bits, in hexadecimal.
            pub const fn message_id(self) -> &'static str {
                match self { $(Happening::$name => $id),+ }
            }

            /// The one of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some(Happening::$name),)+ _ => None }
            }
        }
    };
}

happenings! {
    /// The first configuration is in force and clients are accepted.
    Started = "started", "ac076f2e0b2e41dbb78906decf7fd58b";
    /// A stop or restart has begun: no more clients, sessions finish.
    Stopping = "stopping", "e7b7efb0d8794e4f827932ed24624321";
    /// Sessions were cut because the time to finish was over, or because who served them was lost.
    SessionsCut = "sessions-cut", "a60902843c5646b88eca5dafd1eed117";
    /// The daemon has stopped as it was asked to.
    Stopped = "stopped", "4ce0e25c42344be19e57ab8420ef8130";
    /// A changed configuration is in force.
    ReloadApplied = "reload-applied", "2661232c5a03426dac20422f484f81cf";
    /// A changed configuration was refused, and nothing has changed; each problem is an event of its own.
    ReloadRefused = "reload-refused", "f81ccd246e3e42f8b6377e619d026478";
    /// The file was refused at the start; what was last in force serves until it is valid. Each problem is an event of its own.
    Fallback = "fallback", "f5898c8502da45f1b3965e6f804d82f2";
    /// Another program has taken over in place, with every session.
    Upgraded = "upgraded", "5d1b8f1b6c0e4c7f9a4b2f0d7c3e8a61";
    /// A program that was to take over was refused or has failed; the one that served before goes on.
    UpgradeRefused = "upgrade-refused", "c2f4a9d07e1d4b53b8a6e1f93d5c7b20";
    /// A backend has become fit to serve.
    BackendUp = "backend-up", "0e3d98bef2a8460c89b7f0c964852fc0";
    /// A backend has become unfit to serve; the reason is in the message.
    BackendDown = "backend-down", "6a538a040b2b43d6966a183569d1cd3e";
    /// An operator has drained, disabled or enabled a backend, or it was so before the start.
    Override = "override", "b9e61633f58d46cba52e5223e308fc07";
    /// The time of a drain or disable is over.
    OverrideEnded = "override-ended", "eea489b7e373425e9ab6b6a58e99e867";
    /// The last session of a draining or disabled backend has ended.
    Drained = "drained", "e735595f700d40afabeca1949ff1ddeb";
    /// Probes of a pool wait for their turn: too many of its backends give no answer.
    ProbesLate = "probes-late", "6d2f0c5e8a3b4d7f9e1c4b8a2f7d5e30";
    /// Accepting pauses, or backends cannot be probed, for want of descriptors or places.
    Shortage = "shortage", "4a236549ba9a447990159ec85b2e4012";
    /// There are descriptors and places again.
    ShortageOver = "shortage-over", "f6f63fe8336e4281842b1014d653496a";
    /// A file system, a name service or the service manager does not answer; lbd does not wait for it.
    Stalled = "stalled", "5fa50fb5e2ab4bb2949355d2192757bf";
    /// It answers again.
    StallOver = "stall-over", "675df77f81804f90b33c35b9746d4ee9";
    /// A listener has as many sessions as it may: new clients wait.
    ListenerAtLimit = "listener-at-limit", "5b1e7c42a9d04f3687c3f0e18d264ba7";
    /// It has had fewer for a while.
    ListenerLimitOver = "listener-limit-over", "d20f64b9138e4c7ea5b7390c6e1d8f54";
    /// A listening socket was ended by somebody else, or its path removed; or the address cannot be bound anew.
    ListenerEnded = "listener-ended", "b8d3c1a6f2764e0c9d5b7a41e3f08c62";
    /// The address of such a socket is bound anew.
    ListenerBound = "listener-bound", "3fa9e27d05c84b1e8c6640d7b29f51ae";
    /// A session has ended, where `log.connections` asks for it.
    SessionEnded = "session-ended", "8b5a8568e5904a5680c174a2acad9ed8";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_has_a_name_and_a_number_of_its_own() {
        let ids: BTreeSet<&str> = Happening::ALL.iter().map(|h| h.message_id()).collect();
        assert_eq!(ids.len(), Happening::ALL.len());
        for happening in Happening::ALL {
            assert_eq!(Happening::from_name(happening.as_str()), Some(*happening));
            let id = happening.message_id();
            assert!(id.len() == 32 && id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{id}");
        }
    }
}
