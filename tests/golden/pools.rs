//! Addresses of pools: several of them, those that come and go, those that are VIPs as well; and what belongs to flows through
//! them besides packets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gatun::command::Command;
use gatun::explain::{Explained, explain};
use gatun::service::{PoolUse, PortRange};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf};

use crate::Net;
use crate::fullnat::{EXHAUSTED, PORT, by_fullnat, close, establish, from, pool, ports, replies, spec, tuple};
use crate::gateway::{Gateway, find};
use crate::support::oracle;
use crate::support::packet::{ACK, FIN, RST, SYN, tcp, udp};

/// The addresses of the pool of every service.
fn set_pool(gateway: &mut Gateway, numbers: &[u8], first: u16, last: u16) {
    let addresses: Vec<Addr> = numbers.iter().map(|number| pool(gateway.net, *number, 0).ip().into()).collect();
    gateway.reload(|spec| {
        for service in &mut spec.services {
            service.pool.addresses.clone_from(&addresses);
            service.pool.ports = PortRange { first, last };
        }
    });
}

#[test]
fn addresses_are_chosen_at_random_and_where_one_has_no_port_another_is_tried() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, PORT, PORT);
        set_pool(&mut gateway, &[0, 1, 2], PORT, PORT);
        assert!((0..3).all(|n| gateway.ask(n, 1).is_ok()));
        assert_eq!(gateway.ask(3, 1), EXHAUSTED);
        let addresses: BTreeSet<Addr> = replies(&gateway).iter().map(|reply| reply.dst).collect();
        assert_eq!(addresses.len(), 3);
        assert_eq!(gateway.engine.pools().len(), 3);
        let mut gateway = by_fullnat(net, 1024, 65535);
        set_pool(&mut gateway, &[0, 1, 2], 1024, 65535);
        assert!((0..90).all(|n| gateway.ask(n, 1).is_ok()));
        let uses = gateway.engine.pools();
        assert!(uses.len() == 3 && uses.iter().all(|pool| (15..45).contains(&pool.in_use)), "{uses:?}");
    }
}

#[test]
fn an_address_that_a_reload_drops_serves_its_flows_to_their_end() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, PORT, PORT + 1);
        let reply = establish(&mut gateway, 1);
        set_pool(&mut gateway, &[1], PORT, PORT + 1);
        let old = Addr::from(pool(net, 0, 0).ip());
        let kept = gateway.engine.snapshot().pools.of(old).expect("a flow uses it").clone();
        assert!(kept.is_retired && kept.state.count() == 1 && kept.usage == PoolUse::Fullnat);
        assert_eq!(gateway.send(&from(reply).flags(ACK).seq(5001, 1001).payload("more")), Ok(net.other(1, 1)));
        assert!((2..4).all(|n| gateway.ask(n, 1).is_ok()));
        assert!(replies(&gateway)[1..].iter().all(|reply| reply.dst == Addr::from(pool(net, 1, 0).ip())));
        // Its connection ends, and at last it is nobody's.
        close(&mut gateway, 1, reply);
        gateway.wait(gateway.spec.timeouts.tcp_time_wait);
        assert_eq!(kept.state.count(), 0);
        let tidied = gateway.engine.snapshot().tidied().expect("there is something to let go of");
        assert!(tidied.pools.of(old).is_none());
        assert!(tidied.tidied().is_none());
        gateway.engine.apply(gateway.now, Command::Swap(Arc::new(tidied)));
        assert_eq!(gateway.send(&from(reply).flags(ACK).seq(5002, 1002)), Err(Verdict::Pass));
        // It comes back, under another number perhaps.
        set_pool(&mut gateway, &[0], PORT, PORT);
        assert!(gateway.ask(9, 1).is_ok());
        assert_eq!(gateway.engine.snapshot().pools.of(old).expect("it is back").state.count(), 1);
    }
}

