//! Methods whose replies do not come back: direct routing and tunnels.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::engine::Engine;
use gatun::flow::{TcpState, Trigger, next_blind};
use gatun::service::{Method, PortRange, Protocols, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Encapsulation, PacketBuf};

use crate::support::packet::{ACK, FIN, IcmpError, PSH, RST, SYN, icmp_error, tcp, udp};
use crate::support::world::{self, ServiceSpecExt, addr, service};
use crate::{Net, Row, refusal};

/// The gateway's own address towards its servers, of either family.
const GATEWAY: [&str; 2] = ["10.20.0.1", "fd20::1"];
/// A server of each family at the other end of a tunnel.
const FAR: [&str; 2] = ["10.30.0.14", "fd30::14"];

/// TCP 80 and UDP 53 by `method` to server 1, or for tunnels to the far server of the outer family.
fn spec(net: Net, method: Method, outer: Net, tunnel: Encapsulation) -> SnapshotSpec {
    let vip = net.vip(0).ip().to_string();
    let server = match method {
        Method::Tunnel => FAR[usize::from(!outer.is_v4())].to_owned(),
        _ => net.rs(1, 0).ip().to_string(),
    };
    let add = |name: &str, port, protocols| {
        let mut service = service(name, &vip, PortRange::single(port), protocols).server(&server, None, 1);
        (service.method, service.tunnel) = (method, tunnel);
        service
    };
    let services = vec![add("web", 80, Protocols::Tcp), add("dns", 53, Protocols::Udp)];
    let tunnel_sources = FAR.iter().zip(GATEWAY).map(|(far, own)| (addr(far), addr(own))).collect();
    SnapshotSpec { services, tunnel_sources, ..SnapshotSpec::default() }
}

fn direct(net: Net) -> SnapshotSpec {
    spec(net, Method::Direct, net, Encapsulation::Ipip)
}

pub fn ipip(net: Net, outer: Net) -> SnapshotSpec {
    spec(net, Method::Tunnel, outer, Encapsulation::Ipip)
}

/// Identification of the first outer header to a server that needs one; each packet takes two, more if it may be cut.
pub const FIRST_ID: u16 = 1;

/// `inner` in an outer header, IP-in-IP, built by etherparse. `id` is for a packet without DF.
pub fn wrapped(inner: &[u8], outer: Net, ttl: u8, id: u16) -> Vec<u8> {
    let inner_is_v4 = inner[0] >> 4 == 4;
    let protocol = if inner_is_v4 { 4.into() } else { 41.into() };
    let class = if inner_is_v4 { inner[1] } else { inner[0] << 4 | inner[1] >> 4 };
    let df = !inner_is_v4 || inner[6] & 0x40 != 0;
    let mut bytes = Vec::new();
    match outer {
        Net::V4 => {
            let mut header = etherparse::Ipv4Header::new(inner.len() as u16, ttl, protocol, v4(GATEWAY[0]), v4(FAR[0]))
                .expect("it fits");
            header.dscp = (class >> 2).try_into().expect("six bits");
            header.ecn = (class & 3).try_into().expect("two bits");
            header.dont_fragment = df;
            header.identification = if df { 0 } else { id };
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut bytes).expect("a vector takes it");
        }
        Net::V6 => {
            let header = etherparse::Ipv6Header {
                traffic_class: class,
                payload_length: inner.len() as u16,
                next_header: protocol,
                hop_limit: ttl,
                source: v6(GATEWAY[1]),
                destination: v6(FAR[1]),
                ..Default::default()
            };
            header.write(&mut bytes).expect("a vector takes it");
        }
    }
    bytes.extend(inner);
    bytes
}

fn v4(text: &str) -> [u8; 4] {
    text.parse::<std::net::Ipv4Addr>().expect(text).octets()
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().expect(text).octets()
}

/// The gateway's and the far server's ends of the tunnel.
pub fn ends(outer: Net) -> (SocketAddr, SocketAddr) {
    let end = |list: [&str; 2]| SocketAddr::new(list[usize::from(!outer.is_v4())].parse().expect("an address"), 0);
    (end(GATEWAY), end(FAR))
}

pub fn rows(net: &Net) -> Vec<Row> {
    let mut rows = direct_rows(*net);
    for outer in Net::BOTH {
        rows.extend(tunnel_rows(*net, outer));
    }
    rows
}

