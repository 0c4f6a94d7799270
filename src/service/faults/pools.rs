//! What may be wrong with pools, masquerades and forwarded ports. An address has one use: who sends to it must be dealt with
//! by one part of the gateway alone.

use super::super::{ForwardSpec, Map, Method, Network, PortRange, SnapshotSpec};
use super::{Fault, FaultPlace, SnapshotError};
use crate::wire::Addr;

/// Addresses of all pools together. Each may take 24 KiB for what is known of its ports.
const MAX_ADDRESSES: usize = 1024;
/// Inside networks of all masquerades together: each is a rule of the host, and looked at for every new flow.
const MAX_NETWORKS: usize = 256;
/// Forwards.
const MAX_FORWARDS: usize = 1024;
/// Bits of a prefix that another can stand for: beyond are the identifiers of hosts (RFC 6296 section 3.5).
const PREFIX_BITS: std::ops::RangeInclusive<u8> = 1..=64;

/// One address of a pool, and whose.
struct Pooled {
    subject: String,
    address: Addr,
    ports: PortRange,
    is_fullnat: bool,
    place: FaultPlace,
}

pub(super) fn find(spec: &SnapshotSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |place, error| faults.push(Fault { place, error });
    without_pool(spec, &mut fault);
    masquerades(spec, &mut fault);
    prefixes(spec, &mut fault);
    let pools = pools(spec, &mut fault);
    for pool in &pools {
        meets_others(spec, pool, &mut fault);
    }
    forwards(spec, &pools, &mut fault);
    faults
}

fn without_pool(spec: &SnapshotSpec, fault: &mut impl FnMut(FaultPlace, SnapshotError)) {
    for (at, service) in spec.services.iter().enumerate() {
        let of_family = |address: &Addr| address.is_v4() == service.vip.is_v4();
        if service.all_methods().contains(&Method::Fullnat) && !service.pool.addresses.iter().any(of_family) {
            let family = family(service.vip);
            fault(FaultPlace::Service(at), SnapshotError::NoPool { service: service.name.clone(), family });
        }
    }
}

fn masquerades(spec: &SnapshotSpec, fault: &mut impl FnMut(FaultPlace, SnapshotError)) {
    let mut names: Map<&str, &str> = spec.services.iter().map(|service| (service.name.as_str(), "service")).collect();
    let mut networks: Map<Network, &str> = Map::default();
    let mut count = 0;
    for (at, masquerade) in spec.masquerades.iter().enumerate() {
        let name = &masquerade.name;
        if let Some(other) = names.insert(name, "masquerade") {
            let name = name.clone();
            fault(FaultPlace::MasqueradeName(at), SnapshotError::DuplicateMasquerade { name, other });
        }
        if masquerade.from.is_empty() {
            fault(FaultPlace::MasqueradeName(at), SnapshotError::NoInside(name.clone()));
        }
        for (n, network) in masquerade.from.iter().enumerate() {
            let (place, name, network) = (FaultPlace::From(at, n), name.clone(), *network);
            let lacks_pool = !masquerade.pool.addresses.iter().any(|to| to.is_v4() == network.address.is_v4());
            if network.len == 0 {
                fault(place, SnapshotError::AllInside { masquerade: name, network });
            } else if masquerade.prefix.is_none() && lacks_pool {
                let family = family(network.address);
                fault(place, SnapshotError::NoOutside { masquerade: name, network, family });
            } else if let Some(first) = networks.insert(network, &masquerade.name) {
                let (first, second) = (first.to_owned(), name);
                fault(place, SnapshotError::SameInside { first, second, network });
            }
            count += 1;
            if count == MAX_NETWORKS + 1 {
                fault(place, SnapshotError::TooMany { what: "inside networks", limit: MAX_NETWORKS });
            }
        }
    }
}

