//! What is said once a probe has connected: something is sent if asked, and the beginning of the answer compared if asked.
//! Also how a probe's end reads, which tells a backend's fault from our own, such as a lack of descriptors, of which a
//! backend must not turn down.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;

use super::socket;
use crate::words::CheckSpec;

/// Bytes of a wrong answer that a reason shows.
const SHOWN: usize = 64;

/// Why a probe did not succeed. Shown, it is the reason that `stats` and the log give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeError {
    /// The backend failed it.
    Failed(String),
    /// It could not be carried out, for want of something of our own: of what, and how to mend it. Says nothing of the backend.
    Unable(String),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => f.write_str(reason),
            Self::Unable(reason) => write!(f, "cannot probe: {reason}"),
        }
    }
}

impl std::error::Error for ProbeError {}

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// What is to be sent, and how much of it has been.
    opening: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

impl Exchange {
    /// One that begins with the header that the backend expects, and then with what the check sends.
    pub(super) fn new(header: Option<&[u8]>, spec: &CheckSpec) -> Self {
        let opening = [header.unwrap_or_default(), spec.send.as_deref().unwrap_or_default()].concat();
        Self { opening, sent: 0, answer: Vec::new() }
    }

    /// Goes on as far as it can be gone on now; `None`: there is more to come.
    pub(super) fn go_on(&mut self, fd: &OwnedFd, spec: &CheckSpec) -> Option<Result<(), ProbeError>> {
        while self.sent < self.opening.len() {
            match socket::write(fd, &self.opening[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => {}
                Err(e) => return Some(Err(failure("send: ", e))),
            }
        }
        let Some(expected) = &spec.expect else { return Some(Ok(())) };
        // A server may answer in pieces, or not at all.
        while self.answer.len() < expected.len() {
            let length = self.answer.len();
            self.answer.resize(expected.len(), 0);
            let read = socket::read(fd, &mut self.answer[length..]);
            self.answer.truncate(length + read.unwrap_or(0));
            let answer = quoted(&self.answer);
            let reason = match read {
                Ok(0) if length == 0 => format!("closed without an answer, expected {}", quoted(expected)),
                Ok(0) => format!("answered {answer} and closed, expected {}", quoted(expected)),
                Ok(_) if expected.starts_with(&self.answer) => continue,
                // What came along is read too: "-ERR loading" says more than "-".
                Ok(_) => format!("answered {answer}, expected {}", quoted(expected)),
                Err(Errno::EAGAIN) => return None,
                Err(Errno::EINTR) => continue,
                Err(e) => return Some(Err(failure("", e))),
            };
            return Some(Err(ProbeError::Failed(reason)));
        }
        Some(Ok(()))
    }

    /// How it reads that the time is up.
    pub(super) fn late(&self, spec: &CheckSpec) -> ProbeError {
        let allowed = spec.timeout;
        ProbeError::Failed(match &spec.expect {
            _ if self.sent < self.opening.len() => format!("send: no answer within {allowed:?}"),
            Some(expected) if !self.answer.is_empty() => {
                format!("answered {} within {allowed:?}, expected {}", quoted(&self.answer), quoted(expected))
            }
            _ => format!("no answer within {allowed:?}"),
        })
    }
}

/// How an error of the kernel reads: the backend's, unless we lack something: descriptors, memory, buffers, free local ports.
pub(super) fn failure(doing: &str, error: Errno) -> ProbeError {
    let mend = match error {
        Errno::EMFILE => "raise the limit of descriptors (LimitNOFILE= of the unit, ulimit -n)",
        Errno::ENFILE => "raise the sysctl fs.file-max",
        Errno::ENOSPC => "raise the sysctl fs.epoll.max_user_watches",
        Errno::ENOMEM | Errno::ENOBUFS => "the kernel has no memory for sockets",
        // connect(2) and ip(7): both may mean that every local port is taken.
        Errno::EADDRNOTAVAIL | Errno::EAGAIN => "no local port is free; widen the sysctl net.ipv4.ip_local_port_range",
        _ => return ProbeError::Failed(format!("{doing}{}", words(error))),
    };
    ProbeError::Unable(format!("{doing}{}: {mend}", words(error)))
}

/// "Connection refused (os error 111)" as "connection refused".
fn words(error: Errno) -> String {
    let text = io::Error::from(error).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

/// How it reads that a connect takes too long.
pub(super) fn no_connection(allowed: Duration) -> ProbeError {
    ProbeError::Failed(format!("connect: no answer within {allowed:?}"))
}

fn quoted(bytes: &[u8]) -> String {
    let more = if bytes.len() > SHOWN { "…" } else { "" };
    format!("\"{}{more}\"", bytes[..bytes.len().min(SHOWN)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_wants_are_not_held_against_a_backend_and_their_remedy_is_named() {
        for (errno, remedy) in [
            (Errno::EMFILE, Some("ulimit -n")),
            (Errno::ENFILE, Some("fs.file-max")),
            (Errno::ENOBUFS, Some("memory")),
            (Errno::ENOMEM, Some("memory")),
            (Errno::EADDRNOTAVAIL, Some("ip_local_port_range")),
            (Errno::EAGAIN, Some("ip_local_port_range")),
            (Errno::ENOSPC, Some("max_user_watches")),
            (Errno::ECONNREFUSED, None),
            (Errno::EHOSTUNREACH, None),
        ] {
            match (failure("connect: ", errno), remedy) {
                (ProbeError::Unable(why), Some(remedy)) => assert!(why.contains(remedy), "{why}"),
                (ProbeError::Failed(why), None) => assert!(why.starts_with("connect: "), "{why}"),
                (other, _) => panic!("{errno}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_reason_is_bounded_and_cannot_draw_on_a_terminal() {
        assert_eq!(quoted(b"\x1b[31m\xff\""), r#""\x1b[31m\xff\"""#);
        assert_eq!(quoted(&[b'x'; 65]), format!("\"{}…\"", "x".repeat(64)));
    }
}
