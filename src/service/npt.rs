//! Network prefix translation (RFC 6296, NPTv6): one prefix for another, without state, and so that no checksum changes.
//!
//! # Theory of operation
//!
//! The prefix of an address is overwritten. What that does to the sum of the address is made up for in one other word of it, so
//! the pseudo header of TCP, UDP and ICMPv6 sums up as before (section 2.6). Which word that is follows from the address
//! alone, in both directions: with prefixes of up to 48 bits the one behind them, which is the subnet (section 3.4), else the
//! first word of the interface identifier that is not 0xffff (section 3.5). Both zeros of one's complement arithmetic are one:
//! a word that would become 0xffff becomes 0, and an address that has 0xffff there cannot be mapped.

use super::Network;
use crate::wire::Addr;
use crate::wire::checksum::{fold, sum};

/// An inside prefix and the outside one that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    pub inside: Network,
    pub outside: Network,
    /// The sum of the inside prefix less that of the outside one: what is added to a word on the way out.
    adjustment: u16,
}

/// Why an address has no counterpart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// Its subnet has none (section 3.2).
    Subnet,
    /// Its interface identifier has none (section 3.7).
    Identifier,
}

/// Words of an address.
const WORDS: usize = 8;
/// The word that follows a prefix of 48 bits.
const SUBNET: usize = 3;
/// The first word of the interface identifier.
const IDENTIFIER: usize = 4;

impl Npt {
    /// `None` unless both are of IPv6. The shorter prefix is taken to go on with zeros up to the length of the longer one
    /// (section 3.1); addresses that do not begin so are not mapped.
    pub fn new(inside: Network, outside: Network) -> Option<Npt> {
        if inside.address.is_v4() || outside.address.is_v4() {
            return None;
        }
        let len = inside.len.max(outside.len).min(128);
        let (inside, outside) = (extended(inside, len), extended(outside, len));
        let adjustment = fold(u32::from(sum(inside.address.octets())) + u32::from(!sum(outside.address.octets())));
        Some(Npt { inside, outside, adjustment })
    }

    /// What an inside address is outside.
    pub fn outward(&self, addr: Addr) -> Result<Addr, Unmapped> {
        self.map(addr, (&self.inside, &self.outside), self.adjustment)
    }

    /// What an outside address is inside.
    pub fn inward(&self, addr: Addr) -> Result<Addr, Unmapped> {
        self.map(addr, (&self.outside, &self.inside), !self.adjustment)
    }

    fn map(&self, addr: Addr, (from, to): (&Network, &Network), adjustment: u16) -> Result<Addr, Unmapped> {
        if !from.contains(addr) {
            return Err(Unmapped::Subnet);
        }
        let mut words = words(addr);
        let at = self.word(&words)?;
        for (bit, (word, new)) in words.iter_mut().zip(self::words(to.address)).enumerate() {
            let mask = prefix_mask(usize::from(to.len), bit);
            *word = (*word & !mask) | (new & mask);
        }
        words[at] = match fold(u32::from(words[at]) + u32::from(adjustment)) {
            0xffff => 0,
            adjusted => adjusted,
        };
        if at >= IDENTIFIER && words[IDENTIFIER..] == [0; 4] {
            // It could not be mapped back.
            return Err(Unmapped::Identifier);
        }
        Ok(from_words(&words))
    }

    /// The word that makes up for the prefix.
    fn word(&self, words: &[u16; WORDS]) -> Result<usize, Unmapped> {
        if self.inside.len <= 48 {
            return if words[SUBNET] == 0xffff { Err(Unmapped::Subnet) } else { Ok(SUBNET) };
        }
        // Of a prefix of more than 64 bits (which the RFC does not know of) what it leaves.
        let first = usize::from(self.inside.len).div_ceil(16).max(IDENTIFIER);
        // The subnet-router anycast address (RFC 4291 section 2.6.1): section 3.7 has it dropped.
        if words[IDENTIFIER..] == [0; 4] {
            return Err(Unmapped::Identifier);
        }
        (first..WORDS).find(|at| words[*at] != 0xffff).ok_or(Unmapped::Identifier)
    }
}

/// The same prefix with so many bits, those beyond its own being zero.
fn extended(network: Network, len: u8) -> Network {
    let mut words = words(network.address);
    for (at, word) in words.iter_mut().enumerate() {
        *word &= prefix_mask(usize::from(network.len), at);
    }
    Network { address: from_words(&words), len }
}

/// The bits of word `at` that a prefix of `len` bits covers.
fn prefix_mask(len: usize, at: usize) -> u16 {
    match len.saturating_sub(at * 16) {
        0 => 0,
        bits @ 1..16 => !0 << (16 - bits),
        _ => !0,
    }
}

