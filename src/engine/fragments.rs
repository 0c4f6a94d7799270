//! The engine's part in fragments: what is done with the first one is done with all. See [`crate::flow::Fragments`].

use super::Engine;
use super::shard::{is_of_pool, place_of_port};
use crate::flow::{Bounds, Fate, Later};
use crate::forward::{self, Action, echo};
use crate::service::{Method, ServerId};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{PacketBuf, Tuple, View, ipv4_id};

impl Engine {
    /// A fragment that cannot be of the same packet as the others: it goes, and with it what is held of that packet.
    pub(super) fn refuse_fragment(&mut self, now: Instant, view: &View) -> Option<Verdict> {
        let deadline = now + self.snapshot.spec.timeouts.fragment;
        let bounds = self.fragment_bounds();
        let dropped = &mut self.stats.drops[DropReason::FragmentTableFull as usize];
        let (reason, held) = self.fragments.check(deadline, view, bounds, dropped).err()?;
        self.stats.drops[reason as usize] += held;
        Some(Verdict::Drop(reason))
    }

    /// A fragment without ports: the same is done with it as with its first one.
    pub(super) fn follow_first_fragment(&mut self, now: Instant, buf: &mut PacketBuf, view: &View) -> Verdict {
        let deadline = now + self.snapshot.spec.timeouts.fragment;
        let bounds = self.fragment_bounds();
        let dropped = &mut self.stats.drops[DropReason::FragmentTableFull as usize];
        match self.fragments.later(deadline, view, buf, bounds, dropped) {
            Later::Known(fate) => self.apply_fate(now, buf, view, fate),
            Later::Held => Verdict::Held,
            Later::Refused => Verdict::Drop(DropReason::FragmentTableFull),
        }
    }

    /// Notes what was done with a first fragment, and does the same with those that came before it.
    pub(super) fn note_first_fragment(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, verdict: Verdict) {
        let fate = match verdict {
            Verdict::Forward => match self.translation_of(view, None) {
                Some(fate) => fate,
                None => return,
            },
            // Translated here, or of nothing that is known here.
            Verdict::Elsewhere(shard) => self.translation_of(view, Some(shard)).unwrap_or(Fate::Elsewhere(shard)),
            Verdict::Pass => Fate::Pass,
            Verdict::Reply => Fate::Echo,
            Verdict::Refuse(reason) | Verdict::Drop(reason) => Fate::Drop(reason),
            // Fragments of probes' answers are dropped.
            Verdict::Held | Verdict::Deliver => return,
        };
        if let Fate::Forward { id: Some(id), .. } = fate {
            ipv4_id(buf.packet_mut(), id);
        }
        let deadline = now + self.snapshot.spec.timeouts.fragment;
        let bounds = self.fragment_bounds();
        let dropped = &mut self.stats.drops[DropReason::FragmentTableFull as usize];
        for mut held in self.fragments.first(deadline, view, fate, bounds, dropped) {
            let Ok(view) = View::parse(held.packet()) else { continue };
            let verdict = self.apply_fate(now, &mut held, &view, fate);
            self.stats.count(verdict);
            match verdict {
                Verdict::Elsewhere(shard) => self.handed_over.push_back((shard, held)),
                verdict if verdict.sends() => self.released.push_back(held),
                _ => {}
            }
        }
    }

    /// The translation of the flow that this first fragment belongs to, or that it had without one.
    fn translation_of(&mut self, view: &View, on: Option<u16>) -> Option<Fate> {
        let (rewrite, server, sender) = match self.alone.take() {
            Some(Fate::Forward { rewrite, server, sender, .. }) => (rewrite, server, sender),
            _ => {
                let (id, sender) = self.table.lookup(&view.ports()?)?;
                let flow = self.table.flow(id);
                let rewrite = (!flow.owner.one_way).then(|| flow.rewrite(sender));
                (rewrite, flow.owner.server, sender)
            }
        };
        let id = match self.fragments.fate(view) {
            // It came again. Another translation means that its sender uses the identification for another packet now.
            Some(Fate::Forward { rewrite: known, id, .. }) if known == rewrite => id,
            // What is not translated keeps its own.
            _ => (rewrite.is_some() && view.src.is_v4()).then(|| self.fragments.fresh_id()),
        };
        Some(Fate::Forward { rewrite, id, server, sender, on })
    }

    /// The shard that the port of a pool belongs to, where that is another one.
    pub(super) fn owner_elsewhere(&self, tuple: &Tuple) -> Option<u16> {
        if self.config.shards <= 1 || !is_of_pool(&self.snapshot, (tuple.src, tuple.dst), tuple.dport) {
            return None;
        }
        let of = (tuple.protocol, tuple.dport);
        let owner = place_of_port(&self.snapshot, (tuple.src, tuple.dst), of, self.sharding());
        Some(owner).filter(|owner| *owner != self.config.shard)
    }

    /// What is to be handed over to this very shard is decided on here.
    #[cold]
    pub(super) fn take_back(&mut self, now: Instant) {
        for (shard, mut buf) in std::mem::take(&mut self.handed_over) {
            let verdict =
                if shard == self.config.shard { self.handle_packet(now, &mut buf) } else { Verdict::Elsewhere(shard) };
            match verdict {
                Verdict::Elsewhere(shard) => self.handed_over.push_back((shard, buf)),
                verdict if verdict.sends() => self.released.push_back(buf),
                _ => {}
            }
        }
    }

    fn apply_fate(&mut self, now: Instant, buf: &mut PacketBuf, view: &View, fate: Fate) -> Verdict {
        match fate {
            Fate::Forward { .. } if view.ttl <= 1 && self.snapshot.spec.is_hop => {
                Verdict::Drop(DropReason::TtlExceeded)
            }
            Fate::Forward { rewrite, id, server, sender, on } => {
                self.count_traffic(server, sender, view.len);
                let server = ServerId(server);
                let method = self.snapshot.server(server).map_or(Method::Nat, |server| server.method);
                let action = rewrite.map_or_else(|| forward::one_way_action(method, sender), Action::Translate);
                let verdict = self.act(now, buf, view, &action, server);
                if let (Verdict::Forward, Some(id)) = (verdict, id) {
                    ipv4_id(buf.packet_mut(), id);
                }
                match (verdict, on) {
                    (Verdict::Forward, Some(shard)) => self.turn(buf, shard),
                    (verdict, _) => verdict,
                }
            }
            Fate::Elsewhere(shard) => Verdict::Elsewhere(shard),
            Fate::Pass => self.pass(now, buf, view),
            Fate::Echo => {
                echo::turn_round(buf, view);
                Verdict::Reply
            }
            Fate::Drop(reason) => Verdict::Drop(reason),
        }
    }

    pub(super) fn fragment_bounds(&self) -> Bounds {
        let limits = &self.snapshot.spec.limits;
        Bounds { packets: limits.fragmented_packets, held_bytes: limits.held_fragment_bytes }
    }
}
