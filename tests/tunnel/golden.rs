//! Golden rows: packets as etherparse builds them, and what wrapping, cutting and unwrapping is to make of them.

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader};
use gatun::verdict::DropReason;
use gatun::wire::cut::cut;
use gatun::wire::{
    Addr, CutError, Encapsulation, Fit, Outer, PacketBuf, View, VnetHdr, Wrap, fit, ipv4, parse_quoted_outer, pieces,
    unwrap,
};

use crate::support::oracle;
use crate::support::packet::{ACK, Build, PSH, Transport, tcp, udp};

const GUE: Encapsulation = Encapsulation::Gue { port: 6080 };
const ENTROPY: u16 = 0x1234;

pub fn outer(v4: bool, encapsulation: Encapsulation) -> Outer {
    let ends = if v4 { ["10.20.0.1", "10.30.0.14"] } else { ["fd20::1", "fd30::14"] };
    let [src, dst] = ends.map(|end| Addr::from(end.parse::<IpAddr>().expect("an address")));
    Outer { src, dst, encapsulation, ttl: 63, id: 0x4242, entropy: ENTROPY }
}

/// A segment to a VIP with a payload of so many bytes.
pub fn segment(v4: bool, payload: usize) -> Build {
    let (src, dst) =
        if v4 { ("198.51.100.2:40000", "203.0.113.10:80") } else { ("[2001:db8:1::2]:40000", "[2001:db8:f::10]:80") };
    let payload: Vec<u8> = (0..payload).map(|n| (n * 7 + n / 256) as u8).collect();
    Build { dont_fragment: true, tos: 0x68, ..tcp(src, dst).flags(ACK | PSH).seq(1000, 2000).payload(payload) }
}

pub fn every_tunnel() -> impl Iterator<Item = (bool, Outer)> {
    let all = [(true, true), (true, false), (false, true), (false, false)];
    all.into_iter().flat_map(|(inner, v4)| [Encapsulation::Ipip, GUE].map(|e| (inner, outer(v4, e))))
}

/// The tunnelled packet as etherparse writes it. `id` and `df` are IPv4's.
fn tunnelled(outer: &Outer, inner: &[u8], tos: u8, (id, df): (u16, bool)) -> Vec<u8> {
    let (protocol, shim) = (if inner[0] >> 4 == 4 { 4 } else { 41 }, outer.encapsulation != Encapsulation::Ipip);
    let mut payload = Vec::new();
    if shim {
        payload.extend([0, protocol, 0, 0]);
    }
    payload.extend_from_slice(inner);
    let number = IpNumber(if shim { 17 } else { protocol });
    let mut bytes = Vec::new();
    match (outer.src.ip(), outer.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = payload.len() + if shim { 8 } else { 0 };
            let mut ip = Ipv4Header::new(len as u16, outer.ttl, number, src.octets(), dst.octets()).expect("short");
            (ip.identification, ip.dont_fragment) = (id, df);
            (ip.dscp, ip.ecn) = ((tos >> 2).try_into().expect("6 bits"), (tos & 3).try_into().expect("2 bits"));
            ip.header_checksum = ip.calc_header_checksum();
            ip.write(&mut bytes).expect("written");
            if shim {
                UdpHeader::without_ipv4_checksum(0xd234, 6080, payload.len())
                    .expect("short")
                    .write(&mut bytes)
                    .expect("written");
            }
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip = Ipv6Header {
                traffic_class: tos,
                flow_label: Ipv6FlowLabel::try_new(ENTROPY.into()).expect("20 bits"),
                payload_length: (payload.len() + if shim { 8 } else { 0 }) as u16,
                next_header: number,
                hop_limit: outer.ttl,
                source: src.octets(),
                destination: dst.octets(),
            };
            ip.write(&mut bytes).expect("written");
            if shim {
                let header = UdpHeader::with_ipv6_checksum(0xd234, 6080, &ip, &payload).expect("short");
                header.write(&mut bytes).expect("written");
            }
        }
        _ => unreachable!("of one family"),
    }
    bytes.extend(payload);
    bytes
}

