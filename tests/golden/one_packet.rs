//! Services that schedule every packet by itself.

use std::net::SocketAddr;

use gatun::explain::{Explained, explain};
use gatun::service::{Method, Persistence, PortRange, Protocols, ServerSpec, Snapshot, SnapshotError, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Encapsulation, PacketBuf, Protocol, Tuple, unwrap};

use crate::gateway::{Gateway, find};
use crate::refusal::error;
use crate::support::oracle;
use crate::support::packet::{IcmpError, icmp_error, udp};
use crate::support::world::{ServiceSpecExt, service};
use crate::{Net, Row};

/// UDP 53 of the VIP to servers 1 and 2 at 5353, and UDP 7000-7009 to server 3 from 9000 on.
fn spec(net: Net, method: Method) -> SnapshotSpec {
    let ip = |end: SocketAddr| end.ip().to_string();
    let port = |port| (method == Method::Nat).then_some(port);
    let vip = ip(net.vip(0));
    let range = PortRange { first: 7000, last: 7009 };
    let mut services =
        vec![
            service("dns", &vip, PortRange::single(53), Protocols::Udp)
                .server(&ip(net.rs(1, 0)), port(5353), 1)
                .server(&ip(net.rs(2, 0)), port(5353), 1),
            service("range", &vip, range, Protocols::Udp).server(&ip(net.rs(3, 0)), port(9000), 1),
        ];
    for service in &mut services {
        (service.one_packet, service.method, service.tunnel) = (true, method, Encapsulation::Ipip);
    }
    let tunnel_sources =
        (1..4).map(|number| (Addr::from(net.rs(number, 0).ip()), Addr::from(net.inner_router().ip()))).collect();
    SnapshotSpec { services, tunnel_sources, ..SnapshotSpec::default() }
}

fn gateway(net: Net, method: Method) -> Gateway {
    Gateway::new(net, |all| *all = spec(net, method))
}

/// Those that can do without flows: `fullnat` needs one for each port that it gives away.
const METHODS: [Method; 3] = [Method::Nat, Method::Direct, Method::Tunnel];

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let nat = || spec(net, Method::Nat);
    let (client, vip) = (net.client(40000), net.vip(53));
    let (query, answer) = (udp(client, vip).payload("query"), udp(net.rs(2, 5353), client).payload("answer"));
    let hop = SnapshotSpec { is_hop: true, ..nat() };
    let forwarded = query.with_dst(net.rs(1, 5353));
    vec![
        Row::forward("a query goes to a server", nat(), &query, &forwarded),
        Row::forward("the next one goes to the next", nat(), &query, query.with_dst(net.rs(2, 5353))).after([&query]),
        Row::forward("an answer comes from the VIP", nat(), &answer, answer.with_src(vip)),
        Row::forward(
            "by a range, at the same distance",
            nat(),
            udp(client, net.vip(7003)),
            udp(client, net.rs(3, 9003)),
        ),
        Row::forward("and back", nat(), udp(net.rs(3, 9009), client), udp(net.vip(7009), client)),
        Row::pass("another port of the server's", nat(), udp(net.rs(3, 9010), client)),
        Row::pass("another host", nat(), udp(net.stranger(5353), client)),
        Row::forward("a hop counts the TTL down", hop.clone(), &query, forwarded.clone().ttl(63)),
        Row::forward("on the way back as well", hop, &answer, answer.with_src(vip).ttl(63)),
        Row::refuse(
            "a TTL of one ends here",
            nat(),
            query.clone().ttl(1),
            DropReason::TtlExceeded,
            error(net, vip, IcmpError::TimeExceeded, &query.clone().ttl(1).bytes()),
        ),
        Row::refuse(
            "an answer's, too",
            nat(),
            answer.clone().ttl(1),
            DropReason::TtlExceeded,
            error_to(net.rs(2, 0), vip, &answer.clone().ttl(1).bytes()),
        ),
        Row::forward(
            "an error about a query is translated",
            nat(),
            icmp_error(net.rs(1, 0), client, IcmpError::PortUnreachable, &forwarded.bytes()),
            icmp_error(vip, client, IcmpError::PortUnreachable, &query.bytes()),
        ),
        Row::drop(
            "whose answer an error is about is not known",
            nat(),
            icmp_error(client, vip, IcmpError::PortUnreachable, &answer.with_src(vip).bytes()),
            DropReason::IcmpNoFlow,
        ),
        Row::forward("a super-packet stays whole", nat(), query.super_packet(2), forwarded.super_packet(2)),
    ]
}

