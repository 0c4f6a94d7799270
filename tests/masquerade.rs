//! Masquerades against a naive model: what goes out, what comes in, and what goes round, over any number of shards.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gatun::service::{
    Filtering, ForwardSpec, MasqueradeSpec, Network, PoolSpec, PortRange, Protocols, Snapshot, SnapshotSpec,
};
use gatun::time::Instant;
use gatun::verdict::{DropReason, Verdict};
use proptest::prelude::*;

use support::oracle;
use support::packet::udp;
use support::shards::Shards;
use support::world::{ServiceSpecExt, addr, service};

const LIFETIME: Duration = Duration::from_secs(300);
/// No multiple of it is the lifetime.
const STEP: Duration = Duration::from_secs(70);

const PREFIXES: [[&str; 3]; 2] =
    [["10.20.0.", "203.0.113.", "198.51.100."], ["fd20::", "2001:db8:f::", "2001:db8:1::"]];

fn end(v4: bool, which: usize, host: u8, port: u16) -> SocketAddr {
    let address = format!("{}{host}", PREFIXES[usize::from(!v4)][which]);
    (address.parse::<IpAddr>().expect("an address"), port).into()
}

fn inside(v4: bool, (host, port): (u8, u8)) -> SocketAddr {
    // Two hosts use the same ports, and all use those of the pool's range.
    end(v4, 0, 10 + host, 2000 + u16::from(host / 2) * 8 + u16::from(port))
}

fn remote(v4: bool, number: u8) -> SocketAddr {
    end(v4, 2, 10 + number / 2, 53 + u16::from(number % 2))
}

/// Inside hosts 0 and 1 are servers of a service, too, so that what they send may be an answer to a client of another shard.
///
/// Ports 5000 and 5001 of an address with nothing else, and port 2500 of one of the pool's, lead to inside hosts 1 and 2.
fn spec(v4: bool, filtering: Filtering) -> SnapshotSpec {
    let to_addr = |end: SocketAddr| gatun::wire::Addr::from(end.ip());
    let pool = PoolSpec {
        addresses: [100, 101, 102].map(|host| to_addr(end(v4, 1, host, 0))).to_vec(),
        ports: PortRange { first: 2000, last: 2999 },
    };
    let from =
        vec![Network { address: addr(&format!("{}0", PREFIXES[usize::from(!v4)][0])), len: if v4 { 24 } else { 64 } }];
    let masquerades = vec![MasqueradeSpec { name: "lan".into(), from, pool, filtering, ..MasqueradeSpec::default() }];
    let forward = |name: &str, outside: SocketAddr, last: u16, inside: SocketAddr| ForwardSpec {
        name: name.into(),
        address: to_addr(outside),
        ports: PortRange { first: outside.port(), last },
        protocols: Protocols::Udp,
        to: to_addr(inside),
        to_port: Some(inside.port()),
    };
    let forwards = vec![
        forward("two", end(v4, 1, 200, 5000), 5001, inside(v4, (1, 0))),
        forward("one", end(v4, 1, 101, 2500), 2500, inside(v4, (2, 1))),
    ];
    let vip = end(v4, 1, 10, 0).ip().to_string();
    let service =
        [0, 1].into_iter().fold(service("dns", &vip, PortRange::single(53), Protocols::Udp), |service, host| {
            service.server(&inside(v4, (host, 0)).ip().to_string(), Some(53), 1)
        });
    SnapshotSpec { masquerades, forwards, services: vec![service], ..SnapshotSpec::default() }
}

#[derive(Clone, Debug)]
enum Step {
    /// An inside endpoint sends to a remote one.
    Out((u8, u8), u8),
    /// A remote one sends to the outside endpoint of an inside one.
    In(u8, (u8, u8)),
    /// A remote one sends to a port of the pool.
    Stray(u8, u16),
    /// An inside endpoint sends to the outside endpoint of another.
    Round((u8, u8), (u8, u8)),
    /// So many [`STEP`]s pass.
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let endpoint = || (0u8..6, 0u8..4);
    prop_oneof![
        4 => (endpoint(), 0u8..6).prop_map(|(from, to)| Step::Out(from, to)),
        4 => (0u8..6, endpoint()).prop_map(|(from, to)| Step::In(from, to)),
        1 => (0u8..6, 1990u16..2520).prop_map(|(from, to)| Step::Stray(from, to)),
        3 => (endpoint(), endpoint()).prop_map(|(from, to)| Step::Round(from, to)),
        1 => (1u8..4).prop_map(Step::Wait),
    ]
}

