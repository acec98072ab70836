//! The workers' threads. A worker is put to work, and given back whole when it has parked: what it has can be carried away, or
//! the worker be put to work again.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use tracing::{error, warn};

use super::signals;
use super::upgrade::{LONG, SHORT, persist};
use crate::proxy::carry::OnExec;
use crate::proxy::{self, Command, Inbox, Line, Worker};

/// How often it is looked whether all is done that workers do beside serving.
const LOOK: Duration = Duration::from_micros(200);

/// How long workers may take to undo what was done for an exec that did not come.
const UNMARK: Duration = Duration::from_millis(50);

/// How much longer all of them may take to park, for each: they may have fewer cores than they are.
const FOR_EACH: Duration = Duration::from_millis(10);

/// What a thread is to do next.
enum Post {
    /// Run this until it parks.
    Run(Box<Worker>),
    /// This, which tells by itself what came of it.
    Do(Box<dyn FnOnce() + Send>),
}

/// Where workers that have parked are given back while somebody waits for them.
type Desk = Arc<Mutex<Option<Sender<(usize, Worker)>>>>;

/// All workers' threads.
#[derive(Debug)]
pub struct Crew {
    /// To each worker.
    pub lines: Vec<Line>,
    /// To each thread.
    posts: Vec<SyncSender<Post>>,
    desk: Desk,
}

/// What a worker is to have of the crew: its inbox, and what wakes the others.
pub type Seat = (Inbox, Vec<Arc<EventFd>>);

/// Not all came to a safe point in time; holds who did not. They work on, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late(pub Vec<usize>);

impl Crew {
    /// A thread for each of so many workers. None has anything to do yet.
    ///
    /// # Errors
    /// There is no descriptor or thread left.
    pub fn hire(count: usize) -> io::Result<(Self, Vec<Seat>)> {
        let mut hiring = Hiring::default();
        (0..count).try_for_each(|_| hiring.one_more())?;
        Ok(hiring.done())
    }

    /// The same, or for fewer where the kernel has no more for a while: for a predecessor that is executed again, whose sessions have
    /// nobody else.
    ///
    /// # Errors
    /// There is not one.
    pub fn hire_who_can_be_had(count: usize) -> io::Result<(Self, Vec<Seat>)> {
        let mut hiring = Hiring::default();
        persist(LONG, || hiring.one_more())?;
        for _ in 1..count {
            if let Err(e) = persist(SHORT, || hiring.one_more()) {
                warn!(
                    "{} of {count} workers can be had and serve alone until the next upgrade: {e}",
                    hiring.posts.len()
                );
                break;
            }
        }
        Ok(hiring.done())
    }

