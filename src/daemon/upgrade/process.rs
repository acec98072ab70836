//! What an upgrade asks of the kernel for its own process: the program that it runs, a second one of it, its name, its record in
//! memory. One of the five files with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::MmapOptions;
use nix::libc;
use nix::unistd::{ForkResult, Pid, fork};

use super::{misbehave, record};

/// The program that this process runs, whatever is at its path by now.
///
/// # Errors
/// There is no /proc, or no descriptor left.
pub fn own_program() -> io::Result<File> {
    misbehave::refused()?;
    File::open("/proc/self/exe")
}

/// A record, where it lies; `None` where it can only be read. Privately, for kernels before 6.7 refuse to share what is sealed, even
/// with who would but read it.
pub fn mapped(record: &File) -> Option<Bytes> {
    record::is_sealed(record).ok()?;
    misbehave::refused().ok()?;
    // SAFETY: it is sealed: nobody can change it, or make it shorter.
    let map = unsafe { MmapOptions::new().populate().map_copy_read_only(record) };
    map.ok().map(Bytes::from_owner)
}

/// Doubles the process: `None` in the child, where the calling thread is the only one. It must not end by itself but
/// [leave](leave), and take no lock that another thread may have had.
///
/// # Errors
/// There is no process or memory left.
pub fn double() -> io::Result<Option<Pid>> {
    // SAFETY: memory may be had in the child, the C library sees to that; the caller sees to the rest.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends the process, and nothing of it is cleared up: it is all the parent's.
pub fn leave(code: i32) -> ! {
    // SAFETY: always allowed.
    unsafe { libc::_exit(code) }
}

/// Gives the process its name: one executed by its descriptor is called by that number.
pub fn take_name(name: &CStr) {
    let _ = nix::sys::prctl::set_name(name);
}
