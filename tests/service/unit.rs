//! The unit files: what systemd thinks of them, and what they let lbd do.

use std::fs;
use std::net::TcpStream;

use crate::machine::{Machine, Package};
use crate::skip::skipped;

/// The greatest exposure that `systemd-analyze security` may find; of 10.
const EXPOSURE: &str = "16";

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let Some(machine) = Machine::up() else { return };
    machine.install(Package::Old);
    let mut verify = vec!["systemd-analyze", "verify", "lbd.service", "lbd.socket"];
    match fs::read("/etc/manpath.config") {
        Ok(manpath) => machine.put(&manpath, "/etc/manpath.config"),
        Err(_) => {
            skipped("there is no man: whether the pages are found that the units name is not seen");
            verify.push("--man=no");
        }
    }
    let verify = machine.run(&verify);
    assert!(verify.status.success() && verify.stderr.is_empty(), "{verify:?}");
    let security = ["systemd-analyze", "security", "--offline=yes", "--threshold", EXPOSURE];
    machine.done(&[&security[..], &["/usr/lib/systemd/system/lbd.service"]].concat());
}

#[test]
fn as_installed_it_is_off_and_starts_with_the_file_that_it_brings() {
    let Some(machine) = Machine::up() else { return };
    machine.install(Package::Old);
    for unit in ["lbd.service", "lbd.socket"] {
        let enabled = machine.run(&["systemctl", "is-enabled", unit]);
        assert_eq!(crate::machine::text(&enabled).trim(), "disabled", "{unit}");
        assert!(!machine.run(&["systemctl", "is-active", unit]).status.success(), "{unit}");
    }
    machine.done(&["systemctl", "start", "lbd"]);
    machine.inside(|| TcpStream::connect(("127.0.0.1", 8080)).unwrap());
    let status = machine.property("StatusText");
    for part in ["generation 1", "backends up", "sessions: 0"] {
        assert!(status.contains(part), "{status}");
    }
    // The user it runs as may use lbctl, and who is of its group; nobody else.
    machine.done(&["setpriv", "--reuid=lbd", "--regid=lbd", "--clear-groups", "lbctl", "status"]);
    machine.done(&["setpriv", "--reuid=nobody", "--regid=lbd", "--clear-groups", "lbctl", "status"]);
    let stranger = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "lbctl", "status"];
    assert!(!machine.run(&stranger).status.success());
}

#[test]
fn a_low_port_may_be_bound_and_a_group_set() {
    let Some(machine) = Machine::up() else { return };
    machine.install(Package::Old);
    machine.configure(
        "listeners: { web: { bind: [\"127.0.0.1:80\", \"unix:/run/lbd/web.sock\"], pool: web } }\n\
         pools: { web: { backends: { a: 127.0.0.1:9001 } } }\n\
         control: { group: lbd }\n",
    );
    machine.done(&["systemctl", "start", "lbd"]);
    machine.inside(|| TcpStream::connect(("127.0.0.1", 80)).unwrap());
    machine.done(&["test", "-S", "/run/lbd/web.sock"]);
    machine.done(&["systemctl", "restart", "lbd"]);
    machine.done(&["test", "-S", "/run/lbd/web.sock"]);
}