    /// Has each thread do one of these, and returns what they made, in the same order; `None` where a thread is gone.
    pub fn all_do<T, F>(&self, jobs: impl IntoIterator<Item = F>) -> Option<Vec<T>>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (give, given) = channel();
        for (n, (post, job)) in self.posts.iter().zip(jobs).enumerate() {
            let give = give.clone();
            let job = Box::new(move || drop(give.send((n, job()))));
            post.send(Post::Do(job)).ok()?;
        }
        drop(give);
        let mut made: Vec<(usize, T)> = given.iter().collect();
        made.sort_by_key(|(n, _)| *n);
        (made.len() == self.posts.len()).then(|| made.into_iter().map(|(_, one)| one).collect())
    }

    /// Puts workers to work, in their order.
    pub fn begin(&self, workers: impl IntoIterator<Item = Worker>) {
        for (post, worker) in self.posts.iter().zip(workers) {
            if post.send(Post::Run(Box::new(worker))).is_err() {
                error!("a worker's thread is gone; restart lbd");
            }
        }
    }

    /// Has all that the workers have survive an exec, so that little of this is left for the time when they stand still. They
    /// serve meanwhile; whoever is late does the rest then.
    pub fn keep_on_exec(&self, patience: Duration) {
        self.lines.iter().for_each(|line| told(line, OnExec::Keep));
        self.await_marks(patience);
    }

    /// Puts those to work again that have parked.
    pub fn go_on(&self, parked: Vec<Worker>) {
        self.begin(parked);
        self.close_on_exec();
    }

    /// Waits for it too, for whatever child comes next would inherit clients' sockets; a worker that hangs is not waited for long.
    fn close_on_exec(&self) {
        self.lines.iter().for_each(|line| told(line, OnExec::Close));
        self.await_marks(UNMARK);
    }

    /// Whether all that they were told of it is done. Before that a child would inherit clients' sockets, and keep them open
    /// for as long as it runs.
    pub fn is_marked(&self) -> bool {
        self.lines.iter().all(Line::is_marked)
    }

    /// Waits until it is, while they serve; not for ever.
    pub fn await_marks(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.is_marked() && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
    }

    /// Has all of them park, and takes them. All or none.
    ///
    /// # Errors
    /// One is late; the others have gone on.
    pub fn park(&self, patience: Duration) -> Result<Vec<Worker>, Late> {
        let deadline = Instant::now() + patience + FOR_EACH * self.lines.len() as u32;
        let (give, given) = channel();
        self.set_desk(Some(give));
        let untold: Vec<usize> =
            (0..).zip(&self.lines).filter(|(_, line)| line.tell(Command::Park).is_err()).map(|(n, _)| n).collect();
        let mut parked: Vec<Option<Worker>> = self.lines.iter().map(|_| None).collect();
        while untold.is_empty() && parked.iter().any(Option::is_none) {
            match given.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((index, worker)) => parked[index] = Some(worker),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        // From here on who parks finds nobody and goes on by itself; who came meanwhile is in the channel.
        self.set_desk(None);
        given.try_iter().for_each(|(index, worker)| parked[index] = Some(worker));
        let late: Vec<usize> = (0..).zip(&parked).filter(|(_, worker)| worker.is_none()).map(|(n, _)| n).collect();
        if late.is_empty() {
            return Ok(parked.into_iter().flatten().collect());
        }
        for (post, parked) in self.posts.iter().zip(parked) {
            if let Some(worker) = parked {
                let _ = post.send(Post::Run(Box::new(worker)));
            }
        }
        self.close_on_exec();
        Err(Late(late))
    }

    fn set_desk(&self, desk: Option<Sender<(usize, Worker)>>) {
        *self.desk.lock().unwrap_or_else(PoisonError::into_inner) = desk;
    }
}

/// A crew that is being hired.
#[derive(Default)]
struct Hiring {
    desk: Desk,
    ends: Vec<(Line, Inbox)>,
    posts: Vec<SyncSender<Post>>,
}

impl Hiring {
    fn one_more(&mut self) -> io::Result<()> {
        let index = self.posts.len();
        let ends = proxy::line()?;
        let (post, to_do) = sync_channel(1);
        let desk = Arc::clone(&self.desk);
        thread::Builder::new().name(format!("lbd-worker-{index}")).spawn(move || {
            signals::leave_to_others();
            work(index, &to_do, &desk);
        })?;
        self.ends.push(ends);
        self.posts.push(post);
        Ok(())
    }

    fn done(self) -> (Crew, Vec<Seat>) {
        let wakers: Vec<_> = self.ends.iter().map(|(line, _)| line.waker()).collect();
        let others =
            |index| wakers.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, w)| Arc::clone(w)).collect();
        let (lines, inboxes): (Vec<_>, Vec<_>) = self.ends.into_iter().unzip();
        let seats = inboxes.into_iter().enumerate().map(|(index, inbox)| (inbox, others(index))).collect();
        (Crew { lines, posts: self.posts, desk: self.desk }, seats)
    }
}

/// A thread's life: until the crew is gone.
fn work(index: usize, posts: &Receiver<Post>, desk: &Desk) {
    while let Ok(post) = posts.recv() {
        let mut worker = match post {
            Post::Run(worker) => *worker,
            Post::Do(job) => {
                job();
                continue;
            }
        };
        loop {
            worker.run();
            // Held while it is given: whoever clears the desk has then seen it.
            let desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(desk) = &*desk else { continue }; // too late: nobody waits any more
            let _ = desk.send((index, worker));
            break;
        }
    }
}

/// One that takes no commands is found late by what follows.
fn told(line: &Line, on_exec: OnExec) {
    let _ = line.tell(Command::OnExec(on_exec));
}
