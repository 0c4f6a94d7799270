//! What becomes of the flows of a server that serves no more, and who is told.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::command::{Command, Extent, FlowFilter, Only, Outcome, RESET_BUDGET};
use gatun::explain::{Explained, explain};
use gatun::service::{FlowPolicy, Method, ServerSpec, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Encapsulation, Protocol, Tuple, unwrap};

use crate::gateway::{Gateway, find};
use crate::support::oracle::{self, Decoded};
use crate::support::packet::{ACK, Build, FIN, RST, SYN, tcp, udp};
use crate::{Net, ftp, fullnat};

/// The gateway's end of tunnels.
fn source(net: Net) -> Addr {
    Addr::from(net.inner_router().ip())
}

fn by(net: Net, method: Method) -> Gateway {
    Gateway::new(net, |spec| {
        set_method(net, spec, "web", method);
        set_method(net, spec, "dns", method);
        find(spec, "dns").servers.push(find(&mut net.spec(), "web").servers[1].clone());
        find(spec, "dns").servers[1].port = method.is_one_way().then_some(53).or(Some(53));
    })
}

fn set_method(net: Net, spec: &mut SnapshotSpec, name: &str, method: Method) {
    find(spec, name).method = method;
    find(spec, name).tunnel = Encapsulation::Ipip;
    find(spec, name).pool = fullnat::pool_of(net);
    for server in &mut find(spec, name).servers {
        if method.is_one_way() {
            server.port = None;
        }
    }
    spec.tunnel_sources = (1..4).map(|number| (Addr::from(net.rs(number, 0).ip()), source(net))).collect();
}

fn down(gateway: &Gateway) {
    for service in ["web", "dns"] {
        assert!(gateway.server(service, 0).state.set_up(gateway.now, false));
    }
}

fn ids(gateway: &Gateway) -> Vec<gatun::service::ServerId> {
    vec![gateway.server("web", 0).id, gateway.server("dns", 0).id]
}

/// From, to, flags, sequence number, acknowledgement.
fn told(packet: &Decoded) -> (SocketAddr, SocketAddr, u8, u32, u32) {
    let (ports, tcp) = (packet.ports.expect("ports"), packet.tcp.as_ref().expect("TCP"));
    ((packet.src, ports.0).into(), (packet.dst, ports.1).into(), tcp.flags, tcp.seq, tcp.ack)
}

#[test]
fn both_ends_of_a_connection_are_told_in_the_others_name() {
    for net in Net::BOTH {
        let mut gateway = by(net, Method::Nat);
        let (client, vip, rs1) = (net.other(1, 1), net.vip(80), net.rs(1, 8080));
        assert_eq!(gateway.establish(1, 1), rs1);
        assert_eq!(gateway.send(&tcp(client, vip).flags(ACK).seq(1001, 5001).payload("GET /")), Ok(rs1));
        assert_eq!(gateway.send(&tcp(rs1, client).flags(ACK).seq(5001, 1006).payload("200 OK")), Ok(client));
        let load = gateway.server("web", 0).load.clone();
        assert_eq!((load.active(), gateway.evacuate(&ids(&gateway), None)), (1, 1));
        let sent = gateway.sent();
        let packets: Vec<_> = sent.iter().map(|(packet, _)| told(packet)).collect();
        let to_server = (client, rs1, RST | ACK, 1006, 5007);
        let to_client = (vip, client, RST | ACK, 5007, 1006);
        assert_eq!(packets, [to_server, to_client]);
        assert_eq!((load.flows(), gateway.engine.stats().flows_evacuated, gateway.engine.stats().resets), (0, 1, 2));
        // Who was not reached asks, and is told.
        assert_eq!(
            gateway.send(&tcp(client, vip).flags(ACK).seq(1006, 5001)),
            Err(Verdict::Refuse(DropReason::NoFlow))
        );
    }
}

