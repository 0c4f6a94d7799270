//! The immutable snapshot that the engine forwards by, and how one follows another.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use siphasher::sip::SipHasher13;
use thiserror::Error;

use super::scheduler::{Changes, Mark};
use super::{
    Method, PortRange, Server, ServerId, ServerLoad, ServerPath, ServerSpec, ServerState, Service, ServiceId,
    ServiceSpec, ServiceState, SnapshotSpec, scheduler,
};
use crate::wire::{Addr, Encapsulation, Protocol};

type Map<K, V> = HashMap<K, V, BuildHasherDefault<SipHasher13>>;

/// Services compiled for lookup. See the module docs for what carries over from one snapshot to the next.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub generation: u64,
    pub spec: SnapshotSpec,
    /// Live services in the order of the configuration.
    pub live: Vec<Arc<Service>>,
    /// By [`ServiceId`]; `None` where an id is free.
    services: Vec<Option<Arc<Service>>>,
    /// By [`ServerId`]; `None` where an id is free.
    servers: Vec<Option<Arc<Server>>>,
    vips: Map<Addr, Vip>,
    /// The addresses of all servers, retired ones included.
    server_addresses: Map<Addr, ()>,
    exact: Map<(Addr, Protocol, u16), Arc<Service>>,
    /// The gateway's address towards each server, as the specification has it.
    sources: Map<Addr, Addr>,
    /// By VIP and server.
    probe_sources: Map<(Addr, Addr), Addr>,
    /// Where tunnels begin, those to retired servers included, and the ports of those that are GUE.
    tunnel_sources: Map<Addr, ()>,
    gue_ports: Map<u16, ()>,
}

/// What listens at one address besides single ports.
#[derive(Debug, Default)]
struct Vip {
    /// No configured service has this address any more; old flows do.
    retired: bool,
    ranges: Vec<(Protocol, PortRange, Arc<Service>)>,
}

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
}

/// A [`SnapshotError`] and where in the specification it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Index in [`SnapshotSpec::services`].
    pub service: usize,
    /// Index in [`ServiceSpec::servers`]; `None`: the service itself.
    pub server: Option<usize>,
    pub error: SnapshotError,
}

impl Snapshot {
    /// Compiles `spec`. `previous` is the snapshot now in use, if any; flows that it admitted keep working.
    pub fn build(spec: SnapshotSpec, previous: Option<&Snapshot>) -> Result<Snapshot, SnapshotError> {
        if let Some(fault) = spec.faults().into_iter().next() {
            return Err(fault.error);
        }
        let mut snapshot = Snapshot {
            generation: previous.map_or(1, |p| p.generation + 1),
            spec,
            live: Vec::new(),
            services: Vec::new(),
            servers: Vec::new(),
            vips: Map::default(),
            server_addresses: Map::default(),
            exact: Map::default(),
            sources: Map::default(),
            probe_sources: Map::default(),
            tunnel_sources: Map::default(),
            gue_ports: Map::default(),
        };
        snapshot.sources = snapshot.spec.tunnel_sources.iter().copied().collect();
        let probes = snapshot.spec.probe_sources.iter();
        snapshot.probe_sources = probes.map(|probe| ((probe.vip, probe.server), probe.client)).collect();
        if let Some(previous) = previous {
            snapshot.services.clone_from(&previous.services);
            snapshot.servers.clone_from(&previous.servers);
            snapshot.release_idle(previous);
        }
        for index in 0..snapshot.spec.services.len() {
            let service = snapshot.admit_service(index, previous);
            snapshot.listen(&service);
            snapshot.live.push(service);
        }
        for service in snapshot.services.iter().flatten() {
            if !snapshot.live.iter().any(|live| live.id == service.id) {
                snapshot.vips.entry(service.vip()).or_insert(Vip { retired: true, ranges: Vec::new() });
            }
        }
        snapshot.server_addresses = snapshot.servers.iter().flatten().map(|server| (server.address, ())).collect();
        for server in snapshot.servers.iter().flatten().filter(|server| server.method == Method::Tunnel) {
            snapshot.tunnel_sources.extend(server.source.map(|source| (source, ())));
            if let Encapsulation::Gue { port } = server.encapsulation {
                snapshot.gue_ports.insert(port, ());
            }
        }
        Ok(snapshot)
    }

