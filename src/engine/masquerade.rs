//! The engine's part in masquerades: flows that inside hosts begin, and those that are begun with them from outside. See
//! [`crate::forward::masquerade`] for mappings.
//!
//! A flow of a masquerade is one like any other. Its client is the inside host, whoever spoke first: the original tuple goes
//! from there to the remote end, the reply tuple from the remote end to the outside endpoint.
//!
//! What keeps a flow alive (RFC 4787 REQ-6, RFC 5382 REQ-5, RFC 7857 section 2):
//!
//! * what the inside host sends;
//! * what the other end sends, in a flow in which the inside host has sent something. That refreshes the mapping from outside as
//!   far as the inside host has agreed to talk;
//! * not what a stranger sends who got no answer, nor a RST that such a one is sent, not a RST to a connection that has been reset,
//!   and no ICMP error.
//!
//! Whether the inside host has sent in a flow is decided once, and [`Marks::ANSWERED`] says so: the mapping counts it for that. A
//! connection that somebody outside begins anew over the ports of one that is over has to be answered anew.
//!
//! # Hairpins
//!
//! What an inside host sends to an address of a pool comes in again, from the outside endpoint of its sender (RFC 4787 REQ-9a):
//! [`Marks::HAIRPIN`] says so of its flow. It is translated twice at most: the second time it goes to an inside endpoint, and what
//! goes there is delivered. A packet that would come in a third time is dropped.

use super::admit::next_random;
use super::rates::outside as outside_host;
use super::shard::place_of_former;
use super::{Engine, Refusal, Sharding, place_of, place_of_port, shard_of};
use crate::command::FlowChange;
use crate::flow::{Flow, FlowId, InsertError, Marks, Owner, Sender, TcpState, track};
use crate::forward::helper;
use crate::forward::masquerade::{Endpoint, Kind, MappingId, Unsolicited, Wanted};
use crate::service::{Filtering, Masquerade, Method, PoolUse, ServiceId, Snapshot};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, PacketBuf, Protocol, Transport, Tuple, View, tcp};

/// A flow that is about to begin.
pub(super) struct Planned {
    pub mapping: MappingId,
    pub original: Tuple,
    pub reply: Tuple,
    pub masquerade: ServiceId,
    pub opener: Sender,
}

impl Engine {
    /// A packet without a flow that goes out by a masquerade, or comes in to a mapping. `None`: it does neither.
    pub(super) fn masqueraded(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        tuple: &Tuple,
    ) -> Option<Result<(FlowId, Sender), Verdict>> {
        if !self.snapshot.pools.has_addresses() {
            return None;
        }
        let kind = Kind::of(tuple.protocol)?;
        let snapshot = self.snapshot.clone();
        if let Some(home) = self.home_of(&snapshot, tuple).or_else(|| self.home_after(&snapshot, tuple)) {
            return Some(Err(Verdict::Elsewhere(home)));
        }
        if let Some(masquerade) = masquerade_of(&snapshot, tuple) {
            let begun = self.go_out(now, buf, view, (masquerade, kind), tuple);
            return Some(begun.map(|id| (id, Sender::Client)));
        }
        let pool = snapshot.pools.of(tuple.dst).filter(|pool| pool.usage != PoolUse::Fullnat)?;
        if snapshot.service_for(tuple.dst, tuple.protocol, tuple.dport).is_some() {
            return None;
        }
        let masquerade = match pool.usage {
            PoolUse::Masquerade(id) => snapshot.pools.masquerade(id).map(AsRef::as_ref),
            _ => None,
        };
        let begun = self.come_in(now, buf, view, (masquerade, kind), tuple);
        Some(begun.map(|id| (id, Sender::Server)))
    }