fn error_to(to: SocketAddr, from: SocketAddr, quoted: &[u8]) -> crate::support::packet::Build {
    crate::refusal::answer(crate::support::packet::Build {
        tos: 0xc0 * u8::from(to.is_ipv4()),
        ..icmp_error(from, (to.ip(), 0), IcmpError::TimeExceeded, quoted)
    })
}

#[test]
fn packets_are_spread_one_by_one_and_no_flow_is_kept() {
    for (net, method) in Net::BOTH.into_iter().flat_map(|net| METHODS.map(move |method| (net, method))) {
        let mut gateway = gateway(net, method);
        for _ in 0..10 {
            gateway.ask(1, 1).expect("served");
        }
        let admitted: Vec<u64> = gateway.service("dns").servers.iter().map(|server| server.load.admitted()).collect();
        assert_eq!((admitted, gateway.flows().len()), (vec![5, 5], 0), "{net:?} {method:?}");
        let id = gateway.server("dns", 0).id;
        assert_eq!(gateway.engine.traffic(id).to_server.packets, 5);
        assert!(gateway.server("dns", 0).load.is_idle());
        gateway.server("dns", 0).state.set_up(gateway.now, false);
        gateway.ask(1, 1).expect("served");
        assert_eq!(gateway.server("dns", 1).load.admitted(), 6, "a dead server gets nothing from the next packet on");
    }
}

#[test]
fn the_client_of_one_packet_may_have_a_home() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat);
    gateway.reload(|spec| find(spec, "dns").persistence = Some(Persistence::DEFAULT));
    let servers: Vec<_> = (0..6).map(|n| gateway.ask(n % 2, 1)).collect();
    assert_eq!(servers[..2], servers[2..4]);
    assert_ne!(servers[0], servers[1]);
    let entries = gateway.service("dns").persisted.as_ref().expect("persistent").entries(gateway.now, 0, 9).0;
    assert_eq!((entries.len(), entries[0].flows), (2, 0));
}

#[test]
fn fragments_go_where_their_first_one_went() {
    for (net, method) in Net::BOTH.into_iter().flat_map(|net| METHODS.map(move |method| (net, method))) {
        let mut gateway = gateway(net, method);
        let (client, vip) = (net.client(40000), net.vip(53));
        for round in 0..4 {
            let query = udp(client, vip).payload([7; 300]).id(100 + round);
            let mut fragments = query.fragments(64);
            // The first one is not the first to come.
            fragments.swap(0, 2);
            let mut out: Vec<PacketBuf> = Vec::new();
            for fragment in fragments {
                let (verdict, buf) = gateway.feed(PacketBuf::from_packet(&fragment));
                out.extend((verdict == Verdict::Forward).then_some(buf));
                out.extend(gateway.sent().into_iter().map(|(_, buf)| buf));
            }
            assert_eq!(out.len(), 5);
            let to: Vec<_> = out
                .iter_mut()
                .map(|buf| {
                    if method == Method::Tunnel {
                        let outer = oracle::decode(buf.packet()).expect("a packet").dst;
                        unwrap(buf, |_| false).expect("a tunnelled packet");
                        return (outer, 0);
                    }
                    let packet = oracle::decode(buf.packet()).expect("a packet");
                    (buf.hop.map_or(packet.dst, |hop| hop.ip()), packet.fragment.expect("one").0)
                })
                .collect();
            assert!(to.iter().all(|one| *one == to[0]), "{net:?} {method:?}: {to:?}");
            assert_eq!(to[0].0, net.rs(1 + (round % 2) as u8, 0).ip());
        }
        if method == Method::Nat {
            let answer = udp(net.rs(1, 5353), client).payload([8; 300]).id(7);
            for fragment in answer.fragments(64) {
                let (verdict, buf) = gateway.feed(PacketBuf::from_packet(&fragment));
                assert_eq!(
                    (verdict, oracle::decode(buf.packet()).expect("a packet").src),
                    (Verdict::Forward, vip.ip())
                );
            }
        }
    }
}

