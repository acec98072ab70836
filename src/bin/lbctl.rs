//! `lbctl`: arguments → one request → print the answer → exit code. What the answers say and how they
//! look is the library's; which socket is asked is decided here.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use lbd::control::client::{ClientError, ask};
use lbd::control::{Earnest, LiveSessions, Place, Pools, Reply, Request, ShutdownMode, Target, Upgrade, Wait, socket};
use lbd::daemon::logging::is_stderr_the_journal;
use lbd::observe::{Colour, Paper, json};
use lbd::words::PoolName;

/// The longest a daemon may take for what it does at once.
const PROMPT: Duration = Duration::from_secs(30);

/// Talk to a running lbd
#[derive(Parser)]
#[command(name = "lbctl", version, after_long_help = AFTER_HELP, after_help = AFTER_HELP)]
struct Cli {
    /// The daemon's control socket
    ///
    /// Without it: LBD_SOCKET, then /run/lbd/control.sock, then lbd/control.sock in the user's runtime folder.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused; the reason is on stderr
  2  wrong usage
  3  no daemon at the socket
  4  timed out waiting

Examples:
  lbctl status
  lbctl stats web --watch
  lbctl drain web/backend-2 --wait --timeout 10s && systemctl restart backend-2
  lbctl enable web/backend-2
  lbctl upgrade --dry-run
  lbctl --json stats | jq '.pools[].backends[] | select(.state != \"up\") | .name'";

#[derive(Subcommand)]
enum Command {
    /// Read the configuration file again and apply it
    ///
    /// Returns when the new configuration is in force. A wrong file changes nothing: each of its problems is
    /// printed as FILE:LINE:COL: key: message, and the exit code is 1.
    Reload,

    /// Show the daemon at a glance: version, generation, uptime, last reload and its result
    Status,

    /// Show listeners, pools and backends with their counters
    Stats {
        /// Only this pool
        pool: Option<PoolName>,

        /// Repeat until Ctrl-C, each second or each INTERVAL
        #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
              value_parser = interval)]
        watch: Option<Duration>,
    },

    /// Let a backend finish its sessions, give it no new one and stop probing it
    ///
    /// Never cuts a session. It survives reloads and ends with `lbctl enable`, or by --for.
    Drain {
        #[command(flatten)]
        backend: BackendArgs,

        /// Return when the last session has ended
        #[arg(long)]
        wait: bool,

        /// Wait no longer than this; exit code 4 then, and the backend stays draining
        #[arg(long, value_name = "DURATION", requires = "wait", value_parser = duration)]
        timeout: Option<Duration>,

        #[command(flatten)]
        why: OverrideArgs,
    },

    /// Take a drain or disable back
    Enable {
        #[command(flatten)]
        backend: BackendArgs,
    },

    /// Give a backend no new session and stop probing it
    ///
    /// It survives reloads and ends with `lbctl enable`, or by --for.
    Disable {
        #[command(flatten)]
        backend: BackendArgs,

        /// Cut the sessions it has
        #[arg(long)]
        close: bool,

        #[command(flatten)]
        why: OverrideArgs,
    },

    /// Have another lbd take over in place: no session ends, no client is refused
    ///
    /// The program is tried first; one that is not fit is refused, with the reason, and nothing has changed. So it is where it
    /// fails while it takes over: the one that has served until then goes on.
    Upgrade {
        /// The program; only root and the user that lbd runs as may name one [default: where lbd was started from]
        program: Option<String>, // a path that is no text could not be told

        /// Only try the program, and say what would be carried over and what not
        #[arg(long)]
        dry_run: bool,
    },

    /// Stop the daemon when its sessions have ended, within its drain_timeout
    Shutdown {
        /// Cut all sessions and stop at once
        #[arg(long)]
        now: bool,
    },

    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args)]
struct BackendArgs {
    /// POOL/BACKEND, or a bare BACKEND where just one pool has that name
    #[arg(value_name = "BACKEND")]
    name: String,