fn wrapped(outer: &Outer, mut buf: PacketBuf) -> Result<PacketBuf, DropReason> {
    let view = View::parse(buf.packet()).expect("a valid packet");
    outer.wrap(&mut buf, &view).map(|()| buf)
}

fn none(_: u16) -> bool {
    false
}

fn gue(port: u16) -> bool {
    port == 6080
}

type Piece = (VnetHdr, Vec<u8>, Vec<u8>);

fn cut_up(buf: &PacketBuf, outer: Outer, mtu: u16) -> Result<Vec<Piece>, DropReason> {
    let mut all = Vec::new();
    let outcome = pieces(buf, &Wrap { outer, mtu }, |vnet, headers, payload| {
        all.push((*vnet, headers.to_vec(), payload.to_vec()));
        Ok::<(), ()>(())
    });
    match outcome {
        Ok(count) => {
            assert_eq!(count, all.len());
            Ok(all)
        }
        Err(CutError::Packet(reason)) => Err(reason),
        Err(CutError::Each(())) => unreachable!("it never fails"),
    }
}

#[test]
fn every_combination_of_families() {
    for (v4, outer) in every_tunnel() {
        let inner = segment(v4, 100);
        let expected = tunnelled(&outer, &inner.bytes(), 0x68, (0, true));
        assert_eq!(outer.overhead() + inner.bytes().len(), expected.len());
        for buf in [inner.buf(), inner.partial()] {
            let partial = buf.vnet;
            let wrapped = wrapped(&outer, buf).expect("it fits");
            assert_eq!(oracle::complete(&wrapped), expected, "{outer:?}");
            if partial.needs_csum() {
                let start = partial.csum_start + outer.overhead() as u16;
                assert_eq!(wrapped.vnet, VnetHdr { csum_start: start, ..partial });
            }
            let mut back = wrapped;
            let unwrapped = unwrap(&mut back, gue).expect("a tunnelled packet");
            assert_eq!((unwrapped.outer_src, unwrapped.outer_dst), (outer.src, outer.dst));
            assert_eq!(unwrapped.encapsulation, outer.encapsulation);
            assert_eq!((oracle::complete(&back), back.vnet), (inner.bytes(), partial));
        }
    }
}

#[test]
fn without_df_there_is_an_identification() {
    for encapsulation in [Encapsulation::Ipip, GUE] {
        let inner = Build { dont_fragment: false, ..segment(true, 10) };
        let outer = outer(true, encapsulation);
        let expected = tunnelled(&outer, &inner.bytes(), 0x68, (0x4242, false));
        assert_eq!(wrapped(&outer, inner.buf()).expect("it fits").packet(), expected);
    }
}

#[test]
fn what_lies_behind_the_packet_is_not_sent() {
    let mut bytes = segment(true, 10).bytes();
    bytes.extend([0xee; 6]);
    let outer = outer(true, Encapsulation::Ipip);
    let expected = tunnelled(&outer, &segment(true, 10).bytes(), 0x68, (0, true));
    assert_eq!(wrapped(&outer, PacketBuf::from_packet(&bytes)).expect("it fits").packet(), expected);
}

#[test]
fn what_lies_behind_the_packet_is_not_unwrapped() {
    for (v4, outer) in every_tunnel() {
        let inner = segment(v4, 10).bytes();
        let mut packet = tunnelled(&outer, &inner, 0, (0, true));
        packet.extend([0xee; 6]);
        let mut buf = PacketBuf::from_packet(&packet);
        assert!(unwrap(&mut buf, gue).is_ok());
        assert_eq!(buf.packet(), inner);
    }
}

