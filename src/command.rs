//! What the control plane asks of an engine, and what the engine tells it: plain data.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::{Marks, Sender, TcpState};
use crate::service::{FlowPolicy, HelperKind, Method, Network, PoolId, ServerId, ServiceId, Snapshot};
use crate::time::Instant;
use crate::wire::{Addr, Protocol, Tuple};

/// A request to one shard's engine.
#[derive(Clone, Debug)]
pub enum Command {
    /// Forward by this snapshot from now on.
    Swap(Arc<Snapshot>),
    /// End the flows that match; an empty filter matches every flow. One call looks at [`DELETE_BUDGET`] places of the
    /// flow table at most, from place `cursor` on (0 to start), so that packets never wait for a million deletions.
    /// Flows that come between two calls may be missed.
    Delete { filter: FlowFilter, cursor: usize },
    /// Admit the flow of a probe: from the gateway's own address to a VIP, and to this very server, whatever its state.
    /// Its packets come by [`crate::engine::Engine::handle_probe`].
    Probe { original: Tuple, server: ServerId },
    /// The probe with this original tuple is over; nothing happens if there is none.
    EndProbe(Tuple),
    /// Do with the flows of these servers, which must be in ascending order, what the policy says; `None`: TCP is reset,
    /// all else is forgotten. What is to be sent comes out of [`crate::engine::Engine::poll_transmit`]. One call looks at
    /// [`DELETE_BUDGET`] places at most, from `cursor` on, and resets [`RESET_BUDGET`] flows at most. `extent` spares some.
    Evacuate { servers: Arc<[ServerId]>, policy: Option<FlowPolicy>, extent: Extent, cursor: usize },
    /// Record events for [`crate::engine::Engine::poll_event`], or stop doing so.
    Watch(bool),
}

/// Which flows a [`Command::Evacuate`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// When it began. Flows that have come since then go on: their server serves again, or its id is another one's by now.
    pub began: Instant,
    /// Asked of each server's state at each call, since it may change meanwhile.
    pub only: Only,
}

/// Of which servers flows are evacuated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Of all that are named.
    All,
    /// Of those that are down. Where passive checks alone say so, only what the server has not answered.
    Down,
    /// Of those that are being drained.
    Draining,
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// So many flows were ended by this call, and where to go on; `None` at the end of the table.
    Deleted {
        count: u64,
        next: Option<usize>,
    },
    /// The probe cannot begin.
    NotProbed(ProbeFault),
}

/// Why there is no flow for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFault {
    /// There is no such server any more.
    NoServer,
    /// Another flow has one of the tuples: try another source port.
    Taken,
    /// There are as many probes as there may be.
    Full,
    /// The pool of the server's service has no free port for it.
    NoPort,
}

/// Places of the flow table that one [`Command::Delete`] looks at.
pub const DELETE_BUDGET: usize = 4096;

/// Flows that one [`Command::Evacuate`] resets, with up to two packets each.
pub const RESET_BUDGET: usize = 256;

/// Packets and bytes (IP length, headers included) one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub packets: u64,
    pub bytes: u64,
}

impl Volume {
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// A flow as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    pub shard: u16,
    /// From the client to the VIP.
    pub original: Tuple,
    /// From the server back, before translation.
    pub reply: Tuple,
    /// `None` for protocols without states.
    pub tcp_state: Option<TcpState>,
    /// Until it expires, if no packet comes.
    pub remaining: Duration,
    pub age: Duration,
    /// A packet of the reply direction has been seen.
    pub replied: bool,
    /// Established for good: not evicted when the table is full.
    pub assured: bool,
    pub service: ServiceId,
    pub server: ServerId,
    pub method: Method,
    pub marks: Marks,
    pub to_server: Volume,
    pub to_client: Volume,
}

impl FlowRecord {
    /// The state as conntrack-tools names it; `None` for protocols without states. A client's unanswered SYN is
    /// SYN_SENT there, where the table of IPVS already calls it SYN_RECV.
    pub fn state_word(&self) -> Option<&'static str> {
        match self.tcp_state? {
            TcpState::SynRecv if !self.replied => Some(TcpState::SynSent.word()),
            state => Some(state.word()),
        }
    }
}

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    New,
    /// Its state, or one of the marks replied and assured, changed.
    Update,
    Destroy,
}

