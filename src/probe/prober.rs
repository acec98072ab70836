//! Makes probes beside each other on the thread that owns it, in a table with an epoll instance and timers of its own, and
//! reports how each went. It never blocks: [`Prober::ready`] says when [`Prober::drive`] has something to do.

use std::collections::{BTreeSet, VecDeque};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slab::Slab;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep_until;

use super::closing::{Closing, Said};
use super::exchange::{Exchange, failure, no_connection};
use super::places::{Outlook, Place, Places};
use super::{ProbeError, socket};
use crate::words::{Address, CheckSpec, PoolName, ProxyVersion};

/// The most probes that run at a time in places that all pools share.
const MOST: u64 = 1024;
/// One of so many descriptors of the process is for them.
const SHARE: u64 = 8;
/// Probes that are begun before anybody else on this thread is heard: a connect takes some 20 us.
const BATCH: usize = 64;
/// Events heard at a time.
const EVENTS: usize = 256;
/// Waits that are worth a report.
const WAIT: Duration = Duration::from_millis(10);
/// When a probe is taken for one that the backend keeps waiting.
const SLOW: Duration = Duration::from_millis(250);
/// When a Unix socket whose queue is full is tried again: nobody tells when there is room.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// How many probes run at a time in a process that may have so many descriptors, as far as pools share their places.
pub fn most_at_a_time(descriptors: u64) -> usize {
    (descriptors / SHARE).min(MOST) as usize
}

/// What there is to say of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report<K> {
    /// It had to wait so long for its turn, and has begun.
    Began(K, Duration),
    /// It has succeeded after so long, or has not.
    Ended(K, Result<Duration, ProbeError>),
}

/// Makes probes.
#[derive(Debug)]
pub struct Prober<K> {
    epoll: AsyncFd<Poll>,
    running: Slab<Running<K>>,
    /// One for each that runs: when it is to be looked at though nothing was heard.
    timers: BTreeSet<(Instant, usize)>,
    places: Places<Wanted<K>>,
    /// Have a place, and are to be begun.
    granted: VecDeque<(Wanted<K>, Place)>,
    closing: Closing,
    reports: Vec<Report<K>>,
    /// Tells an event of one that has ended from one of its successor in the table.
    serial: u32,
}

/// A probe that is asked for.
#[derive(Debug)]
struct Wanted<K> {
    key: K,
    pool: PoolName,
    address: Address,
    spec: CheckSpec,
    asked: Instant,
}

/// A probe that has not ended at once.
#[derive(Debug)]
struct Running<K> {
    wanted: Wanted<K>,
    place: Place,
    fd: OwnedFd,
    serial: u32,
    stage: Stage,
    began: Instant,
    timer: Instant,
}

#[derive(Debug)]
enum Stage {
    Connecting,
    Talking(Exchange),
}

#[derive(Debug)]
struct Poll(Epoll);

