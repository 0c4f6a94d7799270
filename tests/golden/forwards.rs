//! Forwarded ports, and what a reload does to mappings.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Net;
use crate::hairpin::with_forward;
use crate::masquerade::{World, spec, with};
use crate::support::packet::{ACK, SYN, tcp, udp};
use gatun::command::{Command, FlowFilter, MappingRecord, Outcome};
use gatun::service::{Filtering, ForwardSpec, PortRange, Protocols, ServiceId, Snapshot, SnapshotSpec};
use gatun::verdict::{DropReason, Verdict};

impl World {
    pub fn reload(&mut self, spec: SnapshotSpec) {
        let next = Snapshot::build(spec, Some(self.engine.snapshot())).expect("it is valid");
        assert_eq!(self.engine.apply(self.now, Command::Swap(next.into())), Outcome::Done);
        self.engine.check_invariants();
    }

    fn delete_all(&mut self) {
        self.engine.apply(self.now, Command::Delete { filter: FlowFilter::default(), cursor: 0 });
        self.engine.check_invariants();
    }

    /// Inside and outside endpoints, flows, and whether it is forwarded.
    fn mappings(&self) -> Vec<(SocketAddr, SocketAddr, u32, bool)> {
        let (mut all, mut cursor) = (Vec::new(), Some(0));
        while let Some(at) = cursor {
            let (records, next) = self.engine.mappings(self.now, at, 2);
            assert!(records.len() <= 2);
            all.extend(records);
            cursor = next;
        }
        let end = |(addr, port): (gatun::wire::Addr, u16)| SocketAddr::new(addr.ip(), port);
        let tell = |record: MappingRecord| (end(record.inside), end(record.outside), record.flows, record.is_forward);
        all.into_iter().map(tell).collect()
    }
}

/// An address of its own, all of whose ports from 7000 to 7003 lead to inside host 9, TCP and UDP.
fn with_own_address(net: Net, spec: SnapshotSpec) -> SnapshotSpec {
    let forward = ForwardSpec {
        name: "game".into(),
        address: net.vip2(0).ip().into(),
        ports: PortRange { first: 7000, last: 7003 },
        protocols: Protocols::TcpAndUdp,
        to: net.inside(9, 0).ip().into(),
        to_port: None,
    };
    // No service is at that address.
    let services = spec.services.into_iter().filter(|service| service.vip != forward.address).collect();
    SnapshotSpec { forwards: vec![forward], services, ..spec }
}

#[test]
fn a_forwarded_port_leads_in_and_its_endpoint_out() {
    for net in Net::BOTH {
        // Filtering is for mappings of the pool; who forwards a port wants everybody.
        let strict = SnapshotSpec {
            forwards: with_forward(net).forwards,
            ..with(net, |lan| lan.filtering = Filtering::AddressPort)
        };
        let mut world = World::new(strict);
        let (server, outside, client) = (net.inside(9, 80), net.pool(8080), net.client(4000));
        assert_eq!(world.mappings(), [(server, outside, 0, true)]);
        assert_eq!(world.send(tcp(client, outside).syn()), (client, server));
        assert_eq!(world.send(tcp(server, client).flags(SYN | ACK).seq(5000, 1001)), (outside, client));
        assert_eq!(world.send(tcp(client, outside).flags(ACK).seq(1001, 5001)), (client, server));
        assert_eq!(world.state(), ("ESTABLISHED", true));
        // What the server begins from that port has it too.
        assert_eq!(world.send(tcp(server, net.stranger(25)).syn()).0, outside);
        assert_eq!(world.mappings(), [(server, outside, 2, true)]);
        // From another one it goes out as any host.
        assert_ne!(world.send(tcp(net.inside(9, 8080), net.stranger(25)).syn()).0, outside);
        // UDP is not forwarded.
        assert_eq!(world.lose(udp(client, outside)), DropReason::NoMapping);
        // It stays when nobody uses it.
        world.delete_all();
        assert_eq!(world.mappings(), [(server, outside, 0, true)]);
        assert_eq!(world.send(tcp(client, outside).syn()), (client, server));
    }
}

