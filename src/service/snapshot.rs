//! The immutable snapshot that the engine forwards by, and how one follows another.

use std::sync::Arc;

use super::SchedulerKind;
use super::rate::Bucket;
use super::scheduler::{Changes, Mark};
use super::{
    Map, Method, Persisted, Pools, PortRange, Server, ServerId, ServerLoad, ServerPath, ServerSpec, ServerState,
    Service, ServiceId, ServiceSpec, ServiceState, SnapshotError, SnapshotSpec, scheduler,
};
use crate::wire::{Addr, Encapsulation, Protocol, Tuple};

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
    /// By the address of a server whose packets are each scheduled by themselves: as whose its answers go out.
    answers: Map<Addr, Vec<Answers>>,
    pub pools: Pools,
    /// Of `new_flows_per_second` in all; every snapshot has the same one.
    pub(crate) new_flows: Arc<Bucket>,
    /// The persistence of live services, each table once.
    persisted: Vec<Arc<Persisted>>,
    taken: Taken,
}

/// Where the answers of one server come from, and go out as.
#[derive(Clone, Copy, Debug)]
struct Answers {
    from: PortRange,
    vip: Addr,
    /// The port of the VIP that stands for the first one of `from`.
    first: u16,
    server: ServerId,
}

/// Below these no id is free: while a snapshot is built ids are only taken.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    services: usize,
    servers: usize,
}

/// The snapshot before, and its live services by name.
struct Previous<'a> {
    snapshot: &'a Snapshot,
    by_name: Map<&'a str, &'a Arc<Service>>,
}

/// What listens at one address besides single ports.
#[derive(Debug, Default)]
struct Vip {
    /// No configured service has this address any more; old flows do.
    retired: bool,
    ranges: Vec<(Protocol, PortRange, Arc<Service>)>,
}

impl Snapshot {
    /// Compiles `spec`. `previous` is the snapshot now in use, if any; flows that it admitted keep working.
    pub fn build(spec: SnapshotSpec, previous: Option<&Snapshot>) -> Result<Snapshot, SnapshotError> {
        let mut snapshot = Snapshot::begun(spec, previous)?;
        if let Some(previous) = previous {
            snapshot.release_idle(previous);
        }
        Ok(snapshot.filled(previous))
    }

    /// As [`Snapshot::build`], but lets go of nothing: for who does not tell the host.
    pub fn build_keeping(spec: SnapshotSpec, previous: &Snapshot) -> Result<Snapshot, SnapshotError> {
        Ok(Snapshot::begun(spec, Some(previous))?.filled(Some(previous)))
    }

    /// What follows `tried` when that is given up for what was before it, `old`, of which `spec` is the specification.
    /// Everything of `old` is as if it had never been away: states, load, ids. What only `tried` had is retired.
    pub fn build_back(spec: SnapshotSpec, old: &Snapshot, tried: &Snapshot) -> Result<Snapshot, SnapshotError> {
        let mut snapshot = Snapshot::begun(spec, Some(tried))?;
        // What `tried` has let go of goes the way of all that is retired; its id may be another's by now.
        for (slot, was) in snapshot.services.iter_mut().zip(&old.services) {
            if slot.is_none() {
                slot.clone_from(was);
            }
        }
        for (slot, was) in snapshot.servers.iter_mut().zip(&old.servers) {
            if slot.is_none() {
                slot.clone_from(was);
            }
        }
        for service in &old.live {
            snapshot.services[service.id.0 as usize] = Some(service.clone());
            for server in service.all_servers() {
                snapshot.servers[server.id.0 as usize] = Some(server.clone());
            }
        }
        Ok(Snapshot { generation: old.generation, ..snapshot.filled(Some(old)) })
    }

    /// Without a live service, and with all that `previous` knows.
    fn begun(spec: SnapshotSpec, previous: Option<&Snapshot>) -> Result<Snapshot, SnapshotError> {
        if let Some(fault) = spec.faults().into_iter().next() {
            return Err(fault.error);
        }
        let mut snapshot =
            Snapshot { generation: previous.map_or(1, |p| p.generation + 1), spec, ..Snapshot::default() };
        snapshot.pools = Pools::build(&snapshot.spec, previous.map(|previous| &previous.pools));
        snapshot.sources = snapshot.spec.tunnel_sources.iter().copied().collect();
        let probes = snapshot.spec.probe_sources.iter();
        snapshot.probe_sources = probes.map(|probe| ((probe.vip, probe.server), probe.client)).collect();
        if let Some(previous) = previous {
            snapshot.services.clone_from(&previous.services);
            snapshot.servers.clone_from(&previous.servers);
            snapshot.new_flows = previous.new_flows.clone();
        }
        Ok(snapshot)
    }

