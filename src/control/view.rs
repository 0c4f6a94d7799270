//! The gateway as the control API tells it: from the engine's types to those of [`api`], and filters the other way.

mod nat;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::api::{self, Fault, FaultCode};
use super::drain::Drains;
use super::health::Health;
use super::zero::Baselines;
use crate::command::{Event, FlowChange, FlowFilter, FlowRecord, Volume};
use crate::flow::TcpState;
use crate::io::Gateway;
use crate::link::{Neighbour, Settings};
use crate::service::persistence::{Entry, Place};
use crate::service::{Method, Persistence, SchedulerFlags, Server, ServerId, Service, ServiceId, Snapshot};
use crate::stats::{Stats, Traffic};
use crate::time::Instant;
use crate::timeouts::Timeouts;
use crate::verdict::DropReason;
use crate::wire::{Addr, Protocol, Tuple};
pub use nat::{MappingFilter, expectation, mapping, nat, owner};

pub fn flow(snapshot: &Snapshot, flow: &FlowRecord) -> api::Flow {
    let side = |tuple: &crate::wire::Tuple, volume: Volume| api::Side {
        src: tuple.src.ip(),
        dst: tuple.dst.ip(),
        sport: tuple.sport,
        dport: tuple.dport,
        packets: volume.packets,
        bytes: volume.bytes,
    };
    api::Flow {
        proto: flow.original.protocol.name().to_owned(),
        protonum: flow.original.protocol.0,
        timeout: flow.remaining.as_secs(),
        state: flow.state_word().map(str::to_owned),
        original: side(&flow.original, flow.to_server),
        reply: side(&flow.reply, flow.to_client),
        replied: flow.replied,
        assured: flow.assured,
        // An id in a flow always resolves in the snapshot of its time; a watcher may look it up a reload later.
        service: owner(snapshot, flow.service),
        server: snapshot.server(flow.server).map_or_else(|| "-".to_owned(), |s| s.name.clone()),
        method: flow.method.word().to_owned(),
        shard: flow.shard,
        age: flow.age.as_secs(),
        marks: flow.marks.words().map(str::to_owned).collect(),
    }
}

pub fn event(snapshot: &Snapshot, event: &Event, time: u64) -> api::FlowEvent {
    let change = match event.change {
        FlowChange::New => api::Change::New,
        FlowChange::Update => api::Change::Update,
        FlowChange::Destroy => api::Change::Destroy,
    };
    api::FlowEvent { change, time, flow: flow(snapshot, &event.flow) }
}

/// What servers are shown by, besides themselves.
pub struct Shown<'a> {
    pub now: Instant,
    /// By [`ServerId`]; where it is too short, nothing is known yet.
    pub traffic: &'a [Traffic],
    /// The same.
    pub rates: &'a [api::Rates],
    /// From where counters count; `None`: from the start.
    pub baselines: Option<&'a Baselines>,
    pub drains: &'a Drains,
    /// `None`: nothing is checked.
    pub health: Option<&'a Health>,
}

