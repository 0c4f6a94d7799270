//! Snapshots and engines for the suites.

use std::sync::Arc;

use gatun::engine::{Engine, EngineConfig};
use gatun::service::{PortRange, Protocols, SchedulerKind, ServerSpec, ServiceSpec, Snapshot, SnapshotSpec};
use gatun::wire::Addr;

pub fn addr(text: &str) -> Addr {
    Addr::from(text.parse::<std::net::IpAddr>().expect(text))
}

/// A service `name` at `vip` with one port; add servers with [`ServiceSpecExt::server`].
pub fn service(name: &str, vip: &str, ports: PortRange, protocols: Protocols) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        vip: addr(vip),
        ports,
        protocols,
        scheduler: SchedulerKind::Rr,
        ..ServiceSpec::default()
    }
}

pub trait ServiceSpecExt: Sized {
    fn server(self, address: &str, port: Option<u16>, weight: u32) -> Self;
}

impl ServiceSpecExt for ServiceSpec {
    fn server(mut self, address: &str, port: Option<u16>, weight: u32) -> ServiceSpec {
        let name = format!("rs{}", self.servers.len() + 1);
        self.servers.push(ServerSpec { name, address: addr(address), port, weight, ..ServerSpec::default() });
        self
    }
}

pub fn snapshot(services: Vec<ServiceSpec>) -> Arc<Snapshot> {
    Arc::new(Snapshot::build(SnapshotSpec { services, ..SnapshotSpec::default() }, None).expect("a valid snapshot"))
}

pub fn engine(snapshot: Arc<Snapshot>, max_flows: usize) -> Engine {
    Engine::new(EngineConfig { shard: 0, shards: 1, max_flows, seed: [1, 2] }, snapshot)
}