    /// Take the backends of this name in all pools
    #[arg(long)]
    all_pools: bool,
}

#[derive(Args)]
struct OverrideArgs {
    /// End it by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    expires: Option<Duration>,

    /// Why, shown to whoever looks at the backend
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a duration such as 250ms, 10s or 5m".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if time < Duration::from_millis(100) => Err("write 100ms or more".to_owned()),
        time => Ok(time),
    }
}

/// What the arguments ask for.
enum Task {
    Ask(Request),
    Watch(Request, Duration),
    Complete(Shell),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| never_suggest_shutdown(error).exit());
    let tells_the_journal = matches!(cli.command, Command::Reload) && is_reload_of_unit();
    let (places, show) = (places(cli.socket), Show::new(cli.json));
    match task(cli.command) {
        Task::Complete(shell) => complete(shell),
        Task::Ask(request) => match ask_at(&places, &request).await {
            Ok(reply) if tells_the_journal => reply.exit_code().into(),
            Ok(reply) => show.once(&reply),
            Err(error) => failed(&error),
        },
        Task::Watch(request, interval) => tokio::select! {
            code = watch(&places, &request, interval, &show) => code,
            _ = tokio::signal::ctrl_c() => ExitCode::SUCCESS,
        },
    }
}

/// Who mistypes `show` must not be one key away from stopping the service.
fn never_suggest_shutdown(mut error: clap::Error) -> clap::Error {
    const SUGGESTED: ContextKind = ContextKind::SuggestedSubcommand;
    let is_safe = |command: &str| command != "shutdown";
    match error.remove(SUGGESTED) {
        Some(ContextValue::Strings(mut commands)) => {
            commands.retain(|command| is_safe(command));
            if !commands.is_empty() {
                error.insert(SUGGESTED, ContextValue::Strings(commands));
            }
        }
        Some(ContextValue::String(command)) if is_safe(&command) => {
            error.insert(SUGGESTED, ContextValue::String(command));
        }
        _ => {}
    }
    error
}

/// Whether systemd runs this for `systemctl reload`: then what comes of it is in the unit's journal already, told by the daemon.
fn is_reload_of_unit() -> bool {
    std::env::var_os("MAINPID").is_some() && is_stderr_the_journal()
}

fn task(command: Command) -> Task {
    Task::Ask(match command {
        Command::Reload => Request::Reload,
        Command::Status => Request::Status,
        Command::Stats { pool, watch: None } => Request::Stats { pool },
        Command::Stats { pool, watch: Some(interval) } => return Task::Watch(Request::Stats { pool }, interval),
        Command::Drain { backend, wait, timeout, why } => Request::Drain {
            target: target(&backend),
            wait: wait.then_some(Wait { timeout }),
            reason: why.reason,
            expires: why.expires,
        },
        Command::Enable { backend } => Request::Enable { target: target(&backend) },
        Command::Disable { backend, close, why } => Request::Disable {
            target: target(&backend),
            live: if close { LiveSessions::Close } else { LiveSessions::Keep },
            reason: why.reason,
            expires: why.expires,
        },
        Command::Upgrade { program, dry_run } => Request::Upgrade(Upgrade {
            // The daemon has a working directory of its own.
            program: program.map(|path| std::path::absolute(&path).unwrap_or_else(|_| path.into())),
            earnest: if dry_run { Earnest::Tried } else { Earnest::Done },
        }),
        Command::Shutdown { now } => {
            Request::Shutdown { mode: if now { ShutdownMode::Now } else { ShutdownMode::Graceful } }
        }
        Command::Completions { shell } => return Task::Complete(shell),
    })
}

/// The backend meant; what can be none ends the program as wrong usage.
fn target(args: &BackendArgs) -> Target {
    let pools = if args.all_pools { Pools::All } else { Pools::One };
    Target::parse(&args.name, pools)
        .unwrap_or_else(|error| Cli::command().error(clap::error::ErrorKind::ValueValidation, error).exit())
}