#[test]
fn who_was_shown_other_numbers_is_told_by_those() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |all| *all = ftp::spec(net));
    let said = |end| format!("227 Entering Passive Mode ({}).\r\n", ftp::six(end));
    let (there, here) = (said(net.rs(1, 40007)), said(net.vip(40007)));
    let grown = (here.len() - there.len()) as u32;
    assert_eq!(grown, 2);
    let control = ftp::Control::new(net).sent("PASV\r\n").got(&there).grown(grown).sent("NOOP\r\n");
    for packet in &control.packets {
        gateway.send(packet).expect("the flow's");
    }
    let id = gateway.server("ftp", 0).id;
    assert_eq!(gateway.evacuate(&[id], None), 1);
    let sent: Vec<_> = gateway.sent().iter().map(|(packet, _)| told(packet)).collect();
    assert_eq!((sent[0].1, sent[0].3), (net.rs(1, 2121), control.client));
    assert_eq!((sent[1].1, sent[1].3), (net.client(40000), control.server + grown));
}

#[test]
fn the_server_of_a_one_way_method_is_told_by_the_way_of_its_packets() {
    for (net, method) in Net::BOTH.into_iter().flat_map(|net| [(net, Method::Direct), (net, Method::Tunnel)]) {
        let mut gateway = by(net, method);
        let (client, vip) = (net.other(1, 1), net.vip(80));
        assert!(gateway.connect(1, 1).is_ok());
        for (seq, ack, payload) in [(1001, 5001, ""), (1001, 5001, "GET /"), (1006, 9001, "")] {
            assert!(gateway.send(&tcp(client, vip).flags(ACK).seq(seq, ack).payload(payload)).is_ok());
        }
        assert_eq!(gateway.evacuate(&ids(&gateway), Some(FlowPolicy::Reset)), 1);
        let mut sent = gateway.sent();
        assert_eq!(sent.len(), 2, "{net:?} {method:?}");
        let (to_client, buf) = sent.pop().expect("two");
        // What the client expects next is what it acknowledged last.
        assert_eq!(told(&to_client), (vip, client, RST | ACK, 9001, 1006));
        assert_eq!(buf.hop, None);
        let (_, mut to_server) = sent.pop().expect("two");
        let rs1 = Addr::from(net.rs(1, 0).ip());
        if method == Method::Tunnel {
            let outer = oracle::decode(to_server.packet()).expect("a packet");
            assert_eq!((Addr::from(outer.src), Addr::from(outer.dst)), (source(net), rs1));
            unwrap(&mut to_server, |_| false).expect("a tunnelled packet");
        } else {
            assert_eq!(to_server.hop, Some(rs1));
        }
        let inner = oracle::decode(to_server.packet()).expect("a packet");
        assert_eq!(told(&inner), (client, vip, RST | ACK, 1006, 9001));
    }
}

#[test]
fn a_client_that_has_no_answer_yet_comes_to_another_server() {
    for (net, method) in
        Net::BOTH.into_iter().flat_map(|net| Method::OF_SERVICES.iter().map(move |method| (net, *method)))
    {
        for policy in [None, Some(FlowPolicy::Reset), Some(FlowPolicy::Reschedule)] {
            let mut gateway = by(net, method);
            let first = gateway.connect(1, 1).expect("served");
            down(&gateway);
            assert_eq!(gateway.evacuate(&ids(&gateway), policy), 1);
            assert!(gateway.sent().is_empty(), "nobody is told");
            assert_ne!(gateway.connect(1, 1), Ok(first));
            assert_eq!(gateway.flows()[0].server, gateway.server("web", 1).id);
        }
    }
}

#[test]
fn a_datagram_moves_at_once() {
    for (net, method) in
        Net::BOTH.into_iter().flat_map(|net| Method::OF_SERVICES.iter().map(move |method| (net, *method)))
    {
        for swept in [true, false] {
            let mut gateway = by(net, method);
            let ask = |gateway: &mut Gateway| {
                gateway.ask(1, 1).expect("served");
                gateway.flows()[0].server
            };
            let first = ask(&mut gateway);
            assert_eq!(first, gateway.server("dns", 0).id);
            down(&gateway);
            if swept {
                assert_eq!(gateway.evacuate(&ids(&gateway), None), 1);
            }
            assert_eq!(ask(&mut gateway), gateway.server("dns", 1).id, "{net:?} {method:?}");
            assert_eq!((gateway.flows().len(), gateway.sent().len()), (1, 0));
        }
    }
}

