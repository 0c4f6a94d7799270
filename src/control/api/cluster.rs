//! Services and servers, as the control socket tells them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Packets and bytes one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Volume {
    pub packets: u64,
    pub bytes: u64,
}

/// Per second, over the last sampling interval (about two seconds).
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Rates {
    /// Flows admitted.
    pub flows: f64,
    pub packets_to_server: f64,
    pub bytes_to_server: f64,
    pub packets_to_client: f64,
    pub bytes_to_client: f64,
}

impl Rates {
    pub fn add(&mut self, other: &Rates) {
        self.flows += other.flows;
        self.packets_to_server += other.packets_to_server;
        self.bytes_to_server += other.bytes_to_server;
        self.packets_to_client += other.packets_to_client;
        self.bytes_to_client += other.bytes_to_client;
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Server {
    pub service: String,
    pub name: String,
    pub address: IpAddr,
    /// `null`: the port the client asked for.
    pub port: Option<u16>,
    pub weight: u32,
    /// `nat`, `fullnat`, `direct` or `tunnel`.
    pub method: String,
    /// How packets are wrapped: `ipip`, `gue`; `null` for other methods.
    pub tunnel: Option<String>,
    /// Bytes that a packet to the server may have, where the path was found to be narrower than the gateway's links.
    pub path_mtu: Option<u16>,
    /// `false` when nobody answers for its address on the segment (method direct; in mode "tap" any method): then it gets no
    /// new flows.
    pub reachable: bool,
    /// Why it gets no new flows, or that it does: `up`, `down` (its check, or clients, say so), `full`, `draining`, `off`
    /// (weight 0), `unreachable`.
    #[serde(default = "up")]
    pub state: String,
    /// What the operator said about draining it; `null` while it is not being drained.
    #[serde(default)]
    pub drain: Option<Drain>,
    /// `null` in a gateway that checks nothing.
    #[serde(default)]
    pub health: Option<Health>,
    pub active: u64,
    pub inactive: u64,
    /// Flows admitted since the server was configured.
    pub admitted: u64,
    pub to_server: Volume,
    pub to_client: Volume,
    pub rates: Rates,
    /// Flows at which it takes no more, and below which it takes new ones again; `null` where not configured.
    #[serde(default)]
    pub max_connections: Option<u32>,
    #[serde(default)]
    pub min_connections: Option<u32>,
    /// Clients that persistence keeps with it.
    #[serde(default)]
    pub persistent: u64,
}

fn up() -> String {
    "up".to_owned()
}

/// A drain that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Drain {
    /// Seconds ago that it began.
    pub since: u64,
    /// Seconds until its deadline; `null` without one, or once it is past.
    pub left: Option<u64>,
    /// What becomes of the flows that are left then: `rst`, `keep`.
    pub then: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Service {
    pub name: String,
    /// `203.0.113.10:80`, `[2001:db8::1]:8000-8099`, `203.0.113.10:*`.
    pub listen: String,
    /// Services of one group share their persistence.
    #[serde(default)]
    pub group: Option<String>,
    /// Serves while no other server can.
    #[serde(default)]
    pub sorry: Option<Server>,
    /// `false` when fewer servers are up than it needs: then the sorry server has its clients.
    #[serde(default = "yes")]
    pub has_quorum: bool,
    pub protocol: String,
    pub method: String,
    pub scheduler: String,
    /// `null` in a gateway that checks nothing.
    #[serde(default)]
    pub quorum: Option<Quorum>,
    pub servers: Vec<Server>,
    /// `port`, `fallback`, `strict`.
    #[serde(default)]
    pub scheduler_flags: Vec<String>,
    #[serde(default)]
    pub persistence: Option<Persistence>,
    #[serde(default)]
    pub one_packet: bool,
    /// The addresses that flows by `fullnat` go on from; empty where there are none.
    #[serde(default)]
    pub pool: Vec<IpAddr>,
    /// `v1`, `v2`; `null`: servers are not told who the client is.
    #[serde(default)]
    pub proxy_protocol: Option<String>,
    /// `auto`, `always`, `never`.
    #[serde(default = "auto")]
    pub syn_proxy: String,
    /// `null`: no limit of its own.
    #[serde(default)]
    pub new_flows_per_second: Option<u32>,
}

/// How clients are kept with their servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Persistence {
    /// Seconds.
    pub timeout: u64,
    /// Bits of an IPv4 address that name a client.
    pub netmask: u8,
    /// Bits of an IPv6 address that name a client.
    pub prefix: u8,
}

fn auto() -> String {
    "auto".to_owned()
}

fn yes() -> bool {
    true
}

/// How a server has been.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Health {
    /// Seconds since it last went up or down; without that, since it was configured.
    pub since: u64,
    /// How often it went up or down.
    pub transitions: u64,
    /// `null`: it has no check.
    pub check: Option<Check>,
}

/// A server's check and what it last said.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Check {
    /// `tcp`, `http`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `host` or `path`.
    pub via: String,
    /// Whether the last answer was right; this and the next three are `null` before there is one.
    pub ok: Option<bool>,
    /// In words; while the check cannot be made, why, and the other three are `null`.
    pub said: Option<String>,
    /// Microseconds.
    pub latency: Option<u64>,
    /// Seconds since then.
    pub age: Option<u64>,
    /// The weight that it sets, if it does.
    pub sets_weight: Option<u32>,
    /// Answers, and those of them that were wrong, since the server was configured.
    pub done: u64,
    pub failed: u64,
}

/// How many servers a service needs, and has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Quorum {
    pub weight: u32,
    pub hysteresis: u32,
    /// The weight of the servers that may serve.
    pub live: u64,
}

/// What `server.watch` tells.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ServerEvent {
    /// Microseconds since 1970.
    pub time: u64,
    pub change: ServerChange,
    pub service: String,
    /// `null`: it concerns the service.
    pub server: Option<String>,
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    /// For a human.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerChange {
    Up,
    Down,
    QuorumGained,
    QuorumLost,
}
