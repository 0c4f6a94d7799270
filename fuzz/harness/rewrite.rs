//! A translation of any packet: checksums that were right stay right, wrong ones stay wrong, there and back is identity.
//! The first bytes say what to translate to and whether the checksum is partial; the rest is the packet.

use gatun::wire::{Addr, PacketBuf, Protocol, Rewrite, Transport, Tuple, View, VnetHdr, tcp};

use super::oracle::{self, Checksum};

const PREFIX: usize = 38;

pub fn run(bytes: &[u8]) {
    let Some((prefix, packet)) = bytes.split_first_chunk::<PREFIX>() else { return };
    let mut packet = packet.to_vec();
    oracle::fix_header_checksum_if_possible(&mut packet);
    let Ok(view) = View::parse(&packet) else { return };
    packet.truncate(view.len);
    let from =
        view.ports().unwrap_or(Tuple { src: view.src, dst: view.dst, protocol: view.protocol, ..Tuple::default() });
    let Some(to) = target(prefix, &from) else { return };

    let known = oracle::decode(&packet).is_some_and(|told| told.l4 == view.l4 && told.protocol == view.protocol.0);
    // Or what stands in their place: the identifier of an echo message.
    let has_ports = view.ports().is_some();
    let whole = view.fragment.is_none();
    if known && whole && has_ports && prefix[36] & 2 != 0 {
        oracle::fix_checksums(&mut packet);
    }
    let partial = known && whole && has_ports && prefix[36] & 1 != 0;
    let mut buf = if partial { oracle::to_partial(&packet) } else { PacketBuf::from_packet(&packet) };
    let before = buf.packet().to_vec();
    let vnet = buf.vnet;

    apply(&Rewrite::between(&from, &to), buf.packet_mut(), &view, &vnet);
    if known && whole && has_ports {
        let completed = oracle::complete(&buf);
        let (was, is) = (Checksum::of(&packet), Checksum::of(&completed));
        let (was, is) = (was.expect("it has ports"), is.expect("a rewrite changes no length"));
        match partial {
            true => assert!(oracle::checksums_are_right(&completed)),
            // A UDP checksum that was left out stays so.
            false if view.protocol == Protocol::UDP && was.found == 0 => assert_eq!(is.found, 0),
            false => assert_eq!(was.error(), is.error()),
        }
    }
    if let Transport::Tcp(header) = view.transport {
        let mut clamped = buf.clone();
        tcp::clamp_mss(&mut clamped.packet_mut()[view.l4..], header.header_len, 500, partial);
        if known && whole && oracle::checksums_are_right(&oracle::complete(&buf)) {
            assert!(oracle::checksums_are_right(&oracle::complete(&clamped)));
        }
    }
    let there = View::parse(buf.packet()).expect("a rewrite keeps a packet valid");
    assert_eq!((there.src, there.dst), (to.src, to.dst));
    apply(&Rewrite::between(&to, &from), buf.packet_mut(), &view, &vnet);
    assert!(same_but_for_zeros(buf.packet(), &before, &view));
}

fn target(prefix: &[u8; PREFIX], from: &Tuple) -> Option<Tuple> {
    let addr = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&prefix[at..at + 16]);
        match from.src.is_v4() {
            true => Some(Addr::from_v4([octets[0], octets[1], octets[2], octets[3]])),
            false => Some(Addr::from_v6(octets)).filter(|addr| !addr.is_v4()),
        }
    };
    let port = |at: usize| u16::from_be_bytes([prefix[at], prefix[at + 1]]);
    Some(Tuple { src: addr(0)?, dst: addr(16)?, sport: port(32), dport: port(34), protocol: from.protocol })
}

fn apply(rewrite: &Rewrite, packet: &mut [u8], view: &View, vnet: &VnetHdr) {
    match view.transport {
        Transport::Later => rewrite.apply_addresses(packet),
        _ => rewrite.apply(packet, view, vnet),
    }
}

/// Equal, but that 0 and 0xFFFF are the same sum in a checksum field.
fn same_but_for_zeros(a: &[u8], b: &[u8], view: &View) -> bool {
    let at = view.l4
        + match view.protocol {
            Protocol::TCP => 16,
            Protocol::UDP => 6,
            _ => 2,
        };
    let zero = |bytes: &[u8]| matches!(bytes, [0, 0] | [0xff, 0xff]);
    let checksum = at..at + 2;
    match (a.get(checksum.clone()), b.get(checksum.clone())) {
        (Some(x), Some(y)) if zero(x) && zero(y) => a[..at] == b[..at] && a[at + 2..] == b[at + 2..],
        _ => a == b,
    }
}
