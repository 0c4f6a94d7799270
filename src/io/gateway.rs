//! The shards of a running gateway, shared by packet workers and the control plane.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use siphasher::sip::SipHasher13;

use super::device::Device;
use super::huge_pages;
use super::probe::{Inbox, Inboxes};
use crate::command::{Command, Outcome, ProbeFault};
use crate::engine::{self, Engine, EngineConfig, Sharding};
use crate::service::{ServerId, Snapshot};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{Addr, PacketBuf, Tuple, View};

/// Shards that a packet is handed on to, at most.
const MAX_HANDOVERS: usize = 3;

/// Every shard's engine, and the clock they share.
pub struct Gateway {
    origin: std::time::Instant,
    snapshot: ArcSwap<Snapshot>,
    shards: Vec<Mutex<Engine>>,
    seed: [u64; 2],
    /// The way out for packets that no worker has in its hands.
    outlet: OnceLock<Mutex<Box<dyn Device>>>,
    probes: Inboxes,
}

impl Gateway {
    /// `max_flows` is for all shards together.
    pub fn new(snapshot: Arc<Snapshot>, shards: usize, max_flows: usize, seed: [u64; 2]) -> Gateway {
        let per_shard = max_flows.div_ceil(shards.max(1));
        let engine = |shard: usize| {
            let config = EngineConfig { shard: shard as u16, shards: shards.max(1) as u16, max_flows: per_shard, seed };
            let mut engine = Engine::new(config, snapshot.clone());
            huge_pages::advise(&mut engine);
            Mutex::new(engine)
        };
        Gateway {
            origin: std::time::Instant::now(),
            shards: (0..shards.max(1)).map(engine).collect(),
            snapshot: ArcSwap::new(snapshot),
            seed,
            outlet: OnceLock::new(),
            probes: Inboxes::default(),
        }
    }

    /// Has the packet's shard decide on it. An answer to a probe is handed to that here. Held fragments that are free to go now are put into `released`; they are to be
    /// sent after the packet.
    pub fn handle_packet(&self, buf: &mut PacketBuf, released: &mut Vec<PacketBuf>) -> Verdict {
        let parsed = View::parse(buf.packet());
        let shard = match &parsed {
            Ok(view) if self.shards.len() > 1 => self.shard_of(buf, view),
            _ => 0,
        };
        let now = self.now();
        let mut handed_over = Vec::new();
        let verdict = self.follow(now, shard, buf, parsed.ok().as_ref(), (released, &mut handed_over));
        // What comes of these is found by whom they were handed to: nothing is handed over for a second time.
        for (shard, mut buf) in std::mem::take(&mut handed_over) {
            if self.follow(now, usize::from(shard), &mut buf, None, (released, &mut handed_over)).sends() {
                released.push(buf);
            }
        }
        for _ in handed_over {
            self.count_drop(DropReason::NotOurs);
        }
        verdict
    }

    /// Has `shard` decide on a packet, and those that it is handed on to: a packet from one inside host to another goes out
    /// by the one's shard and in by the other's.
    fn follow(
        &self,
        now: Instant,
        shard: usize,
        buf: &mut PacketBuf,
        view: Option<&View>,
        aside: (&mut Vec<PacketBuf>, &mut Vec<(u16, PacketBuf)>),
    ) -> Verdict {
        let (released, handed_over) = aside;
        let mut verdict = self.decide(now, shard, buf, view, (released, handed_over));
        for _ in 0..MAX_HANDOVERS {
            let Verdict::Elsewhere(shard) = verdict else { break };
            verdict = self.decide(now, usize::from(shard), buf, None, (released, handed_over));
        }
        match verdict {
            Verdict::Deliver => self.deliver(buf),
            Verdict::Elsewhere(_) => {
                self.count_drop(DropReason::NotOurs);
                return Verdict::Drop(DropReason::NotOurs);
            }
            _ => {}
        }
        verdict
    }

    fn decide(
        &self,
        now: Instant,
        shard: usize,
        buf: &mut PacketBuf,
        view: Option<&View>,
        (released, handed_over): (&mut Vec<PacketBuf>, &mut Vec<(u16, PacketBuf)>),
    ) -> Verdict {
        let mut engine = self.shards[shard].lock();
        let verdict = match view {
            Some(view) => engine.handle_parsed(now, buf, view),
            None => engine.handle_packet(now, buf),
        };
        while let Some(packet) = engine.poll_transmit() {
            released.push(packet);
        }
        while let Some(packet) = engine.poll_handover() {
            handed_over.push(packet);
        }
        verdict
    }

    /// Gives the gateway a way out for what it sends by itself. The first one stays.
    pub fn set_outlet(&self, outlet: Box<dyn Device>) {
        let _ = self.outlet.set(Mutex::new(outlet));
    }