impl Shown<'_> {
    pub fn services(&self, snapshot: &Snapshot) -> Vec<api::Service> {
        snapshot.live.iter().map(|service| self.service(service)).collect()
    }

    fn service(&self, service: &Service) -> api::Service {
        let spec = &service.spec;
        let clients: HashMap<Place, u64> =
            service.persisted.iter().flat_map(|table| table.clients_by_server()).collect();
        let shown = |server: &Arc<Server>| api::Server {
            persistent: clients.get(&(server.address, server.port)).copied().unwrap_or(0),
            ..self.server(&spec.name, server)
        };
        api::Service {
            name: spec.name.clone(),
            listen: listen(spec.vip.ip(), &spec.ports.to_string()),
            group: spec.group.clone(),
            sorry: service.sorry.as_ref().map(|server| self.server(&spec.name, server)),
            has_quorum: service.state.has_quorum(),
            quorum: self.health.and_then(|health| health.of_service(service)),
            protocol: spec.protocols.word().to_owned(),
            method: spec.method.word().to_owned(),
            scheduler: spec.scheduler.word().to_owned(),
            servers: service.servers.iter().map(shown).collect(),
            scheduler_flags: scheduler_flags(spec.scheduler_flags),
            persistence: spec.persistence.as_ref().map(persistence),
            one_packet: spec.one_packet,
            pool: nat::pool_of(spec),
            proxy_protocol: spec.proxy_protocol.map(|version| version.word().to_owned()),
            syn_proxy: spec.syn_proxy.word().to_owned(),
            new_flows_per_second: spec.new_flows_per_second,
        }
    }

    fn server(&self, service: &str, server: &Server) -> api::Server {
        let index = server.id.0 as usize;
        let traffic = self.traffic.get(index).copied().unwrap_or_default();
        let (admitted, traffic) = match self.baselines {
            Some(baselines) => baselines.since(server, traffic),
            None => (server.load.admitted(), traffic),
        };
        api::Server {
            service: service.to_owned(),
            name: server.name.clone(),
            address: server.address.ip(),
            port: server.port,
            weight: server.weight,
            method: server.method.word().to_owned(),
            tunnel: (server.method == Method::Tunnel).then(|| server.encapsulation.to_string()),
            path_mtu: Some(server.path.mtu(self.now, u16::MAX)).filter(|mtu| *mtu < u16::MAX),
            reachable: !server.path.is_unreachable(),
            state: state_word(server).to_owned(),
            health: self.health.and_then(|health| health.of_server(server)),
            drain: self.drains.told(server, std::time::Instant::now()),
            active: server.load.active(),
            inactive: server.load.inactive(),
            admitted,
            to_server: volume(traffic.to_server),
            to_client: volume(traffic.to_client),
            rates: self.rates.get(index).copied().unwrap_or_default(),
            max_connections: server.thresholds.0,
            min_connections: server.thresholds.1,
            persistent: 0,
        }
    }
}

/// A client that `service` keeps with a server.
pub fn kept_client(service: &Service, entry: &Entry) -> api::KeptClient {
    let (address, port) = entry.server;
    api::KeptClient {
        service: service.spec.name.clone(),
        client: entry.client.ip(),
        address: address.ip(),
        port,
        flows: entry.flows,
        timeout: entry.remaining.as_secs(),
    }
}

fn scheduler_flags(flags: SchedulerFlags) -> Vec<String> {
    let words = [(flags.port, "port"), (flags.fallback, "fallback"), (flags.strict, "strict")];
    words.iter().filter(|(set, _)| *set).map(|(_, word)| (*word).to_owned()).collect()
}

fn persistence(persistence: &Persistence) -> api::Persistence {
    api::Persistence {
        timeout: persistence.timeout.as_secs(),
        netmask: persistence.prefix_v4,
        prefix: persistence.prefix_v6,
    }
}

/// Every timeout of flows by its name in the file, in seconds.
pub fn timeouts(mut timeouts: Timeouts) -> BTreeMap<String, u64> {
    timeouts.entries().into_iter().map(|(name, timeout)| (name.to_owned(), timeout.as_secs())).collect()
}

/// Of several reasons not to get new flows, the one that lasts longest.
fn state_word(server: &Server) -> &'static str {
    let reasons = [
        (!server.state.is_up(), "down"),
        (server.path.is_unreachable(), "unreachable"),
        (server.state.is_draining(), "draining"),
        (server.weight == 0, "off"),
        (server.state.is_full(), "full"),
    ];
    reasons.into_iter().find(|(is_so, _)| *is_so).map_or("up", |(_, word)| word)
}

/// A service of the configuration.
pub fn live_service<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Arc<Service>, Fault> {
    let found = snapshot.live.iter().find(|service| service.spec.name == name);
    found.ok_or_else(|| Fault::new(FaultCode::NotFound, format!("no service is named {name:?}")))
}

/// Its sorry server is one of its servers.
pub fn server_of<'a>(service: &'a Service, name: &str) -> Result<&'a Arc<Server>, Fault> {
    service.all_servers().find(|server| server.name == name).ok_or_else(|| {
        let message = format!("service {:?} has no server named {name:?}", service.spec.name);
        Fault::new(FaultCode::NotFound, message)
    })
}

pub fn endpoints(tuple: &Tuple) -> api::Endpoints {
    api::Endpoints {
        proto: tuple.protocol.name().to_owned(),
        src: tuple.src.ip(),
        dst: tuple.dst.ip(),
        sport: tuple.sport,
        dport: tuple.dport,
    }
}

fn volume(volume: Volume) -> api::Volume {
    api::Volume { packets: volume.packets, bytes: volume.bytes }
}