fn prefixes(spec: &SnapshotSpec, fault: &mut impl FnMut(FaultPlace, SnapshotError)) {
    let mut known: Vec<(Network, &str)> = Vec::new();
    for (at, masquerade) in spec.masquerades.iter().enumerate() {
        let Some(prefix) = masquerade.prefix else { continue };
        let mut fault = |wrong: String| {
            let masquerade = masquerade.name.clone();
            fault(FaultPlace::Prefix(at), SnapshotError::Prefix { masquerade, prefix, wrong });
        };
        match &masquerade.from[..] {
            _ if !masquerade.pool.addresses.is_empty() => {
                fault("goes without a pool: nothing is kept of its flows; leave \"to\" out".to_owned());
            }
            _ if prefix.address.is_v4() => fault("is of IPv4; NPTv6 (RFC 6296) is for IPv6".to_owned()),
            [from] if from.address.is_v4() => {
                fault(format!("cannot stand for {from}: NPTv6 (RFC 6296) is for IPv6"));
            }
            [from] if from.len != prefix.len => {
                fault(format!("must be as long as the inside network {from}, so /{}", from.len));
            }
            [_] if !PREFIX_BITS.contains(&prefix.len) => {
                fault(format!("must have from {} to {} bits", PREFIX_BITS.start(), PREFIX_BITS.end()));
            }
            [_] => {}
            // That there is none at all has been said.
            [] => {}
            _ => fault("stands for one inside network; give each network a masquerade of its own".to_owned()),
        }
        let inside = spec.masquerades.iter().flat_map(|other| other.from.iter().map(|net| (*net, &*other.name)));
        if let Some((network, of)) = inside.into_iter().find(|(network, _)| meet(*network, prefix)) {
            fault(format!("meets the inside network {network} of masquerade {of:?}; it must be another one"));
        }
        if let Some((_, of)) = known.iter().find(|(other, _)| meet(*other, prefix)) {
            fault(format!("meets that of masquerade {of:?}; each needs one of its own"));
        }
        known.push((prefix, &masquerade.name));
        for (service, vip) in spec.services.iter().map(|service| (&service.name, service.vip)) {
            if prefix.contains(vip) {
                fault(format!("has the VIP {vip} of service {service:?} in it; what comes there is for inside hosts"));
            }
        }
    }
}

/// Every address of a pool once.
fn pools(spec: &SnapshotSpec, fault: &mut impl FnMut(FaultPlace, SnapshotError)) -> Vec<Pooled> {
    let mut pools: Vec<Pooled> = Vec::new();
    let mut known: Map<Addr, usize> = Map::default();
    let mut add = |pooled: Pooled| {
        let Some(first) = known.get(&pooled.address).and_then(|at| pools.get(*at)) else {
            known.insert(pooled.address, pools.len());
            if pools.len() == MAX_ADDRESSES {
                fault(pooled.place, SnapshotError::TooMany { what: "addresses of pools", limit: MAX_ADDRESSES });
            }
            pools.push(pooled);
            return;
        };
        let (address, first_subject, second) = (pooled.address, first.subject.clone(), pooled.subject.clone());
        if !(first.is_fullnat && pooled.is_fullnat) {
            fault(pooled.place, SnapshotError::PoolTaken { address, first: first_subject, second });
        } else if first.ports != pooled.ports {
            let ports = (first.ports, pooled.ports);
            fault(pooled.place, SnapshotError::PoolPortsDiffer { address, first: first_subject, second, ports });
        }
    };
    for (at, masquerade) in spec.masquerades.iter().enumerate() {
        for (n, address) in masquerade.pool.addresses.iter().enumerate() {
            let subject = format!("masquerade {:?}", masquerade.name);
            let (address, ports, place) = (*address, masquerade.pool.ports, FaultPlace::To(at, n));
            add(Pooled { subject, address, ports, is_fullnat: false, place });
        }
    }
    for (at, service) in spec.services.iter().enumerate() {
        if !service.all_methods().contains(&Method::Fullnat) {
            continue;
        }
        for address in &service.pool.addresses {
            let subject = format!("service {:?}", service.name);
            let (address, ports, place) = (*address, service.pool.ports, FaultPlace::Pool(at, *address));
            add(Pooled { subject, address, ports, is_fullnat: true, place });
        }
    }
    pools
}

