//! The engine's part in ICMP errors: about packets of flows, and about the gateway's own outer packets.

use std::sync::Arc;

use super::Engine;
use crate::flow::{Marks, Sender, track};
use crate::forward::{self, icmp_error, tunnel_error};
use crate::service::{Method, Server, ServerId};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{PacketBuf, View, decrement_ttl};

impl Engine {
    /// An ICMP error: translated when it is about a packet of a flow.
    pub(super) fn translate_error(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
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
            let translated = self.translate_error_alone(buf, view, &quoted);
            return translated.unwrap_or_else(|| unknown(DropReason::IcmpNoFlow));
        };
        if view.ttl <= 1 && self.snapshot.spec.is_hop {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        // It neither refreshes nor ends the flow (RFC 5382 REQ-10, RFC 4787 REQ-12).
        self.stats.icmp_errors += 1;
        if self.table.flow(id).owner.marks.has(Marks::SHIFTED) {
            self.requote(buf, view, id, sender);
        }
        self.judge_error(now, id, sender, buf, view);
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
        icmp_error::translate(buf, view, (&flow.original(), &flow.reply()), sender, &quoted);
        if self.snapshot.spec.is_hop {
            decrement_ttl(buf.packet_mut());
        }
        forward
    }

    /// An ICMP error about one of the gateway's own outer packets: what it says of the way to the server is noted, and the
    /// client is told. `None`: it is about something else.
    pub(super) fn relay_tunnel_error(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Option<Verdict> {
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
        let known = match self.table.lookup(&inner) {
            Some((id, Sender::Client)) => {
                let flow = self.table.flow(id);
                let can_be = sequence.is_none_or(|sequence| track::client_sent(flow, sequence));
                can_be.then_some((ServerId(flow.owner.server), Some(id)))
            }
            Some((_, Sender::Server)) => None,
            None => self.is_sent_alone(&inner, about_it).map(|server| (server, None)),
        };
        let server = known.and_then(|(server, id)| Some((snapshot.server(server).filter(about_it)?, id)));
        let Some((server, id)) = server else { return drop(DropReason::IcmpNoFlow) };
        self.stats.icmp_errors += 1;
        let is_probe = id.is_some_and(|id| self.table.flow(id).is_probe());
        let relayed = if is_probe { Verdict::Deliver } else { Verdict::Forward };
        if let Some(id) = id.filter(|_| error.is_unreachable()) {
            self.judge_tunnel_error(now, id);
        }
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
}
