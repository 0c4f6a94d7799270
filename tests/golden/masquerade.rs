//! Masquerades: what goes out as whom, and what comes in.

use std::net::SocketAddr;

use crate::refusal::{answer, error, without_window};
use crate::support::packet::{ACK, FIN, IcmpError, PSH, RST, SYN, echo, tcp, udp};
use crate::support::world::{self, addr};
use crate::{Net, Packet, Row};
use gatun::engine::Engine;
use gatun::service::{Filtering, MasqueradeSpec, Network, PoolSpec, PortRange, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};

/// The services of [`Net::spec`], and a masquerade of the servers' network through one address.
pub fn spec(net: Net) -> SnapshotSpec {
    let pool = PoolSpec { addresses: vec![net.pool(0).ip().into()], ports: PortRange { first: 1024, last: 65535 } };
    let from = match net {
        Net::V4 => Network { address: addr("10.20.0.0"), len: 24 },
        Net::V6 => Network { address: addr("fd20::"), len: 64 },
    };
    let masquerades = vec![MasqueradeSpec { name: "lan".into(), from: vec![from], pool, ..MasqueradeSpec::default() }];
    SnapshotSpec { masquerades, ..net.spec() }
}

/// The same with other settings.
pub fn with(net: Net, change: impl FnOnce(&mut MasqueradeSpec)) -> SnapshotSpec {
    let mut spec = spec(net);
    change(&mut spec.masquerades[0]);
    spec
}

/// The same where the pool's address is one of the gateway's host.
fn local(net: Net) -> SnapshotSpec {
    SnapshotSpec { local_vips: vec![net.pool(0).ip().into()], ..spec(net) }
}

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || spec(net);
    let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
    let (remote, other) = (net.client(53), net.stranger(5353));
    let query = udp(inside, remote).payload("query");
    let back = udp(remote, outside).payload("answer");
    let syn = tcp(inside, net.client(80)).syn();
    let syn_ack = tcp(net.client(80), outside).flags(SYN | ACK).seq(5000, 1001);
    let data = tcp(inside, net.client(80)).flags(PSH | ACK).seq(1001, 5001).payload("GET / HTTP/1.1\r\n\r\n");
    let stray = udp(other, outside).payload("stray");
    vec![
        Row::forward("a datagram goes out by the pool, its port kept", spec(), &query, query.with_src(outside)),
        Row::forward("its answer comes in", spec(), &back, back.with_dst(inside)).after([&query]),
        Row::forward("a SYN goes out", spec(), &syn, syn.with_src(outside)),
        Row::forward("the SYN-ACK comes in", spec(), &syn_ack, syn_ack.with_dst(inside)).after([&syn]),
        Row::forward("data goes out", spec(), &data, data.with_src(outside)).after([&syn, &syn_ack]),
        Row::forward(
            "a super-packet goes out whole",
            spec(),
            data.clone().payload(vec![7; 64_000]).super_packet(1448),
            data.clone().payload(vec![7; 64_000]).with_src(outside),
        )
        .after([&syn, &syn_ack]),
        Row::forward("another remote end, the same mapping", spec(), udp(inside, other), udp(outside, other))
            .after([&query]),
        Row::forward("a stranger comes in by the mapping", spec(), &stray, stray.with_dst(inside)).after([&query]),
        Row::forward(
            "who is answered under the outside address",
            spec(),
            udp(inside, other).payload("who"),
            udp(outside, other).payload("who"),
        )
        .after([&query, &stray]),
        Row::forward(
            "a connection from outside comes in by the mapping",
            spec(),
            tcp(other, outside).syn(),
            tcp(other, inside).syn(),
        )
        .after([&syn]),
        Row::drop(
            "a stranger whom the masquerade does not let in",
            with(net, |lan| lan.filtering = Filtering::AddressPort),
            &stray,
            DropReason::Filtered,
        )
        .after([&query]),
        Row::drop("UDP has no mapping of TCP's", spec(), &stray, DropReason::NoMapping).after([&syn]),
        Row::drop("a datagram to no mapping", spec(), &stray, DropReason::NoMapping),
        Row::drop("a SYN to no mapping", spec(), tcp(other, outside).syn(), DropReason::NoMapping),
        Row::drop("a segment to no mapping", spec(), tcp(other, outside).flags(ACK), DropReason::NoFlow),
        Row::drop(
            "a SYN-ACK begins no flow",
            spec(),
            tcp(other, outside).flags(SYN | ACK).seq(1, 2),
            DropReason::NoFlow,
        )
        .after([&syn]),
        Row::refuse(
            "a segment of no connection from inside",
            spec(),
            tcp(inside, other).flags(ACK).seq(77, 88),
            DropReason::NoFlow,
            without_window(answer(tcp(other, inside)).flags(RST).seq(88, 0)),
        ),
        Row::pass("what stays inside", spec(), udp(inside, net.inside(2, 53))),
        Row::pass("what does not come from inside", spec(), udp(net.client(1), net.stranger(2))),
        Row::forward(
            "to a VIP it is a client of the service",
            spec(),
            udp(inside, net.vip(53)),
            udp(inside, net.rs(1, 53)),
        ),
        Row::refuse(
            "one mapping too many",
            with(net, |lan| lan.max_mappings = 2),
            udp(net.inside(1, 3), remote),
            DropReason::SourceLimit,
            error(net, net.pool(0), prohibited(net), &udp(net.inside(1, 3), remote).bytes()).with_dst(inside),
        )
        .after([udp(net.inside(1, 1), remote), udp(net.inside(1, 2), remote)]),
        Row::forward(
            "another flow of a mapping is no mapping",
            with(net, |lan| lan.max_mappings = 2),
            udp(net.inside(1, 5002), other),
            udp(net.pool(5002), other),
        )
        .after([udp(net.inside(1, 5001), remote), udp(net.inside(1, 5002), remote)]),
        // The pool's address is the gateway's host's own.
        Row::pass("a datagram to no mapping, for the host", local(net), &stray),
        Row::pass("a segment of the host's own", local(net), tcp(other, outside).flags(ACK)),
        Row::forward("a mapping of its own comes first", local(net), &back, back.with_dst(inside)).after([&query]),
        Row::pass("what inside asks the host itself", local(net), tcp(inside, net.pool(22)).syn()),
        Row::refuse(
            "no port left",
            with(net, |lan| lan.pool.ports = PortRange { first: 2000, last: 2001 }),
            udp(inside, remote),
            DropReason::PoolExhausted,
            error(net, net.pool(0), prohibited(net), &udp(inside, remote).bytes()).with_dst(inside),
        )
        .after([udp(net.inside(2, 1), remote), udp(net.inside(3, 1), remote)]),
    ]
}

