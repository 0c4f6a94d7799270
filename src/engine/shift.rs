//! The engine's part in flows whose packets change beyond addresses and ports: a helper rewrites what they say, or their ends
//! count differently ([`Shift`]). Of a flow that is both, the helper works on what the client counts.

use super::Engine;
use crate::command::FlowChange;
use crate::flow::{FlowId, Lead, Marks, Scale, Sender, Shift, track};
use crate::forward::helper::Outcome;
use crate::forward::proxy_protocol::Header;
use crate::forward::shift;
use crate::service::{Method, ProxyProtocol, Server, Service};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{PacketBuf, Protocol, Transport, View, icmp, segment};

impl Engine {
    /// A packet of a flow that is helped or shifted: as any other, but for that.
    pub(super) fn forward_altered(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        sender: Sender,
        change: FlowChange,
    ) -> Verdict {
        if self.table.shift(id).is_opening {
            return self.forward_opening(now, buf, view, id, sender);
        }
        self.alter(now, buf, view, id, sender, change)
    }

    /// As [`Engine::forward_altered`], of a flow that is open, and of what the gateway itself sends to open it.
    pub(super) fn alter(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        sender: Sender,
        change: FlowChange,
    ) -> Verdict {
        let marks = self.table.flow(id).owner.marks;
        let len = buf.len();
        let counted = match sender {
            Sender::Server if marks.has(Marks::SHIFTED) => self.shift_to_client(buf, view, id),
            _ => *view,
        };
        let mut outcome = Outcome { sent: counted, is_changed: false };
        if marks.has(Marks::HELPED) {
            outcome = match self.help(now, buf, &counted, id, sender) {
                Ok(outcome) => outcome,
                Err(reason) => return Verdict::Drop(reason),
            };
        }
        if sender == Sender::Client && marks.has(Marks::SHIFTED) {
            match self.shift_to_server(buf, id) {
                Ok(is_longer) => outcome.is_changed |= is_longer,
                Err(reason) => return Verdict::Drop(reason),
            }
        }
        let verdict = self.carry(now, buf, &outcome.sent, id, sender, change);
        if outcome.is_changed && verdict == Verdict::Forward {
            self.split(buf, view, len);
        }
        verdict
    }

    /// Brings what the client sends to what the server counts, as the last thing before its translation. Whether it has become
    /// longer.
    pub(super) fn shift_to_server(&mut self, buf: &mut PacketBuf, id: FlowId) -> Result<bool, DropReason> {
        let mut shift = self.table.shift(id);
        let before = shift;
        let flow = self.table.flow(id);
        let version = ProxyProtocol::ALL.get(usize::from(shift.lead.form)).filter(|_| shift.lead.len > 0);
        // A probe is nobody's connection.
        let original = (!flow.is_probe()).then(|| flow.original());
        let header = version.map(|version| Header::new(*version, original.as_ref()));
        let lead = header.as_ref().map(Header::bytes).unwrap_or_default();
        // A helper may have changed it.
        let view = View::parse(buf.packet())?;
        if let Transport::Tcp(header) = &view.transport
            && track::renews(flow, Sender::Client, header)
        {
            // The ends of another connection hear of each other's scale by themselves.
            shift.scale = Scale::default();
        }
        let is_longer = shift::to_server(buf, &view, &mut shift, lead)?;
        if shift != before {
            self.table.set_shift(id, shift);
        }
        Ok(is_longer)
    }

    /// Brings what the server sends to what the client counts, before anything else: the packet as it is then.
    pub(super) fn shift_to_client(&mut self, buf: &mut PacketBuf, view: &View, id: FlowId) -> View {
        let mut shift = self.table.shift(id);
        let before = shift;
        let end = self.table.flow(id).sequence[Sender::Client as usize].end;
        // Of what the helper puts in front of the server, the record knows nothing.
        let counted = shift::to_client(buf, view, &mut shift, self.place(id, Sender::Client, end));
        if shift != before {
            self.table.set_shift(id, shift);
        }
        counted
    }

    /// Whether a SYN for `service` carries bytes that would have to be taken off it, and cannot be: it must not begin a flow.
    pub(super) fn is_stuck(service: &Service, buf: &PacketBuf, view: &View) -> bool {
        let has_lead = service.spec.proxy_protocol.is_some() && matches!(view.transport, Transport::Tcp(_));
        has_lead && !segment::payload(buf.packet(), view).is_empty() && !shift::can_be_changed(buf, view)
    }

    /// The server of a new flow is to be told whose connection it is, if its service says so.
    pub(super) fn announce(&mut self, id: FlowId, service: &Service, server: &Server) {
        let flow = self.table.flow(id);
        let translates = matches!(server.method, Method::Nat | Method::Fullnat);
        let Some(version) = service.spec.proxy_protocol.filter(|_| translates && flow.protocol == Protocol::TCP) else {
            return;
        };
        let original = (!flow.is_probe()).then(|| flow.original());
        let len = Header::new(version, original.as_ref()).bytes().len() as u8;
        let lead = Lead { len, form: version as u8, ..Lead::default() };
        self.table.set_shift(id, Shift { lead, ..Shift::default() });
    }

    /// Gives a segment that the gateway makes in the name of `sender`, from the flow's record, the numbers that the other end
    /// knows.
    pub(super) fn renumber(&self, buf: &mut PacketBuf, view: &View, id: FlowId, sender: Sender) {
        let Transport::Tcp(header) = view.transport else { return };
        let (mut seq, mut ack) = (self.place(id, sender, header.seq), header.ack);
        if sender == Sender::Client {
            let shift = self.table.shift(id);
            (seq, ack) = (shift.reset_to_server(seq), shift.from_client(ack));
        }
        if (seq, ack) != (header.seq, header.ack) {
            segment::set_numbers(buf, view, seq, ack);
        }
    }

    /// Brings what an ICMP error from `sender`'s side quotes to what the other end has sent.
    pub(super) fn requote(&self, buf: &mut PacketBuf, view: &View, id: FlowId, sender: Sender) {
        let Some(quoted) = buf.packet_mut().get_mut(view.l4 + icmp::LEN..view.len) else { return };
        if let Ok((inner, _)) = View::parse_quoted(quoted)
            && let Some(segment) = quoted.get_mut(inner.l4..)
        {
            shift::requote(segment, &self.table.shift(id), sender);
        }
    }

    /// A packet that has become too long for the way it came goes on as two.
    fn split(&mut self, buf: &mut PacketBuf, view: &View, len: usize) {
        let fits =
            if buf.vnet.is_gso() { crate::wire::MAX_PACKET } else { len.max(usize::from(self.snapshot.spec.mtu)) };
        if let Some(rest) = segment::split_off(buf, view, fits) {
            self.stats.count(Verdict::Forward);
            self.released.push_back(rest);
        }
    }
}
