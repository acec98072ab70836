//! The arguments: ours, and those that `cargo test` and its harness pass to every test program.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub const NAME: &str = "chaos";

const HELP: &str = "\
The chaos load of lbd.

  --seconds N        how long it lasts (20)
  --seed N           repeats a run's choices; printed by each run
  --only KIND,KIND   these kinds of load alone
  --without KIND     all of the default but these
  --bin FOLDER       where lbd and lbctl are, instead of those of this build
";

/// What is asked.
pub enum Order {
    Run(Arguments),
    Print(String),
}

/// How to run.
pub struct Arguments {
    pub seed: u64,
    pub time: Duration,
    pub programs: Option<PathBuf>,
    only: Vec<String>,
    without: Vec<String>,
}

impl Arguments {
    /// Whether this kind takes part.
    pub fn includes(&self, kind: &str, by_default: bool) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == kind);
        if self.only.is_empty() { by_default && !named(&self.without) } else { named(&self.only) }
    }
}

/// Reads the arguments. Flags of the harness that change nothing here are accepted; a filter that does not name this test
/// runs nothing, as everywhere.
pub fn read(args: impl Iterator<Item = String>, kinds: &[&str]) -> Result<Order, String> {
    let mut arguments = Arguments {
        seed: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(1, |since| since.as_nanos() as u64 % 1_000_000),
        time: Duration::from_secs(20),
        programs: std::env::var_os("LBD_CHAOS_BIN").map(PathBuf::from),
        only: Vec::new(),
        without: Vec::new(),
    };
    let (mut filters, mut skipped, mut is_exact, mut is_listed, mut is_left_out) =
        (Vec::new(), Vec::new(), false, false, false);
    let mut args = args.flat_map(|arg| match arg.split_once('=') {
        Some((name, value)) if name.starts_with("--") => vec![name.to_owned(), value.to_owned()],
        _ => vec![arg],
    });
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(Order::Print(format!("{HELP}\nKinds: {}\n", kinds.join(", ")))),
            "--seconds" => {
                let seconds = value()?.parse().map_err(|e| format!("--seconds: {e}"))?;
                arguments.time = Duration::try_from_secs_f64(seconds).map_err(|e| format!("--seconds: {e}"))?;
            }
            "--seed" => arguments.seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
            "--only" => arguments.only = listed(&value()?, kinds)?,
            "--without" => arguments.without = listed(&value()?, kinds)?,
            "--bin" => arguments.programs = Some(value()?.into()),
            "--skip" => skipped.push(value()?),
            "--exact" => is_exact = true,
            "--list" => is_listed = true,
            "--ignored" | "--bench" => is_left_out = true,
            "--test-threads" | "--color" | "--format" | "--logfile" | "--shuffle-seed" | "-Z" => drop(value()?),
            _ if arg.starts_with('-') => {} // --quiet, --nocapture and their like
            _ => filters.push(arg),
        }
    }
    let named = |word: &String| if is_exact { NAME == word } else { NAME.contains(word.as_str()) };
    let is_asked = (filters.is_empty() || filters.iter().any(named)) && !skipped.iter().any(named) && !is_left_out;
    Ok(match (is_asked, is_listed) {
        (true, true) => Order::Print(format!("{NAME}: test\n")),
        (true, false) => Order::Run(arguments),
        (false, _) => Order::Print(String::new()),
    })
}

fn listed(names: &str, kinds: &[&str]) -> Result<Vec<String>, String> {
    let names: Vec<String> = names.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !kinds.contains(&name.as_str())) {
        Some(unknown) => Err(format!("there is no kind {unknown:?}; there are {}", kinds.join(", "))),
        None => Ok(names),
    }
}
