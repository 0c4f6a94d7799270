//! The real server's end of a tunnel: which packets are taken out of it, and in what state they are handed to the host.
//!
//! # What is taken
//!
//! A packet is looked at only if its outer source is one of the gateways: everything else a stranger may have sent, and
//! nothing of it is parsed. Then its encapsulation has to be allowed, its headers have to be right, and the packet inside
//! has to be for one of the VIPs, from somebody who can be a client. Each refusal has a reason of its own.
//!
//! # The checksum inside
//!
//! On a link without a wire (veth, virtio) the transport checksum of the packet inside may be partial: the sender's
//! kernel left the sum of the pseudo header in the field, for a device to complete, and no device did. The outer packet
//! was handed over with that knowledge in the kernel's own notes (`CHECKSUM_PARTIAL`), which a raw socket does not tell.
//! So the field itself has to tell: where it equals the pseudo header's sum, not inverted, the packet is handed to the
//! host as partial, otherwise as complete, which the host verifies.
//!
//! That is sound. A partial checksum is always recognised. A complete one that happens to equal that sum, one in 65,535,
//! is taken for partial, which the host does not verify: the packet is delivered as it came, which is right. What is lost
//! is the discovery of an error in such a packet, and a checksum of 16 bits overlooks as many errors anyway.

use crate::verdict::DropReason;
use crate::wire::checksum::pseudo_header;
use crate::wire::{Addr, Encapsulation, PacketBuf, Protocol, Transport, View, VnetHdr, ipv4, ipv6, tcp, udp, unwrap};

/// What a real server takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Addresses that the host answers under.
    pub vips: Vec<Addr>,
    /// Outer sources that are listened to.
    pub gateways: Vec<Addr>,
    pub ipip: bool,
    /// UDP ports on which GUE is taken.
    pub gue_ports: Vec<u16>,
}

/// Packets and bytes, without the outer headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub packets: u64,
    pub bytes: u64,
}

/// What happened to packets from the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub ipip: Volume,
    pub gue: Volume,
    /// By [`DropReason`], in the order of [`DropReason::ALL`].
    pub drops: [u64; DropReason::COUNT],
}

impl Default for Received {
    fn default() -> Received {
        Received { ipip: Volume::default(), gue: Volume::default(), drops: [0; DropReason::COUNT] }
    }
}

impl Received {
    /// Adds another's counters.
    pub fn merge(&mut self, other: &Received) {
        for (sum, n) in [(&mut self.ipip, other.ipip), (&mut self.gue, other.gue)] {
            sum.packets += n.packets;
            sum.bytes += n.bytes;
        }
        for (sum, n) in self.drops.iter_mut().zip(other.drops) {
            *sum += n;
        }
    }
}

impl RealServer {
    /// Takes the packet in `buf` out of its tunnel, or says why not, and counts it. On success `buf` holds the packet
    /// inside, from its IP header on, ready for the host.
    pub fn handle(&self, buf: &mut PacketBuf, received: &mut Received) -> Result<(), DropReason> {
        match self.take(buf) {
            Ok(encapsulation) => {
                let volume = match encapsulation {
                    Encapsulation::Ipip => &mut received.ipip,
                    Encapsulation::Gue { .. } => &mut received.gue,
                };
                volume.packets += 1;
                volume.bytes += buf.len() as u64;
                Ok(())
            }
            Err(reason) => {
                received.drops[reason as usize] += 1;
                Err(reason)
            }
        }
    }

    fn take(&self, buf: &mut PacketBuf) -> Result<Encapsulation, DropReason> {
        let source = source(buf.packet())?;
        if !self.gateways.contains(&source) {
            return Err(DropReason::UnknownGateway);
        }
        let unwrapped = unwrap(buf, |port| self.gue_ports.contains(&port))?;
        if unwrapped.encapsulation == Encapsulation::Ipip && !self.ipip {
            return Err(DropReason::TunnelNotAllowed);
        }
        let view = View::parse(buf.packet())?;
        buf.truncate(view.len);
        if !self.vips.contains(&view.dst) {
            return Err(DropReason::NotOurVip);
        }
        if view.src.is_martian_source() || self.vips.contains(&view.src) {
            return Err(DropReason::Martian);
        }
        buf.vnet = offloads(buf.packet(), &view);
        Ok(unwrapped.encapsulation)
    }
}

/// The source of the outer header.
fn source(packet: &[u8]) -> Result<Addr, DropReason> {
    let field = |at: usize, len: usize| packet.get(at..at + len).ok_or(DropReason::Truncated);
    match field(0, 1)?[0] >> 4 {
        4 => field(ipv4::SRC, 4)?.first_chunk::<4>().map(|octets| Addr::from_v4(*octets)),
        6 => field(ipv6::SRC, 16)?.first_chunk::<16>().map(|octets| Addr::from_v6(*octets)),
        _ => None,
    }
    .ok_or(DropReason::NotIp)
}

/// What to tell the host of the packet's checksum.
fn offloads(packet: &[u8], view: &View) -> VnetHdr {
    let checksum = match view.transport {
        Transport::Tcp(_) => tcp::CHECKSUM,
        Transport::Udp(_) => udp::CHECKSUM,
        _ => return VnetHdr::default(),
    };
    // Whoever fragments a packet has completed its checksum.
    let Some(field) = packet.get(view.l4 + checksum..view.l4 + checksum + 2).filter(|_| view.fragment.is_none()) else {
        return VnetHdr::default();
    };
    let len = view.len - view.l4;
    let pseudo = pseudo_header(view.src, view.dst, view.protocol.0, len);
    let absent = view.protocol == Protocol::UDP && field == [0, 0];
    match u16::from_be_bytes([field[0], field[1]]) == pseudo && !absent {
        true => VnetHdr::partial(view.l4 as u16, checksum as u16),
        false => VnetHdr::default(),
    }
}