/// Services, servers, inside networks and prefixes at the address of a pool.
fn meets_others(spec: &SnapshotSpec, pool: &Pooled, fault: &mut impl FnMut(FaultPlace, SnapshotError)) {
    let Pooled { subject, address, ports, place, .. } = pool;
    let (address, pool_ports) = (*address, *ports);
    for service in spec.services.iter().filter(|service| service.vip == address) {
        let announced = service.helper.and(service.data_ports);
        let met = std::iter::once(service.ports).chain(announced).find(|ports| ports.overlaps(pool_ports));
        if let Some(ports) = met {
            let (subject, service) = (subject.clone(), service.name.clone());
            fault(*place, SnapshotError::PoolMeetsService { subject, address, pool_ports, service, ports });
        }
    }
    servers_at(spec, address, subject, fault);
    // A pool that servers answer to may be of their segment, whoever else is there.
    if !pool.is_fullnat {
        not_inside(spec, address, subject, *place, fault);
    }
    not_in_prefix(spec, address, subject, *place, fault);
}

fn servers_at(spec: &SnapshotSpec, address: Addr, subject: &str, fault: &mut impl FnMut(FaultPlace, SnapshotError)) {
    for (at, service) in spec.services.iter().enumerate() {
        for (n, server) in service.servers.iter().chain(&service.sorry).enumerate() {
            if server.address == address {
                let (service, server, of) = (service.name.clone(), server.name.clone(), subject.to_owned());
                fault(FaultPlace::Server(at, n), SnapshotError::ServerInPool { service, server, of });
            }
        }
    }
}

fn not_inside(
    spec: &SnapshotSpec,
    address: Addr,
    subject: &str,
    place: FaultPlace,
    fault: &mut impl FnMut(FaultPlace, SnapshotError),
) {
    let inside =
        spec.masquerades.iter().flat_map(|masquerade| masquerade.from.iter().map(move |net| (net, masquerade)));
    // That everything is inside has been said.
    let mut inside = inside.filter(|(network, _)| network.len > 0);
    if let Some((network, masquerade)) = inside.find(|(network, _)| network.contains(address)) {
        let (subject, masquerade, network) = (subject.to_owned(), masquerade.name.clone(), *network);
        fault(place, SnapshotError::OutsideIsInside { subject, address, masquerade, network });
    }
}

fn not_in_prefix(
    spec: &SnapshotSpec,
    address: Addr,
    subject: &str,
    place: FaultPlace,
    fault: &mut impl FnMut(FaultPlace, SnapshotError),
) {
    let prefixes = spec.masquerades.iter().filter_map(|masquerade| Some((masquerade.prefix?, &masquerade.name)));
    if let Some((prefix, masquerade)) = prefixes.into_iter().find(|(prefix, _)| prefix.contains(address)) {
        let (subject, masquerade) = (subject.to_owned(), masquerade.clone());
        fault(place, SnapshotError::OutsideInPrefix { subject, address, masquerade, prefix });
    }
}

