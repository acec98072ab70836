//! What the operators' guide has one write down works as it stands there: drop-ins, and the check of keepalived.

use std::fs;
use std::net::TcpStream;

use crate::client::until;
use crate::machine::{CONFIG, Machine};

/// The operators' guide.
const GUIDE: &str = include_str!("../../packaging/OPERATING.md");

/// The settings of a row of the drop-ins' table.
fn drop_in(wanted: &str) -> Vec<&'static str> {
    let row = GUIDE.lines().find(|line| line.starts_with(&format!("| {wanted}"))).unwrap();
    let settings = row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2);
    settings.filter(|code| code.contains('=')).collect()
}

#[test]
fn drop_ins_do_what_they_are_for() {
    let Some(machine) = Machine::serving() else { return };
    // Sockets elsewhere.
    let folder = GUIDE.split('`').find(|code| code.starts_with("d /run/web ")).unwrap();
    machine.put(format!("{folder}\n").as_bytes(), "/etc/tmpfiles.d/web.conf");
    machine.done(&["systemd-tmpfiles", "--create", "web.conf"]);
    let settings = [drop_in("the control socket elsewhere"), drop_in("Unix listeners elsewhere")].concat();
    assert_eq!(settings.len(), 3, "{settings:?}");
    machine.drop_in("lbd.service", &format!("[Service]\n{}\n", settings.join("\n")));
    let elsewhere = CONFIG.replace("\"127.0.0.1:8080\"", "[ \"127.0.0.1:8080\", \"unix:/run/web/web.sock\" ]");
    machine.configure(&format!("{elsewhere}control: {{ socket: /run/lbd/other.sock }}\n"));
    machine.done(&["systemctl", "restart", "lbd"]);
    machine.done(&["systemctl", "reload", "lbd"]);
    machine.done(&["test", "-S", "/run/web/web.sock"]);
    machine.configure(CONFIG);

    let rings = || {
        let pid = machine.property("MainPID");
        let open = machine.done(&["find", &format!("/proc/{pid}/fd"), "-lname", "*io_uring*"]);
        open.lines().count()
    };
    // As installed the unit allows what this kernel does.
    if fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|disabled| disabled.trim() == "0") {
        assert!(rings() > 0, "{}", machine.journal());
    }

    // Less than lbd asks for: too small a store, few descriptors that it may not have more of, and no io_uring.
    let less = ["FileDescriptorStoreMax=1", "LimitNOFILE=256:256"];
    let settings = [&less[..], &drop_in("no io_uring")].concat();
    machine.drop_in("lbd.service", &format!("[Service]\n{}\n", settings.join("\n")));
    machine.done(&["systemctl", "restart", "lbd"]);
    let mut awaited = vec!["descriptors=256", "raise FileDescriptorStoreMax= of the unit", "io_uring is not to be had"];
    until("each is told", || {
        let journal = machine.journal();
        awaited.retain(|warning| !journal.contains(warning));
        awaited.is_empty().then_some(())
    });
    machine.inside(|| TcpStream::connect(("127.0.0.1", 8080)).unwrap());
    assert_eq!(rings(), 0);
    assert_eq!(machine.property("ActiveState"), "active");
}

#[test]
fn keepaliveds_check_tells_whether_lbd_serves_as_the_user_that_keepalived_gives_it() {
    let Some(machine) = Machine::serving() else { return };
    let script = GUIDE.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    machine.put(script.as_bytes(), "/usr/local/bin/check-lbd");
    machine.done(&["chmod", "755", "/usr/local/bin/check-lbd"]);
    let made = GUIDE.split('`').find(|code| code.starts_with("useradd ")).unwrap();
    machine.done(&made.split(' ').collect::<Vec<_>>());
    // keepalived keeps no group but the one that is named, its own not either.
    let words = GUIDE.lines().find_map(|line| line.trim().strip_prefix("script_user ")).unwrap();
    let mut words = words.split_whitespace();
    let (user, group) = (words.next().unwrap(), words.next().unwrap());
    let (user, group) = (format!("--reuid={user}"), format!("--regid={group}"));
    let check = || machine.run(&["setpriv", &user, &group, "--clear-groups", "/usr/local/bin/check-lbd"]);
    let ran = check();
    assert!(ran.status.success(), "{ran:?}");
    // Nobody left to serve by, in any pool.
    let all = ["web/backend-1", "web/backend-2", "web/backend-3", "bulk/backend-4"];
    all.iter().for_each(|backend| drop(machine.done(&["lbctl", "disable", backend])));
    assert!(!check().status.success());
    machine.done(&["lbctl", "enable", all[0]]);
    assert!(check().status.success());
    machine.done(&["systemctl", "stop", "lbd"]);
    assert!(!check().status.success());
}
