//! However many shards a gateway has, and whichever of them a packet comes to first: what becomes of it is the same.

#![cfg(feature = "gateway")]

#[path = "support/mod.rs"]
mod support;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use gatun::control::explain::{Question, ask_gateway};
use gatun::io::Gateway;
use gatun::service::{
    ForwardSpec, MasqueradeSpec, Method, Network, PoolSpec, PortRange, Protocols, ServiceSpec, Snapshot, SnapshotSpec,
};
use gatun::verdict::{DropReason, Verdict};
use gatun::wire::PacketBuf;
use proptest::prelude::*;

use support::oracle;
use support::packet::{Build, IcmpError, fragment, icmp_error, udp};
use support::world::{ServiceSpecExt, addr, service};

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
struct Net {
    prefix: [&'static str; 3],
}

const NETS: [Net; 2] = [
    Net { prefix: ["198.51.100.", "203.0.113.", "10.20.0."] },
    Net { prefix: ["2001:db8:1::", "2001:db8:f::", "fd20::"] },
];

impl Net {
    fn text(self, which: usize, number: u8) -> String {
        format!("{}{number}", self.prefix[which])
    }

    fn end(self, which: usize, number: u8, port: u16) -> SocketAddr {
        (self.text(which, number).parse::<IpAddr>().expect("an address"), port).into()
    }

    /// Clients by number: some of them are servers themselves.
    fn client(self, number: u8) -> SocketAddr {
        match number {
            0 | 1 => self.end(2, 11 + number, 4000),
            number => self.end(0, number, 4000 + u16::from(number)),
        }
    }

    /// Inside hosts of a masquerade by number, of which the first two are servers.
    fn inside(self, number: u8) -> SocketAddr {
        self.end(2, 11 + number, 5000)
    }

    /// By fullnat, by nat; and by fullnat at an address of the pool.
    fn service(self, number: u8) -> SocketAddr {
        match number {
            0 => self.end(1, 10, 53),
            1 => self.end(1, 10, 54),
            _ => self.end(1, 100, 53),
        }
    }

    fn spec(self) -> SnapshotSpec {
        let servers =
            |spec: ServiceSpec| spec.server(&self.text(2, 11), Some(5353), 1).server(&self.text(2, 12), Some(5353), 1);
        let services = (0..3).map(|number| {
            let at = self.service(number);
            let spec =
                service(&format!("s{number}"), &at.ip().to_string(), PortRange::single(at.port()), Protocols::Udp);
            let pool =
                PoolSpec { addresses: [100, 101].map(|n| addr(&self.text(1, n))).to_vec(), ..PoolSpec::default() };
            let method = if number == 1 { Method::Nat } else { Method::Fullnat };
            ServiceSpec { pool, method, ..servers(spec) }
        });
        let lan = MasqueradeSpec {
            name: "lan".into(),
            from: vec![Network { address: addr(&self.text(2, 0)), len: if self.is_v4() { 24 } else { 64 } }],
            pool: PoolSpec { addresses: vec![addr(&self.text(1, 102))], ..PoolSpec::default() },
            ..MasqueradeSpec::default()
        };
        // To one of the servers.
        let forward = ForwardSpec {
            name: "dns".into(),
            address: addr(&self.text(1, 102)),
            ports: PortRange::single(53),
            protocols: Protocols::Udp,
            to: addr(&self.text(2, 12)),
            to_port: None,
        };
        SnapshotSpec {
            services: services.collect(),
            masquerades: vec![lan],
            forwards: vec![forward],
            ..SnapshotSpec::default()
        }
    }

    /// As [`Net::spec`], after a reload: as before, some hosts are not inside any more, none is, or one of the outside is as well;
    /// or they have another name.
    fn reloaded(self, which: u8) -> SnapshotSpec {
        let mut spec = self.spec();
        let host = |which, number| Network {
            address: addr(&self.text(which, number)),
            len: if self.is_v4() { 32 } else { 128 },
        };
        match which {
            0 => {}
            1 => spec.masquerades[0].from = [12, 16, 17].map(|number| host(2, number)).to_vec(),
            2 => spec.masquerades.clear(),
            3 => spec.masquerades[0].from.push(host(0, 200)),
            _ => spec.masquerades[0].name.push_str("-new"),
        }
        spec
    }

