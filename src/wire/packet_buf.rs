//! The buffer that a packet lives in from read to write.

use super::vnet::{VNET_HDR_LEN, VnetHdr};
use super::{Addr, Wrap};

/// Room in front of a packet: for the device's own header, and for headers that an encapsulation or an ICMP error puts
/// in front, so that nothing is ever moved.
pub const HEADROOM: usize = 128;

/// The largest packet that a device hands over (a super-packet included).
pub const MAX_PACKET: usize = 65_535;

/// The same with an Ethernet header.
pub const MAX_FRAME: usize = MAX_PACKET + 14;

/// One packet, from its IP header on, with room in front and what the device said of its offloads.
#[derive(Clone, Debug)]
pub struct PacketBuf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    pub vnet: VnetHdr,
    /// The neighbour that it goes to, whatever its destination address; `None`: the way of its destination address.
    pub hop: Option<Addr>,
    /// It does not leave as it is: whoever writes it cuts it, and wraps each piece (`cut`).
    pub wrap: Option<Wrap>,
    /// It is in for the second time: what stands in it as its source is the gateway's own doing.
    pub is_turned: bool,
}

impl PacketBuf {
    /// An empty buffer for packets of up to `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> PacketBuf {
        PacketBuf {
            bytes: vec![0; HEADROOM + capacity].into_boxed_slice(),
            start: HEADROOM,
            end: HEADROOM,
            vnet: VnetHdr::default(),
            hop: None,
            wrap: None,
            is_turned: false,
        }
    }

    /// A buffer that holds `packet`, without offloads.
    pub fn from_packet(packet: &[u8]) -> PacketBuf {
        let mut buf = PacketBuf::with_capacity(packet.len());
        buf.bytes[HEADROOM..].copy_from_slice(packet);
        buf.end = buf.bytes.len();
        buf
    }

    #[inline]
    pub fn packet(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    #[inline]
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Cuts the packet to its first `len` bytes; does nothing when it is shorter.
    pub fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start + len);
    }

    /// Puts `bytes` behind the packet; `false`, and nothing is done, when there is no room.
    #[must_use]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(self.end..self.end + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.end += bytes.len();
        true
    }

    /// Puts `bytes` where the packet's own are from `at` on. Where the buffer has no room for them it gets more.
    pub fn replace_from(&mut self, at: usize, bytes: &[u8]) {
        let from = (self.start + at).min(self.end);
        let end = from + bytes.len();
        if end > self.bytes.len() {
            let mut larger = vec![0; end].into_boxed_slice();
            larger[..from].copy_from_slice(&self.bytes[..from]);
            self.bytes = larger;
        }
        self.bytes[from..end].copy_from_slice(bytes);
        self.end = end;
    }

    /// Takes the first `len` bytes off the packet; more than there are leave nothing.
    pub fn advance(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
    }

    /// Opens `len` bytes in front of the packet and returns them, not cleared. `None` when the headroom is too small.
    pub fn prepend(&mut self, len: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(len)?;
        Some(&mut self.bytes[self.start..self.start + len])
    }

    /// Holds `packet` instead, without offloads. `false` when it does not fit, and then nothing has changed.
    #[must_use]
    pub fn replace(&mut self, packet: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(HEADROOM..HEADROOM + packet.len()) else { return false };
        room.copy_from_slice(packet);
        (self.start, self.end) = (HEADROOM, HEADROOM + packet.len());
        (self.vnet, self.hop, self.wrap) = (VnetHdr::default(), None, None);
        self.is_turned = false;
        true
    }

    /// A copy that takes no more memory than the packet needs.
    pub fn compact(&self) -> PacketBuf {
        let PacketBuf { vnet, hop, wrap, is_turned, .. } = *self;
        PacketBuf { vnet, hop, wrap, is_turned, ..PacketBuf::from_packet(self.packet()) }
    }

    /// The area for a device to read into: a virtio header, then the packet. Forgets what was in the buffer.
    pub fn read_area(&mut self) -> &mut [u8] {
        self.start = HEADROOM;
        self.end = HEADROOM;
        self.hop = None;
        self.wrap = None;
        self.is_turned = false;
        &mut self.bytes[HEADROOM - VNET_HDR_LEN..]
    }

    /// After a read of `len` bytes into [`PacketBuf::read_area`]: decodes the virtio header. `false` when it is not whole.
    #[must_use]
    pub fn read_done(&mut self, len: usize) -> bool {
        let Some(packet) = len.checked_sub(VNET_HDR_LEN) else { return false };
        let Some(header) = self.bytes[HEADROOM - VNET_HDR_LEN..].first_chunk::<VNET_HDR_LEN>() else { return false };
        self.vnet = VnetHdr::decode(header);
        self.start = HEADROOM;
        self.end = (HEADROOM + packet).min(self.bytes.len());
        true
    }

    /// The bytes for a device to write: the virtio header, then the packet. Packets start at least the header's length
    /// into the buffer, or this would have to move them: `None` when an encapsulation used up that room.
    pub fn write_area(&mut self) -> Option<&[u8]> {
        let from = self.start.checked_sub(VNET_HDR_LEN)?;
        self.bytes[from..self.start].copy_from_slice(&self.vnet.encode());
        Some(&self.bytes[from..self.end])
    }
}
