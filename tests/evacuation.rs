//! Moving flows off servers in a gateway of several shards: each service's own policy, and RSTs by the outlet.

#![cfg(feature = "gateway")]

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use gatun::command::RESET_BUDGET;
use gatun::io::device::Device;
use gatun::io::memory::{self, Memory};
use gatun::io::{Cause, Gateway};
use gatun::service::{FlowPolicy, PortRange, Protocols, ServerId, ServiceSpec, Snapshot, SnapshotSpec};
use gatun::verdict::Verdict;
use gatun::wire::PacketBuf;

use support::oracle;
use support::packet::{ACK, Build, RST, SYN, tcp};
use support::world::{ServiceSpecExt, service};

const CLIENTS: usize = 700;
const SERVERS: [&str; 2] = ["10.20.0.11", "10.20.0.12"];

fn web(port: u16, down: Option<FlowPolicy>, removed: FlowPolicy) -> ServiceSpec {
    let mut service = service(&format!("web{port}"), "203.0.113.10", PortRange::single(port), Protocols::Tcp)
        .server(SERVERS[0], None, 1)
        .server(SERVERS[1], None, 0);
    (service.on_server_down, service.on_server_removed) = (down, removed);
    service
}

fn gateway() -> (Gateway, Memory) {
    let services = vec![
        web(80, None, FlowPolicy::Keep),
        web(81, Some(FlowPolicy::Keep), FlowPolicy::Reset),
        web(82, None, FlowPolicy::Keep),
    ];
    let snapshot = Snapshot::build(SnapshotSpec { services, ..SnapshotSpec::default() }, None).expect("valid");
    let gateway = Gateway::new(Arc::new(snapshot), 4, 1 << 16, [1, 2]);
    let (outlet, far) = memory::pair(1 << 14);
    gateway.set_outlet(Box::new(outlet));
    (gateway, far)
}

fn feed(gateway: &Gateway, packet: &Build) {
    let mut released = Vec::new();
    assert_eq!(gateway.handle_packet(&mut packet.buf(), &mut released), Verdict::Forward);
    assert!(released.is_empty());
}

fn connect_all(gateway: &Gateway, port: u16) {
    for n in 0..CLIENTS {
        let client = SocketAddr::new([198, 51, (n >> 8) as u8, n as u8].into(), 40000);
        let vip = SocketAddr::new([203, 0, 113, 10].into(), port);
        let server = SocketAddr::new(SERVERS[0].parse().expect("an address"), port);
        feed(gateway, &tcp(client, vip).syn());
        feed(gateway, &tcp(server, client).flags(SYN | ACK).seq(5000, 1001));
        feed(gateway, &tcp(client, vip).flags(ACK).seq(1001, 5001));
    }
}

fn first_servers(gateway: &Gateway) -> Vec<ServerId> {
    gateway.snapshot().live.iter().rev().map(|service| service.servers[0].id).collect()
}

/// How many RSTs came, to servers and to clients.
fn resets(far: &mut Memory) -> (usize, usize) {
    let mut counts = (0, 0);
    let mut buf = PacketBuf::with_capacity(1500);
    while far.receive(&mut buf).expect("the outlet is there") {
        assert!(oracle::checksums_are_right(buf.packet()));
        let packet = oracle::decode(buf.packet()).expect("a packet");
        assert_ne!(packet.tcp.expect("TCP").flags & RST, 0);
        match SERVERS.iter().any(|server| *server == packet.dst.to_string()) {
            true => counts.0 += 1,
            false => counts.1 += 1,
        }
    }
    counts
}

fn flows(gateway: &Gateway) -> usize {
    gateway.shards().iter().map(|shard| shard.lock().occupancy().0).sum()
}

#[test]
fn every_service_has_its_way_in_every_shard() {
    let (gateway, mut far) = gateway();
    [80, 81, 82].into_iter().for_each(|port| connect_all(&gateway, port));
    assert!(gateway.shards().iter().all(|shard| shard.lock().occupancy().0 > RESET_BUDGET));
    let set = |up: bool, draining: bool| {
        for service in &gateway.snapshot().live {
            service.servers[0].state.set_up(gateway.now(), up);
            service.servers[0].state.set_draining(draining);
        }
    };
    for cause in [Cause::Down, Cause::Drained(FlowPolicy::Reset)] {
        assert_eq!(gateway.evacuate(&first_servers(&gateway), cause), 0, "it serves again");
    }
    set(false, false);
    // The services at 80 and 82 want their flows reset, that at 81 wants to keep them.
    assert_eq!(gateway.evacuate(&first_servers(&gateway), Cause::Down), 2 * CLIENTS as u64);
    assert_eq!((resets(&mut far), flows(&gateway)), ((2 * CLIENTS, 2 * CLIENTS), CLIENTS));
    assert_eq!(gateway.evacuate(&first_servers(&gateway), Cause::Removed), CLIENTS as u64);
    assert_eq!((resets(&mut far), flows(&gateway)), ((CLIENTS, CLIENTS), 0));
    set(true, false);
    connect_all(&gateway, 80);
    set(true, true);
    assert_eq!(gateway.evacuate(&first_servers(&gateway), Cause::Drained(FlowPolicy::Keep)), 0);
    assert_eq!(gateway.evacuate(&[], Cause::Drained(FlowPolicy::Reset)), 0);
    assert_eq!(gateway.evacuate(&first_servers(&gateway), Cause::Drained(FlowPolicy::Reset)), CLIENTS as u64);
}

#[test]
fn other_tasks_run_meanwhile() {
    let (gateway, _far) = gateway();
    connect_all(&gateway, 80);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let turns = runtime.block_on(async {
        let gateway = Arc::new(gateway);
        let servers = first_servers(&gateway);
        gateway.snapshot().live[0].servers[0].state.set_up(gateway.now(), false);
        let evacuation = {
            let gateway = gateway.clone();
            async move { gatun::control::evacuate::evacuate(&gateway, &servers, Cause::Down).await }
        };
        let mut turns = 0;
        let counting = async {
            loop {
                tokio::task::yield_now().await;
                turns += 1;
            }
        };
        tokio::select! {
            biased;
            ended = evacuation => assert_eq!(ended, CLIENTS as u64),
            () = counting => {}
        }
        turns
    });
    assert!(turns >= 2, "no turn between slices: {turns}");
}