#[test]
fn whoever_speaks_before_the_sweep_comes_is_told_at_once() {
    for net in Net::BOTH {
        let (client, vip, rs1) = (net.other(1, 1), net.vip(80), net.rs(1, 8080));
        let from_client = tcp(client, vip).flags(ACK).seq(1001, 5001).payload("GET /");
        let from_server = tcp(rs1, client).flags(ACK).seq(5001, 1001).payload("200 OK");
        for (packet, ends) in [
            (&from_client, vec![client, rs1]),
            (&from_server, vec![rs1, client]),
            // Who resets needs no RST.
            (&tcp(client, vip).flags(RST).seq(1001, 0), vec![rs1]),
            (&tcp(rs1, client).flags(RST).seq(5001, 0), vec![client]),
        ] {
            let mut gateway = by(net, Method::Nat);
            assert_eq!(gateway.establish(1, 1), rs1);
            down(&gateway);
            assert_eq!(gateway.send(packet), Err(Verdict::Drop(DropReason::ServerDown)));
            let mut told: Vec<_> = gateway.sent().iter().map(|(packet, _)| told(packet).1).collect();
            let mut ends = ends;
            told.sort_unstable();
            ends.sort_unstable();
            assert_eq!(told, ends, "{packet:?}");
            assert!(gateway.flows().is_empty());
        }
    }
}

#[test]
fn it_is_explained_as_it_is_done() {
    let net = Net::V4;
    let explained = |gateway: &Gateway, protocol, dport, flags| {
        let (src, dst) = (net.other(1, 1), net.vip(dport));
        let tuple = Tuple { src: src.ip().into(), dst: dst.ip().into(), sport: 1, dport, protocol };
        explain(&gateway.engine, gateway.now, &tuple, flags).outcome
    };
    let mut gateway = by(net, Method::Nat);
    gateway.establish(1, 1);
    gateway.ask(1, 1).expect("served");
    assert!(matches!(explained(&gateway, Protocol::TCP, 80, ACK), Explained::Known { .. }));
    down(&gateway);
    let reset = explained(&gateway, Protocol::TCP, 80, ACK);
    assert!(matches!(reset, Explained::Dropped { reason: DropReason::ServerDown, .. }), "{reset:?}");
    for (protocol, port) in [(Protocol::TCP, 80), (Protocol::UDP, 53)] {
        let anew = explained(&gateway, protocol, port, SYN);
        assert!(matches!(&anew, Explained::Admitted { choice, .. } if choice.server == "rs2"), "{anew:?}");
    }
    gateway.reload(|spec| find(spec, "web").on_server_down = Some(FlowPolicy::Keep));
    assert!(matches!(explained(&gateway, Protocol::TCP, 80, ACK), Explained::Known { .. }));
}

#[test]
fn a_client_that_connects_again_is_served_at_once() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    let (client, rs1, rs2) = (net.other(1, 1), net.rs(1, 8080), net.rs(2, 8080));
    assert_eq!(gateway.establish(1, 1), rs1);
    down(&gateway);
    assert_eq!(gateway.connect(1, 1), Ok(rs2));
    let sent: Vec<_> = gateway.sent().iter().map(|(packet, _)| told(packet)).collect();
    assert_eq!(sent, [(client, rs1, RST | ACK, 1001, 5001)], "the old server alone hears of it");
}

#[test]
fn what_is_over_is_forgotten_without_a_word() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    let (client, vip, rs1) = (net.other(1, 1), net.vip(80), gateway.establish(1, 1));
    for (packet, to) in [
        (tcp(client, vip).flags(FIN | ACK).seq(1001, 5001), rs1),
        (tcp(rs1, client).flags(FIN | ACK).seq(5001, 1002), client),
        (tcp(client, vip).flags(ACK).seq(1002, 5002), rs1),
    ] {
        assert_eq!(gateway.send(&packet), Ok(to));
    }
    down(&gateway);
    assert_eq!(gateway.evacuate(&ids(&gateway), None), 1);
    assert!(gateway.sent().is_empty());
}

