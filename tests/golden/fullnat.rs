//! Method `fullnat`: the server sees an address and port of the pool, the client the VIP.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use gatun::command::PoolRecord;
use gatun::explain::{Explained, explain};
use gatun::flow::TcpState;
use gatun::service::{Method, PoolSpec, PortRange, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Protocol, Tuple};

use crate::gateway::Gateway;
use crate::support::packet::{ACK, Build, FIN, IcmpError, RST, SYN, icmp_error, mss, tcp, udp};
use crate::{Net, Row, refusal};

/// The only port of the pool in most rows.
pub const PORT: u16 = 5000;

/// An address of the pool, by number from 0.
pub fn pool(net: Net, number: u8, port: u16) -> SocketAddr {
    let text = if net.is_v4() {
        format!("203.0.113.{}", 100 + number)
    } else {
        format!("2001:db8:f::{:x}", 0x100 + u16::from(number))
    };
    (text.parse::<std::net::IpAddr>().expect("an address"), port).into()
}

/// One address, as the configuration has it where it says no more.
pub fn pool_of(net: Net) -> PoolSpec {
    PoolSpec { addresses: vec![Addr::from(pool(net, 0, 0).ip())], ..PoolSpec::default() }
}

/// The services of [`Net::spec`], all by fullnat, through one address and these ports.
pub fn spec(net: Net, first: u16, last: u16) -> SnapshotSpec {
    let mut spec = net.spec();
    let other = if net.is_v4() { Net::V6 } else { Net::V4 };
    for service in &mut spec.services {
        service.method = Method::Fullnat;
        // Of an address of the other family nothing is made.
        let addresses = vec![Addr::from(pool(other, 0, 0).ip()), Addr::from(pool(net, 0, 0).ip())];
        service.pool = PoolSpec { addresses, ports: PortRange { first, last } };
    }
    spec
}

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || spec(net, PORT, PORT);
    let (client, vip, rs, here) = (net.client(40000), net.vip(80), net.rs(1, 8080), pool(net, 0, PORT));
    let syn = tcp(client, vip).syn();
    let syn_ack = tcp(rs, here).flags(SYN | ACK).seq(5000, 1001);
    let data = tcp(client, vip).flags(ACK).seq(1001, 5001).payload("GET / HTTP/1.1");
    let answer = tcp(rs, here).flags(ACK).seq(5001, 1015).payload("HTTP/1.1 200 OK");
    let handshake = [syn.clone(), syn_ack.clone(), tcp(client, vip).flags(ACK).seq(1001, 5001)];
    let query = udp(client, net.vip(53)).payload("query");
    let asked = query.with_src(here).with_dst(net.rs(1, 53));
    let hop = || SnapshotSpec { is_hop: true, ..spec() };
    let mut rows = vec![
        Row::forward("a SYN comes from the pool", spec(), &syn, syn.with_src(here).with_dst(rs)),
        Row::forward("its answer comes from the VIP", spec(), &syn_ack, syn_ack.with_src(vip).with_dst(client))
            .after([&syn]),
        Row::forward("data to the server", spec(), &data, data.with_src(here).with_dst(rs)).after(&handshake),
        Row::forward("data to the client", spec(), &answer, answer.with_src(vip).with_dst(client)).after(&handshake),
        Row::forward("a UDP query", spec(), &query, &asked),
        Row::forward("and its answer", spec(), asked.reversed(), query.reversed()).after([&query]),
        Row::forward("a partial checksum", spec(), data.partial(), data.with_src(here).with_dst(rs)).after(&handshake),
        Row::forward("of a reply", spec(), answer.partial(), answer.with_src(vip).with_dst(client)).after(&handshake),
        Row::forward(
            "a super-packet passes whole",
            spec(),
            data.clone().payload(vec![7; 64_000]).super_packet(1448),
            data.with_src(here).with_dst(rs).payload(vec![7; 64_000]),
        )
        .after(&handshake),
        Row::forward(
            "one port is used towards several servers",
            spec(),
            tcp(net.other(1, 1), net.vip2(443)).syn(),
            tcp(here, net.rs(2, 443)).syn(),
        )
        .after(&handshake),
        Row::forward(
            "and towards several ports of one",
            spec(),
            udp(net.other(1, 1), net.vip2(99)),
            udp(here, net.rs(1, 99)),
        )
        .after([&query]),
        Row::drop("no port is left", spec(), udp(net.other(1, 1), net.vip(53)), DropReason::PoolExhausted)
            .after([&query]),
        Row::drop(
            "no port is left, and no RST tells of it",
            spec(),
            tcp(net.other(1, 1), net.vip(53)).syn(),
            DropReason::PoolExhausted,
        )
        .after([tcp(client, net.vip(53)).syn()]),
        Row::refuse(
            "what a server sends to a port without a flow",
            spec(),
            &answer,
            DropReason::NoService,
            refusal::without_window(refusal::answer(tcp(here, rs).flags(RST).seq(1015, 0))),
        ),
        Row::forward("the TTL is counted down", hop(), query.clone().ttl(9), asked.clone().ttl(8)),
        Row::forward("that of answers as well", hop(), asked.reversed().ttl(9), query.reversed().ttl(8))
            .after([&query]),
        Row::forward(
            "the MSS of a SYN is clamped",
            SnapshotSpec { mtu: 1400, ..spec() },
            syn.clone().tcp_options(&mss(1460)),
            syn.with_src(here).with_dst(rs).tcp_options(&mss(if net.is_v4() { 1360 } else { 1340 })),
        ),
    ];
    rows.extend(errors(net, spec, &query, &asked));
    rows
}