    /// With the services of its specification; those that `previous` has too are the same.
    fn filled(mut self, previous: Option<&Snapshot>) -> Snapshot {
        let previous = previous.map(|snapshot| Previous {
            snapshot,
            by_name: snapshot.live.iter().map(|service| (service.spec.name.as_str(), service)).collect(),
        });
        let mut tables = Map::default();
        for index in 0..self.spec.services.len() {
            let service = self.admit_service(index, previous.as_ref());
            self.listen(&service);
            if let Some(table) = &service.persisted
                && tables.insert(Arc::as_ptr(table), ()).is_none()
            {
                self.persisted.push(table.clone());
            }
            self.live.push(service);
        }
        let live: Map<ServiceId, ()> = self.live.iter().map(|service| (service.id, ())).collect();
        for service in self.services.iter().flatten() {
            if !live.contains_key(&service.id) {
                self.vips.entry(service.vip()).or_insert(Vip { retired: true, ranges: Vec::new() });
            }
        }
        self.server_addresses = self.servers.iter().flatten().map(|server| (server.address, ())).collect();
        for server in self.servers.iter().flatten().filter(|server| server.method == Method::Tunnel) {
            self.tunnel_sources.extend(server.source.map(|source| (source, ())));
            if let Encapsulation::Gue { port } = server.encapsulation {
                self.gue_ports.insert(port, ());
            }
        }
        self
    }

