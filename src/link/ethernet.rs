//! Ethernet II frames (RFC 894, RFC 2464) around the packet in a [`PacketBuf`], put on and taken off in its headroom.

use std::fmt;
use std::str::FromStr;

use crate::wire::{Addr, PacketBuf};

/// Bytes of the header.
pub const LEN: usize = 14;
pub const TYPE_IPV4: u16 = 0x0800;
pub const TYPE_ARP: u16 = 0x0806;
pub const TYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q and 802.1ad.
pub const TYPES_TAGGED: [u16; 2] = [0x8100, 0x88a8];

/// The address of an interface on its segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    pub const ZERO: Mac = Mac([0; 6]);
    /// All nodes of IPv6 (RFC 2464 section 7).
    pub const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

    /// Broadcast included.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether an interface may have it.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != Mac::ZERO
    }

    /// Where packets to an IPv6 multicast address go (RFC 2464 section 7).
    pub fn of_multicast(group: Addr) -> Mac {
        let last = group.octets();
        Mac([0x33, 0x33, last[12], last[13], last[14], last[15]])
    }

    /// The link-local address that goes with it (RFC 2464 section 5, modified EUI-64).
    pub const fn link_local(self) -> Addr {
        let [a, b, c, d, e, f] = self.0;
        Addr::from_v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ();

    /// `02:00:00:00:00:01`: six times two digits.
    fn from_str(text: &str) -> Result<Mac, ()> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(())?;
        }
        parts.next().is_none().then_some(Mac(mac)).ok_or(())
    }
}

/// What stands in front of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: u16,
}

impl Header {
    pub fn parse(frame: &[u8]) -> Option<Header> {
        let h: &[u8; LEN] = frame.first_chunk()?;
        Some(Header {
            dst: Mac([h[0], h[1], h[2], h[3], h[4], h[5]]),
            src: Mac([h[6], h[7], h[8], h[9], h[10], h[11]]),
            ethertype: u16::from_be_bytes([h[12], h[13]]),
        })
    }

    pub fn emit(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&self.dst.0);
        bytes[6..12].copy_from_slice(&self.src.0);
        bytes[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        bytes
    }
}

/// The EtherType of an IP packet to or from `addr`.
pub fn ethertype_of(addr: Addr) -> u16 {
    if addr.is_v4() { TYPE_IPV4 } else { TYPE_IPV6 }
}

/// Takes the header off. What the virtio header counts from the frame's first byte is then counted from the packet's, as
/// everywhere behind the device. `false` for a checksum that starts within the Ethernet header: no such frame is whole.
#[must_use]
pub fn strip(buf: &mut PacketBuf) -> bool {
    if buf.len() < LEN {
        return false;
    }
    if buf.vnet.needs_csum() {
        let Some(start) = buf.vnet.csum_start.checked_sub(LEN as u16) else { return false };
        buf.vnet.csum_start = start;
    }
    buf.vnet.hdr_len = buf.vnet.hdr_len.saturating_sub(LEN as u16);
    buf.advance(LEN);
    true
}

/// Puts a header in front: the way back from [`strip`]. `false` when the headroom is used up.
#[must_use]
pub fn prepend(buf: &mut PacketBuf, header: &[u8; LEN]) -> bool {
    let Some(room) = buf.prepend(LEN) else { return false };
    room.copy_from_slice(header);
    buf.vnet = buf.vnet.behind(LEN);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VnetHdr;

    #[test]
    fn macs_are_read_as_they_are_written() {
        let mac: Mac = "02:00:5E:10:00:ff".parse().expect("a MAC");
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for wrong in
            ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "2:0:5e:10:0:ff", "02:00:5e:10:00:+f", "02005e1000ff"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_link_local_address_is_that_of_the_rfc() {
        // RFC 2464 section 4.
        let mac: Mac = "34:56:78:9a:bc:de".parse().expect("a MAC");
        assert_eq!(mac.link_local().to_string(), "fe80::3656:78ff:fe9a:bcde");
    }

    #[test]
    fn a_header_comes_off_as_it_went_on_with_what_counts_from_it() {
        let mut buf = PacketBuf::from_packet(&[0x45; 60]);
        buf.vnet = VnetHdr { hdr_len: 40, ..VnetHdr::partial(20, 16) };
        let header = Header { dst: Mac([2; 6]), src: Mac([4; 6]), ethertype: TYPE_IPV4 }.emit();
        assert!(prepend(&mut buf, &header));
        assert_eq!((buf.len(), buf.vnet.csum_start, buf.vnet.csum_offset, buf.vnet.hdr_len), (74, 34, 16, 54));
        assert_eq!(Header::parse(buf.packet()).map(|h| h.emit()), Some(header));
        assert!(strip(&mut buf));
        assert_eq!((buf.packet(), buf.vnet.csum_start, buf.vnet.hdr_len), (&[0x45; 60][..], 20, 40));

        buf.vnet = VnetHdr::partial(13, 0);
        assert!(!strip(&mut buf), "the checksum would start before the packet");
    }
}