/// Who is told of an error knows nothing of the other side.
fn errors(net: Net, spec: impl Fn() -> SnapshotSpec, query: &Build, asked: &Build) -> Vec<Row> {
    let error = IcmpError::PortUnreachable;
    let (answer, replied) = (asked.reversed(), query.reversed());
    let (vip, rs, here) = (net.vip(53), net.rs(1, 53), pool(net, 0, PORT));
    let to_client = || icmp_error(vip, net.client(0), error, &query.bytes());
    let to_server = || icmp_error(here, rs, error, &answer.bytes());
    let row = |name, packet: Build, out: Build| Row::forward(name, spec(), packet, out).after([query, &answer]);
    vec![
        row("an error from the server comes from the VIP", icmp_error(rs, here, error, &asked.bytes()), to_client()),
        row(
            "one from a router behind the gateway as well",
            icmp_error(net.inner_router(), here, error, &asked.bytes()),
            to_client(),
        ),
        row(
            "one from the client comes from the pool",
            icmp_error(net.client(0), vip, error, &replied.bytes()),
            to_server(),
        ),
        row(
            "one from a router before the gateway as well",
            icmp_error(net.outer_router(), vip, error, &replied.bytes()),
            to_server(),
        ),
        Row::drop(
            "an error about nothing",
            spec(),
            icmp_error(rs, here, error, &asked.bytes()),
            DropReason::IcmpNoFlow,
        ),
    ]
}

/// By fullnat through ports `first` to `last`.
pub fn by_fullnat(net: Net, first: u16, last: u16) -> Gateway {
    Gateway::new(net, |all| *all = spec(net, first, last))
}

/// The reply tuples of all flows.
pub fn replies(gateway: &Gateway) -> Vec<Tuple> {
    gateway.flows().iter().map(|flow| flow.reply).collect()
}

/// How many ports are live, in quarantine, and reclaimed so far.
pub fn ports(gateway: &Gateway) -> (u64, u64, u64) {
    let sum = |field: fn(&PoolRecord) -> u64| gateway.engine.pools().iter().map(field).sum();
    (sum(|pool| pool.in_use), sum(|pool| pool.quarantined), gateway.engine.stats().ports_reclaimed)
}

pub const EXHAUSTED: Result<SocketAddr, Verdict> = Err(Verdict::Drop(DropReason::PoolExhausted));

#[test]
fn every_port_is_given_away_once() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, 5000, 5099);
        let rs = net.rs(1, 53);
        for n in 0..100 {
            assert_eq!(gateway.ask(n, 1), Ok(rs));
        }
        let seen: BTreeSet<u16> = replies(&gateway).iter().map(|reply| reply.dport).collect();
        assert_eq!(seen, (5000..=5099).collect());
        let here = Addr::from(pool(net, 0, 0).ip());
        assert!(replies(&gateway).iter().all(|reply| reply.dst == here));
        assert_eq!((gateway.ask(100, 1), ports(&gateway)), (EXHAUSTED, (100, 0, 0)));
        assert_eq!(gateway.engine.pools()[0].size, 100);
        // They are no row of numbers.
        let steps = replies(&gateway).windows(2).filter(|pair| pair[1].dport == pair[0].dport + 1).count();
        assert!(steps < 20, "{steps}");
    }
}

#[test]
fn a_port_waits_until_it_is_used_again() {
    let net = Net::V4;
    let mut gateway = by_fullnat(net, PORT, PORT);
    gateway.spec.quarantine = Duration::from_secs(7);
    gateway.reload(|_| {});
    let rs = net.rs(1, 53);
    assert_eq!(gateway.ask(1, 1), Ok(rs));
    let all = gatun::command::FlowFilter::default();
    gateway.engine.apply(gateway.now, gatun::command::Command::Delete { filter: all, cursor: 0 });
    assert_eq!(ports(&gateway), (0, 1, 0));
    assert_eq!(gateway.engine.poll_timeout(), Some(gateway.now + Duration::from_secs(7)));
    assert_eq!(gateway.ask(2, 1), EXHAUSTED);
    gateway.wait(Duration::from_millis(6_999));
    assert_eq!((gateway.ask(2, 1), ports(&gateway)), (EXHAUSTED, (0, 1, 0)));
    gateway.wait(Duration::from_millis(1));
    assert_eq!(ports(&gateway), (0, 0, 0));
    assert_eq!((gateway.ask(2, 1), gateway.engine.pools().len()), (Ok(rs), 1));
    // Without it the port is free at once.
    gateway.reload(|spec| spec.quarantine = Duration::ZERO);
    gateway.wait(gateway.spec.timeouts.udp);
    assert_eq!((gateway.flows().len(), gateway.ask(3, 1)), (0, Ok(rs)));
}

