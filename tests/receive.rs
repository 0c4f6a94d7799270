//! The real server's end of the tunnel: what it takes and what not, and segments put together.

#[path = "../fuzz/harness/receive.rs"]
#[allow(dead_code, reason = "the fuzz target uses more of it")]
mod harness;
#[path = "support/mod.rs"]
mod support;

use gatun::forward::receive::{RealServer, Received, Volume};
use gatun::verdict::DropReason;
use gatun::wire::coalesce::coalesce;
use gatun::wire::{Addr, PacketBuf, VnetHdr};
use proptest::prelude::*;

use harness::{keeps_every_packet, roomy, server, wrapped};
use support::oracle;
use support::packet::{self, ACK, Build, FIN, PSH, SYN, tcp, udp};

const CLIENT: &str = "198.51.100.2:40000";
const VIP: &str = "203.0.113.10:80";
const CLIENT6: &str = "[2001:db8:1::2]:40000";
const VIP6: &str = "[2001::10]:80";

fn segment(seq: u32, payload: usize) -> Build {
    let data: Vec<u8> = (0..payload).map(|at| (at as u8).wrapping_add(seq as u8)).collect();
    let mut build = tcp(CLIENT, VIP).flags(ACK).seq(seq, 77).payload(data);
    build.dont_fragment = true;
    build
}

/// In GUE to port `port`, over IPv4 from the gateway.
fn gue(inner: &[u8], port: u16) -> Vec<u8> {
    let mut payload = vec![0, if inner[0] >> 4 == 6 { 41 } else { 4 }, 0, 0];
    payload.extend_from_slice(inner);
    udp("10.20.0.1:51000", format!("10.20.0.11:{port}").as_str()).payload(payload).bytes()
}

/// In IPv6, from `src`.
fn wrapped6(inner: &[u8], src: &str) -> Vec<u8> {
    let protocol = if inner[0] >> 4 == 6 { 41 } else { 4 };
    let mut build = tcp(src, "[fd20::11]:0").payload(inner);
    build.transport = packet::Transport::Other(protocol);
    build.bytes()
}

fn take(server: &RealServer, outer: &[u8]) -> Result<PacketBuf, DropReason> {
    let mut buf = roomy(outer);
    let mut received = Received::default();
    let taken = server.handle(&mut buf, &mut received);
    let drops: u64 = received.drops.iter().sum();
    match taken {
        Ok(()) => assert_eq!((received.ipip.packets + received.gue.packets, drops), (1, 0)),
        Err(reason) => assert_eq!((received.drops[reason as usize], drops), (1, 1)),
    }
    taken.map(|()| buf)
}

#[test]
fn what_is_taken_comes_out_as_it_went_in() {
    let server = server(true);
    let (v4, v6) = (tcp(CLIENT, VIP).syn().bytes(), udp(CLIENT6, VIP6).payload(b"question").bytes());
    for (what, outer, inner) in [
        ("4in4", wrapped(v4.clone()), &v4),
        ("6in4", wrapped(v6.clone()), &v6),
        ("4in6", wrapped6(&v4, "[2001::1]:0"), &v4),
        ("6in6", wrapped6(&v6, "[2001::1]:0"), &v6),
        ("GUE, IPv4 inside", gue(&v4, 6080), &v4),
        ("GUE, IPv6 inside", gue(&v6, 6080), &v6),
    ] {
        let buf = take(&server, &outer).unwrap_or_else(|reason| panic!("{what}: {reason:?}"));
        assert_eq!((buf.packet(), buf.vnet), (inner.as_slice(), VnetHdr::default()), "{what}");
    }
}