#[test]
fn ports_of_another_range_are_given_away_after_a_reload() {
    let net = Net::V4;
    let mut gateway = by_fullnat(net, 5000, 5009);
    let live = establish(&mut gateway, 1);
    assert!((0..5).all(|n| gateway.ask(n, 1).is_ok()));
    set_pool(&mut gateway, &[0], 6000, 6002);
    assert!((10..13).all(|n| gateway.ask(n, 1).is_ok()));
    assert_eq!(gateway.ask(13, 1), EXHAUSTED);
    let new: BTreeSet<u16> = replies(&gateway)[6..].iter().map(|reply| reply.dport).collect();
    assert_eq!(new, (6000..=6002).collect());
    assert_eq!(gateway.send(&from(live).flags(ACK).seq(5001, 1001)), Ok(net.other(1, 1)));
    // Back again: what is in use, or waits, is not given away.
    set_pool(&mut gateway, &[0], 5000, 5009);
    let all = gatun::command::FlowFilter { src: Some((net.other(0, 0).ip().into(), 32)), ..Default::default() };
    gateway.engine.apply(gateway.now, Command::Delete { filter: all, cursor: 0 });
    assert!((20..25).all(|n| gateway.ask(n, 1).is_ok()));
    assert_eq!(gateway.ask(25, 1), EXHAUSTED);
    let distinct: std::collections::HashSet<_> = replies(&gateway).into_iter().collect();
    assert_eq!((distinct.len(), ports(&gateway).1), (gateway.flows().len(), 1));
    gateway.wait(Duration::from_secs(5));
    assert!(gateway.ask(25, 1).is_ok());
}

#[test]
fn no_port_of_a_former_range_is_given_away() {
    let net = Net::V4;
    let mut gateway = by_fullnat(net, 2000, 2001);
    let syn = |n| tcp(net.other(n, 1), net.vip(53)).syn();
    assert!((0..2).all(|n| gateway.send(&syn(n)).is_ok()));
    set_pool(&mut gateway, &[0], 3000, 3000);
    assert!(gateway.send(&syn(2)).is_ok());
    // All are half-open, and have been silent for longer than a quarantine takes.
    gateway.wait(Duration::from_secs(10));
    let packet = tuple(net.other(3, 1), net.vip(53));
    let Explained::Admitted { translated, .. } = explain(&gateway.engine, gateway.now, &packet, SYN).outcome else {
        panic!("a port is given up")
    };
    assert_eq!(translated.sport, 3000);
    assert!(gateway.send(&syn(3)).is_ok());
    assert_eq!(replies(&gateway).iter().map(|reply| reply.dport).collect::<Vec<_>>(), [3000]);
    assert_eq!(ports(&gateway), (1, 2, 1));
    assert_eq!(gateway.send(&syn(4)), EXHAUSTED);
}

#[test]
fn a_vip_may_be_the_address_of_a_pool() {
    for net in Net::BOTH {
        let mut gateway = Gateway::new(net, |all| {
            *all = spec(net, 20000, 20009);
            for service in &mut all.services {
                service.pool.addresses = vec![net.vip(0).ip().into()];
            }
        });
        let (client, rs) = (net.other(1, 1), net.rs(1, 53));
        assert_eq!(gateway.ask(1, 1), Ok(rs));
        let reply = replies(&gateway)[0];
        assert!(reply.dst == Addr::from(net.vip(0).ip()) && (20000..20010).contains(&reply.dport));
        assert_eq!(gateway.send(&udp(rs, (reply.dst.ip(), reply.dport))), Ok(client));
        assert!(gateway.connect(2, 1).is_ok(), "what has a service is the service's");
        let nobody = gateway.send(&udp(rs, net.vip(20050)));
        assert_eq!(nobody, Err(Verdict::Refuse(DropReason::NoService)));
    }
}

#[test]
fn a_server_may_be_a_client_of_its_own_cluster() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, 1024, 65535);
        // It is scheduled to itself, and to the other one.
        for target in [net.rs(1, 8080), net.rs(2, 8080)] {
            let client = net.rs(1, target.port() + 1 + u16::from(target == net.rs(1, 8080)));
            assert_eq!(gateway.send(&tcp(client, net.vip(80)).syn().seq(1000, 0)), Ok(target));
            let reply = gateway.engine.find(gateway.now, &tuple(client, net.vip(80))).expect("admitted").0.reply;
            let (verdict, out) = gateway.feed(from(reply).flags(SYN | ACK).seq(5000, 1001).buf());
            let out = oracle::decode(out.packet()).expect("a packet");
            assert_eq!((verdict, out.src, out.dst), (Verdict::Forward, net.vip(0).ip(), client.ip()));
            assert_eq!(out.ports, Some((80, client.port())));
            assert_eq!(gateway.send(&tcp(client, net.vip(80)).flags(ACK).seq(1001, 5001)), Ok(target));
        }
    }
}

