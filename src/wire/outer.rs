//! The outer headers of tunnelled packets: IP-in-IP (RFC 2003, RFC 4213, RFC 2473) and GUE (draft-ietf-intarea-gue, in
//! the form of Linux, `net/ipv4/fou_core.c`), in all four combinations of address families.
//!
//! The outer header takes TOS or traffic class from the inner packet, ECN included (RFC 2003 section 3.1, RFC 6040 section
//! 4.1, normal mode), and DF of IPv4. IPv6 is never fragmented on its way and so counts as a packet with DF.
//!
//! GUE over IPv4 has no UDP checksum, as Linux sends it. Over IPv6 it has one, since receivers that were not told to expect
//! none drop such a datagram (RFC 8200 section 8.1). It costs no pass over the payload: see `Outer::checksum_udp`.

use std::fmt;

use super::checksum::{self, fold};
use super::{Addr, MAX_PACKET, PacketBuf, Protocol, View, VnetHdr, ipv4, ipv6, udp};
use crate::verdict::DropReason;

/// The UDP port of GUE unless the configuration has another (IANA, `gue`).
pub const GUE_PORT: u16 = 6080;

/// How packets are wrapped on their way to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encapsulation {
    /// The inner packet follows the outer IP header: protocol 4 or 41.
    #[default]
    Ipip,
    /// Outer IP, UDP, four bytes of GUE, the inner packet. `port` is the destination.
    Gue { port: u16 },
}

impl Encapsulation {
    /// The word in config and outputs.
    pub const fn word(self) -> &'static str {
        match self {
            Encapsulation::Ipip => "ipip",
            Encapsulation::Gue { .. } => "gue",
        }
    }
}

impl fmt::Display for Encapsulation {
    /// `ipip`, `gue`, or with another than the usual port `gue:7000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Encapsulation::Gue { port } if port != GUE_PORT => write!(f, "gue:{port}"),
            other => f.write_str(other.word()),
        }
    }
}

/// One end of a tunnel to the other: what the outer header of every packet of a flow has in common. DF, TOS and the
/// protocol follow from the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Of one family, which need not be that of the inner packet.
    pub src: Addr,
    pub dst: Addr,
    pub encapsulation: Encapsulation,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Of the first outer IPv4 header without DF; counts up from piece to piece (RFC 6864).
    pub id: u16,
    /// Tells flows apart where the network spreads by UDP ports: the source port of GUE is made of it.
    pub entropy: u16,
}

/// A packet that is to be wrapped when it is written, since it does not leave in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrap {
    pub outer: Outer,
    /// Bytes that a packet may have on the way to the tunnel's end, outer headers included: 68 to 65535.
    pub mtu: u16,
}

/// Bytes of a GUE header without optional fields.
pub const GUE_LEN: usize = 4;

/// Bytes of the largest outer headers: IPv6, UDP, GUE.
pub(super) const MAX_OVERHEAD: usize = ipv6::LEN + udp::LEN + GUE_LEN;

impl Outer {
    /// Bytes in front of the inner packet: the outer IP header, and for GUE those of UDP and GUE.
    pub fn overhead(&self) -> usize {
        self.ip_len() + self.shim_len()
    }

    /// Wraps the packet of `buf` in place, in the headroom; for a packet that leaves in one piece, so no super-packet.
    /// `view` is of the inner packet; bytes behind it are cut off. Where the device is to complete a checksum, the virtio
    /// header says where it is now.
    ///
    /// # Errors
    /// The packet is too long for an outer header, or its virtio header contradicts it. It is unchanged then.
    pub fn wrap(&self, buf: &mut PacketBuf, view: &View) -> Result<(), DropReason> {
        buf.truncate(view.len);
        if buf.vnet.is_gso() {
            return Err(DropReason::BadOffload);
        }
        let packet = buf.packet();
        let partial = Partial::of(&buf.vnet, view.l4, packet.len())?;
        let mut room = [0; MAX_OVERHEAD];
        let (headers, vnet) = self.headers(&mut room, &Inner::of(packet), packet.len(), self.id, partial, packet)?;
        buf.prepend(headers.len()).ok_or(DropReason::TooBig)?.copy_from_slice(headers);
        buf.vnet = vnet;
        Ok(())
    }