#[test]
fn what_is_not_taken_has_its_reason() {
    let fine = tcp(CLIENT, VIP).syn().bytes();
    let from = |src: &str| wrapped(tcp(src, VIP).syn().bytes());
    let mut foreign = wrapped(fine.clone());
    foreign[15] = 2;
    oracle::fix_ip_checksum(&mut foreign);
    let mut bad_sum = wrapped(fine.clone());
    bad_sum[10] ^= 1;
    let mut bad_inner = wrapped(fine.clone());
    bad_inner[30] ^= 1;
    let rows = [
        ("a stranger", true, foreign, DropReason::UnknownGateway),
        ("a stranger by IPv6", true, wrapped6(&fine, "[2001::2]:0"), DropReason::UnknownGateway),
        // Nothing of what a stranger sends is looked at.
        ("a stranger's rubbish", true, vec![0x45; 24], DropReason::UnknownGateway),
        ("IP-in-IP that is not allowed", false, wrapped(fine.clone()), DropReason::TunnelNotAllowed),
        ("GUE on another port", true, gue(&fine, 6081), DropReason::NotTunnelled),
        ("for no VIP", true, wrapped(tcp(CLIENT, "203.0.113.11:80").syn().bytes()), DropReason::NotOurVip),
        ("for the server itself", true, wrapped(tcp(CLIENT, "10.20.0.11:22").syn().bytes()), DropReason::NotOurVip),
        ("a tunnel in a tunnel", true, wrapped(wrapped(fine.clone())), DropReason::NotOurVip),
        ("from the loopback", true, from("127.0.0.1:1"), DropReason::Martian),
        ("from a group", true, from("224.0.0.1:1"), DropReason::Martian),
        ("from the VIP itself", true, from("203.0.113.10:81"), DropReason::Martian),
        ("a wrong outer checksum", true, bad_sum, DropReason::BadIpChecksum),
        ("a wrong checksum inside", true, bad_inner, DropReason::BadIpChecksum),
        ("nothing inside", true, wrapped(Vec::new()), DropReason::Truncated),
        ("half a header", true, wrapped(fine[..10].to_vec()), DropReason::Truncated),
        ("no packet", true, Vec::new(), DropReason::Truncated),
        ("no IP", true, vec![0; 40], DropReason::NotIp),
    ];
    for (what, ipip, outer, reason) in rows {
        assert_eq!(take(&server(ipip), &outer).map(|buf| buf.packet().to_vec()), Err(reason), "{what}");
    }
}

#[test]
fn volumes_are_counted_by_tunnel() {
    let (server, inner) = (server(true), segment(1, 100).bytes());
    let mut received = Received::default();
    for outer in [wrapped(inner.clone()), wrapped(inner.clone()), gue(&inner, 6080)] {
        server.handle(&mut roomy(&outer), &mut received).unwrap();
    }
    let volume = |packets: u64| Volume { packets, bytes: packets * inner.len() as u64 };
    assert_eq!((received.ipip, received.gue), (volume(2), volume(1)));
    let mut sum = received.clone();
    sum.merge(&received);
    assert_eq!((sum.ipip, sum.gue), (volume(4), volume(2)));
}

#[test]
fn a_partial_checksum_is_recognised() {
    let server = server(true);
    for build in [segment(1, 9), udp(CLIENT, VIP).payload(b"q"), tcp(CLIENT6, VIP6).syn(), udp(CLIENT6, VIP6)] {
        let partial = build.partial();
        let buf = take(&server, &wrapped(partial.packet().to_vec())).unwrap();
        assert_eq!((buf.packet(), buf.vnet), (partial.packet(), partial.vnet));
        assert_eq!(oracle::complete(&buf), build.bytes(), "what the host makes of it");
    }
    // None at all stays none.
    let without = udp(CLIENT, VIP).without_checksum().bytes();
    assert_eq!(take(&server, &wrapped(without)).unwrap().vnet, VnetHdr::default());
    // A wrong one is not repaired: the host finds out.
    let mut wrong = segment(1, 9).bytes();
    wrong[36] ^= 0x55;
    assert_eq!(take(&server, &wrapped(wrong)).unwrap().vnet, VnetHdr::default());
}

