//! Who may come in by a mapping, and what those are told who may not.

use crate::Net;
use crate::masquerade::{World, spec, with};
use crate::refusal::error;
use crate::support::packet::{ACK, FIN, IcmpError, RST, SYN, tcp, udp};
use gatun::service::{Filtering, Limits, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};

#[test]
fn filtering_is_as_configured() {
    for net in Net::BOTH {
        let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
        let (asked, its_other_port, stranger) = (net.client(53), net.client(54), net.stranger(53));
        for (filtering, lets_in) in [
            (Filtering::Endpoint, [true, true]),
            (Filtering::Address, [true, false]),
            (Filtering::AddressPort, [false, false]),
        ] {
            let mut world = World::new(with(net, |lan| lan.filtering = filtering));
            world.send(udp(inside, asked));
            assert_eq!(world.send(udp(asked, outside)).1, inside);
            for (from, is_let_in) in [its_other_port, stranger].into_iter().zip(lets_in) {
                let verdict = world.give(udp(from, outside)).0;
                let expected = if is_let_in { Verdict::Forward } else { Verdict::Drop(DropReason::Filtered) };
                assert_eq!(verdict, expected, "{filtering:?} {from}");
                // Who is sent to is let in.
                world.send(udp(inside, from));
                assert_eq!(world.send(udp(from, outside)).1, inside, "{filtering:?} {from}");
            }
        }
    }
}

#[test]
fn an_address_is_let_in_as_long_as_there_is_a_flow_to_it() {
    for net in Net::BOTH {
        let mut world = World::new(with(net, |lan| lan.filtering = Filtering::Address));
        let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
        for port in [1, 2] {
            world.send(udp(inside, net.client(port)));
            world.wait(200);
        }
        world.send(udp(inside, net.stranger(1)));
        assert_eq!(world.send(udp(net.client(3), outside)).1, inside, "the second flow lives");
        world.wait(150);
        // What a stranger began and nobody answered does not count.
        assert_eq!(world.lose(udp(net.client(4), outside)), DropReason::Filtered);
        // Once it is answered it does.
        world.send(udp(net.stranger(2), outside));
        world.send(udp(inside, net.stranger(2)));
        world.wait(200);
        world.send(udp(net.stranger(3), outside));
    }
}

#[test]
fn a_syn_that_nobody_waits_for_is_answered_after_six_seconds() {
    for net in Net::BOTH {
        for filtering in [Filtering::Endpoint, Filtering::AddressPort] {
            let mut world = World::new(with(net, |lan| lan.filtering = filtering));
            let (stranger, outside) = (net.client(7), net.pool(40000));
            let syn = tcp(stranger, outside).syn();
            let reason = match filtering {
                Filtering::Endpoint => DropReason::NoMapping,
                _ => {
                    world.send(tcp(net.inside(1, 40000), net.stranger(80)).syn());
                    DropReason::Filtered
                }
            };
            assert_eq!(world.lose(&syn), reason);
            world.wait(3);
            // It comes again, and is answered once.
            assert_eq!(world.lose(&syn), reason);
            world.wait(2);
            assert_eq!(world.sent(), Vec::<Vec<u8>>::new());
            world.wait(1);
            let answer = error(net, outside, IcmpError::PortUnreachable, &syn.bytes());
            assert_eq!(world.sent(), [answer.bytes()]);
            world.wait(60);
            assert_eq!(world.sent(), Vec::<Vec<u8>>::new());
        }
    }
}

#[test]
fn both_ends_may_open_a_connection_at_once() {
    for net in Net::BOTH {
        // Theirs is first: nothing is said of it, since ours follows.
        let mut world = World::new(with(net, |lan| lan.filtering = Filtering::AddressPort));
        let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(4000));
        world.send(tcp(inside, net.stranger(80)).syn());
        assert_eq!(world.lose(tcp(remote, outside).syn().seq(5000, 0)), DropReason::Filtered);
        world.wait(2);
        world.send(tcp(inside, remote).syn());
        assert_eq!(world.send(tcp(remote, outside).syn().seq(5000, 0)).1, inside);
        world.wait(5);
        assert_eq!(world.sent(), Vec::<Vec<u8>>::new());

        // Ours is first; the SYN-ACKs cross as well.
        let mut world = World::new(spec(net));
        let steps = [
            (true, tcp(inside, remote).syn(), ("SYN_SENT", false)),
            (false, tcp(remote, outside).syn().seq(5000, 0), ("SYN_RECV", false)),
            (true, tcp(inside, remote).flags(SYN | ACK).seq(1000, 5001), ("SYN_RECV", false)),
            (false, tcp(remote, outside).flags(SYN | ACK).seq(5000, 1001), ("ESTABLISHED", true)),
        ];
        for (is_ours, packet, state) in steps {
            let (src, dst) = world.send(&packet);
            assert_eq!(if is_ours { src } else { dst }, if is_ours { outside } else { inside });
            assert_eq!(world.state(), state, "after {packet:?}");
        }
    }
}

