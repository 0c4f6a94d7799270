//! Sources that nobody but the gateway has.

use gatun::service::{MasqueradeSpec, Network, PoolSpec, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::Addr;

use crate::support::packet::{ACK, IcmpError, SYN, echo, icmp_error, tcp, udp};
use crate::{Net, Row};

/// As everywhere, and the second VIP is the host's own as well; what is behind the gateway goes out by an address of its own.
fn spec(net: Net) -> SnapshotSpec {
    let len = if net.is_v4() { 24 } else { 64 };
    let masquerade = MasqueradeSpec {
        name: "lan".into(),
        from: vec![Network { address: Addr::from(net.rs(0, 0).ip()), len }],
        pool: PoolSpec { addresses: vec![Addr::from(pool(net, 0).ip())], ..PoolSpec::default() },
        ..MasqueradeSpec::default()
    };
    SnapshotSpec { masquerades: vec![masquerade], local_vips: vec![Addr::from(net.vip2(0).ip())], ..net.spec() }
}

fn pool(net: Net, port: u16) -> std::net::SocketAddr {
    let ip = if net.is_v4() { "203.0.113.200" } else { "2001:db8:f::200" };
    std::net::SocketAddr::new(ip.parse().expect(ip), port)
}

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || spec(net);
    let drop = |name: &str, packet| Row::drop(name, spec(), packet, DropReason::SpoofedSource);
    let client = net.client(40000);
    let syn = tcp(client, net.vip(80)).syn();
    vec![
        drop("a connection from a VIP", tcp(net.vip(4000), net.vip2(80)).syn()),
        drop("a query from a pool's address", udp(pool(net, 4000), net.vip(53))),
        drop("past the gateway from there", udp(pool(net, 4000), net.stranger(53))),
        drop("a connection between addresses of pools", tcp(pool(net, 4000), net.vip(80)).syn()),
        drop("a ping from a VIP", echo(net.vip(0), pool(net, 0), 1, 1)),
        drop("a ping from a pool's address", echo(pool(net, 0), net.vip(0), 1, 1)),
        drop("a segment of nothing", tcp(pool(net, 4000), net.vip(80)).flags(ACK)),
        Row::forward(
            "a program on the gateway has a local VIP",
            spec(),
            udp(net.vip2(4000), net.vip(53)),
            udp(net.vip2(4000), net.rs(1, 53)),
        ),
        Row::pass(
            "a server that holds the VIP answers by way of the gateway",
            spec(),
            tcp(net.vip(80), client).flags(SYN | ACK),
        ),
        Row::new("a ping from anybody else", spec(), echo(client, pool(net, 0), 1, 1), Verdict::Reply)
            .out(crate::icmp::echo_reply(net, &echo(client, pool(net, 0), 1, 1))),
        Row::drop(
            "an error of an inside host about nothing",
            spec(),
            icmp_error(
                net.rs(5, 0),
                net.stranger(0),
                IcmpError::PortUnreachable,
                &udp(net.stranger(5), net.rs(5, 6)).bytes(),
            ),
            DropReason::IcmpNoFlow,
        ),
        Row::drop(
            "a redirect of an inside host",
            spec(),
            icmp_error(
                net.rs(5, 0),
                net.stranger(0),
                IcmpError::Raw(if net.is_v4() { 5 } else { 137 }, 0, [0; 4]),
                &udp(net.stranger(5), net.rs(5, 6)).bytes(),
            ),
            DropReason::UnsupportedIcmp,
        ),
        Row::drop("to the loopback", spec(), udp(client, loopback(net)), DropReason::Martian),
        Row::drop("and there from a flow's client", spec(), tcp(client, loopback(net)).flags(ACK), DropReason::Martian)
            .after([&syn]),
    ]
}

fn loopback(net: Net) -> &'static str {
    if net.is_v4() { "127.0.0.1:80" } else { "[::1]:80" }
}