/// Where to ask, in order: one place where somebody named it.
fn places(named: Option<PathBuf>) -> Vec<Place> {
    let from_environment = || std::env::var_os("LBD_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
    match named.or_else(from_environment) {
        Some(path) => vec![Place::named(path)],
        None => {
            let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR");
            Place::searched(nix::unistd::geteuid().as_raw(), runtime_dir.as_deref().map(OsStr::new)).into()
        }
    }
}

/// Asks the first daemon that takes the request. Of several places without one, a closed door tells more than none.
async fn ask_at(places: &[Place], request: &Request) -> Result<Reply, ClientError> {
    let mut denied = None;
    let mut nobody = Vec::new();
    for place in places.iter().filter(|place| socket::is_trusted(place)) {
        match ask(&place.path, request, patience(request)).await {
            Err(error @ ClientError::Denied(_)) => denied = denied.or(Some(error)),
            Err(ClientError::NoDaemon(sockets)) => nobody.extend(sockets),
            answered => return answered,
        }
    }
    Err(denied.unwrap_or(ClientError::NoDaemon(nobody)))
}

/// How long an answer is waited for. A wait's own end is the daemon's to tell; ours only covers a daemon that is stuck.
fn patience(request: &Request) -> Option<Duration> {
    match request {
        Request::Drain { wait: Some(wait), .. } => wait.timeout.map(|time| time.saturating_add(PROMPT)),
        _ => Some(PROMPT),
    }
}

async fn watch(places: &[Place], request: &Request, interval: Duration, show: &Show) -> ExitCode {
    loop {
        let shown = match ask_at(places, request).await {
            Ok(reply) if reply.exit_code() == 0 => show.again(&reply),
            Ok(reply) => return show.once(&reply),
            Err(error) => return failed(&error),
        };
        if shown.is_err() {
            return ExitCode::SUCCESS;
        }
        tokio::time::sleep(interval).await;
    }
}

fn complete(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lbctl", &mut script);
    let _ = io::stdout().write_all(&script);
    ExitCode::SUCCESS
}

fn failed(error: &ClientError) -> ExitCode {
    complain(&format!("lbctl: {error}\n"));
    error.exit_code().into()
}

/// Where stderr is closed there is nobody left to tell.
fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// How answers are printed.
struct Show {
    json: bool,
    paper: Paper,
}

impl Show {
    fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let colour = match anstream::AutoStream::choice(&stdout) {
            anstream::ColorChoice::Never => Colour::Off,
            _ => Colour::On,
        };
        Self { json, paper: if stdout.is_terminal() { Paper::Terminal(colour) } else { Paper::Pipe } }
    }

    /// Prints an answer: results on stdout, the reason of what was refused or timed out on stderr. JSON holds both.
    fn once(&self, reply: &Reply) -> ExitCode {
        let code = reply.exit_code();
        let text = match self.json {
            true => json::pretty(reply) + "\n",
            false if code == 0 => reply.text(self.paper),
            false => String::new(),
        };
        if let Err(error) = print(&text) {
            complain(&format!("lbctl: stdout: {error}\n"));
            return 1.into();
        }
        if code != 0 {
            reply.problems().iter().for_each(|problem| complain(&format!("{problem}\n")));
            complain(&format!("lbctl: {}", reply.text(Paper::Pipe)));
        }
        code.into()
    }

    /// Prints one picture of several: over the last one on a terminal, else after it.
    fn again(&self, reply: &Reply) -> io::Result<()> {
        let clear = if self.paper == Paper::Pipe { "" } else { "\x1b[H\x1b[2J" };
        match self.json {
            true => print_all(&(json::compact(reply) + "\n")),
            false => print_all(&format!("{clear}{}\n", reply.text(self.paper))),
        }
    }
}

/// A reader that has seen enough (`| head -1`) is no error.
fn print(text: &str) -> io::Result<()> {
    match print_all(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}

fn print_all(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
