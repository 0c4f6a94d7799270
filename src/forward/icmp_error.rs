//! ICMP errors about packets of a flow, translated in both directions together with the packet that they quote
//! (RFC 5508 section 4, RFC 5382 REQ-9, RFC 4787 REQ-12).
//!
//! An error that comes from the inside leaves with the address there that stands for the inside as its source, whoever sent it:
//! the address of a server, of an inside host or of a router there would tell the receiver nothing (RFC 5508 REQ-5; Linux,
//! `ip_vs_nat_icmp`). An error from outside keeps its source (REQ-4), unless the client's own address is translated: then it
//! comes from that of the pool, the only one that the server has a way to (Linux, `nf_nat_icmp_reply_translation`). Inside is
//! where servers are, and with a masquerade where clients are.
//!
//! Extensions that follow the quoted packet (RFC 4884) are no part of it and stay as they are.

use crate::flow::Sender;
use crate::service::Method;
use crate::verdict::DropReason;
use crate::wire::{Addr, PacketBuf, Protocol, Rewrite, Tuple, View, checksum, icmp};

/// The two tuples of the flow that an error is about, and by which method it is.
#[derive(Clone, Copy, Debug)]
pub struct About {
    pub original: Tuple,
    pub reply: Tuple,
    pub method: Method,
}

impl About {
    /// The tuple of the quoted packet as its sender knows it, and the outer addresses of an error that comes from the side of
    /// `from`; `None`: the source stays.
    fn translated(&self, from: Sender) -> (Tuple, Option<Addr>, Addr) {
        let (original, reply) = (self.original, self.reply);
        match (from, self.method) {
            (Sender::Server, Method::Masquerade) => (original, None, original.src),
            (Sender::Server, _) => (original, Some(original.dst), original.src),
            (Sender::Client, Method::Masquerade | Method::Fullnat) => (reply, Some(reply.dst), reply.src),
            (Sender::Client, _) => (reply, None, reply.src),
        }
    }
}

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
    let (inner, tuple) = View::parse_quoted(&message[icmp::LEN..icmp::quoted_end(message, view.protocol)]).map_err(
        |reason| match reason {
            DropReason::BadIpChecksum => DropReason::BadIcmpChecksum,
            reason => reason,
        },
    )?;
    // Addressed to whoever sent the quoted packet, or it is no answer to it.
    Ok(tuple.filter(|_| inner.src == view.dst))
}

/// Translates an error about a packet of this flow; `from` is the end whose side the error comes from, and which would have sent
/// the reversed `quoted` tuple.
pub fn translate(buf: &mut PacketBuf, view: &View, about: &About, from: Sender, quoted: &Tuple) {
    // The packet was `quoted` when the error arose; its sender knows it by the tuple of the other side.
    let (known_as, src, dst) = about.translated(from);
    let outer = Tuple { src: src.unwrap_or(view.src), dst, ..outer_tuple(view) };
    let inner = Rewrite::between(quoted, &known_as);
    let packet = &mut buf.packet_mut()[..view.len];
    let end = view.l4 + icmp::quoted_end(&packet[view.l4..], view.protocol);
    let quote = &mut packet[view.l4 + icmp::LEN..end];
    if let Ok((quoted_view, _)) = View::parse_quoted(quote) {
        inner.apply_addresses(quote);
        // What stands behind a short packet is padding.
        let len = quoted_view.len.clamp(quoted_view.l4, quote.len());
        inner.apply_transport(&mut quote[quoted_view.l4..len], quoted_view.protocol, false);
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
