//! Properties of parsing and rewriting: any packet, against etherparse and a naive checksum.

mod support;

use std::net::SocketAddr;

use gatun::verdict::DropReason;
use gatun::wire::checksum::{self, Delta};
use gatun::wire::vnet::{VNET_HDR_LEN, VnetHdr};
use gatun::wire::{Addr, PacketBuf, Rewrite, Transport, View, icmp, ipv4_id, tcp};
use proptest::collection::vec;
use proptest::prelude::*;
use support::arbitrary::{self, packet};
use support::oracle::{self, Checksum, decode};
use support::packet::{Build, SYN, Transport as Layer};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_view_agrees_with_etherparse(build in packet(), trailer in vec(any::<u8>(), 0..8)) {
        let mut bytes = build.bytes();
        let decoded = decode(&bytes).expect("etherparse reads what it wrote");
        bytes.extend(trailer);
        let view = View::parse(&bytes).expect("a valid packet");
        prop_assert_eq!(view.src, Addr::from(decoded.src));
        prop_assert_eq!(view.dst, Addr::from(decoded.dst));
        prop_assert_eq!((view.protocol.0, view.ttl), (decoded.protocol, decoded.ttl));
        prop_assert_eq!((view.l4, view.len), (decoded.l4, decoded.len));
        prop_assert!(view.fragment.is_none());
        match (view.transport, decoded.tcp, &build.transport) {
            (Transport::Tcp(seen), Some(told), _) => {
                prop_assert_eq!(Some((seen.sport, seen.dport)), decoded.ports);
                prop_assert_eq!((seen.seq, seen.ack, seen.flags), (told.seq, told.ack, told.flags));
                prop_assert_eq!((seen.window, seen.header_len), (told.window, told.header_len));
                let extra = u32::from(told.flags & 2 != 0) + u32::from(told.flags & 1 != 0);
                prop_assert_eq!(seen.seq_len, decoded.payload.len() as u32 + extra);
            }
            (Transport::Udp(seen), None, Layer::Udp { .. }) => {
                prop_assert_eq!(Some((seen.sport, seen.dport)), decoded.ports);
            }
            (Transport::Icmp(kind), None, Layer::Icmp(number, _, word)) => {
                let id = u16::from_be_bytes([word[0], word[1]]);
                let expected = match number {
                    8 | 128 => icmp::Kind::EchoRequest { id },
                    _ => icmp::Kind::EchoReply { id },
                };
                prop_assert_eq!(kind, expected);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_rewrite_keeps_complete_checksums_right((build, to) in packet_and_target()) {
        let mut bytes = build.bytes();
        let before = decode(&bytes).expect("valid");
        apply(&mut bytes, &build, to, &VnetHdr::default());
        prop_assert!(oracle::checksums_are_right(&bytes));
        prop_assert_eq!(without_checksums(&bytes), without_checksums(&translated(&build, to).bytes()));
        // A checksum that was left out is not invented, and none is lost.
        if matches!(build.transport, Layer::Udp { .. }) {
            let checksum = Checksum::of(&bytes).expect("UDP has one");
            prop_assert_eq!(checksum.found == 0, matches!(build.transport, Layer::Udp { checksum: false }));
        }
        prop_assert_eq!(decode(&bytes).expect("still valid").payload, before.payload);
    }

    #[test]
    fn a_udp_checksum_that_comes_out_as_zero_is_written_as_ffff((mut build, to) in packet_and_target()) {
        build.transport = Layer::Udp { checksum: true };
        // A payload word equal to the checksum without it makes the sum come out as zero.
        let word = Checksum::of(&translated(&build, to).payload([0, 0]).bytes()).expect("UDP has one").expected;
        let build = build.payload(word.to_be_bytes());
        let mut bytes = build.bytes();
        apply(&mut bytes, &build, to, &VnetHdr::default());
        prop_assert_eq!(Checksum::of(&bytes).expect("UDP has one").found, 0xffff);
    }

    #[test]
    fn a_rewrite_keeps_partial_checksums_right((build, to) in packet_and_target()) {
        let mut buf = build.partial();
        let vnet = buf.vnet;
        apply(buf.packet_mut(), &build, to, &vnet);
        let completed = oracle::complete(&buf);
        prop_assert!(oracle::checksums_are_right(&completed));
        prop_assert_eq!(without_checksums(&completed), without_checksums(&translated(&build, to).bytes()));
    }

    #[test]
    fn a_bad_checksum_stays_bad_by_the_same_amount((build, to) in packet_and_target(), off in 1u16..0xffff) {
        prop_assume!(!matches!(build.transport, Layer::Udp { checksum: false }));
        let mut bytes = build.bytes();
        let at = Checksum::of(&bytes).expect("a protocol with a checksum").at;
        let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (sum, carry) = field.overflowing_add(off);
        let wrong = sum + u16::from(carry);
        prop_assume!(wrong != 0); // to UDP this would mean that there is none
        bytes[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        let before = Checksum::of(&bytes).expect("it has one").error();
        apply(&mut bytes, &build, to, &VnetHdr::default());
        let after = Checksum::of(&bytes).expect("it has one").error();
        prop_assert_ne!(before, 0);
        prop_assert_eq!(before, after);
    }

    #[test]
    fn translating_and_back_is_identity((build, to) in packet_and_target(), partial in any::<bool>()) {
        let mut buf = if partial { build.partial() } else { build.buf() };
        let original = buf.packet().to_vec();
        let vnet = buf.vnet;
        apply(buf.packet_mut(), &build, to, &vnet);
        let mut back = (build.src, build.dst);
        if let Layer::Icmp(_, _, [high, low, ..]) = build.transport {
            back.0.set_port(u16::from_be_bytes([high, low]));
        }
        apply(buf.packet_mut(), &translated(&build, to), back, &vnet);
        // An unsummed UDP field may come back as the other zero.
        let (at, partial_udp) = (usize::from(vnet.csum_start + vnet.csum_offset), partial && vnet.csum_offset == 6);
        let mut back = buf.packet().to_vec();
        if partial_udp && back[at..at + 2] == [0xff; 2] && original[at..at + 2] == [0; 2] {
            back[at..at + 2].fill(0);
        }
        prop_assert_eq!(back, original);
    }

    #[test]
    fn fragments_are_right_once_put_together((build, to) in packet_and_target(), size in 8usize..20, payload in vec(any::<u8>(), 200..600)) {
        let build = build.payload(payload).extensions(&[]);
        let l4 = decode(&build.bytes()).expect("valid").l4;
        let mut fragments = build.fragments(size * 8);
        for (number, fragment) in fragments.iter_mut().enumerate() {
            let view = View::parse(fragment).expect("a valid fragment");
            let told = decode(fragment).expect("valid").fragment;
            prop_assert_eq!(view.fragment.map(|f| (f.id, f.offset, f.more)), told);
            prop_assert_eq!(matches!(view.transport, Transport::Later), number > 0);
            let rewrite = rewrite(&build, to);
            match view.transport {
                Transport::Later => rewrite.apply_addresses(fragment),
                _ => rewrite.apply(fragment, &view, &VnetHdr::default()),
            }
            prop_assert!(fragment[0] >> 4 == 6 || oracle::sum(&fragment[..l4]) == 0xffff);
        }
        let whole = oracle::reassemble(&fragments).expect("all are there");
        prop_assert!(oracle::checksums_are_right(&whole));
    }

    #[test]
    fn mss_is_clamped_wherever_it_stands(
        build in packet(), (options, value) in arbitrary::options_with_mss(), limit in 500u16..9000, partial in any::<bool>(),
    ) {
        let Layer::Tcp { .. } = build.transport else { return Ok(()) };
        let build = build.flags(SYN).tcp_options(&options);
        let mut buf = if partial { build.partial() } else { build.buf() };
        let decoded = decode(buf.packet()).expect("valid");
        let header_len = decoded.tcp.as_ref().expect("TCP").header_len;
        tcp::clamp_mss(&mut buf.packet_mut()[decoded.l4..], header_len, limit, partial);
        let completed = oracle::complete(&buf);
        prop_assert!(oracle::checksums_are_right(&completed));
        let clamped = decode(&completed).expect("still valid");
        prop_assert_eq!(clamped.tcp.expect("TCP").mss, Some(value.min(limit)));
        prop_assert_eq!(clamped.payload, decoded.payload);
    }

    #[test]
    fn options_of_rubbish_do_no_harm(build in packet(), options in vec(any::<u8>(), 0..40), limit in any::<u16>()) {
        let Layer::Tcp { .. } = build.transport else { return Ok(()) };
        let mut bytes = build.flags(SYN).tcp_options(&options).bytes();
        let decoded = decode(&bytes).expect("valid");
        let header_len = decoded.tcp.as_ref().expect("TCP").header_len;
        tcp::clamp_mss(&mut bytes[decoded.l4..], header_len, limit, false);
        prop_assert!(oracle::checksums_are_right(&bytes));
        prop_assert_eq!(decode(&bytes).expect("still valid").payload, decoded.payload);
    }

    #[test]
    fn rubbish_never_panics(bytes in vec(any::<u8>(), 0..120), first in prop::sample::select(vec![0x45u8, 0x60, 0x4f, 0])) {
        let mut bytes = bytes;
        if let (Some(byte), true) = (bytes.first_mut(), first != 0) {
            *byte = first;
        }
        stays_in_bounds(&mut bytes)?;
    }

    #[test]
    fn broken_packets_never_panic(
        build in packet(), hits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = build.bytes();
        for (at, value) in hits {
            let headers = bytes.len().min(100);
            bytes[at.index(headers)] = value;
        }
        oracle::fix_header_checksum_if_possible(&mut bytes);
        stays_in_bounds(&mut bytes.clone())?;
        let len = cut.index(bytes.len());
        stays_in_bounds(&mut bytes[..len].to_vec())?;
    }

    #[test]
    fn a_cut_packet_is_truncated(build in packet(), cut in any::<prop::sample::Index>()) {
        let bytes = build.bytes();
        let len = cut.index(bytes.len());
        prop_assert_eq!(View::parse(&bytes[..len]).err(), Some(DropReason::Truncated));
    }

    #[test]
    fn a_quoted_packet_is_read_as_far_as_it_goes(build in packet(), beyond in 0usize..40) {
        let bytes = build.bytes();
        let decoded = decode(&bytes).expect("valid");
        let len = bytes.len().min(decoded.l4 + beyond);
        let (view, tuple) = View::parse_quoted(&bytes[..len]).expect("its headers are whole");
        prop_assert_eq!((view.l4, view.len), (decoded.l4, decoded.len));
        let expected = match build.transport {
            Layer::Icmp(_, _, [high, low, ..]) => {
                let id = u16::from_be_bytes([high, low]);
                Some((id, id)).filter(|_| beyond >= 6)
            }
            _ => decoded.ports.filter(|_| beyond >= 4),
        };
        prop_assert_eq!(tuple.map(|t| (t.sport, t.dport)), expected);
    }

    #[test]
    fn sums_agree_with_the_naive_one(bytes in vec(any::<u8>(), 0..3000)) {
        prop_assert_eq!(checksum::sum(&bytes), oracle::sum(&bytes));
    }

    #[test]
    fn a_patch_agrees_with_a_new_sum(bytes in vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), new: u16) {
        let mut bytes = bytes;
        if bytes.len() % 2 == 1 {
            bytes.push(7);
        }
        let before = !oracle::sum(&bytes);
        let at = at.index(bytes.len() / 2) * 2;
        let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
        let patched = Delta::word(old, new).patch_complete(before);
        let error = |a: u16, b: u16| if a == 0xffff { b % 0xffff } else { a.abs_diff(b) % 0xffff };
        prop_assert_eq!(error(patched, !oracle::sum(&bytes)), 0);
    }

    #[test]
    fn a_new_identification_keeps_the_header_checksum(build in packet(), id: u16) {
        prop_assume!(build.src.is_ipv4());
        let mut bytes = build.bytes();
        ipv4_id(&mut bytes, id);
        prop_assert_eq!(bytes, build.id(id).bytes());
    }

    #[test]
    fn a_virtio_header_survives_a_write_and_a_read(build in packet(), raw in any::<[u8; VNET_HDR_LEN]>()) {
        let mut out = build.buf();
        out.vnet = VnetHdr::decode(&raw);
        let written = out.write_area().expect("room for the header").to_vec();
        prop_assert_eq!(&written[..VNET_HDR_LEN], &raw);
        let mut back = PacketBuf::with_capacity(written.len() - VNET_HDR_LEN);
        back.read_area()[..written.len()].copy_from_slice(&written);
        prop_assert!(back.read_done(written.len()));
        prop_assert_eq!((back.vnet, back.packet()), (out.vnet, out.packet()));
    }
}

#[test]
fn rfc_1624_example() {
    assert_eq!(Delta::word(0x5555, 0x3285).patch_complete(0xdd2f), 0x0000);
}

#[test]
fn a_mapped_address_is_refused() {
    let mut bytes = support::packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2").bytes();
    bytes[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    assert_eq!(View::parse(&bytes).err(), Some(DropReason::BadIpHeader));
}

fn packet_and_target() -> impl Strategy<Value = (Build, (SocketAddr, SocketAddr))> {
    packet().prop_flat_map(|build| {
        let v4 = build.src.is_ipv4();
        (Just(build), arbitrary::target(v4))
    })
}

fn rewrite(build: &Build, (src, dst): (SocketAddr, SocketAddr)) -> Rewrite {
    let protocol = match build.transport {
        Layer::Tcp { .. } => 6,
        Layer::Udp { .. } => 17,
        Layer::Icmp(..) if build.src.is_ipv4() => 1,
        Layer::Icmp(..) => 58,
        Layer::Other(protocol) => protocol,
    };
    let mut from = arbitrary::tuple(build.src, build.dst, protocol);
    if let Layer::Icmp(_, _, [high, low, ..]) = build.transport {
        from.sport = u16::from_be_bytes([high, low]);
        from.dport = from.sport;
    }
    Rewrite::between(&from, &arbitrary::tuple(src, dst, protocol))
}

fn apply(packet: &mut [u8], build: &Build, to: (SocketAddr, SocketAddr), vnet: &VnetHdr) {
    let view = View::parse(packet).expect("a valid packet");
    rewrite(build, to).apply(packet, &view, vnet);
}

/// The packet that a rewrite is to yield, built anew.
fn translated(build: &Build, (src, dst): (SocketAddr, SocketAddr)) -> Build {
    let transport = match build.transport {
        // Of an echo message the source's port is the identifier.
        Layer::Icmp(kind, code, [_, _, high, low]) => {
            let [first, second] = src.port().to_be_bytes();
            Layer::Icmp(kind, code, [first, second, high, low])
        }
        ref other => other.clone(),
    };
    Build { src, dst, transport, ..build.clone() }
}

fn without_checksums(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    if let Some(checksum) = Checksum::of(&bytes) {
        bytes[checksum.at..checksum.at + 2].fill(0);
    }
    bytes
}

/// Parses `bytes`, uses every offset that a view offers, and rewrites the packet.
fn stays_in_bounds(bytes: &mut [u8]) -> Result<(), TestCaseError> {
    if let Ok((view, tuple)) = View::parse_quoted(bytes) {
        prop_assert!(view.l4 <= bytes.len());
        if let Some(tuple) = tuple {
            Rewrite::between(&tuple, &tuple.reversed()).apply_transport(
                &mut bytes.to_vec()[view.l4..],
                view.protocol,
                false,
            );
        }
    }
    let Ok(view) = View::parse(bytes) else { return Ok(()) };
    prop_assert!(view.l4 <= view.len && view.len <= bytes.len());
    let v4 = bytes[0] >> 4 == 4;
    prop_assert_eq!((view.src.is_v4(), view.dst.is_v4()), (v4, v4));
    match view.transport {
        Transport::Tcp(header) => {
            prop_assert!(view.l4 + header.header_len <= view.len);
            tcp::clamp_mss(&mut bytes[view.l4..], header.header_len, 500, false);
        }
        Transport::Udp(_) | Transport::Icmp(_) => prop_assert!(view.l4 + 8 <= view.len),
        Transport::Later => prop_assert!(view.fragment.is_some_and(|f| f.offset > 0)),
        Transport::Other => {}
    }
    let from = view.ports().unwrap_or_else(|| {
        let any = SocketAddr::new(view.src.ip(), 0);
        arbitrary::tuple(any, SocketAddr::new(view.dst.ip(), 0), view.protocol.0)
    });
    Rewrite::between(&from, &from.reversed()).apply(bytes, &view, &VnetHdr::default());
    Ok(())
}