#[test]
fn a_sum_of_zero_is_not_taken_for_none() {
    let outer = outer(false, GUE);
    let field = |inner: &[u8]| {
        let wrapped = wrapped(&outer, oracle::to_partial(inner)).expect("it fits");
        [wrapped.packet()[46], wrapped.packet()[47]]
    };
    // Of the flow label only the outer sum knows: with what lacks in it, the field becomes 0, and is sent as its complement.
    let mut inner = segment(false, 10).bytes();
    let lacks = field(&inner);
    inner[2..4].copy_from_slice(&lacks);
    assert_eq!(field(&inner), [0xff; 2]);
}

#[test]
fn congestion_goes_on_as_rfc_6040_says() {
    // Figure 4 of section 4.2: a row for each inner field, Not-ECT, ECT(0), ECT(1), CE; a column for each outer one in the
    // same order.
    const NAMES: [u8; 4] = [0, 2, 1, 3];
    const TABLE: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(2), Some(2), Some(1), Some(3)],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (v4, outer) in every_tunnel() {
        for (inner, row) in NAMES.iter().zip(TABLE) {
            for (marked, expected) in NAMES.iter().zip(row) {
                let with = |ecn: u8| {
                    let mut bytes = segment(v4, 9).bytes();
                    if v4 {
                        bytes[1] |= ecn
                    } else {
                        bytes[1] |= ecn << 4
                    }
                    oracle::fix_ip_checksum(&mut bytes);
                    bytes
                };
                let packet = tunnelled(&outer, &with(*inner), 0x68 | marked, (0, true));
                let mut buf = PacketBuf::from_packet(&packet);
                let outcome = unwrap(&mut buf, gue).map(|_| buf.packet().to_vec());
                assert_eq!(outcome, expected.map(with).ok_or(DropReason::CongestionNotEct), "{inner} {marked}");
                if outcome.is_err() {
                    assert_eq!(buf.packet(), packet);
                }
            }
        }
    }
}

#[test]
fn what_is_not_in_a_tunnel_is_refused() {
    let v4 = outer(true, Encapsulation::Ipip);
    let v6 = outer(false, GUE);
    let inner = segment(true, 64).bytes();
    let ipip = || tunnelled(&v4, &inner, 0, (7, false));
    let in_udp = || tunnelled(&v6, &inner, 0, (0, true));
    let in_udp4 = || tunnelled(&outer(true, GUE), &inner, 0, (0, true));
    let with = |mut packet: Vec<u8>, at: usize, value: u8| {
        packet[at] = value;
        oracle::fix_ip_checksum(&mut packet);
        packet
    };
    let cut = |packet: Vec<u8>, len: usize| {
        let mut packet = packet[..len].to_vec();
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        oracle::fix_ip_checksum(&mut packet);
        packet
    };
    let fragments = |packet: Vec<u8>| crate::support::packet::fragment(&packet, 32, 9);
    let rows: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("nothing", vec![], DropReason::Truncated),
        ("no IP", vec![0x50; 40], DropReason::NotIp),
        ("TCP", inner.clone(), DropReason::NotTunnelled),
        ("another port", udp("10.0.0.1:6080", "10.0.0.2:6081").payload([0, 4, 0, 0]).bytes(), DropReason::NotTunnelled),
        (
            "a wrong header checksum",
            {
                let mut p = ipip();
                p[10] ^= 1;
                p
            },
            DropReason::BadIpChecksum,
        ),
        ("IPv4 where 41 is said", with(ipip(), 9, 41), DropReason::BadTunnel),
        ("less than a header", cut(ipip(), 39), DropReason::Truncated),
        ("a first fragment", fragments(ipip())[0].clone(), DropReason::TunnelFragment),
        ("a later fragment", fragments(ipip())[1].clone(), DropReason::TunnelFragment),
        ("a later fragment of IPv6", fragments(in_udp())[1].clone(), DropReason::TunnelFragment),
        ("inner TTL 0", with(ipip(), 20 + 8, 0), DropReason::TtlExceeded),
        ("GUE version 1", with(in_udp4(), 28, 0x40), DropReason::BadTunnel),
        ("GUE control", with(in_udp4(), 28, 0x20), DropReason::BadTunnel),
        ("GUE options", with(in_udp4(), 28, 1), DropReason::BadTunnel),
        ("GUE flags", with(in_udp4(), 31, 1), DropReason::BadTunnel),
        ("GUE with TCP in it", with(in_udp4(), 29, 6), DropReason::BadTunnel),
        ("a shorter datagram", with(in_udp4(), 25, 60), DropReason::BadTunnel),
        ("a wrong sum over IPv6", with(in_udp(), 120, 0x99), DropReason::BadTunnel),
        ("a wrong sum over IPv4", with(in_udp4(), 27, 1), DropReason::BadTunnel),
        ("no GUE header", udp("10.0.0.1:1", "10.0.0.2:6080").payload([0, 4]).bytes(), DropReason::Truncated),
    ];
    for (name, packet, reason) in rows {
        let mut buf = PacketBuf::from_packet(&packet);
        assert_eq!(unwrap(&mut buf, gue), Err(reason), "{name}");
        assert_eq!(buf.packet(), packet, "{name}");
    }
    // Without a sum it is taken also over IPv6 (RFC 6935).
    let mut unsummed = in_udp();
    unsummed[46..48].fill(0);
    assert!(unwrap(&mut PacketBuf::from_packet(&unsummed), gue).is_ok());
    // The device says what contradicts the packet.
    let told = [
        VnetHdr { gso_type: VnetHdr::GSO_UDP_L4, gso_size: 100, ..VnetHdr::default() },
        VnetHdr::partial(10, 6),
        VnetHdr::partial(20, 16),
        VnetHdr::partial(40, 400),
        VnetHdr::partial(41, 16),
    ];
    for vnet in told {
        let mut buf = PacketBuf::from_packet(&ipip());
        buf.vnet = vnet;
        assert_eq!(unwrap(&mut buf, gue), Err(DropReason::BadOffload), "{vnet:?}");
    }
}

