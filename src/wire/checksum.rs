//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A [`Delta`] is the one's complement sum of what a rewrite takes away and what it puts in. It is computed once, when a
//! flow is admitted, and patched into checksum fields of either form:
//!
//! * complete: the field holds the inverted sum, `HC' = ~(~HC + delta)` (RFC 1624 equation 3);
//! * partial (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): the field holds the sum of the pseudo header only, not inverted,
//!   `f' = f + delta`; what is not in the pseudo header (ports, payload) does not concern it.

use super::Addr;

/// What a rewrite changes in a one's complement sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u16);

impl Delta {
    /// `old` gives way to `new`.
    pub const fn word(old: u16, new: u16) -> Delta {
        Delta(fold(!old as u32 + new as u32))
    }

    /// As [`Delta::word`], for addresses. Works across families, because the fixed prefix of IPv4 cancels out.
    pub fn addr(old: Addr, new: Addr) -> Delta {
        let mut sum = 0u32;
        for (old, new) in old.octets().chunks_exact(2).zip(new.octets().chunks_exact(2)) {
            sum += u32::from(!u16::from_be_bytes([old[0], old[1]])) + u32::from(u16::from_be_bytes([new[0], new[1]]));
        }
        Delta(fold(sum))
    }

    /// Both changes.
    #[must_use]
    pub const fn and(self, other: Delta) -> Delta {
        Delta(fold(self.0 as u32 + other.0 as u32))
    }

    /// A complete checksum field after the change.
    #[inline]
    pub const fn patch_complete(self, field: u16) -> u16 {
        !fold(!field as u32 + self.0 as u32)
    }

    /// A partial checksum field after the change.
    #[inline]
    pub const fn patch_partial(self, field: u16) -> u16 {
        fold(field as u32 + self.0 as u32)
    }
}

/// Folds a sum of 16-bit words into 16 bits, with end-around carry.
#[inline]
pub const fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The one's complement sum of `bytes` (not inverted); an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    // 64-bit accumulation over 32-bit words: two chunks of 65,535 bytes cannot overflow it.
    let mut acc = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        acc += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut rest = [0u8; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    acc += u64::from(u32::from_be_bytes(rest));
    acc = (acc & 0xffff_ffff) + (acc >> 32);
    acc = (acc & 0xffff_ffff) + (acc >> 32);
    fold((acc >> 16) as u32 + (acc & 0xffff) as u32)
}

/// The sum of a TCP, UDP or ICMPv6 pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1), not inverted.
pub fn pseudo_header(src: Addr, dst: Addr, protocol: u8, len: usize) -> u16 {
    let len = len as u32;
    fold(u32::from(sum(src.wire())) + u32::from(sum(dst.wire())) + u32::from(protocol) + (len >> 16) + (len & 0xffff))
}

/// The checksum of `bytes` with a sum already begun, as it is to stand in the header.
pub fn finish(begun: u16, bytes: &[u8]) -> u16 {
    !fold(u32::from(begun) + u32::from(sum(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1624_example_gives_zero() {
        // RFC 1624 section 4: equation 2 would give 0xFFFF here.
        assert_eq!(Delta::word(0x5555, 0x3285).patch_complete(0xDD2F), 0x0000);
    }

    #[test]
    fn no_change_keeps_the_field() {
        for field in [0x0000, 0x0001, 0x1234, 0xfffe] {
            assert_eq!(Delta::default().patch_complete(field), field);
            assert_eq!(Delta::word(0xabcd, 0xabcd).patch_complete(field), field);
        }
    }

    #[test]
    fn sum_pads_an_odd_byte_on_the_right() {
        assert_eq!(sum(&[0x12]), 0x1200);
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2); // RFC 1071 section 3
        assert_eq!(sum(&[0xff; 65535]), fold(0xffff + 0xff00));
    }
}
