//! Limits on new flows: of one client, of a service, in all.

use std::time::Duration;

use gatun::engine::{Engine, EngineConfig};
use gatun::explain::{Explained, explain};
use gatun::service::{Limits, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, Protocol, Tuple};

use crate::gateway::{Gateway, find};
use crate::support::packet::{ACK, SYN, tcp, udp};
use crate::{Net, Row};

const SECOND: Duration = Duration::from_secs(1);

pub fn rows(net: &Net) -> Vec<Row> {
    let net = *net;
    let limited = |limits: Limits| SnapshotSpec { limits, ..net.spec() };
    let per_client = limited(Limits { new_flows_per_client: 2, ..Limits::default() });
    let in_all = limited(Limits { new_flows_per_second: 2, ..Limits::default() });
    let mut of_service = net.spec();
    find(&mut of_service, "web").new_flows_per_second = Some(2);
    let syn = |number, port| tcp(net.other(number, port), net.vip(80)).syn().seq(1000, 0);
    let query = |number, port| udp(net.other(number, port), net.vip(53)).payload("q");
    vec![
        Row::drop("a client's third flow within a second", per_client.clone(), syn(1, 3), DropReason::ClientRate)
            .after([syn(1, 1), syn(1, 2)]),
        Row::drop("whatever the service", per_client.clone(), query(1, 3), DropReason::ClientRate)
            .after([syn(1, 1), syn(1, 2)]),
        Row::forward(
            "a packet of a flow that there is",
            per_client.clone(),
            syn(1, 1),
            syn(1, 1).with_dst(net.rs(1, 8080)),
        )
        .after([syn(1, 1), syn(1, 2)]),
        Row::forward("another client's", per_client, syn(2, 3), syn(2, 3).with_dst(net.rs(1, 8080)))
            .after([syn(1, 1), syn(1, 2)]),
        Row::drop("a service's third flow within a second", of_service.clone(), syn(3, 3), DropReason::ServiceRate)
            .after([syn(1, 1), syn(2, 2)]),
        Row::forward("another service's", of_service, query(3, 3), query(3, 3).with_dst(net.rs(1, 53)))
            .after([syn(1, 1), syn(2, 2)]),
        Row::drop("the third flow of all within a second", in_all, query(3, 3), DropReason::TotalRate)
            .after([syn(1, 1), syn(2, 2)]),
    ]
}

fn drops(gateway: &Gateway, reason: DropReason) -> u64 {
    gateway.engine.stats().drops(reason)
}

#[test]
fn a_syn_that_comes_again_after_a_second_is_let_in() {
    for net in Net::BOTH {
        let mut gateway = Gateway::new(net, |spec| spec.limits.new_flows_per_client = 2);
        let refused = Err(Verdict::Drop(DropReason::ClientRate));
        assert!(gateway.connect(1, 1).is_ok() && gateway.connect(1, 2).is_ok());
        assert_eq!((gateway.connect(1, 3), gateway.connect(1, 4)), (refused, refused));
        gateway.wait(SECOND);
        assert!(gateway.connect(1, 3).is_ok() && gateway.connect(1, 4).is_ok());
        assert_eq!(gateway.connect(1, 5), refused);
        assert_eq!((drops(&gateway, DropReason::ClientRate), gateway.engine.stats().flows_created), (3, 4));
        assert!(gateway.sent().is_empty(), "it is dropped silently");
    }
}

#[test]
fn what_one_limit_refuses_is_not_taken_from_another() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| {
        spec.limits.new_flows_per_client = 2;
        spec.limits.new_flows_per_second = 3;
        find(spec, "web").new_flows_per_second = Some(2);
    });
    assert!(gateway.connect(1, 1).is_ok() && gateway.connect(2, 1).is_ok());
    // The service's is at its end: nothing is taken of the client's or of all's.
    for _ in 0..5 {
        assert_eq!(gateway.connect(3, 1), Err(Verdict::Drop(DropReason::ServiceRate)));
    }
    assert!(gateway.ask(3, 1).is_ok());
    for _ in 0..5 {
        assert_eq!(gateway.ask(3, 2), Err(Verdict::Drop(DropReason::TotalRate)));
    }
    gateway.wait(SECOND / 3 + Duration::from_micros(1));
    assert!(gateway.ask(3, 2).is_ok(), "the client has begun one so far");
}

