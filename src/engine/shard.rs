//! Which shard a packet belongs to: that of the client's address, so that both directions of a flow meet in one.

use siphasher::sip::SipHasher13;

use crate::service::Snapshot;
use crate::wire::outer::parse_quoted_outer;
use crate::wire::{Addr, PacketBuf, Transport, View, icmp};

/// The far endpoint of a packet's flow: its source when it is addressed to a VIP, else its destination. Of an ICMP error,
/// that of the packet that it quotes. Both directions of a flow give the same answer, whatever is translated.
///
/// Where the client is itself a VIP or a server (a program on the gateway, a server that uses its own cluster), the addresses
/// of a packet do not tell which end is which: all such flows share one answer.
pub fn client_of(snapshot: &Snapshot, buf: &PacketBuf, view: &View) -> Addr {
    let (src, dst) = match quoted_in_error(snapshot, buf, view) {
        Some(inner) => (inner.dst, inner.src),
        None => (view.src, view.dst),
    };
    client_between(snapshot, src, dst)
}

/// As [`client_of`], of a packet from `src` to `dst`.
pub fn client_between(snapshot: &Snapshot, src: Addr, dst: Addr) -> Addr {
    let client = if snapshot.is_vip(dst) { src } else { dst };
    if snapshot.is_vip(client) || snapshot.is_server(client) { Addr::UNSPECIFIED } else { client }
}

fn quoted_in_error(snapshot: &Snapshot, buf: &PacketBuf, view: &View) -> Option<View> {
    let Transport::Icmp(icmp::Kind::Error) = view.transport else { return None };
    let mut quoted = buf.packet().get(view.l4 + icmp::LEN..)?;
    // About one of the gateway's own outer packets: what counts is the client's packet in it.
    if snapshot.is_tunnel_source(view.dst)
        && let Ok(Some(outer)) = parse_quoted_outer(quoted, |port| snapshot.is_gue_port(port))
    {
        quoted = quoted.get(outer.inner..)?;
    }
    View::parse_quoted(quoted).ok().map(|(inner, _)| inner)
}

/// The shard of a client, out of `shards`.
pub fn shard_of(client: Addr, seed: [u64; 2], shards: usize) -> usize {
    let hash = SipHasher13::new_with_keys(seed[0], seed[1]).hash(client.octets());
    // The high half of the product is even over all shards, without a division.
    ((u128::from(hash) * shards as u128) >> 64) as usize
}
