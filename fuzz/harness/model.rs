//! A small, slow, obvious picture of what the engine is to do: which services there are, which flows live, and what becomes
//! of a packet of a flow. It learns of new and ended flows from the engine's events and objects to those that should not be.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use gatun::command::{Event, FlowChange};
use gatun::service::{Method, ServiceSpec, SnapshotSpec};
use gatun::time::Instant;
use gatun::wire::{Addr, Protocol, Tuple};

use super::oracle::{self, Decoded};

/// Why flows may end at the moment.
#[derive(Clone, Copy, Debug)]
pub enum Cause {
    /// This packet is being handled.
    Packet(Option<Tuple>),
    Time,
    Command,
}

pub struct Model {
    pub spec: SnapshotSpec,
    /// VIPs that were ever configured, and addresses of pools.
    pub vips: Vec<Addr>,
    pub limit: usize,
    flows: Vec<Flow>,
    /// Flows by fullnat that have ended, and when.
    ended: Vec<(Flow, Instant)>,
    /// What became of the first fragment of a packet: where it went and its new identification.
    fragments: HashMap<FragmentKey, (IpAddr, IpAddr, u32)>,
}

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub original: Tuple,
    pub reply: Tuple,
    pub method: Method,
    seen: Instant,
}

impl Model {
    pub fn new(spec: SnapshotSpec, limit: usize) -> Model {
        let mut model = Model {
            spec: SnapshotSpec::default(),
            vips: Vec::new(),
            limit,
            flows: Vec::new(),
            ended: Vec::new(),
            fragments: HashMap::new(),
        };
        model.swap(spec);
        model
    }

