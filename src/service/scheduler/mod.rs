//! How a server is chosen for a new flow. One file a scheduler; each is registered in [`Kind`] and [`build`], nowhere else.
//!
//! A scheduler belongs to one service and is shared by all shards, so its state sits behind `&self`; it is asked only
//! when a flow is admitted, never for a packet of a known flow.

mod dh;
#[cfg(test)]
mod fixture;
mod fo;
mod hash;
mod homes;
mod lblc;
mod lblcr;
mod lc;
mod mh;
mod nq;
mod ovf;
mod ranking;
mod rr;
mod sed;
mod sh;
#[cfg(test)]
mod tests;
mod twos;
mod wlc;
mod wrr;

use std::fmt;
use std::sync::Arc;

pub use homes::Homes;
pub use ranking::{Changes, Mark};

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

    /// What it has learned that the scheduler after a reload should know.
    fn memory(&self) -> Memory {
        Memory::Nothing
    }

    /// Takes over what the scheduler before a reload had learned, if it has a use for it. Not called once it is shared.
    fn inherit(&mut self, _memory: Memory) {}
}

/// What is left of a scheduler when a reload replaces it.
#[derive(Clone, Debug)]
pub enum Memory {
    Nothing,
    /// The index of the server whose turn is next, and the weight that is being picked.
    Turn {
        next: usize,
        level: u32,
    },
    /// Lots drawn.
    Lots(u64),
    Homes(Homes),
}

impl Memory {
    /// The same for another list of servers; `places` tells where in it each server of the old one stands.
    pub fn moved(self, places: &[Option<usize>]) -> Memory {
        match self {
            Memory::Turn { next, level } => {
                // The first one from there on that is still in the list.
                let start = next.min(places.len());
                let next = places[start..].iter().chain(&places[..start]).find_map(|place| *place);
                Memory::Turn { next: next.unwrap_or(0), level }
            }
            Memory::Homes(homes) => Memory::Homes(homes.moved(places)),
            memory => memory,
        }
    }
}

/// What may be set on a hashing scheduler besides (ipvsadm's `-b`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// The client's port is hashed as well (`sh-port`, `mh-port`).
    pub port: bool,
    /// Clients of an unavailable server go to another (`sh-fallback`, `mh-fallback`). That is so without the flag, too:
    /// a server that dies should take no client with it because nobody knew of a flag.
    pub fallback: bool,
    /// Clients of an unavailable server are refused, as IPVS does without `sh-fallback` and `mh-fallback`.
    pub strict: bool,
}

/// The schedulers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    Rr,
    Wrr,
    Lc,
    #[default]
    Wlc,
    Lblc,
    Lblcr,
    Dh,
    Sh,
    Sed,
    Nq,
    Fo,
    Ovf,
    Mh,
    Twos,
}

impl Kind {
    pub const ALL: &'static [Kind] = &[
        Kind::Rr,
        Kind::Wrr,
        Kind::Lc,
        Kind::Wlc,
        Kind::Lblc,
        Kind::Lblcr,
        Kind::Dh,
        Kind::Sh,
        Kind::Sed,
        Kind::Nq,
        Kind::Fo,
        Kind::Ovf,
        Kind::Mh,
        Kind::Twos,
    ];

    /// Whether a server without flows gets every new one.
    pub const fn goes_by_load(self) -> bool {
        matches!(self, Kind::Lc | Kind::Wlc | Kind::Lblc | Kind::Lblcr | Kind::Sed | Kind::Nq)
    }

    /// The word in config and outputs; the same as in ipvsadm.
    pub const fn word(self) -> &'static str {
        match self {
            Kind::Rr => "rr",
            Kind::Wrr => "wrr",
            Kind::Lc => "lc",
            Kind::Wlc => "wlc",
            Kind::Lblc => "lblc",
            Kind::Lblcr => "lblcr",
            Kind::Dh => "dh",
            Kind::Sh => "sh",
            Kind::Sed => "sed",
            Kind::Nq => "nq",
            Kind::Fo => "fo",
            Kind::Ovf => "ovf",
            Kind::Mh => "mh",
            Kind::Twos => "twos",
        }
    }
}

/// Makes the scheduler of a service. `seed` moves what the hashing schedulers choose. `servers` are those that `pick`
/// will be given, in the same order.
pub fn build(kind: Kind, flags: Flags, servers: &[Arc<Server>], seed: u64) -> Box<dyn Scheduler> {
    match kind {
        Kind::Rr => Box::new(rr::RoundRobin::default()),
        Kind::Wrr => Box::new(wrr::WeightedRoundRobin::new(servers)),
        Kind::Lc => Box::new(lc::LeastConnections::new(servers)),
        Kind::Wlc => Box::new(wlc::WeightedLeastConnections::new(servers)),
        Kind::Lblc => Box::new(lblc::LocalityLeastConnections::new(servers)),
        Kind::Lblcr => Box::new(lblcr::ReplicatedLocality::new(servers)),
        Kind::Dh => Box::new(dh::DestinationHash::new(servers, seed)),
        Kind::Sh => Box::new(sh::SourceHash::new(servers, flags, seed)),
        Kind::Sed => Box::new(sed::ShortestExpectedDelay::new(servers)),
        Kind::Nq => Box::new(nq::NeverQueue::new(servers)),
        Kind::Fo => Box::new(fo::Failover::new(servers)),
        Kind::Ovf => Box::new(ovf::Overflow::new(servers)),
        Kind::Mh => Box::new(mh::Maglev::new(servers, flags, seed)),
        Kind::Twos => Box::new(twos::TwoChoices::new(servers, seed)),
    }
}

/// The greatest common divisor; of zero and a number that number.
fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
