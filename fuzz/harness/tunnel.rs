//! Any packet through a tunnel, cut as needed: what comes out at its end is what went in, and nothing on the way is larger
//! than the path. The end is a naive one, which knows only of complete packets; ours must agree with it.
//!
//! The first bytes say what the tunnel is like and what the device says of the packet; the rest is the packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gatun::verdict::DropReason;
use gatun::wire::cut::cut;
use gatun::wire::{
    Addr, CutError, Encapsulation, Fit, Outer, PacketBuf, Transport, View, VnetHdr, Wrap, fit, ipv4,
    parse_quoted_outer, pieces, unwrap,
};

use super::decapsulate::{Outside, decapsulate};
use super::oracle;

const PREFIX: usize = 20;
pub const GUE_PORTS: [u16; 2] = [6080, 7000];

pub fn run(bytes: &[u8]) {
    let Some((prefix, packet)) = bytes.split_first_chunk::<PREFIX>() else { return };
    let mut packet = packet.to_vec();
    oracle::fix_header_checksum_if_possible(&mut packet);
    let told = VnetHdr::decode(prefix[10..].first_chunk().expect("there are ten"));
    end_of_tunnel(&packet, told);

    let wrap = tunnel(prefix);
    let Ok(view) = View::parse(&packet) else { return };
    packet.truncate(view.len);
    let has_ports = matches!(view.transport, Transport::Tcp(_) | Transport::Udp(_)) && view.fragment.is_none();
    let known = oracle::decode(&packet).is_some_and(|d| d.l4 == view.l4 && d.protocol == view.protocol.0);
    let mut buf = match prefix[9] & 3 {
        1 | 2 if has_ports && known => {
            oracle::fix_checksums(&mut packet);
            oracle::to_partial(&packet)
        }
        3 => {
            let mut buf = PacketBuf::from_packet(&packet);
            buf.vnet = told;
            // Nobody can say what is right of it.
            stays_in_bounds(&buf, &wrap);
            return;
        }
        _ => PacketBuf::from_packet(&packet),
    };
    if prefix[9] & 3 == 2 && buf.vnet.needs_csum() {
        buf.vnet.gso_size = told.gso_size;
        buf.vnet.gso_type = match view.transport {
            Transport::Udp(_) => VnetHdr::GSO_UDP_L4,
            _ if view.src.is_v4() => VnetHdr::GSO_TCPV4 | 0x80,
            _ => VnetHdr::GSO_TCPV6,
        };
    }
    goes_through(&buf, &wrap);
    goes_without_tunnel(&buf, wrap.mtu);
}

fn tunnel(prefix: &[u8; PREFIX]) -> Wrap {
    let v4 = prefix[0] & 1 == 0;
    let end = |last: u8| match v4 {
        true => Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))),
        false => Addr::from(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()))),
    };
    let word = |at: usize| u16::from_be_bytes([prefix[at], prefix[at + 1]]);
    let encapsulation = match prefix[0] & 6 {
        0 => Encapsulation::Ipip,
        _ => Encapsulation::Gue { port: GUE_PORTS[usize::from(prefix[0] & 2 == 0)] },
    };
    let outer = Outer { src: end(1), dst: end(2), encapsulation, ttl: prefix[1], id: word(2), entropy: word(4) };
    Wrap { outer, mtu: word(6).max(68) }
}

/// What reaches the tunnel's end is any bytes: no panic, and what is accepted is what the naive end makes of it.
pub fn end_of_tunnel(packet: &[u8], told: VnetHdr) {
    if let Ok(Some(quoted)) = parse_quoted_outer(packet, is_gue) {
        assert!(quoted.inner >= 28 || quoted.inner >= 20 && quoted.encapsulation == Encapsulation::Ipip);
    }
    let mut buf = PacketBuf::from_packet(packet);
    buf.vnet = told;
    if unwrap(&mut buf, is_gue).is_ok() {
        assert!(buf.len() >= 20 && buf.len() + 20 <= packet.len());
        assert!(!buf.vnet.needs_csum() || usize::from(buf.vnet.csum_start + buf.vnet.csum_offset) + 2 <= buf.len());
    }
    let mut buf = PacketBuf::from_packet(packet);
    // They need not accept the same: etherparse walks other extension headers, and knows nothing of the ports of GUE.
    if let (Ok(unwrapped), Some(outside)) = (unwrap(&mut buf, is_gue), decapsulate(packet)) {
        agrees(&unwrapped, &buf, &outside);
    }
}

