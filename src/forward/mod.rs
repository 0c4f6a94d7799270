//! Forwarding methods: how a flow is planned when it is admitted, and what is sent besides the flow's own packets.
//!
//! A method is one file with a `plan`; it is registered in [`plan`] and in [`crate::service::Method`].

pub mod echo;
pub mod icmp_error;
mod nat;
pub mod receive;
pub mod refuse;

use crate::service::{Method, Server, Service};
use crate::wire::Tuple;

/// The reply tuple of a new flow: what the server's packets look like when they come back. Together with the original
/// tuple it is all that both directions need; it is decided here, once, and replayed from then on.
pub fn plan(service: &Service, server: &Server, original: &Tuple) -> Tuple {
    match server.method {
        Method::Nat => nat::plan(service, server, original),
        Method::Direct | Method::Tunnel => original.reversed(),
    }
}

/// Another reply tuple for the same server, when another flow holds the planned one; `attempt` counts from 0.
pub fn plan_again(planned: Tuple, random: u64, attempt: u16) -> Tuple {
    nat::other_source_port(planned, random, attempt)
}
