//! Expectations, mappings, masquerades and pools, in the words of the control API.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::{bad, listen, prefix, protocol};
use crate::command::{ExpectationRecord, MappingRecord, PoolRecord};
use crate::control::api::{self, Fault, FaultCode};
use crate::flow::Sender;
use crate::io::Gateway;
use crate::service::{
    ForwardSpec, HelperKind, Masquerade, Method, Network, Pool, PoolId, PoolUse, ServiceId, ServiceSpec, Snapshot,
};
use crate::wire::{Addr, Protocol, Tuple};

/// Names of those who use an address that are told; a large cluster may have thousands of services on one.
const USERS_TOLD: usize = 16;

/// In place of a masquerade's name.
const FORWARD: &str = "forward";

/// A flow's service, or its masquerade; `forward` by a forwarded port of an address that is no masquerade's; `-` when none
/// of these is known any more.
pub fn owner(snapshot: &Snapshot, id: ServiceId) -> String {
    if id == ServiceId::FORWARD {
        return FORWARD.to_owned();
    }
    let masquerade = || snapshot.pools.masquerade(id).map(|masquerade| masquerade.spec.name.clone());
    let service = snapshot.service(id).map(|service| service.spec.name.clone());
    service.or_else(masquerade).unwrap_or_else(|| "-".to_owned())
}

/// The masquerade of this name, retired ones included; or what [`owner`] calls so.
pub fn masquerade_id(snapshot: &Snapshot, name: &str) -> Option<ServiceId> {
    let mut all = snapshot.pools.live.iter().chain(snapshot.pools.masquerades());
    let found = all.find(|masquerade| masquerade.spec.name == name).map(|masquerade| masquerade.id);
    found.or((name == FORWARD).then_some(ServiceId::FORWARD))
}

pub fn expectation(snapshot: &Snapshot, record: &ExpectationRecord) -> api::Expectation {
    let ExpectationRecord { client, vip, protocol, .. } = *record;
    let master = record.by.unwrap_or(Tuple { src: client, dst: vip, sport: 0, dport: 0, protocol });
    api::Expectation {
        proto: protocol.name().to_owned(),
        protonum: protocol.0,
        timeout: record.remaining.as_secs(),
        src: record.src.ip(),
        dst: record.dst.ip(),
        dport: record.dport,
        opener: match record.opener {
            Sender::Client => "client",
            Sender::Server => "server",
        }
        .to_owned(),
        master: super::endpoints(&master),
        helper: record.helper.map(|kind| kind.word().to_owned()),
        service: owner(snapshot, record.service),
        server: snapshot.server(record.server).map_or_else(|| "-".to_owned(), |server| server.name.clone()),
        method: record.method.word().to_owned(),
        shard: record.shard,
    }
}

pub fn mapping(snapshot: &Snapshot, record: &MappingRecord) -> api::Mapping {
    let endpoint = |(address, port): (Addr, u16)| api::Endpoint { address: address.ip(), port };
    api::Mapping {
        proto: record.protocol.name().to_owned(),
        protonum: record.protocol.0,
        inside: endpoint(record.inside),
        outside: endpoint(record.outside),
        ports: (record.ports > 1).then_some(record.ports),
        masquerade: owner(snapshot, record.masquerade),
        flows: record.flows,
        timeout: (!record.remaining.is_zero()).then_some(record.remaining.as_secs()),
        forward: record.is_forward,
        shard: record.shard,
    }
}

/// Which mappings, in the engine's terms.
#[derive(Clone, Copy, Debug, Default)]
pub struct MappingFilter {
    protocol: Option<Protocol>,
    inside: Option<End>,
    outside: Option<End>,
    masquerade: Option<ServiceId>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    network: Network,
    port: Option<u16>,
}

