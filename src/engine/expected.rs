//! The engine's part in flows that helpers have announced, and that begin. See [`crate::forward::helper::expect`].

use std::sync::Arc;

use super::Engine;
use super::admit::{PORT_ATTEMPTS, next_random};
use super::masquerade::Planned;
use crate::flow::{Flow, FlowId, InsertError, Marks, Sender, TcpState};
use crate::forward::fullnat::Lane;
use crate::forward::helper::expect::Expectation;
use crate::forward::other_port;
use crate::service::{FlowPolicy, Method, Server, ServerId, ServiceId};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Protocol, Transport, Tuple, View, tcp};

impl Engine {
    /// A packet without a flow that a helper has announced: its flow begins, with the server that was announced. `None`: it
    /// is none.
    pub(super) fn expected(
        &mut self,
        now: Instant,
        view: &View,
        tuple: &Tuple,
    ) -> Option<Result<(FlowId, Sender), Verdict>> {
        if self.helpers.expectations.is_empty() || view.ttl <= 1 {
            return None;
        }
        if let Transport::Tcp(segment) = view.transport
            && (!segment.has(tcp::SYN) || segment.has(tcp::ACK))
        {
            return None;
        }
        let found = *self.helpers.expectations.find(now, tuple)?;
        if Method::numbered(found.owner.method) == Method::Masquerade {
            return Some(self.begin_at_mapping(now, &found, tuple).map(|id| (id, found.opener)));
        }
        let (expectation, server) = self.announced(now, tuple)?;
        Some(self.begin_expected(now, &server, &expectation, tuple).map(|id| (id, expectation.opener)))
    }

    /// What a helper has announced of a packet without a flow, and the server, if there still is one.
    fn announced(&self, now: Instant, tuple: &Tuple) -> Option<(Expectation, Arc<Server>)> {
        let expectation = *self.helpers.expectations.find(now, tuple)?;
        let server = self.snapshot.server(ServerId(expectation.owner.server)).cloned();
        // The number may have become another server's.
        let server = server.filter(|server| server.address == expectation.server && self.takes_expected(server))?;
        Some((expectation, server))
    }

