//! Services and their servers: what the operator configured, compiled for lookup.
//!
//! # Theory of operation
//!
//! A [`Snapshot`] is immutable. A reload builds a new one with [`Snapshot::build`], handing in the old one, and every
//! shard swaps its `Arc`. What must outlive a snapshot is carried from the old to the new:
//!
//! * A service whose [`ServiceSpec`] did not change keeps its [`Service`], and with it the state of its scheduler. Of a
//!   service that did change, the new scheduler inherits what it has a use for ([`scheduler::Memory`]): whose turn it is, and
//!   which destinations are at home where.
//! * A server that stays under the same service (by name, address and port) keeps its [`ServerId`], its [`ServerLoad`] and
//!   its [`ServerState`]: what is down stays down.
//! * The clients that persistence remembers stay while they are named by the same bits of their addresses.
//! * A server or service that is gone stays in the snapshot's registry as *retired* while flows still refer to it, so
//!   that an id in a flow always resolves. A later build gives the id away once its load is zero.
//! * The VIP of a gone service stays a VIP (without a service) while its flows live: which shard a packet belongs to
//!   depends on whether its destination is a VIP, and that answer must not change under a live flow.

mod faults;
mod former;
mod npt;
mod path;
pub mod persistence;
mod pick;
mod pool;
pub mod rate;
pub mod scheduler;
mod snapshot;
mod spec;
mod state;
mod translation;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use siphasher::sip::SipHasher13;

pub use faults::{Fault, FaultPlace, SnapshotError};
pub use npt::{Npt, Unmapped};
pub use path::ServerPath;
pub use persistence::Persisted;
pub use pick::{Picked, Way};
pub use pool::{InUse, Masquerade, Pool, PoolId, PoolUse, Pools, owner_of_port};
pub use scheduler::{Flags as SchedulerFlags, Kind as SchedulerKind, Request, Scheduler};
pub use snapshot::Snapshot;
pub use spec::{
    FlowPolicy, HelperKind, Limits, Method, Passive, Persistence, PortRange, ProbeSource, Protocols, ServerSpec,
    ServiceSpec, SnapshotSpec,
};
pub use state::ServerState;
pub use translation::{Filtering, ForwardSpec, MasqueradeSpec, Network, PoolSpec, ProxyProtocol, SynProxy};

use crate::wire::{Addr, Encapsulation};

type Map<K, V> = HashMap<K, V, BuildHasherDefault<SipHasher13>>;

/// Names a service for as long as a flow refers to it. An index into `Snapshot::services`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// Names a server of one service for as long as a flow refers to it. An index into `Snapshot::servers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u32);

/// A virtual service: where it listens, how it forwards, who serves.
#[derive(Debug)]
pub struct Service {
    pub id: ServiceId,
    pub spec: ServiceSpec,
    /// In the order of the configuration; parallel to `spec.servers`.
    pub servers: Vec<Arc<Server>>,
    /// Serves when none of them can.
    pub sorry: Option<Arc<Server>>,
    pub scheduler: Box<dyn Scheduler>,
    pub state: Arc<ServiceState>,
    /// Where its clients have been, its own or shared by its group; `None` without persistence.
    pub persisted: Option<Arc<Persisted>>,
    /// All its servers answer through the gateway.
    pub is_two_way: bool,
    /// Its servers by address, with persistence.
    homes: Map<Addr, Vec<Arc<Server>>>,
}

/// What changes about a service while the configuration stays; carried from one snapshot to the next.
#[derive(Debug)]
pub struct ServiceState {
    has_quorum: AtomicBool,
    /// Held while passive checks take a server down, so that two of them do not take the last two.
    pub(crate) falling: Mutex<()>,
    /// Some server of it has answered a SYN with timestamps by a SYN-ACK without.
    lacks_timestamps: AtomicBool,
    /// Which servers have changed since the scheduler looked.
    changes: Arc<scheduler::Changes>,
    /// Of [`ServiceSpec::new_flows_per_second`].
    pub(crate) new_flows: rate::Bucket,
}

impl Default for ServiceState {
    fn default() -> ServiceState {
        ServiceState {
            has_quorum: AtomicBool::new(true),
            falling: Mutex::new(()),
            lacks_timestamps: AtomicBool::new(false),
            changes: Arc::default(),
            new_flows: rate::Bucket::default(),
        }
    }
}

impl ServiceState {
    /// Whether enough servers are up; until somebody counts, they are.
    pub fn has_quorum(&self) -> bool {
        self.has_quorum.load(Ordering::Relaxed)
    }

    /// Whether clients may be told that its servers do timestamps (RFC 7323); until one is found that does not, they may.
    pub fn has_timestamps(&self) -> bool {
        !self.lacks_timestamps.load(Ordering::Relaxed)
    }

    /// A server does not do timestamps. That is not forgotten as long as the service is at its VIP.
    pub(crate) fn note_lack_of_timestamps(&self) {
        self.lacks_timestamps.store(true, Ordering::Relaxed);
    }

    /// Tells whether that is a change.
    pub fn set_quorum(&self, quorum: bool) -> bool {
        self.has_quorum.swap(quorum, Ordering::Relaxed) != quorum
    }
}

impl Service {
    pub fn vip(&self) -> Addr {
        self.spec.vip
    }

    /// Whether some server takes new flows.
    pub fn is_served(&self) -> bool {
        self.all_servers().any(|server| server.is_available())
    }

    /// Its servers, the sorry server last.
    pub fn all_servers(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.servers.iter().chain(&self.sorry)
    }