#[test]
fn flows_go_on_where_that_is_wanted() {
    for net in Net::BOTH {
        let mut gateway = by(net, Method::Nat);
        gateway.reload(|spec| {
            find(spec, "web").on_server_down = Some(FlowPolicy::Keep);
            find(spec, "dns").on_server_down = Some(FlowPolicy::Keep);
        });
        let (client, vip, rs1) = (net.other(1, 1), net.vip(80), gateway.establish(1, 1));
        assert_eq!((gateway.ask(1, 1), gateway.connect(9, 1)), (Ok(net.rs(1, 53)), Ok(net.rs(2, 8080))));
        down(&gateway);
        assert_eq!(gateway.send(&tcp(client, vip).flags(ACK).seq(1001, 5001).payload("GET /")), Ok(rs1));
        assert_eq!(gateway.ask(1, 1), Ok(net.rs(1, 53)));
        assert_eq!((gateway.evacuate(&ids(&gateway), Some(FlowPolicy::Keep)), gateway.flows().len()), (0, 3));
        // An operator may want it otherwise for once.
        assert_eq!((gateway.evacuate(&ids(&gateway), Some(FlowPolicy::Reset)), gateway.flows().len()), (2, 1));
    }
}

#[test]
fn a_datagram_that_a_dead_server_answers_all_the_same_arrives() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    let client = net.other(1, 1);
    let server = gateway.ask(1, 1).expect("served");
    down(&gateway);
    assert_eq!(gateway.send(&udp(server, client)), Ok(client));
}

#[test]
fn flows_of_other_servers_notice_nothing() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    let servers: Vec<_> = (0..10).map(|n| gateway.establish(n, 1)).collect();
    down(&gateway);
    assert_eq!(gateway.evacuate(&ids(&gateway), None), 5);
    for n in 0..10 {
        let data = tcp(net.other(n, 1), net.vip(80)).flags(ACK).seq(1001, 5001).payload("x");
        let expected = if servers[usize::from(n)] == net.rs(2, 8080) {
            Ok(net.rs(2, 8080))
        } else {
            Err(Verdict::Refuse(DropReason::NoFlow))
        };
        assert_eq!(gateway.send(&data), expected);
    }
}

#[test]
fn a_large_table_is_done_slice_by_slice() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    gateway.reload(|spec| find(spec, "web").servers[1].weight = 0);
    for n in 0..1000_u16 {
        gateway.establish((n % 200) as u8, 1 + n / 200);
    }
    let servers = [gateway.server("web", 0).id];
    let extent = Extent { began: gateway.now, only: Only::All };
    let command = Command::Evacuate { servers: servers.as_slice().into(), policy: None, extent, cursor: 0 };
    let outcome = gateway.engine.apply(gateway.now, command);
    assert!(matches!(outcome, Outcome::Deleted { count, next: Some(_) } if count == RESET_BUDGET as u64));
    assert_eq!(gateway.sent().len(), 2 * RESET_BUDGET);
    assert_eq!(gateway.evacuate(&servers, None) as usize, 1000 - RESET_BUDGET);
    assert_eq!((gateway.sent().len(), gateway.flows().len()), (2 * (1000 - RESET_BUDGET), 0));
}

#[test]
fn a_server_that_serves_again_keeps_its_flows() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    gateway.reload(|spec| find(spec, "web").servers[1].weight = 0);
    let establish = |gateway: &mut Gateway, ports: std::ops::Range<u16>| {
        for (port, n) in ports.flat_map(|port| (0..100).map(move |n| (port, n))) {
            gateway.establish(n, port);
        }
    };
    establish(&mut gateway, 1..4);
    let server = gateway.server("web", 0);
    let began = gateway.now;
    let slice = |gateway: &mut Gateway, only: Only, cursor: usize| {
        let servers = [server.id].as_slice().into();
        let extent = Extent { began, only };
        let outcome = gateway.engine.apply(gateway.now, Command::Evacuate { servers, policy: None, extent, cursor });
        let Outcome::Deleted { count, next } = outcome else { panic!("it says how many") };
        (count, next)
    };
    server.state.set_up(gateway.now, false);
    let (count, next) = slice(&mut gateway, Only::Down, 0);
    assert_eq!(count, RESET_BUDGET as u64);
    gateway.wait(Duration::from_millis(1));
    server.state.set_up(gateway.now, true);
    establish(&mut gateway, 4..7);
    for only in [Only::Down, Only::Draining] {
        assert_eq!(slice(&mut gateway, only, next.expect("there are more")).0, 0, "{only:?}");
    }
    // It is down again: only what it had when this evacuation began.
    server.state.set_up(gateway.now, false);
    let (mut cursor, mut ended) = (Some(0), 0);
    while let Some(from) = cursor {
        let (count, next) = slice(&mut gateway, Only::Down, from);
        (cursor, ended) = (next, ended + count);
    }
    assert_eq!((ended, gateway.flows().len()), (300 - RESET_BUDGET as u64, 300));
}

