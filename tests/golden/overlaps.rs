//! Fragments that overlap, or are too many (RFC 1858, RFC 3128, RFC 5722); and a flood of fragments (RFC 4787 REQ-14a).

use gatun::engine::Engine;
use gatun::flow::MAX_PIECES;
use gatun::service::{Limits, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::PacketBuf;

use crate::support::packet::{Build, echo, fragment, tcp, udp};
use crate::support::{oracle, world};
use crate::{Net, Row};

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let datagram = udp(net.client(40000), net.vip(53)).payload(vec![7; 3000]);
    let pieces = datagram.fragments(1000);
    let overlapping = |from: usize, len: usize| piece(net, &datagram, from, len);
    let drop = |name: &str, packet: Vec<u8>| {
        let reason = DropReason::OverlappingFragment;
        Row::drop(name, net.spec(), packet, reason).after([pieces[0].clone(), pieces[2].clone()])
    };
    let many: Vec<Vec<u8>> = (0..MAX_PIECES).map(|number| overlapping(16 + number * 16, 8)).collect();
    let syn = tcp(net.client(40000), net.vip(80)).syn().payload(vec![1; 100]);
    let past = udp(net.client(40000), net.stranger(53)).payload(vec![7; 3000]);
    let ping = echo(net.client(0), net.vip(0), 1, 1).payload(vec![7; 3000]);
    vec![
        drop("a fragment over the end of the one before it", overlapping(992, 16)),
        drop("over the beginning of the one behind it", overlapping(1000, 1008)),
        drop("within another", overlapping(504, 8)),
        drop("around another", overlapping(1992, 1016)),
        drop("over the ports", overlapping(8, 8)),
        drop("another first fragment", overlapping(0, 992)),
        Row::drop(
            "a first fragment over one that waits",
            net.spec(),
            pieces[0].clone(),
            DropReason::OverlappingFragment,
        )
        .after([overlapping(992, 16)]),
        Row::drop("what comes after an overlap", net.spec(), pieces[1].clone(), DropReason::OverlappingFragment)
            .after([pieces[0].clone(), overlapping(504, 8)]),
        Row::drop(
            "bytes 16 to 24 of TCP, once they came",
            net.spec(),
            syn.fragments(16)[1].clone(),
            DropReason::OverlappingFragment,
        )
        .after([syn.fragments(24)[0].clone()]),
        Row::drop("past the gateway as well", net.spec(), piece(net, &past, 504, 8), DropReason::OverlappingFragment)
            .after([past.fragments(1000)[0].clone()]),
        Row::drop("of a ping", net.spec(), piece(net, &ping, 504, 8), DropReason::OverlappingFragment)
            .after([ping.fragments(1000)[0].clone()]),
        Row::drop("as many fragments as there may be", net.spec(), overlapping(8, 8), DropReason::TooManyFragments)
            .after(many),
        Row::drop("a piece of an odd length", net.spec(), odd(net, &pieces[1]), DropReason::BadFragment)
            .after([pieces[0].clone()]),
    ]
}

/// Bytes `from..from + len` of a packet's payload, as a fragment that is not the last one.
fn piece(net: Net, build: &Build, from: usize, len: usize) -> Vec<u8> {
    let bytes = build.bytes();
    let header = if net.is_v4() { 20 } else { 40 };
    let end = (header + from + len).min(bytes.len());
    let mut cut = bytes[..header].to_vec();
    cut.extend(&bytes[header + from..end]);
    // One fragment and a bit: the first one is taken, and moved to where it belongs.
    cut.resize(header + len + 8, 0);
    let mut first = fragment(&cut, len, u32::from(build.id)).swap_remove(0);
    let (at, shift) = if net.is_v4() { (6, 3) } else { (42, 0) };
    let field = u16::from_be_bytes([first[at], first[at + 1]]) | (from as u16 >> shift);
    first[at..at + 2].copy_from_slice(&field.to_be_bytes());
    oracle::fix_ip_checksum(&mut first);
    first
}