fn listen(vip: IpAddr, ports: &str) -> String {
    match vip {
        IpAddr::V4(ip) => format!("{ip}:{ports}"),
        IpAddr::V6(ip) => format!("[{ip}]:{ports}"),
    }
}

/// What one shard, or all of them, counted.
#[derive(Clone, Debug)]
pub struct Counted {
    pub shard: u16,
    pub stats: Stats,
    pub flows: usize,
    pub limit: usize,
}

/// Every shard's counters, and the traffic of every server by its id, summed over the shards. One lock at a time.
pub fn count(gateway: &Gateway, snapshot: &Snapshot) -> (Vec<Counted>, Vec<Traffic>) {
    let mut traffic = vec![Traffic::default(); snapshot.server_ids()];
    let mut shards = Vec::with_capacity(gateway.shards().len());
    for (shard, engine) in (0..).zip(gateway.shards()) {
        let engine = engine.lock();
        let (flows, limit) = engine.occupancy();
        shards.push(Counted { shard, stats: engine.stats().clone(), flows, limit });
        for (id, sum) in (0..).zip(&mut traffic) {
            let more = engine.traffic(ServerId(id));
            sum.to_server.packets += more.to_server.packets;
            sum.to_server.bytes += more.to_server.bytes;
            sum.to_client.packets += more.to_client.packets;
            sum.to_client.bytes += more.to_client.bytes;
        }
    }
    (shards, traffic)
}

/// The sum over all shards.
pub fn total(shards: &[Counted]) -> Counted {
    let mut total = Counted { shard: 0, stats: Stats::default(), flows: 0, limit: 0 };
    for shard in shards {
        total.stats.merge(&shard.stats);
        total.flows += shard.flows;
        total.limit += shard.limit;
    }
    total
}

pub fn shard_stats(counted: &Counted, shard: Option<u16>) -> api::ShardStats {
    let mut stats = counted.stats.clone();
    let counters = stats.counters_mut().map(|(name, value)| api::Counter { name: name.to_owned(), value: *value });
    api::ShardStats {
        shard,
        flows: counted.flows,
        flows_limit: counted.limit,
        counters: counters.into(),
        drops: drops(&counted.stats),
    }
}

pub fn segment(settings: &Settings, bridge: Option<&str>, neighbours: usize) -> api::Segment {
    api::Segment {
        mac: settings.mac.to_string(),
        bridge: bridge.map(str::to_owned),
        addresses: settings.addresses.iter().map(|prefix| format!("{}/{}", prefix.addr, prefix.len)).collect(),
        routers: settings.routers.iter().map(Addr::ip).collect(),
        neighbours,
    }
}

pub fn neighbour(neighbour: &Neighbour) -> api::Neighbour {
    api::Neighbour {
        address: neighbour.addr.ip(),
        mac: neighbour.mac.map(|mac| mac.to_string()),
        state: neighbour.state.word().to_owned(),
        age: neighbour.age.as_secs(),
        queued: neighbour.queued,
        kept: neighbour.kept,
    }
}

/// Every reason, in the order of [`DropReason::ALL`].
pub fn drops(stats: &Stats) -> Vec<api::Drops> {
    let one = |&reason: &DropReason| api::Drops {
        reason: reason.word().to_owned(),
        packets: stats.drops(reason),
        meaning: reason.sentence().to_owned(),
        shortage: reason.is_shortage(),
    };
    DropReason::ALL.iter().map(one).collect()
}

/// The reasons that occurred, most frequent first.
pub fn top_drops(stats: &Stats) -> Vec<api::Drops> {
    let mut drops = drops(stats);
    drops.retain(|d| d.packets > 0);
    drops.sort_by_key(|d| std::cmp::Reverse(d.packets));
    drops
}

/// Resolves names in `filter`; services and servers that are gone from the configuration but still have flows count.
pub fn filter(snapshot: &Snapshot, filter: &api::Filter) -> Result<FlowFilter, Fault> {
    Ok(FlowFilter {
        protocol: filter.proto.as_deref().map(protocol).transpose()?,
        src: filter.src.as_deref().map(prefix).transpose()?,
        dst: filter.dst.as_deref().map(prefix).transpose()?,
        sport: filter.sport,
        dport: filter.dport,
        state: filter.state.as_deref().map(state).transpose()?,
        service: filter.service.as_deref().map(|name| service_id(snapshot, name)).transpose()?,
        server: filter.server.as_deref().map(|name| server_ids(snapshot, name)).transpose()?,
        method: filter.method.as_deref().map(method).transpose()?,
    })
}

