//! The listening sockets of the process, from where they come to where they go: bound here or left by a predecessor,
//! shared out among the workers, kept in systemd's store, let go. What a worker does with one is `proxy`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::fd::{OwnedFd, RawFd};

use nix::unistd::Gid;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::machine::why_not_bound;
use super::systemd::{Notifier, is_ours, store_name};
use super::unix_listener::{self, Access, Listed, file_of, remove_file_of};
use crate::control::node::Id;
use crate::proxy::{self, Bound, Inherited, Unaccepted};
use crate::words::Address;

/// The sockets of each worker, with the addresses they were asked for.
pub type Shares = Vec<Vec<(Address, OwnedFd)>>;

/// All of them but those that workers have.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Handed to the process, and of no address that it was asked for so far.
    inherited: Vec<Inherited>,
    /// Bound, and not yet in force.
    fresh: BTreeMap<Address, (Held, Vec<OwnedFd>)>,
    /// In force, as asked for.
    held: BTreeMap<Address, Held>,
    /// What nobody wants was let go.
    tidied: bool,
    /// Which worker gets the next socket that is the only one of its address.
    turn: usize,
    /// Bound for workers that a predecessor did not have, to be handed out with whatever comes next.
    further: Shares,
    /// Who may connect to a Unix socket, where the file says so.
    access: BTreeMap<Address, Access>,
}

/// All of it for a program that takes over in place; the sockets that workers have are carried with them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct CarriedSockets {
    /// What a socket unit holds as well, and its name.
    pub inherited: Vec<(RawFd, String)>,
    held: Vec<CarriedHeld>,
    turn: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedHeld {
    asked: String,
    actual: String,
    stored: BTreeSet<String>,
    lent: bool,
    ours: usize,
    adopted: usize,
    #[serde(default)]
    file: Option<Id>,
    #[serde(default)]
    mode: Option<u32>,
    #[serde(default)]
    group: Option<u32>,
}

/// What is known of an address once it is bound.
#[derive(Debug)]
struct Held {
    /// As it is: a port 0 has become a number.
    actual: Address,
    /// Under which names its sockets are in systemd's store.
    stored: BTreeSet<String>,
    /// A socket unit holds it as well, and goes on when we stop.
    lent: bool,
    /// How many of its sockets systemd's store is to hold.
    ours: usize,
    /// How many were adopted; they come first.
    adopted: usize,
    /// Which file it is, where it is one.
    file: Option<Id>,
}

impl Sockets {
    /// What was passed to the process, as far as it listens.
    pub fn new(passed: Vec<(OwnedFd, String)>) -> Self {
        let inherited = passed.into_iter().filter_map(|(socket, name)| {
            let it = Inherited::of(socket, name.clone());
            if it.is_none() {
                warn!(name, "a descriptor was passed that is no listening stream socket; it is closed");
            }
            it
        });
        Self { inherited: inherited.collect(), ..Self::default() }
    }

    /// What a successor needs to know.
    pub fn carry(&self) -> CarriedSockets {
        let held = self.held.iter().map(|(asked, held)| CarriedHeld {
            asked: asked.to_string(),
            actual: held.actual.to_string(),
            stored: held.stored.clone(),
            lent: held.lent,
            ours: held.ours,
            adopted: held.adopted,
            file: held.file,
            mode: self.access_of(asked).mode,
            group: self.access_of(asked).group.map(Gid::as_raw),
        });
        let inherited = self.inherited.iter().map(|i| (i.number(), i.name.clone()));
        CarriedSockets { inherited: inherited.collect(), held: held.collect(), turn: self.turn }
    }

    /// A predecessor's; `inherited` are the descriptors of which it told.
    ///
    /// # Errors
    /// What is carried is no address.
    pub fn inherit(carried: CarriedSockets, inherited: Vec<(OwnedFd, String)>) -> Result<Self, String> {
        let address = |text: &str| text.parse().map_err(|e| format!("\"{text}\" was carried over, but {e}"));
        let mut held = BTreeMap::new();
        let mut access = BTreeMap::new();
        for CarriedHeld { asked, actual, stored, lent, ours, adopted, file, mode, group } in carried.held {
            access.insert(address(&asked)?, Access { mode, group: group.map(Gid::from_raw) });
            let actual = address(&actual)?;
            let file = file.or_else(|| file_of(&actual));
            held.insert(address(&asked)?, Held { actual, stored, lent, ours, adopted, file });
        }
        let tidied = true; // or the store would be emptied of what it holds for us
        Ok(Self { held, turn: carried.turn, tidied, access, ..Self::new(inherited) })
    }

