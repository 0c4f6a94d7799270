//! The whole data path.

use std::sync::Arc;

use crate::command::{Command, Event, FlowRecord, Outcome};
use crate::service::{ServerId, Snapshot};
use crate::stats::{Stats, Traffic};
use crate::time::Instant;

/// What an engine is made with and keeps.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This engine's number among its siblings, from 0.
    pub shard: u16,
    /// Flows this engine may hold.
    pub max_flows: usize,
    /// Secret of the flow table's hash and of port choice; random in a daemon, fixed in tests.
    pub seed: [u64; 2],
}

/// One shard of the data path.
pub struct Engine {
    snapshot: Arc<Snapshot>,
    stats: Stats,
}

impl Engine {
    pub fn new(_config: EngineConfig, snapshot: Arc<Snapshot>) -> Engine {
        Engine { snapshot, stats: Stats::default() }
    }

    pub fn handle_timeout(&mut self, _now: Instant) {}

    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    pub fn apply(&mut self, _now: Instant, command: Command) -> Outcome {
        match command {
            Command::Swap(snapshot) => {
                self.snapshot = snapshot;
                Outcome::Done
            }
            Command::Watch(_) => Outcome::Done,
            Command::Delete(_) | Command::Flush => Outcome::Deleted(0),
        }
    }

    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// A slice of the flow table: at most `max` flows from `cursor` on (0 to start), and where to go on, `None` at the end.
    /// Flows that come or go between two calls may be missed or not; none is returned twice.
    pub fn flows(&self, _now: Instant, _cursor: usize, _max: usize) -> (Vec<FlowRecord>, Option<usize>) {
        (Vec::new(), None)
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Flows in the table, and how many it may hold.
    pub fn occupancy(&self) -> (usize, usize) {
        (0, 0)
    }

    pub fn traffic(&self, _server: ServerId) -> Traffic {
        Traffic::default()
    }
}
