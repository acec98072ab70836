//! What a configuration asks of this machine, looked at without changing anything: whether its addresses, groups and folders are
//! there, and who has its ports. `lbd --check` warns of it; a start and a reload find out by acting, and are refused.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Uid, User, access};

use super::event::FileRead;
use super::unix_listener::look_up_group;
use crate::config::{Config, Warning, placed};
use crate::words::Address;

/// Everything that the machine lacks or has otherwise, for `lbd --check`. Asks file systems and name services.
pub fn look(config: &Config) -> Vec<Warning> {
    let listening = Listening::read();
    let mut warnings = config.warnings();
    warnings.extend(hints(config));
    for (name, listener) in &config.listeners {
        for address in &listener.bind {
            let missing = match address {
                Address::Ip(ip) => no_address(*ip).or_else(|| listening.by_another(*ip)),
                Address::Unix(path) => no_place(path),
            };
            warnings.extend(
                missing.map(|why| Warning::at_bind(name.as_str(), listener, address, format!("{address} {why}"))),
            );
        }
    }
    warnings.extend(no_group(config));
    if let Some(socket) = &config.control.socket
        && let Some(folder) = socket.parent().filter(|folder| !folder.is_dir())
    {
        let why = cannot_make(folder).unwrap_or_else(|| "does not exist; lbd makes it at the start".into());
        warnings.push(Warning::new(&["control", "socket"], format!("the folder {} {why}", folder.display())));
    }
    warnings
}

/// What a reload makes of a file that was read: one that a restart would fail by is refused.
pub fn looked_at(read: FileRead, content: &[u8], name: &str) -> FileRead {
    let FileRead::Right(config, _) = read else { return read };
    let problems = placed(refusals(&config), content);
    if problems.is_empty() {
        let notes = notes(&config, content, name);
        FileRead::Right(config, notes)
    } else {
        FileRead::Wrong(name.to_owned(), problems)
    }
}

/// What an operator should know of a configuration that is taken, a line each.
pub fn notes(config: &Config, content: &[u8], name: &str) -> Vec<String> {
    let warnings = config.warnings().into_iter().chain(hints(config)).collect();
    placed(warnings, content).iter().map(|warning| warning.one_line(name)).collect()
}

/// What a reload refuses a configuration for, besides what it finds out by binding addresses: what a restart would fail by.
fn refusals(config: &Config) -> Vec<Warning> {
    let folder = config.control.socket.as_ref().and_then(|socket| socket.parent()).filter(|folder| !folder.is_dir());
    let no_folder = folder.and_then(|folder| {
        let why = cannot_make(folder)?;
        Some(Warning::new(&["control", "socket"], format!("the folder {} {why}", folder.display())))
    });
    no_group(config).into_iter().chain(no_folder).collect()
}

/// What works now and may not always, to be told at every look.
fn hints(config: &Config) -> Vec<Warning> {
    let Some(local) = LocalPorts::read() else { return Vec::new() };
    let mut hints = Vec::new();
    for (name, listener) in &config.listeners {
        for address in &listener.bind {
            if let Address::Ip(ip) = address
                && local.may_use(ip.port())
            {
                let (first, last) = (local.range.start(), local.range.end());
                let message = format!(
                    "port {} is in net.ipv4.ip_local_port_range ({first} to {last}): a connection of this machine may have it \
                     when lbd starts; choose another, or name it in net.ipv4.ip_local_reserved_ports",
                    ip.port()
                );
                hints.push(Warning::at_bind(name.as_str(), listener, address, message));
            }
        }
    }
    hints
}

const IN_USE: &str = "is in use by another process; stop it or choose another port";

/// Who has a port that could not be bound, for the message.
fn who_has(address: SocketAddr) -> String {
    let used = || LocalPorts::read().is_some_and(|local| local.range.contains(&address.port()));
    match Listening::read().holder(address) {
        Some(holder) => format!("{IN_USE} ({holder})"),
        None if used() => {
            "is the local port of a connection of this machine, as ports in net.ipv4.ip_local_port_range may be; \
                           choose another, or name it in net.ipv4.ip_local_reserved_ports"
                .into()
        }
        None => IN_USE.into(),
    }
}

/// Why an address could not be bound, and how to mend it.
pub fn why_not_bound(address: &Address, e: &io::Error) -> String {
    match (e.kind(), address) {
        (ErrorKind::AddrInUse, Address::Ip(ip)) => who_has(*ip),
        (ErrorKind::AddrInUse, _) => e.to_string(),
        (ErrorKind::AddrNotAvailable, _) => "is not an address of this machine; see `ip address`".into(),
        (ErrorKind::PermissionDenied, _) => {
            "is not allowed to this user; ports below 1024 need CAP_NET_BIND_SERVICE, paths a writable folder".into()
        }
        (ErrorKind::NotFound, _) => "is in a folder that does not exist; create it".into(),
        _ => format!("cannot be bound: {e}"),
    }
}