    /// Binds what is missing where there are more workers than a predecessor had. `there` tells, by address as asked for, which
    /// workers have a socket. Where one more is refused, clients are served by those that have one. Returns the addresses
    /// at which nobody accepts: their sockets were ended just before.
    pub fn bind_further(
        &mut self,
        there: &BTreeMap<Address, BTreeSet<usize>>,
        workers: usize,
        systemd: &Notifier,
    ) -> Vec<Address> {
        self.further = (0..workers).map(|_| Vec::new()).collect();
        let mut silent = Vec::new();
        for (asked, held) in &mut self.held {
            let Some(have) = there.get(asked) else {
                silent.push(asked.clone());
                continue;
            };
            let Address::Ip(ip) = held.actual else { continue };
            if held.lent {
                continue;
            }
            let without: Vec<usize> = (0..workers).filter(|worker| !have.contains(worker)).collect();
            if without.is_empty() {
                continue;
            }
            let known = [held.actual.clone()];
            let sockets = match proxy::bind(ip, without.len(), &known) {
                Ok(Bound { sockets, .. }) => sockets,
                Err(e) => {
                    let workers = without.len();
                    warn!(address = %held.actual, workers, "not every worker accepts here: no socket more can be had ({e})");
                    continue;
                }
            };
            keep(systemd, asked, &held.actual, &sockets);
            held.stored.insert(store_name(asked));
            held.ours += sockets.len();
            for (worker, socket) in without.into_iter().zip(sockets) {
                self.further[worker].push((asked.clone(), socket));
            }
        }
        silent
    }

    /// The addresses in force: as asked for, and as they are.
    pub fn addresses(&self) -> BTreeMap<Address, Address> {
        self.held.iter().map(|(asked, held)| (asked.clone(), held.actual.clone())).collect()
    }

    /// How many sockets systemd is to keep.
    pub fn count(&self) -> usize {
        self.held.values().map(|held| held.ours).sum()
    }

    /// Has a socket for each worker at every address, or none at all. `access` says who may connect to those with a path.
    ///
    /// # Errors
    /// Each address that cannot be bound, with the reason and how to mend it.
    pub fn bind(
        &mut self,
        addresses: Vec<Address>,
        access: BTreeMap<Address, Access>,
        workers: usize,
    ) -> Result<BTreeMap<Address, Address>, Vec<(Address, String)>> {
        self.access.extend(access);
        let mut reasons = Vec::new();
        for address in addresses {
            match self.acquire(&address, workers) {
                Ok(got) => drop(self.fresh.insert(address, got)),
                Err(e) => {
                    let why = self.why_lent_away(&address, &e).unwrap_or_else(|| why_not_bound(&address, &e));
                    reasons.push((address, why));
                }
            }
        }
        if reasons.is_empty() {
            return Ok(self.fresh.iter().map(|(asked, (held, _))| (asked.clone(), held.actual.clone())).collect());
        }
        for (address, (held, _)) in std::mem::take(&mut self.fresh) {
            if held.adopted == 0 {
                remove_file_of(&address, held.file);
            }
        }
        Err(reasons)
    }

    fn acquire(&mut self, address: &Address, workers: usize) -> io::Result<(Held, Vec<OwnedFd>)> {
        let adopted = self.take_inherited(address);
        if adopted.is_empty() {
            // A stale socket of our own must not pass for another process.
            let known = self.held.values().chain(self.fresh.values().map(|(held, _)| held)).map(|held| &held.actual);
            let known: Vec<Address> = known.chain(self.inherited.iter().map(|i| &i.address)).cloned().collect();
            return self.bind_anew(address, workers, &known);
        }
        let count = adopted.len();
        let mut stored: BTreeSet<String> = adopted.iter().map(|i| i.name.clone()).filter(|n| is_ours(n)).collect();
        let lent = adopted.iter().filter(|i| !is_ours(&i.name)).count();
        if lent > 0 {
            // A reload may let go of it, and another want it again: what the socket unit holds cannot be bound anew.
            self.inherited.extend(adopted.iter().filter(|i| !is_ours(&i.name)).filter_map(|i| i.try_clone().ok()));
        }
        let Bound { address: actual, sockets } = proxy::adopt(adopted, workers)?;
        if sockets.len() > count {
            stored.insert(store_name(address));
        }
        info!(address = %actual, sockets = sockets.len(), adopted = count, "listening socket adopted");
        let ours = sockets.len() - lent;
        let file = file_of(&actual);
        if let (Address::Unix(path), Some(id), 0) = (&actual, file, lent) {
            unix_listener::permit(path, id, &self.access_of(address))?;
        }
        Ok((Held { actual, stored, lent: lent > 0, ours, adopted: count, file }, sockets))
    }