    pub fn swap(&mut self, spec: SnapshotSpec) {
        self.vips.extend(spec.services.iter().map(|service| service.vip));
        self.vips.extend(spec.services.iter().flat_map(|service| &service.pool.addresses));
        self.spec = spec;
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// The flow that a packet with this tuple is of, and what the tuple is to become.
    pub fn translation(&self, tuple: &Tuple) -> Option<Tuple> {
        self.flows.iter().find_map(|flow| match tuple {
            t if *t == flow.original => Some(flow.reply.reversed()),
            t if *t == flow.reply => Some(flow.original.reversed()),
            _ => None,
        })
    }

    /// The method of the flow that a packet with this tuple is of, and whether the client sent it.
    pub fn method(&self, tuple: &Tuple) -> Option<(Method, bool)> {
        let flow = self.flows.iter().find(|flow| flow.original == *tuple || flow.reply == *tuple)?;
        Some((flow.method, flow.original == *tuple))
    }

    pub fn seen(&mut self, now: Instant, tuple: &Tuple) {
        if let Some(flow) = self.flows.iter_mut().find(|f| f.original == *tuple || f.reply == *tuple) {
            flow.seen = now;
        }
    }

    /// What the packet quoted in an ICMP error is to become, and where the error is to go, from whom if not from its sender.
    pub fn quoted(&self, quoted: &Tuple) -> Option<(Tuple, Addr, Option<Addr>)> {
        self.flows.iter().find_map(|flow| match quoted.reversed() {
            t if t == flow.reply => Some((flow.original, flow.original.src, Some(flow.original.dst))),
            t if t == flow.original => {
                let of_pool = (flow.method == Method::Fullnat).then_some(flow.reply.dst);
                Some((flow.reply, flow.reply.src, of_pool))
            }
            _ => None,
        })
    }

    pub fn event(&mut self, now: Instant, event: &Event, cause: Cause) {
        let at = self.flows.iter().position(|flow| flow.original == event.flow.original);
        match (event.change, at) {
            (FlowChange::New, None) => self.admit(now, event, cause),
            (FlowChange::Update, Some(_)) => {}
            (FlowChange::Destroy, Some(at)) => {
                let flow = self.flows.swap_remove(at);
                let idle = now - flow.seen;
                let legitimate = match cause {
                    Cause::Command => true,
                    Cause::Time => idle >= self.shortest_timeout(flow.original.protocol),
                    // A new connection over its ports, or the table was full.
                    // Or its server is down.
                    Cause::Packet(Some(tuple)) => {
                        let gives_up_port = flow.method == Method::Fullnat && idle >= self.spec.quarantine;
                        tuple == flow.original
                            || tuple == flow.reply
                            || self.flows.len() + 1 == self.limit
                            || gives_up_port
                    }
                    Cause::Packet(None) => false,
                };
                assert!(legitimate, "{flow:?} ended after {idle:?} by {cause:?}");
                if flow.method == Method::Fullnat {
                    self.ended.push((flow, now));
                }
            }
            (change, _) => panic!("{change:?} of {:?}, which the model has at {at:?}", event.flow),
        }
    }

    fn admit(&mut self, now: Instant, event: &Event, cause: Cause) {
        let (original, reply) = (event.flow.original, event.flow.reply);
        assert!(matches!(cause, Cause::Packet(Some(tuple)) if tuple == original), "{original:?} by {cause:?}");
        let servers = self.servers(&original).expect("no service takes this flow");
        let method = event.flow.method;
        if method.is_one_way() {
            assert!(servers.iter().any(|(_, _, weight)| *weight > 0));
            assert_eq!(reply, original.reversed(), "the server answers under the VIP");
            self.flows.push(Flow { original, reply, method, seen: now });
            return;
        }
        let server = servers.iter().find(|(addr, port, _)| (*addr, *port) == (reply.src, reply.sport));
        assert!(server.is_some_and(|(_, _, weight)| *weight > 0), "{reply:?} is from none of {servers:?}");
        assert_eq!(reply.protocol, original.protocol);
        if method == Method::Fullnat {
            self.check_pool(now, &original, &reply);
        } else {
            assert_eq!(reply.dst, original.src);
            let planned = Tuple { dport: original.sport, ..reply };
            assert!(
                reply == planned || self.translation(&planned).is_some(),
                "{reply:?} has another port than {original:?} without need"
            );
        }
        for tuple in [original, reply] {
            assert!(self.translation(&tuple).is_none(), "two flows have {tuple:?}");
        }
        self.flows.push(Flow { original, reply, method, seen: now });
    }

    /// The port is of the service's pool, and in no quarantine: its last flow has ended, or been silent, for that time.
    fn check_pool(&mut self, now: Instant, original: &Tuple, reply: &Tuple) {
        let pool = &self.service(original).expect("no service takes this flow").pool;
        let is_of_pool = pool.addresses.contains(&reply.dst) && pool.ports.contains(reply.dport);
        assert!(is_of_pool && reply.dst.is_v4() == original.dst.is_v4(), "{reply:?} is not of {pool:?}");
        let quarantine = self.spec.quarantine;
        for (flow, ended) in self.ended.iter().filter(|(flow, _)| flow.reply == *reply) {
            let has_waited = now - *ended >= quarantine || (*ended == now && now - flow.seen >= quarantine);
            assert!(has_waited, "{reply:?} is in quarantine: {flow:?} has ended at {ended:?}");
        }
        self.ended.retain(|(flow, _)| flow.reply != *reply);
    }

    /// Whether every port of the pool towards some server of the service for this packet is live or in quarantine.
    pub fn is_exhausted(&self, now: Instant, tuple: &Tuple) -> bool {
        let (Some(service), Some(servers)) = (self.service(tuple), self.servers(tuple)) else { return false };
        let live = self.flows.iter().map(|flow| flow.reply);
        let waits = |ended: &&(Flow, Instant)| now - ended.1 < self.spec.quarantine;
        let used: std::collections::HashSet<Tuple> =
            live.chain(self.ended.iter().filter(waits).map(|(flow, _)| flow.reply)).collect();
        servers.iter().any(|(src, sport, _)| {
            let pools = service.pool.addresses.iter().filter(|pool| pool.is_v4() == tuple.dst.is_v4());
            let mut tuples = pools.flat_map(|dst| {
                let ports = service.pool.ports.first..=service.pool.ports.last;
                ports.map(|dport| Tuple { src: *src, dst: *dst, sport: *sport, dport, protocol: tuple.protocol })
            });
            tuples.all(|tuple| used.contains(&tuple))
        })
    }

    fn service(&self, tuple: &Tuple) -> Option<&ServiceSpec> {
        let fits = self.spec.services.iter().filter(|service| {
            service.vip == tuple.dst
                && service.protocols.list().contains(&tuple.protocol)
                && (service.ports.first..=service.ports.last).contains(&tuple.dport)
        });
        fits.min_by_key(|service| service.ports.last - service.ports.first)
    }

    /// Address, port and weight of each server that the service for this packet has; `None` without a service.
    pub fn servers(&self, tuple: &Tuple) -> Option<Vec<(Addr, u16, u32)>> {
        let service = self.service(tuple)?;
        let servers = service.servers.iter().chain(&service.sorry);
        let port = |base: Option<u16>| base.map_or(tuple.dport, |base| base + (tuple.dport - service.ports.first));
        Some(servers.map(|server| (server.address, port(server.port), server.weight)).collect())
    }

    /// What a packet of no flow may become where packets are scheduled by themselves, and by which method.
    pub fn alone(&self, tuple: &Tuple) -> Vec<(Tuple, Method)> {
        let mut to = Vec::new();
        let services = self.spec.services.iter().filter(|service| service.one_packet);
        for service in services.filter(|_| tuple.protocol == Protocol::UDP) {
            let Some(last) = self.servers(&Tuple { dst: service.vip, dport: service.ports.first, ..*tuple }) else {
                continue;
            };
            let offset = |port: u16, first: u16| port.checked_sub(first);
            let size = service.ports.last - service.ports.first;
            for (address, first, _) in last {
                let method = service.method;
                let asked = offset(tuple.dport, service.ports.first).filter(|n| tuple.dst == service.vip && *n <= size);
                to.extend(asked.map(|n| match method {
                    Method::Nat => (Tuple { dst: address, dport: first + n, ..*tuple }, method),
                    _ => (*tuple, method),
                }));
                let answered = offset(tuple.sport, first).filter(|n| tuple.src == address && *n <= size);
                let answered = answered.filter(|_| method == Method::Nat);
                to.extend(
                    answered.map(|n| (Tuple { src: service.vip, sport: service.ports.first + n, ..*tuple }, method)),
                );
            }
        }
        to
    }

    /// Notes where a first fragment went.
    pub fn first_fragment(&mut self, input: &Decoded, output: &Decoded) {
        if let (Some(key), Some((id, ..))) = (fragment_key(input), output.fragment) {
            self.fragments.insert(key, (output.src, output.dst, id));
        }
    }

    pub fn later_fragment(&self, input: &Decoded, output: &Decoded) {
        let key = fragment_key(input).expect("a fragment");
        let first = self.fragments.get(&key).expect("its first one was forwarded");
        let id = output.fragment.expect("it stays a fragment").0;
        assert_eq!((output.src, output.dst, id), *first, "a fragment goes another way than its first one");
    }

    /// No flow is older than it may be, after the engine was given the time.
    pub fn check_ages(&self, now: Instant) {
        for flow in &self.flows {
            let longest = match flow.original.protocol {
                Protocol::TCP => self.spec.timeouts.tcp_established,
                _ => self.spec.timeouts.udp,
            };
            assert!(now - flow.seen <= longest + Duration::from_secs(1), "{flow:?} outlived its time at {now:?}");
        }
    }

    fn shortest_timeout(&self, protocol: Protocol) -> Duration {
        let mut timeouts = self.spec.timeouts;
        match protocol {
            Protocol::TCP => {
                let tcp = timeouts.entries().into_iter().filter(|(name, _)| name.starts_with("tcp"));
                tcp.map(|(_, timeout)| *timeout).min().unwrap_or_default()
            }
            _ => timeouts.udp,
        }
    }
}

/// Source, destination, identification, and in IPv4 the protocol.
type FragmentKey = (IpAddr, IpAddr, u32, u8);

fn fragment_key(packet: &Decoded) -> Option<FragmentKey> {
    // In IPv6 a later fragment may name another protocol than the first (RFC 8200 section 4.5).
    let protocol = if packet.src.is_ipv4() { packet.protocol } else { 0 };
    packet.fragment.map(|(id, ..)| (packet.src, packet.dst, id, protocol))
}

/// The tuple of a TCP or UDP packet that has its ports with it.
pub fn tuple_of(packet: &Decoded) -> Option<Tuple> {
    let (sport, dport) = packet.ports?;
    let (src, dst) = (Addr::from(packet.src), Addr::from(packet.dst));
    Some(Tuple { src, dst, sport, dport, protocol: Protocol(packet.protocol) })
}

/// The tuple of the packet that an ICMP error quotes, which may be cut off after 4 bytes of transport header.
pub fn quoted_tuple(error: &Decoded) -> Option<Tuple> {
    let quoted = &error.payload;
    let (l4, protocol, addresses) = match quoted.first()? >> 4 {
        4 => (usize::from(quoted[0] & 15) * 4, *quoted.get(9)?, (12, 4)),
        // A first fragment may be quoted, too.
        _ if *quoted.get(6)? == 44 => (48, *quoted.get(40)?, (8, 16)),
        _ => (40, quoted[6], (8, 16)),
    };
    let ports = quoted.get(l4..l4 + 4)?;
    let addr = |at: usize| {
        let octets = &quoted[at..at + addresses.1];
        match <[u8; 4]>::try_from(octets) {
            Ok(octets) => Addr::from_v4(octets),
            Err(_) => Addr::from_v6(octets.try_into().expect("16 bytes")),
        }
    };
    Some(Tuple {
        src: addr(addresses.0),
        dst: addr(addresses.0 + addresses.1),
        sport: u16::from_be_bytes([ports[0], ports[1]]),
        dport: u16::from_be_bytes([ports[2], ports[3]]),
        protocol: Protocol(protocol),
    })
}

/// Whether `packet`, as the kernel would complete it, has right checksums.
pub fn is_right(packet: &gatun::wire::PacketBuf) -> bool {
    oracle::checksums_are_right(&oracle::complete(packet))
}