#[test]
fn the_pool_does_not_give_forwarded_ports_away() {
    for net in Net::BOTH {
        let range = |lan: &mut gatun::service::MasqueradeSpec| lan.pool.ports = PortRange { first: 8078, last: 8081 };
        let mut spec = SnapshotSpec { forwards: with_forward(net).forwards, ..with(net, range) };
        let mut world = World::new(spec.clone());
        let mut ports: Vec<u16> =
            (1..=3).map(|host| world.send(tcp(net.inside(host, 8080), net.client(1)).syn()).0.port()).collect();
        ports.sort_unstable();
        assert_eq!(ports, [8078, 8079, 8081]);
        let (verdict, _) = world.give(tcp(net.inside(4, 8080), net.client(1)).syn());
        assert_eq!(verdict, Verdict::Refuse(DropReason::PoolExhausted));
        // Once it is forwarded no more it is one of the others.
        spec.forwards.clear();
        world.reload(spec);
        assert_eq!(world.send(tcp(net.inside(4, 8080), net.client(1)).syn()).0, net.pool(8080));
    }
}

#[test]
fn an_address_may_have_nothing_but_forwarded_ports() {
    for net in Net::BOTH {
        // Without a masquerade answers go out by the flow alone.
        let bare = SnapshotSpec { masquerades: Vec::new(), ..spec(net) };
        for (spec, is_masqueraded) in [(bare, false), (spec(net), true)] {
            let mut world = World::new(with_own_address(net, spec));
            let (server, outside, client) = (net.inside(9, 7002), net.vip2(7002), net.client(4000));
            // A range is told of as one, however long it is.
            assert_eq!(world.mappings().len(), 2);
            assert!(world.engine.mappings(world.now, 0, 9).0.iter().all(|record| record.ports == 4));
            assert_eq!(world.send(udp(client, outside)), (client, server));
            assert_eq!(world.send(udp(server, client)), (outside, client));
            assert_eq!(world.engine.flows(world.now, 0, 1).0[0].service, ServiceId::FORWARD);
            assert_eq!(world.lose(udp(client, net.vip2(6999))), DropReason::NoMapping);
            let (verdict, sent) = world.give(udp(server, net.stranger(1)));
            match is_masqueraded {
                true => assert_eq!((verdict, crate::masquerade::ends(&sent).0), (Verdict::Forward, outside)),
                false => assert_eq!(verdict, Verdict::Pass),
            }
            assert_eq!(world.mappings().len(), 3);
        }
    }
}

#[test]
fn the_first_of_two_forwards_is_the_way_out() {
    for net in Net::BOTH {
        let mut spec = with_forward(net);
        let second = ForwardSpec { name: "again".into(), ports: PortRange::single(9090), ..spec.forwards[0].clone() };
        spec.forwards.push(second);
        let mut world = World::new(spec);
        let server = net.inside(9, 80);
        for (number, port) in [9090, 8080, 9090].into_iter().enumerate() {
            let client = net.client(4000 + number as u16);
            assert_eq!(world.send(tcp(client, net.pool(port)).syn()), (client, server));
            assert_eq!(world.send(tcp(server, client).flags(SYN | ACK).seq(1, 1001)), (net.pool(port), client));
        }
        assert_eq!(world.send(tcp(server, net.stranger(1)).syn()).0, net.pool(8080));
    }
}

#[test]
fn a_reload_leaves_flows_and_changes_what_begins() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        let (inside, outside, remote) = (net.inside(1, 40000), net.pool(40000), net.client(53));
        world.send(udp(inside, remote));
        // Another address.
        let mut other = spec(net);
        other.masquerades[0].pool.addresses = vec![net.vip2(0).ip().into()];
        other.services.clear();
        world.reload(other);
        assert_eq!(world.send(udp(remote, outside)).1, inside, "the flow goes on");
        assert_eq!(world.send(udp(inside, remote)).0, outside);
        // Nobody new comes in by the old mapping, and what inside begins has another.
        assert_eq!(world.lose(udp(net.stranger(1), outside)), DropReason::NoMapping);
        assert_eq!(world.send(udp(inside, net.stranger(1))).0, net.vip2(40000));
        assert_eq!(world.send(udp(net.stranger(2), net.vip2(40000))).1, inside);
        assert_eq!(world.send(udp(remote, outside)).1, inside);
        // Ids and addresses are there for as long as flows are.
        let old = |world: &World| world.engine.snapshot().pools.of(outside.ip().into()).map(|pool| pool.state.count());
        assert_eq!(old(&world), Some(1));
        world.delete_all();
        assert_eq!(old(&world), Some(0));
        let masquerade = world.engine.snapshot().pools.live[0].clone();
        assert_eq!(masquerade.state.count(), 0);
        // And without any masquerade.
        world.wait(6);
        world.send(udp(inside, remote));
        assert_eq!(masquerade.state.count(), 1);
        world.reload(SnapshotSpec { masquerades: Vec::new(), services: Vec::new(), ..spec(net) });
        assert_eq!(world.send(udp(remote, net.vip2(40000))).1, inside);
        assert_eq!(world.engine.flows(world.now, 0, 1).0[0].service, masquerade.id);
        assert_eq!(world.give(udp(inside, net.stranger(1))).0, Verdict::Pass);
        world.delete_all();
        assert_eq!(masquerade.state.count(), 0);
    }
}

