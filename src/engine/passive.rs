//! The engine's part in passive checks: what clients' own connections tell of a server.
//!
//! A connection counts as failed, once, when the server refuses it, when the client has to send its SYN again, when it
//! expires without an answer (TCP), or when a router or the server's own host says that the server is unreachable. It
//! counts as a success when the server answers, and that ends the row of failures.
//!
//! UDP has no such failure as silence, and its row ends only with an answer.
//!
//! With the one-way methods answers are not seen. There an ACK of the client's is the success, and what expires half-open
//! does not count: it may as well be a stranger's SYN with a forged source. A forged SYN that comes twice still does; who
//! has one-way services should let `fall` be more than one, or have active checks.
//!
//! The server that fails too often is down at once, before the control plane knows of it: it gets no new flow. Flows that it
//! has answered go on until an active check agrees or an operator ends them.
//!
//! # What strangers can do
//!
//! A stranger would like to take servers down for others. What is done about that:
//!
//! * A SYN whose checksum is wrong says nothing: the server throws it away, however well it is.
//! * Failures of services with several ports do not count: some port is always closed.
//! * Of one client's failures in a row (with IPv6: of one /64's) only the first counts, unless one is enough.
//! * They hold down half of a service's servers at most, and never the last one that is left. If all of them fail, the
//!   fault is more likely on the clients' side, and somebody has to serve.
//!
//! What is left to them: who has, or forges, several addresses can send SYNs that arrive here and not at the server, or that
//! its kernel ignores (a TTL that ends on the way, a TCP-MD5 option), and send each twice. With `fall` = 1 one such address
//! is enough. That keeps up to half of the servers from new flows, for `hold` at a time; an answer to anybody ends the row.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Engine;
use crate::flow::{Flow, FlowId, Marks, Sender, track};
use crate::service::{Server, ServerId, ServerState, Service, ServiceId, Snapshot};
use crate::time::Instant;
use crate::wire::{PacketBuf, Protocol, Transport, View, icmp, segment, tcp};

/// After this time at the earliest a client sends its SYN again; RFC 6298 section 2 says a second.
const AGAIN: Duration = Duration::from_millis(100);

/// A server that passive checks have taken down.
pub(super) struct Held {
    until: Instant,
    since: Instant,
    server: Arc<ServerState>,
}

impl Engine {
    /// A flow's connection has failed.
    pub(super) fn blame(&mut self, now: Instant, id: FlowId) {
        let flow = self.table.flow(id);
        if flow.owner.marks.has(Marks::BLAMED) {
            return;
        }
        let snapshot = self.snapshot.clone();
        let Some((service, server)) = passively_checked(&snapshot, flow) else { return };
        let client = flow.original().src;
        self.table.mark(id, Marks::BLAMED);
        let Some(passive) = service.spec.passive else { return };
        // Where one failure is enough, whose it is makes no difference.
        let row = server.state.note_failure(client).unwrap_or(1);
        if row < passive.fall {
            return;
        }
        let _falling = service.state.falling.lock().unwrap_or_else(PoisonError::into_inner);
        if !may_fall(service, server) {
            return;
        }
        if let Some(since) = server.state.fall_passively(now) {
            self.held.retain(|held| !Arc::ptr_eq(&held.server, &server.state));
            self.held.push(Held { until: now + passive.hold, since, server: server.state.clone() });
        }
    }

    /// A SYN that the server's kernel throws away, since its checksum is wrong, begins a flow that says nothing.
    pub(super) fn doubt_syn(&mut self, id: FlowId, service: &Service, buf: &PacketBuf, view: &View) {
        if service.spec.passive.is_some()
            && matches!(view.transport, Transport::Tcp(_))
            && !segment::has_right_sum(buf, view)
        {
            self.table.mark(id, Marks::BLAMED);
        }
    }

    /// A flow's connection was answered.
    pub(super) fn praise(&self, flow: &Flow) {
        if let Some((_, server)) = passively_checked(&self.snapshot, flow) {
            server.state.note_success();
        }
    }

    /// What a packet that changed an unanswered flow says of the server.
    pub(super) fn judge(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View) {
        let flow = self.table.flow(id);
        let is_reset = matches!(view.transport, Transport::Tcp(segment) if segment.has(tcp::RST));
        match sender {
            Sender::Server if is_reset => self.blame(now, id),
            Sender::Server => self.praise(flow),
            Sender::Client if flow.owner.one_way && flow.is_active() => self.praise(flow),
            Sender::Client => {}
        }
    }