    /// The shard of the inside host that a packet without a flow comes from, if that is another one: this one was asked first,
    /// since the host is a server as well.
    pub(super) fn home_of(&self, snapshot: &Snapshot, tuple: &Tuple) -> Option<u16> {
        let is_forwarded = snapshot.pools.is_forwarded_to(tuple.src) && !stays(snapshot, tuple);
        let is_inside = is_forwarded || masquerade_of(snapshot, tuple).is_some();
        let sharding = Sharding { seed: self.config.seed, shards: self.config.shards };
        let home = shard_of(tuple.src, sharding);
        (is_inside && self.config.shards > 1 && home != self.config.shard).then_some(home)
    }

    /// The shard of a packet without a flow whose sender was inside before a reload, if that is another one: this one was asked
    /// first, for flows that live since then.
    fn home_after(&self, snapshot: &Snapshot, tuple: &Tuple) -> Option<u16> {
        if masquerade_of(snapshot, tuple).is_some() || snapshot.pools.is_forwarded_to(tuple.src) {
            return None;
        }
        let sharding = Sharding { seed: self.config.seed, shards: self.config.shards };
        let home = place_of_former(snapshot, tuple, sharding)?;
        (self.config.shards > 1 && home != self.config.shard).then_some(home)
    }

    /// An inside host begins a flow.
    fn go_out(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        (masquerade, kind): (&Masquerade, Kind),
        tuple: &Tuple,
    ) -> Result<FlowId, Verdict> {
        let snapshot = self.snapshot.clone();
        if !may_begin(view) {
            return Err(self.refuse(now, buf, view, DropReason::NoFlow, Refusal::Closed, tuple.dst));
        }
        let gateway = own_address(&snapshot, masquerade, tuple.dst);
        if view.ttl <= 1 {
            return Err(self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, gateway));
        }
        self.may_begin(now, tuple.src, None).map_err(Verdict::Drop)?;
        let inside = (tuple.src, tuple.sport);
        self.make_room(now).map_err(Verdict::Drop)?;
        let mapping = match snapshot.pools.forward_from(inside, tuple.protocol) {
            Some(outside) => self.mappings.map_forward(inside, outside, kind, &snapshot.pools),
            None => {
                self.random = next_random(self.random);
                let wanted = Wanted { inside, kind, masquerade, pools: &snapshot.pools };
                self.mappings.map(now, &wanted, self.random)
            }
        };
        let mapping = mapping.and_then(|mapping| self.mappings.has_room(mapping, true).map(|()| mapping));
        let mapping = mapping.map_err(|reason| match reason {
            // RFC 5508 REQ-8.
            DropReason::PoolExhausted | DropReason::SourceLimit => {
                self.refuse(now, buf, view, reason, Refusal::Prohibited, gateway)
            }
            reason => Verdict::Drop(reason),
        })?;
        let outside = self.mappings.outside(mapping);
        let reply = Tuple { src: tuple.dst, sport: tuple.dport, dst: outside.0, dport: outside.1, ..*tuple };
        let (masquerade, opener) = (masquerade.id, Sender::Client);
        self.enter_masqueraded(now, &Planned { mapping, original: *tuple, reply, masquerade, opener })
    }

    /// Somebody outside begins a flow with an inside host.
    fn come_in(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        (masquerade, kind): (Option<&Masquerade>, Kind),
        tuple: &Tuple,
    ) -> Result<FlowId, Verdict> {
        if self.is_the_hosts(tuple, kind) {
            return Err(Verdict::Pass);
        }
        if !may_begin(view) {
            return Err(Verdict::Drop(DropReason::NoFlow));
        }
        let (outside, remote) = ((tuple.dst, tuple.dport), (tuple.src, tuple.sport));
        let forwarded = self.snapshot.pools.forward_to(outside, tuple.protocol);
        if forwarded.is_none()
            && let Err(reason) = self.lets_in(masquerade, kind, outside, remote)
        {
            self.note_unsolicited(now, buf, view, tuple);
            return Err(Verdict::Drop(reason));
        }
        if view.ttl <= 1 {
            return Err(self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, outside.0));
        }
        // It counts for who begins it: a stranger must not use up what the inside host may.
        self.may_begin(now, outside_host(tuple.src), None).map_err(Verdict::Drop)?;
        // What gives way may be what the mapping lived by.
        self.make_room(now).map_err(Verdict::Drop)?;
        let mapping = match forwarded {
            Some(inside) => {
                let snapshot = self.snapshot.clone();
                self.mappings.map_forward(inside, outside, kind, &snapshot.pools)
            }
            None => self.lets_in(masquerade, kind, outside, remote),
        };
        let mapping = mapping.map_err(Verdict::Drop)?;
        let inside = self.mappings.inside(mapping);
        let original = Tuple { src: inside.0, sport: inside.1, ..tuple.reversed() };
        let masquerade = masquerade.map_or(ServiceId::FORWARD, |masquerade| masquerade.id);
        self.enter_masqueraded(now, &Planned { mapping, original, reply: *tuple, masquerade, opener: Sender::Server })
    }

    /// Whether what comes to an address of a pool is nobody's but the host's that has the address as its own.
    pub(super) fn is_the_hosts(&self, tuple: &Tuple, kind: Kind) -> bool {
        let outside = (tuple.dst, tuple.dport);
        self.snapshot.is_local(tuple.dst)
            && self.snapshot.pools.forward_to(outside, tuple.protocol).is_none()
            && self.mappings.at_outside(outside, kind).is_none()
    }

    /// The mapping that a packet from outside may begin a flow by.
    pub(super) fn lets_in(
        &self,
        masquerade: Option<&Masquerade>,
        kind: Kind,
        outside: Endpoint,
        remote: Endpoint,
    ) -> Result<MappingId, DropReason> {
        let mapping = self.mappings.at_outside(outside, kind).ok_or(DropReason::NoMapping)?;
        let filtering = masquerade.map_or(Filtering::AddressPort, |masquerade| masquerade.spec.filtering);
        let is_let_in = match filtering {
            Filtering::Endpoint => true,
            Filtering::Address => self.mappings.has_peer(mapping, remote.0),
            // Whoever has been sent to has a flow.
            Filtering::AddressPort => false,
        };
        if !is_let_in {
            return Err(DropReason::Filtered);
        }
        if self.mappings.is_open(mapping) { Ok(mapping) } else { Err(DropReason::Unanswered) }
    }

    pub(super) fn enter_masqueraded(&mut self, now: Instant, planned: &Planned) -> Result<FlowId, Verdict> {
        let &Planned { mapping, mut original, mut reply, masquerade, opener } = planned;
        if let Err(reason) = self.mappings.has_room(mapping, opener == Sender::Client) {
            return Err(Verdict::Drop(reason));
        }
        // The identifier of a query stands for both ports, on each side its own (RFC 5508 section 3.2).
        if original.protocol.is_icmp() {
            (original.dport, reply.sport) = (original.sport, reply.dport);
        }
        let is_hairpin = self.snapshot.pools.is_mapped(original.dst);
        let mut marks = if is_hairpin { Marks::HAIRPIN } else { Marks::NONE };
        let by = self.snapshot.pools.masquerade(masquerade);
        if by.is_some_and(|by| helper::of_masquerade(by, &original, &reply).is_some()) {
            marks = marks.with(Marks::HELPED);
        }
        let method = Method::Masquerade as u8;
        let owner = Owner { service: masquerade.0, server: u32::MAX, method, one_way: false, marks };
        match self.table.insert(now, original, reply, owner, &self.snapshot.spec.timeouts) {
            Ok(id) => {
                self.table.set_mapping(id, mapping);
                self.mappings.start(mapping, opener == Sender::Client);
                if opener == Sender::Client {
                    self.note_answered(id);
                }
                if let Some(masquerade) = self.snapshot.pools.masquerade(masquerade) {
                    masquerade.state.start();
                }
                self.stats.flows_created += 1;
                Ok(id)
            }
            Err(error) => {
                self.mappings.discard(mapping);
                let reason = match error {
                    InsertError::Full => DropReason::TableFull,
                    InsertError::Taken(_) => DropReason::PortCollision,
                };
                Err(Verdict::Drop(reason))
            }
        }
    }

    /// The inside host has sent to the remote end of a flow, and its mapping counts it for that: it lets in what else comes from
    /// there.
    fn note_answered(&mut self, id: FlowId) {
        self.table.mark(id, Marks::ANSWERED);
        let flow = self.table.flow(id);
        let masquerade = self.snapshot.pools.masquerade(ServiceId(flow.owner.service));
        if masquerade.is_some_and(|masquerade| masquerade.spec.filtering == Filtering::Address) {
            self.mappings.note_peer(flow.mapping, flow.original().dst);
            self.table.mark(id, Marks::PEER);
        }
    }

    /// A packet from outside was not let in. If it is a SYN, its sender is told so later on.
    fn note_unsolicited(&mut self, now: Instant, buf: &PacketBuf, view: &View, tuple: &Tuple) {
        let max = self.snapshot.spec.limits.unsolicited_syns;
        if matches!(view.transport, Transport::Tcp(_)) && !self.unsolicited.note(now, tuple, view, buf.packet(), max) {
            self.stats.syns_unanswered += 1;
        }
    }

    /// Answers SYNs whose time has come, unless there is a flow by now.
    pub(super) fn answer_unsolicited(&mut self, now: Instant) {
        while let Some(Unsolicited { tuple, view, mut packet, .. }) = self.unsolicited.next(now) {
            if self.table.lookup(&tuple).is_some() {
                continue;
            }
            let (reason, refusal) = (DropReason::NoMapping, Refusal::PortUnreachable);
            if let Verdict::Refuse(_) = self.refuse(now, &mut packet, &view, reason, refusal, tuple.dst) {
                self.stats.refused += 1;
                match self.place_of_refusal(&packet) {
                    Some(shard) => {
                        packet.is_turned = true;
                        self.handed_over.push_back((shard, packet));
                    }
                    None => self.released.push_back(packet),
                }
            }
        }
        if !self.handed_over.is_empty() {
            self.take_back(now);
        }
    }

    /// Gives up what a flow of a masquerade has used.
    pub(super) fn end_masqueraded(&mut self, now: Instant, flow: &Flow) {
        let until = now + self.snapshot.spec.quarantine;
        if flow.owner.marks.has(Marks::PEER) {
            self.mappings.forget_peer(flow.mapping, flow.original().dst);
        }
        self.mappings.end(flow.mapping, flow.owner.marks.has(Marks::ANSWERED), until);
        if let Some(masquerade) = self.snapshot.pools.masquerade(ServiceId(flow.owner.service)) {
            masquerade.state.end();
        }
    }

    /// Notes what a packet means for a flow of a masquerade.
    pub(super) fn track_masqueraded(
        &mut self,
        now: Instant,
        id: FlowId,
        sender: Sender,
        view: &View,
        change: FlowChange,
    ) {
        let flow = self.table.flow(id);
        let (is_answered, mapping) = (flow.owner.marks.has(Marks::ANSWERED), flow.mapping);
        if let Transport::Tcp(segment) = &view.transport
            && segment.has(tcp::RST)
            && (!track::rst_is_plausible(flow, sender, segment) || flow.tcp_state == TcpState::Close)
        {
            self.table.count(id, sender, view.len);
            self.stats.rst_ignored += u64::from(flow_is_open(self.table.flow(id)));
            return;
        }
        let is_rst = matches!(&view.transport, Transport::Tcp(segment) if segment.has(tcp::RST));
        let answers = sender == Sender::Client && !is_answered && !is_rst;
        let keeps = is_answered || answers || change == FlowChange::New;
        let mark = |flow: &Flow| (flow.tcp_state, flow.replied, flow.assured);
        let note = |flow: &mut Flow| {
            let before = mark(flow);
            flow.count(sender, view.len);
            match &view.transport {
                Transport::Tcp(segment) => track::segment(flow, sender, segment),
                _ => {
                    flow.assured |= flow.replied && sender == Sender::Client;
                    // Whoever spoke first.
                    flow.replied = flow.packets.iter().all(|packets| *packets > 0);
                }
            }
            (before, mark(flow))
        };
        let timeouts = &self.snapshot.spec.timeouts;
        let (before, after) = match keeps {
            true => self.table.refresh(now, id, timeouts, note),
            false => self.table.note(now, id, timeouts, note),
        };
        if answers && self.mappings.answer(mapping) {
            self.note_answered(id);
        }
        if before != after || change == FlowChange::New {
            self.tell(now, change, id);
        }
    }

    /// A connection of an inside host that is over, and that somebody outside begins anew over the same ports: the flow goes
    /// on as that of the new one, which inside has not answered. One that inside did not answer either does not go on:
    /// [`is_unanswered_anew`].
    pub(super) fn renew_masqueraded(&mut self, now: Instant, id: FlowId, sender: Sender, segment: &tcp::Header) {
        let flow = self.table.flow(id);
        if sender == Sender::Server
            && segment.flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
            && is_masqueraded(flow)
            && matches!(flow.tcp_state, TcpState::TimeWait | TcpState::Close)
            && self.mappings.unanswer(flow.mapping)
        {
            if flow.owner.marks.has(Marks::PEER) {
                self.mappings.forget_peer(flow.mapping, flow.original().dst);
            }
            self.table.unmark(id, Marks::ANSWERED.with(Marks::PEER));
            self.table.refresh(now, id, &self.snapshot.spec.timeouts, track::forget_connection);
        }
    }

    /// Keeps the mapping of a flow that is to end, and in whose place another one may begin.
    pub(super) fn hold_mapping(&mut self, id: FlowId) -> Option<MappingId> {
        let flow = self.table.flow(id);
        let mapping = is_masqueraded(flow).then_some(flow.mapping)?;
        self.mappings.hold(mapping);
        Some(mapping)
    }

    pub(super) fn let_go_of_mapping(&mut self, now: Instant, mapping: MappingId) {
        self.mappings.let_go(mapping, now + self.snapshot.spec.quarantine);
    }

    /// The shard that a translated packet of this flow comes in to again; `None`: it goes out.
    pub(super) fn turns_to(&self, flow: &Flow, sender: Sender) -> Option<u16> {
        let is_turned = sender == Sender::Client && flow.owner.marks.has(Marks::HAIRPIN) && is_masqueraded(flow);
        let to = flow.reply();
        let sharding = Sharding { seed: self.config.seed, shards: self.config.shards };
        is_turned.then(|| place_of_port(&self.snapshot, (to.dst, to.src), (to.protocol, to.sport), sharding))
    }

    /// A translated packet goes to that shard, which may be this one.
    pub(super) fn turn(&self, buf: &mut PacketBuf, shard: u16) -> Verdict {
        if std::mem::replace(&mut buf.is_turned, true) {
            return Verdict::Drop(DropReason::Martian);
        }
        Verdict::Elsewhere(shard)
    }

    /// A packet that was turned is refused: what its sender is told goes to an outside endpoint, and so comes in again as well.
    pub(super) fn turn_refusal(&mut self, buf: &mut PacketBuf, reason: DropReason) -> Verdict {
        let refused = Verdict::Refuse(reason);
        let Some(shard) = self.place_of_refusal(buf) else { return refused };
        self.stats.count(refused);
        buf.is_turned = true;
        Verdict::Elsewhere(shard)
    }

    /// The shard of whom a refusal is for; `None`: it leaves.
    fn place_of_refusal(&self, refusal: &PacketBuf) -> Option<u16> {
        let view = View::parse(refusal.packet()).ok()?;
        let sharding = Sharding { seed: self.config.seed, shards: self.config.shards };
        self.snapshot.pools.is_mapped(view.dst).then(|| place_of(&self.snapshot, refusal, &view, sharding))
    }

    /// Panics when flows and mappings contradict each other; for tests.
    pub(super) fn check_mappings(&self) {
        let mut uses = std::collections::BTreeMap::new();
        let mut cursor = 0;
        while let Some((id, next)) = self.table.next_from(cursor) {
            let flow = self.table.flow(id);
            if is_masqueraded(flow) {
                uses.entry(flow.mapping).or_insert((0, 0)).0 += 1;
                let outside = self.mappings.outside(flow.mapping);
                assert_eq!((flow.reply().dst, flow.reply().dport), outside, "the mapping of {:?}", flow.original());
                let inside = (flow.original().src, flow.original().sport);
                assert_eq!(inside, self.mappings.inside(flow.mapping), "the mapping of {:?}", flow.original());
            }
            cursor = next;
        }
        for expectation in self.expectations().filter(|expectation| expectation.mapping != u32::MAX) {
            uses.entry(expectation.mapping).or_insert((0, 0)).1 += 1;
        }
        let mut cursor = 0;
        while let Some((mapping, next)) = self.mappings.next_from(cursor) {
            let known = self.mappings.known(mapping);
            assert_eq!(uses.remove(&mapping), Some((known.flows, known.holds)), "flows and holds of mapping {mapping}");
            cursor = next;
        }
        assert!(uses.is_empty(), "flows without a mapping: {uses:?}");
    }
}

