//! Taking the outer headers off at the tunnel's end.

use super::checksum::{self, Delta};
use super::outer::{GUE_LEN, Partial, add};
use super::{Addr, Encapsulation, PacketBuf, Protocol, VnetHdr, ipv4, ipv6, udp};
use crate::verdict::DropReason;

/// What the outer headers said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwrapped {
    pub outer_src: Addr,
    pub outer_dst: Addr,
    pub encapsulation: Encapsulation,
}

/// Takes the outer headers off the packet in `buf`, which starts at the outer IP header: afterwards the buffer is the inner
/// packet, its ECN field as RFC 6040 section 4.2 says, and the virtio header speaks of it. Of the inner packet only version,
/// TTL and least length are looked at; all else is for [`super::View::parse`]. `gue_ports` tells which UDP destination ports
/// are GUE's.
///
/// # Errors
/// It is not tunnelled, is malformed, or is a fragment or a super-packet of tunnelled packets; the inner TTL is 0 (RFC 2003
/// section 3.1); or it was marked on the way and its transport does not know of ECN. The packet is unchanged then.
pub fn unwrap(buf: &mut PacketBuf, gue_ports: impl Fn(u16) -> bool) -> Result<Unwrapped, DropReason> {
    let packet = buf.packet();
    let outer = OuterIp::parse(packet)?;
    let packet = &packet[..outer.total_len];
    // A virtio header can speak of one level of headers only.
    if buf.vnet.is_gso() {
        return Err(DropReason::BadOffload);
    }
    // Of a datagram's fragments only the first tells whether they are GUE's.
    if outer.fragment && matches!(outer.protocol, Protocol::IPV4 | Protocol::IPV6 | Protocol::UDP) {
        return Err(DropReason::TunnelFragment);
    }
    let (encapsulation, protocol, at) = match outer.protocol {
        Protocol::IPV4 | Protocol::IPV6 => (Encapsulation::Ipip, outer.protocol, outer.header_len),
        Protocol::UDP => {
            let header = udp::parse(&packet[outer.header_len..], false)?;
            if !gue_ports(header.dport) {
                return Err(DropReason::NotTunnelled);
            }
            let protocol = parse_gue(&packet[outer.header_len..], &outer, &buf.vnet)?;
            (Encapsulation::Gue { port: header.dport }, protocol, outer.header_len + udp::LEN + GUE_LEN)
        }
        _ => return Err(DropReason::NotTunnelled),
    };
    let inner = &packet[at..];
    check_inner(inner, protocol)?;
    let ecn = combined_ecn(Ecn::of(inner), outer.ecn)?;
    let vnet = match Partial::of(&buf.vnet, outer.header_len, packet.len())? {
        // The outer checksum goes with its header; the device was asked for no other.
        Some(partial) if partial.start == outer.header_len && at > outer.header_len => VnetHdr::default(),
        Some(partial) => {
            // Behind an inner header, whose options are not looked at here.
            let start = partial.start.checked_sub(at).filter(|start| *start >= ipv4::MIN_LEN);
            Partial { start: start.ok_or(DropReason::BadOffload)?, ..partial }.vnet(0)
        }
        None => VnetHdr::default(),
    };

    let total_len = outer.total_len;
    buf.truncate(total_len);
    buf.advance(at);
    buf.vnet = vnet;
    ecn.write(buf.packet_mut());
    Ok(Unwrapped { outer_src: outer.src, outer_dst: outer.dst, encapsulation })
}

/// What the outer IP header says, whatever its family.
struct OuterIp {
    src: Addr,
    dst: Addr,
    protocol: Protocol,
    header_len: usize,
    total_len: usize,
    fragment: bool,
    ecn: Ecn,
}

impl OuterIp {
    fn parse(bytes: &[u8]) -> Result<OuterIp, DropReason> {
        let ecn = Ecn::of(bytes);
        match bytes.first().map(|byte| byte >> 4) {
            None => Err(DropReason::Truncated),
            Some(4) => {
                let ipv4::Header { src, dst, protocol, header_len, total_len, .. } = ipv4::parse(bytes, false)?;
                // Whether it is a fragment: offset and more-fragments flag.
                let fragment = u16::from_be_bytes([bytes[ipv4::FRAGMENT], bytes[ipv4::FRAGMENT + 1]]) & 0x3fff != 0;
                Ok(OuterIp { src, dst, protocol, header_len, total_len, fragment, ecn })
            }
            Some(6) => {
                let header = ipv6::parse(bytes, false)?;
                let fragment = header.fragment.is_some_and(|f| f.offset != 0 || f.more);
                let ipv6::Header { src, dst, protocol, header_len, total_len, .. } = header;
                Ok(OuterIp { src, dst, protocol, header_len, total_len, fragment, ecn })
            }
            Some(_) => Err(DropReason::NotIp),
        }
    }
}

