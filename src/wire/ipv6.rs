//! The IPv6 header and the extension headers (RFC 8200 section 4).

use super::{Addr, Protocol};
use crate::verdict::DropReason;

pub const LEN: usize = 40;
pub const ADDR_LEN: usize = 16;
/// The smallest MTU that a link may have (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;
pub const PAYLOAD_LEN: usize = 4;
pub const NEXT_HEADER: usize = 6;
pub const HOP_LIMIT: usize = 7;
pub const SRC: usize = 8;
pub const DST: usize = 24;

/// Extension headers walked at most; real packets have one or two.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
/// Bytes of a fragment header.
pub(super) const FRAGMENT_LEN: usize = 8;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// What the headers say.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub src: Addr,
    pub dst: Addr,
    /// Of the upper layer.
    pub protocol: Protocol,
    pub hop_limit: u8,
    /// Extension headers included.
    pub header_len: usize,
    pub total_len: usize,
    pub fragment: Option<Fragment>,
}

/// The fragment header.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    pub id: u32,
    /// In bytes.
    pub offset: u16,
    /// Bytes behind this header, by the packet's length.
    pub len: u16,
    pub more: bool,
}

/// Reads the headers. `quoted` is what an ICMP error carries: its end may be missing.
pub fn parse(bytes: &[u8], quoted: bool) -> Result<Header, DropReason> {
    let header: &[u8; LEN] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    let total_len = LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if !quoted && bytes.len() < total_len {
        return Err(DropReason::Truncated);
    }
    let addr = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Addr::from_v6(octets)
    };
    let (src, dst) = (addr(SRC), addr(DST));
    if src.is_v4() || dst.is_v4() {
        return Err(DropReason::BadIpHeader);
    }
    let bytes = &bytes[..bytes.len().min(total_len)];
    let (next, header_len, fragment) = walk_extensions(bytes, total_len, header[6])?;
    Ok(Header { src, dst, protocol: Protocol(next), hop_limit: header[HOP_LIMIT], header_len, total_len, fragment })
}

fn walk_extensions(bytes: &[u8], total_len: usize, mut next: u8) -> Result<(u8, usize, Option<Fragment>), DropReason> {
    let mut at = LEN;
    let mut fragment = None;
    for _ in 0..MAX_EXTENSIONS {
        let header = match next {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | FRAGMENT | AUTHENTICATION => {
                bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or(DropReason::Truncated)?
            }
            _ => return Ok((next, at, fragment)),
        };
        // With segments left, the destination is not the one that the transport checksum covers (RFC 8200 section 8.1).
        if next == ROUTING && header[3] != 0 {
            return Err(DropReason::BadIpHeader);
        }
        let len = match next {
            FRAGMENT => {
                if fragment.is_some() {
                    return Err(DropReason::BadFragment);
                }
                let field = u16::from_be_bytes([header[2], header[3]]);
                fragment = Some(Fragment {
                    id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                    offset: field & 0xfff8,
                    len: total_len.saturating_sub(at + FRAGMENT_LEN) as u16,
                    more: field & 1 != 0,
                });
                FRAGMENT_LEN
            }
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
        at += len;
        if at > bytes.len() {
            return Err(DropReason::Truncated);
        }
        // What follows a later fragment's header is payload, not headers.
        if fragment.is_some_and(|f: Fragment| f.offset != 0) {
            return Ok((next, at, fragment));
        }
    }
    Err(DropReason::TooManyExtensionHeaders)
}

/// Writes a header without extensions. `payload` in bytes.
pub fn emit(out: &mut [u8; LEN], src: Addr, dst: Addr, protocol: Protocol, payload: usize) {
    *out = [0; LEN];
    out[0] = 0x60;
    out[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    out[6] = protocol.0;
    out[HOP_LIMIT] = 64;
    out[SRC..DST].copy_from_slice(src.octets());
    out[DST..].copy_from_slice(dst.octets());
}