/// A connection of client `n`, to the end of its handshake; the server's end of it.
pub fn establish(gateway: &mut Gateway, n: u8) -> Tuple {
    let net = gateway.net;
    let (client, vip) = (net.other(n, 1), net.vip(53));
    assert!(gateway.send(&tcp(client, vip).syn().seq(1000, 0)).is_ok());
    let reply = gateway.engine.find(gateway.now, &tuple(client, vip)).expect("admitted").0.reply;
    assert_eq!(gateway.send(&from(reply).flags(SYN | ACK).seq(5000, 1001)), Ok(client));
    assert!(gateway.send(&tcp(client, vip).flags(ACK).seq(1001, 5001)).is_ok());
    reply
}

pub fn tuple(src: SocketAddr, dst: SocketAddr) -> Tuple {
    let (sport, dport, protocol) = (src.port(), dst.port(), Protocol::TCP);
    Tuple { src: src.ip().into(), dst: dst.ip().into(), sport, dport, protocol }
}

/// A segment that has this tuple.
pub fn from(tuple: Tuple) -> Build {
    tcp((tuple.src.ip(), tuple.sport), (tuple.dst.ip(), tuple.dport))
}

/// Both ends close it.
pub fn close(gateway: &mut Gateway, n: u8, reply: Tuple) {
    let (client, vip) = (gateway.net.other(n, 1), gateway.net.vip(53));
    for packet in [
        tcp(client, vip).flags(FIN | ACK).seq(1001, 5001),
        from(reply).flags(FIN | ACK).seq(5001, 1002),
        tcp(client, vip).flags(ACK).seq(1002, 5002),
    ] {
        assert!(gateway.send(&packet).is_ok());
    }
    let flow = gateway.engine.find(gateway.now, &reply).expect("it is still known").0;
    assert!(matches!(flow.tcp_state, Some(TcpState::TimeWait | TcpState::Close)), "{:?}", flow.tcp_state);
}

#[test]
fn a_connection_that_is_over_gives_up_its_port() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, 5000, 5001);
        let second = Duration::from_secs(1);
        let (first, other) = (establish(&mut gateway, 1), establish(&mut gateway, 2));
        close(&mut gateway, 1, first);
        gateway.wait(second);
        close(&mut gateway, 2, other);
        let connect = |gateway: &mut Gateway, n| gateway.send(&tcp(net.other(n, 1), net.vip(53)).syn());
        assert_eq!(connect(&mut gateway, 3), EXHAUSTED);
        // A late packet of the first one: now it is the other that has been silent for longer.
        assert!(gateway.send(&from(first).flags(ACK).seq(5002, 1002)).is_ok());
        gateway.wait(second * 4);
        assert_eq!((connect(&mut gateway, 3), ports(&gateway)), (EXHAUSTED, (2, 0, 0)));
        gateway.wait(second);
        let told = explained(&gateway, 3);
        assert_eq!(connect(&mut gateway, 3), Ok(net.rs(1, 53)));
        let third = gateway.engine.find(gateway.now, &tuple(net.other(3, 1), net.vip(53))).expect("admitted").0;
        assert_eq!((told, third.reply.dport), (Some(third.reply.reversed()), other.dport));
        assert_eq!(ports(&gateway), (2, 0, 1));
        // What lives is not touched, whatever it has been silent for; what was never answered is.
        gateway.wait(second * 100);
        let server = gateway.server("dns", 0);
        assert_eq!(server.load.flows(), 2);
        assert_eq!(connect(&mut gateway, 4), Ok(net.rs(1, 53)));
        assert_eq!(ports(&gateway).2, 2);
        assert_eq!(connect(&mut gateway, 5), Ok(net.rs(1, 53)));
        assert_eq!((connect(&mut gateway, 6), server.load.flows()), (EXHAUSTED, 2));
    }
}

/// What would become of a SYN of client `n`.
fn explained(gateway: &Gateway, n: u8) -> Option<Tuple> {
    let packet = tuple(gateway.net.other(n, 1), gateway.net.vip(53));
    match explain(&gateway.engine, gateway.now, &packet, SYN).outcome {
        Explained::Admitted { translated, .. } => Some(translated),
        Explained::Dropped { reason: DropReason::PoolExhausted, .. } => None,
        other => panic!("{other:?}"),
    }
}
