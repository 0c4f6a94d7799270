//! Fragments follow their first one, in whatever order they come.

use std::time::Duration;

use gatun::engine::Engine;
use gatun::service::{Limits, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::PacketBuf;

use crate::support::packet::{Build, Transport, echo, udp};
use crate::support::{oracle, world};
use crate::{Net, Packet};

/// A datagram that comes in four fragments.
fn datagram(net: Net) -> Build {
    let payload: Vec<u8> = (0..4000u32).map(|n| (n * 7) as u8).collect();
    udp(net.client(40000), net.vip(53)).payload(payload)
}

fn engine(net: Net, limits: Limits) -> Engine {
    let snapshot = Snapshot::build(SnapshotSpec { limits, ..net.spec() }, None).expect("valid");
    world::engine(snapshot.into(), 64)
}

/// Hands packets in; returns everything that is sent, in order.
fn send(engine: &mut Engine, now: Instant, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    for packet in packets {
        let mut buf = PacketBuf::from_packet(packet);
        if engine.handle_packet(now, &mut buf).sends() {
            sent.push(buf.packet().to_vec());
        }
        sent.extend(std::iter::from_fn(|| engine.poll_transmit()).map(|held| held.packet().to_vec()));
        engine.check_invariants();
    }
    sent
}

/// The identification is the gateway's own in IPv4.
fn same_but_for_id(net: Net, mut a: Vec<u8>, b: &[u8]) -> bool {
    if net.is_v4() {
        a[4..6].copy_from_slice(&b[4..6]);
        oracle::fix_ip_checksum(&mut a);
    }
    a == b
}

#[test]
fn any_order_comes_out_whole() {
    for net in Net::BOTH {
        let datagram = datagram(net);
        let expected = datagram.with_dst(net.rs(1, 53)).bytes();
        let pieces = datagram.fragments(1000);
        assert_eq!(pieces.len(), 5);
        let orders: [[usize; 5]; 6] =
            [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 2, 3, 4], [4, 0, 3, 1, 2], [2, 3, 4, 1, 0], [3, 1, 4, 0, 2]];
        for order in orders {
            let mut engine = engine(net, Limits::default());
            let packets: Vec<Vec<u8>> = order.iter().map(|&n| pieces[n].clone()).collect();
            let sent = send(&mut engine, Instant::ZERO, &packets);
            assert_eq!(sent.len(), pieces.len(), "{order:?}");
            let whole = oracle::reassemble(&sent).expect("all pieces are there");
            assert!(same_but_for_id(net, whole, &expected), "{net:?} {order:?}");
            let held = order.iter().position(|&n| n == 0).expect("the first is there") as u64;
            let stats = engine.stats();
            assert_eq!((stats.fragments_held, stats.forwarded, engine.occupancy().0), (held, 5, 1));
        }
    }
}

#[test]
fn answers_come_in_fragments_as_well() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let question = udp(net.client(40000), net.vip(53)).payload("?");
        assert!(engine.handle_packet(Instant::ZERO, &mut question.buf()).sends());
        let answer = udp(net.rs(1, 53), net.client(40000)).payload(vec![5; 3000]);
        let mut pieces = answer.fragments(1448);
        pieces.reverse();
        let whole = oracle::reassemble(&send(&mut engine, Instant::ZERO, &pieces)).expect("all pieces are there");
        assert!(same_but_for_id(net, whole, &answer.with_src(net.vip(53)).bytes()));
    }
}

#[test]
fn two_servers_with_one_identification_do_not_collide_at_the_client() {
    // RFC 3022 section 4, RFC 6864 section 5.3.1.
    let net = Net::V4;
    let mut engine = engine(net, Limits::default());
    let (client, vip) = (net.client(40000), net.vip(53));
    let other = net.vip2(443);
    let mut sent = Vec::new();
    for (vip, server) in [(vip, net.rs(1, 53)), (net.vip2(1500), net.rs(3, 1500))] {
        engine.handle_packet(Instant::ZERO, &mut udp(client, vip).buf());
        let answer = udp(server, client).payload(vec![1; 1000]).id(4711);
        sent.push(send(&mut engine, Instant::ZERO, &answer.fragments(800)));
    }
    let id = |packet: &Vec<u8>| oracle::decode(packet).expect("a packet").fragment.expect("a fragment").0;
    assert!(sent.iter().all(|pieces| pieces.len() == 2 && id(&pieces[0]) == id(&pieces[1])));
    assert_ne!(id(&sent[0][0]), id(&sent[1][0]));
    assert_ne!(other, vip);
}

#[test]
fn an_identification_used_again_for_another_flow_follows_that_flow() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let first = datagram(net);
        let second = Build { dst: net.vip(8042), ..datagram(net) };
        for (datagram, server) in [(&first, net.rs(1, 53)), (&second, net.rs(2, 9042)), (&first, net.rs(1, 53))] {
            let sent = send(&mut engine, Instant::ZERO, &datagram.fragments(1448));
            let whole = oracle::reassemble(&sent).expect("all go one way");
            assert!(same_but_for_id(net, whole, &datagram.with_dst(server).bytes()));
        }
    }
}

