//! Any packet through any tunnel comes out as it went in; see the harness for what that means.

use gatun::wire::{Addr, Encapsulation, Outer, PacketBuf, VnetHdr, Wrap};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::harness::tunnel::{self, GUE_PORTS};
use crate::support::arbitrary::{self, packet};
use crate::support::packet::{Build, Transport};

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_come_out_as_they_went_in(buf in any_packet(), wrap in wrap()) {
        tunnel::goes_through(&buf, &wrap);
        tunnel::goes_without_tunnel(&buf, wrap.mtu);
    }

    #[test]
    fn so_do_super_packets(buf in super_packet(), wrap in wrap()) {
        tunnel::goes_through(&buf, &wrap);
        tunnel::goes_without_tunnel(&buf, wrap.mtu);
    }

    #[test]
    fn so_do_fragments(build in packet(), size in 8usize..60, tos: u8, df: bool, which: prop::sample::Index, wrap in wrap()) {
        let build = build.payload(vec![0x5a; 900]).extensions(&[]).ip_options(&[]);
        let fragments = build.fragments(size * 8);
        let mut bytes = fragments[which.index(fragments.len())].clone();
        mark(&mut bytes, tos, df);
        let buf = PacketBuf::from_packet(&bytes);
        tunnel::goes_through(&buf, &wrap);
        tunnel::goes_without_tunnel(&buf, wrap.mtu);
    }

    #[test]
    fn bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        tunnel::run(&bytes);
    }

    #[test]
    fn broken_packets_do_no_harm(
        build in packet(), prefix in any::<[u8; 20]>(), hits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        tunnelled: bool, wrap in wrap(),
    ) {
        let mut bytes = build.bytes();
        if tunnelled {
            let mut buf = PacketBuf::from_packet(&bytes);
            let view = gatun::wire::View::parse(&bytes).expect("valid");
            prop_assert_eq!(wrap.outer.wrap(&mut buf, &view), Ok(()));
            bytes = crate::support::oracle::complete(&buf);
        }
        for (at, value) in hits {
            let headers = bytes.len().min(100);
            bytes[at.index(headers)] = value;
        }
        tunnel::run(&[prefix.as_slice(), &bytes].concat());
    }
}

fn any_packet() -> impl Strategy<Value = PacketBuf> {
    (packet(), any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(build, tos, df, partial)| {
        let mut bytes = build.bytes();
        mark(&mut bytes, tos, df);
        match (partial, &build.transport) {
            (true, Transport::Tcp { .. } | Transport::Udp { .. }) => crate::support::oracle::to_partial(&bytes),
            _ => PacketBuf::from_packet(&bytes),
        }
    })
}

fn super_packet() -> impl Strategy<Value = PacketBuf> {
    let sizes = prop_oneof![1u16..40, 40u16..1600, Just(1448u16), any::<u16>()];
    let payload = prop_oneof![0usize..100, 0usize..6000];
    (packet(), sizes, payload, any::<u8>(), any::<bool>(), any::<u8>(), any::<[bool; 2]>()).prop_filter_map(
        "no echo, no checksum left out",
        |(build, size, payload, tos, df, flags, [partial, ecn])| {
            let payload: Vec<u8> = (0..payload).map(|n| (n ^ n >> 8) as u8).collect();
            let build = Build { payload, ..build };
            if let Transport::Icmp(..) | Transport::Udp { checksum: false } = build.transport {
                return None;
            }
            let mut bytes = build.bytes();
            let l4 = crate::support::oracle::decode(&bytes)?.l4;
            if let Transport::Tcp { .. } = build.transport {
                // All flags, those of ECN too, but no SYN.
                bytes[l4 + 13] = flags & !2;
            }
            mark(&mut bytes, tos, df);
            crate::support::oracle::fix_checksums(&mut bytes);
            let told = build.super_packet(size.max(1)).vnet;
            let mut buf = crate::support::oracle::to_partial(&bytes);
            let offloads = buf.vnet;
            if !partial {
                buf = PacketBuf::from_packet(&bytes);
            }
            let ecn = if ecn { 0x80 } else { 0 };
            let gso = VnetHdr { gso_type: told.gso_type | ecn, gso_size: told.gso_size, ..VnetHdr::default() };
            buf.vnet =
                VnetHdr { gso_type: gso.gso_type, gso_size: gso.gso_size, ..if partial { offloads } else { gso } };
            Some(buf)
        },
    )
}

/// Sets TOS with ECN, and DF.
fn mark(bytes: &mut [u8], tos: u8, df: bool) {
    if bytes[0] >> 4 == 4 {
        bytes[1] = tos;
        bytes[6] = bytes[6] & !0x40 | if df { 0x40 } else { 0 };
        crate::support::oracle::fix_ip_checksum(bytes);
    } else {
        bytes[0] = 0x60 | tos >> 4;
        bytes[1] = bytes[1] & 0x0f | tos << 4;
    }
}

fn wrap() -> impl Strategy<Value = Wrap> {
    let mtu = prop_oneof![68u16..600, 1200u16..1600, 1000u16..9000, Just(1500u16), Just(1280u16)];
    let encapsulation = prop_oneof![
        Just(Encapsulation::Ipip),
        prop::sample::select(GUE_PORTS.to_vec()).prop_map(|port| Encapsulation::Gue { port })
    ];
    any::<bool>().prop_flat_map(move |v4| {
        let ends = (arbitrary::ip(v4), arbitrary::ip(v4));
        (ends, encapsulation.clone(), any::<u8>(), any::<u16>(), any::<u16>(), mtu.clone()).prop_map(
            |((src, dst), encapsulation, ttl, id, entropy, mtu)| Wrap {
                outer: Outer { src: Addr::from(src), dst: Addr::from(dst), encapsulation, ttl, id, entropy },
                mtu,
            },
        )
    })
}
