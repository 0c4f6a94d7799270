//! How a server is chosen for a new flow. One file a scheduler; each is registered in [`Kind`] and [`build`], nowhere else.
//!
//! A scheduler belongs to one service and is shared by all shards, so its state sits behind `&self`; it is asked only
//! when a flow is admitted, never for a packet of a known flow.

#[cfg(test)]
mod fixture;
mod hash;
mod lc;
mod mh;
mod rr;
mod sh;
#[cfg(test)]
mod tests;
mod wlc;
mod wrr;

use std::fmt;
use std::sync::Arc;

use super::Server;
use crate::time::Instant;
use crate::wire::Addr;

/// What a scheduler may look at besides the servers.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub now: Instant,
    pub client: Addr,
    pub client_port: u16,
    pub vip: Addr,
    pub port: u16,
    /// Nobody else would serve it: a server that is warming up takes it all the same.
    pub is_urgent: bool,
}

/// A way of choosing a server.
pub trait Scheduler: fmt::Debug + Send + Sync {
    /// The index in `servers` of the server for a new flow, or `None` when none is available.
    /// Never the index of a server whose [`Server::takes`] is false for this request.
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize>;

    /// A copy with the same state, so that `gatun explain` can pick without moving the original.
    fn fork(&self) -> Box<dyn Scheduler>;

    /// The state in a few words for `gatun explain`; empty when there is none.
    fn state(&self) -> String {
        String::new()
    }
}

/// What may be set on a hashing scheduler besides (ipvsadm's `-b`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// The client's port is hashed as well (`sh-port`, `mh-port`).
    pub port: bool,
    /// Clients of an unavailable server go to another (`sh-fallback`, `mh-fallback`); without it they are refused.
    pub fallback: bool,
}

/// The schedulers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    Rr,
    Wrr,
    Lc,
    #[default]
    Wlc,
    Sh,
    Mh,
}

impl Kind {
    pub const ALL: &'static [Kind] = &[Kind::Rr, Kind::Wrr, Kind::Lc, Kind::Wlc, Kind::Sh, Kind::Mh];

    /// The word in config and outputs; the same as in ipvsadm.
    pub const fn word(self) -> &'static str {
        match self {
            Kind::Rr => "rr",
            Kind::Wrr => "wrr",
            Kind::Lc => "lc",
            Kind::Wlc => "wlc",
            Kind::Sh => "sh",
            Kind::Mh => "mh",
        }
    }
}

/// Makes the scheduler of a service. `seed` moves what the hashing schedulers choose. `servers` are those that `pick`
/// will be given, in the same order.
pub fn build(kind: Kind, flags: Flags, servers: &[Arc<Server>], seed: u64) -> Box<dyn Scheduler> {
    let _ = flags;
    match kind {
        Kind::Rr => Box::new(rr::RoundRobin::default()),
        Kind::Wrr => Box::new(wrr::WeightedRoundRobin::new(servers)),
        Kind::Lc => Box::new(lc::LeastConnections),
        Kind::Wlc => Box::new(wlc::WeightedLeastConnections),
        Kind::Sh => Box::new(sh::SourceHash::new(servers, seed)),
        Kind::Mh => Box::new(mh::Maglev::new(servers, seed)),
    }
}

/// The greatest common divisor; of zero and a number that number.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
