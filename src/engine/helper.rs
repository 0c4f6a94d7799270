//! The engine's part in helpers: helped flows go through their session. See [`crate::forward::helper`].

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use siphasher::sip::SipHasher13;

use super::admit::next_random;
use super::{Engine, EngineConfig};
use crate::command::ExpectationRecord;
use crate::flow::{Flow, FlowId, Sender, track};
use crate::forward::helper::expect::{Expectation, Expectations};
use crate::forward::helper::sequence::distance;
use crate::forward::helper::{self, Desk, Session};
use crate::service::{HelperKind, Method, ServerId, ServiceId};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{PacketBuf, Protocol, Transport, View, segment, tcp};

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
            && (track::renews(self.table.flow(id), sender, segment) || is_first(self.table.flow(id), sender, segment))
        {
            self.helpers.forget(id);
        }
        let unread = Ok(helper::Outcome { sent: *view, is_changed: false });
        let flow = self.table.flow(id);
        let reader = self.reader(flow);
        let Helpers { sessions, expectations, max_sessions } = &mut self.helpers;
        let mut fresh = None;
        let session = match sessions.get_mut(&id) {
            Some(session) => session,
            None => {
                let Some((kind, asks)) = reader else { return unread };
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
                fresh.insert(Session::new(helper::start(kind, asks), flow.sequence.map(|sequence| sequence.end)))
            }
        };
        self.random = next_random(self.random);
        let shard = (self.config.shard, self.config.shards);
        let tables = (expectations, &mut self.mappings);
        let mut desk = Desk::new(now, (id, flow), &self.snapshot, tables, self.random, shard);
        let outcome = session.handle(buf, view, sender, &mut desk);
        if let Some(session) = fresh
            && matches!(view.transport, Transport::Tcp(_))
        {
            sessions.insert(id, session);
        }
        self.leave_expected(now);
        outcome
    }

    /// What reads a helped flow, and which of its ends asks the other one.
    fn reader(&self, flow: &Flow) -> Option<(HelperKind, Sender)> {
        let service = ServiceId(flow.owner.service);
        match self.snapshot.pools.masquerade(service) {
            Some(masquerade) => helper::of_masquerade(masquerade, &flow.original(), &flow.reply()),
            None => Some((self.snapshot.service(service)?.spec.helper?, Sender::Client)),
        }
    }
}

/// Whether it is the first segment of its end, with which a connection may begin anew.
fn is_first(flow: &Flow, sender: Sender, segment: &tcp::Header) -> bool {
    segment.has(tcp::SYN) && !flow.sequence[sender as usize].is_known
}
