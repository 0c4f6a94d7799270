//! Moving flows off servers that serve no more, in every shard, slice by slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::Gateway;
use crate::command::{Command, Extent, Only, Outcome};
use crate::service::{FlowPolicy, ServerId};

/// Why servers serve no more; what becomes of their flows follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// They failed: `on_server_down` of their services says.
    Down,
    /// They are not configured any more: `on_server_removed` says.
    Removed,
    /// An operator drains them, and the time is over.
    Drained(FlowPolicy),
}

/// An evacuation under way: give it time ([`Evacuation::step`]) until it is done.
#[derive(Debug)]
pub struct Evacuation {
    /// Servers of one policy each.
    orders: Vec<(Arc<[ServerId]>, Option<FlowPolicy>)>,
    extent: Extent,
    shard: usize,
    cursor: usize,
    ended: u64,
}

impl Evacuation {
    pub fn new(gateway: &Gateway, servers: &[ServerId], cause: Cause) -> Evacuation {
        let snapshot = gateway.snapshot();
        let mut by_policy: BTreeMap<Option<&str>, (Vec<ServerId>, Option<FlowPolicy>)> = BTreeMap::new();
        for &server in servers {
            let spec = snapshot.server(server).and_then(|found| snapshot.service(found.service)).map(|of| &of.spec);
            let policy = match cause {
                Cause::Down => spec.and_then(|spec| spec.on_server_down),
                Cause::Removed => Some(spec.map_or(FlowPolicy::Keep, |spec| spec.on_server_removed)),
                Cause::Drained(policy) => Some(policy),
            };
            if policy != Some(FlowPolicy::Keep) {
                by_policy.entry(policy.map(FlowPolicy::word)).or_insert((Vec::new(), policy)).0.push(server);
            }
        }
        let order = |(mut servers, policy): (Vec<ServerId>, _)| {
            servers.sort_unstable();
            (servers.into(), policy)
        };
        let only = match cause {
            Cause::Down => Only::Down,
            Cause::Removed => Only::All,
            Cause::Drained(_) => Only::Draining,
        };
        let orders = by_policy.into_values().map(order).collect();
        Evacuation { orders, extent: Extent { began: gateway.now(), only }, shard: 0, cursor: 0, ended: 0 }
    }

    /// Does a slice: packets of that shard wait for it, and no longer. `false`: all is done.
    pub fn step(&mut self, gateway: &Gateway) -> bool {
        let Some((servers, policy)) = self.orders.last() else { return false };
        let Some(shard) = gateway.shards().get(self.shard) else { return false };
        let command =
            Command::Evacuate { servers: servers.clone(), policy: *policy, extent: self.extent, cursor: self.cursor };
        let mut engine = shard.lock();
        let outcome = engine.apply(gateway.now(), command);
        // A worker that waits goes first, before the next slice.
        MutexGuard::unlock_fair(engine);
        gateway.flush_shard(shard);
        let next = match outcome {
            Outcome::Deleted { count, next } => {
                self.ended += count;
                next
            }
            Outcome::Done | Outcome::NotProbed(_) => None,
        };
        self.cursor = next.unwrap_or(0);
        if next.is_none() {
            self.shard += 1;
        }
        if self.shard == gateway.shards().len() {
            self.shard = 0;
            self.orders.pop();
        }
        !self.orders.is_empty()
    }

    /// Flows that were ended so far.
    pub fn ended(&self) -> u64 {
        self.ended
    }
}

impl Gateway {
    /// Ends the flows of these servers as their services want it, and tells both ends where that is to be. Returns how many
    /// that were. Takes its time with a large table; on the control thread use `control::evacuate`.
    pub fn evacuate(&self, servers: &[ServerId], cause: Cause) -> u64 {
        let mut evacuation = Evacuation::new(self, servers, cause);
        while evacuation.step(self) {}
        evacuation.ended()
    }
}
