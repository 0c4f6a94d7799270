//! What is said over the control socket: one JSON object a line, in both directions. `docs/CONTROL-API.md` is the
//! contract for others; these types are what the daemon and the command line share of it.
//!
//! A request is `{"v":1,"op":"…", …}`. An answer is a line with `ok` (the result), or with `error`; an operation that
//! streams sends lines with `item` (and `lost`, when a watcher was too slow) before.

use std::collections::BTreeMap;
mod cluster;
mod explanation;
mod nat;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use cluster::{
    Check, Drain, Health, Persistence, Quorum, Rates, Server, ServerChange, ServerEvent, Service, Volume,
};
pub use explanation::{ExplainedMapping, Explanation, OutsideEnd};
pub use nat::{Endpoint, Expectation, Forward, Mapping, MappingFilter, Masquerade, Nat, Pool};

/// The version of the protocol. Fields and operations may be added without changing it; clients ignore what they do not
/// know.
pub const VERSION: u64 = 1;

/// What is asked, besides the version. The tag is the operation's name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Request {
    #[serde(rename = "ping")]
    Ping {},
    #[serde(rename = "status")]
    Status {},
    #[serde(rename = "stats")]
    Stats {},
    #[serde(rename = "neighbours")]
    Neighbours {},
    #[serde(rename = "service.list")]
    ServiceList {},
    #[serde(rename = "server.list")]
    ServerList {
        /// Only this service's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    /// Servers that go up and down, as they do.
    #[serde(rename = "server.watch")]
    ServerWatch {
        /// Only this service's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    #[serde(rename = "persistence.list")]
    PersistenceList {},
    #[serde(rename = "conntrack.list")]
    ConntrackList {
        #[serde(default)]
        filter: Filter,
    },
    #[serde(rename = "conntrack.watch")]
    ConntrackWatch {
        #[serde(default)]
        filter: Filter,
    },
    #[serde(rename = "conntrack.count")]
    ConntrackCount {},
    #[serde(rename = "conntrack.delete")]
    ConntrackDelete { filter: Filter },
    #[serde(rename = "conntrack.flush")]
    ConntrackFlush {},
    /// Flows that helpers have announced and that have not begun.
    #[serde(rename = "conntrack.expect")]
    ConntrackExpect {},
    /// What inside endpoints are mapped to.
    #[serde(rename = "nat.mappings")]
    NatMappings {
        #[serde(default)]
        filter: MappingFilter,
    },
    /// Masquerades, the addresses of pools and how much of their ports is in use, forwarded ports.
    #[serde(rename = "nat.pools")]
    NatPools {},
    #[serde(rename = "explain")]
    Explain {
        proto: String,
        src: IpAddr,
        dst: IpAddr,
        #[serde(default)]
        sport: u16,
        #[serde(default)]
        dport: u16,
        /// Letters of `FSRPAU`; a SYN by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tcp_flags: Option<String>,
    },
    /// Give a server no new flow any more.
    #[serde(rename = "server.drain")]
    ServerDrain {
        service: String,
        server: String,
        /// A duration as in the file, from now on; what is left then is dealt with by `then`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<String>,
        /// `rst` (by default) or `keep`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        then: Option<String>,
        /// Let it have new flows again.
        #[serde(default)]
        cancel: bool,
    },
    /// Let what is shown of a service's servers, or of all servers, count from zero again.
    #[serde(rename = "counters.zero")]
    CountersZero {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    /// Changes to the running configuration: all of them or none, as one reload.
    #[serde(rename = "edit")]
    Edit {
        edits: Vec<Edit>,
        /// Also in the file.
        #[serde(default)]
        save: bool,
    },
    /// Write what runs into the file.
    #[serde(rename = "save")]
    Save {
        /// Also over what somebody has changed in the file.
        #[serde(default)]
        force: bool,
    },
    #[serde(rename = "reload")]
    Reload {
        /// An absolute path on the daemon's host; the file it was started with by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config: Option<PathBuf>,
    },
    #[serde(rename = "diff")]
    Diff {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config: Option<PathBuf>,
    },
}

/// One change to the configuration. `keys` are those of the file's tables, with JSON values; `null` takes a key away. A
/// server's name is, as everywhere, the one that it has or else its address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "edit", deny_unknown_fields)]
pub enum Edit {
    #[serde(rename = "service.add")]
    AddService { service: String, keys: serde_json::Map<String, serde_json::Value> },
    #[serde(rename = "service.set")]
    SetService { service: String, keys: serde_json::Map<String, serde_json::Value> },
    #[serde(rename = "service.remove")]
    RemoveService { service: String },
    /// Every service.
    #[serde(rename = "service.clear")]
    ClearServices {},
    /// `keys` has at least `address`.
    #[serde(rename = "server.add")]
    AddServer { service: String, keys: serde_json::Map<String, serde_json::Value> },
    /// `server` is the server's name.
    #[serde(rename = "server.set")]
    SetServer { service: String, server: String, keys: serde_json::Map<String, serde_json::Value> },
    #[serde(rename = "server.remove")]
    RemoveServer { service: String, server: String },
    /// `[conntrack]`, its timeouts in the table `timeouts`.
    #[serde(rename = "conntrack.set")]
    SetConntrack { keys: serde_json::Map<String, serde_json::Value> },
}

/// The operations that this version does.
pub const OPS: &[&str] = &[
    "ping",
    "status",
    "stats",
    "neighbours",
    "service.list",
    "server.list",
    "server.watch",
    "server.drain",
    "counters.zero",
    "persistence.list",
    "conntrack.list",
    "conntrack.watch",
    "conntrack.count",
    "conntrack.delete",
    "conntrack.flush",
    "conntrack.expect",
    "nat.mappings",
    "nat.pools",
    "explain",
    "edit",
    "save",
    "reload",
    "diff",
];

/// Operations whose names are taken, for changes to a running gateway.
pub const RESERVED_OPS: &[&str] =
    &["service.add", "service.set", "service.remove", "server.add", "server.set", "server.remove"];

/// What a line from the daemon holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Answer {
    pub v: u64,
    /// The first line of a watch: what happens from now on will be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<bool>,
    /// The result; for a stream, its last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<serde_json::Value>,
    /// So many items of the stream were left out here, because the client or the daemon was too slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Fault>,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Fault {
    pub code: FaultCode,
    /// For a human: one sentence, or for a configuration several lines.
    pub message: String,
}

impl Fault {
    pub fn new(code: FaultCode, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into() }
    }

    /// What is asked of a daemon that takes no more orders.
    pub fn stopping() -> Fault {
        Fault::new(FaultCode::Failed, "the daemon is stopping")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// The kinds of [`Fault`], for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// No JSON object, or a field that is missing, unknown or wrong.
    BadRequest,
    UnsupportedVersion,
    UnknownOp,
    /// A known operation that this version does not do yet.
    NotSupported,
    /// A service or server of that name does not exist.
    NotFound,
    /// The line is longer than the daemon reads.
    TooLong,
    /// Too many clients.
    Busy,
    /// The operation was tried and failed; nothing was changed, but where the message says otherwise.
    Failed,
    #[serde(other)]
    Other,
}

/// Selects flows; every field that is set must match. The fields of `FlowFilter`, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// An address or a prefix (`10.0.0.0/8`): the client's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
    /// An address or a prefix: the VIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// As conntrack-tools writes it, in any case: `ESTABLISHED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// A service's or masquerade's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A server's name, address, or address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// A flow, as `conntrack.list` and `watch` tell it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Flow {
    pub proto: String,
    pub protonum: u8,
    /// Seconds until it expires, if no packet comes.
    pub timeout: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    pub original: Side,
    pub reply: Side,
    pub replied: bool,
    pub assured: bool,
    pub service: String,
    pub server: String,
    pub method: String,
    pub shard: u16,
    /// Seconds since it was admitted.
    pub age: u64,
    /// What else there is to it: `probe` (the gateway's own, and no client's), `persistent`, `helped`, `expected`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<String>,
}

