//! The engine's part in helpers: helped flows go through their session, and announced flows begin. See
//! [`crate::forward::helper`].

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::admit::{PORT_ATTEMPTS, next_random};
use super::{Engine, EngineConfig};
use crate::command::ExpectationRecord;
use crate::flow::{Flow, FlowId, InsertError, Marks, Sender, TcpState, track};
use crate::forward::helper::expect::{Expectation, Expectations};
use crate::forward::helper::sequence::distance;
use crate::forward::helper::{self, Desk, Session};
use crate::forward::plan_again;
use crate::service::{FlowPolicy, HelperKind, Method, Server, ServerId, ServiceId};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{PacketBuf, Protocol, Transport, Tuple, View, segment, tcp};

/// Connections that are read at a time, per shard; and no more than a quarter of its flows. One takes less than a kilobyte,
/// with lines that wait up to five.
const MAX_SESSIONS: usize = 1 << 16;

/// What the helpers of a shard keep.
pub(super) struct Helpers {
    /// By the flow. Nobody chooses its number.
    sessions: HashMap<FlowId, Session, BuildHasherDefault<SipHasher13>>,
    max_sessions: usize,
    pub expectations: Expectations,
}

impl Helpers {
    /// For a shard of so many flows; its seed must be a secret.
    pub fn new(config: &EngineConfig) -> Helpers {
        let max_sessions = (config.max_flows / 4).clamp(1, MAX_SESSIONS);
        Helpers { sessions: HashMap::default(), max_sessions, expectations: Expectations::new(config.seed) }
    }

    /// A helped flow has ended, or its connection. What it announced may still come.
    pub fn forget(&mut self, id: FlowId) {
        self.sessions.remove(&id);
    }
}

impl Engine {
    /// Flows that helpers have announced and that have not begun, the oldest first.
    pub fn expectations(&self) -> impl Iterator<Item = &Expectation> {
        self.helpers.expectations.iter()
    }

    /// A slice of them: at most `max` from `cursor` on (0 to start), and where to go on, `None` at the end. None is returned
    /// twice.
    pub fn expected_flows(&self, now: Instant, cursor: u64, max: usize) -> (Vec<ExpectationRecord>, Option<u64>) {
        let mut records = Vec::new();
        for (number, expectation) in self.helpers.expectations.from(cursor) {
            if records.len() == max {
                return (records, Some(number));
            }
            // What is over is forgotten when time is next let pass.
            if expectation.deadline > now {
                records.push(self.expectation_record(now, expectation));
            }
        }
        (records, None)
    }

    fn expectation_record(&self, now: Instant, expectation: &Expectation) -> ExpectationRecord {
        let Expectation { key, opener, owner, client, vip, deadline, .. } = *expectation;
        let service = ServiceId(owner.service);
        ExpectationRecord {
            shard: self.config.shard,
            protocol: key.protocol,
            src: key.src,
            dst: key.dst,
            dport: key.dport,
            opener,
            by: self.announcer(expectation).map(Flow::original),
            client,
            vip,
            service,
            server: ServerId(owner.server),
            method: Method::numbered(owner.method),
            helper: self.helper_of(service, key.protocol),
            remaining: deadline - now,
        }
    }

    /// What announces flows of this protocol in the name of a service or masquerade.
    fn helper_of(&self, service: ServiceId, announced: Protocol) -> Option<HelperKind> {
        match self.snapshot.pools.masquerade(service) {
            Some(masquerade) => {
                let kinds = masquerade.spec.helpers.iter().copied();
                kinds.into_iter().find(|kind| kind.protocol() == announced)
            }
            None => self.snapshot.service(service)?.spec.helper,
        }
    }

    /// What `sender`'s number `seq` is to the other end, as far as the flow's helper goes.
    pub(super) fn place(&self, id: FlowId, sender: Sender, seq: u32) -> u32 {
        self.helpers.sessions.get(&id).map_or(seq, |session| session.place(sender, seq))
    }

