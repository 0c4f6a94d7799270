//! Method `tunnel`: the packet goes to the server in an outer header, IP-in-IP or GUE; the server takes that off, holds the
//! VIP and answers the client itself (RFC 2003; Linux, `ip_vs_tunnel_xmit`).

use super::refuse::Refusal;
use super::{Context, Obstacle, count_down};
use crate::verdict::DropReason;
use crate::wire::cut::{Fit, fit};
use crate::wire::{Outer, PacketBuf, View, VnetHdr, Wrap, ipv4, ipv6};

/// What a fragment carries at least: the path MTU is never believed to be less than 552 bytes ([`super::tunnel_error`]),
/// of which outer and inner headers take up to 112.
const LEAST_FRAGMENT: usize = 440;

pub fn apply(buf: &mut PacketBuf, view: &View, context: Context<'_>) -> Result<(), Obstacle> {
    let no_way = Obstacle { reason: DropReason::NoTunnelSource, refusal: Some(Refusal::HostUnreachable) };
    let server = context.server.ok_or(no_way)?;
    let source = server.source.ok_or(no_way)?;
    // A probe begins where the tunnel does; nobody else's packet may.
    if view.src == source && !context.is_probe || view.src == server.address || view.dst == server.address {
        return Err(Obstacle { reason: DropReason::TunnelLoop, refusal: Some(Refusal::HostUnreachable) });
    }
    let mtu = server.path.mtu(context.now, context.spec.mtu);
    let mut outer = Outer {
        src: source,
        dst: server.address,
        encapsulation: server.encapsulation,
        ttl: view.ttl,
        id: 0,
        entropy: entropy(view),
    };
    let df = !view.src.is_v4() || ipv4::dont_fragment(buf.packet());
    let fit = fit(view, &buf.vnet, df, outer.overhead(), source.is_v4(), mtu);
    if let Fit::TooBig { mtu } = fit {
        return Err(Obstacle { reason: DropReason::TooBig, refusal: Some(Refusal::TooBig { mtu }) });
    }
    // The outer TTL on the wire is the inner one's there. The kernel has counted the inner one down on its way in, and
    // counts the outer one down on its way out.
    outer.ttl = if context.spec.is_hop { view.ttl - 1 } else { view.ttl.saturating_add(1) };
    count_down(buf, context.spec);
    if source.is_v4() && (!df || matches!(fit, Fit::Pieces)) {
        outer.id = server.path.identifications(pieces_at_most(view, &buf.vnet));
    }
    match fit {
        Fit::Pieces => {
            buf.wrap = Some(Wrap { outer, mtu });
            Ok(())
        }
        _ => outer.wrap(buf, view).map_err(|reason| Obstacle { reason, refusal: None }),
    }
}

/// How many packets this one may become.
fn pieces_at_most(view: &View, vnet: &VnetHdr) -> u16 {
    let segment = if vnet.is_gso() { usize::from(vnet.gso_size.max(1)) } else { view.len };
    let segments = view.len / segment + 1;
    u16::try_from(segments * (segment / LEAST_FRAGMENT + 1)).unwrap_or(u16::MAX)
}

/// Equal for the packets of a flow, different for most flows. Fragments have no ports; that all of a flow's packets take
/// one way is a matter of order, not of correctness.
fn entropy(view: &View) -> u16 {
    let tuple = view.ports();
    let (sport, dport) = tuple.map_or((0, 0), |tuple| (tuple.sport, tuple.dport));
    let tail = |octets: &[u8; ipv6::ADDR_LEN]| u16::from_be_bytes([octets[14], octets[15]]);
    let mixed = u32::from(sport) << 16 | u32::from(dport ^ tail(view.src.octets()));
    (mixed.wrapping_mul(0x9e37_79b1) >> 16) as u16
}