    fn is_v4(self) -> bool {
        !self.prefix[2].contains(':')
    }
}

/// What happens next: who, with which service, and in which order the fragments come, if it is fragments.
#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    client: u8,
    service: u8,
    order: Option<[usize; 4]>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ask,
    Answer,
    /// From the server, about what it was asked.
    ErrorThere,
    /// From the client, about what it was answered.
    ErrorHere,
    /// From an inside host to the outside; some of them are servers.
    Out,
    /// From there to the mapping.
    Back,
    /// From the inside host, about what came to it.
    ErrorInside,
    /// From one inside host to the next one's mapping.
    Hairpin,
    /// To a configuration that the number of the client tells.
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(Kind::Ask),
        4 => Just(Kind::Answer),
        1 => Just(Kind::ErrorThere),
        1 => Just(Kind::ErrorHere),
        3 => Just(Kind::Out),
        3 => Just(Kind::Back),
        1 => Just(Kind::ErrorInside),
        2 => Just(Kind::Hairpin),
        1 => Just(Kind::Reload)
    ];
    let order = Just([0, 1, 2, 3]).prop_shuffle();
    (kind, 0u8..8, 0u8..3, prop::option::of(order)).prop_map(|(kind, client, service, order)| {
        // Fragments from a host that has come to be inside are not looked for among the flows in which it was a stranger.
        let client = if matches!(kind, Kind::Reload) { [0, 1, 2, 4][usize::from(client % 4)] } else { client };
        // Nothing tells whether fragments from a server to a pool are an answer.
        let is_ambiguous = matches!(kind, Kind::Hairpin) && client < 2;
        Step { kind, client, service, order: order.filter(|_| !is_ambiguous) }
    })
}

struct World {
    net: Net,
    gateway: Gateway,
    /// By inside host: what it last sent to the outside, as that was seen there.
    sent_out: Vec<Option<Vec<u8>>>,
    /// By inside host: what came to it last from there.
    come_in: Vec<Option<Vec<u8>>>,
    /// By client and service: the packet that the server got last, and the one that the client got.
    asked: Vec<Option<Vec<u8>>>,
    answered: Vec<Option<Vec<u8>>>,
    id: u16,
}

/// What is seen of it, but for what the gateway chooses by chance.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Nothing(Verdict),
    Packets { src: IpAddr, dst: IpAddr, ports: Option<(u16, u16)>, payload: usize, packets: usize },
}

impl World {
    fn new(net: Net, shards: usize) -> World {
        World::with(net, net.spec(), shards)
    }

    fn with(net: Net, spec: SnapshotSpec, shards: usize) -> World {
        let snapshot = Snapshot::build(spec, None).expect("valid");
        let gateway = Gateway::new(Arc::new(snapshot), shards, 1 << 10, [7, 11]);
        let (by_host, by_service) = (|| vec![None; 8], || vec![None; 24]);
        World {
            net,
            gateway,
            sent_out: by_host(),
            come_in: by_host(),
            asked: by_service(),
            answered: by_service(),
            id: 0,
        }
    }

