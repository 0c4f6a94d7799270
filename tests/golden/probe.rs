//! The gateway's own probes: pinned to a server whatever its state, counted nowhere, and reached by nobody else's packets.

use std::net::SocketAddr;
use std::sync::Arc;

use gatun::command::{Command, FlowFilter, FlowRecord, Outcome, ProbeFault};
use gatun::engine::Engine;
use gatun::flow::Marks;
use gatun::service::{Method, PortRange, Protocols, ServerId, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::timeouts::Timeouts;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf, Protocol, Tuple};

use crate::support::oracle;
use crate::support::packet::{ACK, Build, IcmpError, SYN, icmp_error, tcp, udp};
use crate::support::world::{self, ServiceSpecExt, addr, service};
use crate::{Net, fullnat};

const NOW: Instant = Instant::ZERO;
/// Flows in the table at most.
const ROOM: usize = 8;

/// The gateway's own address towards its servers, and a port of those that are for probes.
fn own(net: Net, port: u16) -> SocketAddr {
    (if net.is_v4() { "10.20.0.1" } else { "fd20::1" }.parse::<std::net::IpAddr>().unwrap(), port).into()
}

/// TCP 80 and UDP 53 by `method` to two servers, which have a port of their own where that can be.
fn spec(net: Net, method: Method) -> SnapshotSpec {
    let vip = net.vip(0).ip().to_string();
    let port = (!method.is_one_way()).then_some(8080);
    let servers = [net.rs(1, 0).ip().to_string(), net.rs(2, 0).ip().to_string()];
    let add =
        |name: &str, at, protocols| {
            let mut service = service(name, &vip, PortRange::single(at), protocols)
                .server(&servers[0], port, 1)
                .server(&servers[1], port, 1);
            (service.method, service.pool) = (method, fullnat::pool_of(net));
            service.servers[1].max_connections = Some(1);
            service
        };
    let tunnel_sources = servers.iter().map(|server| (addr(server), Addr::from(own(net, 0).ip()))).collect();
    let services = vec![add("web", 80, Protocols::Tcp), add("dns", 53, Protocols::Udp)];
    SnapshotSpec { services, tunnel_sources, ..SnapshotSpec::default() }
}

struct World {
    net: Net,
    method: Method,
    engine: Engine,
    spec: SnapshotSpec,
}

impl World {
    fn new(net: Net, method: Method) -> World {
        let spec = spec(net, method);
        let snapshot = Snapshot::build(spec.clone(), None).expect("valid");
        World { net, method, engine: world::engine(snapshot.into(), ROOM), spec }
    }

    fn every() -> impl Iterator<Item = World> {
        Net::BOTH.into_iter().flat_map(|net| Method::OF_SERVICES.iter().map(move |method| World::new(net, *method)))
    }

    fn name(&self) -> String {
        format!("{:?} {}", self.net, self.method.word())
    }

    /// The second server of the first service, or of the second one.
    fn server(&self, service: usize) -> ServerId {
        self.engine.snapshot().live[service].servers[1].id
    }

    fn tuple(&self, port: u16) -> Tuple {
        tuple(own(self.net, port), self.net.vip(80), Protocol::TCP)
    }

    fn begin(&mut self, original: Tuple, server: ServerId) -> Outcome {
        let outcome = self.engine.apply(NOW, Command::Probe { original, server });
        self.engine.check_invariants();
        outcome
    }

    fn probe(&mut self, packet: &Build) -> (Verdict, PacketBuf) {
        let mut buf = packet.buf();
        let verdict = self.engine.handle_probe(NOW, &mut buf);
        self.engine.check_invariants();
        (verdict, buf)
    }

    fn device(&mut self, packet: &Build) -> (Verdict, PacketBuf) {
        let mut buf = packet.buf();
        let verdict = self.engine.handle_packet(NOW, &mut buf);
        self.engine.check_invariants();
        (verdict, buf)
    }

    /// As whom the server knows the probe from `own`.
    fn seen_as(&self, own: SocketAddr) -> SocketAddr {
        let (flows, _) = self.engine.flows(NOW, 0, 2000);
        let is_it = |flow: &&FlowRecord| (flow.original.src.ip(), flow.original.sport) == (own.ip(), own.port());
        match flows.iter().find(is_it) {
            Some(flow) => (flow.reply.dst.ip(), flow.reply.dport).into(),
            None if self.method == Method::Fullnat => fullnat::pool(self.net, 0, 5000),
            None => own,
        }
    }

    /// What becomes of a packet that nobody waits for.
    fn unexpected(&self) -> Verdict {
        match self.method {
            Method::Fullnat => Verdict::Refuse(DropReason::NoService),
            _ => Verdict::Pass,
        }
    }