fn prohibited(net: Net) -> IcmpError {
    match net {
        Net::V4 => IcmpError::Raw(3, 13, [0; 4]),
        Net::V6 => IcmpError::Raw(1, 1, [0; 4]),
    }
}

/// An engine, and its time.
pub struct World {
    pub engine: Engine,
    pub now: Instant,
}

impl World {
    pub fn new(spec: SnapshotSpec) -> World {
        World {
            engine: world::engine(Snapshot::build(spec, None).expect("it is valid").into(), 64),
            now: Instant::ZERO,
        }
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now = self.now + std::time::Duration::from_secs(seconds);
        while self.engine.poll_timeout().is_some_and(|due| due <= self.now) {
            self.engine.handle_timeout(self.now);
        }
        self.engine.check_invariants();
    }

    pub fn give(&mut self, packet: impl Packet) -> (Verdict, Vec<u8>) {
        let mut buf = packet.buf();
        let verdict = self.engine.handle_packet(self.now, &mut buf);
        self.engine.check_invariants();
        (verdict, buf.packet().to_vec())
    }

    /// A packet that must go on; from whom to whom.
    pub fn send(&mut self, packet: impl Packet) -> (SocketAddr, SocketAddr) {
        let (verdict, sent) = self.give(packet);
        assert_eq!(verdict, Verdict::Forward);
        ends(&sent)
    }

    /// A packet that must be dropped without a word, and why.
    pub fn lose(&mut self, packet: impl Packet) -> DropReason {
        match self.give(packet) {
            (Verdict::Drop(reason), _) => reason,
            (verdict, _) => panic!("{verdict:?}"),
        }
    }

    /// Whatever is sent besides.
    pub fn sent(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.engine.poll_transmit()).map(|buf| buf.packet().to_vec()).collect()
    }

    /// As lists show the first flow.
    pub fn state(&self) -> (&'static str, bool) {
        let flow = &self.engine.flows(self.now, 0, 1).0[0];
        (flow.state_word().unwrap_or("UDP"), flow.assured)
    }

    pub fn flows(&self) -> usize {
        self.engine.occupancy().0
    }
}