#[test]
fn a_port_that_is_forwarded_later_on_is_so_for_what_begins() {
    for net in Net::BOTH {
        let mut world = World::new(spec(net));
        // Somebody else has the outside port, and the inside endpoint another one.
        let (holder, server, remote) = (net.inside(1, 8080), net.inside(9, 80), net.client(1));
        assert_eq!(world.send(tcp(holder, remote).syn()).0, net.pool(8080));
        let before = world.send(tcp(server, remote).syn()).0;
        assert_ne!(before, net.pool(8080));
        world.reload(with_forward(net));
        assert_eq!(world.send(tcp(holder, remote).syn()).0, net.pool(8080), "what there is goes on");
        assert_eq!(world.send(tcp(server, remote).syn()).0, before);
        assert_eq!(world.send(tcp(net.client(2), net.pool(8080)).syn()).1, server);
        assert_eq!(world.send(tcp(server, net.stranger(1)).syn()).0, net.pool(8080));
        assert_ne!(world.send(tcp(holder, net.stranger(2)).syn()).0, net.pool(8080), "it is not the holder's any more");
        world.delete_all();
        world.wait(10);
        assert_ne!(world.send(tcp(net.inside(2, 8080), remote).syn()).0, net.pool(8080));
    }
}

#[test]
fn a_port_rests_before_another_host_gets_it() {
    for net in Net::BOTH {
        let range = |lan: &mut gatun::service::MasqueradeSpec| lan.pool.ports = PortRange::single(4000);
        let spec = SnapshotSpec { quarantine: Duration::from_secs(5), ..with(net, range) };
        let mut world = World::new(spec);
        assert_eq!(world.send(udp(net.inside(1, 1), net.client(1))).0, net.pool(4000));
        world.delete_all();
        for _ in 0..2 {
            let (verdict, _) = world.give(udp(net.inside(2, 1), net.client(1)));
            assert_eq!(verdict, Verdict::Refuse(DropReason::PoolExhausted));
            assert_eq!(world.lose(udp(net.client(1), net.pool(4000))), DropReason::NoMapping);
            let record = world.engine.pools()[0];
            assert_eq!((record.in_use, record.quarantined, record.size), (0, 1, 1));
            world.wait(2);
        }
        world.wait(1);
        assert_eq!(world.send(udp(net.inside(2, 1), net.client(1))).0, net.pool(4000));
        let record = world.engine.pools()[0];
        assert_eq!((record.in_use, record.quarantined, record.size), (1, 0, 1));
    }
}

#[test]
fn a_full_table_gives_up_what_nobody_has_answered() {
    for net in Net::BOTH {
        // Room for 64 flows: of all these endpoints the last ones have a mapping.
        let mut world = World::new(spec(net));
        for port in 0..200 {
            world.send(udp(net.inside(1, 2000 + port), net.client(1)));
        }
        assert_eq!((world.flows(), world.mappings().len()), (64, 64));
        assert_eq!(world.lose(udp(net.client(1), net.pool(2000))), DropReason::NoMapping);
        assert_eq!(world.send(udp(net.client(1), net.pool(2199))).1, net.inside(1, 2199));
        // Not what is in use both ways.
        let mut world = World::new(spec(net));
        for port in 0..64 {
            let (inside, outside) = (net.inside(1, 2000 + port), net.pool(2000 + port));
            world.send(udp(inside, net.client(1)));
            world.send(udp(net.client(1), outside));
            world.send(udp(inside, net.client(1)));
        }
        assert_eq!(world.lose(udp(net.inside(1, 5000), net.client(1))), DropReason::TableFull);
        assert_eq!(world.lose(udp(net.stranger(1), net.pool(2000))), DropReason::TableFull);
    }
}