    /// What the server of the probe from `own` sends back.
    fn answer(&self, own: SocketAddr) -> Build {
        let from = if self.method.is_one_way() { self.net.vip(80) } else { self.net.rs(2, 8080) };
        tcp(from, self.seen_as(own)).flags(SYN | ACK).seq(5000, 1001)
    }

    /// That a packet on its way to the second server goes there.
    fn assert_goes_to_second(&self, buf: &PacketBuf) {
        let server = self.net.rs(2, 0).ip();
        match self.method {
            Method::Nat | Method::Fullnat | Method::Masquerade => {
                let out = oracle::decode(buf.packet()).expect("a packet");
                assert!(oracle::checksums_are_right(buf.packet()));
                assert_eq!((out.dst, out.ports.expect("ports").1), (server, 8080), "{}", self.name());
            }
            Method::Direct => assert_eq!(buf.hop, Some(Addr::from(server)), "{}", self.name()),
            Method::Tunnel => {
                let at = if self.net.is_v4() { 16..20 } else { 24..40 };
                assert_eq!(&buf.packet()[at], Addr::from(server).wire(), "{}", self.name());
            }
        }
    }
}

fn tuple(src: SocketAddr, dst: SocketAddr, protocol: Protocol) -> Tuple {
    Tuple { src: src.ip().into(), dst: dst.ip().into(), sport: src.port(), dport: dst.port(), protocol }
}

#[test]
fn a_probe_goes_to_its_server_whatever_its_state_and_its_answers_come_to_it_alone() {
    for mut world in World::every() {
        let (net, name) = (world.net, world.name());
        let (id, me) = (world.server(0), own(net, 61000));
        let server = world.engine.snapshot().server(id).expect("there").clone();
        // Full, draining, down: each of them, and then all together.
        for (number, state) in (0..4).zip([(true, false), (false, true), (false, false), (true, true)]) {
            server.state.set_up(NOW, state.0);
            server.state.set_draining(state.1);
            if number == 3 {
                let client = tcp(net.client(1), net.vip(80)).syn();
                server.state.set_draining(false);
                let fill = [world.device(&client), world.device(&tcp(net.client(2), net.vip(80)).syn())];
                assert!(fill.iter().all(|(verdict, _)| *verdict == Verdict::Forward));
                server.state.set_draining(true);
                assert!(server.state.is_full(), "{name}");
            }
            let original = world.tuple(me.port() + number);
            let me = own(net, me.port() + number);
            assert_eq!(world.begin(original, id), Outcome::Done, "{name}");
            let (verdict, out) = world.probe(&tcp(me, net.vip(80)).syn());
            assert_eq!(verdict, Verdict::Forward, "{name}");
            world.assert_goes_to_second(&out);
            let (verdict, out) = world.device(&world.answer(me));
            assert_eq!(verdict, Verdict::Deliver, "{name}");
            assert!(!verdict.sends());
            let seen = oracle::decode(out.packet()).expect("a packet");
            assert_eq!((seen.src, seen.dst), (net.vip(0).ip(), me.ip()), "{name}: as a client would see it");
            assert_eq!(seen.ports, Some((80, me.port())), "{name}");
            assert!(oracle::checksums_are_right(out.packet()), "{name}");
            let (verdict, out) = world.probe(&tcp(me, net.vip(80)).flags(ACK).seq(1001, 5001));
            assert_eq!(verdict, Verdict::Forward, "{name}");
            world.assert_goes_to_second(&out);
        }
    }
}

#[test]
fn probes_are_no_load_no_traffic_and_no_event() {
    for mut world in World::every() {
        let (net, name, id) = (world.net, world.name(), world.server(0));
        let (me, server) = (own(net, 61001), world.engine.snapshot().server(id).expect("there").clone());
        world.engine.apply(NOW, Command::Watch(true));
        let scheduler = world.engine.snapshot().live[0].scheduler.state();
        world.begin(world.tuple(61001), id);
        for packet in [tcp(me, net.vip(80)).syn(), tcp(me, net.vip(80)).flags(ACK).seq(1001, 5001)] {
            assert_eq!(world.probe(&packet).0, Verdict::Forward, "{name}");
            assert_eq!(world.device(&world.answer(me)).0, Verdict::Deliver, "{name}");
        }
        assert_eq!((server.load.flows(), server.load.active(), server.load.inactive()), (0, 0, 0), "{name}");
        assert!(!server.state.is_full(), "{name}");
        assert_eq!(server.load.admitted(), 0, "{name}");
        assert_eq!(world.engine.traffic(id), Default::default(), "{name}");
        assert_eq!(world.engine.occupancy(), (0, ROOM), "{name}");
        assert_eq!(world.engine.snapshot().live[0].scheduler.state(), scheduler, "{name}");
        let stats = world.engine.stats();
        assert_eq!((stats.flows_created, stats.forwarded, stats.delivered), (0, 0, 2), "{name}");
        // A list shows it for what it is.
        let (flows, _) = world.engine.flows(NOW, 0, 10);
        assert_eq!(flows.len(), 1, "{name}");
        assert!(flows[0].marks.has(Marks::PROBE) && flows[0].server == id, "{name}");
        world.engine.apply(NOW, Command::EndProbe(world.tuple(61001)));
        world.engine.check_invariants();
        assert_eq!(world.engine.flows(NOW, 0, 10).0.len(), 0, "{name}");
        assert_eq!((server.load.flows(), server.load.active(), server.load.inactive()), (0, 0, 0), "{name}");
        assert!(world.engine.poll_event().is_none(), "{name}: nobody's connection");
    }
}