/// Groups that are not there. Those of listeners are known from then on to whoever binds their sockets.
fn no_group(config: &Config) -> Vec<Warning> {
    let control = config.control.group.iter().map(|name| (vec!["control", "group"], name));
    let listeners = config
        .listeners
        .iter()
        .filter_map(|(listener, it)| Some((vec!["listeners", listener.as_str(), "group"], it.access.group.as_ref()?)));
    let missing = |(at, name): (Vec<&str>, &String)| match look_up_group(name) {
        Ok(None) => Some(Warning::new(&at, format!("there is no group \"{name}\"; create it or name another"))),
        _ => None,
    };
    control.chain(listeners).filter_map(missing).collect()
}

/// Looks up the groups that listeners name, at a start.
///
/// # Errors
/// There is none of a name.
pub fn look_up_groups(config: &Config) -> Result<(), String> {
    let groups = config.listeners.iter().filter_map(|(name, listener)| Some((name, listener.access.group.as_ref()?)));
    for (name, group) in groups {
        match look_up_group(group) {
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(format!(
                    "listeners.{name}.group: there is no group \"{group}\"; create it or name another"
                ));
            }
            Err(e) => return Err(format!("listeners.{name}.group: the group \"{group}\" cannot be looked up: {e}")),
        }
    }
    Ok(())
}

/// Why nothing can be bound at an address, whatever the port.
fn no_address(address: SocketAddr) -> Option<String> {
    let mut any_port = address;
    any_port.set_port(0);
    match UdpSocket::bind(any_port) {
        Err(e) if e.kind() == ErrorKind::AddrNotAvailable => {
            Some("is not an address of this machine; see `ip address`".into())
        }
        Err(e) if e.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            Some("needs IPv6, which this machine has not".into())
        }
        Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => {
            Some("names an interface that this machine has not; see `ip link`".into())
        }
        _ => None,
    }
}

/// Why no socket can be made at a path.
fn no_place(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    if !folder.is_dir() {
        return Some("is in a folder that does not exist; create it".into());
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Some("is something else than a socket; move it away".into()),
        _ => None,
    }
}

/// Why a folder that is missing cannot be made.
fn cannot_make(folder: &Path) -> Option<String> {
    let there = folder.ancestors().find(|above| fs::symlink_metadata(above).is_ok())?;
    if !there.is_dir() {
        return Some(format!("cannot be made, for {} is no folder", there.display()));
    }
    match access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => None,
        Err(e) => Some(format!("does not exist, and cannot be made in {}: {}", there.display(), e.desc())),
    }
}

/// The ports that the kernel gives to outgoing connections.
struct LocalPorts {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    fn read() -> Option<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
        Self::of(&read("ip_local_port_range").ok()?, &read("ip_local_reserved_ports").unwrap_or_default())
    }

    fn of(range: &str, reserved: &str) -> Option<Self> {
        let mut ends = range.split_whitespace().map(str::parse);
        let range = ends.next()?.ok()?..=ends.next()?.ok()?;
        let reserved = reserved.trim().split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        });
        Some(Self { range, reserved: reserved.collect() })
    }

    fn may_use(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|range| range.contains(&port))
    }
}

/// Who listens where.
struct Listening(Vec<Listener>);

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    at: SocketAddr,
    uid: u32,
    inode: u64,
}

impl Listening {
    fn read() -> Self {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
        Self(tables.iter().flat_map(|table| table.lines().filter_map(Listener::of)).collect())
    }

    /// Why an address cannot be had: somebody else listens there. A running lbd, and systemd for it, are nobody else.
    fn by_another(&self, address: SocketAddr) -> Option<String> {
        let is_another = |listener: &&Listener| match processes(listener.inode).as_slice() {
            // Other users' processes cannot be looked into.
            [] => user(listener.uid).as_deref() != Some("lbd"),
            holders => !holders.iter().any(|(pid, name)| *pid == 1 || name == "lbd"),
        };
        // Whether an IPv6 socket takes IPv4 too cannot be seen.
        let mut of_its_family = self.at(address).filter(|listener| listener.at.is_ipv4() == address.is_ipv4());
        let other = of_its_family.find(is_another)?;
        Some(format!("{IN_USE} ({})", other.holder()))
    }

    /// Who listens at an address, or at one that overlaps with it.
    fn holder(&self, address: SocketAddr) -> Option<String> {
        self.at(address).next().map(Listener::holder)
    }

    fn at(&self, address: SocketAddr) -> impl Iterator<Item = &Listener> {
        self.0.iter().filter(move |listener| address.port() != 0 && overlap(listener.at, address))
    }
}