pub fn ends(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let seen = crate::oracle::decode(packet).expect("a packet");
    let (sport, dport) = seen.ports.expect("it has ports");
    ((seen.src, sport).into(), (seen.dst, dport).into())
}

#[test]
fn ports_keep_their_parity_and_their_side_of_1024() {
    for net in Net::BOTH {
        let range = |first, last| with(net, move |lan| lan.pool.ports = PortRange { first, last });
        let mut world = World::new(range(1, 65535));
        let remote = net.client(53);
        for port in [53, 54, 40000, 40001] {
            let mut seen = Vec::new();
            // All inside hosts from the same port.
            for host in 1..5 {
                let (src, _) = world.send(udp(net.inside(host, port), remote));
                assert_eq!((src.port() % 2, src.port() < 1024), (port % 2, port < 1024), "{src} for {port}");
                seen.push(src.port());
            }
            assert_eq!(seen[0], port, "the first one keeps it");
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 4, "two share a port");
        }
        // Where there are none of a parity or side, there are others.
        let mut world = World::new(range(1022, 1025));
        let mut next = |host, port| world.send(udp(net.inside(host, port), remote)).0.port();
        assert_eq!([next(1, 500), next(2, 500), next(3, 500), next(4, 501)], [1022, 1023, 1024, 1025]);
    }
}

#[test]
fn a_mapping_lives_as_long_as_inside_talks() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (inside, outside) = (net.inside(1, 40000), net.pool(40000));
        let (remote, stranger) = (net.client(53), net.stranger(1));
        assert_eq!(world.send(udp(inside, remote)).0, outside);
        // RFC 4787 REQ-5 and REQ-6: what goes out restarts the timer, and so does what comes back.
        for _ in 0..4 {
            world.wait(299);
            world.send(udp(inside, remote));
            world.wait(299);
            world.send(udp(remote, outside));
        }
        // A stranger whom nobody answers does not prolong anything, however often it sends, and from wherever.
        for n in 1..=12 {
            world.wait(50);
            let again = world.give(udp(stranger, outside)).0;
            let new = world.give(udp(net.stranger(100 + n), outside)).0;
            // The last flow of the inside host's ends after 300 s, the last one that a stranger could begin by then 300 s later.
            let dropped = Verdict::Drop(if n < 11 { DropReason::Unanswered } else { DropReason::NoMapping });
            assert_eq!(again, if n < 7 { Verdict::Forward } else { dropped }, "after {n} * 50 s");
            assert_eq!(new, if n < 6 { Verdict::Forward } else { dropped }, "after {n} * 50 s");
        }
    }
}

/// Flows go on as they began; what begins after the reload goes by that.
#[test]
fn a_reload_changes_nothing_for_flows() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(53));
        assert_eq!(world.send(udp(inside, remote)).0, outside);
        let lan = world.engine.snapshot().pools.live[0].id;
        // Another name: lists say of the mapping what they say of its flows, until it has one of the new masquerade's.
        world.reload(with(net, |lan| lan.name = "lan-new".into()));
        let now = world.engine.snapshot().pools.live[0].id;
        let owners = |world: &World| {
            let flows = world.engine.flows(world.now, 0, 9).0;
            let mappings = world.engine.mappings(world.now, 0, 9).0;
            (flows.iter().map(|flow| flow.service).collect::<Vec<_>>(), mappings[0].masquerade, mappings.len())
        };
        assert_eq!(owners(&world), (vec![lan], lan, 1));
        assert_eq!(world.send(udp(inside, net.client(54))).0, outside);
        assert_eq!((owners(&world).1, owners(&world).2), (now, 1));
        // Not inside any more.
        let ping = echo(net.inside(1, 0), net.client(0), 4711, 1);
        assert_eq!(world.give(&ping).0, Verdict::Forward);
        let len = if net == Net::V4 { 32 } else { 128 };
        world.reload(with(net, |lan| lan.from = vec![Network { address: net.inside(2, 0).ip().into(), len }]));
        assert_eq!(world.send(udp(inside, remote)).0, outside);
        assert_eq!(world.send(udp(remote, outside)).1, inside);
        assert_eq!(world.give(&ping).0, Verdict::Forward);
        for other in [&udp(inside, net.client(55)), &echo(net.inside(1, 0), net.client(0), 4712, 1)] {
            assert_eq!(world.give(other).0, Verdict::Pass);
        }
    }
}