/// A byte short.
fn odd(net: Net, piece: &[u8]) -> Vec<u8> {
    let mut piece = piece[..piece.len() - 1].to_vec();
    let at = if net.is_v4() { 2 } else { 4 };
    let len = u16::from_be_bytes([piece[at], piece[at + 1]]) - 1;
    piece[at..at + 2].copy_from_slice(&len.to_be_bytes());
    oracle::fix_ip_checksum(&mut piece);
    piece
}

fn engine(net: Net, limits: Limits) -> Engine {
    let snapshot = Snapshot::build(SnapshotSpec { limits, ..net.spec() }, None).expect("valid");
    world::engine(snapshot.into(), 64)
}

fn hand_in(engine: &mut Engine, packet: &[u8]) -> Verdict {
    let verdict = engine.handle_packet(Instant::ZERO, &mut PacketBuf::from_packet(packet));
    engine.check_invariants();
    verdict
}

#[test]
fn what_is_held_goes_with_an_overlap() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let datagram = udp(net.client(40000), net.vip(53)).payload(vec![7; 4000]);
        let pieces = datagram.fragments(1000);
        for held in &pieces[1..4] {
            assert_eq!(hand_in(&mut engine, held), Verdict::Held);
        }
        let overlap = Verdict::Drop(DropReason::OverlappingFragment);
        assert_eq!(hand_in(&mut engine, &piece(net, &datagram, 1504, 8)), overlap);
        assert_eq!(engine.stats().drops(DropReason::OverlappingFragment), 4);
        for piece in &pieces {
            assert_eq!(hand_in(&mut engine, piece), overlap);
        }
        assert!(engine.poll_transmit().is_none());
        assert_eq!(engine.occupancy().0, 0, "nothing of it began a flow");
        // Another packet of the same sender is none the worse.
        for piece in datagram.id(7).fragments(1000) {
            assert_eq!(hand_in(&mut engine, &piece), Verdict::Forward);
        }
        // And the identification is free again in time.
        engine.handle_timeout(Instant::from_secs(31));
        assert_eq!(hand_in(&mut engine, &pieces[0]), Verdict::Forward);
    }
}

#[test]
fn a_fragment_that_comes_again_does_no_harm() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let pieces = udp(net.client(40000), net.vip(53)).payload(vec![7; 4000]).fragments(1000);
        for number in [0, 0, 2, 2, 0, 1, 1, 3, 3, 4, 4] {
            assert_eq!(hand_in(&mut engine, &pieces[number]), Verdict::Forward, "{number}");
        }
    }
}

#[test]
fn a_packet_that_came_whole_may_be_followed_by_one_of_the_same_identification() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let datagram = udp(net.client(40000), net.vip(53)).payload(vec![7; 4000]);
        for size in [1000, 1400, 504, 1000] {
            for piece in datagram.fragments(size) {
                assert_eq!(hand_in(&mut engine, &piece), Verdict::Forward, "{size}");
            }
        }
    }
}

#[test]
fn a_flood_of_fragments_does_not_hurt_whole_packets() {
    for net in Net::BOTH {
        let limits = Limits { fragmented_packets: 64, held_fragment_bytes: 1 << 16, ..Limits::default() };
        let mut engine = engine(net, limits);
        let query = udp(net.client(40001), net.vip(53)).payload("a question");
        let answer = udp(net.rs(1, 53), net.client(40001)).payload("an answer");
        for id in 0..2000 {
            let flood = udp(net.other((id % 250) as u8, 7), net.vip(53)).payload(vec![7; 2000]).id(id);
            let pieces = flood.fragments(1000);
            // Never a first one, and now and then an overlap.
            hand_in(&mut engine, &pieces[1]);
            if id % 3 == 0 {
                hand_in(&mut engine, &piece(net, &flood, 1504, 8));
            }
            assert_eq!(hand_in(&mut engine, &query.bytes()), Verdict::Forward);
            assert_eq!(hand_in(&mut engine, &answer.bytes()), Verdict::Forward);
        }
        assert_eq!(engine.occupancy().0, 1);
    }
}