    fn bind_anew(&self, address: &Address, workers: usize, known: &[Address]) -> io::Result<(Held, Vec<OwnedFd>)> {
        let (actual, sockets, file) = match address {
            Address::Unix(path) => {
                let (socket, id) = unix_listener::bind(path, &self.access_of(address))?;
                (address.clone(), vec![socket], Some(id))
            }
            Address::Ip(ip) => {
                let Bound { address, sockets } = proxy::bind(*ip, workers, known)?;
                (address, sockets, None)
            }
        };
        let (stored, ours) = ([store_name(address)].into(), sockets.len());
        Ok((Held { actual, stored, lent: false, ours, adopted: 0, file }, sockets))
    }

    /// Changes who may connect to the Unix sockets in force.
    pub fn permit(&mut self, access: BTreeMap<Address, Access>) {
        for (address, access) in access {
            if let (Address::Unix(path), Some(Held { file: Some(id), lent: false, .. })) =
                (&address, self.held.get(&address))
                && let Err(e) = unix_listener::permit(path, *id, &access)
            {
                error!(%address, "its mode and group cannot be set: {e}");
            }
            self.access.insert(address, access);
        }
    }

    /// How many descriptors the listening sockets take, those of all workers together.
    pub fn descriptors(&self) -> usize {
        self.held.values().map(|held| held.ours.max(held.adopted)).sum::<usize>() + self.inherited.len()
    }

    fn access_of(&self, address: &Address) -> Access {
        self.access.get(address).cloned().unwrap_or_default()
    }

    /// Binds an address in force anew, whose sockets in these workers were ended (all of them, where a path leads nowhere); which worker
    /// is to have which. Takes all that are of the address out of systemd's store: the living must be lent to it again.
    ///
    /// # Errors
    /// It cannot be bound, for this reason.
    pub fn rebind(
        &mut self,
        asked: &Address,
        ended: &BTreeSet<usize>,
        workers: usize,
        systemd: &Notifier,
    ) -> Result<Vec<(usize, OwnedFd)>, String> {
        let Some(actual) = self.held.get(asked).map(|held| held.actual.clone()) else { return Ok(Vec::new()) };
        self.inherited.retain(Inherited::is_listening);
        let whole = matches!(actual, Address::Unix(_)) || ended.len() >= workers;
        let known: Vec<Address> = if whole { Vec::new() } else { vec![actual.clone()] };
        let (fresh, sockets) = self.bind_anew(&actual, ended.len(), &known).map_err(|e| why_not_bound(&actual, &e))?;
        let Some(held) = self.held.get_mut(asked) else { return Ok(Vec::new()) };
        // The store takes things out by their name alone, the living with the dead; those come in again as workers lend them.
        std::mem::take(&mut held.stored).iter().for_each(|name| systemd.forget(name));
        if whole || held.lent {
            (held.ours, held.adopted, held.lent) = (sockets.len(), 0, false);
        }
        held.file = fresh.file;
        held.stored.insert(store_name(asked));
        keep(systemd, asked, &actual, &sockets);
        let alone = [self.turn % workers];
        let owners: Vec<usize> = if fresh.file.is_some() { alone.to_vec() } else { ended.iter().copied().collect() };
        Ok(owners.into_iter().zip(sockets).collect())
    }

    /// A socket of an address that others of were taken out of systemd's store with.
    pub fn keep_too(&self, asked: &Address, socket: OwnedFd, systemd: &Notifier) {
        if let Some(held) = self.held.get(asked) {
            keep(systemd, asked, &held.actual, &[socket]);
        }
    }

    /// The sockets in force that have a path, to be looked at. Those of a socket unit are systemd's to look after.
    pub fn paths(&self) -> Vec<Listed> {
        let listed = self.held.iter().filter(|(_, held)| !held.lent).filter_map(|(asked, held)| {
            let Address::Unix(path) = asked else { return None };
            Some(Listed { address: asked.clone(), path: path.clone(), id: held.file? })
        });
        listed.collect()
    }

    /// systemd binds `ListenStream=80` to `[::]:80`, which nobody would take for `0.0.0.0:80`.
    fn why_lent_away(&self, address: &Address, e: &io::Error) -> Option<String> {
        let Address::Ip(wanted) = address else { return None };
        let in_the_way = self.inherited.iter().find_map(|i| match &i.address {
            Address::Ip(ip) if e.kind() == ErrorKind::AddrInUse && ip.port() == wanted.port() => Some(ip),
            _ => None,
        })?;
        Some(format!(
            "is in use by a socket that systemd passes for {in_the_way}; write `bind: \"{in_the_way}\"`, or have the socket unit \
             listen on {wanted}"
        ))
    }

