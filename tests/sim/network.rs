//! Hosts, links, the gateway between them, and an operator who reloads. The clock jumps to whatever comes next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use gatun::command::{Command, Extent, Only, Outcome};
use gatun::engine::{Engine, EngineConfig};
use gatun::service::{
    MasqueradeSpec, Method, Passive, PoolSpec, PortRange, Protocols, ProxyProtocol, SchedulerKind, ServerId,
    ServerSpec, ServiceSpec, Snapshot, SnapshotSpec, SynProxy,
};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::{Addr, PacketBuf, View};

use crate::host::{ECHO, Host, WEB};

pub const CLIENTS: usize = 3;
pub const SERVERS: usize = 3;
const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:f::10"];
pub const POOL: [&str; 2] = ["203.0.113.100", "2001:db8:f::100"];
/// Virtual time that a run may take, in microseconds: TCP over a link that loses a tenth is slow.
const LIMIT: i64 = 1_800_000_000;

/// What the services are like, by method and ports of the pool as well.
type Kind = (SchedulerKind, SynProxy, (Method, PortRange));

pub struct Network {
    pub now: i64,
    pub packets: usize,
    pub impaired: usize,
    rng: Rng,
    link: Link,
    hosts: Vec<Host>,
    engine: Engine,
    /// Next to arrive first.
    under_way: BinaryHeap<Reverse<Transit>>,
    reloads: Vec<i64>,
    scheduler: SchedulerKind,
    proxy_protocol: Option<ProxyProtocol>,
    syn_proxy: SynProxy,
    forwarding: (Method, PortRange),
    death: Option<Death>,
    /// Clients are inside hosts as well.
    has_masquerade: bool,
    /// Packets that came for an address of its pool and went on.
    pub untranslated: usize,
    /// TCP connections that clients make, if none breaks.
    pub connections: u64,
}

/// A server that dies without a word, and when its checks notice.
#[derive(Clone, Copy)]
struct Death {
    server: usize,
    at: i64,
    noticed: i64,
    is_noticed: bool,
}

/// A packet under way: when it arrives, in which order it was sent, where, and what.
type Transit = (i64, usize, Place, Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Gateway,
    Host(usize),
}

/// Chances in percent; times in microseconds.
struct Link {
    loss: u32,
    duplication: u32,
    corruption: u32,
    delay: i64,
    jitter: i64,
}

impl Network {
    pub fn new(seed: u64) -> Network {
        let mut rng = Rng::with_seed(seed);
        let link = Link {
            loss: rng.u32(0..8),
            duplication: rng.u32(0..5),
            corruption: rng.u32(0..3),
            delay: rng.i64(100..20_000),
            jitter: rng.i64(1..10_000),
        };
        let scheduler = SchedulerKind::ALL[rng.usize(..SchedulerKind::ALL.len())];
        let forwarding = match seed % 4 {
            1 => (Method::Fullnat, PoolSpec::PORTS),
            // Connections have to wait for those that are over.
            3 => (Method::Fullnat, PortRange::single(5000)),
            _ => (Method::Nat, PoolSpec::PORTS),
        };
        let snapshot =
            Snapshot::build(spec((scheduler, SynProxy::Auto, forwarding), &[1; SERVERS], None), None).expect("valid");
        let config = EngineConfig { shard: 0, shards: 1, max_flows: 256, seed: [seed, 1] };
        let mut network = Network {
            now: 0,
            packets: 0,
            impaired: 0,
            link,
            hosts: hosts(&mut rng),
            engine: Engine::new(config, Arc::new(snapshot)),
            under_way: BinaryHeap::new(),
            reloads: (0..4).map(|_| rng.i64(100_000..8_000_000)).collect(),
            scheduler,
            proxy_protocol: None,
            syn_proxy: SynProxy::Auto,
            forwarding,
            death: None,
            has_masquerade: false,
            untranslated: 0,
            connections: 0,
            rng,
        };
        network.start_clients();
        network
    }

