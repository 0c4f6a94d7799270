//! Another snapshot comes into force: flows go on, new ones follow the new configuration.

use std::sync::Arc;
use std::time::Duration;

use gatun::command::{Command, FlowFilter, Outcome};
use gatun::engine::Engine;
use gatun::service::{ServiceSpec, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::Addr;

use crate::Net;
use crate::support::oracle;
use crate::support::packet::{ACK, Build, SYN, tcp, udp};
use crate::support::world;

/// An engine, and what it is configured with.
struct Gateway {
    net: Net,
    spec: SnapshotSpec,
    engine: Engine,
}

impl Gateway {
    fn new(net: Net) -> Gateway {
        let spec = net.spec();
        let snapshot = Snapshot::build(spec.clone(), None).expect("valid");
        Gateway { net, spec, engine: world::engine(snapshot.into(), 64) }
    }

    fn reload(&mut self, change: impl FnOnce(&mut SnapshotSpec)) {
        change(&mut self.spec);
        let next = Snapshot::build(self.spec.clone(), Some(self.engine.snapshot())).expect("valid");
        assert_eq!(next.generation, self.engine.snapshot().generation + 1);
        assert_eq!(self.engine.apply(Instant::ZERO, Command::Swap(Arc::new(next))), Outcome::Done);
        self.engine.check_invariants();
    }

    /// Where a packet goes.
    fn send(&mut self, packet: &Build) -> Result<std::net::SocketAddr, Verdict> {
        let mut buf = packet.buf();
        let verdict = self.engine.handle_packet(Instant::ZERO, &mut buf);
        self.engine.check_invariants();
        match verdict {
            Verdict::Forward => {
                assert!(oracle::checksums_are_right(buf.packet()));
                let out = oracle::decode(buf.packet()).expect("a packet");
                Ok((out.dst, out.ports.expect("ports").1).into())
            }
            other => Err(other),
        }
    }

    /// A SYN of client `n`, and the server that it went to.
    fn connect(&mut self, n: u8) -> Result<std::net::SocketAddr, Verdict> {
        self.send(&tcp(self.net.other(n, 40000), self.net.vip(80)).syn())
    }
}

fn find<'a>(spec: &'a mut SnapshotSpec, name: &str) -> &'a mut ServiceSpec {
    spec.services.iter_mut().find(|service| service.name == name).expect(name)
}

#[test]
fn flows_stay_with_their_server_when_it_is_drained_or_removed() {
    for net in Net::BOTH {
        let mut gateway = Gateway::new(net);
        let (rs1, rs2) = (net.rs(1, 8080), net.rs(2, 8080));
        assert_eq!(gateway.connect(1), Ok(rs1));
        gateway.reload(|spec| find(spec, "web").servers[0].weight = 0);
        assert_eq!((gateway.connect(2), gateway.connect(3)), (Ok(rs2), Ok(rs2)), "weight 0 takes no new flow");
        assert_eq!(gateway.connect(1), Ok(rs1), "its flows go on");
        gateway.reload(|spec| find(spec, "web").servers.truncate(0));
        assert_eq!(gateway.connect(1), Ok(rs1));
        let back = tcp(rs1, net.other(1, 40000)).flags(SYN | ACK).seq(5000, 1001);
        assert_eq!(gateway.send(&back), Ok(net.other(1, 40000)));
        assert_eq!(gateway.connect(4), Err(Verdict::Refuse(DropReason::NoServer)));
        // The flow still counts for the server that is gone.
        let flow = gateway.engine.flows(Instant::ZERO, 0, 1).0.remove(0);
        let server = gateway.engine.snapshot().server(flow.server).expect("it is kept while it has flows").clone();
        assert_eq!((server.address, server.load.inactive() + server.load.active()), (Addr::from(rs1.ip()), 1));
    }
}

#[test]
fn the_flows_of_a_removed_service_go_on_and_its_vip_stays_one() {
    for net in Net::BOTH {
        let mut gateway = Gateway::new(net);
        let (client, vip, rs) = (net.client(7), net.vip2(700), net.rs(1, 700));
        assert_eq!(gateway.send(&udp(client, vip)), Ok(rs));
        gateway.reload(|spec| spec.services.retain(|service| service.name == "web"));
        assert!(gateway.engine.snapshot().is_vip(Addr::from(vip.ip())));
        assert_eq!(gateway.send(&udp(client, vip)), Ok(rs));
        assert_eq!(gateway.send(&udp(rs, client)), Ok(client));
        assert_eq!(gateway.send(&udp(net.other(1, 1), vip)), Err(Verdict::Refuse(DropReason::NoService)));
        // Once its last flow is gone, the next reloads forget it.
        gateway.engine.apply(Instant::ZERO, Command::Delete { filter: FlowFilter::default(), cursor: 0 });
        gateway.reload(|_| ());
        assert!(!gateway.engine.snapshot().is_vip(Addr::from(vip.ip())));
        assert_eq!(gateway.send(&udp(client, vip)), Err(Verdict::Pass));
    }
}

