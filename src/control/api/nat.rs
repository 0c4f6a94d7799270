//! What translates sources, as the control socket tells it: expectations, mappings, masquerades, pools.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Endpoints;

/// A flow that a helper has announced and that has not begun, as `conntrack.expect` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Expectation {
    pub proto: String,
    pub protonum: u8,
    /// Seconds until it is forgotten.
    pub timeout: u64,
    /// What its first packet has; its source port is whatever the opener takes.
    pub src: IpAddr,
    pub dst: IpAddr,
    pub dport: u16,
    /// Who sends that: `client` or `server`.
    pub opener: String,
    /// The original tuple of the flow that announced it; ports are 0 when that has ended.
    pub master: Endpoints,
    /// `ftp`, `tftp`; `null` when the service reads that protocol no more.
    pub helper: Option<String>,
    /// A service's or masquerade's.
    pub service: String,
    pub server: String,
    pub method: String,
    pub shard: u16,
}

/// An address and a port; of an ICMP query, its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

/// Selects mappings; every field that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MappingFilter {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// An address or a prefix, or an address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<String>,
    /// The same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<String>,
    /// By name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<String>,
}

/// An inside endpoint and the outside one that stands for it, as `nat.mappings` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Mapping {
    pub proto: String,
    pub protonum: u8,
    pub inside: Endpoint,
    pub outside: Endpoint,
    /// How many ports there are from these on, of a forwarded range: it is told of as one, and those of its ports that have
    /// flows besides. Missing: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<u32>,
    /// `forward` of a forwarded port of an address that is no masquerade's.
    pub masquerade: String,
    /// Flows that use it.
    pub flows: u32,
    /// Seconds that the longest-lived of its flows lives without a packet; `null` of one without flows, and where there are
    /// so many flows that nobody looks.
    pub timeout: Option<u64>,
    /// Of a forwarded port: it stays without flows.
    pub forward: bool,
    pub shard: u16,
}

/// The result of `nat.pools`, and what `status` says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Nat {
    pub masquerades: Vec<Masquerade>,
    /// Inside hosts that have a mapping.
    #[serde(default)]
    pub hosts: u64,
    /// In the order in which they were configured; what is retired is among them.
    pub pools: Vec<Pool>,
    pub forwards: Vec<Forward>,
    /// Seconds that a port rests when its flow has ended, before it serves the same server again.
    pub quarantine: u64,
}

/// A private network that goes out through a pool, or by another prefix.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Masquerade {
    pub name: String,
    /// Networks.
    pub from: Vec<String>,
    pub except: Vec<String>,
    /// Addresses of its pool; empty with `prefix`.
    pub to: Vec<IpAddr>,
    /// `1024-65535`.
    pub ports: String,
    /// NPTv6: no state is kept, so that it has neither mappings nor ports.
    pub prefix: Option<String>,
    /// `endpoint`, `address` or `address-port`.
    pub filtering: String,
    /// `ftp`, `tftp`.
    pub helpers: Vec<String>,
    /// Mappings that one inside host may have.
    pub max_mappings: u32,
    /// Over all shards; a mapping may have several flows. A forwarded port counts while it has some.
    pub flows: u64,
    pub mappings: u64,
}

/// One address whose ports are given away.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pool {
    pub address: IpAddr,
    /// Those that may be given away: `1024-65535`, `*`.
    pub ports: String,
    /// `fullnat`, `masquerade`, or `forward`: nothing but forwarded ports.
    pub usage: String,
    /// Whose they are, by name: the masquerade, the services by `fullnat`, the forwards; the first 16 of them.
    pub users: Vec<String>,
    /// How many these are in all.
    pub user_count: usize,
    /// No configuration names it any more; it stays while flows use it.
    pub retired: bool,
    /// Ports that are given away. One of `fullnat` counts once for each server that it is used with, one of a masquerade once
    /// for each protocol.
    pub in_use: u64,
    /// Ports that rest.
    pub quarantined: u64,
    /// Ports that could be given away at most, counted in the same way over what the address has been used for so far.
    pub size: u64,
    /// How much is taken of what is taken most, in thousandths: of a shard's part of the ports towards one server (`fullnat`)
    /// or of one protocol (`masquerade`). At 1000 new flows are refused there, whatever is left elsewhere.
    pub fullest: u16,
}

/// Ports of an outside address that lead to an inside host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Forward {
    pub name: String,
    pub protocol: String,
    /// `203.0.113.100:2222`, `203.0.113.100:8000-8099`.
    pub listen: String,
    /// The inside host, and where the range begins there; without a port, the same ports.
    pub to: String,
}
