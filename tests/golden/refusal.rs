//! What is not forwarded, and what its sender is told.

use crate::support::packet::IcmpError::{PortUnreachable, TimeExceeded};
use crate::support::packet::{ACK, Build, FIN, PSH, RST, SYN, Transport, echo, icmp_error, tcp, udp};
use crate::{Net, Row};
use gatun::service::{Limits, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || net.spec();
    let client = net.client(40000);
    // What has no sequence number of its own to answer with takes that of the packet (RFC 9293 section 3.10.7.1).
    let reset = |from| answer(tcp(from, client)).flags(RST | ACK);
    let mut rows = Vec::new();
    for (name, port, reason) in [
        ("no service", 9999, DropReason::NoService),
        ("no server but a drained one", 81, DropReason::NoServer),
        ("no server at all", 82, DropReason::NoServer),
    ] {
        let vip = net.vip(port);
        let syn = tcp(client, vip).syn().seq(77, 0);
        rows.push(Row::refuse(
            &format!("{name}: a SYN gets a RST"),
            spec(),
            &syn,
            reason,
            without_window(reset(vip).seq(0, 78)),
        ));
        rows.push(Row::refuse(
            &format!("{name}: a datagram gets a port unreachable"),
            spec(),
            udp(client, vip).payload("hello"),
            reason,
            error(net, vip, PortUnreachable, &udp(client, vip).payload("hello").bytes()),
        ));
    }
    let vip = net.vip(80);
    let stray = |flags: u8| tcp(client, vip).flags(flags).seq(500, 900).payload("abc");
    let bare = |seq: u32| without_window(answer(tcp(vip, client)).flags(RST).seq(seq, 0));
    let no_flow = DropReason::NoFlow;
    rows.extend([
        Row::refuse(
            "an ACK without a flow gets the RST that it asks for",
            spec(),
            stray(ACK | PSH),
            no_flow,
            bare(900),
        ),
        Row::refuse("a SYN-ACK without a flow", spec(), stray(SYN | ACK), no_flow, bare(900)),
        Row::refuse("a FIN without ACK", spec(), stray(FIN), no_flow, without_window(reset(vip).seq(0, 504))),
        Row::refuse("no flag at all", spec(), stray(0), no_flow, without_window(reset(vip).seq(0, 503))),
        Row::drop("a RST gets none", spec(), stray(RST), no_flow),
        Row::drop(
            "a RST to a closed port gets none",
            spec(),
            tcp(client, net.vip(9999)).flags(RST),
            DropReason::NoService,
        ),
        Row::refuse(
            "the payload of a SYN is acknowledged",
            spec(),
            tcp(client, net.vip(9999)).syn().payload("fast"),
            DropReason::NoService,
            without_window(reset(net.vip(9999)).seq(0, 1005)),
        ),
        Row::refuse("a partial checksum makes no difference", spec(), stray(ACK).partial(), no_flow, bare(900)),
    ]);
    let long = udp(client, net.vip(9999)).payload(vec![1; 1400]);
    let limit = if net.is_v4() { 576 - 28 } else { 1280 - 48 };
    rows.push(Row::refuse(
        "a long datagram is quoted as far as the smallest MTU allows",
        spec(),
        &long,
        DropReason::NoService,
        error(net, net.vip(9999), PortUnreachable, &long.bytes()[..limit]),
    ));
    let last_hop = udp(client, net.vip(53)).payload("traceroute").ttl(1);
    let syn = tcp(client, vip).syn();
    let late = tcp(client, vip).flags(ACK).seq(1001, 1).ttl(1);
    rows.extend([
        Row::refuse(
            "TTL 1 ends here",
            spec(),
            &last_hop,
            DropReason::TtlExceeded,
            error(net, net.vip(53), TimeExceeded, &last_hop.bytes()),
        ),
        Row::refuse(
            "TTL 1 of a known flow",
            spec(),
            &late,
            DropReason::TtlExceeded,
            error(net, vip, TimeExceeded, &late.bytes()),
        )
        .after([&syn]),
        Row::refuse("TTL 1 of an answer", spec(), udp(net.rs(1, 53), client).ttl(1), DropReason::TtlExceeded, {
            let quoted = udp(net.rs(1, 53), client).ttl(1).bytes();
            let mut told = error(net, net.vip(53), TimeExceeded, &quoted);
            told.dst = net.rs(1, 0);
            told
        })
        .after([udp(client, net.vip(53))]),
        Row::forward(
            "TTL 2 goes on, not decreased",
            spec(),
            udp(client, net.vip(53)).ttl(2),
            udp(client, net.rs(1, 53)).ttl(2),
        ),
    ]);
    let other = Build { transport: Transport::Other(132), ..udp(client, vip) }.payload([0; 16]);
    rows.extend([
        Row::drop("SCTP to the VIP", spec(), &other, DropReason::UnsupportedProtocol),
        Row::pass("SCTP past the gateway", spec(), other.with_dst(net.stranger(0))),
        Row::drop("from a multicast address", spec(), udp(multicast(net), net.vip(53)), DropReason::Martian),
        Row::drop("from nowhere", spec(), udp(unspecified(net), net.vip(53)), DropReason::Martian),
        Row::drop("from the loopback", spec(), udp(loopback(net), net.vip(53)), DropReason::Martian),
        Row::drop("from itself to itself", spec(), tcp(net.vip(80), net.vip(80)).syn(), DropReason::Martian),
        Row::drop("to a multicast address", spec(), udp(client, multicast(net)), DropReason::Martian),
        Row::pass("no service at a VIP that is the host's own", local(net), tcp(client, net.vip(22)).syn()),
        Row::pass("a ping to a VIP that is the host's own", local(net), echo(client, net.vip(0), 1, 1)),
        Row::forward("a service at a VIP that is the host's own", local(net), &syn, syn.with_dst(net.rs(1, 8080))),
        Row::drop("with no answers allowed", quiet(net), tcp(client, net.vip(9999)).syn(), DropReason::NoService),
    ]);
    rows
}