    /// With a server that dies while clients talk to it, and that a check or the clients' own connections give away.
    pub fn with_a_death(seed: u64) -> Network {
        let mut network = Network::new(seed);
        let at = network.rng.i64(200_000..4_000_000);
        let passive = network.rng.bool().then_some(Passive { fall: 2, hold: Duration::from_secs(3600) });
        let server = network.rng.usize(..SERVERS);
        let noticed = at + if passive.is_some() { 8_000_000 } else { 700_000 };
        network.death = Some(Death { server, at, noticed, is_noticed: false });
        // Connections that are given up without a word keep their ports for hours.
        network.forwarding.1 = PoolSpec::PORTS;
        // A reload could leave the dead one alone.
        network.reloads.clear();
        network.swap(spec(network.kind(), &[1; SERVERS], passive));
        network.hosts.iter_mut().for_each(|host| host.persists = true);
        network
    }

    /// With servers that are told their clients, and refuse who does not say so.
    pub fn with_proxy_protocol(seed: u64, version: ProxyProtocol) -> Network {
        let mut network = Network::new(seed);
        network.proxy_protocol = Some(version);
        network.hosts[CLIENTS..].iter_mut().for_each(|host| host.is_told = Some(version));
        let mut spec = spec(network.kind(), &[1; SERVERS], None);
        network.tell(&mut spec);
        network.swap(spec);
        network
    }

    /// With clients that are a masquerade's inside hosts, too, and talk to the servers' own addresses. Reloads change its pool.
    pub fn with_a_masquerade(seed: u64) -> Network {
        let mut network = Network::new(seed);
        network.has_masquerade = true;
        let mut spec = spec(network.kind(), &[1; SERVERS], None);
        network.masquerade(&mut spec);
        network.swap(spec);
        for client in 0..CLIENTS {
            for family in 0..2 {
                let server = network.rng.usize(..SERVERS);
                let ip: IpAddr = server_addresses(server)[family].parse().expect("an address");
                // All from the same ports: at most one of them keeps its own.
                let local = 41_000 + family as u16;
                let (at, len) = (network.rng.i64(0..6_000_000), network.rng.usize(1..40_000));
                network.hosts[client].get(at, local, SocketAddr::new(ip, WEB), len);
                let (at, questions) = (network.rng.i64(0..3_000_000), network.rng.u32(1..20));
                network.hosts[client].ask(at, local, SocketAddr::new(ip, ECHO), questions);
            }
        }
        network
    }

    /// With servers that hear of a connection only once its client is proven. Most hosts have timestamps, and large windows.
    pub fn with_a_syn_proxy(seed: u64) -> Network {
        let mut network = Network::new(seed);
        network.syn_proxy = SynProxy::Always;
        // A client that is proven does not wait for a port.
        network.forwarding.1 = PoolSpec::PORTS;
        let spec = spec(network.kind(), &[1; SERVERS], None);
        let next = Snapshot::build(spec, Some(network.engine.snapshot())).expect("valid");
        network.engine.apply(Instant::ZERO, Command::Swap(Arc::new(next)));
        let has_clocks = !seed.is_multiple_of(4);
        for (n, host) in network.hosts.iter_mut().enumerate() {
            let room = 1 << network.rng.u32(12..19);
            host.prepare(room, has_clocks.then_some(n >= CLIENTS));
        }
        network
    }

    /// Cookies sent, cookies proven, flows created.
    pub fn cookies(&self) -> (u64, u64, u64) {
        let stats = self.engine.stats();
        (stats.cookies_sent, stats.cookies_proven, stats.flows_created)
    }

