//! What a specification may have wrong.

mod pools;

use thiserror::Error;

use super::{Map, Method, Network, Persistence, PortRange, Protocols, ServerSpec, ServiceSpec, SnapshotSpec, SynProxy};
use crate::wire::{Addr, Protocol};

/// Why a specification makes no snapshot.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SnapshotError {
    #[error("two services are named {0:?}; names must differ")]
    DuplicateService(String),
    #[error("services {first:?} and {second:?} both listen on {protocol:?} {vip} port {ports}")]
    Overlap { first: String, second: String, protocol: Protocol, vip: Addr, ports: PortRange },
    #[error("service {service:?}: two servers are named {server:?}; names must differ")]
    DuplicateServer { service: String, server: String },
    #[error(
        "service {service:?}: server {server:?} is of another address family than the VIP {vip}; only method \"tunnel\" goes from one to the other"
    )]
    FamilyMismatch { service: String, server: String, vip: Addr },
    #[error("service {service:?}: servers {first:?} and {second:?} have one address and port; add up their weights")]
    SameServer { service: String, first: String, second: String },
    #[error("service {service:?}: server {server:?} has the VIP of service {of:?} as its address; packets would loop")]
    ServerIsVip { service: String, server: String, of: String },
    #[error(
        "service {service:?}: server {server:?} has port {port}, but method {:?} leaves ports as they are; leave the port out", .method.word()
    )]
    PortNotTranslated { service: String, server: String, port: u16, method: Method },
    #[error("service {service:?}: the port range {ports} does not fit from port {base} on at server {server:?}")]
    PortsDoNotFit { service: String, server: String, ports: PortRange, base: u16 },
    #[error(
        "services {first:?} and {second:?} of group {group:?} name a client by different bits of its address; give their persistence the same netmask and prefix"
    )]
    GroupDiffers { first: String, second: String, group: String },
    #[error(
        "services {first:?} and {second:?} both have one_packet and server {server} port {port}: whose answers come from there cannot be told; give one of them another port on the server, or keep flows"
    )]
    AmbiguousAnswers { first: String, second: String, server: Addr, port: u16 },
    #[error(
        "service {service:?}: with one_packet nothing is kept of a flow, so that method \"fullnat\" cannot have a port for it; use \"nat\", or keep flows"
    )]
    OnePacketFullnat { service: String },
    #[error(
        "service {service:?}: proxy_protocol tells servers of TCP connections; let protocol be \"tcp\", or leave it out"
    )]
    ProxyProtocolWithoutTcp { service: String },
    #[error(
        "service {service:?}: proxy_protocol needs to change what the server reads, which method {:?} cannot; use \"fullnat\" or \"nat\", or leave it out", .method.word()
    )]
    ProxyProtocolPast { service: String, method: Method },
    #[error("service {service:?}: syn_proxy answers TCP connections, and protocol is \"udp\"; leave it out")]
    SynProxyWithoutTcp { service: String },
    #[error(
        "service {service:?}: with syn_proxy = \"always\" the gateway stands between client and server all the time, and with method {:?} replies go past it; use \"nat\" or \"fullnat\", or leave it out", .method.word()
    )]
    SynProxyPast { service: String, method: Method },
    #[error(
        "service {service:?}: method \"fullnat\" needs an {family} address to come from; name one in pool, or in pool of [nat]"
    )]
    NoPool { service: String, family: &'static str },
    #[error(
        "{address} of the pool of {second} is in that of {first} already; an address serves one masquerade, or services by \"fullnat\""
    )]
    PoolTaken { address: Addr, first: String, second: String },
    #[error(
        "{first} and {second} share {address} of their pools, the one with ports {}, the other with ports {}; give both the same pool_ports", .ports.0, .ports.1
    )]
    PoolPortsDiffer { address: Addr, first: String, second: String, ports: (PortRange, PortRange) },
    #[error(
        "{subject}: the pool's ports {pool_ports} of {address} reach into those of service {service:?} there, {ports}; give the pool ports beside these, or another address"
    )]
    PoolMeetsService { subject: String, address: Addr, pool_ports: PortRange, service: String, ports: PortRange },
    #[error(
        "service {service:?}: server {server:?} has an address that {of} takes for itself; give one of them another"
    )]
    ServerInPool { service: String, server: String, of: String },
    #[error(
        "{subject}: {address} is within {network}, an inside network of masquerade {masquerade:?}; an outside address must be another one"
    )]
    OutsideIsInside { subject: String, address: Addr, masquerade: String, network: Network },
    #[error(
        "{subject}: {address} is within {prefix}, the outside prefix of masquerade {masquerade:?}, all of which is for inside hosts; use another address"
    )]
    OutsideInPrefix { subject: String, address: Addr, masquerade: String, prefix: Network },
    #[error("masquerade {name:?}: there is a {other} of this name; names must differ")]
    DuplicateMasquerade { name: String, other: &'static str },
    #[error("masquerade {0:?}: \"from\" is empty; name the inside networks")]
    NoInside(String),
    #[error(
        "masquerade {masquerade:?}: {network} is every address, and what goes from inside to inside is left alone; name the networks that are inside"
    )]
    AllInside { masquerade: String, network: Network },
    #[error("masquerade {masquerade:?}: {network} needs an {family} address to go out by; name one in \"to\"")]
    NoOutside { masquerade: String, network: Network, family: &'static str },
    #[error(
        "masquerades {first:?} and {second:?} both have {network} inside; let one of them have it, or a part of it"
    )]
    SameInside { first: String, second: String, network: Network },
    #[error("masquerade {masquerade:?}: prefix {prefix} {wrong}")]
    Prefix { masquerade: String, prefix: Network, wrong: String },
    #[error("two forwards are named {0:?}; names must differ")]
    DuplicateForward(String),
    #[error(
        "forward {forward:?}: its ports {ports} of {address} are, at least in part, those of {other}, {of}; use others"
    )]
    ForwardMeets { forward: String, address: Addr, ports: PortRange, other: String, of: PortRange },
    #[error(
        "forward {forward:?}: {address} is of the pool of {of}, by method \"fullnat\"; forward from an address of a masquerade's pool, or from one of its own"
    )]
    ForwardFromFullnat { forward: String, address: Addr, of: String },
    #[error(
        "forward {forward:?}: with it all {} ports that {of} has at {address} are forwarded, and none is left for inside hosts; forward fewer, or take the address out of \"to\"", .protocol.name()
    )]
    ForwardTakesPool { forward: String, address: Addr, of: String, protocol: Protocol },
    #[error("forward {forward:?}: {to} {wrong}")]
    ForwardTarget { forward: String, to: Addr, wrong: String },
    #[error("too many {what}: at most {limit} are possible")]
    TooMany { what: &'static str, limit: usize },
}