    /// This snapshot without the retired servers, services and pools that no flow uses any more; `None` while there are none.
    /// Flows are forwarded as before, so the generation is the same.
    pub fn tidied(&self) -> Option<Snapshot> {
        let (mut live_services, mut used_services) =
            (vec![false; self.services.len()], vec![false; self.services.len()]);
        let mut live_servers = vec![false; self.servers.len()];
        for service in &self.live {
            live_services[service.id.0 as usize] = true;
            for server in service.all_servers() {
                live_servers[server.id.0 as usize] = true;
            }
        }
        let mut idle_server = false;
        for server in self.servers.iter().flatten() {
            used_services[server.service.0 as usize] = true;
            idle_server |= server.load.is_idle() && !live_servers[server.id.0 as usize];
        }
        let empty = |service: &Arc<Service>| {
            let index = service.id.0 as usize;
            !live_services[index] && !used_services[index]
        };
        let empty_service = self.services.iter().flatten().any(empty);
        if !idle_server && !empty_service && !self.pools.has_idle() {
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

    /// The server without flows that a packet of this tuple comes from, and the VIP and port that it answers for.
    #[inline]
    pub fn answers_of(&self, tuple: &Tuple) -> Option<(ServerId, (Addr, u16))> {
        if self.answers.is_empty() || tuple.protocol != Protocol::UDP {
            return None;
        }
        let answers = self.answers.get(&tuple.src)?.iter().find(|answers| answers.from.contains(tuple.sport))?;
        Some((answers.server, (answers.vip, answers.first + (tuple.sport - answers.from.first))))
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

    /// Whether what nobody takes at this address is left to the host, since it is the host's own.
    pub fn is_local(&self, vip: Addr) -> bool {
        self.spec.local_vips.contains(&vip)
    }

    /// Whether what comes for `addr` must be dealt with here, and not be left to the host.
    pub fn is_ours(&self, addr: Addr) -> bool {
        let is_public = self.is_vip(addr) || self.pools.of(addr).is_some();
        (is_public && !self.is_local(addr)) || self.spec.own_addresses.contains(&addr)
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

    /// Whether `server` is configured, and not only kept for its flows.
    pub fn is_live(&self, server: &Server) -> bool {
        let service = self.live.iter().find(|service| service.id == server.service);
        service.is_some_and(|service| service.all_servers().any(|other| other.id == server.id))
    }

    /// Every server, of live services and those that only old flows refer to.
    pub fn all_servers(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.iter().flatten()
    }

    /// The servers that took new flows in `previous` and are not configured any more.
    pub fn retired_since(&self, previous: &Snapshot) -> Vec<ServerId> {
        let live = |snapshot: &Snapshot| -> Vec<ServerId> {
            let mut ids: Vec<_> =
                snapshot.live.iter().flat_map(|of| of.all_servers()).map(|server| server.id).collect();
            ids.sort_unstable();
            ids
        };
        let (before, now) = (live(previous), live(self));
        // An id that is given away again was let go of before: a snapshot retires a server first.
        before.into_iter().filter(|id| now.binary_search(id).is_err()).collect()
    }

    /// The tables of clients that persistence remembers; a group's is there once.
    pub fn persisted(&self) -> &[Arc<Persisted>] {
        &self.persisted
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

    fn admit_service(&mut self, index: usize, previous: Option<&Previous<'_>>) -> Arc<Service> {
        let spec = self.spec.services[index].clone();
        let old = previous.and_then(|previous| previous.by_name.get(spec.name.as_str()).copied());
        if let (Some(old), Some(previous)) = (old, previous)
            && old.spec == spec
            && previous.snapshot.spec.seed == self.spec.seed
            && old.all_servers().all(|server| server.source == self.sources.get(&server.address).copied())
        {
            return old.clone();
        }
        // A service that moved to another address is a new one: the old flows' VIP must stay known.
        let reused = old.filter(|old| old.spec.vip == spec.vip);
        let id =
            reused.map_or_else(|| ServiceId(free_slot(&mut self.services, &mut self.taken.services)), |old| old.id);
        let state: Arc<ServiceState> = reused.map(|old| old.state.clone()).unwrap_or_default();
        let changes = &state.changes;
        let servers: Vec<Arc<Server>> =
            spec.servers.iter().map(|server| self.admit_server(id, &spec, server, reused, changes)).collect();
        let sorry = spec.sorry.as_ref().map(|server| self.admit_server(id, &spec, server, reused, changes));
        let mut scheduler = scheduler::build(spec.scheduler, spec.scheduler_flags, &servers, self.spec.seed);
        if let Some(old) = reused {
            scheduler.inherit(old.scheduler.memory().moved(&places(&old.servers, &servers)));
        }
        let persisted = self.persistence_of(&spec, reused, previous);
        let mut homes: Map<_, Vec<_>> = Map::default();
        for server in servers.iter().filter(|_| persisted.is_some()) {
            homes.entry(server.address).or_default().push(server.clone());
        }
        let is_two_way = !servers.iter().chain(&sorry).any(|server| server.method.is_one_way());
        let service = Arc::new(Service { id, spec, servers, sorry, scheduler, state, persisted, is_two_way, homes });
        self.services[id.0 as usize] = Some(service.clone());
        service
    }

    /// The table that the service has had, or that its group has, if clients are named in it as they are to be now.
    fn persistence_of(
        &self,
        spec: &ServiceSpec,
        old: Option<&Arc<Service>>,
        previous: Option<&Previous<'_>>,
    ) -> Option<Arc<Persisted>> {
        let settings = spec.persistence.as_ref()?;
        let fits = |service: &&Arc<Service>| {
            service.spec.group == spec.group && service.persisted.as_ref().is_some_and(|table| table.fits(settings))
        };
        let known = match spec.group {
            Some(_) => self.live.iter().chain(previous.iter().flat_map(|previous| &previous.snapshot.live)).find(fits),
            None => old.filter(fits),
        };
        known.and_then(|service| service.persisted.clone()).or_else(|| Some(Arc::new(Persisted::new(settings))))
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
                let id = free_slot(&mut self.servers, &mut self.taken.servers);
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
            fair_part: if spec.slow_start.is_some() { fair_part(of, spec) } else { 1 << 16 },
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
        for server in service.all_servers().filter(|server| spec.one_packet && server.method == Method::Nat) {
            let first = server.port.unwrap_or(spec.ports.first);
            // That it fits was checked before: `SnapshotError::PortsDoNotFit`.
            let from = PortRange { first, last: first.saturating_add(spec.ports.last - spec.ports.first) };
            let answers = Answers { from, vip: spec.vip, first: spec.ports.first, server: server.id };
            self.answers.entry(server.address).or_default().push(answers);
        }
    }
}

/// Where in `new` each of the servers of `old` stands.
fn places(old: &[Arc<Server>], new: &[Arc<Server>]) -> Vec<Option<usize>> {
    let by_id: Map<ServerId, usize> = new.iter().enumerate().map(|(index, server)| (server.id, index)).collect();
    old.iter().map(|server| by_id.get(&server.id).copied()).collect()
}

/// The index of the first free slot, none of which is below `taken`; the caller fills it before it asks for another.
fn free_slot<T>(slots: &mut Vec<Option<T>>, taken: &mut usize) -> u32 {
    let free = slots.iter().skip(*taken).position(Option::is_none).map(|index| index + *taken);
    let index = free.unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    });
    *taken = index + 1;
    u32::try_from(index).expect("the configuration that names them fits in memory")
}

/// A scheduler that goes by load would give a server that comes up empty all that it takes. With the others it gets its turn
/// and no more.
fn fair_part(of: &ServiceSpec, spec: &ServerSpec) -> u64 {
    let weight = |server: &ServerSpec| if of.scheduler == SchedulerKind::Lc { 1 } else { u64::from(server.weight) };
    let total: u64 = of.servers.iter().map(weight).sum();
    if of.scheduler.goes_by_load() { (weight(spec) << 16).checked_div(total).unwrap_or(1 << 16) } else { 1 << 16 }
}

/// Flows find the server they were admitted to by its id: whatever their packets depend on must be as it was.
fn is_same_server(of: &ServiceSpec, spec: &ServerSpec, server: &Server) -> bool {
    spec.name == server.name
        && spec.address == server.address
        && spec.port == server.port
        && spec.method.unwrap_or(of.method) == server.method
        && spec.tunnel.unwrap_or(of.tunnel) == server.encapsulation
}
