//! The UDP header (RFC 768).

use crate::verdict::DropReason;

pub const LEN: usize = 8;
pub const LENGTH: usize = 4;
pub const CHECKSUM: usize = 6;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub sport: u16,
    pub dport: u16,
}

/// Reads the header; `bytes` ends where the IP packet does. The length field of a `fragment` counts what is not here.
pub fn parse(bytes: &[u8], fragment: bool) -> Result<Header, DropReason> {
    let header: &[u8; LEN] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if len < LEN || (!fragment && len > bytes.len()) {
        return Err(DropReason::BadTransportHeader);
    }
    Ok(Header { sport: u16::from_be_bytes([header[0], header[1]]), dport: u16::from_be_bytes([header[2], header[3]]) })
}
