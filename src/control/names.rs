//! What users are called. The name service may be a directory that does not answer for minutes: it is asked on a thread of its own, and
//! who wants a name goes on without one where it takes too long.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::unistd::User;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long an operator waits for their name to be found.
const PATIENCE: Duration = Duration::from_millis(300);
/// Questions that may wait; one more goes without an answer.
const WAITING: usize = 16;
/// Names that are remembered for when the service does not answer.
const REMEMBERED: usize = 1024;

/// The name of a user, where there is one.
type Find = fn(u32) -> Option<String>;
type Question = (u32, oneshot::Sender<Option<String>>);

/// The way to the name service.
#[derive(Debug, Clone)]
pub struct Names {
    questions: SyncSender<Question>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// It has kept somebody waiting for too long, and has not answered since.
    is_late: AtomicBool,
    known: Mutex<BTreeMap<u32, Option<String>>>,
}

impl Names {
    /// Begins the thread, which calls `begin` first.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(begin: fn()) -> io::Result<Self> {
        Self::start_with(begin, |uid| User::from_uid(uid.into()).ok().flatten().map(|user| user.name))
    }

    fn start_with(begin: fn(), find: Find) -> io::Result<Self> {
        let (questions, asked) = sync_channel(WAITING);
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        thread::Builder::new().name("lbd-names".into()).spawn(move || {
            begin();
            answer(&asked, &its, find);
        })?;
        Ok(Self { questions, shared })
    }

    /// The name of a user: by the service, or as it was when it answered last. `None` where neither tells.
    pub async fn of(&self, uid: u32) -> Option<String> {
        let (tell, told) = oneshot::channel();
        let is_asked = self.questions.try_send((uid, tell)).is_ok();
        if is_asked && !self.shared.is_late.load(Relaxed) {
            if let Ok(Ok(name)) = timeout(PATIENCE, told).await {
                return name;
            }
            if !self.shared.is_late.swap(true, Relaxed) {
                tracing::warn!(
                    "the name service has not answered within {PATIENCE:?}; operators are told by their numbers until it does"
                );
            }
        }
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned().flatten()
    }
}

fn answer(asked: &Receiver<Question>, shared: &Shared, find: Find) {
    while let Ok((uid, tell)) = asked.recv() {
        let name = find(uid);
        let mut known = shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear(); // as many as nobody has
        }
        known.insert(uid, name.clone());
        drop(known);
        shared.is_late.store(false, Relaxed);
        let _ = tell.send(name); // who asked may have gone on
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::time::Instant;

    static AWAY: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

    fn directory(uid: u32) -> Option<String> {
        drop(AWAY.1.wait_while(AWAY.0.lock().unwrap(), |away| *away).unwrap());
        (uid < 1000).then(|| format!("user-{uid}"))
    }

    #[tokio::test]
    async fn a_directory_that_does_not_answer_keeps_an_operator_once_and_for_a_moment() {
        let names = Names::start_with(|| (), directory).unwrap();
        assert_eq!(names.of(7).await.as_deref(), Some("user-7"));
        assert_eq!(names.of(1000).await, None);
        *AWAY.0.lock().unwrap() = true;
        assert_eq!(names.of(8).await, None, "it is asked in vain");
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(names.of(7).await.as_deref(), Some("user-7"), "as it was");
            assert_eq!(names.of(9).await, None);
        }
        assert!(begun.elapsed() < PATIENCE, "nobody waits for it any more");
        *AWAY.0.lock().unwrap() = false;
        AWAY.1.notify_all();
        while names.of(8).await.is_none() {
            tokio::task::yield_now().await;
        }
    }
}