    /// What the helper of a flow does to a packet.
    pub(super) fn help(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        sender: Sender,
    ) -> Result<helper::Outcome, DropReason> {
        if let Transport::Tcp(segment) = &view.transport
            && track::renews(self.table.flow(id), sender, segment)
        {
            self.helpers.forget(id);
        }
        let unread = Ok(helper::Outcome { sent: *view, is_changed: false });
        let flow = self.table.flow(id);
        let Helpers { sessions, expectations, max_sessions } = &mut self.helpers;
        let mut fresh = None;
        let session = match sessions.get_mut(&id) {
            Some(session) => session,
            None => {
                let service = self.snapshot.service(ServiceId(flow.owner.service));
                let Some(kind) = service.and_then(|service| service.spec.helper) else { return unread };
                if let Transport::Tcp(header) = view.transport {
                    if header.has(tcp::SYN | tcp::RST) {
                        return unread;
                    }
                    if sessions.len() >= *max_sessions {
                        self.stats.helper_skipped += u64::from(!segment::payload(buf.packet(), view).is_empty());
                        return unread;
                    }
                    // What either end says begins where the handshake ended: nothing else has been let through so far.
                    let own = flow.sequence[sender as usize];
                    if !own.is_known || distance(own.end, header.seq) > 0 {
                        return Err(DropReason::TooEarly);
                    }
                    if segment::payload(buf.packet(), view).is_empty() {
                        return unread;
                    }
                }
                fresh.insert(Session::new(helper::start(kind), flow.sequence.map(|sequence| sequence.end)))
            }
        };
        self.random = next_random(self.random);
        let mut desk = Desk::new(now, id, flow, &self.snapshot, expectations, self.random);
        let outcome = session.handle(buf, view, sender, &mut desk);
        if let Some(session) = fresh
            && matches!(view.transport, Transport::Tcp(_))
        {
            sessions.insert(id, session);
        }
        outcome
    }

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

    /// As [`Engine::expected`], but nothing moves: what was announced, its server, and the flow that announced it, if that
    /// goes on.
    pub(crate) fn foresee_expected(
        &self,
        now: Instant,
        tuple: &Tuple,
        tcp_flags: u8,
    ) -> Option<(Expectation, Arc<Server>, Option<Tuple>)> {
        if tuple.protocol == Protocol::TCP && tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
            return None;
        }
        let (expectation, server) = self.announced(now, tuple)?;
        let by = self.announcer(&expectation).map(Flow::original);
        Some((expectation, server, by))
    }

    /// The flow that announced it, if that goes on.
    fn announcer(&self, expectation: &Expectation) -> Option<&Flow> {
        // Its number may have become another flow's.
        let is_it = |flow: &&Flow| {
            flow.owner.marks.has(Marks::HELPED)
                && flow.owner.server == expectation.owner.server
                && flow.original().src == expectation.client
        };
        self.table.known(expectation.by).filter(is_it)
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
        self.random = next_random(self.random);
        for attempt in 0..=PORT_ATTEMPTS {
            match self.table.insert(now, original, reply, expectation.owner, &self.snapshot.spec.timeouts) {
                Ok(id) => return Ok(id),
                Err(InsertError::Full) => return Err(DropReason::TableFull),
                // Its ports are used again, as they may be.
                Err(InsertError::Taken(old)) if attempt == 0 && self.is_over(old) => {
                    self.end(now, old);
                    self.stats.flows_reused += 1;
                }
                Err(InsertError::Taken(_)) => {
                    let other = |planned| plan_again(server, planned, self.random, attempt);
                    match expectation.opener {
                        Sender::Client => reply = other(planned.1).ok_or(DropReason::PortCollision)?,
                        Sender::Server => original = other(planned.0).ok_or(DropReason::PortCollision)?,
                    }
                }
            }
        }
        Err(DropReason::PortCollision)
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