#[test]
fn a_connection_from_outside_runs_through_the_states() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(4000));
        // A mapping, which a connection of the inside host's keeps.
        world.send(tcp(inside, net.stranger(80)).syn());
        let steps = [
            (tcp(remote, outside).syn(), ("SYN_SENT", false)),
            (tcp(inside, remote).flags(SYN | ACK).seq(7000, 1001), ("SYN_RECV", false)),
            // An ACK of what was not sent shows nothing.
            (tcp(remote, outside).flags(ACK).seq(1001, 99_999_999), ("SYN_RECV", false)),
            (tcp(remote, outside).flags(ACK).seq(1001, 7001), ("ESTABLISHED", true)),
            (tcp(inside, remote).flags(ACK).seq(7001, 1001).payload([1; 999]), ("ESTABLISHED", true)),
            // A RST out of nowhere ends nothing.
            (tcp(remote, outside).flags(RST).seq(77_000_000, 0), ("ESTABLISHED", true)),
            (tcp(remote, outside).flags(FIN | ACK).seq(1001, 8000), ("FIN_WAIT", true)),
            (tcp(inside, remote).flags(FIN | ACK).seq(8000, 1002), ("TIME_WAIT", true)),
            (tcp(remote, outside).flags(ACK).seq(1002, 8001), ("TIME_WAIT", true)),
            // The same ports again.
            (tcp(remote, outside).syn().seq(900_000, 0), ("SYN_SENT", false)),
            // Refused.
            (tcp(inside, remote).flags(RST | ACK).seq(0, 900_001), ("CLOSE", false)),
        ];
        for (packet, state) in steps {
            world.send(&packet);
            let flow = world.engine.flows(world.now, 0, 9).0.into_iter().find(|flow| flow.original.dport == 4000);
            let flow = flow.expect("it is there");
            assert_eq!((flow.state_word().expect("TCP"), flow.assured), state, "after {packet:?}");
        }
        // A connection that was reset is kept for four minutes (RFC 7857 section 2.2), and another RST does not prolong that.
        world.wait(120);
        world.send(tcp(inside, remote).flags(RST | ACK).seq(0, 900_001));
        world.wait(119);
        assert_eq!(world.flows(), 2);
        world.wait(2);
        assert_eq!(world.flows(), 0);
    }
}

#[test]
fn syns_that_wait_for_an_answer_are_bounded() {
    let net = Net::V4;
    let limits = Limits { unsolicited_syns: 3, ..Limits::default() };
    let mut world = World::new(SnapshotSpec { limits, ..spec(net) });
    for port in 0..20 {
        assert_eq!(world.lose(tcp(net.client(1000 + port), net.pool(5000)).syn()), DropReason::NoMapping);
    }
    assert_eq!(world.engine.stats().syns_unanswered, 17);
    world.wait(6);
    assert_eq!(world.sent().len(), 3);
    // A reload that allows fewer forgets some.
    for port in 0..3 {
        world.lose(tcp(net.client(1000 + port), net.pool(5000)).syn());
    }
    let limits = Limits { unsolicited_syns: 1, ..Limits::default() };
    let snapshot = gatun::service::Snapshot::build(SnapshotSpec { limits, ..spec(net) }, None).expect("it is valid");
    world.engine.apply(world.now, gatun::command::Command::Swap(snapshot.into()));
    world.engine.check_invariants();
    world.wait(6);
    assert_eq!(world.sent().len(), 1);
}

#[test]
fn what_strangers_begin_with_a_mapping_is_bounded() {
    let net = Net::V4;
    let snapshot = gatun::service::Snapshot::build(spec(net), None).expect("it is valid");
    let mut engine = crate::support::world::engine(snapshot.into(), 8192);
    let mut give =
        |packet: crate::support::packet::Build| engine.handle_packet(gatun::time::Instant::ZERO, &mut packet.buf());
    assert_eq!(give(udp(net.inside(1, 40000), net.client(53))), Verdict::Forward);
    let verdicts: Vec<Verdict> = (1..=5000).map(|port| give(udp(net.stranger(port), net.pool(40000)))).collect();
    let let_in = gatun::forward::masquerade::MAX_UNANSWERED as usize;
    assert!(verdicts[..let_in].iter().all(|verdict| *verdict == Verdict::Forward));
    assert!(verdicts[let_in..].iter().all(|verdict| *verdict == Verdict::Drop(DropReason::Unanswered)));
    // Whoever is answered makes room.
    assert_eq!(give(udp(net.inside(1, 40000), net.stranger(1))), Verdict::Forward);
    assert_eq!(give(udp(net.stranger(5000), net.pool(40000))), Verdict::Forward);
    assert_eq!(give(udp(net.stranger(4999), net.pool(40000))), Verdict::Drop(DropReason::Unanswered));
    engine.check_invariants();
}