    /// Sends a packet that no worker has in its hands. Without an outlet, and where the device does not take it, it is lost,
    /// as packets are.
    pub fn send(&self, buf: &mut PacketBuf) {
        if let Some(outlet) = self.outlet.get()
            && let Err(error) = outlet.lock().send(buf)
        {
            tracing::debug!(%error, "the device did not take a packet of the gateway's own");
        }
    }

    /// Sends what the engines have to send by themselves: after a command that makes packets (RSTs of flows whose server is
    /// gone).
    pub fn flush(&self) {
        self.shards.iter().for_each(|shard| self.flush_shard(shard));
    }

    /// The same for one of them.
    pub(super) fn flush_shard(&self, shard: &Mutex<Engine>) {
        loop {
            let next = shard.lock().poll_transmit();
            let Some(mut packet) = next else { break };
            self.send(&mut packet);
        }
        loop {
            let next = shard.lock().poll_handover();
            let Some((place, mut packet)) = next else { break };
            let (mut released, mut handed_over) = (Vec::new(), Vec::new());
            let aside = (&mut released, &mut handed_over);
            if self.follow(self.now(), usize::from(place), &mut packet, None, aside).sends() {
                released.push(packet);
            }
            released.iter_mut().for_each(|packet| self.send(packet));
            for _ in handed_over {
                self.count_drop(DropReason::NotOurs);
            }
        }
    }

    /// Admits the flow of a probe. Returns its shard, which stays the same as long as the flow lives, and where answers come.
    pub(super) fn begin_probe(&self, original: Tuple, server: ServerId) -> Result<(usize, Arc<Inbox>), ProbeFault> {
        let shard = self.shard_between((original.src, original.dst), original.dport);
        let now = self.now();
        let outcome = self.shards[shard].lock().apply(now, Command::Probe { original, server });
        match outcome {
            Outcome::NotProbed(fault) => Err(fault),
            _ => Ok((shard, self.probes.open(original))),
        }
    }

    pub(super) fn end_probe(&self, shard: usize, original: Tuple) {
        self.probes.close(&original);
        let now = self.now();
        self.shards[shard].lock().apply(now, Command::EndProbe(original));
    }

    /// Sends a packet of a probe.
    pub(super) fn send_probe(&self, shard: usize, buf: &mut PacketBuf) {
        let now = self.now();
        let verdict = self.shards[shard].lock().handle_probe(now, buf);
        match verdict {
            Verdict::Refuse(_) => self.deliver(buf),
            verdict if verdict.sends() => self.send(buf),
            _ => {}
        }
    }

    fn deliver(&self, buf: &PacketBuf) {
        if !self.probes.deliver(buf) {
            self.count_drop(DropReason::ProbeLost);
        }
    }

    /// A number for `key` that nobody else can tell, and another one each time.
    pub(super) fn secret(&self, key: impl Hash) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.seed[0], self.seed[1]);
        key.hash(&mut hasher);
        hasher.write_u64(self.now().micros());
        hasher.finish()
    }

    /// Counts a packet that was lost after the engine had decided to send it.
    pub fn count_drop(&self, reason: DropReason) {
        self.shards[0].lock().count_drop(reason);
    }

    /// The shard that a packet belongs to.
    pub fn shard_of(&self, buf: &PacketBuf, view: &View) -> usize {
        usize::from(engine::place_of(&self.snapshot.load(), buf, view, self.sharding()))
    }

    /// The same of a packet between these addresses to this port.
    pub fn shard_between(&self, addresses: (Addr, Addr), dport: u16) -> usize {
        usize::from(engine::place_between(&self.snapshot.load(), addresses, Some(dport), self.sharding()))
    }

    /// The same of a packet with this tuple.
    pub fn shard_of_tuple(&self, tuple: &Tuple) -> usize {
        let (ends, port) = ((tuple.src, tuple.dst), (tuple.protocol, tuple.dport));
        usize::from(engine::place_of_port(&self.snapshot.load(), ends, port, self.sharding()))
    }

    fn sharding(&self) -> Sharding {
        Sharding { seed: self.seed, shards: self.shards.len() as u16 }
    }

    pub fn now(&self) -> Instant {
        Instant::from_micros(self.origin.elapsed().as_micros() as u64)
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Every packet from now on is forwarded by `snapshot`.
    pub fn swap(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot.clone());
        let now = self.now();
        for shard in &self.shards {
            shard.lock().apply(now, Command::Swap(snapshot.clone()));
        }
    }

    /// Lock one at a time, and briefly: packets of that shard wait meanwhile.
    pub fn shards(&self) -> &[Mutex<Engine>] {
        &self.shards
    }

    /// Lets time pass in every shard, in steps short enough not to hold up packets.
    pub fn handle_timeouts(&self) {
        for shard in &self.shards {
            loop {
                let now = self.now();
                let mut engine = shard.lock();
                if engine.poll_timeout().is_none_or(|due| due > now) {
                    break;
                }
                engine.handle_timeout(now);
                drop(engine);
                self.flush_shard(shard);
            }
        }
    }
}
