//! Rewriting addresses and ports in place, with every checksum that covers them. Of an ICMP query the identifier takes the
//! place of ports: a tuple has it twice, the message once.

use super::checksum::Delta;
use super::{Addr, Protocol, Tuple, View, icmp, ipv4, ipv6, tcp, udp};
use crate::wire::vnet::VnetHdr;

/// A translation with its checksum deltas worked out: plain data, to be replayed on every packet of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    pub src: Addr,
    pub dst: Addr,
    pub sport: u16,
    pub dport: u16,
    /// What the change of both addresses does to a sum.
    pub addresses: Delta,
    /// What the change of both ports does to a sum.
    pub ports: Delta,
}

impl Rewrite {
    /// Turns packets of tuple `from` into packets of tuple `to`.
    pub fn between(from: &Tuple, to: &Tuple) -> Rewrite {
        let (addresses, ports) = Rewrite::deltas(from, to);
        Rewrite { src: to.src, dst: to.dst, sport: to.sport, dport: to.dport, addresses, ports }
    }

    /// The deltas alone: what a flow keeps, since its tuples hold the rest.
    pub fn deltas(from: &Tuple, to: &Tuple) -> (Delta, Delta) {
        let addresses = Delta::addr(from.src, to.src).and(Delta::addr(from.dst, to.dst));
        let source = Delta::word(from.sport, to.sport);
        // The identifier stands in the message once (RFC 792, RFC 4443 section 4).
        let ports = if from.protocol.is_icmp() { source } else { source.and(Delta::word(from.dport, to.dport)) };
        (addresses, ports)
    }

    /// Rewrites a packet that is no fragment, or a first fragment. `view` must be of this packet.
    #[inline]
    pub fn apply(&self, packet: &mut [u8], view: &View, vnet: &VnetHdr) {
        self.apply_addresses(packet);
        self.apply_transport(&mut packet[view.l4..], view.protocol, vnet.is_partial(view.l4));
    }

    /// Rewrites a later fragment: addresses only, the checksum over ports and payload stands in the first one.
    #[inline]
    pub fn apply_addresses(&self, packet: &mut [u8]) {
        if self.src.is_v4() {
            packet[ipv4::SRC..ipv4::DST].copy_from_slice(&self.src.octets()[12..]);
            packet[ipv4::DST..ipv4::DST + 4].copy_from_slice(&self.dst.octets()[12..]);
            patch(packet, ipv4::CHECKSUM, |field| self.addresses.patch_complete(field));
        } else {
            packet[ipv6::SRC..ipv6::DST].copy_from_slice(self.src.octets());
            packet[ipv6::DST..ipv6::DST + 16].copy_from_slice(self.dst.octets());
        }
    }

    /// Rewrites ports, or the identifier of an ICMP query, and the transport checksum; `segment` starts at the transport
    /// header. What lies beyond its end (in a packet that an ICMP error quotes) is left out.
    #[inline]
    pub fn apply_transport(&self, segment: &mut [u8], protocol: Protocol, partial: bool) {
        let checksum = match protocol {
            Protocol::TCP => tcp::CHECKSUM,
            Protocol::UDP => udp::CHECKSUM,
            Protocol::ICMP | Protocol::ICMPV6 => return self.apply_icmp(segment, protocol, partial),
            _ => return,
        };
        if segment.len() >= 4 {
            segment[..2].copy_from_slice(&self.sport.to_be_bytes());
            segment[2..4].copy_from_slice(&self.dport.to_be_bytes());
        }
        let delta = if partial { self.addresses } else { self.addresses.and(self.ports) };
        if protocol == Protocol::TCP {
            return patch(segment, checksum, |field| self.patch(field, delta, partial));
        }
        patch(segment, checksum, |field| match field {
            // No checksum (RFC 768; over IPv6 RFC 6935 allows it to tunnels): it stays so.
            0 if !partial => 0,
            _ => match self.patch(field, delta, partial) {
                0 if !partial => 0xffff,
                patched => patched,
            },
        });
    }

    fn apply_icmp(&self, message: &mut [u8], protocol: Protocol, partial: bool) {
        // ICMPv6 has a pseudo header, ICMP has none.
        let mut delta = if protocol == Protocol::ICMPV6 { self.addresses } else { Delta::default() };
        if icmp::has_identifier(message, protocol, self.src)
            && let Some(id) = message.get_mut(icmp::ID..icmp::ID + 2)
        {
            id.copy_from_slice(&self.sport.to_be_bytes());
            if !partial {
                delta = delta.and(self.ports);
            }
        }
        patch(message, icmp::CHECKSUM, |field| self.patch(field, delta, partial));
    }

    #[inline]
    fn patch(&self, field: u16, delta: Delta, partial: bool) -> u16 {
        if partial { delta.patch_partial(field) } else { delta.patch_complete(field) }
    }
}

/// Replaces the identification of an IPv4 packet.
pub fn ipv4_id(packet: &mut [u8], id: u16) {
    let Some(old) = packet.get(ipv4::ID..ipv4::ID + 2) else { return };
    let delta = Delta::word(u16::from_be_bytes([old[0], old[1]]), id);
    packet[ipv4::ID..ipv4::ID + 2].copy_from_slice(&id.to_be_bytes());
    patch(packet, ipv4::CHECKSUM, |field| delta.patch_complete(field));
}

/// Replaces the 16-bit field at `at`; does nothing when it lies beyond the end.
#[inline]
fn patch(bytes: &mut [u8], at: usize, f: impl FnOnce(u16) -> u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *field = f(u16::from_be_bytes(*field)).to_be_bytes();
    }
}

/// Counts the TTL or hop limit down by one, which is at least 1.
#[inline]
pub fn decrement_ttl(packet: &mut [u8]) {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let Some(old) = packet.get(ipv4::TTL..ipv4::TTL + 2) else { return };
            let old = u16::from_be_bytes([old[0], old[1]]);
            packet[ipv4::TTL] = packet[ipv4::TTL].saturating_sub(1);
            let new = u16::from_be_bytes([packet[ipv4::TTL], packet[ipv4::TTL + 1]]);
            patch(packet, ipv4::CHECKSUM, |field| Delta::word(old, new).patch_complete(field));
        }
        Some(6) => {
            if let Some(limit) = packet.get_mut(ipv6::HOP_LIMIT) {
                *limit = limit.saturating_sub(1);
            }
        }
        _ => {}
    }
}
