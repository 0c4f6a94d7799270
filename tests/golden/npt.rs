//! NPTv6 (RFC 6296): fd20::/48 goes out as 2001:db8:77::/48, and 2001:db8:88:5::/64 as 2001:db8:99:6::/64.

use crate::support::arbitrary::tuple;
use crate::support::oracle;
use crate::support::packet::{ACK, Build, IcmpError, SYN, Transport, echo, icmp_error, tcp, udp};
use crate::support::world::{self, addr};
use crate::{Net, Row};
use gatun::explain::{Explained, explain};
use gatun::service::{MasqueradeSpec, Network, Npt, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf};

fn network(text: &str) -> Network {
    let (address, len) = text.split_once('/').expect(text);
    Network { address: addr(address), len: len.parse().expect(text) }
}

fn masquerade(name: &str, from: &str, prefix: &str) -> MasqueradeSpec {
    let except = vec![network("2001:db8:aaaa::/48")];
    MasqueradeSpec {
        name: name.into(),
        from: vec![network(from)],
        prefix: Some(network(prefix)),
        except,
        ..Default::default()
    }
}

fn spec(net: Net) -> SnapshotSpec {
    let masquerades = vec![
        masquerade("site", "fd20::/48", "2001:db8:77::/48"),
        masquerade("lab", "2001:db8:88:5::/64", "2001:db8:99:6::/64"),
    ];
    SnapshotSpec { masquerades, ..net.spec() }
}

fn end(ip: &str, port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(ip.parse().expect(ip), port)
}

const REMOTE: &str = "2001:db8:9::77";

/// As RFC 6296 section 3 has it, worked out by hand: 0xfd20 - (0x2001 + 0x0db8 + 0x0077) is 0xcef0 in one's complement.
const INSIDE: [(&str, &str); 4] = [
    ("fd20::1:0:0:0:5", "2001:db8:77:cef1::5"),
    ("fd20::7", "2001:db8:77:cef0::7"),
    ("fd20:0:0:310f::1", "2001:db8:77::1"),
    // 0x2001 + 0x0db8 + 0x0088 + 0x0005 - (0x2001 + 0x0db8 + 0x0099 + 0x0006) is 0xffed.
    ("2001:db8:88:5:ffff:20::1", "2001:db8:99:6:ffff:e::1"),
];

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || spec(net);
    if net.is_v4() {
        return vec![Row::pass("IPv4 has nothing to do with it", spec(), udp(net.rs(9, 1), net.stranger(9)))];
    }
    let remote = |port| end(REMOTE, port);
    let mut rows = Vec::new();
    for (inside, outside) in INSIDE {
        let (inside, outside) = (|port| end(inside, port), |port| end(outside, port));
        let packets = [
            ("UDP", udp(inside(5000), remote(53)).payload("a question")),
            ("UDP with odd checksums", udp(inside(5000), remote(53)).without_checksum()),
            ("TCP", tcp(inside(5000), remote(80)).syn()),
            ("a ping", echo(inside(0), remote(0), 7, 1)),
            ("ESP", Build { transport: Transport::Other(50), ..udp(inside(0), remote(0)).payload([1; 40]) }),
        ];
        for (name, packet) in packets {
            let name = |way: &str| format!("{name} {way} {}", inside(0).ip());
            let back = |to| Build { dst: to, ..packet.reversed() };
            rows.push(Row::forward(&name("from"), spec(), &packet, packet.with_src(outside(packet.src.port()))));
            rows.push(Row::forward(
                &name("to"),
                spec(),
                back(outside(packet.src.port())),
                back(inside(packet.src.port())),
            ));
        }
        let partial = tcp(inside(5000), remote(80)).flags(ACK).payload(vec![3; 4000]);
        rows.push(Row::forward(
            &format!("a super-packet from {}", inside(0).ip()),
            spec(),
            partial.super_packet(1400),
            partial.with_src(outside(5000)).super_packet(1400),
        ));
    }
    rows.extend(errors(net));
    rows.extend(left_alone(net));
    rows.extend(unmapped(net));
    rows.extend(refused_by_itself(net));
    let hop = SnapshotSpec { is_hop: true, ..spec() };
    let (inside, outside) = (|port| end(INSIDE[0].0, port), |port| end(INSIDE[0].1, port));
    let packet = udp(inside(5000), remote(53)).payload("?");
    rows.push(Row::forward("a hop less", hop, packet.clone().ttl(9), packet.with_src(outside(5000)).ttl(8)));
    let last = packet.ttl(1);
    rows.push(Row::refuse(
        "the last hop",
        spec(),
        &last,
        DropReason::TtlExceeded,
        crate::refusal::answer(icmp_error(remote(0), inside(0), IcmpError::TimeExceeded, &last.bytes())),
    ));
    rows
}