fn direct_rows(net: Net) -> Vec<Row> {
    let (client, vip) = (net.client(40000), net.vip(80));
    let server = Addr::from(net.rs(1, 0).ip());
    let syn = tcp(client, vip).syn();
    let data = tcp(client, vip).flags(PSH | ACK).seq(1001, 5001).payload([7; 9000]);
    let reply = tcp(vip, client).flags(SYN | ACK).seq(5000, 1001);
    let hop = SnapshotSpec { is_hop: true, ..direct(net) };
    vec![
        Row::forward("a SYN goes to the server as it is", direct(net), &syn, &syn).hop(server),
        Row::forward("a super-packet stays whole", direct(net), data.super_packet(1460), data.super_packet(1460))
            .after([&syn])
            .hop(server),
        Row::forward("a gateway that is a hop counts the TTL down", hop, &syn, syn.clone().ttl(63)).hop(server),
        Row::forward("a reply that comes by here goes on as it is", direct(net), &reply, &reply).after([&syn]),
        Row::refuse(
            "a TTL of one ends here",
            direct(net),
            syn.clone().ttl(1),
            DropReason::TtlExceeded,
            refusal::error(net, vip, IcmpError::TimeExceeded, &syn.clone().ttl(1).bytes()),
        ),
        Row::forward(
            "an error about the server's packet goes to the server",
            direct(net),
            icmp_error(net.outer_router(), vip, IcmpError::TooBig(1400), &reply.bytes()),
            icmp_error(net.outer_router(), vip, IcmpError::TooBig(1400), &reply.bytes()),
        )
        .after([&syn])
        .hop(server),
    ]
}

fn tunnel_rows(net: Net, outer: Net) -> Vec<Row> {
    let (client, vip) = (net.client(40000), net.vip(80));
    let (own, far) = ends(outer);
    let syn = tcp(client, vip).syn();
    let query = udp(client, net.vip(53)).payload("a question");
    let reply = tcp(vip, client).flags(SYN | ACK).seq(5000, 1001);
    let data = tcp(client, vip).flags(PSH | ACK).seq(1001, 5001);
    let overhead: u16 = if outer.is_v4() { 20 } else { 40 };
    let headers: u16 = if net.is_v4() { 40 } else { 60 };
    let fits = usize::from(1500 - overhead - headers);
    let about =
        |packet: &[u8], error| icmp_error(outer.inner_router(), own, error, &wrapped(packet, outer, 65, FIRST_ID));
    let name = |what: &str| format!("{what}, outer {outer:?}");
    // What the client sent before, and was too big: the rest of the row is a quote of it.
    let sent = data.clone().payload(vec![2; 1380]).bytes();
    let mut rows = vec![
        Row::forward(&name("a SYN is wrapped"), ipip(net, outer), &syn, wrapped(&syn.bytes(), outer, 65, FIRST_ID)),
        Row::forward(&name("UDP is wrapped"), ipip(net, outer), &query, wrapped(&query.bytes(), outer, 65, FIRST_ID)),
        Row::forward(
            &name("a gateway that is a hop counts the TTL down, and copies that"),
            SnapshotSpec { is_hop: true, ..ipip(net, outer) },
            &syn,
            wrapped(&syn.clone().ttl(63).bytes(), outer, 63, FIRST_ID),
        ),
        Row::forward(
            &name("what just fits"),
            ipip(net, outer),
            data.clone().payload(vec![1; fits]),
            wrapped(&data.clone().payload(vec![1; fits]).bytes(), outer, 65, FIRST_ID + 2),
        )
        .after([&syn]),
        Row::forward(&name("a reply that comes by here goes on as it is"), ipip(net, outer), &reply, &reply)
            .after([&syn]),
        Row::forward(
            &name("host unreachable on the way is told to the client"),
            ipip(net, outer),
            about(
                &syn.bytes(),
                if outer.is_v4() { IcmpError::Raw(3, 1, [0; 4]) } else { IcmpError::Raw(1, 3, [0; 4]) },
            ),
            refusal::error(
                net,
                vip,
                if net.is_v4() { IcmpError::Raw(3, 1, [0; 4]) } else { IcmpError::Raw(1, 3, [0; 4]) },
                &syn.bytes(),
            ),
        )
        .after([&syn]),
        Row::forward(
            &name("too big on the way is told with what fits inside"),
            ipip(net, outer),
            about(&sent, IcmpError::TooBig(1400)),
            refusal::error(net, vip, IcmpError::TooBig(1400 - overhead), quote(net, &sent)),
        )
        .after([&syn, &data.clone().payload(vec![2; 1380])]),
        Row::drop(
            &name("an error about no flow"),
            ipip(net, outer),
            about(&syn.bytes(), IcmpError::TooBig(1400)),
            DropReason::IcmpNoFlow,
        ),
    ];
    if net == outer {
        let itself = tcp(SocketAddr::new(far.ip(), 9), vip).syn();
        let name = name("the tunnel's end is no client of its own");
        let unreachable = if net.is_v4() { IcmpError::Raw(3, 1, [0; 4]) } else { IcmpError::Raw(1, 3, [0; 4]) };
        let told = refusal::error(net, vip, unreachable, &itself.bytes()).with_dst(SocketAddr::new(far.ip(), 0));
        rows.push(Row::refuse(&name, ipip(net, outer), itself, DropReason::TunnelLoop, told));
    }
    let big = data.clone().payload(vec![1; fits + 1]);
    rows.push(
        Row::refuse(
            &name("what does not fit is refused with what does"),
            ipip(net, outer),
            with_df(big.bytes()),
            DropReason::TooBig,
            refusal::error(net, vip, IcmpError::TooBig(1500 - overhead), quote(net, &with_df(big.bytes()))),
        )
        .after([&syn]),
    );
    let mut nowhere = ipip(net, outer);
    nowhere.tunnel_sources.clear();
    let reset = refusal::answer(refusal::without_window(tcp(vip, client).flags(RST | ACK).seq(0, 1001)));
    rows.push(Row::refuse(&name("no way to the only server"), nowhere, &syn, DropReason::NoServer, reset));
    rows
}

