//! Engines that share the work as those of a gateway do, under a clock to set.

use std::sync::Arc;
use std::time::Duration;

use gatun::engine::{Engine, EngineConfig, Sharding, place_of};
use gatun::service::Snapshot;
use gatun::time::Instant;
use gatun::verdict::Verdict;
use gatun::wire::{PacketBuf, View};

/// Times that a packet is handed on.
const MAX_HANDOVERS: usize = 3;

pub struct Shards {
    pub engines: Vec<Engine>,
    pub now: Instant,
    pub snapshot: Arc<Snapshot>,
    seed: [u64; 2],
}

impl Shards {
    pub fn new(snapshot: Arc<Snapshot>, shards: u16, max_flows: usize, seed: [u64; 2]) -> Shards {
        let engine = |shard| Engine::new(EngineConfig { shard, shards, max_flows, seed }, snapshot.clone());
        Shards {
            engines: (0..shards).map(engine).collect(),
            now: Instant::from_secs(1),
            snapshot: snapshot.clone(),
            seed,
        }
    }

    /// What becomes of a packet. What leaves besides it comes out of [`Shards::sent`].
    pub fn give(&mut self, buf: &mut PacketBuf) -> Verdict {
        let Ok(view) = View::parse(buf.packet()) else { return self.engines[0].handle_packet(self.now, buf) };
        let sharding = Sharding { seed: self.seed, shards: self.engines.len() as u16 };
        let mut shard = place_of(&self.snapshot, buf, &view, sharding);
        for _ in 0..=MAX_HANDOVERS {
            match self.engines[usize::from(shard)].handle_packet(self.now, buf) {
                Verdict::Elsewhere(other) => {
                    assert_ne!(other, shard, "handed over to itself");
                    shard = other;
                }
                verdict => return verdict,
            }
        }
        panic!("handed on for ever");
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        for engine in &mut self.engines {
            while engine.poll_timeout().is_some_and(|due| due <= self.now) {
                engine.handle_timeout(self.now);
            }
        }
    }

    pub fn sent(&mut self) -> Vec<PacketBuf> {
        self.engines.iter_mut().flat_map(|engine| std::iter::from_fn(|| engine.poll_transmit())).collect()
    }

    pub fn flows(&self) -> usize {
        self.engines.iter().map(|engine| engine.occupancy().0).sum()
    }

    pub fn check_invariants(&mut self) {
        self.engines.iter_mut().for_each(Engine::check_invariants);
    }
}