/// An FTP session whose server has announced a port, and the client's SYN to that.
fn announced(net: Net) -> (Gateway, Build) {
    let mut gateway = Gateway::new(net, |all| *all = ftp::spec(net));
    let control = ftp::Control::new(net).sent("EPSV\r\n").got("229 Ok (|||40007|)\r\n");
    for packet in &control.packets {
        gateway.send(packet).expect("the flow's");
    }
    (gateway, tcp(net.client(41000), net.vip(40007)).syn())
}

#[test]
fn what_is_announced_begins_at_no_server_that_is_down() {
    for (net, policy) in Net::BOTH.into_iter().flat_map(|net| [(net, None), (net, Some(FlowPolicy::Keep))]) {
        let (mut gateway, syn) = announced(net);
        gateway.reload(|spec| find(spec, "ftp").on_server_down = policy);
        let state = gateway.server("ftp", 0).state.clone();
        state.set_up(gateway.now, false);
        let kept = policy.is_some();
        assert_eq!(gateway.send(&syn).is_ok(), kept, "{net:?} {policy:?}");
        state.set_up(gateway.now, true);
        assert_eq!(gateway.send(&syn), Ok(net.rs(1, 40007)));
    }
}

#[test]
fn a_number_is_not_given_away_under_an_announced_flow() {
    let net = Net::V4;
    let (mut gateway, syn) = announced(net);
    let all = |gateway: &mut Gateway| {
        let command = Command::Delete { filter: FlowFilter::default(), cursor: 0 };
        gateway.engine.apply(gateway.now, command);
    };
    let first = find(&mut gateway.spec, "ftp").servers[0].clone();
    gateway.reload(|spec| drop(find(spec, "ftp").servers.remove(0)));
    // Retired, with a flow: it goes on.
    assert_eq!(gateway.send(&syn), Ok(net.rs(1, 40007)));
    let (mut gateway, syn) = announced(net);
    gateway.reload(|spec| drop(find(spec, "ftp").servers.remove(0)));
    all(&mut gateway);
    // As the daemon does it: made now, in force later.
    let tidied = gateway.engine.snapshot().tidied().expect("a retired server without flows");
    assert_eq!(gateway.send(&syn), Err(Verdict::Refuse(DropReason::NoService)));
    gateway.engine.apply(gateway.now, Command::Swap(tidied.into()));
    let address = Addr::from(net.rs(3, 0).ip());
    gateway.reload(|spec| {
        find(spec, "ftp").servers.push(ServerSpec { name: "new".to_owned(), address, ..first.clone() });
    });
    all(&mut gateway);
    let servers = &gateway.service("ftp").servers;
    let new = servers.iter().find(|server| server.name == "new").expect("it was added");
    new.start(true);
    assert_eq!((new.load.flows(), new.load.is_idle()), (1, false));
}

#[test]
fn a_swap_tells_which_servers_it_retires() {
    let net = Net::V4;
    let mut gateway = by(net, Method::Nat);
    gateway.establish(1, 1);
    let (old, id) = (gateway.engine.snapshot().clone(), gateway.server("web", 0).id);
    gateway.reload(|spec| drop(find(spec, "web").servers.remove(0)));
    assert_eq!(gateway.engine.snapshot().retired_since(&old), [id]);
    assert_eq!(gateway.evacuate(&[id], None), 1);
    assert_eq!(gateway.sent().len(), 2);
    let old = gateway.engine.snapshot().clone();
    gateway.reload(|spec| find(spec, "web").scheduler = gatun::service::SchedulerKind::Wlc);
    gateway.wait(Duration::from_secs(1));
    assert!(gateway.engine.snapshot().retired_since(&old).is_empty());
}