/// Where in a specification a fault lies. Each number is an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultPlace {
    Service(usize),
    /// A service, and one of its servers: one past the last for the sorry server.
    Server(usize, usize),
    /// A service, and an address of its pool.
    Pool(usize, Addr),
    MasqueradeName(usize),
    /// A masquerade, and one of its inside networks.
    From(usize, usize),
    /// A masquerade, and an address of its pool.
    To(usize, usize),
    Prefix(usize),
    ForwardName(usize),
    Listen(usize),
    Target(usize),
}

/// A [`SnapshotError`] and where in the specification it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: FaultPlace,
    pub error: SnapshotError,
}

impl SnapshotSpec {
    /// Everything for which [`Snapshot::build`](super::Snapshot::build) would refuse this, in the order of the configuration.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut names = Map::default();
        let mut groups: Map<&str, &ServiceSpec> = Map::default();
        let mut listeners: Map<(Addr, Protocol), Vec<&ServiceSpec>> = Map::default();
        // Of several services at one VIP the first is named.
        let vips: Map<Addr, &str> = self.services.iter().rev().map(|s| (s.vip, s.name.as_str())).collect();
        for (index, service) in self.services.iter().enumerate() {
            let mut fault = |error| faults.push(Fault { place: FaultPlace::Service(index), error });
            if names.insert(service.name.as_str(), ()).is_some() {
                fault(SnapshotError::DuplicateService(service.name.clone()));
            }
            for &protocol in service.protocols.list() {
                let others = listeners.entry((service.vip, protocol)).or_default();
                // A narrower range may stand inside a wider one; two equal or partly overlapping ones are a mistake.
                if let Some(first) = others.iter().find(|other| conflicts(other.ports, service.ports)) {
                    fault(SnapshotError::Overlap {
                        first: first.name.clone(),
                        second: service.name.clone(),
                        protocol,
                        vip: service.vip,
                        ports: service.ports,
                    });
                }
                others.push(service);
            }
            let (mut names, mut places) = (Map::default(), Map::default());
            for (at, server) in service.servers.iter().enumerate() {
                let name = server.name.as_str();
                let mut fault = |error| faults.push(Fault { place: FaultPlace::Server(index, at), error });
                let first = *places.entry((server.address, server.port)).or_insert(name);
                if names.insert(name, ()).is_some() {
                    let (service, server) = (service.name.clone(), server.name.clone());
                    fault(SnapshotError::DuplicateServer { service, server });
                } else if first != name {
                    let (service, second) = (service.name.clone(), server.name.clone());
                    fault(SnapshotError::SameServer { service, first: first.to_owned(), second });
                }
                server_errors(service, server, &vips).into_iter().for_each(fault);
            }
            if let Some(sorry) = &service.sorry {
                let fault =
                    |error| faults.push(Fault { place: FaultPlace::Server(index, service.servers.len()), error });
                server_errors(service, sorry, &vips).into_iter().for_each(fault);
            }
            if let (Some(group), Some(settings)) = (service.group.as_deref(), service.persistence) {
                let first = *groups.entry(group).or_insert(service);
                let bits = |settings: Persistence| (settings.prefix_v4, settings.prefix_v6);
                if first.persistence.map(bits) != Some(bits(settings)) {
                    let (first, second) = (first.name.clone(), service.name.clone());
                    let error = SnapshotError::GroupDiffers { first, second, group: group.to_owned() };
                    faults.push(Fault { place: FaultPlace::Service(index), error });
                }
            }
        }
        faults.extend(self.ambiguous_answers());
        faults.extend(self.wrong_methods());
        faults.extend(pools::find(self));
        faults
    }

    /// What a service asks for that the methods of its servers cannot do.
    fn wrong_methods(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (index, of) in self.services.iter().enumerate() {
            let service = || of.name.clone();
            let mut fault = |error| faults.push(Fault { place: FaultPlace::Service(index), error });
            let methods = of.all_methods();
            let past = methods.iter().copied().find(|method| method.is_one_way());
            if of.one_packet && methods.contains(&Method::Fullnat) {
                fault(SnapshotError::OnePacketFullnat { service: service() });
            }
            if of.proxy_protocol.is_some() {
                match past {
                    _ if of.protocols != Protocols::Tcp => {
                        fault(SnapshotError::ProxyProtocolWithoutTcp { service: service() });
                    }
                    Some(method) => fault(SnapshotError::ProxyProtocolPast { service: service(), method }),
                    None => {}
                }
            }
            if of.syn_proxy == SynProxy::Always {
                match past {
                    _ if of.protocols == Protocols::Udp => {
                        fault(SnapshotError::SynProxyWithoutTcp { service: service() });
                    }
                    Some(method) => fault(SnapshotError::SynProxyPast { service: service(), method }),
                    None => {}
                }
            }
        }
        faults
    }

    /// An answer to a packet that was scheduled by itself is told by where it comes from alone.
    fn ambiguous_answers(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut known: Map<Addr, Vec<(PortRange, &ServiceSpec)>> = Map::default();
        for (index, service) in self.services.iter().enumerate().filter(|(_, service)| service.one_packet) {
            for (at, server) in service.servers.iter().chain(&service.sorry).enumerate() {
                if server.method.unwrap_or(service.method) != Method::Nat {
                    continue;
                }
                let first = server.port.unwrap_or(service.ports.first);
                let from = PortRange { first, last: first.saturating_add(service.ports.last - service.ports.first) };
                let others = known.entry(server.address).or_default();
                let stands_for = |from: PortRange, of: &ServiceSpec| (of.vip, of.ports.first.wrapping_sub(from.first));
                let clash = others
                    .iter()
                    .find(|(other, of)| other.overlaps(from) && stands_for(*other, of) != stands_for(from, service));
                if let Some((other, first)) = clash {
                    let (first, second) = (first.name.clone(), service.name.clone());
                    let port = from.first.max(other.first);
                    let error = SnapshotError::AmbiguousAnswers { first, second, server: server.address, port };
                    faults.push(Fault { place: FaultPlace::Server(index, at), error });
                }
                others.push((from, service));
            }
        }
        faults
    }
}