#[test]
fn options_and_extension_headers_of_others_tunnels_are_taken_off() {
    let inner = segment(true, 10).bytes();
    let mut with_options = udp("10.0.0.1", "10.0.0.2").ip_options(&[1, 1, 1, 0]);
    with_options.transport = Transport::Other(4);
    // RFC 2473 section 4.1: Linux puts a tunnel encapsulation limit in front.
    let mut limit = udp("fd20::1", "fd30::14").extensions(&[crate::support::packet::Extension::Destination(0)]);
    limit.transport = Transport::Other(4);
    for build in [with_options, limit] {
        let mut buf = build.payload(&inner).buf();
        assert!(unwrap(&mut buf, none).is_ok());
        assert_eq!(buf.packet(), inner);
    }
}

#[test]
fn what_an_error_quotes() {
    for (v4, outer) in every_tunnel() {
        let packet = tunnelled(&outer, &segment(v4, 100).bytes(), 0, (0, true));
        let ip = if outer.src.is_v4() { 20 } else { 40 };
        for len in 0..=packet.len() {
            let quoted = parse_quoted_outer(&packet[..len], gue);
            let needed = if outer.encapsulation == GUE { ip + 4 } else { ip };
            match quoted {
                Err(reason) => assert!(len < ip && reason == DropReason::Truncated),
                Ok(None) => assert!((ip..needed).contains(&len)),
                Ok(Some(quoted)) => {
                    assert!(len >= needed);
                    assert_eq!(
                        (quoted.src, quoted.dst, quoted.encapsulation),
                        (outer.src, outer.dst, outer.encapsulation)
                    );
                    assert_eq!(quoted.inner, outer.overhead());
                }
            }
        }
        // Of the second fragment only the addresses are known, and of a datagram's not even that it is ours.
        let second = &crate::support::packet::fragment(&packet, 64, 9)[1];
        let inner = parse_quoted_outer(second, gue).expect("valid").map(|quoted| quoted.inner);
        assert_eq!(inner, (outer.encapsulation == Encapsulation::Ipip).then_some(second.len()));
        assert_eq!(
            parse_quoted_outer(&packet, none).expect("valid").is_some(),
            outer.encapsulation == Encapsulation::Ipip
        );
        assert_eq!(parse_quoted_outer(&segment(v4, 1).bytes(), gue), Ok(None));
    }
}

