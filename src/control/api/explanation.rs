//! What `explain` answers.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Endpoint, Endpoints, Flow};

/// The answer to `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Explanation {
    pub packet: Endpoints,
    /// `forward`, `reply` (by the gateway itself), `pass` (the host routes it on as it is) or `drop`.
    pub verdict: String,
    /// The drop reason and what it means.
    pub reason: Option<String>,
    pub meaning: Option<String>,
    /// What the sender gets, of a dropped packet (`a TCP RST`, `an ICMP port unreachable`) or of one that the gateway answers:
    /// `a SYN cookie`. The server is asked once the client has answered that.
    #[serde(default)]
    pub answer: Option<String>,
    /// `to_server` or `to_client`; of a masquerade, from inside or to it.
    pub direction: Option<String>,
    /// The flow that the packet belongs to; `null` when it would start one.
    pub flow: Option<Flow>,
    /// Or the masquerade.
    pub service: Option<String>,
    pub scheduler: Option<String>,
    /// In the scheduler's own words.
    pub scheduler_state: Option<String>,
    pub server: Option<String>,
    /// What chose the server: `the scheduler`, persistence, or why it is the sorry server.
    #[serde(default)]
    pub chosen_by: Option<String>,
    /// Whether the packet is of a flow or starts one; `false` where every packet is forwarded by itself.
    #[serde(default)]
    pub keeps_flow: Option<bool>,
    /// Servers that could have been chosen, out of `servers`.
    pub servers_available: Option<usize>,
    pub servers: Option<usize>,
    pub method: Option<String>,
    /// By `fullnat`: the address of the pool that the server sees.
    #[serde(default)]
    pub pool: Option<IpAddr>,
    /// Of a masquerade.
    #[serde(default)]
    pub mapping: Option<ExplainedMapping>,
    /// NPTv6: the inside prefix and the outside one. Nothing is kept.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The packet as it would be sent on; a port that is chosen at random is 0.
    pub after: Option<Endpoints>,
    /// How it gets to the server where its destination does not lead there: `a frame to the MAC address of 10.20.0.11`,
    /// `ipip 10.20.0.1 > 10.30.0.14`.
    #[serde(default)]
    pub via: Option<String>,
}

/// The mapping that a packet goes out or comes in by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ExplainedMapping {
    pub inside: Endpoint,
    pub outside: OutsideEnd,
    /// `false`: it would be made.
    pub exists: bool,
    /// Of a forwarded port: the name of the forward.
    pub forward: Option<String>,
    /// What its masquerade lets in, or of a forwarded port `endpoint`: everybody.
    pub filtering: String,
    /// The packet comes in again, to the mapping of another inside host.
    pub hairpin: bool,
}

/// An outside address, and a port if that is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OutsideEnd {
    pub address: IpAddr,
    /// `null`: it is chosen at random.
    pub port: Option<u16>,
}
