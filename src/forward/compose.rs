//! Segments that the gateway itself makes.

use super::refuse::prepend_ip;
use crate::wire::{Options, PacketBuf, Protocol, Tuple, VnetHdr, checksum, tcp};

/// A segment without payload.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    pub tuple: &'a Tuple,
    pub seq: u32,
    /// With it [`tcp::ACK`] is set.
    pub ack: Option<u32>,
    /// Those besides.
    pub flags: u8,
    pub window: u16,
    pub options: Options,
}

impl Segment<'_> {
    /// Puts it where the packet in the buffer was. `false`: there is no room.
    #[must_use]
    pub fn replace(&self, buf: &mut PacketBuf) -> bool {
        let mut options = [0; 40];
        let len = self.options.write(&mut options);
        let mut segment = [0u8; tcp::MIN_LEN + 40];
        segment[..2].copy_from_slice(&self.tuple.sport.to_be_bytes());
        segment[2..4].copy_from_slice(&self.tuple.dport.to_be_bytes());
        segment[tcp::SEQ..tcp::ACK_NUMBER].copy_from_slice(&self.seq.to_be_bytes());
        segment[tcp::ACK_NUMBER..12].copy_from_slice(&self.ack.unwrap_or(0).to_be_bytes());
        segment[12] = ((tcp::MIN_LEN + len) as u8) << 2;
        segment[tcp::FLAGS] = self.flags | if self.ack.is_some() { tcp::ACK } else { 0 };
        segment[tcp::WINDOW..tcp::CHECKSUM].copy_from_slice(&self.window.to_be_bytes());
        segment[tcp::MIN_LEN..].copy_from_slice(&options);
        let segment = &mut segment[..tcp::MIN_LEN + len];
        let pseudo = checksum::pseudo_header(self.tuple.src, self.tuple.dst, Protocol::TCP.0, segment.len());
        let sum = checksum::finish(pseudo, segment);
        segment[tcp::CHECKSUM..tcp::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        buf.truncate(0);
        (buf.vnet, buf.hop, buf.wrap) = (VnetHdr::default(), None, None);
        let Some(room) = buf.prepend(segment.len()) else { return false };
        room.copy_from_slice(segment);
        prepend_ip(buf, self.tuple.src, self.tuple.dst, Protocol::TCP, 0)
    }
}
