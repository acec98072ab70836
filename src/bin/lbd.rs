//! The daemon's command line: arguments, the file, logging, then [`lbd::daemon::run`]. Decides the exit
//! code: 0 stopped as asked, 1 could not start or broke, 2 usage, 78 the configuration is wrong.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use lbd::config::{Config, LogLevel, Problem, placed, render, render_warnings};
use lbd::control::Place;
use lbd::daemon::demo::{self, Tools};
use lbd::daemon::effects::Source;
use lbd::daemon::event::FileRead;
use lbd::daemon::files::{First, MOST_READ, read_at_start, read_file};
use lbd::daemon::logging::{self, Logging};
use lbd::daemon::{self, Start, machine, systemd, upgrade};
use lbd::words::Address;

/// EX_CONFIG of sysexits.h; the unit does not restart after it.
const WRONG_CONFIGURATION: u8 = 78;
/// Backends of the demo.
const BACKENDS: usize = 3;

/// Balances TCP; driven by lbctl.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration file; with --check, - is standard input
    #[arg(long, value_name = "FILE", default_value = "/etc/lbd/lbd.yaml")]
    config: PathBuf,
    /// Check the file, print every problem and warning, and exit: 0 right, 78 wrong
    #[arg(long, conflicts_with_all = ["demo", "control"])]
    check: bool,
    /// Show lbd at work: three echo backends and a listener on 127.0.0.1:8080; needs no file
    #[arg(long, conflicts_with = "config")]
    demo: bool,
    /// The control socket; wins over the file's [default: /run/lbd/control.sock for root and the service,
    /// else lbd/control.sock in the user's runtime folder]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Whether this program can take over from one that runs; for lbd itself, which asks it
    #[arg(long, hide = true, exclusive = true)]
    handover_check: bool,
    /// Print a completion script for a shell, and exit
    #[arg(long, value_name = "SHELL", exclusive = true)]
    completions: Option<Shell>,
}

const EXAMPLES: &str = "\
Examples:
  lbd --demo                          try it, without a file
  lbd --check --config lbd.yaml       is the file right?
  generate | lbd --check --config -   is it, before it is a file?
  lbd --config lbd.yaml               run

Signals: SIGHUP reloads; SIGTERM and SIGINT let sessions finish, then stop; a second one stops at once.
Exit codes: 0 stopped as asked, 1 could not start or broke, 2 usage, 78 the configuration is wrong.";

fn main() -> ExitCode {
    // First: from here on nothing goes wrong without a way back.
    let called = match upgrade::called() {
        Ok(called) => called,
        Err(why) => {
            eprintln!("lbd: {why}");
            return ExitCode::FAILURE;
        }
    };
    upgrade::take_name(c"lbd");
    // Then: they are no other's descriptors yet. Who takes over has them already.
    let passed = if called.is_none() { systemd::passed() } else { Ok(Vec::new()) };
    let arguments = Arguments::parse_from(upgrade::arguments());
    if let Some(shell) = arguments.completions {
        return complete(shell);
    }
    if arguments.demo {
        return with_logging(LogLevel::Warn, |logging| show(&arguments, logging));
    }
    if arguments.handover_check {
        return upgrade::say();
    }
    if let Some(called) = called {
        return take_over(&arguments, called);
    }
    let is_input = arguments.config.as_os_str() == "-";
    if arguments.check {
        return check(&arguments, is_input);
    }
    if is_input {
        let message = "--config - is for --check alone: a running lbd reads its file again at each reload; name a file";
        Arguments::command().error(clap::error::ErrorKind::ValueValidation, message).exit();
    }
    let First { config, content, refused, kept } = match read_at_start(&arguments.config) {
        Ok(first) => first,
        Err((read, content)) => return refuse(&arguments, read, &content),
    };
    with_logging(config.log.level, |logging| {
        let passed = passed.map_err(|e| format!("what systemd passes cannot be taken: {e}"))?;
        let (source, control) = (Source::File(absolute(&arguments.config)), arguments.control.map(Place::named));
        let start = Start { config, content, refused, kept, source, control, passed, heritage: None };
        daemon::run(start, logging, |_| ())
    })
}

fn check(arguments: &Arguments, is_input: bool) -> ExitCode {
    let (read, content) = if is_input { read_input() } else { read_file(&arguments.config) };
    let FileRead::Right(config, _) = read else { return refuse(arguments, read, &content) };
    let (listeners, pools) = (config.listeners.len(), config.pools.len());
    let backends: usize = config.pools.values().map(|pool| pool.backends.len()).sum();
    let name = if is_input { INPUT.to_owned() } else { arguments.config.display().to_string() };
    let warnings = placed(machine::look(&config), &content);
    let warned = if warnings.is_empty() { String::new() } else { format!(", warnings: {}", warnings.len()) };
    // A reader that has gone wants no answer.
    let _ = write!(std::io::stderr(), "{}", all_warnings(&name, &warnings, &content));
    let said = format!("{name} is right; listeners: {listeners}, pools: {pools}, backends: {backends}{warned}");
    let _ = writeln!(std::io::stdout(), "{said}");
    ExitCode::SUCCESS
}

fn refuse(arguments: &Arguments, read: FileRead, content: &[u8]) -> ExitCode {
    match read {
        FileRead::Right(..) => ExitCode::SUCCESS,
        FileRead::Unreadable(why) => wrong(arguments, &why),
        FileRead::Wrong(name, problems) => wrong(arguments, &all_of(&name, &problems, content)),
    }
}

