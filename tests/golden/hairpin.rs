//! Inside hosts that talk to each other, and to themselves, by the addresses of a pool.

use std::net::SocketAddr;

use crate::masquerade::{World, ends, spec, with};
use crate::support::packet::{ACK, PSH, SYN, tcp, udp};
use crate::{Net, oracle};
use gatun::service::{ForwardSpec, PortRange, Protocols, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};

#[test]
fn two_inside_hosts_meet_under_their_outside_addresses() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (ours, theirs) = (net.inside(1, 40000), net.inside(2, 50000));
        let (our_outside, their_outside) = (net.pool(40000), net.pool(50000));
        // The other one has a mapping, as it would from a rendezvous server.
        assert_eq!(world.send(udp(theirs, net.client(3478))).0, their_outside);
        for round in 0..3 {
            // RFC 4787 REQ-9a: it sees our outside address.
            assert_eq!(world.send(udp(ours, their_outside).payload([round; 99])), (our_outside, theirs), "{round}");
            assert_eq!(world.send(udp(theirs, our_outside).payload([round; 98])), (their_outside, ours), "{round}");
        }
        // Each has one flow with the other.
        assert_eq!(world.flows(), 3);
        let marks =
            world.engine.flows(world.now, 0, 9).0.into_iter().map(|flow| flow.marks.words().count()).sum::<usize>();
        assert_eq!(marks, 2, "two are hairpins");
        // Both end by themselves, and with them the mappings.
        world.wait(301);
        assert_eq!((world.flows(), world.engine.mappings(world.now, 0, 9).0.len()), (0, 0));
        // Nobody has the port any more.
        assert_eq!(world.lose(udp(ours, their_outside)), DropReason::NoMapping);
    }
}

#[test]
fn a_connection_goes_round() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (ours, theirs) = (net.inside(1, 40000), net.inside(2, 50000));
        let (our_outside, their_outside) = (net.pool(40000), net.pool(50000));
        world.send(tcp(theirs, net.client(80)).syn());
        let steps = [
            (tcp(ours, their_outside).syn(), (our_outside, theirs)),
            (tcp(theirs, our_outside).flags(SYN | ACK).seq(5000, 1001), (their_outside, ours)),
            (tcp(ours, their_outside).flags(ACK).seq(1001, 5001), (our_outside, theirs)),
            (tcp(ours, their_outside).flags(PSH | ACK).seq(1001, 5001).payload("hello"), (our_outside, theirs)),
        ];
        for (packet, expected) in steps {
            let (verdict, sent) = world.give(&packet);
            assert_eq!((verdict, ends(&sent)), (Verdict::Forward, expected), "{packet:?}");
            assert!(oracle::checksums_are_right(&sent), "{packet:?}");
        }
        // A super-packet goes round whole.
        let data =
            tcp(ours, their_outside).flags(PSH | ACK).seq(1006, 5001).payload(vec![1; 60_000]).super_packet(1400);
        assert_eq!(world.send(&data), (our_outside, theirs));
        let states: Vec<_> =
            world.engine.flows(world.now, 0, 9).0.iter().filter_map(|flow| flow.state_word()).collect();
        assert_eq!(states, ["SYN_SENT", "ESTABLISHED", "ESTABLISHED"]);
    }
}

#[test]
fn one_may_talk_to_oneself() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
        world.send(udp(inside, net.client(1)));
        // To the very endpoint that it sends from.
        assert_eq!(world.send(udp(inside, outside)), (outside, inside));
        assert_eq!(world.send(udp(inside, outside)), (outside, inside));
        // To another one of its own.
        let other = net.inside(1, 40002);
        world.send(udp(other, net.client(1)));
        assert_eq!(world.send(udp(inside, net.pool(40002))), (outside, other));
        assert_eq!(world.send(udp(other, outside)), (net.pool(40002), inside));
    }
}

#[test]
fn to_a_forwarded_port_and_from_it() {
    for net in Net::BOTH {
        let mut world = World::new(with_forward(net));
        let (ours, server) = (net.inside(1, 40000), net.inside(9, 80));
        for _ in 0..2 {
            assert_eq!(world.send(tcp(ours, net.pool(8080)).syn()), (net.pool(40000), server));
        }
        let answer = tcp(server, net.pool(40000)).flags(SYN | ACK).seq(5000, 1001);
        assert_eq!(world.send(answer), (net.pool(8080), ours));
        // The server itself.
        let itself = net.inside(9, 40001);
        assert_eq!(world.send(tcp(itself, net.pool(8080)).syn()), (net.pool(40001), server));
        let answer = tcp(server, net.pool(40001)).flags(SYN | ACK).seq(5000, 1001);
        assert_eq!(world.send(answer), (net.pool(8080), itself));
    }
}