    fn ip_len(&self) -> usize {
        if self.dst.is_v4() { ipv4::MIN_LEN } else { ipv6::LEN }
    }

    /// Bytes between the outer IP header and the inner packet.
    fn shim_len(&self) -> usize {
        match self.encapsulation {
            Encapsulation::Ipip => 0,
            Encapsulation::Gue { .. } => udp::LEN + GUE_LEN,
        }
    }

    /// The outer headers of an inner packet of `len` bytes that begins with `head`, and what the device is to be told.
    /// `partial` is the inner packet's checksum that is still to be completed; its field lies in `head`.
    pub(super) fn headers<'a>(
        &self,
        room: &'a mut [u8; MAX_OVERHEAD],
        inner: &Inner,
        len: usize,
        id: u16,
        partial: Option<Partial>,
        head: &[u8],
    ) -> Result<(&'a [u8], VnetHdr), DropReason> {
        let (overhead, ip_len) = (self.overhead(), self.ip_len());
        let headers = &mut room[..overhead];
        let fragment = if inner.df { ipv4::DF } else { 0 };
        let id = if inner.df { 0 } else { id };
        self.write_ip(headers, inner, self.protocol(inner), overhead - ip_len + len, (id, fragment))?;
        let moved = partial.map_or_else(VnetHdr::default, |partial| partial.vnet(overhead));
        if !self.write_shim(&mut headers[ip_len..], inner, len) {
            return Ok((headers, moved));
        }
        let vnet = self.checksum_udp(&mut headers[ip_len..], len, partial, head).unwrap_or(moved);
        Ok((headers, vnet))
    }

    /// Bytes in front of the payload of each fragment of a tunnelled packet.
    pub(super) fn fragment_overhead(&self) -> usize {
        self.ip_len() + if self.dst.is_v4() { 0 } else { ipv6::FRAGMENT_LEN }
    }

    /// The headers of a fragment of a tunnelled packet; its place is given as offset and length in bytes.
    pub(super) fn fragment_headers<'a>(
        &self,
        room: &'a mut [u8; MAX_OVERHEAD],
        inner: &Inner,
        id: u16,
        (offset, len): (usize, usize),
        more: bool,
    ) -> Result<&'a [u8], DropReason> {
        let (headers, offset) = (&mut room[..self.fragment_overhead()], offset as u16);
        let protocol = self.protocol(inner);
        if self.dst.is_v4() {
            let fragment = (offset / 8) | if more { ipv4::MF } else { 0 };
            self.write_ip(headers, inner, protocol, len, (id, fragment))?;
            return Ok(headers);
        }
        self.write_ip(headers, inner, Protocol(ipv6::FRAGMENT), ipv6::FRAGMENT_LEN + len, (0, 0))?;
        let header = &mut headers[ipv6::LEN..];
        header[..2].copy_from_slice(&[protocol.0, 0]);
        header[2..4].copy_from_slice(&(offset | u16::from(more)).to_be_bytes());
        header[4..6].copy_from_slice(&self.entropy.to_be_bytes());
        header[6..].copy_from_slice(&id.to_be_bytes());
        Ok(headers)
    }

    /// The headers between outer IP and inner packet, for a tunnelled packet that is fragmented: the UDP checksum, where one
    /// is wanted, covers all fragments and is complete. The inner packet is given in two parts.
    pub(super) fn shim<'a>(
        &self,
        room: &'a mut [u8; MAX_OVERHEAD],
        inner: &Inner,
        (head, body): (&[u8], &[u8]),
    ) -> &'a [u8] {
        let (shim, len) = (&mut room[..self.shim_len()], head.len() + body.len());
        if self.write_shim(shim, inner, len) {
            let pseudo = checksum::pseudo_header(self.src, self.dst, Protocol::UDP.0, shim.len() + len);
            let sum = add(add(pseudo, checksum::sum(shim)), add(checksum::sum(head), checksum::sum(body)));
            shim[udp::CHECKSUM..udp::LEN].copy_from_slice(&complete(sum).to_be_bytes());
        }
        shim
    }

    /// Writes the IP header. IPv4 alone has an identification, and flags with the offset as in [`ipv4::Fields`].
    fn write_ip(
        &self,
        out: &mut [u8],
        inner: &Inner,
        protocol: Protocol,
        payload: usize,
        (id, fragment): (u16, u16),
    ) -> Result<(), DropReason> {
        if payload + self.ip_len() > MAX_PACKET {
            return Err(DropReason::TooBig);
        }
        let (src, dst, ttl) = (self.src, self.dst, self.ttl);
        if let (true, Some(out)) = (dst.is_v4(), out.first_chunk_mut()) {
            let fields = ipv4::Fields { src, dst, protocol, tos: inner.tos, ttl, id, fragment, payload };
            ipv4::emit_fields(out, &fields);
        } else if let Some(out) = out.first_chunk_mut() {
            ipv6::emit(out, src, dst, protocol, payload);
            out[0] = 0x60 | inner.tos >> 4;
            out[1] = inner.tos << 4;
            // What tells flows apart for GUE by its port does so here, where routers look at the label (RFC 6438).
            out[2..4].copy_from_slice(&self.entropy.to_be_bytes());
            out[ipv6::HOP_LIMIT] = ttl;
        }
        Ok(())
    }

    /// What follows the outer IP header: UDP for GUE, otherwise the inner packet.
    fn protocol(&self, inner: &Inner) -> Protocol {
        match self.encapsulation {
            Encapsulation::Ipip => inner.protocol(),
            Encapsulation::Gue { .. } => Protocol::UDP,
        }
    }

    /// Writes the headers between outer IP and inner packet, the UDP checksum 0; `false` when none is wanted.
    fn write_shim(&self, out: &mut [u8], inner: &Inner, len: usize) -> bool {
        let (Encapsulation::Gue { port }, Some(out)) = (self.encapsulation, out.first_chunk_mut::<12>()) else {
            return false;
        };
        *out = [0; udp::LEN + GUE_LEN];
        // A port of the dynamic range (RFC 6335 section 6).
        out[..2].copy_from_slice(&(self.entropy | 0xc000).to_be_bytes());
        out[2..4].copy_from_slice(&port.to_be_bytes());
        out[4..6].copy_from_slice(&((udp::LEN + GUE_LEN + len) as u16).to_be_bytes());
        // Version 0, a data message, no optional fields.
        out[9] = inner.protocol().0;
        !self.dst.is_v4()
    }

    /// Writes the UDP checksum over IPv6, without looking at the payload:
    ///
    /// * The inner checksum is complete: the outer one is left to the device, and what it is to be told is returned.
    /// * The inner one is partial, so the device cannot be asked for another. But once that is completed, what it covers
    ///   adds up to the complement of what stands in its field now, and all in front of it is in `head` (Linux,
    ///   `Documentation/networking/checksum-offloads.rst`, LCO).
    fn checksum_udp(&self, shim: &mut [u8], len: usize, partial: Option<Partial>, head: &[u8]) -> Option<VnetHdr> {
        let pseudo = checksum::pseudo_header(self.src, self.dst, Protocol::UDP.0, shim.len() + len);
        let (field, vnet) = match partial {
            None => (pseudo, Some(VnetHdr::partial(self.ip_len() as u16, udp::CHECKSUM as u16))),
            Some(partial) => (complete(add(add(pseudo, checksum::sum(shim)), partial.sum(head))), None),
        };
        shim[udp::CHECKSUM..udp::LEN].copy_from_slice(&field.to_be_bytes());
        vnet
    }
}

