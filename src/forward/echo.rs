//! Answering a ping to a VIP, in place. Works on fragments: ICMP has no pseudo header, and that of ICMPv6 is the same sum
//! when source and destination change places, so only the type matters to the checksum.

use crate::wire::checksum::Delta;
use crate::wire::{PacketBuf, View, icmp, ipv4, ipv6};

const TTL: u8 = 64;

/// Turns an echo request, or its first fragment, into the reply.
pub fn answer(buf: &mut PacketBuf, view: &View) {
    let partial = buf.vnet.is_partial(view.l4);
    if let Some(message) = buf.packet_mut().get_mut(view.l4..view.l4 + icmp::LEN) {
        let old = u16::from_be_bytes([message[0], message[1]]);
        message[0] = icmp::echo_reply_type(view.protocol);
        let new = u16::from_be_bytes([message[0], message[1]]);
        if !partial {
            let field = u16::from_be_bytes([message[icmp::CHECKSUM], message[icmp::CHECKSUM + 1]]);
            let patched = Delta::word(old, new).patch_complete(field);
            message[icmp::CHECKSUM..icmp::CHECKSUM + 2].copy_from_slice(&patched.to_be_bytes());
        }
    }
    turn_round(buf, view);
}

/// Sends a packet, or a later fragment, back to where it came from: addresses swapped, a fresh TTL.
pub fn turn_round(buf: &mut PacketBuf, view: &View) {
    let packet = buf.packet_mut();
    let (src, dst) = (view.dst, view.src);
    if view.src.is_v4() {
        packet[ipv4::SRC..ipv4::DST].copy_from_slice(src.wire());
        packet[ipv4::DST..ipv4::DST + 4].copy_from_slice(dst.wire());
        let old = u16::from_be_bytes([packet[ipv4::TTL], packet[ipv4::TTL + 1]]);
        packet[ipv4::TTL] = TTL;
        let new = u16::from_be_bytes([packet[ipv4::TTL], packet[ipv4::TTL + 1]]);
        let field = u16::from_be_bytes([packet[ipv4::CHECKSUM], packet[ipv4::CHECKSUM + 1]]);
        let patched = Delta::word(old, new).patch_complete(field);
        packet[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&patched.to_be_bytes());
    } else {
        packet[ipv6::SRC..ipv6::DST].copy_from_slice(src.wire());
        packet[ipv6::DST..ipv6::DST + 16].copy_from_slice(dst.wire());
        packet[ipv6::HOP_LIMIT] = TTL;
    }
}
