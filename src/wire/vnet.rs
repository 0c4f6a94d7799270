//! `struct virtio_net_hdr`, which stands in front of each packet of a TUN device with `IFF_VNET_HDR`
//! (Linux, `include/uapi/linux/virtio_net.h`; little-endian hosts and `TUNSETVNETLE` aside, it is in host order).

/// Bytes of the header.
pub const VNET_HDR_LEN: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// What the kernel says of a packet's checksum and segmentation, and what we say of it when we hand it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`, perhaps with the ECN bit.
    pub gso_type: u8,
    /// Length of the headers. The kernel does not promise that it is right.
    pub hdr_len: u16,
    /// Payload bytes a segment.
    pub gso_size: u16,
    /// Where the checksummed range starts, from the packet's first byte.
    pub csum_start: u16,
    /// Where in that range the checksum field is.
    pub csum_offset: u16,
}

impl VnetHdr {
    pub const GSO_NONE: u8 = 0;
    pub const GSO_TCPV4: u8 = 1;
    pub const GSO_TCPV6: u8 = 4;
    pub const GSO_UDP_L4: u8 = 5;

    pub fn decode(bytes: &[u8; VNET_HDR_LEN]) -> VnetHdr {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        VnetHdr {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    pub fn encode(&self) -> [u8; VNET_HDR_LEN] {
        let mut bytes = [0; VNET_HDR_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// Whether the checksum that starts at `l4` is partial.
    #[inline]
    pub const fn is_partial(&self, l4: usize) -> bool {
        self.flags & F_NEEDS_CSUM != 0 && self.csum_start as usize == l4
    }

    pub const fn needs_csum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// A header that asks for the checksum at `csum_start + csum_offset` to be completed.
    pub const fn partial(csum_start: u16, csum_offset: u16) -> VnetHdr {
        VnetHdr { flags: F_NEEDS_CSUM, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start, csum_offset }
    }

    /// The same, when `len` bytes stand in front of what it counted from.
    #[must_use]
    pub const fn behind(mut self, len: usize) -> VnetHdr {
        if self.needs_csum() {
            self.csum_start = self.csum_start.saturating_add(len as u16);
        }
        if self.hdr_len > 0 {
            self.hdr_len = self.hdr_len.saturating_add(len as u16);
        }
        self
    }

    /// The segmentation type without the ECN bit.
    pub const fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    pub const fn is_gso(&self) -> bool {
        self.gso() != Self::GSO_NONE
    }
}
