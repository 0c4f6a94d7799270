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
//! Read [`Engine::handle_packet`] and what stands below it, down to `admit`, and you know the data path: `decide` tells what a
//! packet is, `forward` looks for its flow, `carry` replays that flow's action, `begin` and `admit` have a new one.

mod admit;
mod errors;
mod expected;
mod fragments;
mod helper;
mod lost;
mod mappings;
mod masquerade;
mod npt;
mod one_packet;
mod passive;
mod pools;
mod probe;
mod rates;
mod shard;
mod shift;
mod syn_proxy;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::command::{Command, DELETE_BUDGET, Event, FlowChange, FlowFilter, FlowRecord, Outcome, Volume};
use crate::flow::{Fate as FragmentFate, Flow, FlowId, FlowTable, Fragments, MAX_PROBES, Marks, Sender, track};
use crate::forward::fullnat::Lanes;
use crate::forward::masquerade::{Mappings, UnsolicitedSyns};
use crate::forward::refuse::{RateLimit, Refusal, is_answerable, refuse};
use crate::forward::{self, Action, Context, Obstacle, echo};
use crate::service::{Method, ServerId, ServiceId, Snapshot};
use crate::stats::{Stats, Traffic};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, PacketBuf, Protocol, Transport, Tuple, View, icmp, tcp};

pub(crate) use admit::request;
pub(crate) use lost::Fate;
use lost::Meeting;
pub use mappings::ForeseenMapping;
use masquerade::is_masqueraded;
use passive::Held;
pub(crate) use rates::outside;
pub use shard::{Sharding, client_between, place_between, place_of, place_of_port, shard_of};

/// Times that one shard takes up a packet again that goes out from one inside host to another.
const MAX_ROUNDS: usize = 3;
/// Flows that one call of [`Engine::handle_timeout`] looks at, at most.
const SWEEP: usize = 4096;
/// Ports that may be in quarantine at a time, however few flows there may be.
const MIN_QUARANTINE: usize = 1 << 16;
/// Events kept for a watcher that does not take them.
const MAX_EVENTS: usize = 65_536;

/// What an engine is made with and keeps.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This engine's number among its siblings, from 0.
    pub shard: u16,
    /// How many siblings there are, itself included.
    pub shards: u16,
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
    /// Packets that another shard is to decide on.
    handed_over: VecDeque<(u16, PacketBuf)>,
    helpers: helper::Helpers,
    mappings: Mappings,
    unsolicited: UnsolicitedSyns,
    clients: rates::ClientRates,
    proxy: syn_proxy::Proxy,
    /// What became of the first fragment just handled, where it is no flow's.
    alone: Option<FragmentFate>,
    lanes: Lanes,
    held: Vec<Held>,
    watched: bool,
    events: VecDeque<Event>,
    stats: Stats,
}

impl Engine {
    pub fn new(config: EngineConfig, snapshot: Arc<Snapshot>) -> Engine {
        let engine = Engine {
            table: FlowTable::new(config.max_flows, config.seed),
            fragments: Fragments::new(config.seed, (config.shard, config.shards)),
            traffic: vec![Traffic::default(); snapshot.server_ids()],
            refusals: RateLimit::new(snapshot.spec.limits.replies_per_second),
            random: config.seed[0] ^ config.seed[1].rotate_left(32) ^ u64::from(config.shard),
            released: VecDeque::new(),
            handed_over: VecDeque::new(),
            helpers: helper::Helpers::new(&config),
            mappings: Mappings::new(config.max_flows, config.shard, config.shards, config.seed),
            unsolicited: UnsolicitedSyns::new(config.seed),
            clients: rates::ClientRates::new(config.seed),
            proxy: syn_proxy::Proxy::new(config.seed),
            alone: None,
            lanes: Lanes::new(
                (config.shard, config.shards),
                config.seed,
                config.max_flows + MAX_PROBES,
                config.max_flows.max(MIN_QUARANTINE),
            ),
            held: Vec::new(),
            watched: false,
            events: VecDeque::new(),
            stats: Stats::default(),
            config,
            snapshot,
        };
        engine.settle();
        engine
    }

