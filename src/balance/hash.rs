//! Hashes that are the same on every machine and in every version: clients stay where they are across an upgrade, and
//! the nodes of a fleet agree. Not against attackers: whoever owns many addresses can aim at one backend.

use std::net::IpAddr;

/// 2^64 over the golden ratio: consecutive multiples of it are far apart.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key by which the hashing algorithms know a client: its address without the port. An IPv4 address is the same
/// client when it comes mapped into IPv6. A client without an address (Unix sockets) is spread by its ticket.
pub fn client_key(ip: Option<IpAddr>, ticket: u64) -> u64 {
    match ip.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => mix(GOLDEN ^ u64::from(ip.to_bits())),
        Some(IpAddr::V6(ip)) => mix(mix((ip.to_bits() >> 64) as u64) ^ ip.to_bits() as u64),
        None => mix(ticket.wrapping_mul(GOLDEN)),
    }
}

/// Spreads a change of any bit over all of them: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number below `bound` for the upper 32 bits of `bits`; its bias is under bound / 2^32.
pub(super) fn below(bits: u64, bound: u64) -> u64 {
    ((bits >> 32) * bound) >> 32
}

/// FNV-1a, mixed because its upper bits are poor for short texts.
pub(super) fn of_name(name: &str) -> u64 {
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_never_change_between_versions() {
        let key = |ip: &str| client_key(Some(ip.parse().unwrap()), 0);
        assert_eq!(key("10.0.0.1"), 0x1df1_e852_3a8e_1674);
        assert_eq!(key("2001:db8::1"), 0xc575_3b06_5fae_ad2c);
        assert_eq!(of_name("backend-1"), 0x3635_40f6_99ae_a3ce);
    }

    #[test]
    fn a_client_is_its_address_however_it_comes() {
        let key = |ip: &str, ticket| client_key(Some(ip.parse().unwrap()), ticket);
        assert_eq!(key("10.0.0.1", 1), key("::ffff:10.0.0.1", 2));
        assert_ne!(key("10.0.0.1", 1), key("10.0.0.2", 1));
        assert_ne!(key("2001:db8::1", 1), key("2001:db8::2", 1));
        assert_ne!(key("2001:db8:1::1", 1), key("2001:db8::1", 1));
    }

    #[test]
    fn a_client_without_an_address_is_spread_by_its_ticket() {
        let mut hits = [0u32; 4];
        (0..4000).for_each(|ticket| hits[(client_key(None, ticket) % 4) as usize] += 1);
        assert!(hits.iter().all(|n| (900..1100).contains(n)), "{hits:?}");
    }
}