    /// Whatever listens at an address already. A name says which one a port 0 has become.
    fn take_inherited(&mut self, address: &Address) -> Vec<Inherited> {
        if matches!(address, Address::Unix(path) if unix_listener::file_at(path).is_none()) {
            return Vec::new(); // nobody could reach it any more
        }
        self.inherited.retain(Inherited::is_listening);
        let any_port = matches!(address, Address::Ip(ip) if ip.port() == 0).then(|| store_name(address));
        let is_it = |i: &mut Inherited| i.address == *address || any_port.as_ref().is_some_and(|name| i.name == *name);
        self.inherited.extract_if(.., is_it).collect()
    }

    /// Each worker's share of the sockets of these addresses, which are in force from now on. They are put into the store
    /// first: from the first client on they are to survive. At the first time lets go of what nobody wants.
    pub fn hand_out(&mut self, listen: &[Address], workers: usize, systemd: &Notifier) -> Shares {
        if !std::mem::replace(&mut self.tidied, true) {
            self.close_unwanted(systemd);
        }
        let mut shares = std::mem::take(&mut self.further);
        shares.resize_with(workers, Vec::new);
        for address in listen {
            let Some((held, sockets)) = self.fresh.remove(address) else { continue };
            if sockets.len() > held.adopted {
                keep(systemd, address, &held.actual, &sockets[held.adopted..]);
            }
            if sockets.len() < workers {
                info!(address = %held.actual, sockets = sockets.len(), workers, "not every worker accepts here: this address cannot be shared among all");
            }
            let alone = sockets.len() < workers;
            for (n, socket) in sockets.into_iter().enumerate() {
                let worker = if alone { self.turn } else { n };
                self.turn += usize::from(alone);
                shares[worker % workers].push((address.clone(), socket));
            }
            self.held.insert(address.clone(), held);
        }
        shares
    }

    /// Takes addresses out of force. What workers are to do with each socket.
    pub fn release(
        &mut self,
        addresses: &[Address],
        unaccepted: Unaccepted,
        systemd: &Notifier,
    ) -> Vec<(Address, Unaccepted)> {
        let (mut all, mut lent) = (Vec::new(), Vec::new());
        for address in addresses {
            let Some(held) = self.held.remove(address) else { continue };
            let stays = held.lent || unaccepted == Unaccepted::Leave;
            lent.extend(held.lent.then(|| held.actual.clone()));
            if !stays {
                remove_file_of(address, held.file);
                held.stored.iter().for_each(|name| systemd.forget(name));
            }
            all.push((address.clone(), if stays { Unaccepted::Leave } else { Unaccepted::Accept }));
        }
        if !self.held.is_empty() {
            // No stop, but a reload: there is no service without a listener.
            lent.iter().for_each(warn_of_nobody);
        }
        all
    }

    /// Lets go of what was left by a predecessor and is wanted no more; tells of what a socket unit insists on.
    fn close_unwanted(&mut self, systemd: &Notifier) {
        let wanted: BTreeSet<Address> = self.fresh.values().map(|(held, _)| held.actual.clone()).collect();
        for stale in self.inherited.extract_if(.., |i| is_ours(&i.name)) {
            if !wanted.contains(&stale.address) {
                info!(address = %stale.address, "no listener has this address any more; its socket is closed");
                stale.end();
                if let Address::Unix(path) = &stale.address {
                    let _ = unix_listener::clear(path); // another process's is left alone
                }
            }
            systemd.forget(&stale.name);
        }
        self.inherited.iter().map(|i| &i.address).filter(|address| !wanted.contains(address)).for_each(warn_of_nobody);
    }

    /// Leaves nothing behind in the file system.
    pub fn clear_up(&self) {
        self.held.iter().filter(|(_, held)| !held.lent).for_each(|(address, held)| remove_file_of(address, held.file));
    }
}

/// Has systemd keep sockets over a restart.
fn keep(systemd: &Notifier, asked: &Address, actual: &Address, sockets: &[OwnedFd]) {
    if let Err(e) = systemd.store(&store_name(asked), sockets) {
        warn!(
            address = %actual,
            "systemd cannot be given the listening sockets to keep ({e}): a restart will refuse new clients here until \
             they are bound anew"
        );
    }
}

fn warn_of_nobody(address: &Address) {
    warn!(
        %address,
        "a socket unit passes an address that no listener has: its clients will wait in vain; \
         give it to a listener, or take it out of lbd.socket"
    );
}