    /// This snapshot without the retired servers and services that no flow uses any more; `None` while there are none.
    /// Flows are forwarded as before, so the generation is the same.
    pub fn tidied(&self) -> Option<Snapshot> {
        let servers = || self.servers.iter().flatten();
        let is_live = |service: &Service| self.live.iter().any(|live| live.id == service.id);
        let serves =
            |server: &Server| self.live.iter().flat_map(|live| live.all_servers()).any(|live| live.id == server.id);
        let idle_server = servers().any(|server| server.load.is_idle() && !serves(server));
        let empty_service = self
            .services
            .iter()
            .flatten()
            .any(|service| !is_live(service) && !servers().any(|server| server.service == service.id));
        if !idle_server && !empty_service {
            return None;
        }
        let tidied = Snapshot::build(self.spec.clone(), Some(self)).ok()?;
        Some(Snapshot { generation: self.generation, ..tidied })
    }

    /// The service that listens for this packet.
    #[inline]
    pub fn service_for(&self, vip: Addr, protocol: Protocol, port: u16) -> Option<&Arc<Service>> {
        if let Some(service) = self.exact.get(&(vip, protocol, port)) {
            return Some(service);
        }
        let ranges = &self.vips.get(&vip)?.ranges;
        // The narrowest range wins, so that one port can be taken out of an all-ports service; ranges stand narrowest first.
        ranges.iter().find(|(p, range, _)| *p == protocol && range.contains(port)).map(|(_, _, service)| service)
    }

    /// Whether `addr` is a VIP, of a live service or of one that still has flows.
    #[inline]
    pub fn is_vip(&self, addr: Addr) -> bool {
        self.vips.contains_key(&addr)
    }

    /// Whether `addr` is that of a server, of a live service or of one that still has flows.
    pub fn is_server(&self, addr: Addr) -> bool {
        self.server_addresses.contains_key(&addr)
    }

    /// Whether what no service takes at this VIP is left to the host, since the address is the host's own.
    pub fn is_local(&self, vip: Addr) -> bool {
        self.spec.local_vips.contains(&vip)
    }

    /// Whether what comes for `addr` must be dealt with here, and not be left to the host.
    pub fn is_ours(&self, addr: Addr) -> bool {
        (self.is_vip(addr) && !self.is_local(addr)) || self.spec.own_addresses.contains(&addr)
    }

    /// Whether tunnels begin at `addr`.
    pub fn is_tunnel_source(&self, addr: Addr) -> bool {
        self.tunnel_sources.contains_key(&addr)
    }

    /// The address that the gateway probes `server` from, as a client of `vip`.
    pub fn probe_source(&self, vip: Addr, server: Addr) -> Option<Addr> {
        self.probe_sources.get(&(vip, server)).copied()
    }

    /// Whether some server expects GUE at this UDP port.
    pub fn is_gue_port(&self, port: u16) -> bool {
        self.gue_ports.contains_key(&port)
    }

