//! From [`Config`] to what the engine forwards by.

use std::ops::Range;

use super::check;
use super::problem::{ConfigErrors, Problems};
use super::{
    Config, ForwardConfig, GatewayConfig, MasqueradeConfig, ServerAddress, ServerConfig, ServiceConfig, TapConfig,
};
use crate::control::health::spec::HealthSpec;
use crate::service::{
    Fault, FaultPlace, FlowPolicy, Method, PoolSpec, ServerSpec, ServiceSpec, SnapshotError, SnapshotSpec,
};
use crate::wire::Addr;

/// A configuration in the terms of those who carry it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub gateway: GatewayConfig,
    pub snapshot: SnapshotSpec,
    pub health: HealthSpec,
}

impl Config {
    /// What this file asks for, without its places.
    pub fn compiled(&self) -> Result<Compiled, ConfigErrors> {
        Ok(Compiled { gateway: self.gateway.clone(), snapshot: compile(self)?, health: check::compile(self) })
    }
}

/// Fails only for a `config` that was changed since it was parsed.
pub fn compile(config: &Config) -> Result<SnapshotSpec, ConfigErrors> {
    let problems = Problems::default();
    let spec = report_faults(config, &problems);
    problems.into_result(spec, &config.source)
}

/// Translates, and reports at its place whatever a snapshot would refuse.
pub(super) fn report_faults(config: &Config, problems: &Problems) -> SnapshotSpec {
    let spec = translate(config);
    for fault in spec.faults().iter().filter(|fault| !follows(config, fault)) {
        problems.report(place(config, fault).unwrap_or(0..0), fault.error.to_string());
    }
    spec
}

/// Whether something that was refused before is the reason for it, and enough to mend.
fn follows(config: &Config, fault: &Fault) -> bool {
    let (FaultPlace::Service(at), SnapshotError::NoPool { .. }) = (fault.place, &fault.error) else { return false };
    let nat = config.services.get(at).map(|service| &service.nat);
    nat.is_some_and(|nat| nat.is_pool_refused || (nat.pool.is_none() && config.nat.is_pool_refused))
}

pub(super) fn translate(config: &Config) -> SnapshotSpec {
    SnapshotSpec {
        services: config.services.iter().map(|service| translate_service(config, service)).collect(),
        masquerades: config.masquerades.iter().map(MasqueradeConfig::compiled).collect(),
        forwards: config.forwards.iter().map(ForwardConfig::compiled).collect(),
        quarantine: config.nat.quarantine,
        timeouts: config.timeouts,
        limits: config.limits,
        mtu: config.gateway.mtu(),
        seed: config.seed,
        is_hop: config.gateway.tap.is_some(),
        own_addresses: config.gateway.tap.as_ref().map(TapConfig::own_addresses).unwrap_or_default(),
        tunnel_sources: tunnel_sources(config),
        // What the host finds, not what the file says.
        ..SnapshotSpec::default()
    }
}