    fn step(&mut self, step: &Step) -> Option<Seen> {
        let at = usize::from(step.client) * 3 + usize::from(step.service);
        self.id += 1;
        let (client, vip) = (self.net.client(step.client), self.net.service(step.service));
        let reversed = |packet: &[u8]| {
            let seen = oracle::decode(packet).expect("a packet");
            let (sport, dport) = seen.ports.expect("UDP");
            udp((seen.dst, dport), (seen.src, sport))
        };
        let packet = match step.kind {
            Kind::Reload => {
                let spec = self.net.reloaded(step.client);
                let next = Snapshot::build(spec, Some(&self.gateway.snapshot())).expect("valid");
                self.gateway.swap(Arc::new(next));
                return None;
            }
            Kind::Ask => udp(client, vip).payload(vec![step.client; 300]),
            Kind::Answer => reversed(self.asked[at].as_ref()?).payload(vec![step.client; 301]),
            Kind::ErrorThere => error(self.asked[at].as_ref()?),
            Kind::ErrorHere => error(self.answered[at].as_ref()?),
            Kind::Out => udp(self.net.inside(step.client), self.net.end(0, 200, 7000 + u16::from(step.service)))
                .payload(vec![step.client; 302]),
            Kind::Back => reversed(self.sent_out[usize::from(step.client)].as_ref()?).payload(vec![step.client; 303]),
            Kind::ErrorInside => error(self.come_in[usize::from(step.client)].as_ref()?),
            Kind::Hairpin => {
                let next = reversed(self.sent_out[usize::from(step.client + 1) % 8].as_ref()?);
                udp(self.net.inside(step.client), next.dst).payload(vec![step.client; 304])
            }
        };
        let is_error = matches!(step.kind, Kind::ErrorHere | Kind::ErrorThere | Kind::ErrorInside);
        let (sent, verdict) = self.send(&packet, step.order.filter(|_| !is_error));
        if sent.is_empty() {
            return Some(Seen::Nothing(verdict));
        }
        let packets = sent.len();
        let whole = if packets > 1 { oracle::reassemble(&sent).expect("all of it came") } else { sent[0].clone() };
        assert!(oracle::checksums_are_right(&whole));
        let seen = oracle::decode(&whole).expect("a packet");
        let payload = whole.len() - seen.l4;
        match step.kind {
            Kind::Ask => self.asked[at] = Some(whole),
            Kind::Answer => self.answered[at] = Some(whole),
            Kind::Out => self.sent_out[usize::from(step.client)] = Some(whole),
            Kind::Back => self.come_in[usize::from(step.client)] = Some(whole),
            _ => {}
        }
        // Only the port of a pool is chosen by chance; which address, by another chance.
        let of_pool = |ip: IpAddr| [100, 101, 102].map(|n| self.net.end(1, n, 0).ip()).contains(&ip);
        let (mut src, mut ports) = (seen.src, seen.ports);
        if of_pool(src) && ports.is_none_or(|(sport, _)| sport >= 1024) {
            src = self.net.end(1, 100, 0).ip();
            ports = ports.map(|(_, dport)| (0, dport));
        }
        Some(Seen::Packets { src, dst: seen.dst, ports, payload, packets })
    }

    /// Returns what leaves, in order, and the last verdict.
    fn send(&mut self, packet: &Build, order: Option<[usize; 4]>) -> (Vec<Vec<u8>>, Verdict) {
        let whole = packet.bytes();
        let pieces = match order {
            Some(order) => {
                let pieces = fragment(&packet.clone().id(self.id).bytes(), 80, u32::from(self.id));
                assert_eq!(pieces.len(), 4);
                order.map(|n| pieces[n].clone()).to_vec()
            }
            None => vec![whole],
        };
        let (mut sent, mut released, mut last) = (Vec::new(), Vec::new(), Verdict::Held);
        for piece in pieces {
            let mut buf = PacketBuf::from_packet(&piece);
            last = self.gateway.handle_packet(&mut buf, &mut released);
            if last.sends() {
                sent.push(buf.packet().to_vec());
            }
            sent.extend(released.drain(..).map(|packet| packet.packet().to_vec()));
        }
        for shard in self.gateway.shards() {
            shard.lock().check_invariants();
        }
        (sent, last)
    }
}

/// What the receiver of this packet makes of it.
fn error(packet: &[u8]) -> Build {
    let seen = oracle::decode(packet).expect("a packet");
    icmp_error((seen.dst, 0), (seen.src, 0), IcmpError::PortUnreachable, packet)
}