#[test]
fn explain_says_what_would_become_of_it() {
    use gatun::explain::{Answer, Explained, explain};
    use gatun::wire::{Protocol, Tuple};
    for net in Net::BOTH {
        let mut world = World::new(with(net, |lan| (lan.filtering, lan.max_mappings) = (Filtering::AddressPort, 2)));
        let udp_tuple = |src: SocketAddr, dst: SocketAddr| Tuple {
            src: src.ip().into(),
            dst: dst.ip().into(),
            sport: src.port(),
            dport: dst.port(),
            protocol: Protocol::UDP,
        };
        let ask = |world: &World, src, dst| explain(&world.engine, world.now, &udp_tuple(src, dst), 0).outcome;
        let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(53));
        let Explained::Masqueraded { by, translated } = ask(&world, inside, remote) else { panic!("it goes out") };
        assert_eq!((by.masquerade.as_deref(), by.mapping.exists, by.is_from_inside), (Some("lan"), false, true));
        assert_eq!(translated, udp_tuple(outside, remote));
        assert_eq!(by.filtering, Filtering::AddressPort);
        // What it says is what happens, and nothing has happened.
        assert_eq!((world.flows(), world.send(udp(inside, remote)).0), (0, outside));
        // Another flow of the mapping; the port, taken now, of another host.
        let Explained::Masqueraded { by, translated } = ask(&world, inside, net.stranger(1)) else {
            panic!("it goes out")
        };
        assert_eq!((by.mapping.exists, translated), (true, udp_tuple(outside, net.stranger(1))));
        let other = net.inside(2, 40000);
        let Explained::Masqueraded { by, translated } = ask(&world, other, remote) else { panic!("it goes out") };
        assert_eq!((by.mapping.port, translated), (None, udp_tuple(net.pool(0), remote)));
        // From outside.
        let reason = |outcome| match outcome {
            Explained::Dropped { reason, service, answer } => (reason, service.unwrap_or_default(), answer),
            outcome => panic!("{outcome:?}"),
        };
        let stray = reason(ask(&world, net.stranger(1), outside));
        assert_eq!(stray, (DropReason::Filtered, "lan".to_owned(), None));
        assert_eq!(reason(ask(&world, net.stranger(1), net.pool(7))).0, DropReason::NoMapping);
        // Round.
        let Explained::Masqueraded { by, .. } = ask(&world, other, outside) else { panic!("it goes round") };
        assert!(by.is_hairpin);
        // One too many.
        world.send(udp(net.inside(1, 2), remote));
        let refused = reason(ask(&world, net.inside(1, 3), remote));
        assert_eq!(refused, (DropReason::SourceLimit, "lan".to_owned(), Some(Answer::Prohibited)));
    }
}

#[test]
fn a_connection_over_the_same_ports_has_the_same_mapping() {
    for net in Net::BOTH {
        for filtering in Filtering::ALL {
            let mut world = World::new(with(net, |lan| lan.filtering = filtering));
            let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(80));
            for n in 0..6 {
                let seq = n * 100_000;
                assert_eq!(world.send(tcp(inside, remote).syn().seq(seq, 0)).0, outside, "connection {n}");
                world.send(tcp(remote, outside).flags(SYN | ACK).seq(5000, seq + 1));
                world.send(tcp(inside, remote).flags(ACK).seq(seq + 1, 5001));
                if n % 2 == 0 {
                    world.send(tcp(inside, remote).flags(FIN | ACK).seq(seq + 1, 5001));
                    world.send(tcp(remote, outside).flags(FIN | ACK).seq(5001, seq + 2));
                    world.send(tcp(inside, remote).flags(ACK).seq(seq + 2, 5002));
                } else {
                    world.send(tcp(inside, remote).flags(RST).seq(seq + 1, 0));
                }
            }
            let pool = &world.engine.pools()[0];
            assert_eq!((world.flows(), pool.in_use, pool.quarantined), (1, 1, 0), "{filtering:?}");
            assert_eq!(world.engine.stats().flows_reused, 5);
        }
    }
}