/// The VIP is an address of the gateway's host.
fn local(net: Net) -> SnapshotSpec {
    SnapshotSpec { local_vips: vec![gatun::wire::Addr::from(net.vip(0).ip())], ..net.spec() }
}

fn quiet(net: Net) -> SnapshotSpec {
    SnapshotSpec { limits: Limits { replies_per_second: 0, ..Limits::default() }, ..net.spec() }
}

/// As the engine sends its own packets: never fragmented, no identification.
pub fn answer(build: Build) -> Build {
    Build { dont_fragment: true, ..build.id(0) }
}

pub fn without_window(mut build: Build) -> Build {
    if let Transport::Tcp { window, .. } = &mut build.transport {
        *window = 0;
    }
    build
}

pub fn error(net: Net, from: std::net::SocketAddr, kind: crate::support::packet::IcmpError, quoted: &[u8]) -> Build {
    let build = answer(icmp_error(from, net.client(0), kind, quoted));
    Build { tos: if net.is_v4() { 0xc0 } else { 0 }, ..build }
}

fn multicast(net: Net) -> &'static str {
    if net.is_v4() { "224.0.0.9:5" } else { "[ff02::9]:5" }
}

fn unspecified(net: Net) -> &'static str {
    if net.is_v4() { "0.0.0.0:5" } else { "[::]:5" }
}

fn loopback(net: Net) -> &'static str {
    if net.is_v4() { "127.0.0.1:5" } else { "[::1]:5" }
}

#[test]
fn answers_are_rate_limited() {
    let net = Net::V4;
    let limits = Limits { replies_per_second: 5, ..Limits::default() };
    let spec = SnapshotSpec { limits, ..net.spec() };
    let snapshot = gatun::service::Snapshot::build(spec, None).expect("valid");
    let mut engine = crate::support::world::engine(snapshot.into(), 16);
    let mut refused_at = |now: Instant| {
        let verdicts =
            (0..20).map(|n| engine.handle_packet(now, &mut tcp(net.client(n + 1), net.vip(9999)).syn().buf()));
        let verdicts: Vec<Verdict> = verdicts.collect();
        assert!(
            verdicts
                .iter()
                .all(|v| matches!(v, Verdict::Refuse(DropReason::NoService) | Verdict::Drop(DropReason::NoService)))
        );
        verdicts.iter().filter(|v| v.sends()).count()
    };
    assert_eq!(refused_at(Instant::from_secs(10)), 5);
    assert_eq!(refused_at(Instant::from_millis(10_199)), 0);
    assert_eq!(refused_at(Instant::from_millis(10_400)), 2);
    assert_eq!(refused_at(Instant::from_secs(3600)), 5, "a long pause earns no more than one second's worth");
    let stats = engine.stats();
    assert_eq!((stats.refused, stats.drops(DropReason::NoService), stats.refusals_limited), (12, 80, 68));
}