    /// Every VIP and whether it is only kept for old flows.
    pub fn vips(&self) -> impl Iterator<Item = (Addr, bool)> + '_ {
        self.vips.iter().map(|(addr, vip)| (*addr, vip.retired))
    }

    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id.0 as usize)?.as_ref()
    }

    pub fn server(&self, id: ServerId) -> Option<&Arc<Server>> {
        self.servers.get(id.0 as usize)?.as_ref()
    }

    /// Every server, of live services and those that only old flows refer to.
    pub fn all_servers(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.iter().flatten()
    }

    /// One past the highest [`ServerId`] in use.
    pub fn server_ids(&self) -> usize {
        self.servers.len()
    }

    /// Frees the ids that no flow uses any more. Only those that `previous` had retired already: they get no new flows,
    /// while a shard may admit one to a live server up to the moment it swaps.
    fn release_idle(&mut self, previous: &Snapshot) {
        let mut live_servers = vec![false; self.servers.len()];
        let mut used_services = vec![false; self.services.len()];
        for service in &previous.live {
            used_services[service.id.0 as usize] = true;
            for server in service.all_servers() {
                live_servers[server.id.0 as usize] = true;
            }
        }
        for (slot, is_live) in self.servers.iter_mut().zip(live_servers) {
            if !is_live && slot.as_ref().is_some_and(|server| server.load.is_idle()) {
                *slot = None;
            }
        }
        for server in self.servers.iter().flatten() {
            used_services[server.service.0 as usize] = true;
        }
        for (slot, is_used) in self.services.iter_mut().zip(used_services) {
            if !is_used {
                *slot = None;
            }
        }
    }

    fn admit_service(&mut self, index: usize, previous: Option<&Snapshot>) -> Arc<Service> {
        let spec = self.spec.services[index].clone();
        let old = previous.and_then(|p| p.live.iter().find(|service| service.spec.name == spec.name));
        if let (Some(old), Some(previous)) = (old, previous)
            && old.spec == spec
            && previous.spec.seed == self.spec.seed
            && old.all_servers().all(|server| server.source == self.sources.get(&server.address).copied())
        {
            return old.clone();
        }
        // A service that moved to another address is a new one: the old flows' VIP must stay known.
        let reused = old.filter(|old| old.spec.vip == spec.vip);
        let id = reused.map_or_else(|| ServiceId(free_slot(&mut self.services)), |old| old.id);
        let state: Arc<ServiceState> = reused.map(|old| old.state.clone()).unwrap_or_default();
        let changes = &state.changes;
        let servers: Vec<Arc<Server>> =
            spec.servers.iter().map(|server| self.admit_server(id, &spec, server, reused, changes)).collect();
        let sorry = spec.sorry.as_ref().map(|server| self.admit_server(id, &spec, server, reused, changes));
        let mut scheduler = scheduler::build(spec.scheduler, spec.scheduler_flags, &servers, self.spec.seed);
        if let Some(old) = reused {
            scheduler.inherit(old.scheduler.memory().moved(&places(&old.servers, &servers)));
        }
        let service = Arc::new(Service { id, spec, servers, sorry, scheduler, state });
        self.services[id.0 as usize] = Some(service.clone());
        service
    }

    fn admit_server(
        &mut self,
        service: ServiceId,
        of: &ServiceSpec,
        spec: &ServerSpec,
        old: Option<&Arc<Service>>,
        changes: &Arc<Changes>,
    ) -> Arc<Server> {
        let kept = old.and_then(|old| old.all_servers().find(|server| is_same_server(of, spec, server)));
        let (id, load, path, state) = match kept {
            Some(server) => (server.id, server.load.clone(), server.path.clone(), server.state.clone()),
            None => {
                let id = free_slot(&mut self.servers);
                let mark = || Mark::new(changes, id);
                let (load, path) = (ServerLoad::marked(mark()), ServerPath::marked(mark()));
                (ServerId(id), Arc::new(load), Arc::new(path), Arc::new(ServerState::marked(mark())))
            }
        };
        let server = Arc::new(Server {
            id,
            service,
            name: spec.name.clone(),
            address: spec.address,
            port: spec.port,
            weight: spec.weight,
            method: spec.method.unwrap_or(of.method),
            encapsulation: spec.tunnel.unwrap_or(of.tunnel),
            source: self.sources.get(&spec.address).copied(),
            thresholds: (spec.max_connections, spec.min_connections),
            slow_start: spec.slow_start,
            load,
            path,
            state,
        });
        self.servers[id.0 as usize] = Some(server.clone());
        server
    }

    fn listen(&mut self, service: &Arc<Service>) {
        let spec = &service.spec;
        let vip = self.vips.entry(spec.vip).or_default();
        for &protocol in spec.protocols.list() {
            if spec.ports.is_single() {
                self.exact.insert((spec.vip, protocol, spec.ports.first), service.clone());
            } else {
                vip.ranges.push((protocol, spec.ports, service.clone()));
            }
        }
        vip.ranges.sort_by_key(|(_, range, _)| range.last - range.first);
    }
}

/// Where in `new` each of the servers of `old` stands.
fn places(old: &[Arc<Server>], new: &[Arc<Server>]) -> Vec<Option<usize>> {
    let by_id: Map<ServerId, usize> = new.iter().enumerate().map(|(index, server)| (server.id, index)).collect();
    old.iter().map(|server| by_id.get(&server.id).copied()).collect()
}

/// The index of the first free slot; the caller fills it before it asks for another.
fn free_slot<T>(slots: &mut Vec<Option<T>>) -> u32 {
    let index = slots.iter().position(Option::is_none).unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    });
    u32::try_from(index).expect("the configuration that names them fits in memory")
}

/// Flows find the server they were admitted to by its id: whatever their packets depend on must be as it was.
fn is_same_server(of: &ServiceSpec, spec: &ServerSpec, server: &Server) -> bool {
    spec.name == server.name
        && spec.address == server.address
        && spec.port == server.port
        && spec.method.unwrap_or(of.method) == server.method
        && spec.tunnel.unwrap_or(of.tunnel) == server.encapsulation
}

impl SnapshotSpec {
    /// Everything for which [`Snapshot::build`] would refuse this, in the order of the configuration.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut names = Map::default();
        let mut listeners: Map<(Addr, Protocol), Vec<&ServiceSpec>> = Map::default();
        // Of several services at one VIP the first is named.
        let vips: Map<Addr, &str> = self.services.iter().rev().map(|s| (s.vip, s.name.as_str())).collect();
        for (index, service) in self.services.iter().enumerate() {
            let mut fault = |error| faults.push(Fault { service: index, server: None, error });
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
                let mut fault = |error| faults.push(Fault { service: index, server: Some(at), error });
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
