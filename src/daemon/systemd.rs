//! Tells systemd how the daemon is doing (sd_notify(3)). Says nothing where no NOTIFY_SOCKET is set.
//! When to say what is the supervisor's; the one rule kept here is what each message consists of. Takes what
//! systemd passes at the start, too. One of the five files with `unsafe`.
#![allow(unsafe_code)]

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::words::Address;

/// How the names of sockets begin that are in the store. No socket unit is called so: the name of a unit, which is what its
/// sockets are called, has no slash.
const OURS: &str = "lbd/";
/// The longest name that systemd takes.
const LONGEST: usize = 255;
/// Descriptors a message; the kernel takes 253.
const BATCH: usize = 128;

/// The service manager's ear.
///
/// The variables stay in the environment: a binary executed in place needs them too.
#[derive(Debug, Default)]
pub struct Notifier {
    /// So that a manager that does not listen is logged once, not each second.
    complained: AtomicBool,
}

impl Notifier {
    /// A notifier for the NOTIFY_SOCKET of the environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Start or reload is over. Must follow every [`Notifier::reloading`], of a refused reload too, or the
    /// unit stays in "reloading" until it is killed.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// The line that `systemctl status` shows.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(&one_line(text))]);
    }

    /// A reload begins.
    pub fn reloading(&self) {
        // systemd 253 and later take RELOADING=1 only with the time at which it was said.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// The stop begins.
    pub fn stopping(&self, status: &str) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// The start or stop may take `more` from now; to be repeated at least twice within that time.
    pub fn extend_timeout(&self, more: Duration) {
        self.tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(more.as_micros()).unwrap_or(u32::MAX))]);
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some()
    }

    /// Puts listening sockets of an address into the store of the unit, where they survive this process. Those that are
    /// there already stay; what finds no room is dropped there without a word.
    ///
    /// # Errors
    /// They cannot be sent: the next restart will have to bind the address anew.
    pub fn store(&self, name: &str, sockets: &[OwnedFd]) -> std::io::Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        for batch in sockets.chunks(BATCH) {
            // FDPOLL=0: or systemd takes a socket out as soon as it looks broken to it.
            let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
            sd_notify::notify_with_fds(&states, batch)?;
        }
        Ok(())
    }

    /// Takes everything of this name out of the store.
    pub fn forget(&self, name: &str) {
        self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    /// Every part of the process turns.
    pub fn watchdog(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// How often to call [`Notifier::watchdog`]: half of what systemd tolerates. `None`: it does not watch.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| limit / 2)
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        self.complain(sd_notify::notify(states));
    }

    fn complain(&self, told: std::io::Result<()>) {
        if let Err(error) = told
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::debug!(%error, "systemd cannot be told of the daemon's state");
        }
    }
}

/// What systemd has passed to the process: sockets of its own socket units, and what is in the store of the unit, each
/// with its name. The variables that tell of them are taken out of the environment: who is executed in place
/// of this process has its own.
///
/// To be called first of all. A second call finds nothing.
///
/// # Errors
/// The variables contradict each other, or the process has threads already.
pub fn passed() -> std::io::Result<Vec<(OwnedFd, String)>> {
    // They may be for the process that started us, as in `sh -c "lbd & wait"` (sd_listen_fds(3)).
    let for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if !for_us || std::env::var_os("LISTEN_FDS").is_none() {
        return Ok(Vec::new());
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(std::io::Error::other(
            "descriptors that systemd passes are to be taken before a thread is started",
        ));
    }
    // SAFETY: there is but this thread, as was seen; nobody else reads the environment.
    let all = unsafe { sd_notify::listen_fds_with_names_and_unset_env() }?;
    // SAFETY: systemd opened them for this process (LISTEN_PID was checked), and nobody else knows of them.
    Ok(all.map(|(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name)).collect())
}

/// Under which name the sockets of an address are stored. A hint for people: what a socket is, it says itself.
pub fn store_name(address: &Address) -> String {
    let mut name = String::from(OURS);
    for byte in address.to_string().bytes() {
        match byte {
            b':' => name.push('_'), // FDNAME= must not have one
            b'_' | b'%' | 0..=b' ' | 0x7f.. => _ = write!(name, "%{byte:02x}"),
            byte => name.push(char::from(byte)),
        }
    }
    if name.len() > LONGEST {
        // The socket itself says what it is; the name must only be another for another address.
        let rest = fnv(name.split_off(LONGEST - 17).as_bytes());
        _ = write!(name, "~{rest:016x}");
    }
    name
}

