//! The shards of a running gateway, shared by packet workers and the control plane.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::command::Command;
use crate::engine::{Engine, EngineConfig};
use crate::service::Snapshot;
use crate::time::Instant;

/// Every shard's engine, and the clock they share.
pub struct Gateway {
    origin: std::time::Instant,
    snapshot: ArcSwap<Snapshot>,
    shards: Vec<Mutex<Engine>>,
}

impl Gateway {
    /// `max_flows` is for all shards together.
    pub fn new(snapshot: Arc<Snapshot>, shards: usize, max_flows: usize, seed: [u64; 2]) -> Gateway {
        let per_shard = max_flows.div_ceil(shards.max(1));
        let engine = |shard: usize| {
            let config = EngineConfig { shard: shard as u16, max_flows: per_shard, seed };
            Mutex::new(Engine::new(config, snapshot.clone()))
        };
        Gateway {
            origin: std::time::Instant::now(),
            shards: (0..shards.max(1)).map(engine).collect(),
            snapshot: ArcSwap::new(snapshot),
        }
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
}