    /// The port at which `server` expects what clients send to `port`: the same one, the server's own, or with a port
    /// range the one at the same distance from the range's start.
    pub fn server_port(&self, server: &Server, port: u16) -> u16 {
        match server.port {
            None => port,
            Some(base) => base.wrapping_add(port.wrapping_sub(self.spec.ports.first)),
        }
    }
}

/// A real server behind one service.
#[derive(Debug)]
pub struct Server {
    pub id: ServerId,
    pub service: ServiceId,
    pub name: String,
    pub address: Addr,
    /// `None`: the port the client asked for.
    pub port: Option<u16>,
    /// 0 takes no new flow; flows it has go on.
    pub weight: u32,
    pub method: Method,
    pub encapsulation: Encapsulation,
    /// Where a tunnel to it begins; `None` while the host knows no way to it.
    pub source: Option<Addr>,
    /// Flows at which it is full, and below which it is so no longer.
    pub thresholds: (Option<u32>, Option<u32>),
    pub slow_start: Option<Duration>,
    /// The part of the service's new flows, of 65536, that it takes at most while it warms up.
    pub fair_part: u64,
    pub load: Arc<ServerLoad>,
    pub path: Arc<ServerPath>,
    pub state: Arc<ServerState>,
}

impl Server {
    /// Whether it may take a new flow at all.
    #[inline]
    pub fn is_available(&self) -> bool {
        self.would_take() && !self.state.is_full()
    }

    /// Whether it takes no new flow for the one reason that it has as many as it may have.
    pub fn is_only_full(&self) -> bool {
        self.would_take() && self.state.is_full()
    }

    #[inline]
    fn would_take(&self) -> bool {
        self.weight > 0 && !self.state.is_draining() && self.works()
    }

    /// Whether it takes no new flow for the one reason that it is being drained.
    pub(crate) fn is_leaving(&self) -> bool {
        (self.weight == 0 || self.state.is_draining()) && self.works()
    }

    #[inline]
    fn works(&self) -> bool {
        let has_way = self.method != Method::Tunnel || self.source.is_some();
        has_way && !self.path.is_unreachable() && self.state.is_up()
    }

    /// Whether it takes the flow of `request`: it is available, and if it is still warming up, this client and port are of
    /// the growing part that it serves already.
    #[inline]
    pub fn takes(&self, request: &Request) -> bool {
        self.is_available() && (request.is_urgent || self.slow_start.is_none_or(|time| self.serves(request, time)))
    }

    /// A flow to it starts.
    pub fn start(&self, active: bool) {
        self.load.start(active);
        self.note_load();
    }

    /// A flow to it has ended.
    pub fn end(&self, active: bool) {
        self.load.end(active);
        self.note_load();
    }

    /// Whether it is full follows from its load, and from thresholds that a reload may have changed.
    pub(crate) fn note_load(&self) {
        let (upper, lower) = self.thresholds;
        if upper.is_some() || self.state.is_full() {
            self.state.note_flows(|| self.load.flows(), upper, lower);
        }
    }
}

/// How many flows a server has, over all shards. Changes when a flow starts, ends, or changes between active and not.
#[derive(Debug, Default)]
pub struct ServerLoad {
    /// Changes only when a flow starts or ends, so that it is never zero while there is one.
    flows: AtomicI64,
    active: AtomicI64,
    inactive: AtomicI64,
    admitted: AtomicU64,
    mark: scheduler::Mark,
}

impl ServerLoad {
    /// Of a server whose changes are marked by `mark`.
    pub(crate) fn marked(mark: scheduler::Mark) -> ServerLoad {
        ServerLoad { mark, ..ServerLoad::default() }
    }

    pub(crate) fn mark(&self) -> &scheduler::Mark {
        &self.mark
    }

    /// Flows in TCP state ESTABLISHED (IPVS: ActiveConn).
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed).max(0) as u64
    }

    /// All other flows (IPVS: InActConn).
    pub fn inactive(&self) -> u64 {
        self.inactive.load(Ordering::Relaxed).max(0) as u64
    }

    /// A packet that is no flow's went to it.
    pub(crate) fn note_packet(&self) {
        self.admitted.fetch_add(1, Ordering::Relaxed);
    }

    /// Flows admitted since the server was configured, and packets that were scheduled by themselves.
    pub fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Active flows count 256 times as much as inactive ones (Linux, `include/net/ip_vs.h`, `ip_vs_dest_conn_overhead`).
    pub fn overhead(&self) -> u64 {
        self.active() * 256 + self.inactive()
    }

    /// All flows.
    pub fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed).max(0) as u64
    }

    /// Whether any flow still refers to the server.
    pub fn is_idle(&self) -> bool {
        self.flows.load(Ordering::Acquire) <= 0
    }

    pub(crate) fn start(&self, active: bool) {
        self.flows.fetch_add(1, Ordering::Relaxed);
        self.admitted.fetch_add(1, Ordering::Relaxed);
        self.side(active).fetch_add(1, Ordering::Relaxed);
        self.mark.set();
    }

    pub(crate) fn end(&self, active: bool) {
        self.side(active).fetch_sub(1, Ordering::Relaxed);
        self.flows.fetch_sub(1, Ordering::Release);
        self.mark.set();
    }

    pub(crate) fn shift(&self, to_active: bool) {
        self.side(to_active).fetch_add(1, Ordering::Relaxed);
        self.side(!to_active).fetch_sub(1, Ordering::Relaxed);
        self.mark.set();
    }

    fn side(&self, active: bool) -> &AtomicI64 {
        if active { &self.active } else { &self.inactive }
    }
}
