//! The engine's part in services that schedule every packet by itself and keep no flow (IPVS: one-packet scheduling).
//!
//! A packet from a client is forwarded by the picked server's method. With `nat` the server's answer finds no flow: where it
//! comes from tells which VIP and port it is to have as its source, and the snapshot has made sure that this is only one.

use super::Engine;
use crate::flow::{Fate, Sender};
use crate::forward::refuse::Refusal;
use crate::forward::{self, Action, icmp_error};
use crate::service::{Method, Server, ServerId, Service};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{PacketBuf, Protocol, Rewrite, Tuple, View, decrement_ttl};

impl Engine {
    /// Forwards a client's packet to `server` without a flow.
    pub(super) fn forward_alone(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        (service, server): (&Service, &Server),
        tuple: &Tuple,
    ) -> Verdict {
        server.load.note_packet();
        let action = match server.method {
            Method::Nat | Method::Fullnat | Method::Masquerade => {
                let reply = forward::plan(service, server, tuple);
                Action::Translate(Rewrite::between(tuple, &reply.reversed()))
            }
            one_way => forward::one_way_action(one_way, Sender::Client),
        };
        self.act_alone(now, buf, view, &action, (server.id, Sender::Client))
    }

    /// Forwards what may be the answer of such a server; `None`: it is not.
    pub(super) fn answer_alone(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        tuple: &Tuple,
    ) -> Option<Verdict> {
        let (server, from) = self.snapshot.answers_of(tuple)?;
        if view.ttl <= 1 {
            return Some(self.refuse(now, buf, view, DropReason::TtlExceeded, Refusal::TimeExceeded, from.0));
        }
        let to = Tuple { src: from.0, sport: from.1, ..*tuple };
        let action = Action::Translate(Rewrite::between(tuple, &to));
        Some(self.act_alone(now, buf, view, &action, (server, Sender::Server)))
    }

    /// Translates an ICMP error about a packet to such a server; `None`: it is about something else.
    pub(super) fn translate_error_alone(
        &mut self,
        buf: &mut PacketBuf,
        view: &View,
        quoted: &Tuple,
    ) -> Option<Verdict> {
        let reply = quoted.reversed();
        let (_, (vip, port)) = self.snapshot.answers_of(&reply)?;
        if view.ttl <= 1 && self.snapshot.spec.is_hop {
            return Some(Verdict::Drop(DropReason::TtlExceeded));
        }
        self.stats.icmp_errors += 1;
        let original = Tuple { dst: vip, dport: port, ..*quoted };
        let about = icmp_error::About { original, reply, method: Method::Nat };
        icmp_error::translate(buf, view, &about, Sender::Server, quoted);
        if self.snapshot.spec.is_hop {
            decrement_ttl(buf.packet_mut());
        }
        Some(Verdict::Forward)
    }

    /// Whether a client's packet of this tuple is one that a service without flows can have sent to `server` in a tunnel.
    pub(super) fn is_sent_alone(
        &self,
        tuple: &Tuple,
        about_it: impl Fn(&&std::sync::Arc<Server>) -> bool,
    ) -> Option<ServerId> {
        let service = self.snapshot.service_for(tuple.dst, tuple.protocol, tuple.dport)?;
        let alone = service.spec.one_packet && tuple.protocol == Protocol::UDP;
        service.all_servers().filter(|_| alone).find(about_it).map(|server| server.id)
    }

    fn act_alone(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        action: &Action,
        (server, sender): (ServerId, Sender),
    ) -> Verdict {
        self.count_traffic(server.0, sender, view.len);
        let verdict = self.act(now, buf, view, action, server);
        if view.fragment.is_some() && verdict == Verdict::Forward {
            let rewrite = match action {
                Action::Translate(rewrite) => Some(*rewrite),
                _ => None,
            };
            self.alone = Some(Fate::Forward { rewrite, id: None, server: server.0, sender, on: None });
        }
        verdict
    }
}