    /// Until every transfer is done, and then until every flow is gone.
    pub fn run(&mut self) {
        while !self.hosts.iter().all(Host::is_done) {
            assert!(self.now < LIMIT, "the transfers do not come to an end");
            self.step();
        }
        while let Some(deadline) = self.engine.poll_timeout() {
            self.now = self.now.max(deadline.micros() as i64);
            self.engine.handle_timeout(self.engine_now());
        }
        self.engine.check_invariants();
        assert_eq!(self.engine.occupancy().0, 0);
        assert_eq!(self.engine.mappings(self.engine_now(), 0, 9), (Vec::new(), None));
        let snapshot = self.engine.snapshot();
        let servers = (0..snapshot.server_ids()).filter_map(|id| snapshot.server(ServerId(id as u32)));
        assert!(servers.clone().count() >= SERVERS && servers.into_iter().all(|server| server.load.is_idle()));
        let stats = self.engine.stats();
        assert_eq!((stats.drops(DropReason::TableFull), stats.drops(DropReason::NoServer)), (0, 0));
    }

    /// Flows that gave their port up, and packets for which there was none.
    pub fn ports(&self) -> (u64, u64) {
        let stats = self.engine.stats();
        (stats.ports_reclaimed, stats.drops(DropReason::PoolExhausted))
    }

    pub fn resets(&self) -> u64 {
        self.engine.stats().resets
    }

    pub fn served(&self) -> [usize; SERVERS] {
        std::array::from_fn(|n| self.hosts[CLIENTS + n].served)
    }

    /// Connections that began with a header.
    pub fn told(&self) -> usize {
        self.hosts[CLIENTS..].iter().map(Host::told).sum()
    }