/// As much of a packet as an error quotes: 576 bytes in all, over IPv6 1280.
fn quote(net: Net, packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(if net.is_v4() { 576 - 28 } else { 1280 - 48 })]
}

/// With "do not fragment" set, over IPv4.
fn with_df(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[6] |= 0x40;
        crate::oracle::fix_ip_checksum(&mut packet);
    }
    packet
}

/// Columns by state, as IPVS has them for what it only sees the client's side of.
const INPUT_ONLY: &str = "
        NO ES SS SR FW TW CL CW LA LI SA
    syn SR ES ES SR SR SR SR SR SR SR SR
    fin CL FW SS TW FW TW CL CW LA LI TW
    ack ES ES SS ES FW TW CL CW CL LI ES
    rst CL CL CL SR CL CL CL CL LA LI CL
";

#[test]
fn the_table_of_one_side_is_that_of_ipvs() {
    let mut lines = INPUT_ONLY.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let columns: Vec<TcpState> = lines.next().expect("a head").into_iter().map(crate::tcp_states::state).collect();
    for (line, trigger) in lines.zip([Trigger::Syn, Trigger::Fin, Trigger::Ack, Trigger::Rst]) {
        for (from, to) in columns.iter().zip(&line[1..]) {
            assert_eq!(next_blind(*from, trigger), crate::tcp_states::state(to), "{from:?} on {}", line[0]);
        }
    }
}

fn send(engine: &mut Engine, now: Instant, packet: PacketBuf) -> Verdict {
    let verdict = engine.handle_packet(now, &mut packet.clone());
    engine.check_invariants();
    verdict
}

fn state(engine: &Engine, now: Instant) -> (&'static str, bool, bool) {
    let (flows, _) = engine.flows(now, 0, 2);
    let [flow] = &flows[..] else { panic!("{} flows", flows.len()) };
    (flow.state_word().expect("TCP"), flow.replied, flow.assured)
}

#[test]
fn a_connection_of_which_only_the_clients_side_is_seen() {
    for net in Net::BOTH {
        let mut engine = world::engine(snapshot(direct(net)), 16);
        let now = Instant::from_secs(1);
        let (client, vip) = (net.client(40000), net.vip(80));
        let mut sent = |flags, seq, ack| {
            assert_eq!(send(&mut engine, now, tcp(client, vip).flags(flags).seq(seq, ack).buf()), Verdict::Forward);
            state(&engine, now)
        };
        assert_eq!(sent(SYN, 1000, 0), ("SYN_SENT", false, false));
        assert_eq!(sent(ACK, 900_000_000, 5001), ("SYN_SENT", false, false), "it does not go on from the SYN");
        assert_eq!(sent(ACK, 1001, 5001), ("ESTABLISHED", false, false));
        assert_eq!(sent(RST, 900_000_000, 0), ("ESTABLISHED", false, false), "a forged RST");
        assert_eq!(sent(FIN | ACK, 1001, 5001), ("FIN_WAIT", false, false));
        assert_eq!(sent(ACK, 1002, 5002), ("FIN_WAIT", false, false));
        // It ends by its timeout, as IPVS has it.
        let timeout = SnapshotSpec::default().timeouts.tcp_fin_wait;
        engine.handle_timeout(now + timeout + Duration::from_secs(1));
        assert_eq!(engine.occupancy().0, 0);
    }
}