/// Goes on where another program was, in whose place this one was executed.
fn take_over(arguments: &Arguments, called: upgrade::Called) -> ExitCode {
    let taken = upgrade::read(called).and_then(|heritage| match Config::parse(&heritage.in_force) {
        Ok(config) => Ok((heritage, config)),
        Err(problems) => {
            let all: Vec<String> = problems.iter().map(|problem| problem.one_line("lbd.yaml")).collect();
            Err(upgrade::or_back(format!("it refuses the configuration in force: {}", all.join("; "))))
        }
    });
    let (heritage, config) = match taken {
        Ok(taken) => taken,
        Err(why) => {
            eprintln!("lbd: {why}");
            return ExitCode::FAILURE;
        }
    };
    with_logging(config.log.level, |logging| {
        let (content, source) = (heritage.in_force.clone(), Source::File(absolute(&arguments.config)));
        let start = Start {
            config,
            content,
            refused: None,
            kept: None,
            source,
            control: None,
            passed: Vec::new(),
            heritage: Some(heritage),
        };
        daemon::run(start, logging, |_| ())
    })
}

fn complete(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "lbd", &mut script);
    let _ = std::io::stdout().write_all(&script); // a reader that has gone wants no script
    ExitCode::SUCCESS
}

/// Runs what logs, and has its last error written whatever happens.
fn with_logging(level: LogLevel, run: impl FnOnce(&Logging) -> Result<(), daemon::Broken>) -> ExitCode {
    let start = || upgrade::log_fails().map_or_else(|| logging::start(level), Err);
    let logging = match upgrade::persist(upgrade::LONG, start) {
        Ok(logging) => logging,
        Err(e) => {
            // Before `run` is dropped, with all that it was left. (While another thread of this process goes back, no thread can be begun.)
            eprintln!("lbd: {}", upgrade::or_back(format!("the log cannot start: {e}")));
            return ExitCode::FAILURE;
        }
    };
    match run(&logging) {
        Ok(()) => {
            logging.flush_within(Duration::from_millis(500));
            ExitCode::SUCCESS
        }
        Err(why) => {
            logging.last_words(&why);
            ExitCode::FAILURE
        }
    }
}

fn show(arguments: &Arguments, logging: &Logging) -> Result<(), daemon::Broken> {
    let uid = nix::unistd::geteuid().as_raw();
    let usual = Place::of_user(uid, std::env::var_os("XDG_RUNTIME_DIR").as_deref());
    let backends = demo::echo_backends(BACKENDS).map_err(|e| format!("the echo backends cannot start: {e}"))?;
    let config = demo::configuration(&backends).map_err(|_| "the demo's own configuration is wrong".to_owned())?;
    let place = arguments.control.as_ref().map_or_else(|| usual.clone(), Place::named);
    let start = Start {
        config,
        content: Vec::new(),
        refused: None,
        kept: None,
        source: Source::Demo,
        control: Some(place),
        passed: Vec::new(),
        heritage: None,
    };
    daemon::run(start, logging, |ready| {
        // lbctl asks there first: a line to copy must never reach another lbd.
        let elsewhere = std::env::var_os("LBD_SOCKET").is_some() || Place::system().path.exists();
        let socket = (elsewhere || ready.control != usual.path).then_some(ready.control);
        let listener = ready.listening.values().find_map(|address| match address {
            Address::Ip(ip) => Some(*ip),
            Address::Unix(_) => None,
        });
        if let Some(listener) = listener {
            let text = demo::what_to_try(listener, BACKENDS, socket, &Tools::find());
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    })
}

/// The working directory may be another one when the file is read again.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn wrong(arguments: &Arguments, why: &str) -> ExitCode {
    // A person gets it as it is, with its colours; who reads the log later, as a record of it.
    if arguments.check || std::io::stderr().is_terminal() {
        eprintln!("{}", why.trim_end());
        return ExitCode::from(WRONG_CONFIGURATION);
    }
    let _ = with_logging(LogLevel::Info, |_| Err(why.trim_end().to_owned()));
    ExitCode::from(WRONG_CONFIGURATION)
}

/// What is checked by `--config -`, as messages name it.
const INPUT: &str = "<stdin>";

fn read_input() -> (FileRead, Vec<u8>) {
    let mut content = Vec::new();
    let read = match std::io::stdin().take(MOST_READ).read_to_end(&mut content) {
        Err(e) => FileRead::Unreadable(format!("{INPUT}: {e}")),
        Ok(_) => match Config::parse(&content) {
            Ok(config) => FileRead::Right(Box::new(config), Vec::new()),
            Err(problems) => FileRead::Wrong(INPUT.into(), problems),
        },
    };
    (read, content)
}

/// As [`all_of`], of what is only to be looked at.
fn all_warnings(name: &str, warnings: &[Problem], content: &[u8]) -> String {
    if std::io::stderr().is_terminal() && !warnings.is_empty() {
        return render_warnings(warnings, name, content, std::env::var_os("NO_COLOR").is_none()) + "\n";
    }
    warnings.iter().map(|warning| warning.one_line_of_warning(name) + "\n").collect()
}

/// With the lines they are in for a person, one a line for a program.
fn all_of(name: &str, problems: &[Problem], content: &[u8]) -> String {
    if std::io::stderr().is_terminal() {
        return render(problems, name, content, std::env::var_os("NO_COLOR").is_none());
    }
    problems.iter().map(|problem| problem.one_line(name) + "\n").collect()
}