#[test]
fn what_fits() {
    let (whole, cut) = (Fit::Whole, Fit::Pieces);
    let too_big = |mtu| Fit::TooBig { mtu };
    // Inner family, length, DF, outer family, MTU.
    let rows = [
        (true, 1480, true, true, 1500, whole),
        (true, 1481, true, true, 1500, too_big(1480)),
        (true, 1481, false, true, 1500, cut),
        (true, 1460, true, false, 1500, whole),
        (true, 1461, true, false, 1500, too_big(1460)),
        (false, 1480, false, true, 1500, whole),
        (false, 1481, false, true, 1500, too_big(1480)),
        (false, 1280, false, true, 1300, whole),
        (false, 1281, false, true, 1300, too_big(1280)),
        (false, 1281, false, true, 1299, too_big(1280)),
        (false, 1280, false, true, 1299, cut),
        (false, 1279, false, true, 1299, whole),
        (false, 1240, false, false, 1280, whole),
        (false, 1241, false, false, 1280, cut),
        (false, 1281, false, false, 1280, too_big(1280)),
        // No path of IPv6 is narrower.
        (false, 1240, false, false, 600, whole),
        (true, 100, true, true, 68, too_big(68)),
    ];
    for (v4, len, df, outer_v4, mtu, expected) in rows {
        let packet = segment(v4, len - if v4 { 40 } else { 60 }).bytes();
        let view = View::parse(&packet).expect("valid");
        let overhead = outer(outer_v4, Encapsulation::Ipip).overhead();
        assert_eq!(
            fit(&view, &VnetHdr::default(), df, overhead, outer_v4, mtu),
            expected,
            "{v4} {len} {df} {outer_v4} {mtu}"
        );
    }
    for (v4, df, overhead, mtu, expected) in [
        (true, true, 0, 1500, whole),
        (true, true, 0, 1499, too_big(1499)),
        (true, false, 0, 1499, cut),
        (true, true, 20, 1520, cut),
        (true, true, 20, 1519, too_big(1499)),
        (true, false, 20, 1519, cut),
        (false, false, 0, 1519, too_big(1519)),
        (false, false, 40, 1560, cut),
        (false, false, 40, 1559, too_big(1519)),
    ] {
        let buf = segment(v4, 20_000).super_packet(1460);
        let view = View::parse(buf.packet()).expect("valid");
        assert_eq!(fit(&view, &buf.vnet, df, overhead, true, mtu), expected, "super-packet {v4} {df} {overhead} {mtu}");
    }
}

#[test]
fn a_super_packet_is_cut_without_touching_its_payload() {
    for (v4, outer) in every_tunnel() {
        let buf = segment(v4, 64_000).super_packet(1400);
        let within = buf.packet().as_ptr_range();
        let (mut count, mut seen) = (0, 0);
        let mtu = outer.overhead() as u16 + if v4 { 1440 } else { 1460 };
        let sent = pieces(&buf, &Wrap { outer, mtu }, |vnet, headers, payload| {
            let place = payload.as_ptr_range();
            assert!(within.contains(&place.start) && place.end <= within.end);
            assert_eq!(headers.len(), outer.overhead() + if v4 { 40 } else { 60 });
            // The inner checksum is the device's.
            assert_eq!(vnet.csum_start as usize, headers.len() - 20);
            let mut packet = PacketBuf::from_packet(&[headers, payload].concat());
            packet.vnet = *vnet;
            let inner = Build { payload: payload.to_vec(), id: 0x1234 + count as u16, ..segment(v4, 0) };
            let last = seen + payload.len() == 64_000;
            let inner = inner.flags(ACK | if last { PSH } else { 0 }).seq(1000 + seen as u32, 2000).bytes();
            assert_eq!(oracle::complete(&packet), tunnelled(&outer, &inner, 0x68, (0, true)));
            (count, seen) = (count + 1, seen + payload.len());
            Ok::<(), ()>(())
        });
        assert_eq!((sent, seen), (Ok(46), 64_000));
    }
}

