//! The engine's part in ICMP errors: about packets of flows, and about the gateway's own outer packets.

use std::sync::Arc;

use super::shard::{Sharding, place_of};
use super::{Engine, EngineConfig};
use crate::flow::{Marks, Sender, track};
use crate::forward::{self, icmp_error, tunnel_error};
use crate::service::{Method, PoolUse, Server, ServerId};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, PacketBuf, Tuple, View, decrement_ttl, icmp};

impl Engine {
    /// An ICMP error: translated when it is about a packet of a flow.
    pub(super) fn translate_error(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        // What an inside host of a masquerade says to the outside of nothing that is known would name an address that means
        // nothing there (RFC 5508 REQ-5).
        let ours = self.is_ours(view.dst) || self.leaves_by_pool(view.src, view.dst);
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
            // An inside host that is a server as well: what it says may be about a flow of its own (RFC 5508 REQ-5).
            if let Some(home) = self.home_of(&self.snapshot, &quoted.reversed()) {
                return Verdict::Elsewhere(home);
            }
            let translated = self.translate_error_alone(buf, view, &quoted);
            return translated.unwrap_or_else(|| unknown(DropReason::IcmpNoFlow));
        };
        if view.ttl <= 1 && self.snapshot.spec.is_hop {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        if !buf.is_turned && self.is_turned_back(id, sender) {
            return Verdict::Drop(DropReason::SpoofedSource);
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
        let method = Method::numbered(flow.owner.method);
        let about = icmp_error::About { original: flow.original(), reply: flow.reply(), method };
        icmp_error::translate(buf, view, &about, sender, &quoted);
        if (sender, method) == (Sender::Client, Method::Masquerade) && self.snapshot.pools.of(about.reply.src).is_some()
        {
            return self.turn_error_back(buf);
        }
        if self.snapshot.spec.is_hop {
            decrement_ttl(buf.packet_mut());
        }
        forward
    }

    /// An error about a packet from one inside host to another by an outside address (RFC 5508 REQ-7): it has left the one's
    /// flow, and goes on to the other's.
    fn turn_error_back(&self, buf: &mut PacketBuf) -> Verdict {
        let Ok(view) = View::parse(buf.packet()) else { return Verdict::Drop(DropReason::IcmpNoFlow) };
        let EngineConfig { seed, shards, .. } = self.config;
        let place = place_of(&self.snapshot, buf, &view, Sharding { seed, shards });
        self.turn(buf, place)
    }

    /// Whether a query or an answer of this tuple is of a session through a masquerade, or begins one (RFC 5508 REQ-1). Answers that
    /// inside hosts give are none: nobody could ask them.
    pub(super) fn is_query(&self, kind: icmp::Kind, tuple: &Tuple) -> bool {
        match kind {
            // Also one that began before a reload.
            icmp::Kind::EchoRequest { .. } | icmp::Kind::Query { .. } => {
                self.leaves_by_pool(tuple.src, tuple.dst) || self.table.lookup(tuple).is_some()
            }
            icmp::Kind::EchoReply { .. } | icmp::Kind::Answer { .. } => {
                self.snapshot.pools.of(tuple.dst).is_some_and(|pool| pool.usage != PoolUse::Fullnat)
            }
            _ => false,
        }
    }

    /// Whether a packet between these leaves under the address of a pool, or not at all.
    pub(super) fn leaves_by_pool(&self, src: Addr, dst: Addr) -> bool {
        self.snapshot.pools.masquerade_for(src, dst).is_some_and(|masquerade| masquerade.npt.is_none())
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