/// The packet that an error quotes is mapped as well, and the sums of both stay.
fn errors(net: Net) -> Vec<Row> {
    let (inside, outside) = (|port| end(INSIDE[0].0, port), |port| end(INSIDE[0].1, port));
    let (other, other_outside) = (|port| end(INSIDE[1].0, port), |port| end(INSIDE[1].1, port));
    let remote = |port| end(REMOTE, port);
    let error = IcmpError::TooBig(1280);
    let out = udp(inside(5000), remote(53)).payload("a question");
    let came = udp(remote(53), outside(5000)).payload("an answer");
    vec![
        Row::forward(
            "an error from outside",
            spec(net),
            icmp_error(net.outer_router(), outside(0), error, &out.with_src(outside(5000)).bytes()),
            icmp_error(net.outer_router(), inside(0), error, &out.bytes()),
        ),
        Row::forward(
            "an error from the inside host",
            spec(net),
            icmp_error(inside(0), remote(0), error, &came.with_dst(inside(5000)).bytes()),
            icmp_error(outside(0), remote(0), error, &came.bytes()),
        ),
        Row::forward(
            "an error from a router in front of it",
            spec(net),
            icmp_error(other(0), remote(0), error, &came.with_dst(inside(5000)).bytes()),
            icmp_error(other_outside(0), remote(0), error, &came.bytes()),
        ),
        Row::forward(
            "an error about a packet from one inside host to another",
            spec(net),
            icmp_error(other(0), outside(0), error, &udp(outside(1), other(2)).bytes()),
            icmp_error(other_outside(0), inside(0), error, &udp(inside(1), other_outside(2)).bytes()),
        ),
        Row::forward(
            "an error that quotes next to nothing",
            spec(net),
            icmp_error(net.outer_router(), outside(0), error, &out.with_src(outside(5000)).bytes()[..40]),
            icmp_error(net.outer_router(), inside(0), error, &out.bytes()[..40]),
        ),
        Row::drop(
            "a redirect",
            spec(net),
            icmp_error(net.outer_router(), outside(0), IcmpError::Raw(137, 0, [0; 4]), &[0; 32]),
            DropReason::UnsupportedIcmp,
        ),
    ]
}

fn echo_reply(from: std::net::SocketAddr, to: std::net::SocketAddr) -> Build {
    Build { transport: Transport::Icmp(129, 0, [0, 7, 0, 1]), ..echo(from, to, 7, 1) }
}

