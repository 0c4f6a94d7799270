//! What the host has to do for a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::control::config::GatewayConfig;
use crate::io::host::{HostPlan, Listener, Ports, ProbePath, ReturnPath, VipPlan};
use crate::service::{HelperKind, Method, Network, Pool, PoolUse, PortRange, Protocols, Server, Service, Snapshot};
use crate::wire::{Addr, Protocol};

/// Packets that the kernel may queue towards the workers. Its own default of 500 is too few for a burst of small packets
/// from more than one link.
const TXQUEUELEN: u32 = 4096;

/// What is only kept for its old flows (VIPs, servers, pools) is part of the plan: its packets must still come.
///
/// In mode "tap" nothing of the host's IP stack is involved: it has the device to carry and no more.
pub fn host_plan(gateway: &GatewayConfig, snapshot: &Snapshot) -> HostPlan {
    let device = HostPlan {
        device: gateway.device.clone(),
        mtu: Some(u32::from(snapshot.spec.mtu)),
        txqueuelen: TXQUEUELEN,
        bridge: gateway.tap.as_ref().and_then(|tap| tap.bridge.clone()),
        ..HostPlan::default()
    };
    if gateway.tap.is_some() {
        return device;
    }
    HostPlan {
        uplinks: gateway.uplinks.clone(),
        vips: vips(snapshot),
        prefixes: prefixes(snapshot),
        returns: returns(snapshot),
        one_way: one_way(snapshot),
        probes: probes(snapshot),
        ..device
    }
}

/// In mode "tap": whom the gateway answers for, and whom it must know. What is only kept for old flows is among them.
pub fn segment_plan(snapshot: &Snapshot) -> (Vec<Addr>, Vec<Addr>) {
    let pools = snapshot.pools.iter().map(|pool| pool.address);
    let mut vips: Vec<Addr> = snapshot.vips().map(|(addr, _)| addr).chain(pools).collect();
    let mut servers: Vec<Addr> = known_servers(snapshot).map(|server| server.address).collect();
    for addrs in [&mut vips, &mut servers] {
        addrs.sort_unstable();
        addrs.dedup();
    }
    (vips, servers)
}

fn vips(snapshot: &Snapshot) -> Vec<VipPlan> {
    let mut vips: BTreeMap<IpAddr, Vec<Listener>> = snapshot.vips().map(|(addr, _)| (addr.ip(), Vec::new())).collect();
    for service in known_services(snapshot) {
        let listeners = vips.entry(service.vip().ip()).or_default();
        for protocol in service.spec.protocols.list() {
            listeners.push(Listener { protocol: protocol.0, ports: ports(service.spec.ports) });
            listeners.extend(announced(service).map(|range| Listener { protocol: protocol.0, ports: ports(range) }));
        }
    }
    for pool in snapshot.pools.iter() {
        vips.entry(pool.address.ip()).or_default().extend(pooled(snapshot, pool));
    }
    let mut peers = peers(snapshot);
    let plan = |(address, mut listeners): (IpAddr, Vec<Listener>)| {
        listeners.sort_unstable();
        listeners.dedup();
        VipPlan { address, listeners, peers: peers.remove(&address).unwrap_or_default().into_iter().collect() }
    };
    vips.into_iter().map(plan).collect()
}

/// What comes to the ports that a pool gives away, and to those that are forwarded from its address.
fn pooled(snapshot: &Snapshot, pool: &Pool) -> Vec<Listener> {
    let forwards = snapshot.pools.forwards.iter().filter(|forward| forward.address == pool.address);
    let mut listeners: Vec<Listener> =
        forwards.flat_map(|forward| listeners(forward.protocols, forward.ports)).collect();
    // Of an address that no configuration names any more, what was forwarded is known by its range alone.
    if pool.usage != PoolUse::Forward || pool.is_retired {
        listeners.extend(pool.ranges().flat_map(|range| self::listeners(Protocols::TcpAndUdp, range)));
    }
    listeners
}

fn listeners(protocols: Protocols, range: PortRange) -> impl Iterator<Item = Listener> {
    protocols.list().iter().map(move |protocol| Listener { protocol: protocol.0, ports: ports(range) })
}

/// Which servers answer to each address of a pool. To one that is only kept for its flows any of them may.
fn peers(snapshot: &Snapshot) -> BTreeMap<IpAddr, BTreeSet<IpNet>> {
    let mut peers: BTreeMap<IpAddr, BTreeSet<IpNet>> = BTreeMap::new();
    let retired = snapshot.pools.iter().filter(|pool| pool.is_retired && pool.usage == PoolUse::Fullnat);
    let retired: Vec<Addr> = retired.map(|pool| pool.address).collect();
    for server in known_servers(snapshot).filter(|server| server.method == Method::Fullnat) {
        let Some(service) = snapshot.service(server.service) else { continue };
        let pool = service.spec.pool.addresses.iter().chain(&retired);
        for address in pool.filter(|address| address.is_v4() == server.address.is_v4()) {
            peers.entry(address.ip()).or_default().insert(IpNet::from(server.address.ip()));
        }
    }
    peers
}