fn bad(message: String) -> Fault {
    Fault::new(FaultCode::BadRequest, message)
}

/// A protocol by its name or number.
pub fn protocol(word: &str) -> Result<Protocol, Fault> {
    let known = [Protocol::TCP, Protocol::UDP, Protocol::ICMP, Protocol::ICMPV6];
    let lower = word.to_ascii_lowercase();
    if let Some(protocol) = known.into_iter().find(|p| p.name() == lower) {
        return Ok(protocol);
    }
    if lower == "ipv6-icmp" {
        return Ok(Protocol::ICMPV6);
    }
    let number =
        word.parse().map_err(|_| bad(format!("{word:?} is no protocol; tcp, udp, icmp, icmpv6 or a number")))?;
    Ok(Protocol(number))
}

/// An address, or a prefix; bits of the address past the prefix do not matter.
fn prefix(word: &str) -> Result<(Addr, u8), Fault> {
    if let Ok(ip) = word.parse::<IpAddr>() {
        let addr = Addr::from(ip);
        return Ok((addr, if addr.is_v4() { 32 } else { 128 }));
    }
    let net: IpNet =
        word.parse().map_err(|_| bad(format!("{word:?} is neither an address nor a prefix such as 10.0.0.0/8")))?;
    Ok((Addr::from(net.addr()), net.prefix_len()))
}

fn state(word: &str) -> Result<String, Fault> {
    let upper = word.to_ascii_uppercase();
    if TcpState::ALL.iter().any(|state| state.word() == upper) {
        return Ok(upper);
    }
    let known: Vec<&str> = TcpState::ALL.iter().map(|state| state.word()).collect();
    Err(bad(format!("{word:?} is no TCP state; one of {}", known.join(", "))))
}

fn method(word: &str) -> Result<Method, Fault> {
    Method::ALL.iter().copied().find(|method| method.word() == word).ok_or_else(|| {
        let known: Vec<&str> = Method::ALL.iter().map(|method| method.word()).collect();
        bad(format!("{word:?} is no method; one of {}", known.join(", ")))
    })
}

fn service_id(snapshot: &Snapshot, name: &str) -> Result<ServiceId, Fault> {
    let live = snapshot.live.iter().find(|service| service.spec.name == name).map(|service| service.id);
    let retired = || {
        let of = |server: &Arc<Server>| snapshot.service(server.service).cloned();
        all_servers(snapshot).filter_map(of).find(|service| service.spec.name == name).map(|service| service.id)
    };
    live.or_else(retired).or_else(|| nat::masquerade_id(snapshot, name)).ok_or_else(|| {
        let services = snapshot.live.iter().map(|service| service.spec.name.as_str());
        let masquerades = snapshot.pools.live.iter().map(|masquerade| masquerade.spec.name.as_str());
        let known: Vec<&str> = services.chain(masquerades).collect();
        Fault::new(FaultCode::NotFound, format!("no service is named {name:?}; there are: {}", known.join(", ")))
    })
}

fn server_ids(snapshot: &Snapshot, name: &str) -> Result<Vec<ServerId>, Fault> {
    let ip = name.parse::<IpAddr>().ok().map(Addr::from);
    let is = |server: &&Arc<Server>| {
        server.name == name
            || Some(server.address) == ip
            || server.port.is_some_and(|port| std::net::SocketAddr::new(server.address.ip(), port).to_string() == name)
    };
    let ids: Vec<ServerId> = all_servers(snapshot).filter(is).map(|server| server.id).collect();
    if ids.is_empty() {
        return Err(Fault::new(FaultCode::NotFound, format!("no server has the name or address {name:?}")));
    }
    Ok(ids)
}

/// Live ones and retired ones.
fn all_servers(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Server>> {
    (0..snapshot.server_ids()).filter_map(|id| snapshot.server(ServerId(u32::try_from(id).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_a_scheduler_is_told() {
        let flags = SchedulerFlags { port: true, fallback: true, strict: true };
        assert_eq!(scheduler_flags(flags), ["port", "fallback", "strict"]);
        assert!(scheduler_flags(SchedulerFlags::default()).is_empty());
    }
}