/// A flow that a helper has announced and that has not begun, as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectationRecord {
    pub shard: u16,
    /// What its first packet has; the source port is whatever the opener takes.
    pub protocol: Protocol,
    pub src: Addr,
    pub dst: Addr,
    pub dport: u16,
    /// Who will send that.
    pub opener: Sender,
    /// The original tuple of the flow that announced it, unless that has ended.
    pub by: Option<Tuple>,
    /// Ends of the flow that announced it, also when that has ended.
    pub client: Addr,
    pub vip: Addr,
    pub service: ServiceId,
    pub server: ServerId,
    pub method: Method,
    /// `None`: of a service or masquerade that reads that protocol no more.
    pub helper: Option<HelperKind>,
    /// Until it is forgotten.
    pub remaining: Duration,
}

/// A mapping of a masquerade as an operator sees it: an inside endpoint, and the outside one that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingRecord {
    pub shard: u16,
    /// The masquerade's.
    pub masquerade: ServiceId,
    pub protocol: Protocol,
    /// Address, and port or identifier.
    pub inside: (Addr, u16),
    pub outside: (Addr, u16),
    /// Ports that there are from these on: a forwarded range is told of as one, besides those of its ports that have flows.
    pub ports: u32,
    /// Flows that use it.
    pub flows: u32,
    /// Configured by `[[forward]]`.
    pub is_forward: bool,
    /// How long the longest-lived of its flows lives without a packet; zero for one without flows.
    pub remaining: Duration,
}

/// How much of a pool's address one shard uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRecord {
    pub shard: u16,
    pub pool: PoolId,
    /// Ports that are given away. A fullnat port counts once for each server that it is used with, a masquerade's once for
    /// each protocol.
    pub in_use: u64,
    /// Ports that wait until they may be used again.
    pub quarantined: u64,
    /// Ports that the shard could give away at most, counted in the same way over what it has used the address for so far.
    pub size: u64,
    /// How much is taken of what is taken most, be it towards one server or of one protocol, in thousandths: at 1000 that is
    /// exhausted, whatever is left elsewhere.
    pub fullest: u16,
}

impl PoolRecord {
    /// Without a port in use.
    pub fn unused(shard: u16, pool: PoolId) -> PoolRecord {
        PoolRecord { shard, pool, in_use: 0, quarantined: 0, size: 0, fullest: 0 }
    }

    /// Adds what the address is used for besides: ports in use, in quarantine, and in all.
    pub fn add(&mut self, (in_use, quarantined, size): (u64, u64, u64)) {
        self.in_use += in_use;
        self.quarantined += quarantined;
        self.size += size;
        let taken = (in_use + quarantined).min(size) * 1000 / size.max(1);
        self.fullest = self.fullest.max(taken as u16);
    }
}

/// What an engine has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub change: FlowChange,
    pub flow: FlowRecord,
}

/// Which flows. Every field that is set must match; all unset matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    pub protocol: Option<Protocol>,
    /// Source of the original direction, as a prefix length on an address.
    pub src: Option<(Addr, u8)>,
    /// Destination of the original direction.
    pub dst: Option<(Addr, u8)>,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    /// As [`FlowRecord::state_word`] has it.
    pub state: Option<String>,
    pub service: Option<ServiceId>,
    /// Any of these.
    pub server: Option<Vec<ServerId>>,
    pub method: Option<Method>,
}

impl FlowFilter {
    pub fn matches(&self, flow: &FlowRecord) -> bool {
        let is = |want: Option<u16>, have: u16| want.is_none_or(|want| want == have);
        let within = |want: Option<(Addr, u8)>, have: Addr| {
            want.is_none_or(|(address, len)| Network { address, len }.contains(have))
        };
        self.protocol.is_none_or(|p| p == flow.original.protocol)
            && within(self.src, flow.original.src)
            && within(self.dst, flow.original.dst)
            && is(self.sport, flow.original.sport)
            && is(self.dport, flow.original.dport)
            && self.state.as_deref().is_none_or(|s| flow.state_word() == Some(s))
            && self.service.is_none_or(|s| s == flow.service)
            && self.server.as_ref().is_none_or(|list| list.contains(&flow.server))
            && self.method.is_none_or(|m| m == flow.method)
    }
}
