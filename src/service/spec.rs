//! What a snapshot is built from: the configuration in the engine's own terms. Plain data, comparable, so that a reload
//! can say what changes.

use std::fmt;
use std::time::Duration;

use super::scheduler::Flags;
use super::{ForwardSpec, Map, MasqueradeSpec, PoolSpec, ProxyProtocol, SchedulerKind, SynProxy};
use crate::timeouts::Timeouts;
use crate::wire::{Addr, Encapsulation, Protocol};

/// How packets reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Destination address and port are rewritten; replies come back through the gateway.
    Nat,
    /// Direct routing: only the MAC address changes; the server holds the VIP and answers the client itself.
    Direct,
    /// The packet is wrapped and sent to the server, which holds the VIP and answers the client itself.
    Tunnel,
    /// As `nat`, and the source becomes an address and port of a pool, so that the server answers to the gateway by itself.
    Fullnat,
    /// No method of a service: a flow that an inside host has opened to the outside, or may be opened to it from there.
    Masquerade,
}

impl Method {
    pub const ALL: &'static [Method] =
        &[Method::Nat, Method::Direct, Method::Tunnel, Method::Fullnat, Method::Masquerade];

    /// Those that a service may have.
    pub const OF_SERVICES: &'static [Method] = &[Method::Nat, Method::Direct, Method::Tunnel, Method::Fullnat];

    /// The word in config and outputs.
    pub const fn word(self) -> &'static str {
        match self {
            Method::Nat => "nat",
            Method::Direct => "direct",
            Method::Tunnel => "tunnel",
            Method::Fullnat => "fullnat",
            Method::Masquerade => "masquerade",
        }
    }

    /// The method with this number, which must be that of one.
    #[inline]
    pub const fn numbered(number: u8) -> Method {
        match number {
            1 => Method::Direct,
            2 => Method::Tunnel,
            3 => Method::Fullnat,
            4 => Method::Masquerade,
            _ => Method::Nat,
        }
    }

    /// Whether replies go from the server to the client past the gateway.
    pub const fn is_one_way(self) -> bool {
        matches!(self, Method::Direct | Method::Tunnel)
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Every port: 1 to 65535.
    pub const ALL: PortRange = PortRange { first: 1, last: u16::MAX };

    pub const fn single(port: u16) -> PortRange {
        PortRange { first: port, last: port }
    }

    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    pub const fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Whether some port is in both.
    pub const fn overlaps(self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    /// `80`, `8000-8099` or `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PortRange::ALL => f.write_str("*"),
            PortRange { first, last } if first == last => write!(f, "{first}"),
            PortRange { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// The transport protocols that one service listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocols {
    Tcp,
    Udp,
    TcpAndUdp,
}

impl Protocols {
    /// The word in the config.
    pub const fn word(self) -> &'static str {
        match self {
            Protocols::Tcp => "tcp",
            Protocols::Udp => "udp",
            Protocols::TcpAndUdp => "tcp+udp",
        }
    }

    pub const fn list(self) -> &'static [Protocol] {
        match self {
            Protocols::Tcp => &[Protocol::TCP],
            Protocols::Udp => &[Protocol::UDP],
            Protocols::TcpAndUdp => &[Protocol::TCP, Protocol::UDP],
        }
    }
}

/// Keeps the clients of one network with the server that they came to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// How long after a client's last new flow, 1 s to 31 days.
    pub timeout: Duration,
    /// Bits of an IPv4 address that name a client, 1 to 32.
    pub prefix_v4: u8,
    /// Bits of an IPv6 address that name a client, 1 to 128.
    pub prefix_v6: u8,
}

impl Persistence {
    /// The timeout that ipvsadm takes when none is given.
    pub const DEFAULT: Persistence = Persistence { timeout: Duration::from_secs(360), prefix_v4: 32, prefix_v6: 128 };
}

/// What becomes of the flows of a server that serves no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowPolicy {
    /// They go on to their end or their timeout.
    Keep,
    /// TCP: both ends get a RST. Other protocols have nothing like it: as [`FlowPolicy::Reschedule`].
    Reset,
    /// They are forgotten: the client's next packet that may start a flow comes to another server. An established TCP
    /// connection cannot be continued elsewhere, so it is reset.
    Reschedule,
}

impl FlowPolicy {
    pub const ALL: [FlowPolicy; 3] = [FlowPolicy::Keep, FlowPolicy::Reset, FlowPolicy::Reschedule];

    /// The word in the config.
    pub const fn word(self) -> &'static str {
        match self {
            FlowPolicy::Keep => "keep",
            FlowPolicy::Reset => "reset",
            FlowPolicy::Reschedule => "reschedule",
        }
    }
}