fn conflicts(a: PortRange, b: PortRange) -> bool {
    let inside = |inner: PortRange, outer: PortRange| outer.contains(inner.first) && outer.contains(inner.last);
    a.overlaps(b) && (a == b || !(inside(a, b) || inside(b, a)))
}

fn server_errors(service: &ServiceSpec, server: &ServerSpec, vips: &Map<Addr, &str>) -> Vec<SnapshotError> {
    let names = || (service.name.clone(), server.name.clone());
    let (vip, ports) = (service.vip, service.ports);
    let mut errors = Vec::new();
    let method = server.method.unwrap_or(service.method);
    if let Some(port) = server.port.filter(|port| method.is_one_way() && *port != ports.first) {
        let (service, server) = names();
        errors.push(SnapshotError::PortNotTranslated { service, server, port, method });
    }
    if server.address.is_v4() != vip.is_v4() && method != Method::Tunnel {
        let (service, server) = names();
        errors.push(SnapshotError::FamilyMismatch { service, server, vip });
    }
    if let Some(of) = vips.get(&server.address) {
        let (service, server) = names();
        errors.push(SnapshotError::ServerIsVip { service, server, of: (*of).to_owned() });
    }
    if let Some(base) = server.port
        && u32::from(base) + u32::from(ports.last - ports.first) > u32::from(u16::MAX)
    {
        let (service, server) = names();
        errors.push(SnapshotError::PortsDoNotFit { service, server, ports, base });
    }
    errors
}