    /// As [`Engine::expected`], but nothing moves: what was announced, its server (a masquerade has none), and the flow that
    /// announced it, if that goes on.
    pub(crate) fn foresee_expected(
        &self,
        now: Instant,
        tuple: &Tuple,
        tcp_flags: u8,
    ) -> Option<(Expectation, Option<Arc<Server>>, Option<Tuple>)> {
        if tuple.protocol == Protocol::TCP && tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
            return None;
        }
        let found = *self.helpers.expectations.find(now, tuple)?;
        let (expectation, server) = match Method::numbered(found.owner.method) {
            Method::Masquerade => (found, None),
            _ => self.announced(now, tuple).map(|(expectation, server)| (expectation, Some(server)))?,
        };
        let by = self.announcer(&expectation).map(Flow::original);
        Some((expectation, server, by))
    }

    /// The flow that announced it, if that goes on.
    pub(super) fn announcer(&self, expectation: &Expectation) -> Option<&Flow> {
        // Its number may have become another flow's.
        let is_it = |flow: &&Flow| {
            flow.owner.marks.has(Marks::HELPED)
                && flow.owner.server == expectation.owner.server
                && flow.original().src == expectation.client
        };
        self.table.known(expectation.by).filter(is_it)
    }

    /// Original and reply tuple of the flow that begins with a packet of this tuple, if it can.
    pub(crate) fn foresee_tuples(&self, expectation: &Expectation, first: &Tuple) -> (Tuple, Tuple) {
        let (original, mut reply) = expectation.tuples(first);
        if expectation.opener == Sender::Client
            && Method::numbered(expectation.owner.method) == Method::Fullnat
            && let Some(pool) = self.snapshot.pools.of(reply.dst)
        {
            let lane = Lane { pool: pool.address, server: reply.src, port: reply.sport, protocol: reply.protocol };
            reply.dport = self.lanes.foresee(&lane, pool, next_random(self.random)).unwrap_or(0);
        }
        (original, reply)
    }

    /// Whether announced flows to `server` may begin: it works as far as flows are concerned that it has, and if it is retired
    /// it has some. Otherwise its number is being given away, or is another's in a shard that is ahead.
    fn takes_expected(&self, server: &Server) -> bool {
        let service = self.snapshot.service(server.service);
        let goes_on = server.state.is_up()
            || server.state.is_doubted()
            || service.is_some_and(|service| service.spec.on_server_down == Some(FlowPolicy::Keep));
        goes_on && (!server.load.is_idle() || self.snapshot.is_live(server))
    }

    fn begin_expected(
        &mut self,
        now: Instant,
        server: &Arc<Server>,
        expectation: &Expectation,
        first: &Tuple,
    ) -> Result<FlowId, Verdict> {
        self.make_room(now).map_err(Verdict::Drop)?;
        let id = self.insert_expected(now, server, expectation, first).map_err(Verdict::Drop)?;
        self.helpers.expectations.take(&expectation.key);
        server.start(self.table.flow(id).is_active());
        self.stats.flows_created += 1;
        Ok(id)
    }

    /// The same of a masquerade: to the mapping that was announced.
    fn begin_at_mapping(&mut self, now: Instant, expectation: &Expectation, first: &Tuple) -> Result<FlowId, Verdict> {
        self.make_room(now).map_err(Verdict::Drop)?;
        let (original, reply) = expectation.tuples(first);
        let Expectation { mapping, owner, opener, .. } = *expectation;
        let planned = Planned { mapping, original, reply, masquerade: ServiceId(owner.service), opener };
        let id = self.enter_masqueraded(now, &planned)?;
        self.table.mark(id, Marks::EXPECTED);
        self.helpers.expectations.take(&expectation.key);
        self.leave_expected(now);
        Ok(id)
    }

    /// Gives up the mappings that expectations kept that are no more.
    pub(super) fn leave_expected(&mut self, now: Instant) {
        let until = now + self.snapshot.spec.quarantine;
        for mapping in self.helpers.expectations.take_left() {
            self.mappings.let_go(mapping, until);
        }
    }

    /// The opener's own tuple stands; of the other one the port may be chosen anew.
    fn insert_expected(
        &mut self,
        now: Instant,
        server: &Server,
        expectation: &Expectation,
        first: &Tuple,
    ) -> Result<FlowId, DropReason> {
        let planned = expectation.tuples(first);
        let (mut original, mut reply) = planned;
        let has_port = Method::numbered(expectation.owner.method) == Method::Fullnat;
        for attempt in 0..=PORT_ATTEMPTS {
            self.random = next_random(self.random);
            let lane = match has_port {
                true => Some(self.grant_expected(now, expectation.opener, &mut reply)?),
                false => None,
            };
            let inserted = self.table.insert(now, original, reply, expectation.owner, &self.snapshot.spec.timeouts);
            if let (Some(lane), Ok(id)) = (lane, &inserted) {
                self.table.set_mapping(*id, lane);
            } else if let Some(lane) = lane {
                self.lanes.give_unused(lane, reply.dport);
            }
            match inserted {
                Ok(id) => return Ok(id),
                Err(InsertError::Full) => return Err(DropReason::TableFull),
                // Its ports are used again, as they may be.
                Err(InsertError::Taken(old)) if attempt == 0 && self.is_over(old) => {
                    self.end(now, old);
                    self.stats.flows_reused += 1;
                }
                Err(InsertError::Taken(_)) => match expectation.opener {
                    // The lane gives another one.
                    Sender::Client if has_port => {}
                    Sender::Client => {
                        reply = other_port(server.method, planned.1, self.random, attempt)
                            .ok_or(DropReason::PortCollision)?;
                    }
                    Sender::Server => {
                        original = other_port(server.method, planned.0, self.random, attempt)
                            .ok_or(DropReason::PortCollision)?;
                    }
                },
            }
        }
        Err(DropReason::PortCollision)
    }

    /// The lane of an announced flow, with the port of `reply` taken: one that is free if the client opens it, the one that was
    /// announced if the server does.
    fn grant_expected(&mut self, now: Instant, opener: Sender, reply: &mut Tuple) -> Result<u32, DropReason> {
        let snapshot = self.snapshot.clone();
        let pool = snapshot.pools.of(reply.dst).ok_or(DropReason::PoolExhausted)?;
        let lane = Lane { pool: pool.address, server: reply.src, port: reply.sport, protocol: reply.protocol };
        if opener == Sender::Client {
            let (number, port) = self.lanes.take(&lane, pool, self.random).ok_or(DropReason::PoolExhausted)?;
            reply.dport = port;
            return Ok(number);
        }
        match self.table.lookup(reply) {
            // The server uses its ports again, as it may.
            Some((old, _)) if self.is_over(old) && self.table.flow(old).mapping != u32::MAX => {
                let old = self.take_out(now, old);
                self.stats.flows_reused += 1;
                Ok(old.mapping)
            }
            _ => self.lanes.take_this(&lane, pool, reply.dport).ok_or(DropReason::PortCollision),
        }
    }

    fn is_over(&self, id: FlowId) -> bool {
        matches!(self.table.flow(id).tcp_state, TcpState::TimeWait | TcpState::Close)
    }

    /// Whether a server begins an announced connection over the ports of one that is over.
    pub(super) fn is_expected_anew(&self, now: Instant, id: FlowId, sender: Sender, tcp_flags: u8) -> bool {
        sender == Sender::Server
            && tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
            && self.is_over(id)
            && self.helpers.expectations.find(now, &self.table.flow(id).reply()).is_some()
    }
}
