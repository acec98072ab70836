//! `lbtest`: stand-in servers and verifying clients for testing a TCP load balancer. It imports nothing of lbd, so that a
//! mistake of the one is not repeated by the other. This file: arguments → one command → output → exit status.

mod cli;
mod crowd;
mod exchange;
mod fault;
mod interrupt;
mod pace;
mod payload;
mod progress;
mod report;
mod servers;
mod single;
mod target;
mod temper;
mod verdict;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use cli::Command;
use crowd::{Connections, Plan, Until};

fn main() -> ExitCode {
    let command = Command::parse();
    allow_many_descriptors();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(run(command)));
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> io::Result<u8> {
    match command {
        Command::Servers(args) => {
            let last = u32::from(args.first_port) + u32::from(args.count) - 1;
            if args.first_port != 0 && last > u32::from(u16::MAX) {
                let message = format!("the last port would be {last}, above 65535; choose a lower FIRST_PORT");
                Command::command().error(clap::error::ErrorKind::ValueValidation, message).exit();
            }
            let plan = servers::Plan {
                count: args.count,
                ip: args.bind,
                first_port: args.first_port,
                mode: args.mode,
                delay: args.delay,
            };
            print(&servers::run(&plan).await?)?;
            Ok(0)
        }
        Command::Single(args) => {
            let answer = single::ask(args.common.target, args.text, args.common.timeout).await;
            print(&if args.common.json { answer.json() } else { answer.text() })?;
            Ok(answer.fault().map_or(0, |fault| {
                complain(&fault);
                1
            }))
        }
        Command::Multiple(args) => crowd(args.crowd, args.clients, Until::Requests(args.requests), None).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Command::command(), "lbtest", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(0)
        }
        Command::Load(args) => crowd(args.crowd, args.clients, Until::Elapsed(args.duration), args.rate).await,
    }
}

async fn crowd(args: cli::Crowd, clients: u32, until: Until, rate: Option<u64>) -> io::Result<u8> {
    let plan = Plan {
        target: args.common.target,
        clients,
        size: args.size,
        timeout: args.common.timeout,
        connections: if args.reconnect { Connections::New } else { Connections::Kept },
        until,
        rate,
    };
    let run = crowd::run(plan.clone()).await?;
    print(&if args.common.json { report::json(&plan, &run) } else { report::text(&plan, &run) })?;
    Ok(run.tally.verdict().exit())
}

/// Results go to stdout, whole or with an error; `print!` would panic at a closed pipe.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "lbtest: {message}"); // with stderr closed there is nobody left to tell
}

/// Raises the soft limit to the hard one. Where that is refused, the faults will say `no descriptors left`.
fn allow_many_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