#[test]
fn limits_hold_across_a_reload_and_change_with_it() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| {
        spec.limits.new_flows_per_second = 2;
        find(spec, "dns").new_flows_per_second = Some(1);
    });
    assert!(gateway.ask(1, 1).is_ok() && gateway.connect(1, 1).is_ok());
    gateway.reload(|spec| find(spec, "dns").servers[0].weight = 5);
    assert_eq!(gateway.connect(1, 2), Err(Verdict::Drop(DropReason::TotalRate)));
    gateway.reload(|spec| spec.limits.new_flows_per_second = 0);
    assert!(gateway.connect(1, 2).is_ok());
    assert_eq!(gateway.ask(1, 2), Err(Verdict::Drop(DropReason::ServiceRate)));
    gateway.reload(|spec| find(spec, "dns").new_flows_per_second = None);
    assert!(gateway.ask(1, 2).is_ok());
}

#[test]
fn shards_share_what_a_service_and_all_may_have() {
    let net = Net::V4;
    let gateway = Gateway::new(net, |spec| {
        find(spec, "web").new_flows_per_second = Some(5);
        spec.limits.new_flows_per_second = 7;
    });
    let engine = |shard| {
        let config = EngineConfig { shard, shards: 2, max_flows: 64, seed: [1, 2] };
        Engine::new(config, gateway.engine.snapshot().clone())
    };
    let (mut engines, mut counts) = ([engine(0), engine(1)], [0, 0]);
    for number in 0..20 {
        for (kind, packet) in
            [gateway.syn(number, 1), udp(net.other(number, 1), net.vip(53)).payload("q")].iter().enumerate()
        {
            let engine = &mut engines[usize::from(number % 2)];
            counts[kind] +=
                usize::from(engine.handle_packet(Instant::from_secs(9), &mut packet.buf()) == Verdict::Forward);
        }
    }
    assert_eq!((counts[0] + counts[1], counts[0] <= 5), (7, true), "{counts:?}");
}

#[test]
fn packets_that_begin_no_flow_count_for_nothing() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| {
        spec.limits.new_flows_per_client = 1;
        find(spec, "dns").one_packet = true;
    });
    for port in 1..20 {
        assert!(gateway.ask(1, port).is_ok(), "scheduled by itself");
        let stray = tcp(net.other(1, port), net.vip(80)).flags(ACK);
        assert_eq!(gateway.send(&stray), Err(Verdict::Refuse(DropReason::NoFlow)));
    }
    assert!(gateway.connect(1, 1).is_ok());
}

#[test]
fn explain_tells_and_takes_nothing() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net, |spec| spec.limits.new_flows_per_client = 1);
    let tuple = Tuple {
        src: Addr::from(net.other(1, 1).ip()),
        dst: Addr::from(net.vip(0).ip()),
        sport: 1,
        dport: 80,
        protocol: Protocol::TCP,
    };
    let outcome = |gateway: &Gateway| explain(&gateway.engine, gateway.now, &tuple, SYN).outcome;
    for _ in 0..3 {
        assert!(matches!(outcome(&gateway), Explained::Admitted { .. }));
    }
    assert!(gateway.connect(1, 2).is_ok());
    let told = outcome(&gateway);
    assert!(matches!(told, Explained::Dropped { reason: DropReason::ClientRate, answer: None, .. }), "{told:?}");
}

#[test]
fn flows_of_a_masquerade_count_for_the_inside_host_and_in_all() {
    for net in Net::BOTH {
        let masqueraded = |limits: Limits| SnapshotSpec { limits, ..crate::masquerade::spec(net) };
        let gateway = |limits| Gateway::new(net, |spec| *spec = masqueraded(limits));
        let query = |host: u8, port: u16, to: u16| udp(net.inside(host, port), net.client(to)).payload("q");

        let mut limited = gateway(Limits { new_flows_per_client: 2, ..Limits::default() });
        assert!(limited.send(&query(1, 40001, 53)).is_ok() && limited.send(&query(1, 40001, 54)).is_ok());
        assert_eq!(limited.send(&query(1, 40002, 53)), Err(Verdict::Drop(DropReason::ClientRate)));
        assert!(limited.send(&query(2, 40002, 53)).is_ok(), "another host");
        // Strangers use up their own: the mapping is open to all.
        for port in 1..9 {
            let verdict = limited.send(&udp(net.stranger(port), net.pool(40001)).payload("x")).is_ok();
            assert_eq!(verdict, port < 3, "{port}");
        }
        limited.wait(SECOND);
        assert!(limited.send(&query(1, 40002, 53)).is_ok());

        let mut limited = gateway(Limits { new_flows_per_second: 2, ..Limits::default() });
        assert!(limited.send(&query(1, 40001, 53)).is_ok() && limited.connect(1, 1).is_ok());
        assert_eq!(limited.send(&query(2, 40002, 53)), Err(Verdict::Drop(DropReason::TotalRate)));
    }
}
