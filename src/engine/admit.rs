//! The engine's part in new flows: who serves, and what makes room.

use super::Engine;
use super::lost::Meeting;
use super::masquerade::is_unanswered_anew;
use crate::flow::{FlowId, InsertError, Marks, Owner, Sender, track};
use crate::forward;
use crate::service::{Method, Picked, Request, Server, ServerId, Service};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Protocol, Transport, Tuple, View, tcp};

/// Source ports tried when another flow has the planned tuple.
pub(super) const PORT_ATTEMPTS: u16 = 16;

impl Engine {
    /// What becomes of a packet that came for this flow: a SYN may start a new connection over the same ports, and
    /// the flow's server may be down.
    #[inline]
    pub(super) fn meet(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View) -> Meeting {
        if let Transport::Tcp(segment) = &view.transport
            && segment.has(tcp::SYN)
        {
            if let Some(meeting) = self.meet_start(now, id, sender, segment) {
                return meeting;
            }
            self.renew_masqueraded(now, id, sender, segment);
        }
        let server = ServerId(self.table.flow(id).owner.server);
        if self.snapshot.server(server).is_some_and(|server| !server.state.is_up()) {
            return self.meet_lost(now, id, sender, view);
        }
        Meeting::GoesOn
    }

    /// Ends a flow over whose ports a new connection starts.
    fn meet_start(&mut self, now: Instant, id: FlowId, sender: Sender, segment: &tcp::Header) -> Option<Meeting> {
        if self.is_over_for(now, id, sender, segment.flags) {
            let held = self.hold_mapping(id);
            self.end(now, id);
            self.stats.flows_reused += 1;
            return Some(Meeting::Anew(held));
        }
        // While it is opening, the gateway sees to the SYNs itself.
        if sender == Sender::Client && !segment.has(tcp::ACK) && !self.table.shift(id).is_opening {
            self.judge_syn(now, id);
        }
        None
    }

    /// Whether a segment with these flags starts a new connection over the ports of this flow.
    fn is_over_for(&self, now: Instant, id: FlowId, sender: Sender, tcp_flags: u8) -> bool {
        let flow = self.table.flow(id);
        track::starts_anew(flow, sender, tcp_flags)
            || is_unanswered_anew(flow, sender, tcp_flags)
            || self.is_expected_anew(now, id, sender, tcp_flags)
    }

    /// Whether a segment of this tuple starts a new connection over the ports of a flow that there is.
    pub(crate) fn foresee_start(&self, now: Instant, tuple: &Tuple, tcp_flags: u8) -> bool {
        let found = self.table.lookup(tuple).filter(|_| tuple.protocol == Protocol::TCP);
        found.is_some_and(|(id, sender)| self.is_over_for(now, id, sender, tcp_flags))
    }

    /// The flow of `original` to the server that was picked for it.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        service: &Service,
        picked: Picked<'_>,
        original: &Tuple,
    ) -> Result<FlowId, DropReason> {
        let is_kept = service.persisted.is_some() && picked.way.is_kept();
        let helped = forward::helper::marks(service, picked.server);
        let marks = if is_kept { helped.with(Marks::PERSISTENT) } else { helped };
        let entered = self.make_room(now).and_then(|()| self.insert(now, service, picked.server, original, marks));
        match entered {
            Ok(id) => {
                self.announce(id, service, picked.server);
                picked.server.start(self.table.flow(id).is_active());
                self.stats.flows_created += 1;
            }
            Err(_) if is_kept => service.release(original.src, picked.server, now),
            Err(_) => {}
        }
        entered
    }

    /// At the limit, the oldest half-open flow gives way, or else the oldest finished one.
    pub(super) fn make_room(&mut self, now: Instant) -> Result<(), DropReason> {
        if !self.table.is_full() {
            return Ok(());
        }
        let id = self.table.eviction_candidate().ok_or(DropReason::TableFull)?;
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
        marks: Marks,
    ) -> Result<FlowId, DropReason> {
        let owner = Owner {
            service: service.id.0,
            server: server.id.0,
            method: server.method as u8,
            one_way: server.method.is_one_way(),
            marks,
        };
        if server.method == Method::Fullnat {
            return self.insert_fullnat(now, service, server, original, owner);
        }
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
}

/// What a scheduler may go by for the first packet of a flow.
pub(crate) fn request(now: Instant, tuple: &Tuple) -> Request {
    let &Tuple { src: client, sport: client_port, dst: vip, dport: port, .. } = tuple;
    Request { now, client, client_port, vip, port, is_urgent: false }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for choosing a port nobody profits from guessing.
pub(super) fn next_random(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