fn left_alone(net: Net) -> Vec<Row> {
    let inside = |port| end(INSIDE[0].0, port);
    let server = net.rs(1, 8080);
    let syn = tcp(inside(5000), net.vip(80)).syn();
    vec![
        Row::forward(
            "an inside host is a client under its own address",
            spec(net),
            &syn,
            tcp(inside(5000), server).syn(),
        ),
        Row::forward(
            "and is answered under that",
            spec(net),
            tcp(server, inside(5000)).flags(SYN | ACK),
            tcp(net.vip(80), inside(5000)).flags(SYN | ACK),
        )
        .after([&syn]),
        Row::forward(
            "a server of the inside answers a client outside",
            spec(net),
            tcp(server, net.client(4000)).flags(SYN | ACK),
            tcp(net.vip(80), net.client(4000)).flags(SYN | ACK),
        )
        .after([tcp(net.client(4000), net.vip(80)).syn()]),
        Row::forward(
            "and is an inside host in all else",
            spec(net),
            udp(net.rs(1, 5000), end(REMOTE, 53)),
            udp(end("2001:db8:77:cef0::11", 5000), end(REMOTE, 53)),
        ),
        Row::new("an inside host pings a VIP", spec(net), echo(inside(0), net.vip(0), 1, 1), Verdict::Reply)
            .out(crate::icmp::echo_reply(net, &echo(inside(0), net.vip(0), 1, 1))),
        Row::pass("to another inside network", spec(net), udp(inside(5000), end(INSIDE[3].0, 53))),
        Row::pass("to what is excepted", spec(net), udp(inside(5000), end("2001:db8:aaaa::1", 53))),
        Row::pass("between strangers", spec(net), udp(net.client(1), end(REMOTE, 53))),
        Row::forward(
            "from one inside host to another by its outside address",
            spec(net),
            udp(inside(5000), end(INSIDE[1].1, 53)),
            udp(end(INSIDE[0].1, 5000), end(INSIDE[1].0, 53)),
        ),
        Row::forward(
            "a ping from one inside host to another by its outside address",
            spec(net),
            echo(inside(0), end(INSIDE[1].1, 0), 7, 1),
            echo(end(INSIDE[0].1, 0), end(INSIDE[1].0, 0), 7, 1),
        ),
        Row::forward(
            "and its reply",
            spec(net),
            echo_reply(end(INSIDE[1].0, 0), end(INSIDE[0].1, 0)),
            echo_reply(end(INSIDE[1].1, 0), inside(0)),
        ),
    ]
}

fn unmapped(net: Net) -> Vec<Row> {
    let remote = end(REMOTE, 53);
    let refused = |name: &str, packet: Build, error| {
        let answer = icmp_error(packet.dst, packet.src, error, &packet.bytes());
        Row::refuse(name, spec(net), packet, DropReason::NoPrefixMapping, crate::refusal::answer(answer))
    };
    let unreachable = IcmpError::Raw(1, 3, [0; 4]);
    vec![
        refused("from the subnet that has no counterpart", udp(end("fd20:0:0:ffff::1", 5), remote), unreachable),
        refused("to the subnet that has none", udp(remote, end("2001:db8:77:ffff::1", 5)), unreachable),
        refused(
            "from an identifier of nothing but ones",
            udp(end("2001:db8:88:5:ffff:ffff:ffff:ffff", 5), remote),
            IcmpError::Raw(4, 0, [0, 0, 0, 8]),
        ),
        refused(
            "to the anycast address of a subnet's routers",
            udp(remote, end("2001:db8:99:6::", 5)),
            IcmpError::Raw(4, 0, [0, 0, 0, 24]),
        ),
    ]
}

/// Who is refused is told by the gateway itself, if it has an address on that side.
fn refused_by_itself(net: Net) -> Vec<Row> {
    let own = ["10.20.0.2", "fe80::2", "fd20::2", "2001:db8:5::2"].map(addr).to_vec();
    let hop = || SnapshotSpec { is_hop: true, own_addresses: own.clone(), ..spec(net) };
    let (inside, outside, remote) = (end(INSIDE[0].0, 5000), end(INSIDE[0].1, 5000), end(REMOTE, 53));
    let told = |own: &str, packet: &Build, error| {
        crate::refusal::answer(icmp_error(end(own, 0), packet.src, error, &packet.bytes()))
    };
    let (out, back) = (udp(inside, remote).ttl(1), udp(remote, outside).ttl(1));
    let nowhere = udp(remote, end("2001:db8:77:ffff::1", 5));
    let (exceeded, unreachable) = (IcmpError::TimeExceeded, IcmpError::Raw(1, 3, [0; 4]));
    let refuse = |name, packet: &Build, reason, answer| Row::refuse(name, hop(), packet, reason, answer);
    vec![
        refuse("the last hop out", &out, DropReason::TtlExceeded, told("fd20::2", &out, exceeded)),
        refuse("the last hop in", &back, DropReason::TtlExceeded, told("2001:db8:5::2", &back, exceeded)),
        refuse("to nowhere", &nowhere, DropReason::NoPrefixMapping, told("2001:db8:5::2", &nowhere, unreachable)),
    ]
}