    /// Decides on a packet and, where it is forwarded or answered, rewrites it in place.
    pub fn handle_packet(&mut self, now: Instant, buf: &mut PacketBuf) -> Verdict {
        match View::parse(buf.packet()) {
            Ok(view) => self.handle_parsed(now, buf, &view),
            Err(reason) => self.dropped(reason),
        }
    }

    /// As [`Engine::handle_packet`], for a packet whose `view` the caller has already.
    pub fn handle_parsed(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        let mut verdict = self.handle_once(now, buf, view);
        // What goes out from one inside host to another comes in by the same shard.
        for round in 0.. {
            if verdict != Verdict::Elsewhere(self.config.shard) {
                break;
            }
            verdict = match View::parse(buf.packet()) {
                Ok(view) if round < MAX_ROUNDS => self.handle_once(now, buf, &view),
                Ok(_) => self.dropped(DropReason::NotOurs),
                Err(reason) => self.dropped(reason),
            };
        }
        if !self.handed_over.is_empty() {
            self.take_back(now);
        }
        verdict
    }

    fn dropped(&mut self, reason: DropReason) -> Verdict {
        self.count_drop(reason);
        Verdict::Drop(reason)
    }

    fn handle_once(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        buf.truncate(view.len);
        let was_turned = buf.is_turned;
        let decided = self.decide(now, buf, view);
        let verdict = match decided {
            Verdict::Pass => self.pass(now, buf, view),
            Verdict::Refuse(reason) if was_turned => self.turn_refusal(buf, reason),
            verdict => verdict,
        };
        self.stats.count(verdict);
        if view.fragment.is_some_and(|fragment| fragment.offset == 0) {
            self.note_first_fragment(now, buf, view, decided);
        }
        verdict
    }

    /// What is no flow's and no service's.
    fn pass(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        match self.translate_prefix_at_last(now, buf, view) {
            Some(verdict) => verdict,
            // There is no host behind us that would know better.
            None if self.snapshot.spec.is_hop => Verdict::Drop(DropReason::NotOurs),
            None => Verdict::Pass,
        }
    }

    fn decide(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        // A program on this host talks to a local VIP from that very address, and this host's kernel tells the gateway's
        // own address of servers that it cannot reach; everybody else's packet to itself is forged.
        let is_error = matches!(view.transport, Transport::Icmp(icmp::Kind::Error));
        let to_itself = view.src == view.dst
            && !buf.is_turned
            && !(self.snapshot.is_local(view.dst) || is_error && self.snapshot.is_tunnel_source(view.dst));
        if view.src.is_martian_source() || view.dst.is_martian_destination() || to_itself {
            return Verdict::Drop(DropReason::Martian);
        }
        if view.fragment.is_some()
            && let Some(verdict) = self.refuse_fragment(now, view)
        {
            return verdict;
        }
        if view.fragment.is_some()
            && let Some(shard) = view.ports().and_then(|tuple| self.owner_elsewhere(&tuple))
        {
            // Its later fragments, which have no port, come to this shard as well.
            return Verdict::Elsewhere(shard);
        }
        if let Some(verdict) = self.translate_prefix(now, buf, view) {
            return verdict;
        }
        match (view.transport, view.ports()) {
            (Transport::Tcp(_) | Transport::Udp(_), Some(tuple)) => self.forward(now, buf, view, &tuple),
            (Transport::Later, _) => self.follow_first_fragment(now, buf, view),
            (Transport::Icmp(icmp::Kind::Error), _) => self.translate_error(now, buf, view),
            (Transport::Icmp(icmp::Kind::EchoRequest { .. }), _) if self.is_ours(view.dst) => {
                if self.is_spoofed(view.src, view.dst) {
                    return Verdict::Drop(DropReason::SpoofedSource);
                }
                echo::answer(buf, view);
                Verdict::Reply
            }
            (Transport::Icmp(kind), Some(tuple)) if self.is_query(kind, &tuple) => self.forward(now, buf, view, &tuple),
            _ if !self.is_ours(view.dst) && !self.leaves_by_pool(view.src, view.dst) => Verdict::Pass,
            (Transport::Icmp(_), _) => Verdict::Drop(DropReason::UnsupportedIcmp),
            _ => Verdict::Drop(DropReason::UnsupportedProtocol),
        }
    }

