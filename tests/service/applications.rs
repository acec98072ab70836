//! A database and a shell behind lbd while its package is upgraded: what their users see. At full size only, and where these
//! programs are installed (Debian: postgresql, openssh-server).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::client::until;
use crate::machine::{Machine, Package, text};
use crate::skip::skipped;
use crate::trial::ASKED;

const BEHIND: &str = "listeners:
  db: { bind: 127.0.0.1:5432, pool: db }
  shell: { bind: 127.0.0.1:22, pool: shell }
pools:
  db: { backends: { postgres: 127.0.0.1:5433 } }
  shell: { backends: { sshd: 127.0.0.1:2222 } }
";

/// Seconds that pgbench works.
const SECONDS: &str = "16";
/// Lines that the shell writes, ten a second.
const LINES: usize = 160;

/// The folder of postgres' programs, of the newest version.
fn postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    versions.filter(|folder| folder.join("initdb").exists()).max()
}

/// A server of this machine in that one's network; it ends with the test.
struct Server(Child);

impl Server {
    fn start(machine: &Machine, program: &str, args: &[&str], port: u16) -> Self {
        let mut command = machine.in_network(program, args);
        let server = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        machine.inside(|| until("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok()));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0.id() as i32), nix::sys::signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Clients of the database so far.
fn connections(machine: &Machine) -> u64 {
    let stats: serde_json::Value = serde_json::from_str(&machine.done(&["lbctl", "--json", "stats"])).unwrap();
    let listeners = stats["listeners"].as_array().unwrap();
    listeners.iter().find(|listener| listener["name"] == "db").unwrap()["connections_total"].as_u64().unwrap()
}

fn succeeds(command: &mut Command) {
    let ran = command.stdin(Stdio::null()).output().unwrap();
    assert!(ran.status.success(), "{command:?}: {ran:?}");
}

fn key(file: &Path) {
    succeeds(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file));
}

#[test]
fn neither_pgbench_nor_ssh_notices_that_the_package_is_upgraded() {
    if !ASKED.is_some_and(|trial| trial.alone) {
        return skipped("a database and a shell behind lbd belong to LBD_TRIAL=full");
    }
    let (Some(postgres), true) = (postgres(), Path::new("/usr/sbin/sshd").exists()) else {
        return skipped("there is no postgresql or no openssh-server here");
    };
    let Some(machine) = Machine::serving() else { return };
    machine.configure(BEHIND);
    machine.done(&["lbctl", "reload"]);
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let program = |name: &str| postgres.join(name).to_str().unwrap().to_owned();

    fs::create_dir(at("pg")).unwrap();
    succeeds(Command::new("chown").args(["postgres", &at("pg")]));
    let as_postgres = ["-u", "postgres", "--"];
    succeeds(Command::new("runuser").args(as_postgres).args([&program("initdb"), "-A", "trust", "-D", &at("pg/data")]));
    let (server, data, sockets) = (program("postgres"), at("pg/data"), at("pg"));
    let args = [&as_postgres[..], &[&server, "-D", &data, "-k", &sockets, "-p", "5433"]].concat();
    let _database = Server::start(&machine, "runuser", &args, 5433);
    let bench = |args: &[&str]| {
        let common = ["-h", "127.0.0.1", "-p", "5432", "-U", "postgres"];
        machine.in_network("pgbench", &[&common, args, &["postgres"]].concat())
    };
    succeeds(&mut bench(&["-i", "-q"]));

    key(folder.path().join("host").as_path());
    key(folder.path().join("mine").as_path());
    fs::create_dir_all("/run/sshd").unwrap(); // sshd insists on it
    let (host, trusted) = (at("host"), format!("AuthorizedKeysFile={}", at("mine.pub")));
    let options = ["StrictModes=no", "UsePAM=no", "PidFile=none", "ListenAddress=127.0.0.1", &trusted];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option]).collect();
    let args = [&["-D", "-e", "-p", "2222", "-h", &host], &options[..]].concat();
    let _shell = Server::start(&machine, "/usr/sbin/sshd", &args, 2222);
    let script = format!("for n in $(seq {LINES}); do echo $n; sleep 0.1; done");
    let options = ["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"];
    let mut ssh = machine.in_network("ssh", &[&options[..], &[&at("mine"), "root@127.0.0.1", &script]].concat());
    let ssh = ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    let benches = [&["-n", "-c", "8", "-j", "2", "-T", SECONDS][..], &["-n", "-S", "-C", "-c", "2", "-T", SECONDS]];
    let benches = benches.map(|args| bench(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let pid = machine.property("MainPID");
    for package in [Package::New, Package::Old, Package::New] {
        // Each of the second pgbench's transactions is a connection.
        let before = connections(&machine);
        until("they have worked for a while", || (connections(&machine) >= before + 150).then_some(()));
        let said = machine.install(package);
        assert!(said.contains("upgraded in place"), "{said}");
    }
    for bench in benches {
        let ran = bench.wait_with_output().unwrap();
        let said = text(&ran);
        assert!(ran.status.success() && said.contains("failed transactions: 0 "), "{ran:?}");
    }
    let ran = ssh.wait_with_output().unwrap();
    let lines: Vec<String> = (1..=LINES).map(|n| n.to_string()).collect();
    assert!(ran.status.success() && text(&ran).lines().eq(lines.iter().map(String::as_str)), "{ran:?}");
    assert_eq!(machine.property("MainPID"), pid);
    assert_eq!(machine.property("NRestarts"), "0");
}