/// Flows with the outside, both ways, over reloads after which their ends are not inside, or both are.
#[test]
fn flows_outlive_reloads_in_any_number_of_shards() {
    for net in NETS {
        for (shards, which) in (1..7).flat_map(|shards| [1, 2, 3, 4].map(|which| (shards, which))) {
            let mut world = World::new(net, shards);
            let step = |kind, client| Step { kind, client, service: 0, order: None };
            for client in 0..8 {
                assert!(matches!(world.step(&step(Kind::Out, client)), Some(Seen::Packets { .. })));
            }
            let sent = world.sent_out.clone();
            world.step(&step(Kind::Reload, which));
            for client in 0..8 {
                let what = format!("{which} with {shards} shards: {client}");
                world.step(&step(Kind::Out, client));
                let (now, then) =
                    [&world.sent_out, &sent].map(|sent| sent[usize::from(client)].clone().map(|p| ends(&p))).into();
                assert_eq!(now, then, "{what}");
                let back = world.step(&step(Kind::Back, client));
                let is_it = |seen: &Seen| matches!(seen, Seen::Packets { dst, .. } if *dst == net.inside(client).ip());
                assert!(back.as_ref().is_some_and(is_it), "{what}: {back:?}");
            }
        }
    }
}

/// Addresses and ports.
fn ends(packet: &[u8]) -> (IpAddr, IpAddr, Option<(u16, u16)>) {
    let seen = oracle::decode(packet).expect("a packet");
    (seen.src, seen.dst, seen.ports)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_many_shards_as_there_are(steps in prop::collection::vec(step(), 1..60), shards in 2usize..7, v4: bool) {
        let net = NETS[usize::from(!v4)];
        let (mut one, mut many) = (World::new(net, 1), World::new(net, shards));
        for (number, step) in steps.iter().enumerate() {
            prop_assert_eq!(one.step(step), many.step(step), "{}: {:?}", number, step);
        }
    }
}

/// The first fragment of an answer to a pool comes to another shard than those without ports: they wait for each other there,
/// and leave in order.
#[test]
fn fragments_are_handed_over_in_order() {
    for net in NETS {
        let mut handed_over = 0;
        for client in 2..8 {
            let mut world = World::new(net, 5);
            let ask = |order| Step { kind: Kind::Ask, client, service: 0, order };
            let answer = |order| Step { kind: Kind::Answer, client, service: 0, order: Some(order) };
            assert!(matches!(world.step(&ask(None)), Some(Seen::Packets { packets: 1, .. })));
            for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 3]] {
                let seen = world.step(&answer(order));
                let is_it =
                    matches!(seen, Some(Seen::Packets { packets: 4, dst, .. }) if dst == net.client(client).ip());
                assert!(is_it, "{seen:?}");
            }
            // Held where they came to, in another shard than the flow's.
            let holders = world.gateway.shards().iter().map(|shard| {
                let engine = shard.lock();
                engine.stats().fragments_held > 0 && engine.occupancy().0 == 0
            });
            handed_over += holders.filter(|holds| *holds).count();
        }
        assert!(handed_over > 2, "{handed_over}");
    }
}

/// What a server that is an inside host sends may be an answer to a client, whose shard is asked first: that does not know what
/// the host is mapped to.
#[test]
fn it_is_explained_by_the_shard_of_the_inside_host() {
    for net in NETS {
        let world = World::new(net, 2);
        let inside = net.inside(0);
        let explained = |remote: SocketAddr| {
            let question = Question::new("udp", (inside.ip(), inside.port()), (remote.ip(), remote.port()), None);
            let told = ask_gateway(&world.gateway, question.expect("a packet"));
            told.mapping.map(|mapping| (mapping.exists, mapping.outside.port, told.after.map(|after| after.sport)))
        };
        let mut buf = udp(inside, net.end(0, 200, 7000)).buf();
        assert_eq!(world.gateway.handle_packet(&mut buf, &mut Vec::new()), Verdict::Forward);
        let (port, _) = oracle::decode(buf.packet()).expect("a packet").ports.expect("UDP");
        for remote in 201..217 {
            assert_eq!(explained(net.end(0, remote, 53)), Some((true, Some(port), Some(port))), "{remote}");
        }
    }
}

