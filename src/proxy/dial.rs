//! Chooses a backend for a session and reserves the place there. The choice is the balancer's; this adds
//! what only the moment knows: who is full, and who has already failed this session.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use crate::balance::{Ask, client_key};
use crate::snapshot::{Backend, BackendCell, Pool};

/// What came of a choice.
#[derive(Debug)]
pub enum Choice {
    /// A place is reserved here.
    Reserved(Arc<BackendCell>),
    /// Every eligible backend has failed this session; it may try them again after a pause.
    AllTried,
    /// Every eligible backend that has not failed it is at its limit.
    Full,
    /// No backend is eligible.
    Nobody,
}

/// Chooses a backend and reserves a place at it.
pub fn choose(pool: &Pool, ticket: u64, client: Option<IpAddr>, random: u64, tried: &[Arc<BackendCell>]) -> Choice {
    if pool.eligible.is_empty() {
        return Choice::Nobody;
    }
    let backend = |i: usize| -> &Backend { &pool.backends[usize::from(pool.eligible[i])] };
    let failed = |i: usize| tried.iter().any(|t| Arc::ptr_eq(t, &backend(i).cell));
    let full: RefCell<Vec<usize>> = RefCell::new(Vec::new());
    loop {
        let ask = Ask {
            ticket,
            client: client_key(client, ticket),
            random,
            live: &|i| backend(i).cell.live.count(),
            usable: &|i| !failed(i) && !full.borrow().contains(&i),
        };
        match pool.balancer.pick(&ask) {
            Some(i) if backend(i).cell.live.reserve(backend(i).max_connections) => {
                return Choice::Reserved(Arc::clone(&backend(i).cell));
            }
            Some(i) => full.borrow_mut().push(i),
            None if full.borrow().is_empty() => return Choice::AllTried,
            None => return Choice::Full,
        }
    }
}
