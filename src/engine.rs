//! The whole data path.
//!
//! An [`Engine`] is one shard: it knows no device, no clock, no thread. Its caller gives it packets and the time, and does
//! what it answers. The methods come in four families:
//!
//! * `handle_*` takes a packet, one of the gateway's own probes, or the passing of time;
//! * `poll_*` asks for what came of it: packets that were held back, events, the time of the next deadline;
//! * `apply` carries out a [`Command`];
//! * the others read.
//!
//! Read [`Engine::handle_packet`] and the four functions below it, and you know the data path.

mod fragments;
mod helper;
mod probe;
mod shard;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::command::{Command, DELETE_BUDGET, Event, FlowChange, FlowFilter, FlowRecord, Outcome, Volume};
use crate::flow::{Flow, FlowId, FlowTable, Fragments, InsertError, Marks, Owner, Sender, track};
use crate::forward::refuse::{RateLimit, Refusal, is_answerable, refuse};
use crate::forward::{self, Action, Context, Obstacle, echo, icmp_error, tunnel_error};
use crate::service::{Method, Request, Server, ServerId, Service, ServiceId, Snapshot};
use crate::stats::{Stats, Traffic};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, PacketBuf, Protocol, Transport, Tuple, View, decrement_ttl, icmp, tcp};

pub use shard::{client_between, client_of, shard_of};

/// Flows that one call of [`Engine::handle_timeout`] looks at, at most.
const SWEEP: usize = 4096;
/// Events kept for a watcher that does not take them.
const MAX_EVENTS: usize = 65_536;
/// Source ports tried when another flow has the planned tuple.
const PORT_ATTEMPTS: u16 = 16;

/// What an engine is made with and keeps.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This engine's number among its siblings, from 0.
    pub shard: u16,
    /// Flows this engine may hold.
    pub max_flows: usize,
    /// Secret of the flow table's hash and of port choice; random in a daemon, fixed in tests.
    pub seed: [u64; 2],
}

/// One shard of the data path.
pub struct Engine {
    config: EngineConfig,
    snapshot: Arc<Snapshot>,
    table: FlowTable,
    fragments: Fragments,
    /// By [`ServerId`].
    traffic: Vec<Traffic>,
    refusals: RateLimit,
    random: u64,
    released: VecDeque<PacketBuf>,
    helpers: helper::Helpers,
    watched: bool,
    events: VecDeque<Event>,
    stats: Stats,
}

impl Engine {
    pub fn new(config: EngineConfig, snapshot: Arc<Snapshot>) -> Engine {
        Engine {
            table: FlowTable::new(config.max_flows, config.seed),
            fragments: Fragments::new(config.seed),
            traffic: vec![Traffic::default(); snapshot.server_ids()],
            refusals: RateLimit::new(snapshot.spec.limits.replies_per_second),
            random: config.seed[0] ^ config.seed[1].rotate_left(32) ^ u64::from(config.shard),
            released: VecDeque::new(),
            helpers: helper::Helpers::new(config.seed),
            watched: false,
            events: VecDeque::new(),
            stats: Stats::default(),
            config,
            snapshot,
        }
    }

    /// Decides on a packet and, where it is forwarded or answered, rewrites it in place.
    pub fn handle_packet(&mut self, now: Instant, buf: &mut PacketBuf) -> Verdict {
        match View::parse(buf.packet()) {
            Ok(view) => self.handle_parsed(now, buf, &view),
            Err(reason) => {
                self.stats.count(Verdict::Drop(reason));
                Verdict::Drop(reason)
            }
        }
    }

    /// As [`Engine::handle_packet`], for a packet whose `view` the caller has already.
    pub fn handle_parsed(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        buf.truncate(view.len);
        let verdict = match self.decide(now, buf, view) {
            // There is no host behind us that would know better.
            Verdict::Pass if self.snapshot.spec.is_hop => Verdict::Drop(DropReason::NotOurs),
            verdict => verdict,
        };
        self.stats.count(verdict);
        if view.fragment.is_some_and(|fragment| fragment.offset == 0) {
            self.note_first_fragment(now, buf, view, verdict);
        }
        verdict
    }

