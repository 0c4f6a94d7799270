//! The gateway's own probes of servers: flows that go the way of a client's packets, whose client is the gateway.
//!
//! # Theory of operation
//!
//! [`Command::Probe`](crate::command::Command::Probe) admits the flow and pins it to one server; no scheduler is asked, and
//! neither the server's state nor its load matters or changes. From then on what the probe sends comes by
//! [`Engine::handle_probe`], and what the server answers comes from the device like any packet, and is handed to the probe
//! ([`Verdict::Deliver`]). [`Command::EndProbe`](crate::command::Command::EndProbe) ends the flow; so do its timeout and a
//! snapshot that does not have its server any more.
//!
//! What cannot happen: a packet of a probe that goes to another server or starts an ordinary flow (without its flow it is
//! dropped); a packet from outside that is sent on as a probe's (the device never brings one); an answer that reaches a probe
//! without its flow; a probe that takes a client's place in the table (probes have room of their own, and a bound).

use std::sync::Arc;

use super::Engine;
use crate::command::{Outcome, ProbeFault};
use crate::flow::{FlowId, InsertError, Marks, Owner, Sender, track};
use crate::forward::{self, Context, Obstacle};
use crate::service::{Method, ServerId, Snapshot};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{PacketBuf, Transport, Tuple, View};

impl Engine {
    /// Decides on a packet that a probe sends. [`Verdict::Forward`]: send it. [`Verdict::Refuse`]: the buffer holds an answer
    /// for the probe, from the gateway itself. Only drops are counted.
    pub fn handle_probe(&mut self, now: Instant, buf: &mut PacketBuf) -> Verdict {
        let verdict = match View::parse(buf.packet()) {
            Ok(view) => self.forward_probe(now, buf, &view),
            Err(reason) => Verdict::Drop(reason),
        };
        if matches!(verdict, Verdict::Drop(_) | Verdict::Refuse(_)) {
            self.stats.count(verdict);
        }
        verdict
    }

    fn forward_probe(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        let found = view.ports().and_then(|tuple| self.table.lookup(&tuple));
        let Some((id, Sender::Client)) = found.filter(|(id, _)| self.table.flow(*id).is_probe()) else {
            return Verdict::Drop(DropReason::ProbeEnded);
        };
        if view.ttl <= 1 {
            return Verdict::Drop(DropReason::TtlExceeded);
        }
        if self.table.flow(id).owner.marks.has(Marks::SHIFTED)
            && let Err(reason) = self.shift_to_server(buf, id)
        {
            return Verdict::Drop(reason);
        }
        self.track_probe(now, id, Sender::Client, view);
        self.act_for_probe(now, buf, view, id, Sender::Client)
    }

    /// A packet from the device that belongs to a probe's flow.
    pub(super) fn answer_probe(
        &mut self,
        now: Instant,
        buf: &mut PacketBuf,
        view: &View,
        id: FlowId,
        sender: Sender,
    ) -> Verdict {
        if sender == Sender::Client {
            return Verdict::Drop(DropReason::ProbeForged);
        }
        if view.fragment.is_some() {
            return Verdict::Drop(DropReason::ProbeLost);
        }
        let counted = match self.table.flow(id).owner.marks.has(Marks::SHIFTED) {
            true => self.shift_to_client(buf, view, id),
            false => *view,
        };
        self.track_probe(now, id, sender, &counted);
        match self.act_for_probe(now, buf, view, id, sender) {
            Verdict::Forward => Verdict::Deliver,
            verdict => verdict,
        }
    }

    fn act_for_probe(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, id: FlowId, sender: Sender) -> Verdict {
        let flow = self.table.flow(id);
        let server = self.snapshot.server(ServerId(flow.owner.server)).map(AsRef::as_ref);
        let context = Context { now, spec: &self.snapshot.spec, server, is_probe: true };
        match forward::act(&forward::action(flow, sender), buf, view, context) {
            Ok(()) => Verdict::Forward,
            Err(Obstacle { reason, refusal: None }) => Verdict::Drop(reason),
            Err(Obstacle { reason, refusal: Some(refusal) }) => self.refuse(now, buf, view, reason, refusal, view.dst),
        }
    }

    /// What a list of flows shows of it; nothing depends on it.
    fn track_probe(&mut self, now: Instant, id: FlowId, sender: Sender, view: &View) {
        self.table.refresh(now, id, &self.snapshot.spec.timeouts, |flow| {
            flow.count(sender, view.len);
            match &view.transport {
                Transport::Tcp(segment) => track::segment(flow, sender, segment),
                _ => flow.replied |= sender == Sender::Server,
            }
        });
    }

    pub(super) fn admit_probe(&mut self, now: Instant, original: &Tuple, server: ServerId) -> Outcome {
        let snapshot = self.snapshot.clone();
        let server = snapshot.server(server);
        let Some((server, service)) = server.and_then(|server| Some((server, snapshot.service(server.service)?)))
        else {
            return Outcome::NotProbed(ProbeFault::NoServer);
        };
        let owner = Owner {
            service: service.id.0,
            server: server.id.0,
            method: server.method as u8,
            one_way: server.method.is_one_way(),
            marks: Marks::PROBE,
        };
        if server.method == Method::Fullnat {
            return match self.insert_fullnat(now, service, server, original, owner) {
                Ok(id) => {
                    self.announce(id, service, server);
                    Outcome::Done
                }
                Err(DropReason::PoolExhausted) => Outcome::NotProbed(ProbeFault::NoPort),
                Err(DropReason::PortCollision) => Outcome::NotProbed(ProbeFault::Taken),
                Err(_) => Outcome::NotProbed(ProbeFault::Full),
            };
        }
        let reply = forward::plan(service, server, original);
        match self.table.insert(now, *original, reply, owner, &snapshot.spec.timeouts) {
            Ok(id) => {
                self.announce(id, service, server);
                Outcome::Done
            }
            Err(InsertError::Taken(_)) => Outcome::NotProbed(ProbeFault::Taken),
            Err(InsertError::Full) => Outcome::NotProbed(ProbeFault::Full),
        }
    }

    pub(super) fn end_probe(&mut self, now: Instant, original: &Tuple) -> Outcome {
        if let Some((id, Sender::Client)) = self.table.lookup(original)
            && self.table.flow(id).is_probe()
        {
            self.end(now, id);
        }
        Outcome::Done
    }

    /// Before `next` comes into force: ends the probes of servers that it does not have. Probes are no load, so they keep no
    /// server's number from being given to another one.
    pub(super) fn end_probes_of_others(&mut self, now: Instant, next: &Snapshot) {
        let is_same = |number: u32| {
            let load = |snapshot: &Snapshot| snapshot.server(ServerId(number)).map(|server| server.load.clone());
            match (load(&self.snapshot), load(next)) {
                (Some(before), Some(after)) => Arc::ptr_eq(&before, &after),
                _ => false,
            }
        };
        let ended: Vec<FlowId> = self.table.probes().filter(|id| !is_same(self.table.flow(*id).owner.server)).collect();
        for id in ended {
            self.end(now, id);
        }
    }
}