#[test]
fn a_narrow_way_to_a_tunnelled_server_is_learned_and_told() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Tunnel);
    let query =
        crate::support::packet::Build { dont_fragment: true, ..udp(net.client(1), net.vip(53)).payload([1; 1400]) };
    let (verdict, sent) = gateway.feed(query.buf());
    assert_eq!(verdict, Verdict::Forward);
    let outer = oracle::complete(&sent);
    let router = net.stranger(0);
    let (verdict, buf) = gateway.feed(icmp_error(router, net.inner_router(), IcmpError::TooBig(1300), &outer).buf());
    let told = oracle::decode(buf.packet()).expect("a packet");
    assert_eq!((verdict, told.dst, told.src), (Verdict::Forward, net.client(0).ip(), net.vip(0).ip()));
    assert_eq!(gateway.server("dns", 0).path.mtu(gateway.now, 1500), 1300);
    // About another service's packet, or to another server: forged.
    let other = udp(net.client(1), net.vip(9)).payload([1; 1400]);
    let mut forged = outer.clone();
    forged[20..].copy_from_slice(&crate::support::packet::Build { dont_fragment: true, ..other }.bytes());
    let error = icmp_error(router, net.inner_router(), IcmpError::TooBig(1290), &forged);
    assert_eq!(gateway.feed(error.buf()).0, Verdict::Drop(DropReason::IcmpNoFlow));
}

#[test]
fn answers_that_cannot_be_told_apart_are_a_fault_of_the_configuration() {
    let net = Net::V4;
    let build = |change: fn(&mut SnapshotSpec)| {
        let mut spec = spec(net, Method::Nat);
        let mut second = find(&mut spec, "dns").clone();
        (second.name, second.vip) = ("second".into(), Addr::from(net.vip2(0).ip()));
        spec.services.push(second);
        change(&mut spec);
        Snapshot::build(spec, None).map(|_| ())
    };
    let ambiguous = build(|_| ());
    let Err(SnapshotError::AmbiguousAnswers { first, second, server, port }) = &ambiguous else {
        panic!("{ambiguous:?}")
    };
    assert_eq!(
        (first.as_str(), second.as_str(), *server, *port),
        ("dns", "second", Addr::from(net.rs(1, 0).ip()), 5353)
    );
    assert!(build(|spec| find(spec, "second").servers.iter_mut().for_each(|server| server.port = Some(5354))).is_ok());
    assert!(build(|spec| find(spec, "second").one_packet = false).is_ok());
    assert!(
        build(|spec| {
            let second = find(spec, "second");
            second.method = Method::Direct;
            second.servers.iter_mut().for_each(|server| server.port = None);
        })
        .is_ok()
    );
    // Ranges that meet, and a sorry server.
    assert!(build(|spec| find(spec, "range").servers[0].address = find(spec, "dns").servers[0].address).is_err());
    let sorry = |spec: &mut SnapshotSpec, port| {
        let address = find(spec, "dns").servers[0].address;
        find(spec, "second").servers.clear();
        find(spec, "second").sorry =
            Some(ServerSpec { name: "sorry".into(), address, port: Some(port), ..ServerSpec::default() });
    };
    assert!(build(|spec| drop(find(spec, "second").servers.drain(..))).is_ok());
    let mut with_sorry = spec(net, Method::Nat);
    with_sorry.services.push({
        let mut second = find(&mut with_sorry.clone(), "dns").clone();
        (second.name, second.vip) = ("second".into(), Addr::from(net.vip2(0).ip()));
        second
    });
    sorry(&mut with_sorry, 5353);
    assert!(Snapshot::build(with_sorry.clone(), None).is_err());
    sorry(&mut with_sorry, 5355);
    assert!(Snapshot::build(with_sorry, None).is_ok());
}

#[test]
fn it_is_explained_as_it_is_done() {
    let net = Net::V4;
    let mut gateway = gateway(net, Method::Nat);
    let tuple = |src: SocketAddr, dst: SocketAddr| Tuple {
        src: Addr::from(src.ip()),
        dst: Addr::from(dst.ip()),
        sport: src.port(),
        dport: dst.port(),
        protocol: Protocol::UDP,
    };
    for n in 0..4 {
        let query = tuple(net.other(n, 1), net.vip(53));
        let Explained::Admitted { choice, translated, .. } = explain(&gateway.engine, gateway.now, &query, 0).outcome
        else {
            panic!("it is forwarded")
        };
        assert!(!choice.keeps_flow);
        let to = SocketAddr::new(translated.dst.ip(), translated.dport);
        assert_eq!(gateway.ask(n, 1), Ok(to));
    }
    let answer = tuple(net.rs(1, 5353), net.client(1));
    let Explained::Answer { service, server, translated } = explain(&gateway.engine, gateway.now, &answer, 0).outcome
    else {
        panic!("it is an answer")
    };
    assert_eq!((service.as_str(), server.as_str()), ("dns", "rs1"));
    assert_eq!((translated.src.ip(), translated.sport), (net.vip(0).ip(), 53));
}