#[test]
fn without_their_first_one_they_are_dropped_in_time() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let pieces = datagram(net).fragments(1448);
        assert_eq!(send(&mut engine, Instant::ZERO, &pieces[1..]).len(), 0);
        assert_eq!(engine.stats().fragments_held, 2);
        let deadline = engine.poll_timeout().expect("they do not wait for ever");
        assert_eq!(deadline, Instant::from_secs(30));
        engine.handle_timeout(Instant::from_millis(29_999));
        assert_eq!(engine.stats().drops(DropReason::FragmentTimeout), 0);
        engine.handle_timeout(deadline);
        assert_eq!(engine.stats().drops(DropReason::FragmentTimeout), 2);
        assert_eq!(engine.poll_timeout(), None);
        // The first one comes too late: it goes on alone.
        assert_eq!(send(&mut engine, deadline, &pieces[..1]).len(), 1);
    }
}

#[test]
fn fragments_of_what_is_dropped_are_dropped() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let refused = Build { dst: net.vip(9999), ..datagram(net) };
        let mut pieces = refused.fragments(1448);
        pieces.rotate_left(1);
        // Two are held, the first one is answered with an error, and the others go with it.
        let sent = send(&mut engine, Instant::ZERO, &pieces);
        assert_eq!(sent.len(), 1);
        assert_eq!(oracle::decode(&sent[0]).expect("an error").dst, net.client(0).ip());
        assert_eq!(engine.stats().drops(DropReason::NoService), 3);
    }
}

#[test]
fn fragments_past_the_gateway_pass() {
    for net in Net::BOTH {
        let mut engine = engine(net, Limits::default());
        let mut pieces = datagram(net).with_dst(net.stranger(53)).fragments(1448);
        pieces.reverse();
        let sent = send(&mut engine, Instant::ZERO, &pieces);
        pieces.rotate_right(1);
        assert_eq!(sent, pieces);
        assert_eq!(engine.stats().passed, 3);
    }
}

#[test]
fn a_fragmented_ping_is_answered_in_fragments() {
    for net in Net::BOTH {
        for reversed in [false, true] {
            let mut engine = engine(net, Limits::default());
            let ping = echo(net.client(0), net.vip(0), 9, 1).payload(vec![3; 4000]);
            let mut pieces = ping.fragments(1448);
            if reversed {
                pieces.reverse();
            }
            let whole = oracle::reassemble(&send(&mut engine, Instant::ZERO, &pieces)).expect("all are there");
            let mut reply = ping.reversed();
            if let Transport::Icmp(kind, ..) = &mut reply.transport {
                *kind = if net.is_v4() { 0 } else { 129 };
            }
            assert_eq!(whole, reply.bytes());
        }
    }
}

#[test]
fn the_room_for_held_fragments_is_bounded() {
    for net in Net::BOTH {
        let limits = Limits { fragmented_packets: 4, held_fragment_bytes: 5000, ..Limits::default() };
        let mut engine = engine(net, limits);
        // Many packets that lack their first fragment: the oldest give way.
        for id in 0..50 {
            let pieces = datagram(net).id(id).fragments(1448);
            send(&mut engine, Instant::ZERO, &pieces[1..2]);
        }
        let dropped = engine.stats().drops(DropReason::FragmentTableFull);
        assert!((46..50).contains(&dropped), "{dropped}");
        // The latest can still be completed, whole packets come through.
        let pieces = datagram(net).id(49).fragments(1448);
        let sent = send(&mut engine, Instant::ZERO, &[pieces[0].clone(), pieces[2].clone()]);
        assert_eq!(sent.len(), 3);
        let whole = udp(net.client(1), net.vip(53)).payload("x");
        assert_eq!(send(&mut engine, Instant::ZERO, &[whole.bytes()]).len(), 1);
    }
}

#[test]
fn known_packets_are_bounded_too() {
    let net = Net::V4;
    let limits = Limits { fragmented_packets: 4, ..Limits::default() };
    let mut engine = engine(net, limits);
    for id in 0..20 {
        send(&mut engine, Instant::ZERO, &datagram(net).id(id).fragments(1448)[..1]);
    }
    // The first packet was forgotten, the last one is known.
    for (id, verdict) in [(0, Verdict::Held), (19, Verdict::Forward)] {
        let mut late = datagram(net).id(id).fragments(1448)[1].buf();
        assert_eq!(engine.handle_packet(Instant::ZERO + Duration::from_secs(1), &mut late), verdict);
    }
}

#[test]
fn lower_limits_hold_from_the_swap_on() {
    let net = Net::V4;
    let mut engine = engine(net, Limits::default());
    for id in 0..50 {
        send(&mut engine, Instant::ZERO, &datagram(net).id(id).fragments(1448)[1..2]);
    }
    for limits in [
        Limits { fragmented_packets: 3, held_fragment_bytes: 2000, ..Limits::default() },
        Limits { fragmented_packets: 0, held_fragment_bytes: 0, ..Limits::default() },
    ] {
        let spec = SnapshotSpec { limits, ..net.spec() };
        let next = Snapshot::build(spec, Some(engine.snapshot())).expect("valid");
        engine.apply(Instant::ZERO, gatun::command::Command::Swap(next.into()));
        engine.check_invariants();
        send(&mut engine, Instant::ZERO, &datagram(net).id(99).fragments(1448));
    }
}
