//! Who is compared: the program, where it comes from, and its configuration file with what this run fills in.

use std::env;
use std::fs;
use std::io::{self, Error};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;

/// A proxy.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: &'static str,
    /// What it said of its version.
    pub version: String,
    pub program: PathBuf,
    pub arguments: &'static [&'static str],
    pub template: &'static str,
    /// Placeholders that are this peer's own.
    pub own: &'static [(&'static str, &'static str)],
    /// Measured where much is moved; elsewhere it is the same program as another.
    pub only_bulk: bool,
}

const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub fn lbd(program: &Path) -> io::Result<Peer> {
    let template = include_str!("peers/lbd.yaml");
    let arguments = &["--config", "@file@"];
    let version = version(program, "--version")?;
    Ok(Peer { name: "lbd", version, program: program.into(), arguments, template, own: &[], only_bulk: false })
}

/// Those of the others that are here or could be installed, and for each that is not, why.
pub fn others() -> (Vec<Peer>, Vec<String>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    let haproxy = find("haproxy", &["haproxy"], || true)
        .and_then(|program| Ok((version(&program, "-v")?, program)))
        .map_err(|error| missing.push(error.to_string()));
    if let Ok((version, program)) = haproxy {
        let plain = Peer {
            name: "haproxy",
            version,
            program,
            arguments: &["-db", "-f", "@file@"],
            template: include_str!("peers/haproxy.cfg"),
            own: &[("splice", "no option splice-auto")],
            only_bulk: false,
        };
        let splice =
            Peer { name: "haproxy-splice", own: &[("splice", "option splice-auto")], only_bulk: true, ..plain.clone() };
        found.extend([plain, splice]);
    }
    let nginx = find("nginx", &["nginx", "libnginx-mod-stream"], has_stream)
        .and_then(|program| Ok((version(&program, "-v")?, program)))
        .map_err(|error| missing.push(error.to_string()));
    if let Ok((version, program)) = nginx {
        let module: &[_] = if Path::new(NGINX_STREAM).exists() {
            &[("load_module", "load_module /usr/lib/nginx/modules/ngx_stream_module.so;")]
        } else {
            &[("load_module", "")]
        };
        let arguments = &["-e", "stderr", "-p", "@dir@", "-c", "@file@"];
        let template = include_str!("peers/nginx.conf");
        found.push(Peer { name: "nginx", version, program, arguments, template, own: module, only_bulk: false });
    }
    (found, missing)
}

/// As a module of its own, or built in.
fn has_stream() -> bool {
    let built_in = || {
        let program = on_path("nginx")?;
        let output = Command::new(program).arg("-V").output().ok()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Some(said.split_whitespace().any(|word| word == "--with-stream"))
    };
    Path::new(NGINX_STREAM).exists() || built_in().unwrap_or(false)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn find(name: &str, packages: &[&str], whole: impl Fn() -> bool) -> io::Result<PathBuf> {
    if let Some(program) = on_path(name).filter(|_| whole()) {
        return Ok(program);
    }
    let wanted = packages.join(" ");
    if !geteuid().is_root() {
        return Err(Error::other(format!("{name} is left out: not all of it is installed; apt-get install {wanted}")));
    }
    eprintln!("installing {wanted}");
    let apt = |arguments: &[&str]| {
        // RUNLEVEL keeps the packages from starting their services where there is no systemd.
        let environment = [("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")];
        let done = Command::new("apt-get").args(arguments).envs(environment).stdin(Stdio::null()).output();
        done.map(|output| (output.status.success(), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    };
    let install: Vec<&str> = [&["install", "-qqy", "--no-install-recommends"], packages].concat();
    let (mut done, mut said) = apt(&install)?;
    if !done {
        apt(&["update", "-qq"])?;
        (done, said) = apt(&install)?;
    }
    match on_path(name).filter(|_| done && whole()) {
        Some(program) => Ok(program),
        None => Err(Error::other(format!("{name} is left out: apt-get install {wanted} did not bring it: {said}"))),
    }
}

fn version(program: &Path, flag: &str) -> io::Result<String> {
    let output = Command::new(program).arg(flag).output();
    let output = output.map_err(|error| Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // "HAProxy version 2.6.12-1 2026/10/17 - https://…", "nginx version: nginx/1.22.1", "lbd 0.1.0"
    let number = said.split([' ', '/', '\n']).find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(number.unwrap_or("of unknown version").to_owned())
}

/// A template with its placeholders (`@name@`) filled in. An error names one that has no value.
pub fn fill(template: &str, values: &[(String, String)]) -> io::Result<String> {
    let mut filled = String::new();
    let mut parts = template.split('@');
    filled.push_str(parts.next().unwrap_or_default());
    while let (Some(name), text) = (parts.next(), parts.next()) {
        let value = values.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        filled.push_str(value.ok_or_else(|| Error::other(format!("nothing fills @{name}@")))?);
        filled.push_str(text.unwrap_or_default());
    }
    Ok(filled)
}

/// Writes a peer's file into its folder, and gives its arguments.
pub fn prepare(peer: &Peer, dir: &Path, mut values: Vec<(String, String)>) -> io::Result<Vec<String>> {
    let file = dir.join(format!("{}.conf", peer.name));
    values.push(("dir".into(), dir.display().to_string()));
    values.push(("file".into(), file.display().to_string()));
    values.extend(peer.own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let text = fill(peer.template, &values).map_err(|error| Error::other(format!("{}: {error}", peer.name)))?;
    fs::write(&file, text)?;
    peer.arguments.iter().map(|argument| fill(argument, &values)).collect()
}
