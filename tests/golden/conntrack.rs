//! The flow table as an operator meets it: its limit, its listing, deletions, events, counters.

use std::time::Duration;

use gatun::command::{Command, Event, FlowChange, FlowFilter, FlowRecord, Outcome, Volume};
use gatun::engine::Engine;
use gatun::service::{Limits, ServerId, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Protocol};

use crate::Net;
use crate::support::packet::{ACK, Build, FIN, SYN, tcp, udp};
use crate::support::world;

const NOW: Instant = Instant::from_secs(100);

fn engine(net: Net, max_flows: usize) -> Engine {
    world::engine(world::snapshot(net.spec().services), max_flows)
}

fn send(engine: &mut Engine, packet: &Build) -> Verdict {
    let verdict = engine.handle_packet(NOW, &mut packet.buf());
    engine.check_invariants();
    verdict
}

/// Client `n` connects, to the end of the handshake.
fn connect(engine: &mut Engine, net: Net, n: u8) {
    let client = net.other(n, 40000);
    assert_eq!(send(engine, &tcp(client, net.vip(80)).syn()), Verdict::Forward);
    let (flow, _) = engine.flows(NOW, 0, usize::MAX);
    let reply = flow.iter().find(|flow| flow.original.src == Addr::from(client.ip())).expect("admitted").reply;
    let server = std::net::SocketAddr::from((reply.src.ip(), reply.sport));
    assert_eq!(send(engine, &tcp(server, client).flags(SYN | ACK).seq(5000, 1001)), Verdict::Forward);
    assert_eq!(send(engine, &tcp(client, net.vip(80)).flags(ACK).seq(1001, 5001)), Verdict::Forward);
}

/// The tables here are small: one slice is all.
fn delete(filter: FlowFilter) -> Command {
    Command::Delete { filter, cursor: 0 }
}

fn deleted(count: u64) -> Outcome {
    Outcome::Deleted { count, next: None }
}

fn sources(engine: &Engine) -> Vec<Addr> {
    engine.flows(NOW, 0, usize::MAX).0.iter().map(|flow| flow.original.src).collect()
}

#[test]
fn a_syn_flood_does_not_touch_what_is_established() {
    for net in Net::BOTH {
        let mut engine = engine(net, 8);
        (0..4).for_each(|n| connect(&mut engine, net, n));
        let established = sources(&engine);
        for n in 10..250 {
            assert_eq!(send(&mut engine, &tcp(net.other(n, 1), net.vip(80)).syn()), Verdict::Forward);
        }
        let left = sources(&engine);
        assert!(established.iter().all(|client| left.contains(client)));
        // Of the half-open ones the youngest are left.
        assert!((246..250).all(|n| left.contains(&Addr::from(net.other(n, 1).ip()))));
        let stats = engine.stats();
        assert_eq!((stats.flows_evicted, engine.occupancy()), (240 - 4, (8, 8)));
        assert_eq!(stats.drops(DropReason::TableFull), 0);
    }
}

#[test]
fn established_flows_fill_the_table_for_good() {
    let net = Net::V4;
    let mut engine = engine(net, 4);
    (0..4).for_each(|n| connect(&mut engine, net, n));
    assert_eq!(send(&mut engine, &tcp(net.other(9, 1), net.vip(80)).syn()), Verdict::Drop(DropReason::TableFull));
    assert_eq!(send(&mut engine, &udp(net.other(9, 1), net.vip(53))), Verdict::Drop(DropReason::TableFull));
    // A flow that is over makes room, when nothing is half-open.
    let client = net.other(2, 40000);
    let reply = engine.flows(NOW, 0, 9).0.iter().find(|f| f.original.src == Addr::from(client.ip())).expect("it").reply;
    send(&mut engine, &tcp(client, net.vip(80)).flags(FIN | ACK).seq(1001, 5001));
    send(&mut engine, &tcp((reply.src.ip(), reply.sport), client).flags(FIN | ACK).seq(5001, 1002));
    assert_eq!(send(&mut engine, &tcp(net.other(9, 1), net.vip(80)).syn()), Verdict::Forward);
    let left = sources(&engine);
    assert!(!left.contains(&Addr::from(client.ip())) && left.len() == 4);
}

#[test]
fn what_has_least_to_lose_gives_way_first() {
    let net = Net::V6;
    let mut engine = engine(net, 3);
    let question = |n: u8| udp(net.other(n, 7), net.vip(53));
    let answer = |n: u8| udp(net.rs(1, 53), net.other(n, 7));
    // An exchange that goes on, one that is answered, one that waits.
    for packet in [question(1), answer(1), question(1), question(2), answer(2), question(3)] {
        assert_eq!(send(&mut engine, &packet), Verdict::Forward);
    }
    let has = |engine: &Engine, n: u8| sources(engine).contains(&Addr::from(net.other(n, 7).ip()));
    send(&mut engine, &question(4));
    assert!(has(&engine, 1) && has(&engine, 2) && !has(&engine, 3) && has(&engine, 4));
    send(&mut engine, &answer(4));
    send(&mut engine, &question(5));
    assert!(has(&engine, 1) && !has(&engine, 2) && has(&engine, 4) && has(&engine, 5));
    for packet in [question(4), answer(5), question(5)] {
        send(&mut engine, &packet);
    }
    assert_eq!(send(&mut engine, &question(6)), Verdict::Drop(DropReason::TableFull));
}