/// One direction of a flow. For ICMP both ports hold the identifier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Side {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
    pub packets: u64,
    /// IP bytes, headers included.
    pub bytes: u64,
}

/// What `watch` tells.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct FlowEvent {
    pub change: Change,
    /// Microseconds since 1970 at which the daemon took the event from its shard (up to 50 ms after it happened).
    pub time: u64,
    pub flow: Flow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    New,
    Update,
    Destroy,
}

/// A drop reason and its count.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Drops {
    pub reason: String,
    pub packets: u64,
    /// What the reason means, in a sentence.
    pub meaning: String,
    /// Something of the gateway's own ran out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shortage: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// Seconds.
    pub uptime: u64,
    pub device: Option<Device>,
    /// `null` in mode `tun`.
    #[serde(default)]
    pub segment: Option<Segment>,
    pub config: Option<String>,
    /// Of the configuration in use; 1 at start, one more with each reload.
    pub generation: u64,
    pub reloads_ok: u64,
    pub reloads_failed: u64,
    /// What runs has changes that the file does not have.
    #[serde(default)]
    pub unsaved: bool,
    pub shards: usize,
    pub flows: usize,
    pub flows_limit: usize,
    /// Of all servers together; the flows of masquerades are among the flows.
    pub rates: Rates,
    pub services: Vec<Service>,
    /// What sources are translated by.
    #[serde(default)]
    pub nat: Nat,
    /// Only reasons that occurred, most frequent first.
    pub drops: Vec<Drops>,
    /// The timeouts of flows, in seconds, by the names that they have in the file.
    #[serde(default)]
    pub timeouts: BTreeMap<String, u64>,
}