#[test]
fn the_first_failure_ends_it() {
    let buf = segment(true, 5000).super_packet(1000);
    let wrap = Wrap { outer: outer(true, Encapsulation::Ipip), mtu: 1500 };
    let mut count = 0;
    let outcome = pieces(&buf, &wrap, |_, _, _| {
        count += 1;
        if count == 3 { Err("full") } else { Ok(()) }
    });
    assert_eq!((outcome, count), (Err(CutError::Each("full")), 3));
}

#[test]
fn offloads_that_contradict_the_packet() {
    let packet = |v4| segment(v4, 3000).super_packet(1000);
    let with = |v4, change: fn(&mut VnetHdr)| {
        let mut buf = packet(v4);
        change(&mut buf.vnet);
        buf
    };
    let mut summed_wrongly = PacketBuf::from_packet(&segment(true, 3000).bytes());
    summed_wrongly.packet_mut()[1000] ^= 1;
    summed_wrongly.vnet = VnetHdr { gso_type: VnetHdr::GSO_TCPV4, gso_size: 1000, ..VnetHdr::default() };
    let mut fragment = PacketBuf::from_packet(&segment(true, 3000).fragments(1480)[0]);
    fragment.vnet = packet(true).vnet;
    let rows = [
        ("no size", with(true, |vnet| vnet.gso_size = 0)),
        ("the other family", with(true, |vnet| vnet.gso_type = VnetHdr::GSO_TCPV6)),
        ("the other family", with(false, |vnet| vnet.gso_type = VnetHdr::GSO_TCPV4)),
        ("UDP", with(true, |vnet| vnet.gso_type = VnetHdr::GSO_UDP_L4)),
        ("a type of its own", with(true, |vnet| vnet.gso_type = 3)),
        ("another header", with(true, |vnet| vnet.csum_start += 2)),
        ("another field", with(true, |vnet| vnet.csum_offset = 6)),
        ("beyond the end", with(true, |vnet| vnet.csum_start = 65_000)),
        (
            "at an odd place",
            with(true, |vnet| {
                vnet.gso_type = 0;
                vnet.csum_start += 1
            }),
        ),
        (
            "at an odd offset",
            with(true, |vnet| {
                vnet.gso_type = 0;
                vnet.csum_offset += 1
            }),
        ),
        (
            "in the IP header",
            with(true, |vnet| {
                vnet.gso_type = 0;
                vnet.csum_start = 10
            }),
        ),
        ("a wrong sum", summed_wrongly),
        ("a fragment", fragment),
    ];
    for (name, buf) in rows {
        assert_eq!(cut_up(&buf, outer(true, Encapsulation::Ipip), 1500), Err(DropReason::BadOffload), "{name}");
    }
    let buf = packet(true);
    assert_eq!(wrapped(&outer(true, GUE), buf).err(), Some(DropReason::BadOffload));
    let mut buf = segment(true, 10).partial();
    buf.vnet.csum_start = 65_000;
    assert_eq!(wrapped(&outer(true, GUE), buf).err(), Some(DropReason::BadOffload));
}

#[test]
fn datagrams_without_a_checksum_get_none() {
    let mut buf = udp("198.51.100.2:40000", "203.0.113.10:53").payload(vec![7; 2500]).without_checksum().buf();
    buf.vnet = VnetHdr { gso_type: VnetHdr::GSO_UDP_L4, gso_size: 1000, ..VnetHdr::default() };
    let sent = cut_up(&buf, outer(true, Encapsulation::Ipip), 1500).expect("it can be cut");
    let lengths: Vec<_> =
        sent.iter().map(|(vnet, headers, payload)| (*vnet, headers[46..48].to_vec(), payload.len())).collect();
    let plain = |len| (VnetHdr::default(), vec![0, 0], len);
    assert_eq!(lengths, [plain(1000), plain(1000), plain(500)]);
}

