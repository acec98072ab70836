//! The vocabulary every other room speaks: names, addresses, quantities, and the few
//! enumerations that the file, the wire and the tables must spell alike. Pure, `std` only.

mod address;
mod check;
mod happening;
mod name;
mod network;
mod quantity;
mod state;

pub use address::{Address, AddressError};
pub use check::CheckSpec;
pub use happening::Happening;
pub use name::{BackendName, BackendRef, ListenerName, NameError, PoolName};
pub use network::{Network, NetworkError};
pub use quantity::{Generation, Percent, Weight};
pub use state::{AdminState, Algorithm, Cause, Health, Phase, ProxyVersion, Refusal};