/// Whether the flow is of a masquerade.
pub(super) fn is_masqueraded(flow: &Flow) -> bool {
    flow.owner.method == Method::Masquerade as u8
}

/// The masquerade that a packet without a flow goes out by. What is for a service, or for the gateway's host, does not; what is
/// for an inside host behind the same address does.
pub(super) fn masquerade_of<'a>(snapshot: &'a Snapshot, tuple: &Tuple) -> Option<&'a Masquerade> {
    let masquerade = snapshot.pools.masquerade_for(tuple.src, tuple.dst)?;
    let has_pool = masquerade.spec.prefix.is_none();
    (has_pool && !stays(snapshot, tuple)).then_some(masquerade)
}

/// Whether a packet is for a service, or for the gateway's host, for all that its destination tells.
fn stays(snapshot: &Snapshot, tuple: &Tuple) -> bool {
    let is_own =
        snapshot.is_vip(tuple.dst) || snapshot.is_local(tuple.dst) || snapshot.spec.own_addresses.contains(&tuple.dst);
    is_own && !snapshot.pools.leads_inside(tuple)
}

/// An address of the gateway's that an inside host can be answered from: one of the pool's, if there is one.
fn own_address(snapshot: &Snapshot, masquerade: &Masquerade, remote: Addr) -> Addr {
    let first = masquerade.pools[usize::from(!remote.is_v4())].first();
    first.and_then(|id| snapshot.pools.pool(*id)).map_or(remote, |pool| pool.address)
}

/// Whether a packet may begin a flow: of TCP a SYN only.
fn may_begin(view: &View) -> bool {
    match view.transport {
        Transport::Tcp(segment) => segment.has(tcp::SYN) && !segment.has(tcp::ACK),
        _ => true,
    }
}

/// Whether somebody outside begins a connection over the ports of one that is over, and that inside has not answered: that one
/// ends, and the new one is let in as any other. Else who goes on knocking would keep the mapping.
pub(super) fn is_unanswered_anew(flow: &Flow, sender: Sender, tcp_flags: u8) -> bool {
    sender == Sender::Server
        && tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
        && is_masqueraded(flow)
        && !flow.owner.marks.has(Marks::ANSWERED)
        && matches!(flow.tcp_state, TcpState::TimeWait | TcpState::Close)
}

fn flow_is_open(flow: &Flow) -> bool {
    flow.protocol == Protocol::TCP && flow.tcp_state != TcpState::Close
}