/// The outside prefixes of masquerades without state.
fn prefixes(snapshot: &Snapshot) -> Vec<IpNet> {
    let prefixes = snapshot.pools.masquerades().filter_map(|masquerade| net(masquerade.spec.prefix?));
    prefixes.collect::<BTreeSet<_>>().into_iter().collect()
}

/// What comes back from servers, and what goes out from inside networks.
fn returns(snapshot: &Snapshot) -> Vec<ReturnPath> {
    let mut paths: BTreeSet<ReturnPath> = BTreeSet::new();
    // Replies of the others do not come back through the gateway, or come to an address of a pool.
    for server in known_servers(snapshot).filter(|server| server.method == Method::Nat) {
        let Some(service) = snapshot.service(server.service) else { continue };
        for protocol in service.spec.protocols.list() {
            let path = ReturnPath {
                from: IpNet::from(server.address.ip()),
                protocol: Some(protocol.0),
                // What a helper lets through comes from other ports as well.
                ports: service.spec.helper.map_or_else(|| ports(server_ports(server, service)), |_| None),
            };
            paths.insert(path);
        }
    }
    // What stays among the inside networks comes as well: the engine passes it, and the main table has the rest of its way.
    let inside = snapshot.pools.inside_networks();
    paths.extend(inside.filter_map(|network| Some(ReturnPath { from: net(network)?, protocol: None, ports: None })));
    paths.extend(forwarded(snapshot));
    paths.into_iter().collect()
}

/// What comes back from hosts that ports are forwarded to, and that no masquerade has inside.
fn forwarded(snapshot: &Snapshot) -> impl Iterator<Item = ReturnPath> {
    let outside = snapshot.pools.forwards.iter().filter(|forward| !snapshot.pools.is_inside(forward.to));
    outside.flat_map(|forward| {
        let from = forward.to_port.unwrap_or(forward.ports.first);
        let range = PortRange { first: from, last: from.saturating_add(forward.ports.last - forward.ports.first) };
        listeners(forward.protocols, range).map(|Listener { protocol, ports }| ReturnPath {
            from: IpNet::from(forward.to.ip()),
            protocol: Some(protocol),
            ports,
        })
    })
}

fn net(network: Network) -> Option<IpNet> {
    IpNet::new(network.address.ip(), network.len).ok()
}

fn one_way(snapshot: &Snapshot) -> Vec<IpNet> {
    let servers = known_servers(snapshot).filter(|server| server.method.is_one_way());
    servers.map(|server| IpNet::from(server.address.ip())).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What can be an answer to a probe: of a server, or of a VIP where the server answers under that. A check may ask by another
/// protocol than clients do.
fn probes(snapshot: &Snapshot) -> Vec<ProbePath> {
    let mut paths = BTreeSet::new();
    for service in &snapshot.live {
        for server in &service.servers {
            let Some(own) = snapshot.probe_source(service.vip(), server.address) else { continue };
            let (from, of) = match server.method.is_one_way() {
                true => (service.vip(), service.spec.ports),
                false => (server.address, server_ports(server, service)),
            };
            for protocol in [Protocol::TCP, Protocol::UDP] {
                let from = IpNet::from(from.ip());
                let from = ReturnPath { from, protocol: Some(protocol.0), ports: ports(of) };
                paths.insert(ProbePath { own: own.ip(), from });
            }
        }
    }
    paths.into_iter().collect()
}

/// The ports that replies of `server` come from.
fn server_ports(server: &Server, service: &Service) -> PortRange {
    let listen = service.spec.ports;
    match server.port {
        None => listen,
        Some(first) => PortRange { first, last: first.saturating_add(listen.last - listen.first) },
    }
}

/// The ports of the VIP that announced flows come to: those that the operator named, and of FTP the one that servers connect
/// from.
fn announced(service: &Service) -> impl Iterator<Item = PortRange> + use<> {
    let before = match service.spec.helper {
        Some(HelperKind::Ftp) => service.spec.ports.first.checked_sub(1).filter(|port| *port > 0),
        _ => None,
    };
    let named = service.spec.helper.and(service.spec.data_ports);
    before.map(PortRange::single).into_iter().chain(named)
}

fn ports(range: PortRange) -> Option<Ports> {
    (range != PortRange::ALL).then_some(Ports { first: range.first, last: range.last })
}

fn known_servers(snapshot: &Snapshot) -> impl Iterator<Item = &Server> {
    snapshot.all_servers().map(AsRef::as_ref)
}

/// Live ones, also without any server; and retired ones.
fn known_services(snapshot: &Snapshot) -> impl Iterator<Item = &Service> {
    let retired = known_servers(snapshot).filter_map(|server| snapshot.service(server.service));
    snapshot.live.iter().chain(retired).map(AsRef::as_ref)
}