    fn decide(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        // A program on this host talks to a local VIP from that very address, and this host's kernel tells the gateway's
        // own address of servers that it cannot reach; everybody else's packet to itself is forged.
        let is_error = matches!(view.transport, Transport::Icmp(icmp::Kind::Error));
        let to_itself = view.src == view.dst
            && !(self.snapshot.is_local(view.dst) || is_error && self.snapshot.is_tunnel_source(view.dst));
        if view.src.is_martian_source() || view.dst.is_multicast_or_broadcast() || to_itself {
            return Verdict::Drop(DropReason::Martian);
        }
        match (view.transport, view.ports()) {
            (Transport::Tcp(_) | Transport::Udp(_), Some(tuple)) => self.forward(now, buf, view, &tuple),
            (Transport::Later, _) => self.follow_first_fragment(now, buf, view),
            (Transport::Icmp(icmp::Kind::Error), _) => self.translate_error(now, buf, view),
            _ if !self.is_ours(view.dst) => Verdict::Pass,
            (Transport::Icmp(icmp::Kind::EchoRequest { .. }), _) => {
                echo::answer(buf, view);
                Verdict::Reply
            }
            (Transport::Icmp(_), _) => Verdict::Drop(DropReason::UnsupportedIcmp),
            _ => Verdict::Drop(DropReason::UnsupportedProtocol),
        }
    }

