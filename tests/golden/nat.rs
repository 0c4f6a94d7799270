//! NAT: what goes to which server, and how it comes back.

use crate::support::packet::{ACK, Extension, PSH, SYN, Transport, mss, tcp, udp};
use crate::{Net, Packet, Row};
use gatun::service::SnapshotSpec;
use gatun::verdict::{DropReason, Verdict};

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let spec = || net.spec();
    let (client, vip) = (net.client(40000), net.vip(80));
    // The first flow goes to server 1: round robin.
    let rs = net.rs(1, 8080);
    let syn = tcp(client, vip).syn();
    let syn_ack = tcp(rs, client).flags(SYN | ACK).seq(5000, 1001);
    let data = tcp(client, vip).flags(PSH | ACK).seq(1001, 5001).payload("GET / HTTP/1.1\r\n\r\n");
    let reply = tcp(rs, client).flags(PSH | ACK).seq(5001, 1019).payload("HTTP/1.1 204 No Content\r\n\r\n");
    let handshake = [syn.clone(), syn_ack.clone(), tcp(client, vip).flags(ACK).seq(1001, 5001)];
    let query = udp(client, net.vip(53)).payload("query");

    let mut rows = vec![
        Row::forward("a SYN goes to the first server, port translated", spec(), &syn, syn.with_dst(rs)),
        Row::forward("the SYN-ACK comes from the VIP", spec(), &syn_ack, syn_ack.with_src(vip)).after([&syn]),
        Row::forward("data to the server", spec(), &data, data.with_dst(rs)).after(&handshake),
        Row::forward("data to the client", spec(), &reply, reply.with_src(vip)).after(&handshake),
        Row::forward(
            "the second client's SYN goes to the second server",
            spec(),
            syn.with_src(net.other(1, 40000)),
            syn.with_src(net.other(1, 40000)).with_dst(net.rs(2, 8080)),
        )
        .after([&syn]),
        Row::forward("a SYN that comes again keeps its server", spec(), &syn, syn.with_dst(rs)).after([&syn]),
        Row::forward("UDP to the server", spec(), &query, query.with_dst(net.rs(1, 53))),
        Row::forward(
            "UDP to the client",
            spec(),
            udp(net.rs(1, 53), client).payload("answer"),
            udp(net.vip(53), client).payload("answer"),
        )
        .after([&query]),
        Row::forward(
            "UDP and TCP over the same ports are two flows",
            spec(),
            tcp(client, net.vip(53)).syn(),
            tcp(client, net.rs(1, 53)).syn(),
        )
        .after([&query]),
        Row::forward(
            "a UDP checksum that was left out stays out",
            spec(),
            query.clone().without_checksum(),
            query.with_dst(net.rs(1, 53)).without_checksum(),
        ),
        Row::forward(
            "an odd payload",
            spec(),
            query.clone().payload([0xff; 333]),
            query.with_dst(net.rs(1, 53)).payload([0xff; 333]),
        ),
        Row::forward("no payload", spec(), query.clone().payload([]), query.with_dst(net.rs(1, 53)).payload([])),
        Row::forward(
            "a port range keeps the distance from its start",
            spec(),
            udp(client, net.vip(8042)),
            udp(client, net.rs(2, 9042)),
        ),
        Row::forward("the first port of a range", spec(), udp(client, net.vip(8000)), udp(client, net.rs(2, 9000))),
        Row::forward("the last port of a range", spec(), udp(client, net.vip(8099)), udp(client, net.rs(2, 9099))),
        Row::forward("a port range comes back", spec(), udp(net.rs(2, 9042), client), udp(net.vip(8042), client))
            .after([udp(client, net.vip(8042))]),
        Row::forward("all ports, none translated", spec(), udp(client, net.vip2(54321)), udp(client, net.rs(1, 54321))),
        Row::forward("port 1 of all ports", spec(), udp(client, net.vip2(1)), udp(client, net.rs(1, 1))),
        Row::forward("port 65535 of all ports", spec(), udp(client, net.vip2(65535)), udp(client, net.rs(1, 65535))),
        Row::forward(
            "a single port wins over all ports",
            spec(),
            tcp(client, net.vip2(443)).syn(),
            tcp(client, net.rs(2, 443)).syn(),
        ),
        Row::forward(
            "of another protocol it does not",
            spec(),
            udp(client, net.vip2(443)),
            udp(client, net.rs(1, 443)),
        ),
        Row::forward(
            "a narrow range wins over a wide one",
            spec(),
            udp(client, net.vip2(1500)),
            udp(client, net.rs(3, 1500)),
        ),
        Row::forward("a partial checksum", spec(), data.partial(), data.with_dst(rs)).after(&handshake),
        Row::forward("a partial checksum of a reply", spec(), reply.partial(), reply.with_src(vip)).after(&handshake),
        Row::forward("a partial UDP checksum", spec(), query.partial(), query.with_dst(net.rs(1, 53))),
        Row::forward(
            "a super-packet passes whole",
            spec(),
            data.clone().payload(vec![7; 64_000]).super_packet(1448),
            data.with_dst(rs).payload(vec![7; 64_000]),
        )
        .after(&handshake),
        Row::forward(
            "a UDP super-packet passes whole",
            spec(),
            query.clone().payload(vec![7; 30_000]).super_packet(1472),
            query.with_dst(net.rs(1, 53)).payload(vec![7; 30_000]),
        ),
        Row::forward(
            "bytes behind the packet are cut off",
            spec(),
            [query.bytes(), vec![0; 6]].concat(),
            query.with_dst(net.rs(1, 53)),
        ),
        Row::pass("what is for nobody here", spec(), udp(client, net.stranger(53))),
        Row::pass("a RST between strangers", spec(), tcp(net.stranger(1), client).flags(4)),
        Row::pass("a ping past the gateway", spec(), crate::support::packet::echo(client, net.stranger(0), 1, 1)),
        Row::pass("a server's own traffic", spec(), udp(net.rs(1, 40000), net.stranger(53))),
        Row::pass("a server's answer to a flow that is not there", spec(), &reply),
        Row::drop(
            "the table is full of what must not go",
            spec(),
            tcp(net.other(1, 1), vip).syn(),
            DropReason::TableFull,
        )
        .after(&handshake)
        .max_flows(1),
        Row::forward("a full table still forwards what it has", spec(), &data, data.with_dst(rs))
            .after(handshake.iter().cloned().chain([tcp(net.other(1, 1), vip).syn()]))
            .max_flows(1),
        Row::forward(
            "a half-open flow makes room",
            spec(),
            udp(net.other(1, 1), net.vip(53)),
            udp(net.other(1, 1), net.rs(1, 53)),
        )
        .after([&syn])
        .max_flows(1),
        // Ports 1 to 511 of the client lead to port 53 of server 1 already; a second VIP leads there, too.
        Row::drop("no source port is left", spec(), udp(net.client(5), net.vip2(53)), DropReason::PortCollision)
            .after((1..=511).map(|port| udp(net.client(port), net.vip(53)))),
    ];
    rows.extend(clamping(net));
    rows.extend(headers(net));
    rows
}