    /// Jumps to what comes next, and lets it happen.
    fn step(&mut self) {
        let arrival = self.under_way.peek().map(|Reverse((at, ..))| *at);
        let (now, dead) = (self.now, self.dead());
        let alive = self.hosts.iter_mut().enumerate().filter(|(n, _)| Some(*n) != dead);
        let hosts = alive.filter_map(|(_, host)| host.poll_at(now)).min();
        let engine = self.engine.poll_timeout().map(|at| at.micros() as i64);
        let reload = self.reloads.iter().min().copied();
        let noticed = self.death.filter(|death| !death.is_noticed).map(|death| death.noticed);
        let next =
            [arrival, hosts, engine, reload, noticed].into_iter().flatten().min().expect("something is left to happen");
        self.now = self.now.max(next);
        self.engine.handle_timeout(self.engine_now());
        if self.reloads.iter().any(|at| *at <= self.now) {
            self.reload();
        }
        while self.under_way.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
            let Some(Reverse((_, _, place, packet))) = self.under_way.pop() else { break };
            match place {
                Place::Gateway => self.forward(&packet),
                Place::Host(n) if Some(n) == self.dead() => {}
                Place::Host(n) => self.hosts[n].receive(packet),
            }
        }
        self.notice();
        for n in (0..self.hosts.len()).filter(|n| Some(*n) != self.dead()).collect::<Vec<_>>() {
            for packet in self.hosts[n].poll(self.now) {
                self.packets += 1;
                self.send(Place::Gateway, packet);
            }
        }
    }

    fn forward(&mut self, packet: &[u8]) {
        let mut buf = PacketBuf::from_packet(packet);
        let verdict = self.engine.handle_packet(self.engine_now(), &mut buf);
        // What nobody corrupted is never refused.
        let may_refuse = self.link.corruption > 0 || self.death.is_some();
        assert!(!matches!(verdict, Verdict::Refuse(_)) || may_refuse, "{verdict:?}");
        if verdict.sends() {
            let was_for = View::parse(packet).map(|view| view.dst);
            self.untranslated += usize::from(was_for.is_ok_and(|dst| pool().contains(&dst)));
            self.deliver(&buf);
        }
        self.flush();
    }

    fn deliver(&mut self, buf: &PacketBuf) {
        let destination = View::parse(buf.packet()).expect("what is sent is a packet").dst.ip();
        if let Some(host) = self.hosts.iter().position(|host| host.addresses.contains(&destination)) {
            self.send(Place::Host(host), buf.packet().to_vec());
        }
    }

    /// What the engine sends by itself.
    fn flush(&mut self) {
        while let Some(buf) = self.engine.poll_transmit() {
            self.deliver(&buf);
        }
    }

    fn dead(&self) -> Option<usize> {
        self.death.filter(|death| death.at <= self.now).map(|death| CLIENTS + death.server)
    }

    /// The control plane: what is down is evacuated, whoever found out.
    fn notice(&mut self) {
        let Some(death) = &mut self.death else { return };
        let checked = death.noticed <= self.now && !std::mem::replace(&mut death.is_noticed, death.noticed <= self.now);
        let dead = death.server;
        let now = self.engine_now();
        let mut down = Vec::new();
        for service in &self.engine.snapshot().live {
            let server = &service.servers[dead];
            if checked {
                server.state.set_up(now, false);
                // Nobody else is down for good: a lossy link has made passive checks think so.
                for other in service.servers.iter().filter(|other| other.id != server.id) {
                    other.state.set_up(now, true);
                }
            }
            down.extend(service.servers.iter().filter(|server| !server.state.is_up()).map(|server| server.id));
        }
        down.sort_unstable();
        let mut cursor = (!down.is_empty()).then_some(0);
        while let Some(from) = cursor {
            let command = Command::Evacuate {
                servers: down.as_slice().into(),
                policy: None,
                extent: Extent { began: now, only: Only::Down },
                cursor: from,
            };
            cursor = match self.engine.apply(now, command) {
                Outcome::Deleted { next, .. } => next,
                _ => None,
            };
        }
        self.flush();
    }

    /// Puts a packet on a link, which does with it what links do.
    fn send(&mut self, to: Place, packet: Vec<u8>) {
        let chance = |rng: &mut Rng, percent: u32| rng.u32(..100) < percent;
        let copies = 1 + usize::from(chance(&mut self.rng, self.link.duplication));
        self.impaired += copies - 1;
        for _ in 0..copies {
            if chance(&mut self.rng, self.link.loss) {
                self.impaired += 1;
                continue;
            }
            let mut packet = packet.clone();
            if chance(&mut self.rng, self.link.corruption) {
                let at = self.rng.usize(..packet.len());
                packet[at] ^= 1 << self.rng.u32(..8);
                self.impaired += 1;
            }
            let arrival = self.now + self.link.delay + self.rng.i64(..self.link.jitter);
            let order = self.under_way.len() + self.packets * 64;
            self.under_way.push(Reverse((arrival, order, to, packet)));
        }
    }

    /// Other weights, sometimes a server less, never none.
    fn reload(&mut self) {
        self.reloads.retain(|at| *at > self.now);
        let mut weights: [u32; SERVERS] = std::array::from_fn(|_| self.rng.u32(..4));
        weights[self.rng.usize(..SERVERS)] = 1;
        let mut spec = spec(self.kind(), &weights, None);
        self.tell(&mut spec);
        self.masquerade(&mut spec);
        if self.rng.bool() {
            for service in &mut spec.services {
                service.servers.retain(|server| server.weight > 0);
            }
        }
        let flows = self.engine.occupancy();
        self.swap(spec);
        assert_eq!(self.engine.occupancy(), flows);
    }

    fn kind(&self) -> Kind {
        (self.scheduler, self.syn_proxy, self.forwarding)
    }

    fn swap(&mut self, spec: SnapshotSpec) {
        let next = Snapshot::build(spec, Some(self.engine.snapshot())).expect("valid");
        self.engine.apply(self.engine_now(), Command::Swap(Arc::new(next)));
    }

    fn tell(&self, spec: &mut SnapshotSpec) {
        for service in spec.services.iter_mut().filter(|service| service.protocols == Protocols::Tcp) {
            service.proxy_protocol = self.proxy_protocol;
        }
    }

    fn masquerade(&mut self, spec: &mut SnapshotSpec) {
        if !self.has_masquerade {
            return;
        }
        let net = |text: &str, len| gatun::service::Network { address: parsed(text), len };
        let from = vec![net("198.51.100.0", 24), net("2001:db8:1::", 64)];
        // Two of three addresses of each family.
        let gone = self.rng.usize(..3);
        let addresses = pool().into_iter().enumerate().filter(|(n, _)| n % 3 != gone).map(|(_, address)| address);
        let pool = PoolSpec { addresses: addresses.collect(), ..PoolSpec::default() };
        spec.masquerades = vec![MasqueradeSpec { name: "lan".into(), from, pool, ..MasqueradeSpec::default() }];
    }

    fn start_clients(&mut self) {
        for client in 0..CLIENTS {
            for (number, vip) in VIPS.iter().enumerate() {
                let vip: IpAddr = vip.parse().expect("an address");
                let mut local = 40_000 + number as u16 * 100;
                for _ in 0..self.rng.usize(1..4) {
                    let (at, len) = (self.rng.i64(0..6_000_000), self.rng.usize(1..40_000));
                    self.hosts[client].get(at, local, SocketAddr::new(vip, 80), len);
                    self.connections += 1;
                    local += 1;
                }
                let (at, questions) = (self.rng.i64(0..3_000_000), self.rng.u32(1..20));
                self.hosts[client].ask(at, local, SocketAddr::new(vip, 53), questions);
            }
        }
    }

    fn engine_now(&self) -> Instant {
        Instant::from_micros(self.now as u64)
    }
}

