//! Listeners at their `max_connections`: told once when it begins, and once when it has been over for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Supervisor;
use crate::daemon::event::Now;
use crate::words::{Happening, ListenerName};

/// How long a listener must have had room for its limit to count as over.
const CALM: Duration = Duration::from_secs(5);

/// Those of which it was told, and when they last had no room.
pub type AtLimit = BTreeMap<ListenerName, Instant>;

impl Supervisor {
    /// Looks at every listener that has a limit.
    pub(super) fn tell_of_limits(&mut self, now: Now) {
        let snapshot = &self.snapshot;
        self.at_limit.retain(|name, _| snapshot.listener(name).is_some());
        for listener in &snapshot.listeners {
            let (cell, name) = (&listener.cell, listener.cell.name.as_str());
            let sessions = cell.live.count();
            let full = listener.max_connections.filter(|most| sessions >= *most);
            let waited = Duration::from_micros(now.micros.saturating_sub(cell.last_full()));
            // Somebody may have been left waiting between two looks.
            let most = full.or(listener.max_connections.filter(|_| cell.last_full() > 0 && waited < CALM));
            match (most, self.at_limit.get_mut(&cell.name)) {
                (Some(most), None) => {
                    self.at_limit.insert(cell.name.clone(), now.at);
                    warn!(
                        event = Happening::ListenerAtLimit.as_str(),
                        listener = name,
                        "has as many connections as it may (max_connections: {most}); new clients wait in the kernel's queue until one ends"
                    );
                }
                (Some(_), Some(last)) => *last = now.at,
                (None, Some(last)) if now.at.saturating_duration_since(*last) >= CALM => {
                    self.at_limit.remove(&cell.name);
                    info!(
                        event = Happening::ListenerLimitOver.as_str(),
                        listener = name,
                        "is below its max_connections again; sessions: {sessions}"
                    );
                }
                (None, _) => {}
            }
        }
    }
}