struct Flow {
    seen: Instant,
    has_sent: bool,
}

/// What should be so.
struct Model {
    v4: bool,
    filtering: Filtering,
    now: Instant,
    /// By inside and remote endpoint.
    flows: BTreeMap<(SocketAddr, SocketAddr), Flow>,
    /// Outside endpoints by inside ones.
    mappings: BTreeMap<SocketAddr, SocketAddr>,
}

impl Model {
    fn forwards(&self) -> [(SocketAddr, SocketAddr); 3] {
        let v4 = self.v4;
        let second = |mut end: SocketAddr| {
            end.set_port(end.port() + 1);
            end
        };
        let first = (inside(v4, (1, 0)), end(v4, 1, 200, 5000));
        [first, (second(first.0), second(first.1)), (inside(v4, (2, 1)), end(v4, 1, 101, 2500))]
    }

    fn outside(&self, inside: SocketAddr) -> Option<SocketAddr> {
        let forward = self.forwards().into_iter().find(|(of, _)| *of == inside).map(|(_, outside)| outside);
        forward.or_else(|| self.mappings.get(&inside).copied())
    }

    /// An inside endpoint has sent, and was seen as `outside`.
    fn went_out(&mut self, from: SocketAddr, to: SocketAddr, outside: SocketAddr) -> Result<(), TestCaseError> {
        match self.outside(from) {
            Some(known) => prop_assert_eq!(known, outside, "{} is another one for {}", from, to),
            None => {
                let others: BTreeSet<SocketAddr> = self.mappings.values().copied().collect();
                prop_assert!(!others.contains(&outside), "{} is another's", outside);
                prop_assert!(
                    self.forwards().iter().all(|(_, forwarded)| *forwarded != outside),
                    "{} is forwarded",
                    outside
                );
                prop_assert!((2000..3000).contains(&outside.port()));
                prop_assert_eq!(outside.port() % 2, from.port() % 2, "the parity of {}", from);
                let paired = self.mappings.iter().find(|(of, _)| of.ip() == from.ip());
                prop_assert!(paired.is_none_or(|(_, other)| other.ip() == outside.ip()), "{} has two addresses", from);
                self.mappings.insert(from, outside);
            }
        }
        let flow = self.flows.entry((from, to)).or_insert(Flow { seen: self.now, has_sent: true });
        (flow.seen, flow.has_sent) = (self.now, true);
        Ok(())
    }

    /// The inside endpoint that gets what comes from `from` to `outside`.
    fn comes_in(&mut self, from: SocketAddr, outside: SocketAddr) -> Result<SocketAddr, DropReason> {
        let forward = self.forwards().into_iter().find(|(_, forwarded)| *forwarded == outside);
        let mapping = self.mappings.iter().find(|(_, other)| **other == outside).map(|(inside, _)| *inside);
        let to = forward.map(|(inside, _)| inside).or(mapping).ok_or(DropReason::NoMapping)?;
        if let Some(flow) = self.flows.get_mut(&(to, from)) {
            if flow.has_sent {
                flow.seen = self.now;
            }
            return Ok(to);
        }
        if forward.is_none() {
            let mut sent = self.flows.iter().filter(|((of, _), flow)| *of == to && flow.has_sent);
            match self.filtering {
                Filtering::Endpoint => {}
                Filtering::Address if sent.any(|((_, peer), _)| peer.ip() == from.ip()) => {}
                _ => return Err(DropReason::Filtered),
            }
            if !self.flows.iter().any(|((of, _), flow)| *of == to && flow.has_sent) {
                return Err(DropReason::Unanswered);
            }
        }
        self.flows.insert((to, from), Flow { seen: self.now, has_sent: false });
        Ok(to)
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        let now = self.now;
        self.flows.retain(|_, flow| flow.seen + LIFETIME > now);
        let flows = &self.flows;
        self.mappings.retain(|inside, _| flows.keys().any(|(of, _)| of == inside));
    }
}

struct World {
    shards: Shards,
    model: Model,
    payload: u8,
}

