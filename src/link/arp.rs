//! ARP between Ethernet and IPv4 (RFC 826), with the conflict rules of RFC 5227.

use super::ethernet::{self, Header, Mac, TYPE_ARP};
use crate::verdict::DropReason;
use crate::wire::Addr;

/// Bytes of a packet.
pub const LEN: usize = 28;
/// Bytes of a packet in its frame.
pub const FRAME: usize = ethernet::LEN + LEN;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request = 1,
    Reply = 2,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub operation: Operation,
    pub sender_mac: Mac,
    /// 0.0.0.0 in a probe (RFC 5227 section 2.1.1).
    pub sender: Addr,
    pub target_mac: Mac,
    pub target: Addr,
}

impl Arp {
    /// Reads a packet, which padding may follow. `Ok(None)`: well-formed, but of no interest (RARP and the like).
    pub fn parse(bytes: &[u8]) -> Result<Option<Arp>, DropReason> {
        let p: &[u8; LEN] = bytes.first_chunk().ok_or(DropReason::BadArp)?;
        // Ethernet (IEEE 802 and its kind say 6), IPv4, 6 and 4 bytes of address.
        if !matches!(p[..2], [0, 1 | 6]) || p[2..6] != [0x08, 0x00, 6, 4] {
            return Err(DropReason::BadArp);
        }
        let operation = match p[6..8] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            [0, 0] => return Err(DropReason::BadArp),
            _ => return Ok(None),
        };
        let mac = |at: usize| Mac([p[at], p[at + 1], p[at + 2], p[at + 3], p[at + 4], p[at + 5]]);
        let addr = |at: usize| Addr::from_v4([p[at], p[at + 1], p[at + 2], p[at + 3]]);
        let (sender, target) = (addr(14), addr(24));
        let probe = sender == Addr::from_v4([0; 4]);
        if (sender.is_martian_source() && !(probe && operation == Operation::Request))
            || target.is_multicast_or_broadcast() && operation == Operation::Request
        {
            return Err(DropReason::BadArp);
        }
        Ok(Some(Arp { operation, sender_mac: mac(8), sender, target_mac: mac(18), target }))
    }

    /// It announces its sender (RFC 5227 section 3).
    pub fn is_gratuitous(&self) -> bool {
        self.sender == self.target
    }

    /// The packet in a frame from its sender to `dst`.
    pub fn frame(&self, dst: Mac) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        frame[..ethernet::LEN].copy_from_slice(&Header { dst, src: self.sender_mac, ethertype: TYPE_ARP }.emit());
        let p = &mut frame[ethernet::LEN..];
        p[..8].copy_from_slice(&[0, 1, 0x08, 0x00, 6, 4, 0, self.operation as u8]);
        p[8..14].copy_from_slice(&self.sender_mac.0);
        p[14..18].copy_from_slice(&self.sender.octets()[12..]);
        p[18..24].copy_from_slice(&self.target_mac.0);
        p[24..28].copy_from_slice(&self.target.octets()[12..]);
        frame
    }
}