impl AsRawFd for Poll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl<K> Prober<K> {
    /// A prober in a process that may have so many descriptors. To be made within a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no epoll instance for it.
    pub fn new(descriptors: u64) -> io::Result<Self> {
        let most = most_at_a_time(descriptors);
        let epoll = Poll(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        #[allow(
            deprecated,
            reason = "the other one is unsafe, for types that may say another number each time they are asked"
        )]
        let epoll = AsyncFd::with_interest(epoll, Interest::READABLE)?;
        Ok(Self {
            epoll,
            running: Slab::new(),
            timers: BTreeSet::new(),
            places: Places::new(most),
            granted: VecDeque::new(),
            closing: Closing::new(most),
            reports: Vec::new(),
            serial: 0,
        })
    }

    /// Asks for one probe of a backend. It begins at [`Prober::drive`], as soon as it has a place; its timeout begins with it.
    pub fn start(
        &mut self,
        key: K,
        pool: &PoolName,
        address: Address,
        spec: CheckSpec,
        outlook: Outlook,
        now: Instant,
    ) {
        let wanted = Wanted { key, pool: pool.clone(), address, spec, asked: now };
        self.granted.extend(self.places.ask(pool, outlook, wanted));
    }

    /// Waits until there is something to do.
    pub async fn ready(&self) {
        if !self.granted.is_empty() || !self.reports.is_empty() {
            // Others on this thread are to be heard in between, however many backends there are.
            return tokio::task::yield_now().await;
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let next = [timer, self.closing.next_look()].into_iter().flatten().min();
        let time = async {
            match next {
                Some(at) => sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.epoll.readable() => {}
            () = time => {}
        }
    }

    /// Goes on with all that is under way, begins some of what is asked for, and reports what has come of it.
    pub fn drive(&mut self, now: Instant) -> Vec<Report<K>>
    where
        K: Clone,
    {
        self.hear(now);
        for _ in 0..BATCH {
            let Some((wanted, place)) = self.granted.pop_front() else { break };
            let waited = now.saturating_duration_since(wanted.asked);
            if waited >= WAIT {
                self.reports.push(Report::Began(wanted.key.clone(), waited));
            }
            self.begin(wanted, place, now);
        }
        self.closing.look(now);
        std::mem::take(&mut self.reports)
    }

    /// Reports what has come of probes so far, and begins none.
    pub fn arrived(&mut self, now: Instant) -> Vec<Report<K>> {
        self.hear(now);
        std::mem::take(&mut self.reports)
    }

    fn hear(&mut self, now: Instant) {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let mut heard = 0;
            let all = self.epoll.try_io(Interest::READABLE, |poll| {
                heard = poll.0.wait(&mut events, EpollTimeout::ZERO)?;
                // Says at once that there is no more, instead of asking once more to hear it.
                if heard < EVENTS { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            for event in &events[..heard] {
                let (key, serial) = (event.data() as u32 as usize, (event.data() >> 32) as u32);
                if self.running.get(key).is_some_and(|running| running.serial == serial) {
                    self.go_on(key, now);
                }
            }
            if all.is_err() {
                break;
            }
        }
        while let Some(&(at, key)) = self.timers.first()
            && at <= now
        {
            self.time_has_come(key, now);
        }
    }

    /// Begins to connect; what succeeds or fails at once, as most do on the same machine, takes no room in the table.
    fn begin(&mut self, wanted: Wanted<K>, place: Place, now: Instant) {
        let fd = match socket::stream(wanted.target()) {
            Ok(fd) => fd,
            Err(e) => return self.ended(wanted, place, Err(failure("socket: ", e)), now, now),
        };
        let mut running =
            Running { wanted, place, fd, serial: self.serial, stage: Stage::Connecting, began: now, timer: now };
        if let Some(result) = running.go_on() {
            return self.finish(running, result, now);
        }
        running.timer = running.next_timer(now);
        let key = self.running.vacant_key();
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let token = key as u64 | u64::from(running.serial) << 32;
        self.serial = self.serial.wrapping_add(1);
        // A Unix socket that is not connected tells nothing but that it hangs.
        let is_unix_waiting = running.wanted.target().is_none() && matches!(running.stage, Stage::Connecting);
        if !is_unix_waiting && let Err(e) = self.epoll.get_ref().0.add(&running.fd, EpollEvent::new(interest, token)) {
            return self.finish(running, Err(failure("epoll: ", e)), now);
        }
        self.timers.insert((running.timer, key));
        self.running.insert(running);
    }

    fn go_on(&mut self, key: usize, now: Instant) {
        if let Some(result) = self.running[key].go_on() {
            let running = self.running.remove(key);
            self.timers.remove(&(running.timer, key));
            self.finish(running, result, now);
        }
    }

    fn time_has_come(&mut self, key: usize, now: Instant) {
        let running = &mut self.running[key];
        self.timers.remove(&(running.timer, key));
        // What has come in since counts, though nobody has heard of it yet.
        let result = running.go_on();
        let is_over = now >= running.began + running.wanted.spec.timeout;
        if let Some(result) = result.or_else(|| is_over.then(|| Err(running.late()))) {
            let running = self.running.remove(key);
            return self.finish(running, result, now);
        }
        if now >= running.began + SLOW {
            let before = running.place;
            running.place = self.places.grow_old(before);
        }
        running.timer = running.next_timer(now);
        self.timers.insert((running.timer, key));
    }

    fn finish(&mut self, running: Running<K>, result: Result<(), ProbeError>, now: Instant) {
        let Running { wanted, place, fd, stage, began, .. } = running;
        if let Stage::Talking(_) = stage {
            let has_begun = wanted.spec.expect.is_some() && result.is_ok();
            self.closing.add(fd, if has_begun { Said::Begun } else { Said::Nothing }, now);
        }
        self.ended(wanted, place, result, began, now);
    }

    fn ended(&mut self, wanted: Wanted<K>, place: Place, result: Result<(), ProbeError>, began: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        self.reports.push(Report::Ended(wanted.key, result.map(|()| took)));
        self.places.give_back(&wanted.pool, place);
        self.granted.extend(self.places.next(&wanted.pool, place));
    }
}

impl<K> Wanted<K> {
    /// The IP address to probe; `None` for a Unix socket.
    fn target(&self) -> Option<SocketAddr> {
        match &self.address {
            Address::Ip(ip) => Some(SocketAddr::new(ip.ip(), self.spec.port.unwrap_or(ip.port()))),
            Address::Unix(_) => None,
        }
    }

    /// Another port is another service: HAProxy too sends it no header.
    fn header(&self) -> Option<&'static [u8]> {
        let is_own = match &self.address {
            Address::Ip(ip) => self.spec.port.is_none_or(|port| port == ip.port()),
            Address::Unix(_) => true,
        };
        self.spec.send_proxy.map(ProxyVersion::own).filter(|_| is_own)
    }
}

impl<K> Running<K> {
    /// Goes on as far as it can be gone on now; `None`: there is more to come.
    fn go_on(&mut self) -> Option<Result<(), ProbeError>> {
        if let Stage::Connecting = self.stage {
            if let Err(e) = self.connect()? {
                return Some(Err(e));
            }
            self.stage = Stage::Talking(Exchange::new(self.wanted.header(), &self.wanted.spec));
        }
        match &mut self.stage {
            Stage::Connecting => None,
            Stage::Talking(exchange) => exchange.go_on(&self.fd, &self.wanted.spec),
        }
    }

    fn connect(&self) -> Option<Result<(), ProbeError>> {
        let target = match (&self.wanted.address, self.wanted.target()) {
            (Address::Unix(path), _) => {
                return match socket::connect_unix(&self.fd, path) {
                    Err(Errno::EAGAIN) => None,
                    done => Some(done.map_err(|e| failure("connect: ", e))),
                };
            }
            (_, None) => return None,
            (_, Some(target)) => target,
        };
        let mut begun = socket::connect_ip(&self.fd, target);
        if begun == Err(Errno::EINPROGRESS) {
            // On the same machine it is done by now, and its end need not be waited for.
            begun = socket::connect_ip(&self.fd, target);
        }
        match begun {
            Err(Errno::EINPROGRESS | Errno::EALREADY | Errno::EINTR) => None,
            Ok(()) | Err(Errno::EISCONN) if socket::has_met_itself(&self.fd, target) => {
                Some(Err(failure("connect: ", Errno::ECONNREFUSED)))
            }
            Ok(()) | Err(Errno::EISCONN) => Some(Ok(())),
            Err(e) => Some(Err(failure("connect: ", e))),
        }
    }

    fn late(&self) -> ProbeError {
        match &self.stage {
            Stage::Connecting => no_connection(self.wanted.spec.timeout),
            Stage::Talking(exchange) => exchange.late(&self.wanted.spec),
        }
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let end = self.began + self.wanted.spec.timeout;
        let slow = Some(self.began + SLOW).filter(|at| *at > now);
        let is_unix_waiting = self.wanted.target().is_none() && matches!(self.stage, Stage::Connecting);
        let again = is_unix_waiting.then(|| now + TRY_AGAIN);
        [slow, again].into_iter().flatten().fold(end, Instant::min)
    }
}

#[cfg(test)]
mod tests;