/// The device's MTU bounds the MSS of SYN and SYN-ACK.
fn clamping(net: Net) -> Vec<Row> {
    let spec = || SnapshotSpec { mtu: 1400, ..net.spec() };
    let clamped = if net.is_v4() { 1360 } else { 1340 };
    let (client, vip, rs) = (net.client(40000), net.vip(80), net.rs(1, 8080));
    let odd = |value: u16| [&[1][..], &mss(value), &[1, 1, 1]].concat();
    let syn = |options: &[u8]| tcp(client, vip).syn().tcp_options(options);
    let out = |options: &[u8]| syn(options).with_dst(rs);
    let syn_ack = |options: &[u8]| tcp(rs, client).flags(SYN | ACK).seq(5000, 1001).tcp_options(options);
    vec![
        Row::forward("the MSS of a SYN is clamped", spec(), syn(&mss(1460)), out(&mss(clamped))),
        Row::forward("at an odd place as well", spec(), syn(&odd(1460)), out(&odd(clamped))),
        Row::forward("behind other options", spec(), syn(&[&[4, 2, 3, 3, 7, 1][..], &mss(9000)].concat()), {
            out(&[&[4, 2, 3, 3, 7, 1][..], &mss(clamped)].concat())
        }),
        Row::forward("a small MSS stays", spec(), syn(&mss(536)), out(&mss(536))),
        Row::forward("with a partial checksum", spec(), syn(&odd(1460)).partial(), out(&odd(clamped))),
        Row::forward("the MSS of a SYN-ACK", spec(), syn_ack(&mss(1460)), syn_ack(&mss(clamped)).with_src(vip))
            .after([syn(&mss(1460))]),
        Row::forward("no MSS, none added", spec(), syn(&[]), out(&[])),
        Row::forward(
            "without SYN the option means nothing",
            spec(),
            syn(&mss(1460)).flags(ACK),
            out(&mss(1460)).flags(ACK),
        )
        .after([syn(&[])]),
    ]
}

