//! The IPv4 header (RFC 791).

use super::{Addr, Protocol, checksum};
use crate::verdict::DropReason;

pub const MIN_LEN: usize = 20;
/// With as many options as there can be.
pub(super) const MAX_LEN: usize = 60;
/// The smallest MTU that a link may have (RFC 791 section 3.2).
pub const MIN_MTU: u16 = 68;
pub const TOS: usize = 1;
pub const TOTAL_LEN: usize = 2;
pub const ID: usize = 4;
pub const FRAGMENT: usize = 6;
pub const TTL: usize = 8;
pub const PROTOCOL: usize = 9;
pub const CHECKSUM: usize = 10;
pub const SRC: usize = 12;
pub const DST: usize = 16;

/// Don't fragment, in the 16 bits at [`FRAGMENT`].
pub const DF: u16 = 0x4000;
/// More fragments.
pub const MF: u16 = 0x2000;
/// The offset, in units of 8 bytes.
pub(super) const OFFSET: u16 = 0x1fff;

pub(super) const OPTION_END: u8 = 0;
pub(super) const OPTION_NOP: u8 = 1;
/// Of an option's type: it goes into every fragment.
pub(super) const OPTION_COPIED: u8 = 0x80;

/// What the header says.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub src: Addr,
    pub dst: Addr,
    pub protocol: Protocol,
    pub ttl: u8,
    pub header_len: usize,
    pub total_len: usize,
    pub id: u16,
    /// In bytes.
    pub fragment_offset: u16,
    pub more_fragments: bool,
}

/// Reads the header. `quoted` is what an ICMP error carries: its end may be missing.
pub fn parse(bytes: &[u8], quoted: bool) -> Result<Header, DropReason> {
    let header: &[u8; MIN_LEN] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < MIN_LEN || total_len < header_len {
        return Err(DropReason::BadIpHeader);
    }
    if bytes.len() < header_len || (!quoted && bytes.len() < total_len) {
        return Err(DropReason::Truncated);
    }
    if checksum::sum(&bytes[..header_len]) != 0xffff {
        return Err(DropReason::BadIpChecksum);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Ok(Header {
        src: Addr::from_v4([header[12], header[13], header[14], header[15]]),
        dst: Addr::from_v4([header[16], header[17], header[18], header[19]]),
        protocol: Protocol(header[9]),
        ttl: header[TTL],
        header_len,
        total_len,
        id: u16::from_be_bytes([header[4], header[5]]),
        fragment_offset: (fragment & 0x1fff) << 3,
        more_fragments: fragment & 0x2000 != 0,
    })
}

/// Whether routers may not fragment the packet; `packet` begins with a whole header.
pub fn dont_fragment(packet: &[u8]) -> bool {
    packet.get(FRAGMENT).is_some_and(|byte| byte & 0x40 != 0)
}

/// What a header without options is made of.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    pub src: Addr,
    pub dst: Addr,
    pub protocol: Protocol,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    /// The flags and the offset in units of 8 bytes, as they stand in the header: [`DF`], [`MF`].
    pub fragment: u16,
    /// In bytes.
    pub payload: usize,
}

/// Writes a header of 20 bytes, complete with its checksum.
pub fn emit_fields(out: &mut [u8; MIN_LEN], fields: &Fields) {
    let total = (MIN_LEN + fields.payload) as u16;
    *out = [0; MIN_LEN];
    out[0] = 0x45;
    out[TOS] = fields.tos;
    out[TOTAL_LEN..ID].copy_from_slice(&total.to_be_bytes());
    out[ID..FRAGMENT].copy_from_slice(&fields.id.to_be_bytes());
    out[FRAGMENT..TTL].copy_from_slice(&fields.fragment.to_be_bytes());
    out[TTL] = fields.ttl;
    out[PROTOCOL] = fields.protocol.0;
    out[SRC..DST].copy_from_slice(&fields.src.octets()[12..]);
    out[DST..].copy_from_slice(&fields.dst.octets()[12..]);
    let sum = checksum::finish(0, &out[..]);
    out[CHECKSUM..SRC].copy_from_slice(&sum.to_be_bytes());
}

/// Writes a header of 20 bytes, complete with its checksum, with DF set and identification 0, as RFC 6864 section 4 allows
/// for a packet that is never fragmented. `payload` in bytes.
pub fn emit(out: &mut [u8; MIN_LEN], src: Addr, dst: Addr, protocol: Protocol, tos: u8, payload: usize) {
    emit_fields(out, &Fields { src, dst, protocol, tos, ttl: 64, id: 0, fragment: DF, payload });
}

/// Writes the checksum of the header that is all of `header` anew.
pub(super) fn write_checksum(header: &mut [u8]) {
    header[CHECKSUM..SRC].fill(0);
    let sum = checksum::finish(0, header);
    header[CHECKSUM..SRC].copy_from_slice(&sum.to_be_bytes());
}