    /// A TCP or UDP packet, or an ICMP query or answer to one: the flow's translation is replayed; without a flow, one is
    /// admitted first.
    fn forward(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, tuple: &Tuple) -> Verdict {
        let found = self.table.lookup(tuple);
        if let Some((id, sender)) = found
            && self.table.flow(id).is_probe()
        {
            return self.answer_probe(now, buf, view, id, sender);
        }
        // Between two addresses of pools there is nothing but what the gateway itself has turned back.
        if let Some((id, sender)) = found
            && !buf.is_turned
            && self.is_turned_back(id, sender)
        {
            return Verdict::Drop(DropReason::SpoofedSource);
        }
        let known = found.map(|(id, sender)| (id, sender, self.meet(now, id, sender, view)));
        let (id, sender, change) = match known {
            Some((id, sender, Meeting::GoesOn)) => (id, sender, FlowChange::Update),
            Some((.., Meeting::Over(reason))) => return Verdict::Drop(reason),
            Some((.., Meeting::Anew(_))) | None => {
                let begun = self.begin(now, buf, view, tuple);
                if let Some((.., Meeting::Anew(Some(mapping)))) = known {
                    self.let_go_of_mapping(now, mapping);
                }
                match begun {
                    Ok((id, sender)) => (id, sender, FlowChange::New),
                    Err(verdict) => return verdict,
                }
            }
        };
        if view.ttl <= 1 {
            let flow = self.table.flow(id);
            let vip = if is_masqueraded(flow) { flow.reply().dst } else { flow.original().dst };
            return self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, vip);
        }
        if self.table.flow(id).owner.marks.has(Marks::HELPED.with(Marks::SHIFTED)) {
            return self.forward_altered(now, buf, view, id, sender, change);
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
        let turns_to = self.turns_to(flow, sender);
        match (self.act(now, buf, view, &action, server), turns_to) {
            (Verdict::Forward, Some(shard)) => self.turn(buf, shard),
            (verdict, _) => verdict,
        }
    }

    /// A packet without a flow: a helper expects it, a masquerade takes it out or in, or it is for a service.
    fn begin(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        tuple: &Tuple,
    ) -> Result<(FlowId, Sender), Verdict> {
        // What comes from inside by way of the outside address has been seen here as it came.
        if !buf.is_turned && self.is_spoofed(tuple.src, tuple.dst) {
            return Err(Verdict::Drop(DropReason::SpoofedSource));
        }
        if let Some(begun) = self.expected(now, view, tuple) {
            return begun;
        }
        match self.masqueraded(now, buf, view, tuple) {
            Some(begun) => begun,
            None => self.admit(now, buf, view, tuple).map(|id| (id, Sender::Client)),
        }
    }