#[test]
fn nobody_else_gets_in() {
    for mut world in World::every() {
        let (net, name, id) = (world.net, world.name(), world.server(0));
        let me = own(net, 61002);
        // Before there is a probe: what comes for its port is the host's, and its address is nothing special.
        assert_eq!(world.device(&world.answer(me)).0, world.unexpected(), "{name}");
        assert_eq!(world.probe(&tcp(me, net.vip(80)).syn()).0, Verdict::Drop(DropReason::ProbeEnded), "{name}");
        world.begin(world.tuple(61002), id);
        // A stranger at every address but the server's, and at the server's other ports.
        for from in [net.stranger(80), net.client(80), net.rs(1, 8080), net.rs(2, 81), net.vip(81)] {
            let to = world.seen_as(me);
            let verdict = world.device(&tcp(from, to).flags(SYN | ACK).seq(5000, 1001)).0;
            // Nobody asks the gateway under its own address.
            let is_forged = from == net.vip(81) && world.method == Method::Fullnat;
            let expected = if is_forged { Verdict::Drop(DropReason::SpoofedSource) } else { world.unexpected() };
            assert_eq!(verdict, expected, "{name}: from {from}");
        }
        // From the device nothing is a probe's, whatever it says of its source.
        let spoofed = world.device(&tcp(me, net.vip(80)).syn()).0;
        assert_eq!(spoofed, Verdict::Drop(DropReason::ProbeForged), "{name}");
        // The address spoofed with another port is a client like any other, if a tunnel does not begin there.
        let client = world.device(&tcp(own(net, 61999), net.vip(80)).syn()).0;
        let tunnel = Verdict::Refuse(DropReason::TunnelLoop);
        assert_eq!(client, if world.method == Method::Tunnel { tunnel } else { Verdict::Forward }, "{name}");
        // What is no probe's does not leave as one.
        for packet in [tcp(own(net, 61999), net.vip(80)).syn(), tcp(net.client(1), net.vip(80)).syn()] {
            assert_eq!(world.probe(&packet).0, Verdict::Drop(DropReason::ProbeEnded), "{name}");
        }
        // Answers in fragments cannot be read.
        let mut fragment = world.answer(me);
        fragment.payload = vec![0; 64];
        let fragments = fragment.fragments(48);
        let mut first = PacketBuf::from_packet(&fragments[0]);
        let verdict = world.engine.handle_packet(NOW, &mut first);
        assert_eq!(verdict, Verdict::Drop(DropReason::ProbeLost), "{name}");
        let mut later = PacketBuf::from_packet(&fragments[1]);
        let verdict = world.engine.handle_packet(NOW, &mut later);
        assert_eq!(verdict, Verdict::Drop(DropReason::ProbeLost), "{name}");
    }
}

#[test]
fn a_tuple_that_a_client_has_is_not_a_probes() {
    for mut world in World::every() {
        let (net, name, id) = (world.net, world.name(), world.server(0));
        // A program of the gateway's host as a client.
        world.device(&tcp(own(net, 61003), net.vip(80)).syn());
        let taken = Outcome::NotProbed(ProbeFault::Taken);
        assert_eq!(world.begin(world.tuple(61003), id), taken, "{name}");
        world.engine.apply(NOW, Command::EndProbe(world.tuple(61003)));
        assert_eq!(world.engine.occupancy().0, 1, "{name}: a client's flow is not a probe to end");
        assert_eq!(world.begin(world.tuple(61004), id), Outcome::Done, "{name}");
        assert_eq!(world.begin(world.tuple(61004), id), taken, "{name}");
        let nobody = Outcome::NotProbed(ProbeFault::NoServer);
        assert_eq!(world.begin(world.tuple(61005), ServerId(99)), nobody, "{name}");
    }
}

