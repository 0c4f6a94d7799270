//! A RST that ends a connection whose server is gone, as the other end would have sent it.
//!
//! A receiver takes a RST whose sequence number is the very next that it expects, and answers another one within its window
//! by asking (RFC 5961 section 3.2). The highest number that its peer was seen to send is what it expects once everything
//! has arrived; where the peer is not seen, it is what the receiver acknowledged last. If segments were lost on the way, the
//! receiver asks, its question belongs to no flow any more, and the answer to that is a RST with the number asked for.

use super::refuse::put_reset;
use crate::flow::{Flow, Sender};
use crate::wire::PacketBuf;

/// The RST that `sender` would have sent, as it comes to the gateway: what the flow does to packets from there is still to be
/// done. `None`: nothing is known that its receiver would take.
pub fn from(flow: &Flow, sender: Sender) -> Option<PacketBuf> {
    let own = flow.sequence[sender as usize];
    let peer = flow.sequence[sender.other() as usize];
    let seq = match (own.is_known, peer.has_acked) {
        (true, _) => own.end,
        (false, true) => peer.ack,
        (false, false) => return None,
    };
    let ack = match (peer.is_known, own.has_acked) {
        (true, _) => Some(peer.end),
        (false, true) => Some(own.ack),
        (false, false) => None,
    };
    let mut buf = PacketBuf::with_capacity(0);
    put_reset(&mut buf, &flow.tuple(sender), seq, ack).then_some(buf)
}
