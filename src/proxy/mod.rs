//! Bytes: one thread a core, each with its own epoll loop, its own listening sockets and its own table of
//! sessions. No lock and no waiting for anybody on a client's path; the control plane speaks to a worker
//! through its inbox alone.

mod accept_error;
mod adopt;
pub mod carry;
mod dial;
mod door;
mod ending;
mod inbox;
mod limits;
mod memory;
mod own_address;
mod preface;
mod queue;
mod relay;
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "loongarch64",
        target_arch = "powerpc64"
    )),
    path = "no_ring.rs"
)]
mod ring;
mod row;
mod scratch;
mod serve;
mod session;
mod socket;
mod spare;
mod stock;
mod summary;
mod sweep;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timers;
mod token;
mod turn;
mod worker;

pub use adopt::{Inherited, adopt};
pub use carry::CarriedWorker;
pub use door::{BACKLOG, Bound, bind};
pub use inbox::{Command, Inbox, Line, Outcome, Sessions, Unaccepted, Unanswered, line};
pub use limits::Limits;
pub use memory::Memory;
pub use socket::{monotonic_micros, raise_descriptor_limit, words_of};
pub use worker::{Setup, Worker};
