//! Forwarding methods: how a flow is planned when it is admitted, what is done to its packets, and what is sent besides
//! the flow's own packets.
//!
//! A method is one file, registered in [`crate::service::Method`] and here in [`plan`], [`action`] and [`act`].

pub mod compose;
pub mod cookie;
mod direct;
pub mod echo;
pub mod fullnat;
pub mod helper;
pub mod icmp_error;
pub mod masquerade;
mod nat;
pub mod ports;
pub mod proxy_protocol;
pub mod receive;
pub mod refuse;
pub mod reset;
pub mod shift;
mod tunnel;
pub mod tunnel_error;

use refuse::Refusal;

use crate::flow::{Flow, Sender};
use crate::service::{Method, Server, Service, SnapshotSpec};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{PacketBuf, Rewrite, Tuple, View, decrement_ttl};

/// The reply tuple of a new flow: what the server's packets look like when they come back. Together with the original
/// tuple it is all that both directions need; it is decided here, once, and replayed from then on.
pub fn plan(service: &Service, server: &Server, original: &Tuple) -> Tuple {
    match server.method {
        Method::Nat | Method::Fullnat | Method::Masquerade => nat::plan(service, server, original),
        // The server answers under the VIP.
        Method::Direct | Method::Tunnel => original.reversed(),
    }
}

/// Another reply tuple for the same server, when another flow holds the planned one; `attempt` counts from 0. `None`: no
/// other one would do.
pub fn plan_again(server: &Server, planned: Tuple, random: u64, attempt: u16) -> Option<Tuple> {
    match server.method {
        Method::Nat => Some(nat::other_source_port(planned, random, attempt)),
        Method::Direct | Method::Tunnel | Method::Fullnat | Method::Masquerade => None,
    }
}

/// As [`plan_again`], for a tuple of a flow that a helper has announced: the one that its opener does not know yet.
pub fn other_port(method: Method, planned: Tuple, random: u64, attempt: u16) -> Option<Tuple> {
    (!method.is_one_way()).then(|| nat::other_source_port(planned, random, attempt))
}

/// What is done to the packets of a flow from one of its ends. Plain data: what it needs besides is the server's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Addresses, ports and checksums change; it goes where its destination leads.
    Translate(Rewrite),
    /// It goes to the server's MAC address as it is.
    Direct,
    /// It goes to the server in an outer header.
    Tunnel,
    /// It goes on as it is.
    Untouched,
}

/// What is done to packets of `flow` from `sender`.
#[inline]
pub fn action(flow: &Flow, sender: Sender) -> Action {
    match Method::numbered(flow.owner.method) {
        Method::Nat | Method::Fullnat | Method::Masquerade => Action::Translate(flow.rewrite(sender)),
        one_way => one_way_action(one_way, sender),
    }
}

/// As [`action`], for a method that translates nothing, where only the server is known.
pub fn one_way_action(method: Method, sender: Sender) -> Action {
    match (method, sender) {
        (Method::Direct, Sender::Client) => Action::Direct,
        (Method::Tunnel, Sender::Client) => Action::Tunnel,
        _ => Action::Untouched,
    }
}

/// What an action needs to know besides the packet.
pub struct Context<'a> {
    pub now: Instant,
    pub spec: &'a SnapshotSpec,
    /// The flow's server, also when it is retired.
    pub server: Option<&'a Server>,
    /// The packet is a probe of the gateway's own.
    pub is_probe: bool,
}

/// Why a packet of a flow cannot go on, and what its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub reason: DropReason,
    pub refusal: Option<Refusal>,
}

/// Does it. Of a packet that meets an obstacle nothing has been changed.
#[inline]
pub fn act(action: &Action, buf: &mut PacketBuf, view: &View, context: Context<'_>) -> Result<(), Obstacle> {
    match action {
        Action::Translate(rewrite) => {
            nat::apply(rewrite, buf, view, context.spec.mtu);
            count_down(buf, context.spec);
            Ok(())
        }
        Action::Direct => direct::apply(buf, context),
        Action::Tunnel => tunnel::apply(buf, view, context),
        Action::Untouched => {
            count_down(buf, context.spec);
            Ok(())
        }
    }
}

/// Counts the TTL down where no kernel around the gateway does (RFC 1812 section 5.3.1).
#[inline]
fn count_down(buf: &mut PacketBuf, spec: &SnapshotSpec) {
    if spec.is_hop {
        decrement_ttl(buf.packet_mut());
    }
}
