//! What `lbd --demo` brings along: echo backends, on a thread of their own so that their load is not the
//! supervisor's, the configuration that uses them, and a text that says what to try.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::config::{Config, Problem};

/// Where `lbtest` sends to unless told otherwise.
const LBTEST_TARGET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// The demo's configuration: a listener on 127.0.0.1:8080, or where that is taken on a free port, and a pool
/// of checked backends.
pub fn configuration(backends: &[SocketAddr]) -> Result<Config, Vec<Problem>> {
    let listener = match TcpListener::bind(LBTEST_TARGET) {
        Ok(_) => LBTEST_TARGET,
        Err(_) => SocketAddr::new(LBTEST_TARGET.ip(), 0),
    };
    let mut text =
        format!("listeners: {{ demo: {{ bind: \"{listener}\", pool: demo }} }}\npools:\n  demo:\n    backends:\n");
    for (number, address) in (1..).zip(backends) {
        text.push_str(&format!("      backend-{number}: \"{address}\"\n"));
    }
    text.push_str("    health_check: { interval: 2s, fast_interval: 500ms }\nlog: { level: warn }\n");
    Config::parse(text)
}

/// Starts `count` echo servers on free ports of 127.0.0.1. They run until the process ends.
///
/// # Errors
/// Where a socket or the thread is not to be had.
pub fn echo_backends(count: usize) -> io::Result<Vec<SocketAddr>> {
    let bind = |_| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    let listeners = (0..count).map(bind).collect::<io::Result<Vec<_>>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new().name("lbd-demo".into()).spawn(move || {
        runtime.block_on(async {
            for listener in listeners {
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    tokio::spawn(serve(listener));
                }
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(addresses)
}

async fn serve(listener: tokio::net::TcpListener) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(echo(client));
            }
            // Out of descriptors, which would fail again at once.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Sends back what comes, and the end of it too. A client that breaks off is no matter of ours.
async fn echo(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (mut read, mut write) = client.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// How the programs that come with lbd are called from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    lbctl: String,
    /// `None`: it is not installed; the daemon's package has none.
    lbtest: Option<String>,
}

impl Tools {
    /// Looks on PATH, then beside the running executable.
    pub fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
        let here = std::env::current_dir().ok();
        Self::among(&folders, beside.as_deref(), here.as_deref())
    }

    fn among(path: &[PathBuf], beside: Option<&Path>, here: Option<&Path>) -> Self {
        let call = |name: &str| {
            if path.iter().any(|folder| folder.join(name).is_file()) {
                return Some(name.into());
            }
            let program = beside?.join(name);
            let below = here.and_then(|here| program.strip_prefix(here).ok());
            let call = below.map_or_else(|| quoted(&program), |below| quoted(&Path::new(".").join(below)));
            program.is_file().then_some(call)
        };
        Self { lbctl: call("lbctl").unwrap_or_else(|| "lbctl".into()), lbtest: call("lbtest") }
    }
}

/// What `lbd --demo` prints: where it listens and what to try. `socket` is given where lbctl would not find it.
pub fn what_to_try(listener: SocketAddr, backends: usize, socket: Option<&Path>, tools: &Tools) -> String {
    let lbctl = match socket {
        Some(socket) => format!("{} --socket {}", tools.lbctl, quoted(socket)),
        None => tools.lbctl.clone(),
    };
    let target = if listener == LBTEST_TARGET { String::new() } else { format!(" --target {listener}") };
    let mut lines = Vec::new();
    if let Some(lbtest) = &tools.lbtest {
        lines.push((format!("{lbtest} single \"Hello World\"{target}"), "one request, echoed by a backend"));
        lines.push((format!("{lbtest} load 5 64{target}"), "5 seconds of load by 64 clients, every byte verified"));
    } else {
        let (ip, port) = (listener.ip(), listener.port());
        lines.push((format!("echo \"Hello World\" | nc -N {ip} {port}"), "one request, echoed by a backend"));
    }
    lines.push((format!("{lbctl} stats"), "who served how much"));
    lines.push((format!("{lbctl} drain backend-2 --wait"), "no new session for it; returns when its last has ended"));
    lines.push((format!("{lbctl} enable backend-2"), "and back into service"));

    let width = lines.iter().map(|(command, _)| command.chars().count()).max().unwrap_or(0);
    let lines: String = lines.iter().map(|(command, what)| format!("  {command:width$}   {what}\n")).collect();
    format!(
        "lbd listens on {listener} and balances over {backends} echo backends of its own.\n\
         \nTry in another terminal:\n\n{lines}\nCtrl-C drains and stops; a second one stops at once.\n"
    )
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn each_backend_echoes_all_of_it_and_its_end() {
        let addresses = echo_backends(3).unwrap();
        assert_eq!(addresses.len(), 3);
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        for address in addresses {
            let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
            let mut echoed = Vec::new();
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let all = async { tokio::join!(send, read.read_to_end(&mut echoed)) };
            tokio::time::timeout(Duration::from_secs(20), all).await.unwrap().1.unwrap();
            assert!(echoed == sent);
        }
    }

    #[test]
    fn the_text_says_what_to_type() {
        let installed = Tools { lbctl: "lbctl".into(), lbtest: Some("lbtest".into()) };
        let text = what_to_try(LBTEST_TARGET, 3, None, &installed);
        assert_eq!(
            text,
            r#"lbd listens on 127.0.0.1:8080 and balances over 3 echo backends of its own.

Try in another terminal:

  lbtest single "Hello World"    one request, echoed by a backend
  lbtest load 5 64               5 seconds of load by 64 clients, every byte verified
  lbctl stats                    who served how much
  lbctl drain backend-2 --wait   no new session for it; returns when its last has ended
  lbctl enable backend-2         and back into service

Ctrl-C drains and stops; a second one stops at once.
"#
        );
    }

    #[test]
    fn the_commands_fit_where_the_demo_runs() {
        let built = Tools { lbctl: "./target/release/lbctl".into(), lbtest: None };
        let listener = "127.0.0.1:18080".parse().unwrap();
        let text = what_to_try(listener, 3, Some("/tmp/a b.sock".as_ref()), &built);
        assert!(text.contains("  ./target/release/lbctl --socket '/tmp/a b.sock' stats "), "{text}");
        assert!(text.contains("  echo \"Hello World\" | nc -N 127.0.0.1 18080 "), "{text}");

        let built = Tools { lbtest: Some("./lbtest".into()), ..built };
        let text = what_to_try(listener, 3, None, &built);
        assert!(text.contains("./lbtest load 5 64 --target 127.0.0.1:18080 "), "{text}");
    }

    #[test]
    fn a_program_is_called_by_its_name_on_the_path_else_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let (bin, built) = (folder.path().join("bin"), folder.path().join("tree/target/release"));
        for (place, name) in [(&bin, "lbctl"), (&built, "lbctl"), (&built, "lbtest")] {
            std::fs::create_dir_all(place).unwrap();
            std::fs::write(place.join(name), "").unwrap();
        }
        let found = |path: &[PathBuf], beside: &Path, here: &Path| {
            let tools = Tools::among(path, Some(beside), Some(here));
            (tools.lbctl, tools.lbtest)
        };
        let tree = folder.path().join("tree");
        let path = [bin.clone()];
        assert_eq!(found(&path, &built, &tree), ("lbctl".into(), Some("./target/release/lbtest".into())));
        assert_eq!(found(&[], &built, &tree).0, "./target/release/lbctl");
        assert_eq!(found(&[], &built, &bin).0, built.join("lbctl").display().to_string());
        assert_eq!(found(&[], &folder.path().join("none"), &tree), ("lbctl".into(), None));
    }
}