#[test]
fn udp_of_which_only_questions_are_seen_gives_way_to_a_flood_last() {
    let net = Net::V4;
    let mut engine = world::engine(snapshot(direct(net)), 4);
    let now = Instant::from_secs(1);
    let ask = |n: u8| udp(net.other(n, 5353), net.vip(53)).payload("?").buf();
    for n in 0..2 {
        send(&mut engine, now, ask(n));
        send(&mut engine, now, ask(n));
    }
    for n in 10..200 {
        assert_eq!(send(&mut engine, now, ask(n)), Verdict::Forward);
    }
    let (flows, _) = engine.flows(now, 0, 16);
    let kept = |n: u8| flows.iter().any(|flow| flow.original.src == Addr::from(net.other(n, 0).ip()));
    assert!(kept(0) && kept(1) && flows.len() == 4, "{flows:?}");
}

#[test]
fn the_path_mtu_is_learned_once_and_told_to_all() {
    for (net, outer) in [(Net::V4, Net::V4), (Net::V4, Net::V6), (Net::V6, Net::V4), (Net::V6, Net::V6)] {
        let mut engine = world::engine(snapshot(ipip(net, outer)), 16);
        let now = Instant::from_secs(1);
        let (own, _) = ends(outer);
        let overhead: u16 = if outer.is_v4() { 20 } else { 40 };
        let syn = |n: u8| tcp(net.other(n, 40000), net.vip(80)).syn();
        let data = |n: u8| {
            let data = tcp(net.other(n, 40000), net.vip(80)).flags(ACK).seq(1001, 5001).payload(vec![5; 1380]);
            PacketBuf::from_packet(&with_df(data.bytes()))
        };
        (0..2).for_each(|n| assert_eq!(send(&mut engine, now, syn(n).buf()), Verdict::Forward));
        assert_eq!(send(&mut engine, now, data(1)), Verdict::Forward);
        let large = wrapped(data(0).packet(), outer, 60, FIRST_ID);
        let error = icmp_error(outer.inner_router(), own, IcmpError::TooBig(1400), &large).buf();
        assert_eq!(send(&mut engine, now, data(0)), Verdict::Forward);
        assert_eq!(send(&mut engine, now, error), Verdict::Forward);
        // Another client of the same server is told by the gateway itself.
        let mut refused = data(1);
        assert_eq!(engine.handle_packet(now, &mut refused), Verdict::Refuse(DropReason::TooBig));
        let told = refusal::error(net, net.vip(80), IcmpError::TooBig(1400 - overhead), quote(net, data(1).packet()));
        let told = told.with_dst(net.other(1, 0));
        assert_eq!(refused.packet(), told.bytes());
        // What nobody can mean changes nothing: less than any path carries, or what the quoted packet would have fitted.
        let server = engine.snapshot().all_servers().next().expect("a server").clone();
        for nonsense in [if outer.is_v4() { 67 } else { 1279 }, 1399] {
            let small = wrapped(&syn(0).bytes(), outer, 60, FIRST_ID);
            let quoted = if nonsense == 1399 { &small } else { &large };
            let error = icmp_error(outer.inner_router(), own, IcmpError::TooBig(nonsense), quoted);
            assert_eq!(send(&mut engine, now, error.buf()), Verdict::Drop(DropReason::UnsupportedIcmp), "{nonsense}");
        }
        // Nor does what quotes a sequence number that the client did not send.
        let forged = tcp(net.other(0, 40000), net.vip(80)).flags(ACK).seq(2_000_000_000, 1).payload(vec![5; 1380]);
        let forged = wrapped(&forged.bytes(), outer, 60, FIRST_ID);
        let forged = icmp_error(outer.inner_router(), own, IcmpError::TooBig(1300), &forged);
        assert_eq!(send(&mut engine, now, forged.buf()), Verdict::Drop(DropReason::IcmpNoFlow));
        assert_eq!(server.path.mtu(now, 1500), 1400);
        // All is forgotten after ten minutes.
        let later = now + Duration::from_secs(601);
        assert_eq!(send(&mut engine, later, data(1)), Verdict::Forward);
    }
}