/// FNV-1a: the same in every version of this program, which a successor relies on.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// True of a name that [`store_name`] may have made.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

/// A line break would begin another assignment: a file name could say MAINPID=1.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\0'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    /// Set for the copy of this test program that plays the daemon: sd_notify reads the environment, and
    /// setting that of a process with threads is unsafe.
    const PLAY: &str = "LBD_TEST_SYSTEMD";

    /// Runs `test` again in a process of its own, where it comes here to `play`; here, what systemd then received.
    fn heard(test: &str, variables: &[(&str, &str)], play: fn(&Notifier)) -> Option<Vec<String>> {
        if std::env::var_os(PLAY).is_some() {
            play(&Notifier::new());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("daemon::systemd::tests::{test}")])
            .env(PLAY, "1")
            .env("NOTIFY_SOCKET", &path)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains("1 passed"), "{report}");
        systemd.set_nonblocking(true).unwrap();
        let mut room = [0; 1024];
        let message = || systemd.recv(&mut room).ok().map(|n| String::from_utf8_lossy(&room[..n]).into());
        Some(std::iter::from_fn(message).collect())
    }

    #[test]
    fn systemd_hears_each_state() {
        let said = heard("systemd_hears_each_state", &[], |systemd| {
            systemd.ready("3 listeners");
            systemd.status("generation 2");
            systemd.reloading();
            systemd.stopping("12 sessions left");
            systemd.extend_timeout(Duration::from_secs(3));
            systemd.extend_timeout(Duration::MAX);
            systemd.watchdog();
        });
        let Some(said) = said else { return };
        let (reloading, others): (Vec<_>, Vec<_>) = said.iter().partition(|m| m.starts_with("RELOADING"));
        assert_eq!(
            others,
            [
                "READY=1\nSTATUS=3 listeners\n",
                "STATUS=generation 2\n",
                "STOPPING=1\nSTATUS=12 sessions left\n",
                "EXTEND_TIMEOUT_USEC=3000000\n",
                "EXTEND_TIMEOUT_USEC=4294967295\n",
                "WATCHDOG=1\n",
            ]
        );
        let when = reloading[0].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::trim_end);
        assert!(when.is_some_and(|usec| usec.parse::<u64>().is_ok_and(|usec| usec > 0)), "{reloading:?}");
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_assignment() {
        let said = heard("a_status_cannot_smuggle_in_another_assignment", &[], |systemd| {
            systemd.status("a\nMAINPID=1\r\nREADY=1");
        });
        let Some(said) = said else { return };
        assert_eq!(said, ["STATUS=a MAINPID=1  READY=1\n"]);
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_asked() {
        heard("the_watchdog_is_fed_twice_as_often_as_asked", &[("WATCHDOG_USEC", "4000000")], |systemd| {
            assert_eq!(systemd.watchdog_interval(), Some(Duration::from_secs(2)));
        });
    }

    #[test]
    fn what_is_passed_to_another_process_is_left_alone() {
        let of_another = [("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "web")];
        heard("what_is_passed_to_another_process_is_left_alone", &of_another, |_| {
            assert!(passed().unwrap().is_empty());
        });
    }

    #[test]
    fn names_in_the_store_are_such_as_systemd_takes_and_tell_addresses_apart() {
        for (address, name) in [
            ("127.0.0.1:80", "lbd/127.0.0.1_80"),
            ("[::1]:8080", "lbd/[__1]_8080"),
            ("unix:/run/lbd/a_b.sock", "lbd/unix_/run/lbd/a%5fb.sock"),
            ("unix:/run/ü:x", "lbd/unix_/run/%c3%bc_x"),
        ] {
            assert_eq!(store_name(&address.parse().unwrap()), name);
            assert!(is_ours(name));
        }
        for of_a_unit in ["lbd.socket", "lbd-web.socket", "lbd"] {
            assert!(!is_ours(of_a_unit));
        }
        let long = |last: char| store_name(&format!("unix:/{}{last}", "_".repeat(105)).parse().unwrap());
        assert_eq!((long('a').len(), long('b').len()), (255, 255));
        assert!(long('a') != long('b') && is_ours(&long('a')));
    }

    #[test]
    fn a_deaf_systemd_harms_nothing() {
        heard("a_deaf_systemd_harms_nothing", &[("NOTIFY_SOCKET", "/nowhere/notify")], |systemd| {
            systemd.ready("up");
            systemd.watchdog();
            assert!(systemd.complained.load(Ordering::Relaxed));
        });
    }
}
