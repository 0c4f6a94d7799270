//! Method `nat`: the destination becomes the server, the client's address and port stay as they are.

use crate::service::{Server, Service};
use crate::wire::{PacketBuf, Rewrite, Transport, Tuple, View, ipv4, ipv6, tcp};

/// The reply tuple of a flow to `server`.
pub fn plan(service: &Service, server: &Server, original: &Tuple) -> Tuple {
    Tuple {
        src: server.address,
        dst: original.src,
        sport: service.server_port(server, original.dport),
        dport: original.sport,
        protocol: original.protocol,
    }
}

/// Translates a packet of a flow, or a later fragment of one. Replies come by the gateway's device as well: both ends are
/// told what fits through it.
#[inline]
pub fn apply(rewrite: &Rewrite, buf: &mut PacketBuf, view: &View, mtu: u16) {
    if let Transport::Later = view.transport {
        return rewrite.apply_addresses(buf.packet_mut());
    }
    clamp_mss(buf, view, mtu);
    let vnet = buf.vnet;
    rewrite.apply(buf.packet_mut(), view, &vnet);
}

fn clamp_mss(buf: &mut PacketBuf, view: &View, mtu: u16) {
    let Transport::Tcp(segment) = view.transport else { return };
    if !segment.has(tcp::SYN) {
        return;
    }
    let headers = tcp::MIN_LEN + if view.src.is_v4() { ipv4::MIN_LEN } else { ipv6::LEN };
    let partial = buf.vnet.is_partial(view.l4);
    tcp::clamp_mss(&mut buf.packet_mut()[view.l4..], segment.header_len, mtu.saturating_sub(headers as u16), partial);
}

/// A client may use one source port towards two VIPs that share a server; seen from the server the two would be one
/// connection. The later one gets another source port, as netfilter gives it (Linux, `net/netfilter/nf_nat_core.c`,
/// `nf_nat_l4proto_unique_tuple`): from the same part of the port space, at random.
pub fn other_source_port(planned: Tuple, random: u64, attempt: u16) -> Tuple {
    let (low, size) = match planned.dport {
        0..512 => (1, 511),
        512..1024 => (512, 512),
        _ => (1024, 64512),
    };
    // An odd stride walks the whole range without repeating itself.
    let stride = 1 + 2 * ((random >> 32) % 1021);
    let offset = (random % size + u64::from(attempt) * stride) % size;
    Tuple { dport: (low + offset) as u16, ..planned }
}