impl MappingFilter {
    /// # Errors
    /// A word that is none of its kind, or a masquerade that is not there.
    pub fn new(snapshot: &Snapshot, filter: &api::MappingFilter) -> Result<MappingFilter, Fault> {
        let masquerade = |name: &str| {
            masquerade_id(snapshot, name).ok_or_else(|| {
                let known: Vec<&str> = snapshot.pools.live.iter().map(|m| m.spec.name.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                Fault::new(FaultCode::NotFound, format!("no masquerade is named {name:?}; there are: {known}"))
            })
        };
        Ok(MappingFilter {
            protocol: filter.proto.as_deref().map(protocol).transpose()?,
            inside: filter.inside.as_deref().map(end).transpose()?,
            outside: filter.outside.as_deref().map(end).transpose()?,
            masquerade: filter.masquerade.as_deref().map(masquerade).transpose()?,
        })
    }

    pub fn matches(&self, record: &MappingRecord) -> bool {
        let at = |end: Option<End>, (address, port): (Addr, u16)| {
            let has = |wanted: u16| wanted.checked_sub(port).is_some_and(|further| u32::from(further) < record.ports);
            end.is_none_or(|end| end.network.contains(address) && end.port.is_none_or(has))
        };
        self.protocol.is_none_or(|protocol| protocol == record.protocol)
            && self.masquerade.is_none_or(|id| id == record.masquerade)
            && at(self.inside, record.inside)
            && at(self.outside, record.outside)
    }
}

/// `10.20.0.11`, `10.20.0.0/24`, `10.20.0.11:5000`, `[fd20::11]:5000`.
fn end(word: &str) -> Result<End, Fault> {
    if let Ok(address) = word.parse::<SocketAddr>() {
        let addr = Addr::from(address.ip());
        let network = Network { address: addr, len: if addr.is_v4() { 32 } else { 128 } };
        return Ok(End { network, port: Some(address.port()) });
    }
    let wrong = || bad(format!("{word:?} is no address, prefix (10.0.0.0/8), or address and port (10.0.0.1:5000)"));
    let (address, len) = prefix(word).map_err(|_| wrong())?;
    Ok(End { network: Network { address, len }, port: None })
}

/// What is configured, and how much of it is in use.
pub fn nat(gateway: &Gateway, snapshot: &Snapshot) -> api::Nat {
    let ((sums, hosts), users) = (sums(gateway, snapshot), users(snapshot));
    let pool = |pool: &Pool| {
        let users = users.get(&pool.address).map_or(&[][..], Vec::as_slice);
        let unused = || PoolRecord::unused(0, pool.id);
        shown_pool(snapshot, pool, users, &sums.get(&pool.id).copied().unwrap_or_else(unused))
    };
    // A mapping has one port of the masquerade's pool.
    let mappings = |id: ServiceId| {
        let of_masquerade = snapshot.pools.iter().filter(|pool| pool.usage == PoolUse::Masquerade(id));
        of_masquerade.filter_map(|pool| sums.get(&pool.id)).map(|sum| sum.in_use).sum()
    };
    api::Nat {
        masquerades: snapshot.pools.live.iter().map(|of| shown_masquerade(of, mappings(of.id))).collect(),
        hosts,
        pools: snapshot.pools.iter().map(|of| pool(of)).collect(),
        forwards: snapshot.pools.forwards.iter().map(forward).collect(),
        quarantine: snapshot.spec.quarantine.as_secs(),
    }
}

/// What is used of each address, and inside hosts that have a mapping: over the shards, one lock at a time.
fn sums(gateway: &Gateway, snapshot: &Snapshot) -> (BTreeMap<PoolId, PoolRecord>, u64) {
    let mut sums: BTreeMap<PoolId, PoolRecord> = BTreeMap::new();
    let mut hosts = 0;
    if snapshot.pools.iter().next().is_none() {
        return (sums, hosts);
    }
    for engine in gateway.shards() {
        let engine = engine.lock();
        hosts += engine.inside_hosts() as u64;
        for PoolRecord { shard, pool, in_use, quarantined, size, fullest } in engine.pools() {
            let sum = sums.entry(pool).or_insert_with(|| PoolRecord::unused(shard, pool));
            let before = sum.fullest;
            sum.add((in_use, quarantined, size));
            sum.fullest = before.max(fullest);
        }
    }
    (sums, hosts)
}

/// The services and forwards that use an address, by name.
fn users(snapshot: &Snapshot) -> HashMap<Addr, Vec<&str>> {
    let mut users: HashMap<Addr, Vec<&str>> = HashMap::new();
    for service in &snapshot.spec.services {
        if service.all_methods().contains(&Method::Fullnat) {
            for address in &service.pool.addresses {
                users.entry(*address).or_default().push(&service.name);
            }
        }
    }
    for forward in &snapshot.pools.forwards {
        users.entry(forward.address).or_default().push(&forward.name);
    }
    users
}

/// The addresses that a service by `fullnat` goes on from.
pub fn pool_of(spec: &ServiceSpec) -> Vec<IpAddr> {
    let is_used = spec.all_methods().contains(&Method::Fullnat);
    spec.pool.addresses.iter().filter(|_| is_used).map(Addr::ip).collect()
}

fn shown_pool(snapshot: &Snapshot, pool: &Pool, users: &[&str], sum: &PoolRecord) -> api::Pool {
    let masquerade;
    let (usage, users) = match pool.usage {
        PoolUse::Fullnat => ("fullnat", users),
        PoolUse::Forward => ("forward", users),
        PoolUse::Masquerade(id) => {
            masquerade = owner(snapshot, id);
            ("masquerade", &[masquerade.as_str()][..])
        }
    };
    api::Pool {
        address: pool.address.ip(),
        ports: pool.ports.to_string(),
        usage: usage.to_owned(),
        users: users.iter().take(USERS_TOLD).map(|name| (*name).to_owned()).collect(),
        user_count: users.len(),
        retired: pool.is_retired,
        in_use: sum.in_use,
        quarantined: sum.quarantined,
        size: sum.size,
        fullest: sum.fullest,
    }
}

fn shown_masquerade(masquerade: &Masquerade, mappings: u64) -> api::Masquerade {
    let spec = &masquerade.spec;
    let texts = |networks: &[Network]| networks.iter().map(Network::to_string).collect();
    api::Masquerade {
        name: spec.name.clone(),
        from: texts(&spec.from),
        except: texts(&spec.except),
        to: spec.pool.addresses.iter().map(Addr::ip).collect(),
        ports: spec.pool.ports.to_string(),
        prefix: spec.prefix.as_ref().map(Network::to_string),
        filtering: spec.filtering.word().to_owned(),
        helpers: spec.helpers.iter().map(|kind| HelperKind::word(*kind).to_owned()).collect(),
        max_mappings: spec.max_mappings,
        flows: masquerade.state.count(),
        mappings,
    }
}

fn forward(spec: &ForwardSpec) -> api::Forward {
    let ForwardSpec { name, address, ports, protocols, to, to_port } = spec;
    api::Forward {
        name: name.clone(),
        protocol: protocols.word().to_owned(),
        listen: listen(address.ip(), &ports.to_string()),
        to: to_port.map_or_else(|| to.to_string(), |port| SocketAddr::new(to.ip(), port).to_string()),
    }
}