    /// The client of an unanswered flow sends a SYN again. Twice at a time is a network that duplicates.
    pub(super) fn judge_syn(&mut self, now: Instant, id: FlowId) {
        let flow = self.table.flow(id);
        if flow.is_unanswered() && now - flow.seen >= AGAIN {
            self.blame(now, id);
        }
    }

    /// What it says of the server that a flow has expired.
    pub(super) fn judge_expired(&mut self, now: Instant, id: FlowId) {
        let flow = self.table.flow(id);
        // A datagram without an answer says nothing, neither way.
        if flow.protocol == Protocol::TCP && flow.is_unanswered() && !flow.owner.one_way {
            self.blame(now, id);
        }
    }

    /// An ICMP error about a packet to the server.
    pub(super) fn judge_error(&mut self, now: Instant, id: FlowId, sender: Sender, buf: &PacketBuf, view: &View) {
        let flow = self.table.flow(id);
        if sender == Sender::Server && flow.is_unanswered() && is_unreachable(buf, view) && quotes(flow, buf, view) {
            self.blame(now, id);
        }
    }

    /// As [`Engine::judge_error`], of an error about an outer packet, which says that its destination cannot be reached.
    pub(super) fn judge_tunnel_error(&mut self, now: Instant, id: FlowId) {
        if self.table.flow(id).is_unanswered() {
            self.blame(now, id);
        }
    }

    /// Brings up those whose time is over, unless an active check is to decide.
    pub(super) fn raise_held(&mut self, now: Instant) {
        self.held.retain(|held| {
            let is_over = held.until <= now;
            if is_over && !held.server.is_checked() && held.server.passive_down_since() == Some(held.since) {
                held.server.set_up(now, true);
            }
            !is_over
        });
    }

    /// When [`Engine::raise_held`] has something to do, at the earliest.
    pub(super) fn next_raise(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.until).min()
    }
}

/// The live service and server of a flow, if its connection counts for passive checks. The sorry server's does not: nobody else
/// takes its place.
fn passively_checked<'a>(snapshot: &'a Snapshot, flow: &Flow) -> Option<(&'a Arc<Service>, &'a Arc<Server>)> {
    let service = snapshot.service(ServiceId(flow.owner.service))?;
    // That an announced port is closed says nothing of the service's own.
    let is_other = flow.owner.marks.has(Marks::PROBE) || flow.owner.marks.has(Marks::EXPECTED);
    // Of several ports some are closed; who scans them finds those.
    if service.spec.passive.is_none() || !service.spec.ports.is_single() || is_other {
        return None;
    }
    let server = service.servers.iter().find(|server| server.id == ServerId(flow.owner.server))?;
    Some((service, server))
}

/// Whether passive checks may take `server` down: they hold down half of a service's servers at most, and never the last one
/// that is left.
fn may_fall(service: &Service, server: &Server) -> bool {
    let serves = |server: &Server| server.is_available() || server.is_only_full();
    let is_last = !service.servers.iter().any(|other| other.id != server.id && serves(other));
    let held = service.servers.iter().filter(|server| server.state.is_doubted()).count();
    !is_last && held < service.servers.len() / 2
}

fn is_unreachable(buf: &PacketBuf, view: &View) -> bool {
    let header = buf.packet().get(view.l4..).and_then(|message| message.first_chunk::<2>());
    match (view.src.is_v4(), header) {
        (true, Some(&[icmp::V4_UNREACHABLE, code])) => code != icmp::V4_FRAGMENTATION_NEEDED,
        (false, Some(&[icmp::V6_UNREACHABLE, _])) => true,
        _ => false,
    }
}

/// Whether a quoted TCP segment can be the client's SYN (RFC 5927 section 4.1); of other protocols there is nothing to go by.
fn quotes(flow: &Flow, buf: &PacketBuf, view: &View) -> bool {
    let quoted = buf.packet().get(view.l4 + icmp::LEN..view.len).unwrap_or_default();
    let Ok((inner, _)) = View::parse_quoted(quoted) else { return false };
    let sequence = quoted.get(inner.l4 + tcp::SEQ..).and_then(|rest| rest.first_chunk::<4>());
    flow.protocol != Protocol::TCP
        || sequence.is_some_and(|bytes| track::client_began(flow, u32::from_be_bytes(*bytes)))
}