/// What an outer header has from the packet in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inner {
    pub v4: bool,
    /// TOS or traffic class.
    pub tos: u8,
    pub df: bool,
}

impl Inner {
    /// `packet` begins with a whole IP header.
    pub fn of(packet: &[u8]) -> Inner {
        let (first, second) = (packet.first().copied().unwrap_or(0), packet.get(1).copied().unwrap_or(0));
        match first >> 4 == 4 {
            true => Inner { v4: true, tos: second, df: ipv4::dont_fragment(packet) },
            false => Inner { v4: false, tos: first << 4 | second >> 4, df: true },
        }
    }

    fn protocol(&self) -> Protocol {
        if self.v4 { Protocol::IPV4 } else { Protocol::IPV6 }
    }
}

/// A checksum that is still to be completed, by its place in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partial {
    pub start: usize,
    /// Counted from `start`.
    pub offset: usize,
}

impl Partial {
    /// What the virtio header says of a packet of `len` bytes, the first `ip_len` of them IP headers. Sums go by 16-bit
    /// words, so the places must be even, as those of all headers are.
    pub fn of(vnet: &VnetHdr, ip_len: usize, len: usize) -> Result<Option<Partial>, DropReason> {
        if !vnet.needs_csum() {
            return Ok(None);
        }
        let partial = Partial { start: usize::from(vnet.csum_start), offset: usize::from(vnet.csum_offset) };
        let fits = partial.field() + 2 <= len && partial.start >= ip_len;
        if !fits || !partial.start.is_multiple_of(2) || !partial.offset.is_multiple_of(2) {
            return Err(DropReason::BadOffload);
        }
        Ok(Some(partial))
    }