#[test]
fn filtering_holds_for_inside_hosts_too() {
    for net in Net::BOTH {
        let mut world = World::new(with(net, |lan| lan.filtering = gatun::service::Filtering::AddressPort));
        let (ours, theirs) = (net.inside(1, 40000), net.inside(2, 50000));
        world.send(udp(theirs, net.client(1)));
        assert_eq!(world.lose(udp(ours, net.pool(50000))), DropReason::Filtered);
        // They punch holes: each has sent to the other.
        assert_eq!(world.send(udp(theirs, net.pool(40000))), (net.pool(50000), ours));
        assert_eq!(world.send(udp(ours, net.pool(50000))), (net.pool(40000), theirs));
    }
}

/// An error that tells an inside host of its own packet, as that host sent it.
fn tells(error: &[u8], ours: SocketAddr, theirs: SocketAddr) {
    assert!(oracle::checksums_are_right(error));
    let error = oracle::decode(error).expect("an error");
    assert_eq!((error.src, error.dst), (theirs.ip(), ours.ip()));
    let quoted = oracle::decode(&error.payload).expect("the packet that it is about");
    assert_eq!((quoted.src, quoted.dst, quoted.ports), (ours.ip(), theirs.ip(), Some((ours.port(), theirs.port()))));
}

#[test]
fn whose_packet_is_refused_is_told() {
    for net in Net::BOTH {
        let mut world = World::new(SnapshotSpec { is_hop: true, ..spec(net) });
        let (ours, theirs) = (net.inside(1, 40000), net.inside(2, 50000));
        world.send(udp(theirs, net.client(3478)));
        // It gets as far as the gateway's other side.
        let (verdict, error) = world.give(udp(ours, net.pool(50000)).ttl(2));
        assert_eq!(verdict, Verdict::Forward);
        tells(&error, ours, net.pool(50000));
        assert_eq!(world.engine.stats().drops(DropReason::TtlExceeded), 1);
        assert_eq!(world.send(udp(ours, net.pool(50000)).ttl(3)), (net.pool(40000), theirs));
        // RFC 5382 REQ-4.
        assert_eq!(world.lose(tcp(ours, net.pool(50000)).syn()), DropReason::NoMapping);
        world.wait(6);
        let [error] = &world.sent()[..] else { panic!("one is told") };
        tells(error, ours, net.pool(50000));
    }
}

#[test]
fn nobody_outside_takes_part_in_it() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (ours, theirs) = (net.inside(1, 40000), net.inside(2, 50000));
        world.send(udp(theirs, net.client(3478)));
        world.send(udp(ours, net.pool(50000)));
        // In the name of an outside endpoint, with a flow and without.
        assert_eq!(world.lose(udp(net.pool(40000), net.pool(50000))), DropReason::Martian);
        assert_eq!(world.lose(udp(net.pool(40001), net.pool(50000))), DropReason::Martian);
    }
}

#[test]
fn fragments_go_round_in_order_and_out_of_it() {
    for net in Net::BOTH {
        for is_reversed in [false, true] {
            let mut world = World::new(spec(net));
            let (ours, theirs) = (net.inside(1, 40000), net.inside(2, 50000));
            world.send(udp(theirs, net.client(3478)));
            let mut pieces = udp(ours, net.pool(50000)).payload(vec![9; 3000]).id(77).fragments(1200);
            if is_reversed {
                pieces.reverse();
            }
            let mut sent = Vec::new();
            for piece in &pieces {
                let (verdict, packet) = world.give(piece.clone());
                if verdict == Verdict::Forward {
                    sent.push(packet);
                }
                sent.extend(world.sent());
            }
            assert_eq!(sent.len(), 3, "reversed: {is_reversed}");
            let seen: Vec<_> = sent.iter().map(|packet| oracle::decode(packet).expect("a packet")).collect();
            assert!(seen.iter().all(|seen| (seen.src, seen.dst) == (net.pool(0).ip(), theirs.ip())));
            if net.is_v4() {
                let id = |packet: &[u8]| [packet[4], packet[5]];
                assert!(sent.iter().all(|packet| id(packet) == id(&sent[0])), "one packet");
            }
        }
    }
}

/// TCP port 8080 of the pool's address leads to port 80 of inside host 9.
pub fn with_forward(net: Net) -> SnapshotSpec {
    let forward = ForwardSpec {
        name: "web".into(),
        address: net.pool(0).ip().into(),
        ports: PortRange::single(8080),
        protocols: Protocols::Tcp,
        to: net.inside(9, 0).ip().into(),
        to_port: Some(80),
    };
    SnapshotSpec { forwards: vec![forward], ..spec(net) }
}
