//! What two parts of the file must not say together: a pool that is not there, an address taken twice, a backend that is
//! a listener of lbd itself. Only what could be read is compared, so no fault is reported twice.

use std::collections::HashSet;
use std::path::Path;

use super::check::ListenerDraft;
use super::keys::nearest;
use super::place;
use super::pool::PoolDraft;
use super::reader::{Placed, Reader, list};
use super::stray::NAMELESS;
use super::value::clip;
use crate::words::Address;

/// Checks the parts against each other. `pools` is `None` where they could not be read at all.
pub(super) fn check(
    r: &mut Reader,
    listeners: &[ListenerDraft],
    pools: Option<&[PoolDraft]>,
    control_socket: Option<&Path>,
) {
    // A pool whose name is missing may be the one that a listener means.
    let complete = |pools: &&[PoolDraft]| r.is_whole() && pools.iter().all(|pool| pool.written != NAMELESS);
    if let Some(pools) = pools.filter(complete) {
        unknown_pools(r, listeners, pools);
    }
    let binds: Vec<_> = listeners.iter().filter(|l| !l.repeated).flat_map(|l| &l.binds).collect();
    let mut taken = place::Taken::default();
    for (number, bind) in binds.iter().enumerate() {
        if let Some(other) = taken.add(&bind.value, number) {
            taken_twice(r, bind, binds[other]);
        } else if let (Address::Unix(path), Some(socket)) = (&bind.value, control_socket)
            && place::tidy(path) == place::tidy(socket)
        {
            r.report(bind.at, &bind.path, format!("{} is the control socket; choose another path", bind.value));
        }
    }
    for backend in pools.unwrap_or_default().iter().flat_map(|pool| &pool.addresses) {
        if let Some(number) = taken.reached_from(&backend.value) {
            let message = format!(
                "{} is {} of lbd itself, which would connect to itself in a circle; write the server's own address",
                backend.value, binds[number].path
            );
            r.report(backend.at, &backend.path, message);
        }
    }
}

fn unknown_pools(r: &mut Reader, listeners: &[ListenerDraft], pools: &[PoolDraft]) {
    let defined: HashSet<_> = pools.iter().map(|pool| pool.written.as_str()).collect();
    for pool in listeners.iter().filter_map(|listener| listener.pool.as_ref()) {
        if defined.contains(pool.value.as_str()) {
            continue;
        }
        let names = || pools.iter().map(|pool| pool.written.as_str());
        let mend = match (nearest(&pool.value, names()), pools) {
            (Some((name, _)), _) => format!("did you mean \"{}\"?", clip(name)),
            (None, [only]) => format!("the only one is \"{}\"", clip(&only.written)),
            (None, _) => format!("there are {}", clip(&list(names().take(20)))),
        };
        r.report(pool.at, &pool.path, format!("no pool is named \"{}\"; {mend}", clip(&pool.value)));
    }
}

fn taken_twice(r: &mut Reader, bind: &Placed<Address>, other: &Placed<Address>) {
    let message = if matches!(&bind.value, Address::Ip(ip) if ip.port() == 0) {
        format!(
            "{} is bound twice, first by {} on line {}; ask for port 0 once an address, or name the ports",
            bind.value, other.path, other.at.line
        )
    } else if other.value == bind.value {
        format!("{} is taken by {} on line {}; choose another address", bind.value, other.path, other.at.line)
    } else {
        format!(
            "{} overlaps with {} of {} on line {}; choose another port",
            bind.value, other.value, other.path, other.at.line
        )
    };
    r.report(bind.at, &bind.path, message);
}
