//! How long a masquerade's mappings live (RFC 4787 REQ-5 and 6, RFC 5382 REQ-5, RFC 5508 REQ-2, RFC 7857 section 2): to the
//! second, with the default timeouts, under a clock that jumps. What netns-tests/rfc asks of them in real time is less.

use std::net::SocketAddr;
use std::time::Duration;

use gatun::engine::Engine;
use gatun::service::{MasqueradeSpec, Network, PoolSpec, Snapshot, SnapshotSpec};
use gatun::time::Instant;
use gatun::verdict::Verdict;
use gatun::wire::PacketBuf;

use crate::Net;
use crate::support::oracle;
use crate::support::packet::{ACK, Build, FIN, RST, SYN, Transport, echo, tcp, udp};
use crate::support::world::{self, addr};

const BEGIN: Instant = Instant::from_secs(1000);

/// A gateway with one masquerade, and the time there.
struct World {
    net: Net,
    engine: Engine,
    now: Instant,
}

impl World {
    fn new(net: Net) -> World {
        let (network, len, pool) =
            if net.is_v4() { ("10.40.0.0", 24, "203.0.113.100") } else { ("fd40::", 64, "2001:db8:f::100") };
        let masquerade = MasqueradeSpec {
            name: "lan".into(),
            from: vec![Network { address: addr(network), len }],
            pool: PoolSpec { addresses: vec![addr(pool)], ..PoolSpec::default() },
            ..MasqueradeSpec::default()
        };
        let spec = SnapshotSpec { masquerades: vec![masquerade], ..SnapshotSpec::default() };
        let snapshot = Snapshot::build(spec, None).expect("a valid snapshot");
        World { net, engine: world::engine(snapshot.into(), 64), now: BEGIN }
    }

    fn inside(&self, port: u16) -> SocketAddr {
        let ip = if self.net.is_v4() { "10.40.0.2" } else { "fd40::2" };
        SocketAddr::new(ip.parse().expect("an address"), port)
    }

    fn outside(&self, port: u16) -> SocketAddr {
        self.net.client(port)
    }

    /// So much later; what is due then has been done.
    fn later(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.engine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
        }
        self.now = end;
        self.engine.handle_timeout(end);
        self.engine.check_invariants();
    }

    /// What becomes of a packet; `None` when it does not go on.
    fn send(&mut self, packet: &Build) -> Option<oracle::Decoded> {
        let mut buf = PacketBuf::from_packet(&packet.bytes());
        let verdict = self.engine.handle_packet(self.now, &mut buf);
        self.engine.check_invariants();
        (verdict == Verdict::Forward).then(|| oracle::decode(buf.packet()).expect("a packet"))
    }

    /// Out through the masquerade: the outside endpoint.
    fn out(&mut self, packet: &Build) -> SocketAddr {
        let sent = self.send(packet).expect("it goes out");
        assert_ne!(sent.src, packet.src.ip(), "not translated");
        // An echo's identifier stands where the oracle sees no port.
        (sent.src, sent.ports.map_or(0, |ports| ports.0)).into()
    }

    fn comes_in(&mut self, packet: &Build) -> bool {
        let inside = self.inside(0).ip();
        self.send(packet).is_some_and(|sent| sent.dst == inside)
    }

    /// A connection from inside, established: its outside endpoint.
    fn establish(&mut self) -> SocketAddr {
        let (inside, server) = (self.inside(5000), self.outside(80));
        let out = self.out(&tcp(inside, server).syn().seq(100, 0));
        assert!(self.comes_in(&tcp(server, out).flags(SYN | ACK).seq(900, 101)));
        self.out(&tcp(inside, server).flags(ACK).seq(101, 901));
        out
    }
}

#[test]
fn rfc4787_req_05_a_mapping_lives_for_more_than_two_minutes() {
    for net in Net::BOTH {
        // A reply at 119 s, and one just before the default of five minutes, which RFC 4787 REQ-5c recommends.
        for (idle, alive) in [(119, true), (121, true), (299, true), (301, false)] {
            let mut world = World::new(net);
            let (inside, server) = (world.inside(5000), world.outside(53));
            let out = world.out(&udp(inside, server));
            world.later(idle);
            assert_eq!(world.comes_in(&udp(server, out)), alive, "{net:?}, {idle} s");
        }
    }
}

