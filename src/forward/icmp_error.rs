//! ICMP errors about packets of a flow, translated in both directions together with the packet that they quote
//! (RFC 5508 section 4, RFC 5382 REQ-9, RFC 4787 REQ-12).
//!
//! An error that comes from the servers' side leaves with the VIP as its source, whoever sent it: the address of a server
//! or of a router behind the gateway would tell the client nothing (RFC 5508 REQ-5; Linux, `ip_vs_nat_icmp`). An error
//! from the clients' side keeps its source, unless the client's own address is translated: then it comes from that of the
//! pool, the only one that the server has a way to (Linux, `nf_nat_icmp_reply_translation`).

use crate::flow::Sender;
use crate::verdict::DropReason;
use crate::wire::{PacketBuf, Protocol, Rewrite, Tuple, View, checksum, icmp};

/// The quoted packet's tuple, if the message is whole and its checksums are right.
pub fn quoted(buf: &PacketBuf, view: &View) -> Result<Option<Tuple>, DropReason> {
    let message = &buf.packet()[view.l4..view.len];
    if !buf.vnet.is_partial(view.l4) {
        let begun = match view.protocol {
            Protocol::ICMP => 0,
            _ => checksum::pseudo_header(view.src, view.dst, view.protocol.0, message.len()),
        };
        if checksum::finish(begun, message) != 0 {
            return Err(DropReason::BadIcmpChecksum);
        }
    }
    let (inner, tuple) = View::parse_quoted(&message[icmp::LEN..]).map_err(|reason| match reason {
        DropReason::BadIpChecksum => DropReason::BadIcmpChecksum,
        reason => reason,
    })?;
    // Addressed to whoever sent the quoted packet, or it is no answer to it.
    Ok(tuple.filter(|_| inner.src == view.dst))
}

/// Translates an error about a packet of the flow with these tuples; `sender` is the end whose side the error comes from, and which would have
/// sent the reversed `quoted` tuple.
pub fn translate(
    buf: &mut PacketBuf,
    view: &View,
    (original, reply): (&Tuple, &Tuple),
    sender: Sender,
    quoted: &Tuple,
) {
    // The packet was `quoted` when the error arose; its sender knows it by the tuple of the other side.
    let (known_as, outer) = match sender {
        Sender::Server => (*original, Tuple { src: original.dst, dst: original.src, ..outer_tuple(view) }),
        Sender::Client => {
            let src = if reply.dst == original.src { view.src } else { reply.dst };
            (*reply, Tuple { src, dst: reply.src, ..outer_tuple(view) })
        }
    };
    let inner = Rewrite::between(quoted, &known_as);
    let packet = &mut buf.packet_mut()[..view.len];
    let at = view.l4 + icmp::LEN;
    if let Ok((quoted_view, _)) = View::parse_quoted(&packet[at..]) {
        inner.apply_addresses(&mut packet[at..]);
        inner.apply_transport(&mut packet[at + quoted_view.l4..], quoted_view.protocol, false);
    }
    Rewrite::between(&outer_tuple(view), &outer).apply_addresses(packet);
    // Complete the checksum anew: it covers the quoted packet, and was right before (see `quoted`).
    let message = &mut packet[view.l4..];
    message[icmp::CHECKSUM..icmp::CHECKSUM + 2].fill(0);
    let begun = match view.protocol {
        Protocol::ICMP => 0,
        _ => checksum::pseudo_header(outer.src, outer.dst, view.protocol.0, message.len()),
    };
    let sum = checksum::finish(begun, message);
    message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    buf.vnet = crate::wire::VnetHdr::default();
}

fn outer_tuple(view: &View) -> Tuple {
    Tuple { src: view.src, dst: view.dst, sport: 0, dport: 0, protocol: view.protocol }
}