fn agrees(unwrapped: &gatun::wire::Unwrapped, buf: &PacketBuf, outside: &Outside) {
    assert_eq!((unwrapped.outer_src, unwrapped.outer_dst), (outside.src.into(), outside.dst.into()));
    let port = outside.ports.map(|(_, port)| port);
    let expected = port.map_or(Encapsulation::Ipip, |port| Encapsulation::Gue { port });
    assert_eq!(unwrapped.encapsulation, expected);
    let inner = oracle::complete(buf);
    assert_eq!(inner[4..8], outside.inner[4..8]);
    assert_eq!(inner[12..], outside.inner[12..]);
}

pub fn is_gue(port: u16) -> bool {
    GUE_PORTS.contains(&port)
}

fn stays_in_bounds(buf: &PacketBuf, wrap: &Wrap) {
    let mtu = usize::from(wrap.mtu).max(1280);
    let _ = pieces(buf, wrap, |vnet, headers, payload| {
        assert!(headers.len() + payload.len() <= mtu);
        assert!(!vnet.needs_csum() || usize::from(vnet.csum_start + vnet.csum_offset) + 2 <= headers.len());
        Ok::<(), ()>(())
    });
    let Ok(view) = View::parse(buf.packet()) else { return };
    let _ = wrap.outer.wrap(&mut roomy(buf), &view);
}