/// IPv4 options and IPv6 extension headers are walked, and stay.
fn headers(net: Net) -> Vec<Row> {
    let packet = udp(net.client(40000), net.vip(53)).payload("query");
    let server = net.rs(1, 53);
    if net.is_v4() {
        let full = packet.clone().ip_options(&[1; 40]);
        let timestamp = packet.clone().ip_options(&[68, 8, 5, 0, 1, 2, 3, 4]);
        return vec![
            Row::forward("40 bytes of IPv4 options", net.spec(), &full, full.with_dst(server)),
            Row::forward("a timestamp option", net.spec(), &timestamp, timestamp.with_dst(server)),
            Row::forward("options and a partial checksum", net.spec(), full.partial(), full.with_dst(server)),
        ];
    }
    let with = |extensions: &[Extension]| packet.clone().extensions(extensions);
    let chains: [&[Extension]; 6] = [
        &[Extension::HopByHop(0)],
        &[Extension::Destination(2)],
        &[Extension::Routing(1)],
        &[Extension::AtomicFragment],
        &[Extension::Authentication(3)],
        &[Extension::HopByHop(1), Extension::Routing(0), Extension::AtomicFragment, Extension::Authentication(1)],
    ];
    let row = |chain: &&[Extension]| {
        Row::forward(&format!("extensions {chain:?}"), net.spec(), with(chain), with(chain).with_dst(server))
    };
    let partial = with(&[Extension::HopByHop(0)]);
    let mut rows: Vec<Row> = chains.iter().map(row).collect();
    rows.push(Row::forward(
        "extensions and a partial checksum",
        net.spec(),
        partial.partial(),
        partial.with_dst(server),
    ));
    rows
}

#[test]
fn a_source_port_that_is_taken_is_translated() {
    for net in Net::BOTH {
        // Both services lead to port 53 of server 1; the client uses one source port for both.
        let (client, rs) = (net.client(40000), net.rs(1, 53));
        let first = udp(client, net.vip(53)).payload("first");
        let second = udp(client, net.vip2(53)).payload("second");
        let mut engine = crate::support::world::engine(crate::support::world::snapshot(net.spec().services), 16);
        let mut send = |packet: &dyn Packet| {
            let mut buf = packet.buf();
            assert_eq!(engine.handle_packet(gatun::time::Instant::ZERO, &mut buf), Verdict::Forward);
            buf.packet().to_vec()
        };
        assert_eq!(send(&first), first.with_dst(rs).bytes());
        let sent = send(&second);
        let seen = crate::oracle::decode(&sent).expect("a packet");
        let (sport, dport) = seen.ports.expect("UDP");
        assert!(sport != 40000 && sport >= 1024 && dport == 53, "{sport} {dport}");
        let moved = (client.ip(), sport);
        assert_eq!(sent, second.with_src(moved).with_dst(rs).bytes());
        // Each answer finds its way back, the translated port undone.
        assert_eq!(send(&udp(rs, client)), udp(net.vip(53), client).bytes());
        assert_eq!(send(&udp(rs, moved)), udp(net.vip2(53), client).bytes());
        // And so does an error about the second.
        let error = crate::support::packet::IcmpError::PortUnreachable;
        let about = |src, dst, quoted: &[u8]| crate::support::packet::icmp_error(src, dst, error, quoted);
        assert_eq!(send(&about(rs, client, &sent)), about(net.vip2(0), client, &second.bytes()).bytes());
        engine.check_invariants();
    }
}

#[test]
fn low_source_ports_stay_low() {
    let net = Net::V4;
    for (port, range) in [(5u16, 1..512u16), (600, 512..1024), (40000, 1024..65535)] {
        let mut engine = crate::support::world::engine(crate::support::world::snapshot(net.spec().services), 16);
        for vip in [net.vip(53), net.vip2(53)] {
            let mut buf = udp(net.client(port), vip).buf();
            assert_eq!(engine.handle_packet(gatun::time::Instant::ZERO, &mut buf), Verdict::Forward);
            let sport = crate::oracle::decode(buf.packet()).expect("a packet").ports.expect("UDP").0;
            assert!(range.contains(&sport), "{port} became {sport}");
        }
    }
}

#[test]
fn the_transport_of_a_row_is_what_it_says() {
    // The builder's own sanity: a row that builds the same packet twice shows nothing.
    let net = Net::V4;
    assert!(matches!(udp(net.client(1), net.vip(2)).transport, Transport::Udp { checksum: true }));
    assert_ne!(tcp(net.client(1), net.vip(2)).bytes(), tcp(net.client(1), net.vip2(2)).bytes());
}