#[test]
fn both_ends_of_a_connection_whose_server_is_gone_are_told() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, PORT, PORT);
        let reply = establish(&mut gateway, 1);
        let id = gateway.server("dns", 0).id;
        assert_eq!(gateway.evacuate(&[id], None), 1);
        let told: Vec<_> = gateway
            .sent()
            .iter()
            .map(|(packet, _)| {
                let ports = packet.ports.expect("ports");
                let (src, dst) = (SocketAddr::from((packet.src, ports.0)), SocketAddr::from((packet.dst, ports.1)));
                (src, dst, packet.tcp.as_ref().expect("TCP").flags & RST)
            })
            .collect();
        let here = pool(net, 0, PORT);
        assert_eq!(told, [(here, net.rs(1, 53), RST), (net.vip(53), net.other(1, 1), RST)]);
        assert_eq!((ports(&gateway), reply.dport), ((0, 1, 0), PORT));
    }
}

#[test]
fn fragments_go_both_ways() {
    for net in Net::BOTH {
        let mut gateway = by_fullnat(net, PORT, PORT);
        let (client, vip, rs, here) = (net.client(40000), net.vip(53), net.rs(1, 53), pool(net, 0, PORT));
        for (packet, expected) in [
            (udp(client, vip).payload(vec![1; 3000]), udp(here, rs).payload(vec![1; 3000])),
            (udp(rs, here).payload(vec![2; 3000]), udp(vip, client).payload(vec![2; 3000])),
        ] {
            let mut pieces = packet.fragments(1000);
            pieces.reverse();
            let mut sent = Vec::new();
            for piece in &pieces {
                let (verdict, buf) = gateway.feed(PacketBuf::from_packet(piece));
                sent.extend(verdict.sends().then(|| buf.packet().to_vec()));
                sent.extend(std::iter::from_fn(|| gateway.engine.poll_transmit()).map(|buf| buf.packet().to_vec()));
            }
            assert_eq!(sent.len(), pieces.len());
            let mut whole = oracle::reassemble(&sent).expect("all of it came");
            let mut expected = expected.bytes();
            if net.is_v4() {
                // Its identification is the gateway's own.
                for packet in [&mut whole, &mut expected] {
                    packet[4..6].fill(0);
                    oracle::fix_ip_checksum(packet);
                }
            }
            assert_eq!(whole, expected, "{net:?}");
        }
    }
}

#[test]
fn thresholds_count_flows_that_hold_ports() {
    let net = Net::V4;
    let mut gateway = by_fullnat(net, PORT, PORT + 9);
    gateway.reload(|spec| find(spec, "dns").servers[0].max_connections = Some(2));
    assert!((0..2).all(|n| gateway.ask(n, 1).is_ok()));
    assert_eq!(gateway.ask(2, 1), Err(Verdict::Refuse(DropReason::ServersFull)));
    assert_eq!(ports(&gateway), (2, 0, 0));
}

#[test]
fn who_asks_is_told_the_address_of_the_pool() {
    let net = Net::V4;
    let mut gateway = by_fullnat(net, 1024, 65535);
    for n in 0..40 {
        let packet = tuple(net.other(n, 1), net.vip(53));
        let Explained::Admitted { translated, choice, .. } =
            explain(&gateway.engine, gateway.now, &packet, SYN).outcome
        else {
            panic!("a service takes it")
        };
        assert_eq!((translated.src, choice.method.word()), (pool(net, 0, 0).ip().into(), "fullnat"));
        establish(&mut gateway, n);
        let (flow, _) = gateway.engine.find(gateway.now, &packet).expect("admitted");
        assert_eq!(flow.reply.reversed(), translated, "nothing else came between");
        let Explained::Known { translated: known, .. } = explain(&gateway.engine, gateway.now, &packet, ACK).outcome
        else {
            panic!("it has a flow")
        };
        assert_eq!(known, translated);
    }
    set_pool(&mut gateway, &[1], PORT, PORT);
    establish(&mut gateway, 50);
    let packet = tuple(net.other(51, 1), net.vip(53));
    let Explained::Dropped { reason, answer, service } = explain(&gateway.engine, gateway.now, &packet, SYN).outcome
    else {
        panic!("there is no port")
    };
    assert_eq!((reason, answer, service.as_deref()), (DropReason::PoolExhausted, None, Some("dns")));
}

#[test]
fn a_new_connection_of_the_same_client_gets_another_port() {
    let net = Net::V4;
    let mut gateway = by_fullnat(net, PORT, PORT + 1);
    let first = establish(&mut gateway, 1);
    close(&mut gateway, 1, first);
    // Its server may still be in TIME_WAIT with the old one.
    let second = establish(&mut gateway, 1);
    assert_ne!(first.dport, second.dport);
    assert_eq!((ports(&gateway), gateway.engine.stats().flows_reused), ((1, 1, 0), 1));
    let late = from(first).flags(FIN | ACK).seq(5001, 1002);
    assert_eq!(gateway.send(&late), Err(Verdict::Refuse(DropReason::NoService)));
}