/// Passive checks: what clients' own connections tell of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Passive {
    /// Connections in a row that fail (refused, not answered) until the server counts as down, 1 to 1000.
    pub fall: u32,
    /// How long it then gets no flows at least; afterwards an active check decides, where there is one. 1 s to 1 h.
    pub hold: Duration,
}

/// A protocol whose flows announce further ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HelperKind {
    Ftp,
    Tftp,
}

impl HelperKind {
    pub const ALL: [HelperKind; 2] = [HelperKind::Ftp, HelperKind::Tftp];

    /// The word in the config.
    pub const fn word(self) -> &'static str {
        match self {
            HelperKind::Ftp => "ftp",
            HelperKind::Tftp => "tftp",
        }
    }

    /// The port that is its protocol's; services may have another one.
    pub const fn port(self) -> u16 {
        match self {
            HelperKind::Ftp => 21,
            HelperKind::Tftp => 69,
        }
    }

    /// The protocol of what it reads, and of the flows that it announces.
    pub const fn protocol(self) -> Protocol {
        match self {
            HelperKind::Ftp => Protocol::TCP,
            HelperKind::Tftp => Protocol::UDP,
        }
    }
}

/// A real server as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSpec {
    /// Unique within the service. Default: `address:port`.
    pub name: String,
    pub address: Addr,
    /// `None`: the port the client asked for. With a port range: where the range starts on the server.
    pub port: Option<u16>,
    /// 0 to 65535; 0 drains.
    pub weight: u32,
    /// `None`: the service's.
    pub method: Option<Method>,
    /// `None`: the service's. It matters for [`Method::Tunnel`] only.
    pub tunnel: Option<Encapsulation>,
    /// Flows at which it takes no more (ipvsadm's upper threshold); `None`: no limit.
    pub max_connections: Option<u32>,
    /// Flows below which it takes new ones again; `None`: three quarters of the maximum.
    pub min_connections: Option<u32>,
    /// Within this time after it comes up its share of new flows grows from nothing to the whole; `None`: at once.
    pub slow_start: Option<Duration>,
}

impl Default for ServerSpec {
    /// Weight 1, and everything else the service's or without limit.
    fn default() -> ServerSpec {
        ServerSpec {
            name: String::new(),
            address: Addr::UNSPECIFIED,
            port: None,
            weight: 1,
            method: None,
            tunnel: None,
            max_connections: None,
            min_connections: None,
            slow_start: None,
        }
    }
}

/// A service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique.
    pub name: String,
    pub vip: Addr,
    pub ports: PortRange,
    pub protocols: Protocols,
    /// Of servers that name no other.
    pub method: Method,
    /// How packets are wrapped for servers that name no other way.
    pub tunnel: Encapsulation,
    pub scheduler: SchedulerKind,
    pub scheduler_flags: Flags,
    /// Services of one group share their persistence: a client comes to the server with the same address in all of them.
    pub group: Option<String>,
    pub persistence: Option<Persistence>,
    /// Every UDP packet is scheduled by itself; no flow is kept.
    pub one_packet: bool,
    /// Serves while nobody else can, or while there is no quorum.
    pub sorry: Option<ServerSpec>,
    /// What becomes of the flows of a server that fails; `None`: TCP is reset, UDP is rescheduled.
    pub on_server_down: Option<FlowPolicy>,
    /// What becomes of the flows of a server that is taken out of the configuration.
    pub on_server_removed: FlowPolicy,
    pub passive: Option<Passive>,
    pub helper: Option<HelperKind>,
    /// Ports of the VIP that announced flows come to; `None`: any.
    pub data_ports: Option<PortRange>,
    /// Where flows by [`Method::Fullnat`] come from, as servers see them.
    pub pool: PoolSpec,
    /// How servers by [`Method::Fullnat`] are told whose connection it is; TCP only.
    pub proxy_protocol: Option<ProxyProtocol>,
    pub syn_proxy: SynProxy,
    /// New flows per second, over all shards; `None`: no limit.
    pub new_flows_per_second: Option<u32>,
    pub servers: Vec<ServerSpec>,
}

impl ServiceSpec {
    /// The methods of its servers.
    pub fn all_methods(&self) -> Vec<Method> {
        let mut methods: Vec<Method> =
            self.servers.iter().chain(&self.sorry).map(|server| server.method.unwrap_or(self.method)).collect();
        methods.push(self.method);
        methods
    }
}