/// Servers that are inside hosts as well, one of them with a forwarded port: as clients of the cluster, and of the outside.
#[test]
fn servers_ask_too() {
    use Kind::{Answer, Ask, Back, ErrorHere, ErrorInside, ErrorThere, Out};
    for net in NETS {
        for shards in 1..7 {
            let mut world = World::new(net, shards);
            // Servers are taken in turn: so it is another one each time.
            world.step(&Step { kind: Ask, client: 7, service: 1, order: None });
            for (client, kind) in
                (0..2).flat_map(|n| [Ask, Answer, ErrorHere, ErrorThere, Out, Back, ErrorInside].map(|kind| (n, kind)))
            {
                let host = net.client(client).ip();
                let seen = world.step(&Step { kind, client, service: 1, order: None });
                let Some(Seen::Packets { src, dst, .. }) = seen else { panic!("{client} {kind:?}: {seen:?}") };
                let (vip, remote) = (net.service(1).ip(), net.end(0, 200, 0).ip());
                match kind {
                    Answer | ErrorThere => assert_eq!((src, dst), (vip, host), "{client} {kind:?}"),
                    Back => assert_eq!((src, dst), (remote, host), "{client} {kind:?}"),
                    Out | ErrorInside => assert_eq!((src, dst), (net.end(1, 100, 0).ip(), remote), "{client} {kind:?}"),
                    _ => assert_eq!(src, host, "{client} {kind:?}"),
                }
            }
        }
    }
}

/// One of the shards has no port but forwarded ones, which an explanation knows as well before anybody has asked for one.
#[test]
fn a_shard_without_a_port_is_explained_as_it_is() {
    for net in NETS {
        let mut spec = net.spec();
        spec.masquerades[0].pool.ports = PortRange { first: 4000, last: 4003 };
        spec.forwards = vec![ForwardSpec {
            name: "in".into(),
            address: addr(&net.text(1, 102)),
            ports: PortRange { first: 4000, last: 4001 },
            protocols: Protocols::Udp,
            to: addr(&net.text(2, 99)),
            to_port: None,
        }];
        let snapshot = Arc::new(Snapshot::build(spec, None).expect("valid"));
        let mut refused = 0;
        for number in 2..10 {
            // Nobody has asked yet.
            let gateway = Gateway::new(snapshot.clone(), 2, 1 << 10, [7, 11]);
            let (inside, remote) = (net.inside(number), net.end(0, 200, 53));
            let question = Question::new("udp", (inside.ip(), inside.port()), (remote.ip(), remote.port()), None);
            let told = ask_gateway(&gateway, question.expect("a packet"));
            let mut buf = udp(inside, remote).buf();
            let verdict = gateway.handle_packet(&mut buf, &mut Vec::new());
            let is_refused = verdict == Verdict::Refuse(DropReason::PoolExhausted);
            assert!(is_refused || verdict == Verdict::Forward, "{verdict:?}");
            let reason = is_refused.then(|| DropReason::PoolExhausted.word());
            assert_eq!(told.reason.as_deref(), reason, "{number}");
            refused += usize::from(is_refused);
        }
        assert!((1..8).contains(&refused), "{refused}");
    }
}

/// The sender's shard and that of the mapping that it sends to are two: what the other one has to say comes back.
#[test]
fn who_is_refused_is_told() {
    for net in NETS {
        for shards in 1..7 {
            let mut world = World::with(net, SnapshotSpec { is_hop: true, ..net.spec() }, shards);
            for client in 0..8 {
                let out = Step { kind: Kind::Out, client, service: 0, order: None };
                assert!(matches!(world.step(&out), Some(Seen::Packets { .. })));
                let seen =
                    oracle::decode(world.sent_out[usize::from(client)].as_ref().expect("sent")).expect("a packet");
                let mapping = (seen.src, seen.ports.expect("UDP").0);
                let host = net.inside(2 + (client + 1) % 6);
                let (sent, verdict) = world.send(&udp(host, mapping).ttl(2), None);
                assert_eq!(verdict, Verdict::Forward);
                let told = oracle::decode(&sent[0]).expect("a packet");
                assert_eq!((told.src, told.dst, told.ports), (mapping.0, host.ip(), None));
            }
        }
    }
}