/// Fragments need no first one, and none is kept.
#[test]
fn fragments_go_one_by_one() {
    let net = Net::V6;
    let (inside, outside) = (end(INSIDE[0].0, 5000), end(INSIDE[0].1, 5000));
    for (from, to) in [
        (udp(inside, end(REMOTE, 53)), udp(outside, end(REMOTE, 53))),
        (udp(end(REMOTE, 53), outside), udp(end(REMOTE, 53), inside)),
        // A server's might be of a flow: they wait for the first one.
        (udp(net.rs(1, 5000), end(REMOTE, 53)), udp(end("2001:db8:77:cef0::11", 5000), end(REMOTE, 53))),
    ] {
        let is_server = from.src == net.rs(1, 5000);
        let (from, to) = (from.payload(vec![9; 4000]), to.payload(vec![9; 4000]));
        let mut engine = world::engine(Snapshot::build(spec(net), None).expect("valid").into(), 16);
        let (mut pieces, expected) = (from.fragments(1000), to.fragments(1000));
        pieces.reverse();
        let mut sent = Vec::new();
        for piece in &pieces {
            let mut buf = PacketBuf::from_packet(piece);
            match engine.handle_packet(Instant::ZERO, &mut buf) {
                Verdict::Forward => sent.push(buf.packet().to_vec()),
                verdict => assert!(verdict == Verdict::Held && is_server, "{verdict:?}"),
            }
            sent.extend(std::iter::from_fn(|| engine.poll_transmit()).map(|held| held.packet().to_vec()));
            engine.check_invariants();
        }
        sent.sort();
        let mut sorted = expected.clone();
        sorted.sort();
        assert_eq!(sent, sorted);
        assert!(oracle::checksums_are_right(&oracle::reassemble(&sent).expect("all are there")));
    }
}

#[test]
fn it_can_be_explained() {
    let net = Net::V6;
    let engine = world::engine(Snapshot::build(spec(net), None).expect("valid").into(), 16);
    let explained = |src, dst| explain(&engine, Instant::ZERO, &tuple(src, dst, 17), 0).outcome;
    for (inside, outside) in INSIDE {
        let (inside, outside, remote) = (end(inside, 5000), end(outside, 5000), end(REMOTE, 53));
        assert_eq!(explained(inside, remote), Explained::Prefix { translated: tuple(outside, remote, 17) });
        assert_eq!(explained(remote, outside), Explained::Prefix { translated: tuple(remote, inside, 17) });
    }
    let server = explained(net.rs(1, 5000), end(REMOTE, 53));
    let translated = tuple(end("2001:db8:77:cef0::11", 5000), end(REMOTE, 53), 17);
    assert_eq!(server, Explained::Prefix { translated });
    let unmapped = explained(end("fd20:0:0:ffff::1", 5), end(REMOTE, 53));
    assert!(matches!(unmapped, Explained::Dropped { reason: DropReason::NoPrefixMapping, .. }));
}

#[test]
fn a_prefix_that_makes_no_sense_translates_nothing() {
    let v4 = network("10.0.0.0/8");
    assert_eq!(Npt::new(v4, network("2001:db8::/32")), None);
    assert_eq!(Npt::new(network("2001:db8::/32"), v4), None);
    let none = MasqueradeSpec { from: Vec::new(), ..masquerade("none", "fd21::/48", "2001:db8:78::/48") };
    let spec = SnapshotSpec { masquerades: vec![none], ..SnapshotSpec::default() };
    if let Ok(snapshot) = Snapshot::build(spec, None) {
        assert!(!snapshot.pools.has_npt());
        assert!(snapshot.pools.npt_of(Addr::UNSPECIFIED).is_none());
    }
}
