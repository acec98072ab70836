//! The command line: what may be said, in which units, and how it is explained. No command runs from here.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use clap::{Args, Parser};
use clap_complete::Shell;

use crate::target::Target;
use crate::temper::Mode;

/// Test servers and test clients for a TCP load balancer
///
/// The clients verify every byte of every answer and never try again: what fails, fails in the summary.
#[derive(Debug, Parser)]
#[command(name = "lbtest", version, after_help = EXAMPLES)]
pub enum Command {
    Servers(Servers),
    Single(Single),
    Multiple(Multiple),
    Load(Load),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

const EXAMPLES: &str = "\
Examples:
  lbtest servers 3 9001                         three echo servers on 127.0.0.1:9001 to 9003
  lbtest single \"Hello World\"                   one request to 127.0.0.1:8080
  lbtest multiple 1000 --requests 5             1,000 clients at once, 5 requests each
  lbtest load 10 64                             64 clients for 10 seconds, as fast as answers come
  lbtest load 10 64 --rate 5000 --reconnect     5,000 requests a second, each on its own connection

Exit status:
  0  all answers were right
  1  an answer was wrong, short or missing, or a server could not start
  2  usage
  130  ended by a second Ctrl-C";

/// Run stand-in servers until SIGINT or SIGTERM
///
/// Prints one line a server once all are bound, and what each has seen at the end. If one cannot be bound, none runs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lbtest servers 3 9001
  lbtest servers 1 9001 --mode slow --delay 250ms
  lbtest servers 2 0 --bind ::1 --mode http     free ports; see the lines printed")]
pub struct Servers {
    /// How many
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub count: u16,
    /// Port of the first, the others follow; 0 takes free ports
    pub first_port: u16,
    /// How they treat their clients
    #[arg(long, value_enum, default_value_t = Mode::Echo)]
    pub mode: Mode,
    /// Address they bind to
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind: IpAddr,
    /// How long `slow` waits before it echoes
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub delay: Duration,
}

/// What all three client commands take.
#[derive(Debug, Args)]
pub struct Common {
    /// Whom to connect to.
    #[arg(long, help = "HOST:PORT, [IPV6]:PORT or unix:PATH", default_value = "127.0.0.1:8080")]
    pub target: Target,
    /// Longest wait for the connection, for the whole answer, and for the close
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Send one request, print the answer and its time
///
/// The answer must be the text itself, and nothing after it. An answer that is not is printed all the same.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lbtest single \"Hello World\"
  lbtest single ping --target [::1]:9001 --timeout 250ms")]
pub struct Single {
    /// What to send
    #[arg(default_value = "Hello World", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub text: String,
    #[command(flatten)]
    pub common: Common,
}

/// What the two commands with many clients take.
#[derive(Debug, Args)]
pub struct Crowd {
    /// Payload of a request: bytes, or with KiB, MiB, GiB
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = size)]
    pub size: u64,
    /// A new connection for each request; without it a client keeps its connection
    #[arg(long)]
    pub reconnect: bool,
    #[command(flatten)]
    pub common: Common,
}

/// Many clients at once, each with a few requests
///
/// All clients connect first (unless --reconnect), then all begin at the same moment.
#[derive(Debug, Args)]
#[command(after_help = format!("{MEASURED}\n
Examples:
  lbtest multiple 1000
  lbtest multiple 20 --requests 3 --size 8MiB --timeout 30s"))]
pub struct Multiple {
    /// How many clients
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Requests of each client
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: u32,
    #[command(flatten)]
    pub crowd: Crowd,
}

/// Sustained load, with a line of progress each second
///
/// Without --rate each client sends its next request when it has the answer (a closed loop): a stall then delays few
/// requests, and the percentiles hide it. With --rate requests are due at fixed times, whether or not earlier ones have
/// been answered, and latencies count from then; so a stall shows in every request it delayed (no coordinated omission).
///
/// Ctrl-C ends it early with the summary so far; a second one ends it at once, without (exit status 130).
#[derive(Debug, Args)]
#[command(after_help = format!("{MEASURED}\n
Examples:
  lbtest load 10 64
  lbtest load 1m 200 --rate 2000 --target 127.0.0.1:9001
  lbtest load 10 50 --reconnect --json"))]
pub struct Load {
    /// How long: seconds, or a duration such as 10s or 2m
    #[arg(value_name = "SECONDS", value_parser = seconds)]
    pub duration: Duration,
    /// How many clients
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Requests a second of all clients together
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    #[command(flatten)]
    pub crowd: Crowd,
}

const MEASURED: &str = "\
A latency runs from the moment a request is due to the last byte of its answer; with --reconnect it includes the \
connect. A connection ends as a client's should: it shuts its direction, reads to the peer's end (extra bytes are a \
fault), closes.

Having shut first, a client leaves its port in TIME_WAIT, on loopback for a second, elsewhere for a minute: at most some \
28,000 connections in that time to one address. When no port is left, the summary says `no address left`.";

/// A duration such as `250ms` or `5s`, longer than nothing.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 250ms or 5s"))?;
    if parsed.is_zero() { Err("must be longer than nothing".into()) } else { Ok(parsed) }
}

/// A number of seconds, or a duration.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(number) => match Duration::try_from_secs_f64(number) {
            Ok(parsed) if !parsed.is_zero() => Ok(parsed),
            _ => Err("must be a number of seconds above 0".into()),
        },
        Err(_) => duration(text),
    }
}

/// A number of bytes above 0, with or without a binary unit.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}; write for example 64, 64KiB or 8MiB")),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(0) => Err("must be at least 1".into()),
        Some(bytes) => Ok(bytes),
        None => Err("no number of bytes; write for example 64, 64KiB or 8MiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Command::command().debug_assert();
    }

    #[test]
    fn sizes_are_bytes_or_binary_units() {
        for (text, bytes) in
            [("1", 1), ("64", 64), ("64B", 64), ("64KiB", 65_536), ("8 MiB", 8 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "0KiB", "-1", "64k", "64KB", "KiB", "1.5MiB", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_numbers_or_durations() {
        for (text, millis) in [("10", 10_000), ("0.5", 500), ("10s", 10_000), ("250ms", 250), ("1m", 60_000)] {
            assert_eq!(seconds(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "0", "0s", "-1", "-5s", "nan", "inf", "1e300", "soon"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(duration("5").is_err(), "without a unit");
    }
}