#[test]
fn a_listing_shows_each_flow_once_whatever_the_slice() {
    let net = Net::V4;
    let mut engine = engine(net, 64);
    for n in 0..40 {
        send(&mut engine, &udp(net.other(n, 7), net.vip(53)));
    }
    // Gaps in the table.
    let odd = |n: u8| FlowFilter { src: Some((Addr::from(net.other(n, 0).ip()), 32)), ..FlowFilter::default() };
    for n in (0..40).step_by(3) {
        assert_eq!(engine.apply(NOW, delete(odd(n))), deleted(1));
    }
    for slice in [1, 2, 7, 100] {
        let (mut seen, mut cursor) = (Vec::new(), Some(0));
        while let Some(from) = cursor {
            let (flows, next) = engine.flows(NOW, from, slice);
            assert!(flows.len() <= slice);
            seen.extend(flows.into_iter().map(|flow| flow.original.src));
            cursor = next;
        }
        seen.sort();
        let before = seen.len();
        seen.dedup();
        assert_eq!((before, seen.len()), (26, 26), "slices of {slice}");
    }
}

#[test]
fn a_record_tells_all() {
    for net in Net::BOTH {
        let mut engine = engine(net, 8);
        let (client, vip, rs) = (net.client(40000), net.vip(53), net.rs(1, 53));
        let (query, answer) = (udp(client, vip).payload("query"), udp(rs, client).payload("the answer"));
        for packet in [&query, &answer, &answer] {
            send(&mut engine, packet);
        }
        let later = NOW + Duration::from_secs(60);
        let (flows, _) = engine.flows(later, 0, 9);
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        let volume = |packet: &Build, packets: u64| Volume { packets, bytes: packets * packet.bytes().len() as u64 };
        let snapshot = engine.snapshot().clone();
        let service = snapshot.live.iter().find(|service| service.spec.name == "dns").expect("configured");
        let expected = FlowRecord {
            shard: 0,
            original: crate::support::arbitrary::tuple(client, vip, 17),
            reply: crate::support::arbitrary::tuple(rs, client, 17),
            tcp_state: None,
            remaining: Duration::from_secs(240),
            age: Duration::from_secs(60),
            replied: true,
            assured: false,
            service: service.id,
            server: service.servers[0].id,
            method: gatun::service::Method::Nat,
            marks: gatun::flow::Marks::NONE,
            to_server: volume(&query, 1),
            to_client: volume(&answer, 2),
        };
        assert_eq!(flow, &expected);
        assert_eq!(flow.state_word(), None);
        let traffic = engine.traffic(service.servers[0].id);
        assert_eq!((traffic.to_server, traffic.to_client), (expected.to_server, expected.to_client));
        // A second question after an answer: an exchange.
        send(&mut engine, &query);
        assert!(engine.flows(NOW, 0, 9).0[0].assured);
        // It is found by either tuple.
        for tuple in [expected.original, expected.reply] {
            let (found, _) = engine.find(NOW, &tuple).expect("it is there");
            assert_eq!(found.original, expected.original);
        }
        assert!(engine.find(NOW, &expected.original.reversed()).is_none());
    }
}

#[test]
fn filters_delete_what_matches_and_nothing_else() {
    let net = Net::V4;
    let prefix = |text: &str, len: u8| Some((world::addr(text), len));
    let none = FlowFilter::default;
    let cases: [(FlowFilter, u64); 12] = [
        (none(), 5),
        (FlowFilter { protocol: Some(Protocol::UDP), ..none() }, 3),
        (FlowFilter { src: prefix("198.51.101.0", 24), ..none() }, 5),
        (FlowFilter { src: prefix("198.51.101.2", 31), ..none() }, 2),
        (FlowFilter { src: prefix("198.51.101.4", 32), ..none() }, 1),
        (FlowFilter { src: prefix("::", 0), ..none() }, 0),
        (FlowFilter { dst: prefix("203.0.113.11", 32), ..none() }, 1),
        (FlowFilter { sport: Some(40000), ..none() }, 1),
        (FlowFilter { dport: Some(53), ..none() }, 2),
        (FlowFilter { state: Some("ESTABLISHED".into()), ..none() }, 1),
        (FlowFilter { state: Some("SYN_SENT".into()), ..none() }, 1),
        (FlowFilter { protocol: Some(Protocol::UDP), dport: Some(53), sport: Some(8), ..none() }, 1),
    ];
    for (filter, count) in cases {
        let mut engine = engine(net, 8);
        connect(&mut engine, net, 1);
        send(&mut engine, &tcp(net.other(2, 9), net.vip(80)).syn());
        send(&mut engine, &udp(net.other(3, 7), net.vip(53)));
        send(&mut engine, &udp(net.other(4, 8), net.vip(53)));
        send(&mut engine, &udp(net.other(5, 6), net.vip2(700)));
        assert_eq!(engine.apply(NOW, delete(filter.clone())), deleted(count), "{filter:?}");
        assert_eq!(engine.occupancy().0 as u64, 5 - count);
        assert_eq!(engine.stats().flows_deleted, count);
        engine.check_invariants();
    }
    let mut engine = engine(net, 8);
    connect(&mut engine, net, 1);
    send(&mut engine, &udp(net.other(3, 7), net.vip(53)));
    let server = engine.flows(NOW, 0, 9).0[0].server;
    let by_server = FlowFilter { server: Some(vec![ServerId(77), server]), ..none() };
    assert_eq!(engine.apply(NOW, delete(by_server)), deleted(1));
    assert_eq!(engine.apply(NOW, delete(FlowFilter::default())), deleted(1));
    assert_eq!(engine.apply(NOW, delete(FlowFilter::default())), deleted(0));
    // Load went with the flows.
    let snapshot = engine.snapshot();
    assert!(snapshot.live.iter().flat_map(|service| &service.servers).all(|server| server.load.is_idle()));
}