#[test]
fn an_unreachable_server_of_direct_routing_gets_no_new_flow_and_its_clients_are_told() {
    for net in Net::BOTH {
        let snapshot = snapshot(direct(net));
        let mut engine = world::engine(snapshot.clone(), 16);
        let now = Instant::from_secs(1);
        let syn = tcp(net.client(40000), net.vip(80)).syn();
        assert_eq!(send(&mut engine, now, syn.buf()), Verdict::Forward);
        snapshot.all_servers().for_each(|server| server.path.set_unreachable(true));
        assert_eq!(send(&mut engine, now, syn.buf()), Verdict::Refuse(DropReason::ServerUnreachable));
        let new = tcp(net.other(1, 40000), net.vip(80)).syn();
        assert_eq!(send(&mut engine, now, new.buf()), Verdict::Refuse(DropReason::NoServer));
        snapshot.all_servers().for_each(|server| server.path.set_unreachable(false));
        assert_eq!(send(&mut engine, now, syn.buf()), Verdict::Forward);
    }
}

#[test]
fn fragments_go_the_way_of_their_first_one() {
    for net in Net::BOTH {
        for method in [Method::Direct, Method::Tunnel] {
            let mut engine = world::engine(snapshot(spec(net, method, net, Encapsulation::Ipip)), 16);
            let fragments = udp(net.client(5353), net.vip(53)).payload(vec![3; 4000]).id(77).fragments(1400);
            // The last one first: it is held until its first comes.
            let mut last = PacketBuf::from_packet(&fragments[2]);
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut last), Verdict::Held);
            for fragment in &fragments[..2] {
                let mut buf = PacketBuf::from_packet(fragment);
                assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
                check_sent(method, net, &buf, fragment);
            }
            let released = engine.poll_transmit().expect("the one that was held");
            check_sent(method, net, &released, &fragments[2]);
            assert!(engine.poll_transmit().is_none());
        }
    }
}

fn check_sent(method: Method, net: Net, buf: &PacketBuf, packet: &[u8]) {
    match method {
        Method::Direct => {
            assert_eq!((buf.packet(), buf.hop), (packet, Some(Addr::from(net.rs(1, 0).ip()))));
        }
        _ => {
            let header = if net.is_v4() { 20 } else { 40 };
            assert_eq!(&buf.packet()[header..], packet);
            assert_eq!(buf.hop, None);
        }
    }
}

pub fn snapshot(spec: SnapshotSpec) -> std::sync::Arc<gatun::service::Snapshot> {
    std::sync::Arc::new(gatun::service::Snapshot::build(spec, None).expect("a valid snapshot"))
}

#[test]
fn gue_stands_in_udp() {
    for (net, outer) in [(Net::V4, Net::V4), (Net::V6, Net::V6)] {
        let tunnel = Encapsulation::Gue { port: 7000 };
        let mut engine = world::engine(snapshot(spec(net, Method::Tunnel, outer, tunnel)), 16);
        let syn = tcp(net.client(40000), net.vip(80)).syn();
        let mut buf = syn.buf();
        assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
        let sliced = etherparse::SlicedPacket::from_ip(buf.packet()).expect("IP");
        let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("{sliced:?}") };
        assert_eq!(udp.destination_port(), 7000);
        let protocol = if net.is_v4() { 4 } else { 41 };
        assert_eq!((&udp.payload()[..4], &udp.payload()[4..]), (&[0, protocol, 0, 0][..], &syn.bytes()[..]));
    }
}

#[test]
fn a_path_mtu_is_learned_from_a_router_that_quotes_little() {
    for outer in Net::BOTH {
        let mut engine = world::engine(snapshot(ipip(Net::V4, outer)), 16);
        let now = Instant::from_secs(1);
        let (own, _) = ends(outer);
        let data = tcp(Net::V4.client(40000), Net::V4.vip(80)).flags(ACK).payload(vec![5; 1420]);
        let quoted = &wrapped(&data.bytes(), outer, 60, FIRST_ID)[..if outer.is_v4() { 28 } else { 48 }];
        let error = |mtu| icmp_error(outer.inner_router(), own, IcmpError::TooBig(mtu), quoted).buf();
        let path = engine.snapshot().all_servers().next().expect("a server").path.clone();
        // Nobody who proves so little is believed to have a path that common links do not have.
        assert_eq!(send(&mut engine, now, error(1000)), Verdict::Drop(DropReason::IcmpNoFlow));
        assert_eq!(path.mtu(now, 1500), 1500);
        assert_eq!(send(&mut engine, now, error(1400)), Verdict::Drop(DropReason::IcmpNoFlow));
        assert_eq!(path.mtu(now, 1500), 1400);
    }
}