impl World {
    fn new(v4: bool, shards: u16, filtering: Filtering) -> World {
        let snapshot = Arc::new(Snapshot::build(spec(v4, filtering), None).expect("it is valid"));
        let shards = Shards::new(snapshot, shards, 256, [3, 5]);
        let model = Model { v4, filtering, now: shards.now, flows: BTreeMap::new(), mappings: BTreeMap::new() };
        World { shards, model, payload: 0 }
    }

    /// The ends of what became of a datagram.
    fn send(&mut self, from: SocketAddr, to: SocketAddr) -> Result<(SocketAddr, SocketAddr), Verdict> {
        self.payload = self.payload.wrapping_add(1);
        let payload = vec![self.payload; 33];
        let mut buf = udp(from, to).payload(&payload).buf();
        match self.shards.give(&mut buf) {
            Verdict::Forward => {
                assert!(oracle::checksums_are_right(buf.packet()));
                let seen = oracle::decode(buf.packet()).expect("a packet");
                let (sport, dport) = seen.ports.expect("UDP");
                assert!(buf.packet().ends_with(&payload));
                Ok(((seen.src, sport).into(), (seen.dst, dport).into()))
            }
            verdict => Err(verdict),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let v4 = self.model.v4;
        match *step {
            Step::Out(from, to) => {
                let (from, to) = (inside(v4, from), remote(v4, to));
                let sent = self.send(from, to);
                let Ok((outside, dst)) = sent else { return Err(TestCaseError::fail(format!("{sent:?}"))) };
                prop_assert_eq!(dst, to);
                self.model.went_out(from, to, outside)?;
            }
            Step::In(from, to) => {
                let Some(outside) = self.model.outside(inside(v4, to)) else { return Ok(()) };
                self.come_in(remote(v4, from), outside)?;
            }
            Step::Stray(from, port) => self.come_in(remote(v4, from), end(v4, 1, 100 + (port % 3) as u8, port))?,
            Step::Round(from, to) => {
                let (from, to) = (inside(v4, from), inside(v4, to));
                let Some(target) = self.model.outside(to) else { return Ok(()) };
                // What it is seen as has to be known first, where it does not come in.
                let own = match self.model.outside(from) {
                    Some(own) => own,
                    None => {
                        let to = remote(v4, 0);
                        self.step(&Step::Out(((from.ip_last() - 10), ((from.port() - 2000) % 8) as u8), 0))?;
                        self.model.outside(from).unwrap_or(to)
                    }
                };
                let sent = self.send(from, target);
                self.model.went_out(from, target, own)?;
                let expected = self.model.comes_in(own, target);
                prop_assert_eq!(sent, expected.map(|to| (own, to)).map_err(Verdict::Drop), "{} to {}", from, target);
            }
            Step::Wait(steps) => {
                let time = STEP * u32::from(steps);
                self.shards.wait(time);
                self.model.wait(time);
            }
        }
        self.shards.check_invariants();
        prop_assert_eq!(self.shards.flows(), self.model.flows.len());
        Ok(())
    }

    fn come_in(&mut self, from: SocketAddr, outside: SocketAddr) -> Result<(), TestCaseError> {
        let expected = self.model.comes_in(from, outside);
        let sent = self.send(from, outside);
        prop_assert_eq!(sent, expected.map(|to| (from, to)).map_err(Verdict::Drop), "{} to {}", from, outside);
        Ok(())
    }
}

trait Last {
    fn ip_last(&self) -> u8;
}

impl Last for SocketAddr {
    /// The number of a host, as the addresses here have it: in decimal digits, also where these are read as others.
    fn ip_last(&self) -> u8 {
        let text = self.ip().to_string();
        text.rsplit(['.', ':']).next().and_then(|last| last.parse().ok()).expect("a number")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_out_comes_back_to_whom_it_is_for(
        steps in prop::collection::vec(step(), 1..120),
        shards in prop_oneof![Just(1u16), 2u16..7],
        v4: bool,
        filtering in prop::sample::select(&Filtering::ALL[..]),
    ) {
        let mut world = World::new(v4, shards, filtering);
        for (number, step) in steps.iter().enumerate() {
            if let Err(error) = world.step(step) {
                return Err(TestCaseError::fail(format!("step {number}: {step:?}: {error}")));
            }
        }
    }
}