fn forwards(spec: &SnapshotSpec, pools: &[Pooled], fault: &mut impl FnMut(FaultPlace, SnapshotError)) {
    let by_address: Map<Addr, &Pooled> = pools.iter().map(|pool| (pool.address, pool)).collect();
    let mut names = Map::default();
    let mut known: Map<Addr, Vec<&ForwardSpec>> = Map::default();
    let vips: Map<Addr, &str> = spec.services.iter().rev().map(|service| (service.vip, &*service.name)).collect();
    let outside: Map<Addr, &str> =
        spec.forwards.iter().rev().map(|forward| (forward.address, &*forward.name)).collect();
    for (at, forward) in spec.forwards.iter().enumerate() {
        let ForwardSpec { name, address, ports, protocols, to, to_port } = forward;
        let (address, ports, to) = (*address, *ports, *to);
        let subject = format!("forward {name:?}");
        if names.insert(name, ()).is_some() {
            fault(FaultPlace::ForwardName(at), SnapshotError::DuplicateForward(name.clone()));
        }
        if at == MAX_FORWARDS {
            fault(FaultPlace::ForwardName(at), SnapshotError::TooMany { what: "forwards", limit: MAX_FORWARDS });
        }
        if let Some(pool) = by_address.get(&address).filter(|pool| pool.is_fullnat) {
            let (forward, of) = (name.clone(), pool.subject.clone());
            fault(FaultPlace::Listen(at), SnapshotError::ForwardFromFullnat { forward, address, of });
        }
        let shares = |other: &[crate::wire::Protocol]| protocols.list().iter().any(|p| other.contains(p));
        let services = spec.services.iter().filter(|service| service.vip == address);
        for service in services.filter(|of| of.ports.overlaps(ports) && shares(of.protocols.list())) {
            let (forward, other, of) = (name.clone(), format!("service {:?}", service.name), service.ports);
            fault(FaultPlace::Listen(at), SnapshotError::ForwardMeets { forward, address, ports, other, of });
        }
        let others = known.entry(address).or_default();
        if let Some(first) = others.iter().find(|of| of.ports.overlaps(ports) && shares(of.protocols.list())) {
            let (forward, other, of) = (name.clone(), format!("forward {:?}", first.name), first.ports);
            fault(FaultPlace::Listen(at), SnapshotError::ForwardMeets { forward, address, ports, other, of });
        }
        others.push(forward);
        if let Some(pool) = by_address.get(&address).filter(|pool| !pool.is_fullnat && pool.ports.overlaps(ports))
            && let Some(protocol) = protocols.list().iter().find(|protocol| leaves_none(pool.ports, others, **protocol))
        {
            let (forward, of, protocol) = (name.clone(), pool.subject.clone(), *protocol);
            fault(FaultPlace::Listen(at), SnapshotError::ForwardTakesPool { forward, address, of, protocol });
        }
        if !by_address.contains_key(&address) {
            servers_at(spec, address, &subject, fault);
            not_inside(spec, address, &subject, FaultPlace::Listen(at), fault);
            not_in_prefix(spec, address, &subject, FaultPlace::Listen(at), fault);
        }
        let mut wrong = |wrong: String| {
            let forward = name.clone();
            fault(FaultPlace::Target(at), SnapshotError::ForwardTarget { forward, to, wrong });
        };
        if to.is_v4() != address.is_v4() {
            wrong(format!("is of another address family than {address}"));
        }
        let first = to_port.unwrap_or(ports.first);
        if u32::from(first) + u32::from(ports.last - ports.first) > u32::from(u16::MAX) {
            wrong(format!("has no room for the ports {ports} from port {first} on"));
        }
        let taken = by_address.get(&to).map(|pool| format!("an address of the pool of {}", pool.subject));
        let taken = taken.or_else(|| vips.get(&to).map(|service| format!("the VIP of service {service:?}")));
        let taken = taken.or_else(|| outside.get(&to).map(|other| format!("the outside address of forward {other:?}")));
        if let Some(taken) = taken {
            wrong(format!("is {taken}; name an inside host, or packets would loop"));
        }
    }
}

/// Whether these forwards of one address together have all of a pool's ports.
fn leaves_none(pool: PortRange, forwards: &[&ForwardSpec], protocol: crate::wire::Protocol) -> bool {
    let of_protocol = forwards.iter().filter(|forward| forward.protocols.list().contains(&protocol));
    let mut ranges: Vec<PortRange> = of_protocol.map(|forward| forward.ports).collect();
    ranges.sort_unstable_by_key(|range| range.first);
    let mut next = u32::from(pool.first);
    for range in ranges {
        if u32::from(range.first) <= next {
            next = next.max(u32::from(range.last) + 1);
        }
    }
    next > u32::from(pool.last)
}

fn meet(a: Network, b: Network) -> bool {
    a.contains(b.address) && a.len <= b.len || b.contains(a.address) && b.len <= a.len
}

fn family(addr: Addr) -> &'static str {
    if addr.is_v4() { "IPv4" } else { "IPv6" }
}