fn words(addr: Addr) -> [u16; WORDS] {
    let octets = addr.octets();
    std::array::from_fn(|at| u16::from_be_bytes([octets[2 * at], octets[2 * at + 1]]))
}

fn from_words(words: &[u16; WORDS]) -> Addr {
    let mut octets = [0; 16];
    for (pair, word) in octets.chunks_exact_mut(2).zip(words) {
        pair.copy_from_slice(&word.to_be_bytes());
    }
    Addr::from_v6(octets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().expect(text))
    }

    fn network(text: &str) -> Network {
        let (address, len) = text.split_once('/').expect(text);
        Network { address: addr(address), len: len.parse().expect(text) }
    }

    fn npt(inside: &str, outside: &str) -> Npt {
        Npt::new(network(inside), network(outside)).expect("both are of IPv6")
    }

    #[test]
    fn the_example_of_the_rfc() {
        // Section 3.6.
        let npt = npt("fd01:203:405::/48", "2001:db8:1::/48");
        let (inside, outside) = (addr("fd01:203:405:1::1234"), addr("2001:db8:1:d550::1234"));
        assert_eq!(npt.adjustment, 0xd54f);
        assert_eq!(npt.outward(inside), Ok(outside));
        assert_eq!(npt.inward(outside), Ok(inside));
    }

    #[test]
    fn both_zeros_are_one() {
        let npt = npt("fd01:203:405::/48", "2001:db8:1::/48");
        // 0x2ab0 + 0xd54f is 0xffff.
        assert_eq!(npt.outward(addr("fd01:203:405:2ab0::1")), Ok(addr("2001:db8:1::1")));
        assert_eq!(npt.inward(addr("2001:db8:1::1")), Ok(addr("fd01:203:405:2ab0::1")));
        assert_eq!(npt.outward(addr("fd01:203:405:ffff::1")), Err(Unmapped::Subnet));
        assert_eq!(npt.inward(addr("2001:db8:1:ffff::1")), Err(Unmapped::Subnet));
        assert_eq!(npt.outward(addr("fd01:203:406::1")), Err(Unmapped::Subnet));
    }

    #[test]
    fn longer_prefixes_leave_the_subnet_alone() {
        let npt = npt("fd01:203:405:10::/60", "2001:db8:1:20::/60");
        let mapped = npt.outward(addr("fd01:203:405:13:ffff:ffff:1:2")).expect("it has words to spare");
        // 0xfd01 + 0x0203 + 0x0405 + 0x0010 - 0x2001 - 0x0db8 - 0x0001 - 0x0020, in one's complement.
        assert_eq!(mapped, addr("2001:db8:1:23:ffff:ffff:d540:2"));
        for identifier in ["ffff:ffff:ffff:ffff", "0:0:0:0"] {
            let addr = addr(&format!("fd01:203:405:13:{identifier}"));
            assert_eq!(npt.outward(addr), Err(Unmapped::Identifier));
        }
    }

    #[test]
    fn prefixes_of_two_lengths_meet_at_the_longer_one() {
        // Section 3.7: the inside one goes on with zeros.
        let npt = npt("fd01:203:405::/48", "2001:db8:1:ab00::/56");
        let mapped = npt.outward(addr("fd01:203:405:12::7")).expect("its subnet begins with zeros");
        assert_eq!(mapped.octets()[..8], addr("2001:db8:1:ab12::").octets()[..8]);
        assert_eq!(npt.outward(addr("fd01:203:405:112::7")), Err(Unmapped::Subnet));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_mapped_sums_up_as_before_and_comes_back(
            inside: [u8; 16], outside: [u8; 16], host: [u8; 16], len in 0u8..=128, longer in 0u8..=20, ones in 0usize..9,
        ) {
            let network = |octets, len: u8| Network { address: Addr::from_v6(octets), len: len.min(128) };
            let Some(npt) = Npt::new(network(inside, len), network(outside, len.saturating_add(longer))) else {
                return Ok(());
            };
            // An address of the inside prefix, some of its words all ones.
            let mut octets = host;
            octets[16 - (ones * 2).min(16)..].fill(0xff);
            let mut all = words(Addr::from_v6(octets));
            for (at, (word, of)) in all.iter_mut().zip(words(npt.inside.address)).enumerate() {
                let mask = prefix_mask(usize::from(npt.inside.len), at);
                *word = (*word & !mask) | of;
            }
            let addr = from_words(&all);
            let Ok(mapped) = npt.outward(addr) else { return Ok(()) };
            prop_assert!(npt.outside.contains(mapped));
            prop_assert_eq!(sum(addr.octets()) % 0xffff, sum(mapped.octets()) % 0xffff);
            prop_assert_eq!(npt.inward(mapped), Ok(addr));
            // And nothing else is mapped to it.
            prop_assert_eq!(npt.inward(mapped).and_then(|addr| npt.outward(addr)), Ok(mapped));
        }
    }
}