#[test]
fn a_service_that_comes_back_serves_again() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net);
    let all = gateway.spec.services.clone();
    assert_eq!(gateway.connect(1), Ok(net.rs(1, 8080)));
    gateway.reload(|spec| spec.services.clear());
    assert_eq!(gateway.connect(1), Ok(net.rs(1, 8080)));
    gateway.reload(|spec| spec.services = all);
    assert_eq!(gateway.connect(1), Ok(net.rs(1, 8080)));
    assert!(gateway.connect(2).is_ok());
    assert_eq!(gateway.engine.occupancy().0, 2);
}

#[test]
fn an_unchanged_service_keeps_the_turn_of_its_scheduler() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net);
    let (rs1, rs2) = (net.rs(1, 8080), net.rs(2, 8080));
    let mut servers = Vec::new();
    for n in 0..6 {
        servers.push(gateway.connect(n).expect("served"));
        gateway.reload(|spec| find(spec, "dns").servers[0].weight = u32::from(n) + 1);
    }
    assert_eq!(servers, [rs1, rs2, rs1, rs2, rs1, rs2]);
}

#[test]
fn a_server_with_another_port_is_another_server() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net);
    assert_eq!(gateway.connect(1), Ok(net.rs(1, 8080)));
    gateway.reload(|spec| {
        for server in &mut find(spec, "web").servers {
            server.port = Some(9090);
        }
    });
    assert_eq!(gateway.connect(1), Ok(net.rs(1, 8080)));
    assert_eq!(gateway.connect(2).map(|server| server.port()), Ok(9090));
}

#[test]
fn traffic_of_a_server_survives_a_reload_and_a_new_one_starts_at_zero() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net);
    gateway.send(&udp(net.client(7), net.vip(53)).payload("x")).expect("served");
    let id = gateway.engine.flows(Instant::ZERO, 0, 1).0[0].server;
    let before = gateway.engine.traffic(id);
    assert_eq!(before.to_server.packets, 1);
    gateway.reload(|spec| find(spec, "web").servers[0].weight = 9);
    assert_eq!(gateway.engine.traffic(id), before);
    // The service goes with its flow; its number goes to a new server.
    gateway.engine.apply(Instant::ZERO, Command::Delete { filter: FlowFilter::default(), cursor: 0 });
    let dns = find(&mut gateway.spec, "dns").clone();
    gateway.reload(|spec| spec.services.retain(|service| service.name != "dns"));
    gateway.reload(|_| ());
    gateway.reload(|spec| {
        let mut service = dns;
        service.name = "other".into();
        service.servers[0].name = "new".into();
        spec.services.push(service);
    });
    let other =
        gateway.engine.snapshot().live.iter().find(|service| service.spec.name == "other").expect("there").clone();
    assert_eq!(gateway.engine.traffic(other.servers[0].id).to_server.packets, 0);
}

#[test]
fn a_new_mtu_clamps_at_once() {
    let net = Net::V4;
    let mut gateway = Gateway::new(net);
    gateway.reload(|spec| spec.mtu = 1300);
    let syn = tcp(net.client(1), net.vip(80)).syn().tcp_options(&crate::support::packet::mss(1460));
    let mut buf = syn.buf();
    assert_eq!(gateway.engine.handle_packet(Instant::ZERO, &mut buf), Verdict::Forward);
    assert_eq!(oracle::decode(buf.packet()).expect("a packet").tcp.expect("TCP").mss, Some(1260));
}

#[test]
fn changed_timeouts_hold_for_the_flows_there_are() {
    let net = Net::V4;
    let exchange = [
        udp(net.client(7), net.vip(53)),
        udp(net.rs(1, 53), net.client(7)),
        // Assured from here on: what is not may be elsewhere in the table.
        udp(net.client(7), net.vip(53)),
        udp(net.client(8), net.vip(53)),
    ];
    // Shorter ones within five minutes, longer ones at once.
    for (from, to, alive, gone) in [(7440, 60, 59, 301), (300, 2000, 1999, 2301)] {
        let mut gateway = Gateway::new(net);
        gateway.reload(|spec| spec.timeouts.udp = Duration::from_secs(from));
        for packet in &exchange {
            gateway.send(packet).expect("served");
        }
        gateway.reload(|spec| spec.timeouts.udp = Duration::from_secs(to));
        let mut left_at = |at: u64| {
            let now = Instant::from_secs(at);
            while gateway.engine.poll_timeout().is_some_and(|deadline| deadline <= now) {
                gateway.engine.handle_timeout(now);
            }
            gateway.engine.check_invariants();
            gateway.engine.occupancy().0
        };
        assert_eq!(left_at(alive), 2);
        assert_eq!(left_at(gone), 0);
    }
}
