//! The TCP header (RFC 9293 section 3.1).

use super::checksum::Delta;
use crate::verdict::DropReason;

pub const MIN_LEN: usize = 20;
pub const SEQ: usize = 4;
pub const ACK_NUMBER: usize = 8;
pub const FLAGS: usize = 13;
pub const WINDOW: usize = 14;
pub const CHECKSUM: usize = 16;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
/// Congestion window reduced (RFC 3168 section 6.1.2).
pub const CWR: u8 = 0x80;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub header_len: usize,
    /// Sequence numbers that the segment takes up: payload, and one each for SYN and FIN.
    pub seq_len: u32,
}

impl Header {
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The sequence number after the segment.
    pub const fn seq_end(&self) -> u32 {
        self.seq.wrapping_add(self.seq_len)
    }
}

/// Reads the header; `bytes` ends where the IP packet does.
pub fn parse(bytes: &[u8]) -> Result<Header, DropReason> {
    let header: &[u8; MIN_LEN] = bytes.first_chunk().ok_or(DropReason::Truncated)?;
    let header_len = usize::from(header[12] >> 4) * 4;
    let flags = header[13];
    let contradiction = flags & SYN != 0 && flags & (FIN | RST) != 0;
    if header_len < MIN_LEN || contradiction {
        return Err(DropReason::BadTransportHeader);
    }
    let payload = bytes.len().checked_sub(header_len).ok_or(DropReason::Truncated)?;
    let long = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Ok(Header {
        sport: u16::from_be_bytes([header[0], header[1]]),
        dport: u16::from_be_bytes([header[2], header[3]]),
        seq: long(4),
        ack: long(8),
        flags,
        window: u16::from_be_bytes([header[14], header[15]]),
        header_len,
        seq_len: payload as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0),
    })
}

/// Lowers the MSS option (RFC 9293 section 3.7.1) of a SYN to `mss`, and patches the checksum unless it is `partial`
/// (then it does not cover options yet). A missing or smaller option stays as it is.
pub fn clamp_mss(segment: &mut [u8], header_len: usize, mss: u16, partial: bool) {
    let mut at = MIN_LEN;
    while at + 4 <= header_len && header_len <= segment.len() {
        match (segment[at], usize::from(segment[at + 1])) {
            (OPTION_END, _) => return,
            (OPTION_NOP, _) => at += 1,
            (OPTION_MSS, 4) => {
                let old = u16::from_be_bytes([segment[at + 2], segment[at + 3]]);
                if old > mss {
                    segment[at + 2..at + 4].copy_from_slice(&mss.to_be_bytes());
                    if !partial {
                        // At an odd place the option's bytes stand in the other halves of the summed words.
                        let delta = if at.is_multiple_of(2) {
                            Delta::word(old, mss)
                        } else {
                            Delta::word(old.swap_bytes(), mss.swap_bytes())
                        };
                        let field = u16::from_be_bytes([segment[CHECKSUM], segment[CHECKSUM + 1]]);
                        let patched = delta.patch_complete(field);
                        segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&patched.to_be_bytes());
                    }
                }
                return;
            }
            (_, len) if len < 2 => return,
            (_, len) => at += len,
        }
    }
}