/// A complete checksum that equals the sum of the pseudo header: both readings deliver the packet as it came.
#[test]
fn an_ambiguous_checksum_does_no_harm() {
    let mut packet = segment(1, 10).bytes();
    let found = oracle::Checksum::of(&packet).unwrap();
    // Choose the last two bytes so that the complete checksum is the pseudo header's sum.
    let last = packet.len() - 2;
    let other = (0..=u16::MAX).find(|word| {
        packet[last..].copy_from_slice(&word.to_be_bytes());
        oracle::Checksum::of(&packet).unwrap().expected == found.pseudo
    });
    assert!(other.is_some(), "one of 65536 words makes it so");
    oracle::fix_checksums(&mut packet);
    let buf = take(&server(true), &wrapped(packet.clone())).unwrap();
    assert!(buf.vnet.needs_csum());
    assert_eq!(buf.packet(), packet);
}

fn together(batch: &[Build]) -> usize {
    keeps_every_packet(batch.iter().map(|build| roomy(&build.bytes())).collect())
}

#[test]
fn a_run_of_segments_becomes_one() {
    for builds in [
        [segment(0, 100), segment(100, 100), segment(200, 100).flags(ACK | PSH)],
        [segment(0, 100), segment(100, 100), segment(200, 1)],
        // Over the end of the sequence numbers.
        [segment(u32::MAX - 49, 100), segment(50, 100), segment(150, 100)],
    ] {
        assert_eq!(together(&builds), 1);
        let partial = builds.iter().map(|build| {
            let partial = build.partial();
            let mut buf = roomy(partial.packet());
            buf.vnet = partial.vnet;
            buf
        });
        assert_eq!(keeps_every_packet(partial.collect()), 1, "with partial checksums");
        let v6: Vec<Build> = builds.iter().map(|build| build.with_src(CLIENT6).with_dst(VIP6)).collect();
        assert_eq!(together(&v6), 1, "IPv6");
    }
}

#[test]
fn what_differs_stays_apart() {
    let first = segment(0, 100);
    let mut no_df = segment(100, 100);
    no_df.dont_fragment = false;
    let mut tos = segment(100, 100);
    tos.tos = 4;
    let mut window = segment(100, 100);
    if let packet::Transport::Tcp { window, .. } = &mut window.transport {
        *window = 1;
    }
    for (what, second) in [
        ("a gap", segment(101, 100)),
        ("an overlap", segment(99, 100)),
        ("a larger one", segment(100, 101)),
        ("another acknowledgement", segment(100, 100).seq(100, 78)),
        ("another window", window),
        ("FIN", segment(100, 100).flags(ACK | FIN)),
        ("SYN", segment(100, 100).flags(SYN)),
        ("no ACK", segment(100, 100).flags(0)),
        ("options", segment(100, 100).tcp_options(&[1, 1, 1, 1])),
        ("options of IP", segment(100, 100).ip_options(&[1, 1, 1, 1])),
        ("another TTL", segment(100, 100).ttl(63)),
        ("another TOS", tos),
        ("without DF", no_df),
        ("another port", segment(100, 100).with_src("198.51.100.2:40001")),
        ("no payload", segment(100, 0)),
    ] {
        assert_eq!(together(&[first.clone(), second]), 2, "{what}");
    }
    assert_eq!(together(&[segment(0, 100).flags(ACK | PSH), segment(100, 100)]), 2, "behind PSH");
    assert_eq!(together(&[segment(0, 100), segment(100, 50), segment(150, 50)]), 2, "behind a short one");
    let same_id = |id: u16| {
        let mut build = segment(u32::from(id) * 100, 100).id(id);
        build.dont_fragment = false;
        build
    };
    assert_eq!(together(&[same_id(1), same_id(2), same_id(3)]), 1, "identifications that count up");
    assert_eq!(together(&[same_id(1), segment(200, 100).id(3)]), 2);
}