#[test]
fn blind_connections_give_way_when_the_table_is_full() {
    let net = Net::V4;
    let mut engine = world::engine(snapshot(direct(net)), 4);
    let (now, vip) = (Instant::from_secs(1), net.vip(80));
    let client = |engine: &mut Engine, n: u8, at: Instant, segments: &[(u8, u32)]| {
        for (flags, seq) in segments {
            let segment = tcp(net.other(n, 40000), vip).flags(*flags).seq(*seq, 1);
            assert_eq!(send(engine, at, segment.buf()), Verdict::Forward, "client {n}");
        }
    };
    let open = [(SYN, 1000), (ACK, 1001)];
    // Four that ended as they should; more come, and find room.
    for n in 0..8 {
        client(&mut engine, n, now, &open);
        client(&mut engine, n, now, &[(FIN | ACK, 1001), (ACK, 1002)]);
    }
    // Four that may be forged; more come, and find the place of the one that has been silent for longest.
    (10..14).for_each(|n| client(&mut engine, n, now + Duration::from_secs(u64::from(n)), &open));
    client(&mut engine, 10, now + Duration::from_secs(30), &[(ACK, 1001)]);
    client(&mut engine, 20, now + Duration::from_secs(31), &[(SYN, 1000)]);
    let (flows, _) = engine.flows(now, 0, 16);
    let has = |n: u8| flows.iter().any(|flow| flow.original.src == Addr::from(net.other(n, 0).ip()));
    assert!(has(10) && !has(11) && has(12) && has(20), "{flows:?}");
}

#[test]
fn a_syn_over_a_finished_blind_connection_begins_a_new_one() {
    let net = Net::V4;
    let mut engine = world::engine(snapshot(direct(net)), 4);
    let now = Instant::from_secs(1);
    let client = |flags, seq| tcp(net.client(40000), net.vip(80)).flags(flags).seq(seq, 1).buf();
    for (flags, seq) in [(SYN, 1000), (ACK, 1001), (FIN | ACK, 1001), (ACK, 1002)] {
        send(&mut engine, now, client(flags, seq));
    }
    // With a number that lies behind, as another client behind the same address may have.
    send(&mut engine, now, client(SYN, 500));
    assert_eq!(state(&engine, now).0, "SYN_SENT");
    send(&mut engine, now, client(ACK, 501));
    assert_eq!((state(&engine, now).0, engine.stats().flows_reused), ("ESTABLISHED", 1));
}

#[test]
fn a_reload_gives_a_tunnel_the_beginning_that_the_host_has_now() {
    let net = Net::V4;
    let mut before = ipip(net, net);
    before.tunnel_sources.clear();
    let before = gatun::service::Snapshot::build(before, None).expect("valid");
    let after = gatun::service::Snapshot::build(ipip(net, net), Some(&before)).expect("valid");
    let (was, is) = (&before.live[0].servers[0], &after.live[0].servers[0]);
    assert_eq!((was.source, is.source, was.id), (None, Some(addr(GATEWAY[0])), is.id));
    assert!(!was.is_available() && is.is_available());
    // A server that is gone from the file stays known as the end of a tunnel while it has flows.
    let mut engine = world::engine(std::sync::Arc::new(after), 16);
    send(&mut engine, Instant::ZERO, tcp(net.client(40000), net.vip(80)).syn().buf());
    let mut without = ipip(net, net);
    without.services.iter_mut().for_each(|service| service.servers.clear());
    without.tunnel_sources.clear();
    let without = gatun::service::Snapshot::build(without, Some(engine.snapshot())).expect("valid");
    assert!(without.is_tunnel_source(addr(GATEWAY[0])));
}

#[test]
fn no_two_shards_give_one_identification() {
    let net = Net::V4;
    let snapshot = snapshot(ipip(net, net));
    let mut seen = std::collections::BTreeSet::new();
    for shard in 0..4 {
        let config = gatun::engine::EngineConfig { shard, shards: 4, max_flows: 16, seed: [1, 2] };
        let mut engine = Engine::new(config, snapshot.clone());
        for n in 0..5 {
            let mut buf = tcp(net.other(n, 40000), net.vip(80)).syn().buf();
            assert_eq!(engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
            assert!(seen.insert(buf.packet()[4..6].to_vec()), "twice: {:?}", &buf.packet()[4..6]);
        }
    }
}