    /// A packet without a flow: a service takes it, a server is picked for it, its method plans the translation.
    fn admit(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, tuple: &Tuple) -> Result<FlowId, Verdict> {
        let snapshot = self.snapshot.clone();
        let Some(service) = snapshot.service_for(tuple.dst, tuple.protocol, tuple.dport) else {
            if !self.is_ours(tuple.dst) {
                return Err(self.answer_alone(now, buf, view, tuple).unwrap_or(Verdict::Pass));
            }
            return Err(self.refuse(now, buf, view, DropReason::NoService, Refusal::Closed, tuple.dst));
        };
        if let Transport::Tcp(segment) = view.transport
            && (!segment.has(tcp::SYN) || segment.has(tcp::ACK))
        {
            return Err(match self.proof(now, buf, view, tuple, service) {
                Some(offer) => self.open(now, buf, view, (service, offer)),
                None => self.refuse(now, buf, view, DropReason::NoFlow, Refusal::Closed, tuple.dst),
            });
        }
        if view.ttl <= 1 {
            return Err(self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, tuple.dst));
        }
        if Engine::is_stuck(service, buf, view) {
            return Err(Verdict::Drop(DropReason::Unreadable));
        }
        if tuple.protocol == Protocol::TCP && self.wants_proof(now, service) {
            return Err(self.answer_syn(now, buf, view, service));
        }
        let alone = service.spec.one_packet && tuple.protocol == Protocol::UDP;
        if !alone {
            self.may_begin(now, rates::outside(tuple.src), Some(service)).map_err(Verdict::Drop)?;
        }
        match service.pick(&request(now, tuple), !alone) {
            Ok(picked) if alone => Err(self.forward_alone(now, buf, view, (service, picked.server), tuple)),
            Ok(picked) => {
                let id = self.enter(now, service, picked, tuple).map_err(Verdict::Drop)?;
                self.doubt_syn(id, service, buf, view);
                Ok(id)
            }
            Err(reason) => Err(self.refuse(now, buf, view, reason, Refusal::Closed, tuple.dst)),
        }
    }

    /// Lets time pass: ends flows and fragments whose time is over, a bounded number at a time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut budget = SWEEP;
        while let Some(id) = self.table.next_expired(now, &self.snapshot.spec.timeouts, &mut budget) {
            self.judge_expired(now, id);
            self.end(now, id);
            self.stats.flows_expired += 1;
            if budget == 0 {
                break;
            }
        }
        self.lanes.expire(now, self.snapshot.spec.quarantine, SWEEP);
        self.stats.drops[DropReason::FragmentTimeout as usize] += self.fragments.expire(now);
        self.helpers.expectations.expire(now);
        self.leave_expected(now);
        self.mappings.release(now, SWEEP);
        self.answer_unsolicited(now);
        self.raise_held(now);
        let mut budget = SWEEP;
        self.snapshot.persisted().iter().for_each(|clients| clients.expire(now, &mut budget));
    }

    /// When [`Engine::handle_timeout`] has something to do, at the earliest; `None` while there is nothing to wait for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flows = self.table.next_deadline(&self.snapshot.spec.timeouts);
        let expected = self.helpers.expectations.next_deadline();
        let clients = self.snapshot.persisted().iter().filter_map(|clients| clients.next_deadline());
        let ports = self.lanes.next_deadline(self.snapshot.spec.quarantine);
        let others =
            clients.chain(expected).chain(self.next_raise()).chain(ports).chain(self.unsolicited.next_deadline());
        flows.into_iter().chain(self.fragments.next_deadline()).chain(others).min()
    }

    /// The next packet to send besides the one just handled: a fragment that was held until its first one came, the rest of
    /// a packet that a helper made longer, a RST for one end of a flow whose server is gone, an answer
    /// to a SYN that had to wait.
    pub fn poll_transmit(&mut self) -> Option<PacketBuf> {
        self.released.pop_front()
    }

    /// The next packet that another shard is to decide on, after the one just handled: a fragment whose first one came.
    pub fn poll_handover(&mut self) -> Option<(u16, PacketBuf)> {
        self.handed_over.pop_front()
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
                self.settle();
                self.mappings.settle(&self.snapshot.pools);
                let bounds = self.fragment_bounds();
                let dropped = &mut self.stats.drops[DropReason::FragmentTableFull as usize];
                self.fragments.trim(bounds, dropped);
                self.helpers.expectations.trim(self.snapshot.spec.limits.expectations);
                self.leave_expected(now);
                self.stats.syns_unanswered += self.unsolicited.trim(self.snapshot.spec.limits.unsolicited_syns);
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
            Command::Evacuate { servers, policy, extent, cursor } => {
                self.evacuate(now, &servers, (policy, extent), cursor)
            }
        }
    }

    /// How this shard is told from its siblings.
    pub fn sharding(&self) -> Sharding {
        Sharding { seed: self.config.seed, shards: self.config.shards }
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
        self.snapshot.persisted().iter().for_each(|clients| clients.check_invariants());
        assert!(self.alone.is_none(), "a fragment's fate was not noted");
        assert!(self.held.len() <= self.snapshot.server_ids(), "more servers held down than there are");
        self.check_lanes();
        self.helpers.expectations.check_invariants();
        self.mappings.check_invariants();
        self.check_mappings();
        assert!(self.unsolicited.len() <= self.snapshot.spec.limits.unsolicited_syns);
        assert!(self.helpers.expectations.len() <= self.snapshot.spec.limits.expectations);
        self.fragments.check_invariants();
        assert!(self.fragments.len() <= self.snapshot.spec.limits.fragmented_packets);
        assert!(self.fragments.held_bytes() <= self.snapshot.spec.limits.held_fragment_bytes);
    }

    /// What a snapshot leaves to whoever puts it in force, since it may never be: all shards do the same.
    fn settle(&self) {
        for clients in self.snapshot.persisted() {
            clients.prepare(self.config.seed, self.snapshot.spec.limits.persistent_clients);
        }
        self.snapshot.all_servers().for_each(|server| server.note_load());
    }

    /// Whether nobody but the gateway itself sends as `src`. A server that holds a VIP answers under it (`direct`, `tunnel`),
    /// and may do so by way of the gateway; but it asks the gateway nothing.
    pub(crate) fn is_spoofed(&self, src: Addr, dst: Addr) -> bool {
        let snapshot = &self.snapshot;
        let is_own = || {
            snapshot.pools.of(src).is_some() || snapshot.is_vip(src) && (snapshot.is_vip(dst) || snapshot.is_ours(dst))
        };
        is_own() && !snapshot.is_local(src)
    }

    /// Whether what `sender` sends in this flow has been turned back before it comes here.
    #[inline]
    fn is_turned_back(&self, id: FlowId, sender: Sender) -> bool {
        sender == Sender::Server && self.table.flow(id).owner.marks.has(Marks::HAIRPIN)
    }

    fn is_ours(&self, addr: Addr) -> bool {
        self.snapshot.is_ours(addr)
    }

    /// Notes what a packet means for its flow.
    fn track(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View, change: FlowChange) {
        let flow = self.table.flow(id);
        if is_masqueraded(flow) {
            return self.track_masqueraded(now, id, sender, view, change);
        }
        let (server, was_unanswered) = (flow.owner.server, flow.is_unanswered());
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
        let (before, after, was_active, is_active, is_noted) =
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
                let after = mark(flow);
                (before, after, was_active, flow.is_active(), pools::is_noted(flow, before != after))
            });
        if is_noted {
            self.note_standing(id);
        }
        if was_active != is_active
            && let Some(server) = self.snapshot.server(ServerId(server))
        {
            server.load.shift(is_active);
        }
        if before != after && was_unanswered {
            self.judge(now, id, sender, view);
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

    /// Takes a flow out of the table and off its server.
    fn end(&mut self, now: Instant, id: FlowId) {
        let flow = self.take_out(now, id);
        self.leave_port(now, &flow);
    }

    /// The same, but the flow's port of a pool, if it has one, stays taken.
    fn take_out(&mut self, now: Instant, id: FlowId) -> Flow {
        self.tell(now, FlowChange::Destroy, id);
        self.unlist(id);
        let flow = self.table.remove(id);
        if flow.owner.marks.has(Marks::HELPED) {
            self.helpers.forget(id);
        }
        if is_masqueraded(&flow) {
            self.end_masqueraded(now, &flow);
            return flow;
        }
        // A probe is no load.
        if flow.is_probe() {
            return flow;
        }
        let Some(server) = self.snapshot.server(ServerId(flow.owner.server)) else { return flow };
        server.end(flow.is_active());
        if flow.owner.marks.has(Marks::PERSISTENT)
            && let Some(service) = self.snapshot.service(ServiceId(flow.owner.service))
        {
            service.release(flow.original().src, server, flow.created);
        }
        flow
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