/// In mode "tap" a tunnel begins at one of the gateway's own addresses; otherwise the host is to be asked.
fn tunnel_sources(config: &Config) -> Vec<(Addr, Addr)> {
    let Some(tap) = &config.gateway.tap else { return Vec::new() };
    let servers = config.services.iter().flat_map(|service| {
        let sorry = service.cluster.sorry.iter().map(|address| address.value);
        service.servers.iter().map(|server| server.address.value).chain(sorry)
    });
    let servers = servers.map(|server| server.address);
    let mut sources: Vec<_> = servers.filter_map(|server| Some((server, tap.source_towards(server)?))).collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

fn translate_service(config: &Config, service: &ServiceConfig) -> ServiceSpec {
    let cluster = &service.cluster;
    let mut spec = ServiceSpec {
        name: service.name.value.clone(),
        vip: service.listen.value.vip,
        ports: service.listen.value.ports,
        protocols: service.protocols,
        method: service.method,
        tunnel: service.tunnel,
        scheduler: service.scheduler,
        scheduler_flags: cluster.scheduler_flags,
        group: cluster.group.clone(),
        persistence: cluster.persistence,
        one_packet: cluster.one_packet,
        sorry: cluster.sorry.as_ref().map(|address| sorry(address.value)),
        on_server_down: cluster.on_server_down,
        on_server_removed: cluster.on_server_removed.unwrap_or(FlowPolicy::Keep),
        passive: cluster.passive,
        helper: cluster.helper,
        data_ports: cluster.data_ports,
        pool: service.nat.pool(&config.nat, service.listen.value.vip),
        proxy_protocol: service.nat.proxy_protocol,
        syn_proxy: service.nat.syn_proxy,
        new_flows_per_second: service.nat.new_flows_per_second,
        servers: service
            .servers
            .iter()
            .filter(|server| is_placed(server))
            .map(|server| translate_server(service, server))
            .collect(),
    };
    // So that a change of [nat] is none of a service that does not go by it.
    if !spec.all_methods().contains(&Method::Fullnat) {
        spec.pool = PoolSpec::default();
    }
    spec
}

fn sorry(at: ServerAddress) -> ServerSpec {
    ServerSpec { name: "sorry".to_owned(), address: at.address, port: at.port, ..ServerSpec::default() }
}

/// An entry that stands for others is none itself.
pub(super) fn is_placed(server: &ServerConfig) -> bool {
    server.origin.is_none() || server.address.value.address != Addr::UNSPECIFIED
}

fn translate_server(service: &ServiceConfig, server: &ServerConfig) -> ServerSpec {
    ServerSpec {
        name: server.name.value.clone(),
        address: server.address.value.address,
        port: server.address.value.port,
        weight: server.weight,
        // What says the same as the service is no difference to a server that says nothing.
        method: server.method.filter(|method| *method != service.method),
        tunnel: server.tunnel.filter(|tunnel| *tunnel != service.tunnel),
        max_connections: server.max_connections,
        min_connections: server.min_connections,
        slow_start: server.slow_start,
    }
}

/// The value at which an operator would mend it.
fn place(config: &Config, fault: &Fault) -> Option<Range<usize>> {
    let located = match fault.place {
        FaultPlace::Service(at) | FaultPlace::Server(at, _) => place_of_service(config.services.get(at)?, fault),
        FaultPlace::Pool(at, address) => {
            let service = config.services.get(at)?;
            let pool = service.nat.pool.as_ref().unwrap_or(&config.nat.pool);
            let named = pool.iter().find(|located| located.value == address);
            named.map_or(&service.listen.span, |located| &located.span)
        }
        FaultPlace::MasqueradeName(at) => &config.masquerades.get(at)?.name.span,
        FaultPlace::From(at, n) => &config.masquerades.get(at)?.from.get(n)?.span,
        FaultPlace::To(at, n) => &config.masquerades.get(at)?.to.get(n)?.span,
        FaultPlace::Prefix(at) => &config.masquerades.get(at)?.prefix.as_ref()?.span,
        FaultPlace::ForwardName(at) => &config.forwards.get(at)?.name.span,
        FaultPlace::Listen(at) => &config.forwards.get(at)?.listen.span,
        FaultPlace::Target(at) => &config.forwards.get(at)?.to.span,
    };
    Some(located.clone())
}

fn place_of_service<'a>(service: &'a ServiceConfig, fault: &Fault) -> &'a Range<usize> {
    use SnapshotError as Error;
    let at = match fault.place {
        FaultPlace::Server(_, at) => Some(at),
        _ => None,
    };
    let server = at.and_then(|at| service.servers.iter().filter(|server| is_placed(server)).nth(at));
    match (&fault.error, server) {
        (Error::DuplicateService(_) | Error::GroupDiffers { .. }, _) => &service.name.span,
        (Error::ProxyProtocolWithoutTcp { .. } | Error::ProxyProtocolPast { .. }, _) => {
            &service.nat.places.proxy_protocol
        }
        (Error::SynProxyWithoutTcp { .. } | Error::SynProxyPast { .. }, _) => &service.nat.places.syn_proxy,
        (Error::DuplicateServer { .. }, Some(server)) => &server.name.span,
        (_, Some(server)) => &server.address.span,
        (_, None) => match (&service.cluster.sorry, at) {
            (Some(sorry), Some(_)) => &sorry.span,
            _ => &service.listen.span,
        },
    }
}