    /// A TCP or UDP packet: the flow's translation is replayed; without a flow, one is admitted first.
    fn forward(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, tuple: &Tuple) -> Verdict {
        let found = self.table.lookup(tuple);
        if let Some((id, sender)) = found
            && self.table.flow(id).is_probe()
        {
            return self.answer_probe(now, buf, view, id, sender);
        }
        let known = found.filter(|&(id, sender)| !self.starts_anew(now, id, sender, view));
        let (id, sender, change) = match known {
            Some((id, sender)) => (id, sender, FlowChange::Update),
            None => match self.expected(now, view, tuple).unwrap_or_else(|| self.admit(now, buf, view, tuple)) {
                Ok((id, sender)) => (id, sender, FlowChange::New),
                Err(verdict) => return verdict,
            },
        };
        if view.ttl <= 1 {
            let vip = self.table.flow(id).original().dst;
            return self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, vip);
        }
        if self.table.flow(id).owner.marks.has(Marks::HELPED) {
            return self.forward_helped(now, buf, view, id, sender, change);
        }
        self.carry(now, buf, view, id, sender, change)
    }

    /// A packet of a flow that goes on: what it means is noted, and the flow's action replayed.
    #[inline]
    fn carry(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        sender: Sender,
        change: FlowChange,
    ) -> Verdict {
        self.track(now, id, sender, view, change);
        let flow = self.table.flow(id);
        let (action, server) = (forward::action(flow, sender), ServerId(flow.owner.server));
        self.act(now, buf, view, &action, server)
    }

    /// A packet without a flow: a service takes it, its scheduler picks a server, its method plans the translation.
    fn admit(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        tuple: &Tuple,
    ) -> Result<(FlowId, Sender), Verdict> {
        let snapshot = self.snapshot.clone();
        let Some(service) = snapshot.service_for(tuple.dst, tuple.protocol, tuple.dport) else {
            if !self.is_ours(tuple.dst) {
                return Err(Verdict::Pass);
            }
            return Err(self.refuse(now, buf, view, DropReason::NoService, Refusal::Closed, tuple.dst));
        };
        if let Transport::Tcp(segment) = view.transport
            && (!segment.has(tcp::SYN) || segment.has(tcp::ACK))
        {
            return Err(self.refuse(now, buf, view, DropReason::NoFlow, Refusal::Closed, tuple.dst));
        }
        if view.ttl <= 1 {
            return Err(self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, tuple.dst));
        }
        let Some(server) = service.pick(&request(now, tuple)) else {
            return Err(self.refuse(now, buf, view, DropReason::NoServer, Refusal::Closed, tuple.dst));
        };
        self.make_room(now)?;
        let id = self.insert(now, service, server, tuple).map_err(Verdict::Drop)?;
        server.start(self.table.flow(id).is_active());
        self.stats.flows_created += 1;
        Ok((id, Sender::Client))
    }

    /// Lets time pass: ends flows and fragments whose time is over, a bounded number at a time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut budget = SWEEP;
        while let Some(id) = self.table.next_expired(now, &self.snapshot.spec.timeouts, &mut budget) {
            self.end(now, id);
            self.stats.flows_expired += 1;
            if budget == 0 {
                break;
            }
        }
        self.stats.drops[DropReason::FragmentTimeout as usize] += self.fragments.expire(now);
        self.helpers.expectations.expire(now);
    }

    /// When [`Engine::handle_timeout`] has something to do, at the earliest; `None` while there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flows = self.table.next_deadline(&self.snapshot.spec.timeouts);
        let expected = self.helpers.expectations.next_deadline();
        flows.into_iter().chain(self.fragments.next_deadline()).chain(expected).min()
    }

    /// The next packet to send besides the one just handled: a fragment that was held until its first one came, or the rest of
    /// a packet that a helper made longer.
    pub fn poll_transmit(&mut self) -> Option<PacketBuf> {
        self.released.pop_front()
    }

    /// The next event, while a [`Command::Watch`] is in force.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn apply(&mut self, now: Instant, command: Command) -> Outcome {
        match command {
            Command::Swap(snapshot) => {
                self.end_probes_of_others(now, &snapshot);
                self.traffic.resize(self.traffic.len().max(snapshot.server_ids()), Traffic::default());
                self.forget_reused_ids(&snapshot);
                self.snapshot = snapshot;
                let bounds = self.fragment_bounds();
                let dropped = &mut self.stats.drops[DropReason::FragmentTableFull as usize];
                self.fragments.trim(bounds, dropped);
                self.helpers.expectations.trim(self.snapshot.spec.limits.expectations);
                Outcome::Done
            }
            Command::Watch(on) => {
                self.watched = on;
                self.events.clear();
                Outcome::Done
            }
            Command::Delete { filter, cursor } => self.delete(now, &filter, cursor),
            Command::Probe { original, server } => self.admit_probe(now, &original, server),
            Command::EndProbe(original) => self.end_probe(now, &original),
        }
    }

    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts a packet that was lost on its way out.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.stats.drops[reason as usize] += 1;
    }

    /// Flows of clients in the table, and how many it may hold. Probes have room of their own.
    pub fn occupancy(&self) -> (usize, usize) {
        (self.table.len() - self.table.probes().len(), self.table.max())
    }

    /// What a server has moved in this shard since it was configured.
    pub fn traffic(&self, server: ServerId) -> Traffic {
        self.traffic.get(server.0 as usize).copied().unwrap_or_default()
    }

    /// A slice of the flow table: at most `max` flows from `cursor` on (0 to start), and where to go on, `None` at the end.
    /// Flows that come or go between two calls may be missed or not; none is returned twice.
    pub fn flows(&self, now: Instant, cursor: usize, max: usize) -> (Vec<FlowRecord>, Option<usize>) {
        let mut records = Vec::new();
        let mut cursor = cursor;
        while let Some((id, next)) = self.table.next_from(cursor) {
            if records.len() == max {
                return (records, Some(cursor));
            }
            records.push(self.record(now, self.table.flow(id)));
            cursor = next;
        }
        (records, None)
    }

    /// The flow that a packet with this tuple belongs to, and who would have sent it.
    pub fn find(&self, now: Instant, tuple: &Tuple) -> Option<(FlowRecord, Sender)> {
        let (id, sender) = self.table.lookup(tuple)?;
        Some((self.record(now, self.table.flow(id)), sender))
    }

    /// Where the flow table is in memory, as addresses: for advice to the kernel, which the engine itself cannot give.
    pub fn memory(&mut self) -> [Range<usize>; 2] {
        self.table.memory()
    }

    /// Whether a full table could make room for a new flow.
    pub fn can_evict(&self) -> bool {
        self.table.eviction_candidate().is_some()
    }

    /// Panics when the engine contradicts itself; for tests.
    pub fn check_invariants(&mut self) {
        self.table.check_invariants();
        self.helpers.expectations.check_invariants();
        assert!(self.helpers.expectations.len() <= self.snapshot.spec.limits.expectations);
        assert!(self.fragments.len() <= self.snapshot.spec.limits.fragmented_packets);
        assert!(self.fragments.held_bytes() <= self.snapshot.spec.limits.held_fragment_bytes);
    }

    fn is_ours(&self, addr: Addr) -> bool {
        self.snapshot.is_ours(addr)
    }

    /// Ends a flow over whose ports a new connection starts.
    fn starts_anew(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View) -> bool {
        let Transport::Tcp(segment) = &view.transport else { return false };
        let anew =
            track::starts_anew(self.table.flow(id), sender, segment) || self.is_expected_anew(now, id, sender, segment);
        if anew {
            self.end(now, id);
            self.stats.flows_reused += 1;
        }
        anew
    }

    /// Notes what a packet means for its flow.
    fn track(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View, change: FlowChange) {
        let flow = self.table.flow(id);
        let server = flow.owner.server;
        let believed = match &view.transport {
            Transport::Tcp(segment) if segment.has(tcp::RST) => track::rst_is_plausible(flow, sender, segment),
            _ => true,
        };
        self.count_traffic(server, sender, view.len);
        if !believed {
            // It says nothing about the flow, not even that it lives.
            self.table.count(id, sender, view.len);
            self.stats.rst_ignored += 1;
            return;
        }
        let mark = |flow: &Flow| (flow.tcp_state, flow.replied, flow.assured);
        let (before, after, was_active, is_active) =
            self.table.refresh(now, id, &self.snapshot.spec.timeouts, |flow| {
                let (before, was_active) = (mark(flow), flow.is_active());
                flow.count(sender, view.len);
                match &view.transport {
                    Transport::Tcp(segment) => track::segment(flow, sender, segment),
                    _ => {
                        flow.assured |= flow.replied && sender == Sender::Client;
                        flow.replied |= sender == Sender::Server;
                    }
                }
                (before, mark(flow), was_active, flow.is_active())
            });
        if was_active != is_active
            && let Some(server) = self.snapshot.server(ServerId(server))
        {
            server.load.shift(is_active);
        }
        if before != after || change == FlowChange::New {
            self.tell(now, change, id);
        }
    }

    /// Does what a flow's method does to its packets, or tells their sender why not.
    #[inline]
    fn act(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, action: &Action, server: ServerId) -> Verdict {
        let server = self.snapshot.server(server).map(Arc::as_ref);
        let context = Context { now, spec: &self.snapshot.spec, server, is_probe: false };
        match forward::act(action, buf, view, context) {
            Ok(()) => Verdict::Forward,
            Err(Obstacle { reason, refusal: None }) => Verdict::Drop(reason),
            Err(Obstacle { reason, refusal: Some(refusal) }) => self.refuse(now, buf, view, reason, refusal, view.dst),
        }
    }

    /// An ICMP error: translated when it is about a packet of a flow.
    fn translate_error(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        let ours = self.is_ours(view.dst);
        let unknown = |reason| if ours { Verdict::Drop(reason) } else { Verdict::Pass };
        if view.fragment.is_some() {
            return unknown(DropReason::UnsupportedIcmp);
        }
        if self.snapshot.is_tunnel_source(view.dst)
            && let Some(verdict) = self.relay_tunnel_error(now, buf, view)
        {
            return verdict;
        }
        let quoted = match icmp_error::quoted(buf, view) {
            Ok(Some(quoted)) => quoted,
            Ok(None) => return unknown(DropReason::IcmpNoFlow),
            // Nobody wants it (RFC 5508 REQ-3); what only cannot be read may be of a kind that others know.
            Err(DropReason::BadIcmpChecksum) => return Verdict::Drop(DropReason::BadIcmpChecksum),
            Err(reason) => return unknown(reason),
        };
        let Some((id, sender)) = self.table.lookup(&quoted.reversed()) else {
            return unknown(DropReason::IcmpNoFlow);
        };
        if view.ttl <= 1 && self.snapshot.spec.is_hop {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        // It neither refreshes nor ends the flow (RFC 5382 REQ-10, RFC 4787 REQ-12).
        self.stats.icmp_errors += 1;
        let flow = self.table.flow(id);
        let forward = if flow.is_probe() && sender == Sender::Server { Verdict::Deliver } else { Verdict::Forward };
        if flow.owner.one_way {
            let (action, server) = (forward::action(flow, sender), ServerId(flow.owner.server));
            if let (Sender::Server, Some(server)) = (sender, self.snapshot.server(server)) {
                tunnel_error::learn_from_inside(now, server, buf.packet(), view);
            }
            return match self.act(now, buf, view, &action, server) {
                Verdict::Forward => forward,
                verdict => verdict,
            };
        }
        icmp_error::translate(buf, view, flow, sender, &quoted);
        if self.snapshot.spec.is_hop {
            decrement_ttl(buf.packet_mut());
        }
        forward
    }

    /// An ICMP error about one of the gateway's own outer packets: what it says of the way to the server is noted, and the
    /// client is told. `None`: it is about something else.
    fn relay_tunnel_error(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Option<Verdict> {
        let snapshot = self.snapshot.clone();
        let error = tunnel_error::read(buf, view, |port| snapshot.is_gue_port(port))?;
        let drop = |reason| Some(Verdict::Drop(reason));
        let Ok(error) = error else { return drop(DropReason::BadIcmpChecksum) };
        let about_it = |server: &&Arc<Server>| {
            (server.method, server.address, server.source) == (Method::Tunnel, error.outer_dst, Some(error.outer_src))
        };
        let Some((inner, sequence)) = error.inner else {
            let servers = snapshot.all_servers().filter(about_it);
            servers.for_each(|server| tunnel_error::note_unproven(now, server, &error));
            return drop(DropReason::IcmpNoFlow);
        };
        let Some((id, Sender::Client)) = self.table.lookup(&inner) else { return drop(DropReason::IcmpNoFlow) };
        let flow = self.table.flow(id);
        let relayed = if flow.is_probe() { Verdict::Deliver } else { Verdict::Forward };
        let can_be = sequence.is_none_or(|sequence| track::client_sent(flow, sequence));
        let server = snapshot.server(ServerId(flow.owner.server)).filter(about_it);
        let Some(server) = server.filter(|_| can_be) else { return drop(DropReason::IcmpNoFlow) };
        self.stats.icmp_errors += 1;
        let Some(refusal) = tunnel_error::note(now, server, &error) else { return drop(DropReason::UnsupportedIcmp) };
        buf.advance(error.inner_at);
        let Ok((inner, _)) = View::parse_quoted(buf.packet()) else { return drop(DropReason::IcmpNoFlow) };
        // What follows the quoted packet (RFC 4884) is about the outer one.
        buf.truncate(inner.len);
        Some(match self.refuse(now, buf, &inner, DropReason::IcmpNoFlow, refusal, inner.dst) {
            Verdict::Refuse(_) => relayed,
            verdict => verdict,
        })
    }

    /// Drops a packet with an answer to its sender, if the rate limit and the rules of ICMP let it have one.
    fn refuse(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        reason: DropReason,
        refusal: Refusal,
        from: Addr,
    ) -> Verdict {
        if !is_answerable(view, refusal) {
            return Verdict::Drop(reason);
        }
        if !self.refusals.allows(now, self.snapshot.spec.limits.replies_per_second) {
            self.stats.refusals_limited += 1;
            return Verdict::Drop(reason);
        }
        if refuse(buf, view, refusal, from) { Verdict::Refuse(reason) } else { Verdict::Drop(reason) }
    }

    /// At the limit, the oldest half-open flow gives way, or else the oldest finished one.
    fn make_room(&mut self, now: Instant) -> Result<(), Verdict> {
        if !self.table.is_full() {
            return Ok(());
        }
        let id = self.table.eviction_candidate().ok_or(Verdict::Drop(DropReason::TableFull))?;
        self.end(now, id);
        self.stats.flows_evicted += 1;
        Ok(())
    }

    fn insert(
        &mut self,
        now: Instant,
        service: &Service,
        server: &Server,
        original: &Tuple,
    ) -> Result<FlowId, DropReason> {
        let owner = Owner {
            service: service.id.0,
            server: server.id.0,
            method: server.method as u8,
            one_way: server.method.is_one_way(),
            marks: forward::helper::marks(service, server),
        };
        let planned = forward::plan(service, server, original);
        let mut reply = planned;
        for attempt in 0..=PORT_ATTEMPTS {
            match self.table.insert(now, *original, reply, owner, &self.snapshot.spec.timeouts) {
                Ok(id) => return Ok(id),
                Err(InsertError::Full) => return Err(DropReason::TableFull),
                Err(InsertError::Taken(_)) => {
                    if attempt == 0 {
                        self.random = next_random(self.random);
                    }
                    reply =
                        forward::plan_again(server, planned, self.random, attempt).ok_or(DropReason::PortCollision)?;
                }
            }
        }
        Err(DropReason::PortCollision)
    }

    /// Takes a flow out of the table and off its server.
    fn end(&mut self, now: Instant, id: FlowId) {
        self.tell(now, FlowChange::Destroy, id);
        let flow = self.table.remove(id);
        if flow.owner.marks.has(Marks::HELPED) {
            self.helpers.forget(id);
        }
        // A probe is no load.
        if !flow.is_probe()
            && let Some(server) = self.snapshot.server(ServerId(flow.owner.server))
        {
            server.end(flow.is_active());
        }
    }

    fn delete(&mut self, now: Instant, filter: &FlowFilter, cursor: usize) -> Outcome {
        let end = cursor.saturating_add(DELETE_BUDGET).min(self.table.places());
        let mut count = 0;
        for place in cursor..end {
            if let Some(id) = self.table.at(place)
                && filter.matches(&self.record(now, self.table.flow(id)))
            {
                self.end(now, id);
                count += 1;
            }
        }
        self.stats.flows_deleted += count;
        Outcome::Deleted { count, next: (end < self.table.places()).then_some(end) }
    }

    fn count_traffic(&mut self, server: u32, sender: Sender, bytes: usize) {
        if let Some(traffic) = self.traffic.get_mut(server as usize) {
            match sender {
                Sender::Client => traffic.to_server.add(bytes),
                Sender::Server => traffic.to_client.add(bytes),
            }
        }
    }

    /// An id that now names another server starts at zero.
    fn forget_reused_ids(&mut self, next: &Snapshot) {
        for (number, traffic) in self.traffic.iter_mut().enumerate() {
            let load = |snapshot: &Snapshot| snapshot.server(ServerId(number as u32)).map(|s| Arc::as_ptr(&s.load));
            if load(next) != load(&self.snapshot) {
                *traffic = Traffic::default();
            }
        }
    }

    fn tell(&mut self, now: Instant, change: FlowChange, id: FlowId) {
        // Probes come and go every moment, and are nobody's connections.
        if !self.watched || self.table.flow(id).is_probe() {
            return;
        }
        if self.events.len() == MAX_EVENTS {
            self.stats.events_lost += 1;
            return;
        }
        let flow = self.record(now, self.table.flow(id));
        self.events.push_back(Event { change, flow });
    }

    fn record(&self, now: Instant, flow: &Flow) -> FlowRecord {
        let volume =
            |sender: Sender| Volume { packets: flow.packets[sender as usize], bytes: flow.bytes[sender as usize] };
        let timeout: Duration = flow.timeout(&self.snapshot.spec.timeouts);
        FlowRecord {
            shard: self.config.shard,
            original: flow.original(),
            reply: flow.reply(),
            tcp_state: (flow.protocol == Protocol::TCP).then_some(flow.tcp_state),
            remaining: (flow.seen + timeout) - now,
            age: now - flow.created,
            replied: flow.replied,
            assured: flow.assured,
            service: ServiceId(flow.owner.service),
            server: ServerId(flow.owner.server),
            method: Method::numbered(flow.owner.method),
            marks: flow.owner.marks,
            to_server: volume(Sender::Client),
            to_client: volume(Sender::Server),
        }
    }
}

/// What a scheduler may go by for the first packet of a flow.
pub(crate) fn request(now: Instant, tuple: &Tuple) -> Request {
    let &Tuple { src: client, sport: client_port, dst: vip, dport: port, .. } = tuple;
    Request { now, client, client_port, vip, port, is_urgent: false }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for choosing a port nobody profits from guessing.
fn next_random(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