#[test]
fn probes_neither_need_nor_take_the_room_of_clients() {
    for mut world in World::every() {
        let (net, name, id) = (world.net, world.name(), world.server(0));
        for n in 0..ROOM as u16 {
            assert_eq!(world.device(&tcp(net.client(1000 + n), net.vip(80)).syn()).0, Verdict::Forward, "{name}");
        }
        let mut begun = 0;
        while world.engine.apply(NOW, Command::Probe { original: world.tuple(60000 + begun), server: id })
            == Outcome::Done
        {
            begun += 1;
        }
        assert_eq!(usize::from(begun), 1024, "{name}: there is a bound");
        let full = Outcome::NotProbed(ProbeFault::Full);
        assert_eq!(world.begin(world.tuple(61999), id), full, "{name}");
        assert_eq!((world.engine.occupancy(), world.engine.stats().flows_evicted), ((ROOM, ROOM), 0), "{name}");
        // A flood takes the places of clients that have not finished their handshake, and never that of a probe.
        for n in 0..100 {
            assert_eq!(world.device(&tcp(net.client(2000 + n), net.vip(80)).syn()).0, Verdict::Forward, "{name}");
        }
        assert_eq!((world.engine.occupancy(), world.engine.stats().flows_evicted), ((ROOM, ROOM), 100), "{name}");
        assert_eq!(world.probe(&tcp(own(net, 61000), net.vip(80)).syn()).0, Verdict::Forward, "{name}");
        // Ended ones make room.
        world.engine.apply(NOW, Command::EndProbe(world.tuple(61000)));
        assert_eq!(world.begin(world.tuple(61999), id), Outcome::Done, "{name}");
        // Whoever flushes the table ends probes as well; those that nobody ends expire.
        world.engine.handle_timeout(NOW + Timeouts::PROBE);
        assert_eq!(world.begin(world.tuple(61000), id), Outcome::Done, "{name}");
        world.engine.apply(NOW, Command::Delete { filter: FlowFilter::default(), cursor: 0 });
        world.engine.check_invariants();
        assert_eq!(world.engine.flows(NOW, 0, 1000).0.len(), 0, "{name}");
        assert_eq!(world.probe(&tcp(own(net, 61000), net.vip(80)).syn()).0, Verdict::Drop(DropReason::ProbeEnded));
    }
}

#[test]
fn a_probe_ends_with_its_server_and_no_later_one_gets_it() {
    for mut world in World::every() {
        let (net, name, id) = (world.net, world.name(), world.server(0));
        world.begin(world.tuple(61006), id);
        let syn = tcp(own(net, 61006), net.vip(80)).syn();
        let swap = |world: &mut World| {
            let next = Snapshot::build(world.spec.clone(), Some(world.engine.snapshot())).expect("valid");
            world.engine.apply(NOW, Command::Swap(Arc::new(next)));
            world.engine.check_invariants();
        };
        // Another weight is no other server.
        world.spec.services[0].servers[1].weight = 7;
        swap(&mut world);
        assert_eq!(world.probe(&syn).0, Verdict::Forward, "{name}");
        // Gone, and then its number is another's.
        world.spec.services[0].servers.truncate(1);
        swap(&mut world);
        let at = net.rs(3, 0).ip();
        world.spec.services[0] = world.spec.services[0].clone().server(&at.to_string(), None, 1);
        swap(&mut world);
        assert_eq!(world.server(0), id, "{name}: the number is used again");
        assert_eq!(world.probe(&syn).0, Verdict::Drop(DropReason::ProbeEnded), "{name}");
    }
}

#[test]
fn errors_about_a_probe_come_to_it() {
    for mut world in World::every() {
        let (net, name, id) = (world.net, world.name(), world.server(1));
        let me = own(net, 61007);
        world.begin(tuple(me, net.vip(53), Protocol::UDP), id);
        let question = udp(me, net.vip(53)).payload(b"a question");
        let (verdict, out) = world.probe(&question);
        assert_eq!(verdict, Verdict::Forward, "{name}");
        let sent = if world.method == Method::Tunnel { question.bytes() } else { out.packet().to_vec() };
        let error = icmp_error(net.rs(2, 0), world.seen_as(me), IcmpError::PortUnreachable, &sent);
        let (verdict, told) = world.device(&error);
        assert_eq!(verdict, Verdict::Deliver, "{name}");
        let quoted = &told.packet()[if net.is_v4() { 28 } else { 48 }..];
        let quoted = oracle::decode(quoted).expect("the packet that it is about");
        assert_eq!((quoted.src, quoted.dst), (me.ip(), net.vip(0).ip()), "{name}: as it was sent");
        // One that quotes something else is the host's own.
        let foreign = udp(own(net, 61008), net.rs(2, 8080)).bytes();
        let error = icmp_error(net.rs(2, 0), me, IcmpError::PortUnreachable, &foreign);
        assert_eq!(world.device(&error).0, Verdict::Pass, "{name}");
    }
}
