//! The engine's part in NPTv6 (RFC 6296): packets between an inside prefix and the outside one that stands for it. Nothing is
//! kept of them, fragments included, and nothing but addresses changes: checksums stay right as they are.
//!
//! Most are known by their addresses, and need no look into the flow table. Two kinds might be of a flow, and come here only
//! when they are not: what an inside host sends that is also a server, and ICMP errors.

use super::Engine;
use crate::forward::refuse::Refusal;
use crate::service::Unmapped;
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, PacketBuf, Protocol, Transport, Tuple, View, decrement_ttl, icmp, ipv6};

/// Router and neighbour discovery, and redirects: about one link (RFC 4861).
const ND: std::ops::RangeInclusive<u8> = 133..=137;

/// What becomes of the addresses of a packet; `None` of one that stays.
#[derive(Clone, Copy, Debug, Default)]
struct Mapped {
    src: Option<Addr>,
    dst: Option<Addr>,
}

impl Mapped {
    fn is_nothing(self) -> bool {
        self.src.is_none() && self.dst.is_none()
    }
}

/// An address that cannot be mapped, and where it stands in the IPv6 header.
struct Unmappable {
    why: Unmapped,
    at: usize,
}

impl Engine {
    /// A packet that addresses alone say all of; `None`: it is to be looked at.
    #[inline]
    pub(super) fn translate_prefix(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Option<Verdict> {
        if !self.snapshot.pools.has_npt() || view.src.is_v4() {
            return None;
        }
        let is_error = matches!(view.transport, Transport::Icmp(icmp::Kind::Error));
        if is_error || self.snapshot.is_server(view.src) {
            return None;
        }
        self.translate_prefix_at_last(now, buf, view)
    }

    /// Any packet that is no flow's; `None`: its prefixes stay.
    pub(super) fn translate_prefix_at_last(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
    ) -> Option<Verdict> {
        if !self.snapshot.pools.has_npt() || view.src.is_v4() {
            return None;
        }
        let mapped = match self.mapped(view.src, view.dst) {
            Ok(mapped) => mapped,
            Err(unmappable) => return Some(self.refuse_prefix(now, buf, view, &unmappable)),
        };
        let quoted = self.mapped_in_error(buf, view);
        if mapped.is_nothing() && quoted.is_nothing() {
            return None;
        }
        if is_about_a_link(buf, view) {
            return Some(Verdict::Drop(DropReason::UnsupportedIcmp));
        }
        if view.ttl <= 1 {
            let (refusal, from) = (Refusal::TimeExceeded, self.own_address_towards(view));
            return Some(self.refuse(now, buf, view, DropReason::TtlExceeded, refusal, from));
        }
        write(buf.packet_mut(), mapped);
        if let Some(inner) = buf.packet_mut().get_mut(view.l4 + icmp::LEN..) {
            write(inner, quoted);
        }
        if self.snapshot.spec.is_hop {
            decrement_ttl(buf.packet_mut());
        }
        Some(Verdict::Forward)
    }

    /// What a packet of this tuple becomes that is no flow's; `None`: its prefixes stay.
    pub(crate) fn foresee_prefix(&self, packet: &Tuple) -> Option<Result<Tuple, DropReason>> {
        if packet.src.is_v4() {
            return None;
        }
        match self.mapped(packet.src, packet.dst) {
            Ok(mapped) if mapped.is_nothing() => None,
            Ok(Mapped { src, dst }) => {
                Some(Ok(Tuple { src: src.unwrap_or(packet.src), dst: dst.unwrap_or(packet.dst), ..*packet }))
            }
            Err(_) => Some(Err(DropReason::NoPrefixMapping)),
        }
    }

    /// The source becomes an outside one where the packet leaves, the destination an inside one where it comes in; both when
    /// an inside host sends to another one by its outside address (RFC 6296 section 4.3).
    fn mapped(&self, src: Addr, dst: Addr) -> Result<Mapped, Unmappable> {
        let pools = &self.snapshot.pools;
        // An inside host is a client of services under its own address.
        if self.snapshot.is_ours(dst) || self.snapshot.is_vip(dst) || pools.of(dst).is_some() {
            return Ok(Mapped::default());
        }
        let unmappable = |at| move |why| Unmappable { why, at };
        let outward = pools.masquerade_for(src, dst).and_then(|masquerade| masquerade.npt.as_ref());
        let inward = pools.npt_of(dst);
        Ok(Mapped {
            src: outward.map(|npt| npt.outward(src)).transpose().map_err(unmappable(ipv6::SRC))?,
            dst: inward.map(|npt| npt.inward(dst)).transpose().map_err(unmappable(ipv6::DST))?,
        })
    }

    /// The same for the packet that an ICMP error quotes, which goes the other way. One that cannot be mapped was not sent
    /// through here.
    fn mapped_in_error(&self, buf: &PacketBuf, view: &View) -> Mapped {
        if !matches!(view.transport, Transport::Icmp(icmp::Kind::Error)) {
            return Mapped::default();
        }
        let Some(quoted) = buf.packet().get(view.l4 + icmp::LEN..) else { return Mapped::default() };
        let addr = |at: usize| quoted.get(at..)?.first_chunk().copied().map(Addr::from_v6);
        let (Some(6), Some(src), Some(dst)) = (quoted.first().map(|b| b >> 4), addr(ipv6::SRC), addr(ipv6::DST)) else {
            return Mapped::default();
        };
        if src.is_v4() || dst.is_v4() {
            return Mapped::default();
        }
        let back = self.mapped(dst, src).unwrap_or_default();
        Mapped { src: back.dst, dst: back.src }
    }

    fn refuse_prefix(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, unmappable: &Unmappable) -> Verdict {
        let refusal = match unmappable.why {
            Unmapped::Subnet => Refusal::HostUnreachable,
            Unmapped::Identifier => Refusal::ParameterProblem { pointer: unmappable.at as u8 },
        };
        let from = self.own_address_towards(view);
        self.refuse(now, buf, view, DropReason::NoPrefixMapping, refusal, from)
    }

    /// Whom the sender of a packet is answered from: the gateway (RFC 4443 section 2.2), by an address on the sender's side of
    /// the translation, since nobody outside is to see an inside one. Where it has none the packet's destination has to do.
    fn own_address_towards(&self, view: &View) -> Addr {
        let pools = &self.snapshot.pools;
        let is_inside = pools.is_inside(view.src);
        let is_global = |addr: &Addr| !addr.is_v4() && !matches!(addr.octets(), [0xfe, 0x80..=0xbf, ..]);
        let fits = |addr: &&Addr| is_global(addr) && pools.is_inside(**addr) == is_inside;
        self.snapshot.spec.own_addresses.iter().find(fits).copied().unwrap_or(view.dst)
    }
}

fn is_about_a_link(buf: &PacketBuf, view: &View) -> bool {
    matches!(view.transport, Transport::Icmp(icmp::Kind::Other))
        && view.protocol == Protocol::ICMPV6
        && buf.packet().get(view.l4).is_some_and(|kind| ND.contains(kind))
}

/// Writes the addresses into a packet that begins with a whole IPv6 header.
fn write(packet: &mut [u8], mapped: Mapped) {
    for (addr, at) in [(mapped.src, ipv6::SRC), (mapped.dst, ipv6::DST)] {
        if let (Some(addr), Some(field)) = (addr, packet.get_mut(at..at + 16)) {
            field.copy_from_slice(addr.octets());
        }
    }
}
