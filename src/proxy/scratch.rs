//! The buffer that all sessions of a worker read into: how large it is, and where in memory it begins.

use std::fs;
use std::ops::{Deref, DerefMut, RangeInclusive};

/// Its size in bytes, by the processor's second cache. ARCHITECTURE.md has the measurements.
pub const SIZES: RangeInclusive<usize> = 256 * 1024..=512 * 1024;
/// The second cache's size, as in "2048K".
const SECOND_CACHE: &str = "/sys/devices/system/cpu/cpu0/cache/index2/size";

/// Where a page of memory begins, and with it most of the bytes that a socket holds.
///
/// The kernel copies with `rep movsb`, which is several times slower on AMD Zen where the destination begins a few
/// bytes further into its page than the source does (glibc bug 30994): behind the allocator's 16 bytes of its own,
/// a 16 KiB echo cost 1.24 of HAProxy, from the page's beginning 0.87.
const PAGE: usize = 4096;

/// Bytes that begin where a page does.
#[derive(Debug)]
pub struct Scratch {
    room: Box<[u8]>,
    first: usize,
    size: usize,
}

impl Scratch {
    /// A buffer of zeros for this processor. They cost no memory until they are written.
    pub fn new() -> Self {
        let size = size_beside(fs::read_to_string(SECOND_CACHE).ok().as_deref());
        let room: Box<[u8]> = vec![0; size + PAGE].into();
        let first = room.as_ptr().align_offset(PAGE);
        Self { room, first, size }
    }
}

/// A quarter of the second cache, so that what was read is still there when it is written, and what the kernel needs too.
fn size_beside(cache: Option<&str>) -> usize {
    let kib = cache.and_then(|size| size.trim().strip_suffix('K')?.parse().ok()).unwrap_or(0usize);
    let quarter = kib.saturating_mul(1024 / 4) / PAGE * PAGE;
    quarter.clamp(*SIZES.start(), *SIZES.end())
}

impl Deref for Scratch {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.room[self.first..][..self.size]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.first..][..self.size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_where_a_page_does_and_has_its_whole_size() {
        let mut scratch = Scratch::new();
        let size = scratch.len();
        assert_eq!(scratch.as_ptr() as usize % PAGE, 0);
        assert!(SIZES.contains(&size), "{size}");
        scratch[size - 1] = 1;
    }

    #[test]
    fn it_is_a_quarter_of_the_second_cache_within_bounds() {
        for (cache, kib) in [
            (Some("512K\n"), 256),  // AMD Zen 3
            (Some("1024K\n"), 256), // Zen 4
            (Some("1280K\n"), 320), // Intel Ice Lake
            (Some("2048K\n"), 512), // Sapphire Rapids
            (Some("24576K\n"), 512),
            (Some("0K\n"), 256),
            (Some("1M\n"), 256),
            (Some("99999999999999999999K\n"), 256),
            (Some("9999999999999999999K\n"), 512),
            (None, 256),
        ] {
            assert_eq!(size_beside(cache), kib * 1024, "{cache:?}");
        }
    }
}