/// Reads UDP and GUE headers and checks the datagram's checksum. Returns the inner packet's protocol.
fn parse_gue(datagram: &[u8], outer: &OuterIp, vnet: &VnetHdr) -> Result<Protocol, DropReason> {
    let len = usize::from(u16::from_be_bytes([datagram[4], datagram[5]]));
    let gue: &[u8; GUE_LEN] =
        datagram.get(udp::LEN..).and_then(|rest| rest.first_chunk()).ok_or(DropReason::Truncated)?;
    // Version 0 without control flag, optional fields (the rest of the byte) and flags, or nobody knows where the packet is.
    if len != datagram.len() || gue[0] != 0 || gue[2..] != [0; 2] {
        return Err(DropReason::BadTunnel);
    }
    // A sum of 0 means none; RFC 6935 allows it to tunnels over IPv6 as well.
    let summed = datagram[udp::CHECKSUM..udp::LEN] != [0; 2];
    if summed && !is_sum_right(datagram, outer, vnet)? {
        return Err(DropReason::BadTunnel);
    }
    Ok(Protocol(gue[1]))
}

fn is_sum_right(datagram: &[u8], outer: &OuterIp, vnet: &VnetHdr) -> Result<bool, DropReason> {
    let at = outer.header_len;
    let partial = Partial::of(vnet, at, at + datagram.len())?;
    let sum = match partial {
        // It never left a machine on its way.
        Some(partial) if partial.start == at => return Ok(true),
        // The inner packet's sum is not complete, but it is clear to what it will add up (see `Outer::checksum_udp`).
        Some(partial) => {
            let start = partial.start.checked_sub(at).ok_or(DropReason::BadOffload)?;
            Partial { start, ..partial }.sum(datagram)
        }
        None => checksum::sum(datagram),
    };
    let pseudo = checksum::pseudo_header(outer.src, outer.dst, Protocol::UDP.0, datagram.len());
    Ok(add(pseudo, sum) == 0xffff)
}

fn check_inner(inner: &[u8], protocol: Protocol) -> Result<(), DropReason> {
    let (version, least, ttl) = match protocol {
        Protocol::IPV4 => (4, ipv4::MIN_LEN, ipv4::TTL),
        Protocol::IPV6 => (6, ipv6::LEN, ipv6::HOP_LIMIT),
        _ => return Err(DropReason::BadTunnel),
    };
    if inner.len() < least {
        return Err(DropReason::Truncated);
    }
    match (inner[0] >> 4 == version, inner[ttl]) {
        (false, _) => Err(DropReason::BadTunnel),
        (true, 0) => Err(DropReason::TtlExceeded),
        (true, _) => Ok(()),
    }
}

/// The two bits of explicit congestion notification (RFC 3168 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ecn(u8);

impl Ecn {
    const NOT_ECT: Ecn = Ecn(0);
    const ECT_1: Ecn = Ecn(1);
    const ECT_0: Ecn = Ecn(2);
    const CE: Ecn = Ecn(3);

    /// Of the IP header that `packet` begins with.
    fn of(packet: &[u8]) -> Ecn {
        match *packet {
            [first, tos, ..] if first >> 4 == 4 => Ecn(tos & 3),
            [_, second, ..] => Ecn(second >> 4 & 3),
            _ => Ecn::NOT_ECT,
        }
    }

    fn write(self, packet: &mut [u8]) {
        if Ecn::of(packet) == self {
            return;
        }
        if packet[0] >> 4 == 6 {
            packet[1] = packet[1] & !0x30 | self.0 << 4;
            return;
        }
        let word = |packet: &[u8], at| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let old = word(packet, 0);
        packet[ipv4::TOS] = packet[ipv4::TOS] & !3 | self.0;
        let delta = Delta::word(old, word(packet, 0));
        let patched = delta.patch_complete(word(packet, ipv4::CHECKSUM));
        packet[ipv4::CHECKSUM..ipv4::SRC].copy_from_slice(&patched.to_be_bytes());
    }
}

/// RFC 6040 section 4.2, figure 4.
fn combined_ecn(inner: Ecn, outer: Ecn) -> Result<Ecn, DropReason> {
    match (inner, outer) {
        (Ecn::NOT_ECT, Ecn::CE) => Err(DropReason::CongestionNotEct),
        (Ecn::NOT_ECT | Ecn::CE, _) => Ok(inner),
        (_, Ecn::CE) => Ok(Ecn::CE),
        (Ecn::ECT_0, Ecn::ECT_1) => Ok(Ecn::ECT_1),
        _ => Ok(inner),
    }
}