#[test]
fn flows_do_not_hinder_each_other_and_nothing_is_overtaken() {
    let (a, b) = (CLIENT, "198.51.100.2:40001");
    let of = |src: &str, seq: u32| segment(seq, 100).with_src(src);
    assert_eq!(together(&[of(a, 0), of(b, 0), of(a, 100), of(b, 100), of(a, 200)]), 2);
    // A FIN ends a run; what comes behind it is not moved in front.
    let fin = segment(100, 0).flags(ACK | FIN);
    assert_eq!(together(&[of(a, 0), fin, of(a, 100)]), 3);
}

#[test]
fn a_corrupted_segment_never_gets_a_right_checksum() {
    let mut packets: Vec<Vec<u8>> = (0..3).map(|n| segment(n * 100, 100).bytes()).collect();
    packets[1][60] ^= 0x10;
    let mut batch: Vec<PacketBuf> = packets.iter().map(|packet| roomy(packet)).collect();
    coalesce(&mut batch);
    for (buf, packet) in batch.iter().zip(&packets) {
        assert_eq!((buf.packet(), buf.vnet), (packet.as_slice(), VnetHdr::default()));
    }
}

#[test]
fn a_super_packet_has_its_limit() {
    let mut batch: Vec<PacketBuf> = (0..60)
        .map(|n| {
            let packet = segment(n * 1400, 1400).bytes();
            let mut buf = PacketBuf::with_capacity(65_535);
            let area = buf.read_area();
            area[10..10 + packet.len()].copy_from_slice(&packet);
            area[..10].fill(0);
            assert!(buf.read_done(10 + packet.len()));
            buf
        })
        .collect();
    coalesce(&mut batch);
    let sizes: Vec<usize> = batch.iter().map(PacketBuf::len).filter(|len| *len > 0).collect();
    // 46 segments of 1400 bytes fit into 65,535 with one header.
    assert_eq!(sizes, [40 + 46 * 1400, 40 + 14 * 1400]);
}

#[test]
fn addresses_are_told_apart_by_family() {
    // ::ffff:10.20.0.1 in an IPv6 header is not the gateway 10.20.0.1.
    let inner = tcp(CLIENT, VIP).syn().bytes();
    let outer = wrapped6(&inner, "[::ffff:10.20.0.1]:0");
    assert!(server(true).gateways.contains(&Addr::from_v4([10, 20, 0, 1])));
    assert!(take(&server(true), &outer).is_err());
}

/// A batch as a few senders make it, with slips.
fn batch() -> impl Strategy<Value = Vec<PacketBuf>> {
    let one = (0..3u16, prop::sample::select(vec![40usize, 100, 100, 100, 7]), 0..24u8, any::<bool>());
    prop::collection::vec(one, 1..32).prop_map(|steps| {
        let mut next = [0u32, u32::MAX - 300, 7];
        let mut id = [0u16; 3];
        let mut packets = Vec::new();
        for (flow, len, slip, partial) in steps {
            let at = usize::from(flow);
            let mut build =
                segment(next[at], len).with_src(format!("198.51.100.2:{}", 4000 + flow).as_str()).id(id[at]);
            build.dont_fragment = flow != 0;
            next[at] = next[at].wrapping_add(len as u32);
            id[at] = id[at].wrapping_add(1);
            if flow == 2 {
                build = build.with_src("[2001:db8:1::2]:4002").with_dst(VIP6);
            }
            build = match slip {
                0 => build.flags(ACK | PSH),
                1 => build.flags(ACK | FIN),
                2 => build.ttl(3),
                3 => build.tcp_options(&[1, 1, 1, 0]),
                4 => build.payload([]),
                5 => build.id(9),
                _ => build,
            };
            if slip == 6 {
                next[at] = next[at].wrapping_add(1);
            }
            let buf = if partial { build.partial() } else { build.buf() };
            let mut room = roomy(buf.packet());
            room.vnet = buf.vnet;
            if slip == 7 && !partial {
                let last = room.len() - 1;
                room.packet_mut()[last] ^= 1;
            }
            packets.push(room);
        }
        packets
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn put_together_and_cut_again_is_what_came(batch in batch()) {
        let count = batch.len();
        prop_assert!(keeps_every_packet(batch) <= count);
    }
}