impl Default for ServiceSpec {
    /// TCP on every port of no address, `nat` by `wlc`, without servers: what a configuration or a test starts from.
    fn default() -> ServiceSpec {
        ServiceSpec {
            name: String::new(),
            vip: Addr::UNSPECIFIED,
            ports: PortRange::ALL,
            protocols: Protocols::Tcp,
            method: Method::Nat,
            tunnel: Encapsulation::default(),
            scheduler: SchedulerKind::default(),
            scheduler_flags: Flags::default(),
            group: None,
            persistence: None,
            one_packet: false,
            sorry: None,
            on_server_down: None,
            on_server_removed: FlowPolicy::Keep,
            passive: None,
            helper: None,
            data_ports: None,
            pool: PoolSpec::default(),
            proxy_protocol: None,
            syn_proxy: SynProxy::default(),
            new_flows_per_second: None,
            servers: Vec::new(),
        }
    }
}

/// Bounds that the engine observes besides the size of its flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// RSTs and ICMP errors that one shard sends, per second (Linux: `net.ipv4.icmp_msgs_per_sec`, 1000 in all).
    pub replies_per_second: u32,
    /// Fragmented packets followed at a time, per shard.
    pub fragmented_packets: usize,
    /// Bytes of fragments held until their first one comes, per shard.
    pub held_fragment_bytes: usize,
    /// Clients that the persistence of one service or group remembers at a time.
    pub persistent_clients: usize,
    /// Expectations of helpers (flows announced that have not begun) at a time, per shard.
    pub expectations: usize,
    /// Half-open TCP connections of one shard beyond which the services with [`SynProxy::Auto`] answer SYNs themselves.
    pub half_open: usize,
    /// New flows per second of one client address, 0: no limit.
    pub new_flows_per_client: u32,
    /// New flows per second in all, over all shards; 0: no limit.
    pub new_flows_per_second: u32,
    /// SYNs from outside that nobody waits for, kept until they may be answered (RFC 5382 REQ-4), per shard.
    pub unsolicited_syns: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            replies_per_second: 1000,
            fragmented_packets: 4096,
            held_fragment_bytes: 1 << 20,
            persistent_clients: 1 << 16,
            expectations: 4096,
            half_open: 4096,
            new_flows_per_client: 0,
            new_flows_per_second: 0,
            unsolicited_syns: 1024,
        }
    }
}

/// Everything a snapshot is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSpec {
    pub services: Vec<ServiceSpec>,
    pub masquerades: Vec<MasqueradeSpec>,
    pub forwards: Vec<ForwardSpec>,
    /// How long a port of a pool is not given away again for the same server after its flow has ended.
    pub quarantine: Duration,
    /// VIPs and addresses of pools that are addresses of the gateway's host: what nobody takes there is the host's own.
    pub local_vips: Vec<Addr>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// MTU of the device, 1280 to 65535: TCP MSS options are clamped to it.
    pub mtu: u16,
    /// Where tunnels begin: a server's address, and the gateway's own address on the way to it.
    pub tunnel_sources: Vec<(Addr, Addr)>,
    /// The gateway forwards as a host of its own and counts TTLs down itself; otherwise the kernel around it does.
    pub is_hop: bool,
    /// Addresses that are the gateway's own and nobody else's, where [`SnapshotSpec::is_hop`] holds: what comes for them is
    /// answered as for a VIP without services.
    pub own_addresses: Vec<Addr>,
    /// Where the gateway's own probes of servers come from, for those that are probed through the gateway.
    pub probe_sources: Vec<ProbeSource>,
    /// Seed of the hashing schedulers; equal on gateways that must choose alike.
    pub seed: u64,
}

impl SnapshotSpec {
    /// What others send to and the gateway takes, in the order of the configuration: VIPs, addresses of pools, forwarded ones.
    pub fn public_addresses(&self) -> Vec<Addr> {
        let mut known = Map::default();
        let services = self.services.iter().map(|service| service.vip);
        let fullnat = self.services.iter().filter(|service| service.all_methods().contains(&Method::Fullnat));
        let pools = fullnat.flat_map(|service| &service.pool.addresses);
        let masquerades = self.masquerades.iter().flat_map(|masquerade| &masquerade.pool.addresses);
        let forwards = self.forwards.iter().map(|forward| forward.address);
        let all = services.chain(pools.chain(masquerades).copied()).chain(forwards);
        all.filter(|address| known.insert(*address, ()).is_none()).collect()
    }
}

/// The address that the gateway asks as when it probes `server` as a client of `vip` would; of the VIP's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSource {
    pub vip: Addr,
    pub server: Addr,
    pub client: Addr,
}

impl Default for SnapshotSpec {
    fn default() -> SnapshotSpec {
        SnapshotSpec {
            services: Vec::new(),
            masquerades: Vec::new(),
            forwards: Vec::new(),
            quarantine: Duration::from_secs(5),
            local_vips: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            mtu: 1500,
            tunnel_sources: Vec::new(),
            is_hop: false,
            own_addresses: Vec::new(),
            probe_sources: Vec::new(),
            seed: 0,
        }
    }
}
