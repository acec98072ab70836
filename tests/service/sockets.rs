//! lbd.socket: systemd binds some addresses, lbd the others; neither loses a client by what lbd does.

use std::net::TcpStream;

use crate::client::until;
use crate::load::{Load, settled};
use crate::machine::{CONFIG, Machine, Package};

/// How often lbd.socket has lbd started within half a minute, as it is shipped, and in a trial that is to be short.
const BURSTS: [usize; 2] = [20, 3];

#[test]
fn lent_and_own_sockets_outlive_reloads_restarts_and_crashes_side_by_side() {
    let Some(mut machine) = Machine::up() else { return };
    machine.install(Package::Old);
    machine.start_backends();
    // A second socket for a second worker, and an address that no listener has.
    let lent = "[Socket]\nReusePort=yes\nListenStream=127.0.0.1:8080\nListenStream=127.0.0.1:8090\n";
    machine.drop_in("lbd.socket", lent);
    let config = |address: &str| CONFIG.replace("\"127.0.0.1:8081\"", address) + "process: { workers: 2 }\n";
    machine.configure(&config("\"127.0.0.1:8081\""));
    machine.done(&["systemctl", "start", "lbd.socket"]);
    assert_eq!(machine.property("ActiveState"), "inactive");
    let load = Load::start(&machine); // the first client starts it
    until("it is started", || (machine.property("ActiveState") == "active").then_some(()));
    let journal = machine.journal();
    assert!(journal.lines().any(|line| line.contains("127.0.0.1:8090") && line.contains("no listener")), "{journal}");
    assert!(journal.lines().any(|line| line.contains("127.0.0.1:8080") && line.contains("adopted=2")), "{journal}");
    // Only its own address is in the store: the other is lbd.socket's.
    let stored = || machine.property("NFileDescriptorStore");
    assert_eq!(stored(), "2");
    for address in ["[\"127.0.0.1:8081\", \"127.0.0.1:8082\"]", "\"127.0.0.1:8082\""] {
        machine.configure(&config(address));
        machine.done(&["systemctl", "reload", "lbd"]);
    }
    until("what was let go is out of the store", || (stored() == "2").then_some(()));
    let before = machine.property("MainPID");
    machine.done(&["systemctl", "restart", "lbd"]);
    let between = machine.property("MainPID");
    settled(&machine);
    machine.done(&["systemctl", "kill", "--kill-whom=main", "-s", "KILL", "lbd"]);
    until("lbd is back", || {
        let now = machine.property("MainPID");
        let is_new = ![&before, &between, "0"].contains(&now.as_str());
        (is_new && machine.property("ActiveState") == "active").then_some(())
    });
    machine.inside(|| TcpStream::connect(("127.0.0.1", 8082)).unwrap());
    assert_eq!(stored(), "2");
    load.refused_nobody(1);
}

#[test]
fn a_wrong_file_is_not_tried_with_each_client_without_end() {
    let Some(machine) = Machine::up() else { return };
    machine.install(Package::Old);
    let burst = || machine.done(&["systemctl", "show", "--value", "-p", "TriggerLimitBurst", "lbd.socket"]);
    assert_eq!(burst().trim(), BURSTS[0].to_string());
    machine.drop_in("lbd.socket", &format!("[Socket]\nTriggerLimitBurst={}\n", BURSTS[1]));
    machine.configure("listeners: {}\n");
    machine.done(&["systemctl", "start", "lbd.socket"]);
    let _client = machine.inside(|| TcpStream::connect(("127.0.0.1", 8080)).unwrap());
    let result = || machine.done(&["systemctl", "show", "--value", "-p", "Result", "lbd.socket"]);
    until("lbd.socket gives up", || (result().trim() == "trigger-limit-hit").then_some(()));
    let tried = machine.journal().matches("Main process exited, code=exited, status=78").count();
    assert_eq!(tried, BURSTS[1]);
    // As the guide has it.
    machine.configure(CONFIG);
    machine.done(&["systemctl", "restart", "lbd.socket", "lbd"]);
    machine.inside(|| TcpStream::connect(("127.0.0.1", 8080)).unwrap());
    assert_eq!(machine.property("ActiveState"), "active");
    // And `systemctl stop lbd` is not the end while it is on.
    machine.done(&["systemctl", "stop", "lbd.socket", "lbd"]);
    assert!(machine.inside(|| TcpStream::connect(("127.0.0.1", 8080)).is_err()));
}