impl Listener {
    /// One line of /proc/net/tcp or tcp6 (proc_net_tcp.txt of the kernel); `None` for what does not listen.
    fn of(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, "0A", _, _, _, uid, _, inode, ..] = fields[..] else { return None };
        let (ip, port) = local.split_once(':')?;
        let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
        let ip = match ip.len() {
            8 => IpAddr::from(word(0)?),
            32 => {
                let mut all = [0; 16];
                for n in 0..4 {
                    all[4 * n..4 * n + 4].copy_from_slice(&word(8 * n)?);
                }
                IpAddr::from(all)
            }
            _ => return None,
        };
        let at = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
        Some(Self { at, uid: uid.parse().ok()?, inode: inode.parse().ok()? })
    }

    /// Whose it is, as far as that can be seen.
    fn holder(&self) -> String {
        match (processes(self.inode).first(), user(self.uid)) {
            (Some((pid, name)), _) => format!("{name} (pid {pid})"),
            (None, Some(user)) => format!("of the user {user}"),
            (None, None) => format!("of the user {}", self.uid),
        }
    }
}

/// Whether two sockets cannot both listen, as far as their addresses tell.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (x, y) = (a.ip().to_canonical(), b.ip().to_canonical());
    let takes = |wide: IpAddr, ip: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4());
    a.port() == b.port() && (x == y || takes(x, y) || takes(y, x))
}

/// The processes that have a socket, and their names; those that may be looked into.
fn processes(inode: u64) -> Vec<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file.as_os_str() == wanted.as_str())
    };
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    pids.filter(has_it).map(|pid| (pid, name(pid))).collect()
}

fn user(uid: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn config(bind: &str, more: &str) -> Config {
        let text = format!(
            "listeners: {{ web: {{ bind: '{bind}', pool: web }} }}\npools: {{ web: {{ backends: {{ a: 10.0.0.1:80 }} }} }}\n{more}"
        );
        Config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    #[test]
    fn what_this_machine_lacks_is_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let at_file = format!("unix:{}", file.display());
        let under_file = format!("control: {{ socket: {}/a/lbd.sock }}", file.display());
        let in_new = format!("control: {{ socket: {}/a/lbd.sock }}", folder.path().display());
        for (bind, more, said, refused) in [
            ("192.0.2.1:0", "", Some("192.0.2.1:0 is not an address of this machine"), false),
            ("unix:/no/such/folder/a", "", Some("is in a folder that does not exist"), false),
            (at_file.as_str(), "", Some("is something else than a socket"), false),
            ("127.0.0.1:0", "control: { group: no-such-group }", Some("there is no group \"no-such-group\""), true),
            ("127.0.0.1:0", under_file.as_str(), Some("is no folder"), true),
            ("127.0.0.1:0", in_new.as_str(), Some("lbd makes it at the start"), false),
            ("127.0.0.1:0", "", None, false),
        ] {
            let config = config(bind, more);
            let found = look(&config);
            assert_eq!(found.len(), usize::from(said.is_some()), "{bind} {more}: {found:?}");
            assert!(said.is_none_or(|said| found[0].message.contains(said)), "{found:?}");
            assert_eq!(refusals(&config).len(), usize::from(refused), "{bind} {more}");
        }
        let found = look(&config(&port.to_string(), ""));
        let in_use = found.iter().find(|it| it.message.contains(IN_USE)).unwrap();
        assert!(in_use.message.contains(&format!("(pid {})", std::process::id())), "{in_use:?}");
        assert_eq!(in_use.path, ["listeners", "web", "bind"]);
    }

    #[test]
    fn a_port_that_connections_of_this_machine_may_have_is_known() {
        let local = LocalPorts::of("32768\t60999\n", "40000,50000-50009\n").unwrap();
        for (port, may_use) in
            [(80, false), (32768, true), (60999, true), (61000, false), (40000, false), (50009, false)]
        {
            assert_eq!(local.may_use(port), may_use, "{port}");
        }
        assert!(LocalPorts::of("1024 65535", "").unwrap().may_use(1024));
        assert!(LocalPorts::of("", "").is_none());
    }

    #[test]
    fn what_the_kernel_tells_of_listeners_is_read() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(Listener::of(head), None);
        let line = |address: &str, state: &str| {
            format!(
                "   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0"
            )
        };
        let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
        let at = |text: &str| Some(Listener { at: text.parse().unwrap(), uid: 1000, inode: 4711 });
        assert_eq!(Listener::of(&line(&format!("{loopback:08X}:1F90"), "0A")), at("127.0.0.1:8080"));
        assert_eq!(Listener::of(&line(&format!("{:032X}:0050", 0), "0A")), at("[::]:80"));
        assert_eq!(Listener::of(&line(&format!("{loopback:08X}:1F90"), "01")), None, "a connection");
    }

    #[test]
    fn a_connection_is_not_taken_for_a_process_that_listens() {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        assert!(who_has(address).contains(&format!("(pid {})", std::process::id())), "{}", who_has(address));
        let client = std::net::TcpStream::connect(address).unwrap().local_addr().unwrap();
        assert!(who_has(client).starts_with("is the local port of a connection"), "{}", who_has(client));
    }
}
