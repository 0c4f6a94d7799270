//! Any sequence of packets, time steps and commands: no panic, no contradiction, every packet counted once, and every
//! forwarded packet goes where a naive model says.

#[path = "../fuzz/harness/mod.rs"]
mod harness;

use gatun::verdict::DropReason;
use harness::ops::{Bytes, Op, Shape};
use harness::world::World;
use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_engine_in_order(size: u8, ops in vec(op(), 1..80)) {
        let mut world = World::new(size);
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }

    #[test]
    fn connections_of_few_clients(
        size in (0u8..8, 0u8..8).prop_map(|(limit, spec)| spec << 5 | limit),
        first in any::<u8>(),
        ops in vec(few_clients(), 1..80),
    ) {
        let mut world = World::new(size);
        world.step(&Op::Swap(first));
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }

    #[test]
    fn many_clients_share_few_ports(limit in 8u8..32, ops in vec(many_clients(), 20..120)) {
        let mut world = World::new(6 << 5 | limit);
        for op in &ops {
            world.step(op);
        }
        world.finish();
    }

    #[test]
    fn a_control_connection_survives_a_bad_network(head in vec(any::<u8>(), 24..120), data in vec(any::<u8>(), 0..1200)) {
        harness::ftp::run(&[head, data].concat());
    }

    #[test]
    fn any_bytes_are_a_sequence(data in vec(any::<u8>(), 0..600)) {
        harness::engine::run(&data);
    }
}

/// A server is sent its own packets through a tunnel: none gets there, and each keeps the flow alive.
#[test]
fn what_cannot_go_on_is_of_its_flow() {
    let mut world = World::new(5 << 5);
    let itself = Shape { client: 7, vip: 12, flags: 0xca, len: 21, ttl: 64, ..Shape::default() };
    for op in [
        Op::Client(itself),
        // The engine is not told of the time.
        Op::Wait { mantissa: 8, exponent: 0x80 | 60 },
        Op::Client(itself),
        Op::Wait { mantissa: 0, exponent: 0 },
    ] {
        world.step(&op);
    }
    assert_eq!(world.engine.occupancy().0, 1);
    assert_eq!(world.engine.stats().drops(DropReason::TunnelLoop), 2);
    world.finish();
}

fn op() -> impl Strategy<Value = Op> {
    vec(any::<u8>(), 16..40).prop_map(|bytes| Op::decode(&mut Bytes(&bytes)))
}

/// Clients of services by fullnat, more than there are ports; whoever is over or unanswered gives way after a few seconds.
fn many_clients() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(vec![2u8, 2, 2, 16, 17, 4]);
    let shape = (prop::bool::weighted(0.2), 0u8..7, 0u8..7, 0u8..4, 0u8..2, 0u8..9, flags, 0u8..3).prop_map(
        |(v6, client, sport, vip, dport, protocol, flags, seq)| Shape {
            v6,
            client,
            sport,
            vip,
            dport,
            protocol,
            flags,
            seq,
            ack: 1,
            ttl: 64,
            ..Shape::default()
        },
    );
    let answer = prop::sample::select(vec![18u8, 18, 16, 17, 20]);
    prop_oneof![
        12 => shape.clone().prop_map(Op::Client),
        5 => (answer, 0u8..3).prop_map(|(flags, seq)| Op::Answer { flags, seq, len: 2 }),
        1 => (any::<u8>(), any::<u8>(), any::<bool>()).prop_map(|(kind, quoted, from_router)| {
            Op::Error { kind, quoted, from_router, corrupt: false }
        }),
        1 => (shape, 0u8..2, any::<u8>(), Just(0u8))
            .prop_map(|(shape, id, order, mask)| Op::Fragments { shape, id, order, mask }),
        2 => (1u8..60, prop::sample::select(vec![2u8, 3, 0x82, 0x83])).prop_map(|(mantissa, exponent)| {
            Op::Wait { mantissa, exponent }
        }),
        1 => any::<u8>().prop_map(Op::Delete),
    ]
}

/// Mostly the packets of a proper connection between two clients and two services, so that flows get somewhere.
fn few_clients() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(vec![2u8, 2, 16, 16, 24, 17, 4, 20]);
    let shape = (any::<bool>(), 0u8..2, 0u8..2, 0u8..5, 0u8..3, 0u8..9, flags, 0u8..4).prop_map(
        |(v6, client, sport, vip, dport, protocol, flags, seq)| Shape {
            v6,
            client,
            sport,
            vip,
            dport,
            protocol,
            flags,
            seq,
            ack: 1,
            len: 3,
            ttl: 64,
            partial: seq == 3,
        },
    );
    let answer = prop::sample::select(vec![18u8, 18, 16, 17, 20]);
    prop_oneof![
        8 => shape.clone().prop_map(Op::Client),
        6 => (answer, 0u8..3).prop_map(|(flags, seq)| Op::Answer { flags, seq, len: 2 }),
        2 => (any::<u8>(), any::<u8>(), any::<bool>()).prop_map(|(kind, quoted, from_router)| {
            Op::Error { kind, quoted, from_router, corrupt: false }
        }),
        2 => (shape, 0u8..2, any::<u8>(), prop_oneof![Just(0u8), any::<u8>()])
            .prop_map(|(shape, id, order, mask)| Op::Fragments { shape, id, order, mask }),
        2 => (any::<u8>(), 0u8..6).prop_map(|(mantissa, exponent)| Op::Wait { mantissa, exponent }),
        1 => any::<u8>().prop_map(Op::Swap),
        2 => any::<u8>().prop_map(Op::Health),
        1 => any::<u8>().prop_map(Op::Evacuate),
        1 => any::<u8>().prop_map(Op::Delete),
    ]
}