/// A connection from inside that lives for long, and with it the mapping.
fn established(net: Net, change: impl FnOnce(&mut gatun::service::MasqueradeSpec)) -> World {
    let mut world = World::new(with(net, change));
    let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(80));
    world.send(tcp(inside, remote).syn());
    world.send(tcp(remote, outside).flags(SYN | ACK).seq(5000, 1001));
    world.send(tcp(inside, remote).flags(ACK).seq(1001, 5001));
    world
}

#[test]
fn a_rst_that_refuses_a_stranger_answers_nothing() {
    for net in Net::BOTH {
        for filtering in [Filtering::Endpoint, Filtering::Address] {
            let mut world = established(net, |lan| lan.filtering = filtering);
            let (inside, outside, stranger) = (net.inside(1, 40000), net.pool(40000), net.client(4000));
            let flows = |world: &World| world.engine.mappings(world.now, 0, 9).0.first().map(|mapping| mapping.flows);
            // Two SYNs cross the RST that answers the first one.
            world.send(tcp(stranger, outside).syn().seq(100, 0));
            world.send(tcp(stranger, outside).syn().seq(200, 0));
            world.send(tcp(inside, stranger).flags(RST | ACK).seq(0, 101));
            world.send(tcp(inside, stranger).flags(RST | ACK).seq(0, 201));
            assert_eq!(flows(&world), Some(2));
            world.wait(600);
            assert_eq!((world.flows(), flows(&world)), (1, Some(1)), "the stranger's is over");
            // The mapping is as open as before, and goes with its last flow.
            world.send(tcp(stranger, outside).syn().seq(300, 0));
            world.send(tcp(inside, net.client(80)).flags(RST).seq(1001, 0));
            world.wait(600);
            assert_eq!((world.flows(), flows(&world)), (0, None));
        }
    }
}

#[test]
fn who_is_refused_again_and_again_keeps_no_mapping() {
    for net in Net::BOTH {
        for has_been_answered in [false, true] {
            let mut world = World::new(spec(net));
            let (inside, outside, stranger) = (net.inside(1, 40000), net.pool(40000), net.client(4000));
            world.send(tcp(inside, net.client(80)).syn());
            if has_been_answered {
                world.send(tcp(stranger, outside).syn());
                world.send(tcp(inside, stranger).flags(SYN | ACK).seq(7000, 1001));
                world.send(tcp(stranger, outside).flags(ACK).seq(1001, 7001));
                world.send(tcp(inside, stranger).flags(RST).seq(7001, 0));
            }
            let mut is_let_in = true;
            for n in 1..=20 {
                world.wait(50);
                let seq = n * 100_000;
                let verdict = world.give(tcp(stranger, outside).syn().seq(seq, 0)).0;
                if verdict == Verdict::Forward {
                    assert!(is_let_in, "after {n} * 50 s");
                    world.give(tcp(inside, stranger).flags(RST | ACK).seq(0, seq + 1));
                }
                is_let_in = verdict == Verdict::Forward;
            }
            assert_eq!((is_let_in, world.flows()), (false, 0), "answered: {has_been_answered}");
            assert_eq!(world.lose(tcp(stranger, outside).syn()), DropReason::NoMapping);
        }
    }
}

#[test]
fn a_connection_that_is_begun_anew_has_to_be_answered_anew() {
    for net in Net::BOTH {
        let mut world = World::new(with(net, |lan| lan.filtering = Filtering::Address));
        let (inside, outside, peer) = (net.inside(1, 40000), net.pool(40000), net.client(80));
        world.send(tcp(inside, peer).syn());
        world.send(tcp(peer, outside).flags(SYN | ACK).seq(5000, 1001));
        world.send(tcp(inside, peer).flags(ACK).seq(1001, 5001));
        world.send(tcp(inside, peer).flags(RST).seq(1001, 0));
        assert_eq!(world.state().0, "CLOSE");
        world.send(tcp(net.client(81), outside).syn());
        // The peer begins it anew: until it is answered nobody else comes in.
        world.send(tcp(peer, outside).syn().seq(900_000, 0));
        assert_eq!(world.lose(tcp(net.client(82), outside).syn()), DropReason::Filtered);
        world.send(tcp(inside, peer).flags(SYN | ACK).seq(7000, 900_001));
        world.send(tcp(net.client(82), outside).syn());
    }
}
