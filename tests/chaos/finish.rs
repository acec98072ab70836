//! The end: everything is as it was before the first client came, and the counters agree with the clients.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Operator, World, named};

/// Descriptors that may be open for other reasons: a connection of lbctl, a probe of each backend that is checked.
const SLACK: usize = 8;

/// The longest until all sessions have ended.
const ENDING: Duration = Duration::from_secs(45);

/// What is to be found again.
pub struct Baseline {
    descriptors: usize,
    file: crate::file::File,
}

/// Measures lbd before the load, once it has been upgraded to itself: what the first upgrade opens is no leak.
pub fn baseline(world: &World) -> Baseline {
    let operator = world.operator();
    let file = operator.file.clone();
    drop(operator);
    let descriptors = world
        .until("begin", "spare connections are there", Duration::from_secs(10), || rest(world, &world.stats()?))
        .unwrap_or(0);
    Baseline { descriptors, file }
}

/// Descriptors without those of spare connections, while no session lives, and without listening sockets: of these lbd keeps
/// as many as it ever had workers, for clients may wait in each.
fn rest(world: &World, stats: &Value) -> Option<usize> {
    let all = |list: &Value, key: &str| -> u64 {
        list.as_array().map_or(0, |all| all.iter().filter_map(|entry| entry[key].as_u64()).sum())
    };
    let of_backends = |key: &str| -> u64 {
        stats["pools"].as_array().map_or(0, |pools| pools.iter().map(|pool| all(&pool["backends"], key)).sum())
    };
    let busy = all(&stats["listeners"], "connections_active")
        + of_backends("connections_active")
        + all(&stats["pools"], "queued");
    let known = of_backends("connections_spare") as usize + listening(world);
    (busy == 0).then(|| world.lbd.descriptors().saturating_sub(known))
}

/// Sockets that listen at lbd's addresses: state 0A in /proc/net/tcp.
fn listening(world: &World) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let ports: Vec<String> = world.accounts().map(|(_, account)| format!(":{:04X}", account.address.port())).collect();
    let fields =
        table.lines().filter(|line| line.contains(" 0A ")).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_ours = |at: &str| ports.iter().any(|port| at.ends_with(port.as_str()));
    fields.filter(|fields| fields.len() > 3 && fields[3] == "0A" && is_ours(fields[1])).count()
}

/// Looks at what is left when all clients have gone.
pub fn look(world: &World, before: &Baseline) {
    let mut operator = world.operator();
    *operator.file = before.file.clone();
    as_before(world, &operator);
    drop(operator);
    let last = std::cell::RefCell::new(Value::Null);
    let ended = world.until("end", "all sessions have ended", ENDING, || {
        let stats = world.stats()?;
        let found = rest(world, &stats);
        *last.borrow_mut() = stats;
        found
    });
    if ended.is_none() {
        return world.fail("end", &format!("still there: {}", busy(&last.borrow())));
    }
    let open = std::cell::Cell::new(0);
    let back = world.until("end", "descriptors are as before", Duration::from_secs(10), || {
        open.set(rest(world, &world.stats()?)?);
        (open.get() <= before.descriptors + SLACK).then_some(())
    });
    if back.is_none() {
        world.fail("end", &format!("{} descriptors, {} at the start", open.get(), before.descriptors));
    }
    let stats = last.into_inner();
    for (name, account) in world.accounts() {
        let listener = named(&stats["listeners"], name);
        let sum = |key: &str| -> u64 {
            listener[key].as_object().map_or(0, |all| all.values().filter_map(Value::as_u64).sum())
        };
        let (total, ended, refused) =
            (listener["connections_total"].as_u64().unwrap_or(0), sum("ended"), sum("refused"));
        let (connected, open) = (account.connected.load(SeqCst) as u64, account.open.load(SeqCst));
        // Who was refused has come and has ended, too.
        if total != ended || total != connected || refused > ended || open != 0 {
            let text = format!(
                "{name}: {connected} clients ({open} open), {total} sessions, {ended} ended, {refused} refused: {listener}"
            );
            world.fail("end", &text);
        }
    }
    if let Some(how) = world.lbd.end() {
        world.fail("end", &format!("lbd has ended: {how}"));
    }
}

/// Back to the file and the number of workers of the beginning, with no decision of an operator left.
fn as_before(world: &World, operator: &Operator<'_>) {
    for (pool, entry) in &operator.file.pools {
        for backend in entry.backends.keys() {
            operator.tries("end", &["enable", &format!("{pool}/{backend}")]);
        }
    }
    if operator.reload("end") && world.journal.counted("lbctl upgrade") > 0 {
        operator.does("end", &["upgrade"]);
    }
}

fn busy(stats: &Value) -> String {
    let mut out = Vec::new();
    for list in ["listeners", "pools"] {
        for entry in stats[list].as_array().into_iter().flatten() {
            let name = entry["name"].as_str().unwrap_or("?");
            for key in ["connections_active", "queued"] {
                out.extend(entry[key].as_u64().filter(|n| *n > 0).map(|n| format!("{name} {key} {n}")));
            }
            for backend in entry["backends"].as_array().into_iter().flatten() {
                let active = backend["connections_active"].as_u64().unwrap_or(0);
                out.extend((active > 0).then(|| format!("{name}/{} {active}", backend["name"])));
            }
        }
    }
    out.join(", ")
}
