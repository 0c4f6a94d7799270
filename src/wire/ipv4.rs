//! The IPv4 header (RFC 791).

use super::{Addr, Protocol, checksum};
use crate::verdict::DropReason;

pub const MIN_LEN: usize = 20;
pub const TOTAL_LEN: usize = 2;
pub const ID: usize = 4;
pub const TTL: usize = 8;
pub const CHECKSUM: usize = 10;
pub const SRC: usize = 12;
pub const DST: usize = 16;

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

/// Whether the packet must not be fragmented.
pub fn df(packet: &[u8]) -> bool {
    packet.get(6).is_some_and(|flags| flags & 0x40 != 0)
}

/// Writes a header of 20 bytes, complete with its checksum, with DF set and identification 0, as RFC 6864 section 4 allows
/// for a packet that is never fragmented. `payload` in bytes.
pub fn emit(out: &mut [u8; MIN_LEN], src: Addr, dst: Addr, protocol: Protocol, tos: u8, payload: usize) {
    let total = (MIN_LEN + payload) as u16;
    *out = [0; MIN_LEN];
    out[0] = 0x45;
    out[1] = tos;
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out[6] = 0x40;
    out[TTL] = 64;
    out[9] = protocol.0;
    out[SRC..DST].copy_from_slice(&src.wire()[..4]);
    out[DST..].copy_from_slice(&dst.wire()[..4]);
    let sum = checksum::finish(0, &out[..]);
    out[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}