#[test]
fn a_watcher_sees_flows_come_change_and_go() {
    for net in Net::BOTH {
        let mut engine = engine(net, 8);
        let seen = |engine: &mut Engine| {
            let events: Vec<Event> = std::iter::from_fn(|| engine.poll_event()).collect();
            let word = |event: &Event| (event.change, event.flow.state_word().unwrap_or("-"));
            events.iter().map(word).collect::<Vec<_>>()
        };
        connect(&mut engine, net, 1);
        assert_eq!(seen(&mut engine), [], "nobody watches yet");
        engine.apply(NOW, Command::Watch(true));
        connect(&mut engine, net, 2);
        use FlowChange::{Destroy, New, Update};
        assert_eq!(seen(&mut engine), [(New, "SYN_SENT"), (Update, "SYN_RECV"), (Update, "ESTABLISHED")]);
        // More of the same is no news.
        send(&mut engine, &tcp(net.other(2, 40000), net.vip(80)).flags(ACK).seq(1001, 5001).payload("x"));
        assert_eq!(seen(&mut engine), []);
        send(&mut engine, &tcp(net.other(2, 40000), net.vip(80)).flags(FIN | ACK).seq(1002, 5001));
        assert_eq!(seen(&mut engine), [(Update, "CLOSE_WAIT")]);
        send(&mut engine, &udp(net.other(3, 7), net.vip(53)));
        send(&mut engine, &udp(net.rs(1, 53), net.other(3, 7)));
        send(&mut engine, &udp(net.rs(1, 53), net.other(3, 7)));
        assert_eq!(seen(&mut engine), [(New, "-"), (Update, "-")]);
        let filter = FlowFilter { protocol: Some(Protocol::UDP), ..FlowFilter::default() };
        engine.apply(NOW, delete(filter));
        assert_eq!(seen(&mut engine), [(Destroy, "-")]);
        engine.handle_timeout(NOW + Duration::from_secs(241));
        assert_eq!(seen(&mut engine), [(Destroy, "CLOSE_WAIT")]);
        engine.apply(NOW, Command::Watch(false));
        engine.apply(NOW, delete(FlowFilter::default()));
        assert_eq!(seen(&mut engine), []);
    }
}

#[test]
fn a_flow_that_expires_is_scheduled_anew() {
    let net = Net::V4;
    let mut engine = engine(net, 8);
    let mut reply = |at: u64| {
        let now = Instant::from_secs(at);
        engine.handle_timeout(now);
        engine.handle_packet(now, &mut udp(net.other(1, 7), net.vip(53)).buf());
        (engine.flows(now, 0, 9).0.len(), engine.stats().flows_created)
    };
    assert_eq!(reply(0), (1, 1));
    assert_eq!(reply(299), (1, 1), "a packet in time keeps the flow");
    assert_eq!(reply(598), (1, 1), "and keeps on keeping it");
    assert_eq!(reply(899), (1, 2));
}

#[test]
fn many_flows_expire_in_bounded_steps() {
    let net = Net::V4;
    let count = 10_000u32;
    // Nobody is asked by a cookie whether he is there.
    let limits = Limits { half_open: count as usize, ..Limits::default() };
    let snapshot = Snapshot::build(SnapshotSpec { limits, ..net.spec() }, None).expect("valid");
    let mut engine = world::engine(snapshot.into(), count as usize);
    let syn = crate::support::traffic::Client::new(true, SYN, 1, 0, 0);
    let mut buf = syn.buf();
    for n in 0..count {
        syn.write(&mut buf, n);
        assert_eq!(engine.handle_packet(NOW, &mut buf), Verdict::Forward);
    }
    let later = NOW + Duration::from_secs(1000);
    let mut steps = 0;
    while engine.poll_timeout().is_some_and(|deadline| deadline <= later) {
        let before = engine.occupancy().0;
        engine.handle_timeout(later);
        assert!(before - engine.occupancy().0 <= 4096, "a step may not stall the traffic");
        steps += 1;
        assert!(steps < 100);
    }
    assert_eq!((engine.occupancy().0, engine.stats().flows_expired), (0, u64::from(count)));
}