#[test]
fn rfc4787_req_06_outbound_packets_restart_the_timer() {
    for net in Net::BOTH {
        let mut world = World::new(net);
        let (inside, server) = (world.inside(5000), world.outside(53));
        let out = world.out(&udp(inside, server));
        for _ in 0..20 {
            world.later(290);
            assert_eq!(world.out(&udp(inside, server)), out, "{net:?}");
        }
        world.later(290);
        assert!(world.comes_in(&udp(server, out)), "{net:?}");
    }
}

#[test]
fn rfc4787_req_06a_inbound_packets_restart_it_as_well() {
    for net in Net::BOTH {
        let mut world = World::new(net);
        let (inside, server) = (world.inside(5000), world.outside(53));
        let out = world.out(&udp(inside, server));
        for _ in 0..3 {
            world.later(290);
            assert!(world.comes_in(&udp(server, out)), "{net:?}");
        }
    }
}

#[test]
fn rfc5382_req_05_an_established_connection_lives_for_two_hours_and_four_minutes() {
    for net in Net::BOTH {
        for (idle, alive) in [(7439, true), (7441, false)] {
            let mut world = World::new(net);
            let out = world.establish();
            world.later(idle);
            let data = tcp(world.outside(80), out).flags(ACK).seq(901, 101);
            assert_eq!(world.comes_in(&data), alive, "{net:?}, {idle} s");
        }
    }
}

/// Half-open, and closing: a connection that waits for an answer has four minutes.
#[test]
fn rfc5382_req_05_a_transitory_connection_lives_for_four_minutes() {
    for net in Net::BOTH {
        for (idle, alive) in [(239, true), (241, false)] {
            let mut world = World::new(net);
            let (inside, server) = (world.inside(5000), world.outside(80));
            let out = world.out(&tcp(inside, server).syn().seq(100, 0));
            world.later(idle);
            let answer = tcp(server, out).flags(SYN | ACK).seq(900, 101);
            assert_eq!(world.comes_in(&answer), alive, "{net:?}, a SYN, {idle} s");

            let mut world = World::new(net);
            let out = world.establish();
            world.out(&tcp(inside, server).flags(FIN | ACK).seq(101, 901));
            assert!(world.comes_in(&tcp(server, out).flags(FIN | ACK).seq(901, 102)));
            world.later(idle);
            let last = tcp(server, out).flags(ACK).seq(902, 102);
            assert_eq!(world.comes_in(&last), alive, "{net:?}, both FINs, {idle} s");
        }
    }
}

#[test]
fn rfc5508_req_02_a_query_lives_for_sixty_seconds() {
    for net in Net::BOTH {
        for (idle, alive) in [(59, true), (61, false)] {
            let mut world = World::new(net);
            let (inside, server) = (world.inside(0), world.outside(0));
            let mut request = PacketBuf::from_packet(&echo(inside, server, 77, 1).bytes());
            assert_eq!(world.engine.handle_packet(world.now, &mut request), Verdict::Forward);
            let sent = oracle::decode(request.packet()).expect("a packet");
            let id = &request.packet()[sent.l4 + 4..sent.l4 + 6];
            let mut reply = echo(server, SocketAddr::new(sent.src, 0), u16::from_be_bytes([id[0], id[1]]), 1);
            if let Transport::Icmp(kind, ..) = &mut reply.transport {
                *kind = if net.is_v4() { 0 } else { 129 };
            }
            world.later(idle);
            assert_eq!(world.comes_in(&reply), alive, "{net:?}, {idle} s");
        }
    }
}

/// RFC 7857 section 2.2: four minutes for what is still on its way, and then no more.
#[test]
fn rfc7857_s02_2_a_session_is_kept_for_four_minutes_after_a_reset() {
    for net in Net::BOTH {
        for (idle, alive) in [(239, true), (241, false)] {
            let mut world = World::new(net);
            let out = world.establish();
            let (inside, server) = (world.inside(5000), world.outside(80));
            world.out(&tcp(inside, server).flags(RST | ACK).seq(101, 901));
            world.later(idle);
            let late = tcp(server, out).flags(ACK).seq(901, 101);
            assert_eq!(world.comes_in(&late), alive, "{net:?}, {idle} s");
        }
    }
}