/// Three addresses of each family.
fn pool() -> [Addr; 6] {
    ["203.0.113.200", "203.0.113.201", "203.0.113.202", "2001:db8:f::200", "2001:db8:f::201", "2001:db8:f::202"]
        .map(parsed)
}

fn parsed(text: &str) -> Addr {
    Addr::from(text.parse::<IpAddr>().expect("an address"))
}

fn hosts(rng: &mut Rng) -> Vec<Host> {
    let mut hosts = Vec::new();
    for n in 0..CLIENTS {
        let [v4, v6] = client_addresses(n);
        hosts.push(Host::new(&[&v4, &v6], rng.u64(..)));
    }
    for n in 0..SERVERS {
        let [v4, v6] = server_addresses(n);
        let mut host = Host::new(&[&v4, &v6], rng.u64(..));
        host.serve(64);
        hosts.push(host);
    }
    hosts
}

fn client_addresses(n: usize) -> [String; 2] {
    [format!("198.51.100.{}", n + 1), format!("2001:db8:1::{}", n + 1)]
}

pub fn is_client(address: IpAddr) -> bool {
    (0..CLIENTS).any(|n| client_addresses(n).contains(&address.to_string()))
}

fn server_addresses(n: usize) -> [String; 2] {
    [format!("10.20.0.{}", n + 11), format!("fd20::{}", n + 11)]
}

/// A web service and an echo service on each VIP, both on other ports than the servers'.
fn spec(
    (scheduler, syn_proxy, (method, ports)): Kind,
    weights: &[u32; SERVERS],
    passive: Option<Passive>,
) -> SnapshotSpec {
    let addr = |text: &str| Addr::from(text.parse::<IpAddr>().expect("an address"));
    let service = |(family, vip): (usize, &&str), name: &str, port: u16, server_port: u16, protocols: Protocols| {
        let server = |(n, weight): (usize, &u32)| ServerSpec {
            name: format!("rs{n}"),
            address: addr(&server_addresses(n)[family]),
            port: Some(server_port),
            weight: *weight,
            ..ServerSpec::default()
        };
        ServiceSpec {
            name: format!("{name}{family}"),
            vip: addr(vip),
            ports: PortRange::single(port),
            protocols,
            scheduler,
            syn_proxy: if protocols == Protocols::Tcp { syn_proxy } else { SynProxy::default() },
            method,
            pool: PoolSpec { addresses: POOL.map(addr).to_vec(), ports },
            passive,
            servers: weights.iter().enumerate().map(server).collect(),
            ..ServiceSpec::default()
        }
    };
    let services = VIPS
        .iter()
        .enumerate()
        .flat_map(|vip| [service(vip, "web", 80, WEB, Protocols::Tcp), service(vip, "echo", 53, ECHO, Protocols::Udp)]);
    SnapshotSpec { services: services.collect(), ..SnapshotSpec::default() }
}