/// Who the gateway is on its segment, in mode `tap`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Segment {
    pub mac: String,
    /// That the device is a port of; `null`: the operator sees to that.
    pub bridge: Option<String>,
    /// With prefix lengths.
    pub addresses: Vec<String>,
    pub routers: Vec<IpAddr>,
    /// How many there are in the table.
    pub neighbours: usize,
}

/// A host of the gateway's segment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Neighbour {
    pub address: IpAddr,
    /// `null` while it is not known.
    pub mac: Option<String>,
    /// `incomplete`, `reachable`, `stale`, `delay`, `probe` or `failed` (RFC 4861 section 7.3.2).
    pub state: String,
    /// Seconds since it last answered; if it never did, since it was first asked.
    pub age: u64,
    /// Packets that wait for its MAC.
    pub queued: usize,
    /// A router or server of the configuration, which is never forgotten.
    pub kept: bool,
}

/// What the device counts since the gateway was started.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Device {
    pub name: String,
    /// Packets (super-packets count once) from the kernel.
    pub received: u64,
    /// Packets to the kernel.
    pub sent: u64,
    /// Packets that the kernel did not take.
    pub send_errors: u64,
    /// Packets that the kernel dropped because the device's queue was full (`tx_dropped`); `null` if it does not say.
    pub dropped: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Counter {
    pub name: String,
    pub value: u64,
}

/// One shard, or all of them together.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ShardStats {
    /// `null` in the total.
    pub shard: Option<u16>,
    pub flows: usize,
    pub flows_limit: usize,
    pub counters: Vec<Counter>,
    /// Every reason, also those that never occurred.
    pub drops: Vec<Drops>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Stats {
    pub total: ShardStats,
    pub shards: Vec<ShardStats>,
    pub device: Option<Device>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Count {
    pub count: u64,
    pub limit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Shown {
    pub shown: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Deleted {
    pub deleted: u64,
}

/// A client that persistence keeps with a server, as `persistence.list` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct KeptClient {
    /// The service, or the first one of its group.
    pub service: String,
    /// Its address, or the first one of its network.
    pub client: IpAddr,
    pub address: IpAddr,
    /// `null`: the server has the port that the client asks for.
    pub port: Option<u16>,
    /// Flows that it has there.
    pub flows: u32,
    /// Seconds until it is forgotten, if it opens nothing.
    pub timeout: u64,
}

/// The result of `counters.zero`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Zeroed {
    /// Servers.
    pub zeroed: u64,
}

/// The result of `server.drain`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Draining {
    /// Flows that the server has now.
    pub flows: u64,
    /// `null` when it is not being drained any more.
    pub drain: Option<Drain>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pong {
    pub version: String,
    pub protocol: u64,
    pub pid: u32,
}

impl Pong {
    /// This process's.
    pub fn ours() -> Pong {
        Pong { version: env!("CARGO_PKG_VERSION").to_owned(), protocol: VERSION, pid: std::process::id() }
    }
}

/// The result of `reload`, `diff`, `edit` and `save`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Difference {
    /// One line each, as `gatun diff` prints them; empty when nothing changes.
    pub changes: Vec<String>,
    /// Of the configuration in use afterwards.
    pub generation: u64,
    /// The file that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// What the operator should know besides; a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Where a packet comes from and goes to. For ICMP both ports hold the identifier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Endpoints {
    pub proto: String,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
}