/// Sends a valid packet, its checksum complete or partial, through the tunnel.
pub fn goes_through(buf: &PacketBuf, wrap: &Wrap) {
    let view = View::parse(buf.packet()).expect("a valid packet");
    let outer_v4 = wrap.outer.dst.is_v4();
    let mtu = usize::from(wrap.mtu).max(if outer_v4 { 68 } else { 1280 });
    let room = mtu.saturating_sub(wrap.outer.overhead());
    let df = ipv4::dont_fragment(buf.packet());
    let verdict = fit(&view, &buf.vnet, df, wrap.outer.overhead(), outer_v4, wrap.mtu);
    let mut sent = Vec::new();
    let outcome = pieces(buf, wrap, |vnet, headers, payload| {
        let mut piece = PacketBuf::from_packet(&[headers, payload].concat());
        piece.vnet = *vnet;
        sent.push(piece);
        Ok::<(), ()>(())
    });
    let Some(expected) = expected_packets(buf, &view) else {
        return assert!(matches!(outcome, Err(CutError::Packet(DropReason::BadOffload)) | Ok(_)));
    };
    match (outcome, verdict) {
        // With a device that hands over packets as long as they can be, a few do not fit whatever the MTU.
        (Err(CutError::Packet(DropReason::TooBig)), Fit::TooBig { mtu }) => {
            let least = if view.src.is_v4() { 68 } else { 1280 };
            assert_eq!(usize::from(mtu), room.max(least));
            return;
        }
        // Not even the headers of a fragment fit.
        (Err(CutError::Packet(DropReason::TooBig)), Fit::Pieces) => return assert!(room < 60 + 8),
        (Err(CutError::Packet(DropReason::TooManyExtensionHeaders)), _) => return assert!(view.l4 > 200),
        (Ok(count), Fit::Whole) => assert_eq!((count, buf.vnet.is_gso()), (1, false)),
        (Ok(_), Fit::Pieces) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(outcome, Ok(sent.len()));
    assert!(sent.iter().all(|piece| piece.len() <= mtu));
    if verdict == Fit::Whole {
        let mut whole = roomy(buf);
        assert_eq!(wrap.outer.wrap(&mut whole, &view), Ok(()));
        assert_eq!((whole.packet(), whole.vnet), (sent[0].packet(), sent[0].vnet));
    }
    let inner = arrive(&sent, buf, wrap);
    same_packets(inner, expected);
}

/// The same on a path without a tunnel.
pub fn goes_without_tunnel(buf: &PacketBuf, mtu: u16) {
    let view = View::parse(buf.packet()).expect("a valid packet");
    let v4 = view.src.is_v4();
    let limit = mtu.max(if v4 { 68 } else { 1280 });
    let verdict = fit(&view, &buf.vnet, ipv4::dont_fragment(buf.packet()), 0, v4, mtu);
    let mut sent = Vec::new();
    let outcome = cut(buf, None, mtu, |vnet, headers, payload| {
        let mut piece = PacketBuf::from_packet(&[headers, payload].concat());
        piece.vnet = *vnet;
        sent.push(oracle::complete(&piece));
        Ok::<(), ()>(())
    });
    let Some(expected) = expected_packets(buf, &view) else { return };
    match (outcome, verdict) {
        (Err(CutError::Packet(DropReason::TooBig)), Fit::TooBig { mtu }) => return assert_eq!(mtu, limit),
        (Err(CutError::Packet(DropReason::TooManyExtensionHeaders)), _) => return assert!(view.l4 > 200),
        (Err(CutError::Packet(DropReason::TooBig)), Fit::Pieces) => return assert!(limit < 60 + 8),
        (Ok(_), Fit::Whole | Fit::Pieces) => {}
        other => panic!("{other:?}"),
    }
    assert!(sent.iter().all(|piece| piece.len() <= usize::from(limit)));
    same_packets(sent, expected);
}

/// A copy with headroom, whatever the packet's length.
fn roomy(buf: &PacketBuf) -> PacketBuf {
    let mut copy = PacketBuf::from_packet(buf.packet());
    copy.vnet = buf.vnet;
    copy
}

/// What the server gets, by the naive end, checksums complete; and ours must say the same.
fn arrive(sent: &[PacketBuf], buf: &PacketBuf, wrap: &Wrap) -> Vec<Vec<u8>> {
    let original = buf.packet();
    let (v4, df) = (original[0] >> 4 == 4, ipv4::dont_fragment(original));
    let tos = if v4 { original[1] } else { original[0] << 4 | original[1] >> 4 };
    let mut ids = std::collections::BTreeSet::new();
    let mut inner = Vec::new();
    let mut waiting = Vec::new();
    for piece in sent {
        let mut packet = oracle::complete(piece);
        let (fragment, more) = outer_fragment(&packet);
        if fragment {
            waiting.push(packet);
            if more {
                continue;
            }
            packet = oracle::reassemble(&waiting).expect("all fragments, in order");
            waiting.clear();
        }
        let outside = decapsulate(&packet).expect("a tunnelled packet");
        let outer = &wrap.outer;
        assert_eq!((outside.src.into(), outside.dst.into()), (outer.src, outer.dst));
        assert_eq!((outside.ttl, outside.tos, outside.protocol), (outer.ttl, tos, if v4 { 4 } else { 41 }));
        if let Some((id, marked)) = outside.id {
            // An IPv6 packet counts as one with DF, unless the tunnelled packet had to be fragmented.
            assert_eq!(marked, if v4 { df } else { !fragment });
            assert!(if marked { id == 0 } else { ids.insert(id) || sent.len() > 65535 });
        }
        let ports = match outer.encapsulation {
            Encapsulation::Ipip => None,
            Encapsulation::Gue { port } => Some((outer.entropy | 0xc000, port)),
        };
        assert_eq!(outside.ports, ports);
        if !fragment {
            ours_agrees(piece, &outside);
        }
        inner.push(outside.inner);
    }
    assert!(waiting.is_empty());
    inner
}

fn ours_agrees(piece: &PacketBuf, outside: &Outside) {
    let ttl = outside.inner[if outside.protocol == 4 { 8 } else { 7 }];
    for mut buf in [piece.clone(), PacketBuf::from_packet(&oracle::complete(piece))] {
        match unwrap(&mut buf, is_gue) {
            Ok(unwrapped) => {
                agrees(&unwrapped, &buf, outside);
                // The outer ECN field is the inner one's, so nothing changes.
                assert_eq!(oracle::complete(&buf), outside.inner);
            }
            Err(DropReason::TtlExceeded) => assert_eq!(ttl, 0),
            Err(DropReason::CongestionNotEct) => panic!("marked, though the inner packet is not"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn outer_fragment(packet: &[u8]) -> (bool, bool) {
    match packet[0] >> 4 {
        4 => (u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0, packet[6] & 0x20 != 0),
        _ => (packet[6] == 44, packet[43] & 1 != 0),
    }
}

/// The packets that the kernel would have sent in the place of what it handed over, complete; `None` when the virtio header
/// makes no sense.
fn expected_packets(buf: &PacketBuf, view: &View) -> Option<Vec<Vec<u8>>> {
    if !buf.vnet.is_gso() {
        return Some(vec![oracle::complete(buf)]);
    }
    let packet = buf.packet();
    let (header, flags) = match view.transport {
        Transport::Tcp(tcp) => (view.l4 + tcp.header_len, packet[view.l4 + 13]),
        Transport::Udp(_) => (view.l4 + 8, 0),
        _ => return None,
    };
    let size = usize::from(buf.vnet.gso_size);
    if size == 0 {
        return None;
    }
    let (header, payload) = packet.split_at(header);
    let mut chunks: Vec<&[u8]> = payload.chunks(size).collect();
    if chunks.is_empty() {
        chunks.push(&[]);
    }
    let last = chunks.len() - 1;
    let summed = buf.vnet.needs_csum() || view.protocol.0 == 6 || header[view.l4 + 6..] != [0, 0];
    let one = |(number, chunk): (usize, &&[u8])| {
        let mut bytes = [header, chunk].concat();
        let len = bytes.len();
        if view.src.is_v4() {
            let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(number as u16);
            bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            oracle::fix_ip_checksum(&mut bytes);
        } else {
            bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        let l4 = &mut bytes[view.l4..];
        if let Transport::Tcp(tcp) = view.transport {
            let seq = tcp.seq.wrapping_add((number * size) as u32);
            l4[4..8].copy_from_slice(&seq.to_be_bytes());
            let (first, last) = (number == 0, number == last);
            l4[13] = flags & if last { 0xff } else { !0x09 } & if first { 0xff } else { !0x80 };
        } else {
            l4[4..6].copy_from_slice(&((len - view.l4) as u16).to_be_bytes());
        }
        if summed {
            oracle::fix_checksums(&mut bytes);
        }
        bytes
    };
    Some(chunks.iter().enumerate().map(one).collect())
}

/// Whether the packets are the expected ones, each perhaps in fragments, in order.
fn same_packets(packets: Vec<Vec<u8>>, expected: Vec<Vec<u8>>) {
    let mut packets = packets.into_iter();
    for expected in expected {
        let first = packets.next().expect("one more");
        if first.len() == expected.len() {
            assert!(same_but_for_zeros(&first, &expected), "{first:02x?}\n{expected:02x?}");
            continue;
        }
        let header = usize::from(expected[0] & 15) * 4;
        let place = |packet: &[u8]| {
            let field = u16::from_be_bytes([packet[6], packet[7]]);
            (usize::from(field & 0x1fff) * 8, field & 0xe000)
        };
        let (begin, flags) = place(&expected);
        let mut fragments = vec![first];
        let mut payload = Vec::new();
        loop {
            let fragment = fragments.last().expect("there is one");
            let own = usize::from(fragment[0] & 15) * 4;
            assert!(if payload.is_empty() { own == header } else { own <= header });
            assert_eq!(oracle::sum(&fragment[..own]), 0xffff);
            assert_eq!(
                (fragment[1], &fragment[4..6], &fragment[8..10]),
                (expected[1], &expected[4..6], &expected[8..10])
            );
            assert_eq!(fragment[12..20], expected[12..20]);
            assert_eq!(usize::from(u16::from_be_bytes([fragment[2], fragment[3]])), fragment.len());
            let (offset, marks) = place(fragment);
            assert_eq!(offset, begin + payload.len());
            payload.extend_from_slice(&fragment[own..]);
            if payload.len() == expected.len() - header {
                assert_eq!(marks, flags & 0x2000);
                break;
            }
            assert_eq!((marks, (fragment.len() - own) % 8), (0x2000, 0));
            fragments.push(packets.next().expect("one more fragment"));
        }
        let whole = [&expected[..header], &payload].concat();
        assert_eq!(fragments[0][20..header], expected[20..header]);
        assert!(same_but_for_zeros(&whole, &expected));
    }
    assert_eq!(packets.next(), None);
}

/// Equal, but that TCP's checksum may be 0 or 0xFFFF, which is the same sum.
fn same_but_for_zeros(a: &[u8], b: &[u8]) -> bool {
    if a == b {
        return true;
    }
    let Some(checksum) = oracle::Checksum::of(b).filter(|_| a.len() == b.len()) else { return false };
    let (mut a, mut b) = (a.to_vec(), b.to_vec());
    for bytes in [&mut a, &mut b] {
        let field = &mut bytes[checksum.at..checksum.at + 2];
        if field == [0xff; 2] {
            field.fill(0);
        }
    }
    a == b
}