#[test]
fn what_cannot_be_made_to_fit() {
    let v4 = outer(true, Encapsulation::Ipip);
    assert_eq!(cut_up(&segment(true, 2000).buf(), v4, 1500), Err(DropReason::TooBig));
    assert_eq!(cut_up(&segment(false, 2000).buf(), v4, 1500), Err(DropReason::TooBig));
    assert_eq!(cut_up(&segment(true, 3000).super_packet(1460), v4, 1500), Err(DropReason::TooBig));
    // A fragment has at least 8 bytes.
    let small = Build { dont_fragment: false, ..segment(true, 100) };
    let long = small.clone().ip_options(&[1; 12]);
    assert_eq!(cut_up(&long.buf(), outer(true, GUE), 68), Err(DropReason::TooBig));
    assert!(cut_up(&small.buf(), outer(true, GUE), 68).is_ok());
    // No packet is longer than its length field says.
    let longest = segment(true, 65_535 - 40 - 19).buf();
    assert_eq!(wrapped(&v4, longest.clone()).err(), Some(DropReason::TooBig));
    assert_eq!(cut_up(&longest, v4, 65_535), Err(DropReason::TooBig));
}

#[test]
fn only_copied_options_are_in_later_fragments() {
    // RFC 791 section 3.1: a loose source route is copied, a record route is not, nor is what only fills.
    let record_route = [7, 7, 4, 0, 0, 0, 0];
    let source_route = [131, 7, 8, 10, 0, 0, 9];
    let options = [&record_route[..], &source_route, &[1, 0]].concat();
    let datagram = udp("198.51.100.2:40000", "203.0.113.10:53").payload(vec![7; 2000]).ip_options(&options);
    let mut all = Vec::new();
    let sent = cut(&datagram.partial(), None, 1000, |vnet, headers, payload| {
        assert_eq!(*vnet, VnetHdr::default());
        all.push([headers, payload].concat());
        Ok::<(), ()>(())
    });
    assert_eq!(sent, Ok(3));
    assert_eq!(all[0][..2], [0x49, 0]);
    assert_eq!(all[0][20..36], options);
    for later in &all[1..] {
        assert_eq!(later[0], 0x47);
        assert_eq!(later[20..28], [&source_route[..], &[0]].concat());
    }
    // 36 and 28 bytes of header: 960 and 968 bytes of payload, 80 remain.
    let lengths: Vec<_> = all.iter().map(Vec::len).collect();
    assert_eq!(lengths, [996, 996, 28 + 80]);
    assert_eq!(oracle::reassemble(&all).expect("all are there"), datagram.bytes());
}

#[test]
fn a_small_ipv6_packet_goes_in_fragments_of_the_tunnelled_one() {
    for encapsulation in [Encapsulation::Ipip, GUE] {
        for outer in [outer(true, encapsulation), outer(false, encapsulation)] {
            let inner = segment(false, 1220);
            let sent = cut_up(&inner.partial(), outer, 1280).expect("it can be cut");
            let packets: Vec<_> = sent
                .iter()
                .map(|(vnet, headers, payload)| {
                    assert_eq!(*vnet, VnetHdr::default());
                    [&headers[..], payload].concat()
                })
                .collect();
            assert_eq!(packets.len(), 2);
            assert!(packets.iter().all(|packet| packet.len() <= 1280));
            assert!(packets.iter().all(|packet| packet[0] >> 4 == 6 || !ipv4::dont_fragment(packet)));
            let whole = oracle::reassemble(&packets).expect("all are there");
            assert_eq!(whole, tunnelled(&outer, &inner.bytes(), 0x68, (0x4242, false)), "{outer:?}");
        }
    }
}