    pub fn field(&self) -> usize {
        self.start + self.offset
    }

    /// What the device is told when `overhead` bytes stand in front.
    pub fn vnet(&self, overhead: usize) -> VnetHdr {
        VnetHdr::partial((overhead + self.start) as u16, self.offset as u16)
    }

    /// The sum of the whole packet once this is complete. `head`: the packet at least up to the field's end.
    pub fn sum(&self, head: &[u8]) -> u16 {
        let at = self.field();
        add(checksum::sum(&head[..self.start]), !u16::from_be_bytes([head[at], head[at + 1]]))
    }
}

pub(super) fn add(a: u16, b: u16) -> u16 {
    fold(u32::from(a) + u32::from(b))
}

/// A sum as it is to stand in the header: 0 would say that there is none (RFC 768).
pub(super) fn complete(sum: u16) -> u16 {
    match !sum {
        0 => 0xffff,
        field => field,
    }
}

/// What an ICMP error quotes when it is about one of our outer packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotedOuter {
    pub src: Addr,
    pub dst: Addr,
    pub encapsulation: Encapsulation,
    /// Where the inner packet starts in the quoted bytes; their end or beyond when nothing of it is quoted.
    pub inner: usize,
}

/// Reads the packet that an ICMP error quotes, from its IP header on, as one that was tunnelled. `Ok(None)`: it was not. Its
/// end may be missing. `gue_ports` tells which UDP destination ports are GUE's.
///
/// # Errors
/// The quoted outer header is malformed.
pub fn parse_quoted_outer(bytes: &[u8], gue_ports: impl Fn(u16) -> bool) -> Result<Option<QuotedOuter>, DropReason> {
    let (view, tuple) = View::parse_quoted(bytes)?;
    let later = view.fragment.is_some_and(|fragment| fragment.offset != 0);
    let (encapsulation, inner) = match view.protocol {
        Protocol::IPV4 | Protocol::IPV6 if later => (Encapsulation::Ipip, bytes.len()),
        Protocol::IPV4 | Protocol::IPV6 => (Encapsulation::Ipip, view.l4),
        Protocol::UDP => match tuple {
            Some(tuple) if gue_ports(tuple.dport) => {
                (Encapsulation::Gue { port: tuple.dport }, view.l4 + udp::LEN + GUE_LEN)
            }
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(QuotedOuter { src: view.src, dst: view.dst, encapsulation, inner }))
}
