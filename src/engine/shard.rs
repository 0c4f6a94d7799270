//! Which shard a packet belongs to, so that both directions of a flow meet in one. It follows from the packet alone.
//!
//! * To a VIP: the client's, its source.
//! * From an inside host of a masquerade to the outside, or from one that ports are forwarded to: the host's, its source. Where
//!   that host is a server as well, the packet may be its answer to a client: the client's shard is asked first, and hands over
//!   what it does not know.
//! * To a forwarded port: that of the inside host.
//! * To an address of a pool: that which owns the port ([`owner_of_port`]), since it gave it away.
//! * Any other: an answer of a server, so its destination's.
//!
//! * Who was inside before a reload is so for the flows that live since then: these are asked for first.
//!
//! * A fragment to a pool, whose later ones have no port: that of its source. There the first one tells whose they all are, and
//!   they are handed over.
//!
//! An ICMP error goes where a packet in answer to the one that it quotes would.

use siphasher::sip::SipHasher13;

use crate::service::{Snapshot, owner_of_port};
use crate::wire::outer::parse_quoted_outer;
use crate::wire::{Addr, PacketBuf, Protocol, Transport, Tuple, View, icmp};

/// How shards are told apart: by what secret, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Sharding {
    pub seed: [u64; 2],
    pub shards: u16,
}

/// The shard that a packet belongs to, as it is.
pub fn place_of(snapshot: &Snapshot, buf: &PacketBuf, view: &View, sharding: Sharding) -> u16 {
    if view.fragment.is_some() && snapshot.pools.of(view.dst).is_some() {
        let is_vip = snapshot.is_vip(view.dst);
        let home = if is_vip { client_between(snapshot, view.src, view.dst) } else { view.src };
        return shard_of(home, sharding);
    }
    if let Transport::Icmp(icmp::Kind::Error) = view.transport
        && let Some((inner, ports)) = quoted_in_error(snapshot, buf, view)
    {
        let ends = (inner.dst, inner.src);
        return match ports {
            Some((sport, _)) => place_of_port(snapshot, ends, (inner.protocol, sport), sharding),
            None => place_between(snapshot, ends, None, sharding),
        };
    }
    match view.ports() {
        Some(tuple) => place_of_port(snapshot, (view.src, view.dst), (tuple.protocol, tuple.dport), sharding),
        None => place_between(snapshot, (view.src, view.dst), None, sharding),
    }
}

/// As [`place_of`], of a packet between these addresses to this port of a protocol, which may be forwarded.
pub fn place_of_port(
    snapshot: &Snapshot,
    (src, dst): (Addr, Addr),
    (protocol, port): (Protocol, u16),
    sharding: Sharding,
) -> u16 {
    match snapshot.pools.forward_to((dst, port), protocol) {
        Some((inside, _)) if comes_in(snapshot, src, dst) => shard_of(inside, sharding),
        _ => place_between(snapshot, (src, dst), Some(port), sharding),
    }
}

/// As [`place_of`], of a packet between these addresses to this port, or with this identifier of an ICMP query.
pub fn place_between(snapshot: &Snapshot, (src, dst): (Addr, Addr), dport: Option<u16>, sharding: Sharding) -> u16 {
    if let Some(port) = dport.filter(|port| is_in_use(snapshot, dst, *port) && comes_in(snapshot, src, dst)) {
        return owner_of_port(port, sharding.shards);
    }
    shard_of(client_between(snapshot, src, dst), sharding)
}

/// Whether what comes from `src` for `port` of `dst` is for a flow of a pool as it is. At a VIP that is a pool's address as well
/// some ports are those of services; and what an inside host sends is to be translated first.
pub(super) fn is_of_pool(snapshot: &Snapshot, (src, dst): (Addr, Addr), port: u16) -> bool {
    is_in_use(snapshot, dst, port) && !is_outbound(snapshot, src, dst)
}

fn is_in_use(snapshot: &Snapshot, dst: Addr, port: u16) -> bool {
    snapshot.pools.of(dst).is_some_and(|pool| pool.has(port) || !snapshot.is_vip(dst))
}

/// Whether a packet from `src` to `dst` is one from outside. Of a host that has come to be inside by a reload it may be of a flow
/// from before: that shard is asked first, and hands over what it does not know.
fn comes_in(snapshot: &Snapshot, src: Addr, dst: Addr) -> bool {
    !is_outbound(snapshot, src, dst) || snapshot.pools.is_newly_outward(src, dst)
}

/// The shard that is asked second about a packet of a host that was inside before some reload, and is not now.
pub(super) fn place_of_former(snapshot: &Snapshot, tuple: &Tuple, sharding: Sharding) -> Option<u16> {
    let pools = &snapshot.pools;
    if !pools.was_outward(tuple.src, tuple.dst) || snapshot.is_vip(tuple.dst) {
        return None;
    }
    // To an address that leads inside it has come as that of its own flows; it is one from outside now.
    match pools.forward_to((tuple.dst, tuple.dport), tuple.protocol) {
        Some((inside, _)) => Some(shard_of(inside, sharding)),
        None if pools.of(tuple.dst).is_some() => Some(owner_of_port(tuple.dport, sharding.shards)),
        // A server's has come as an answer.
        None => Some(shard_of(tuple.src, sharding)),
    }
}

/// The far endpoint of a packet from `src` to `dst`: whose flow it is.
///
/// Where the client is itself a VIP or a server (a program on the gateway, a server that uses its own cluster), the addresses
/// of a packet do not tell which end is which: all such flows share one answer.
pub fn client_between(snapshot: &Snapshot, src: Addr, dst: Addr) -> Addr {
    let is_outbound = is_outbound(snapshot, src, dst);
    let client = if snapshot.is_vip(dst) || is_outbound { src } else { dst };
    if is_outbound && !snapshot.is_vip(dst) {
        return client;
    }
    if snapshot.is_vip(client) || snapshot.is_server(client) { Addr::UNSPECIFIED } else { client }
}

/// Whether a packet from `src` to `dst` goes out by a mapping for all that the addresses tell. A server's may be an answer to a
/// client, but not to an address that is no client's.
fn is_outbound(snapshot: &Snapshot, src: Addr, dst: Addr) -> bool {
    let pools = &snapshot.pools;
    (pools.masquerade_for(src, dst).is_some() || pools.was_outward(src, dst) || pools.is_forwarded_to(src))
        && (!snapshot.is_server(src) || pools.is_mapped(dst))
}

/// The packet that an error quotes, and its ports.
fn quoted_in_error(snapshot: &Snapshot, buf: &PacketBuf, view: &View) -> Option<(View, Option<(u16, u16)>)> {
    let mut quoted = buf.packet().get(view.l4 + icmp::LEN..)?;
    // About one of the gateway's own outer packets: what counts is the client's packet in it.
    if snapshot.is_tunnel_source(view.dst)
        && let Ok(Some(outer)) = parse_quoted_outer(quoted, |port| snapshot.is_gue_port(port))
    {
        quoted = quoted.get(outer.inner..)?;
    }
    let (inner, tuple) = View::parse_quoted(quoted).ok()?;
    Some((inner, tuple.map(|tuple| (tuple.sport, tuple.dport))))
}

/// The shard of a client.
pub fn shard_of(client: Addr, Sharding { seed, shards }: Sharding) -> u16 {
    let hash = SipHasher13::new_with_keys(seed[0], seed[1]).hash(client.octets());
    // The high half of the product is even over all shards, without a division.
    ((u128::from(hash) * u128::from(shards)) >> 64) as u16
}
