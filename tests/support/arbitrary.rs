//! Random packets and tuples for proptest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use gatun::wire::{Addr, Protocol, Tuple};
use proptest::collection::vec;
use proptest::prelude::*;

use super::packet::{Build, Extension, Transport, mss};

/// A whole TCP, UDP or echo packet of either family, with options and extension headers.
pub fn packet() -> impl Strategy<Value = Build> {
    any::<bool>().prop_flat_map(|v4| {
        let ip_options = (0usize..=10).prop_map(|words| vec![1u8; words * 4]);
        let payload = prop_oneof![4 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), 0..1400)];
        let fields = (any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>());
        (end(v4), end(v4), transport(v4), ip_options, extensions(), payload, fields).prop_map(
            move |(src, dst, transport, ip_options, extensions, payload, (ttl, tos, id, dont_fragment))| Build {
                src,
                dst,
                ttl,
                tos,
                id,
                dont_fragment,
                ip_options: if v4 { ip_options } else { Vec::new() },
                extensions: if v4 { Vec::new() } else { extensions },
                transport,
                payload,
            },
        )
    })
}

/// Any address that may stand in a header of the family; IPv4-mapped ones may not.
pub fn ip(v4: bool) -> BoxedStrategy<IpAddr> {
    if v4 {
        any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).into()).boxed()
    } else {
        any::<[u8; 16]>()
            .prop_map(Ipv6Addr::from)
            .prop_filter("IPv4-mapped", |ip| ip.to_ipv4_mapped().is_none())
            .prop_map(IpAddr::V6)
            .boxed()
    }
}

pub fn end(v4: bool) -> impl Strategy<Value = SocketAddr> {
    (ip(v4), any::<u16>()).prop_map(SocketAddr::from)
}

/// What a packet from `packet`'s ends may be translated to.
pub fn target(v4: bool) -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    (end(v4), end(v4))
}

pub fn tuple(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Tuple {
    Tuple {
        src: Addr::from(src.ip()),
        dst: Addr::from(dst.ip()),
        sport: src.port(),
        dport: dst.port(),
        protocol: Protocol(protocol),
    }
}

/// TCP options with an MSS behind so many NOPs; anything else may follow.
pub fn options_with_mss() -> impl Strategy<Value = (Vec<u8>, u16)> {
    (0usize..20, 1u16.., vec(0u8..2, 0..10)).prop_map(|(nops, value, tail)| {
        let mut options = vec![1; nops];
        options.extend(mss(value));
        options.extend(tail);
        (options, value)
    })
}

fn transport(v4: bool) -> impl Strategy<Value = Transport> {
    let flags = prop::sample::select(vec![0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x00, 0x01]);
    let options = prop_oneof![Just(Vec::new()), options_with_mss().prop_map(|(options, _)| options)];
    let tcp = (any::<u32>(), any::<u32>(), flags, any::<u16>(), options)
        .prop_map(|(seq, ack, flags, window, options)| Transport::Tcp { seq, ack, flags, window, options });
    let udp = prop::bool::weighted(0.8).prop_map(|checksum| Transport::Udp { checksum });
    let echo = (any::<bool>(), any::<[u8; 4]>()).prop_map(move |(request, word)| {
        Transport::Icmp(if v4 { if request { 8 } else { 0 } } else { 129 - u8::from(request) }, 0, word)
    });
    prop_oneof![4 => tcp, 3 => udp, 1 => echo]
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let one = prop_oneof![
        (0u8..3).prop_map(Extension::HopByHop),
        (0u8..3).prop_map(Extension::Destination),
        (0u8..3).prop_map(Extension::Routing),
        Just(Extension::AtomicFragment),
        (0u8..4).prop_map(Extension::Authentication),
    ];
    prop_oneof![2 => Just(Vec::new()), 1 => vec(one, 1..4)]
}
