//! The engine's part in pools: a port for each flow by `fullnat`, and what becomes of it. See [`crate::forward::fullnat`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::admit::{PORT_ATTEMPTS, next_random};
use super::{Engine, SWEEP};
use crate::command::PoolRecord;
use crate::flow::{Flow, FlowId, InsertError, Owner, Standing};
use crate::forward::fullnat::Lane;
use crate::service::{Method, Pool, PoolId, PoolUse, Server, Service};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Protocol, Tuple};

/// Ports whose quarantine is over that are released when another one is taken.
const RELEASED: usize = 2;

/// Flows that are asked for their port at most. It is more than one only after a reload that changes a pool's range.
const RECLAIMED: usize = 64;

/// A port that is taken: the number of its lane, and the reply tuple of its flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub lane: u32,
    pub reply: Tuple,
}

impl Engine {
    /// How much of each pool's address this shard uses.
    pub fn pools(&self) -> Vec<PoolRecord> {
        let mut pools: BTreeMap<PoolId, PoolRecord> = BTreeMap::new();
        for (address, usage) in self.lanes.usage() {
            let Some(pool) = self.snapshot.pools.of(address) else { continue };
            let ([in_use, quarantined, size], fullest) = (usage.ports, usage.fullest());
            let (shard, pool) = (self.config.shard, pool.id);
            pools.insert(pool, PoolRecord { shard, pool, in_use, quarantined, size, fullest });
        }
        let of_mappings = self.pools_of_mappings().into_iter().filter(|record| !pools.contains_key(&record.pool));
        let of_mappings: Vec<PoolRecord> = of_mappings.collect();
        pools.into_values().chain(of_mappings).collect()
    }

    /// A flow to `server` with an address and port of the pool as its source.
    pub(super) fn insert_fullnat(
        &mut self,
        now: Instant,
        service: &Service,
        server: &Server,
        original: &Tuple,
        owner: Owner,
    ) -> Result<FlowId, DropReason> {
        let to = (service.server_port(server, original.dport), original.protocol);
        for _ in 0..=PORT_ATTEMPTS {
            let Grant { lane, reply } = self.grant(now, service, server, to)?;
            match self.table.insert(now, *original, reply, owner, &self.snapshot.spec.timeouts) {
                Ok(id) => {
                    self.table.set_mapping(id, lane);
                    return Ok(id);
                }
                Err(InsertError::Full) => {
                    self.lanes.give_unused(lane, reply.dport);
                    return Err(DropReason::TableFull);
                }
                // Something else goes by this tuple; the port is not to be tried again at once.
                Err(InsertError::Taken(_)) => self.lanes.give(now, lane, reply.dport),
            }
        }
        Err(DropReason::PortCollision)
    }

    /// Takes a port for a flow to this port of `server`: of an address of the pool at random, or of another one if that has none.
    ///
    /// Without any the client's packet is dropped and nobody told: it sends its SYN or its question again, and there may be a
    /// port by then; a RST would end what only has to wait (so does netfilter where `nf_nat` finds no tuple).
    pub(super) fn grant(
        &mut self,
        now: Instant,
        service: &Service,
        server: &Server,
        to: (u16, Protocol),
    ) -> Result<Grant, DropReason> {
        let quarantine = self.snapshot.spec.quarantine;
        self.random = next_random(self.random);
        let random = next_random(self.random);
        let snapshot = self.snapshot.clone();
        let first = self.random;
        let pools = || pools_of(&snapshot, service, server, first);
        // Time may have passed without the engine being told.
        for budget in [RELEASED, SWEEP] {
            if self.lanes.expire(now, quarantine, budget) == 0 && budget == SWEEP {
                break;
            }
            for pool in pools() {
                let lane = Lane::to(server, to, pool.address);
                if let Some((number, port)) = self.lanes.take(&lane, pool, random) {
                    return Ok(Grant { lane: number, reply: lane.reply(port) });
                }
            }
        }
        for pool in pools() {
            let lane = Lane::to(server, to, pool.address);
            for _ in 0..RECLAIMED {
                let Some((lane, id)) = self.reclaimable(now, &lane).next() else { break };
                if !self.is_of_range(pool, id) {
                    self.end(now, id);
                    continue;
                }
                let flow = self.take_out(now, id);
                self.stats.ports_reclaimed += 1;
                // What it has waited for is the quarantine.
                return Ok(Grant { lane, reply: flow.reply() });
            }
        }
        Err(DropReason::PoolExhausted)
    }

    /// The flows of this lane that give up their ports, the first to do so in front: those that nobody would miss and that have
    /// been silent for the quarantine.
    fn reclaimable(&self, now: Instant, lane: &Lane) -> impl Iterator<Item = (u32, FlowId)> {
        let quarantine = self.snapshot.spec.quarantine;
        let is_silent = move |id: &FlowId| self.table.flow(*id).seen + quarantine <= now;
        self.lanes.dispensable(lane).flat_map(move |(number, flows)| {
            let flows = flows.filter_map(|flow| self.table.at(flow as usize));
            flows.take_while(is_silent).map(move |id| (number, id))
        })
    }

    /// Whether the pool still gives away the port of this flow: a reload may have changed its range.
    fn is_of_range(&self, pool: &Pool, id: FlowId) -> bool {
        pool.ports.contains(self.table.flow(id).reply().dport)
    }

    /// The reply tuple that the next flow to `server` would have.
    pub(crate) fn foresee_grant(
        &self,
        now: Instant,
        service: &Service,
        server: &Server,
        original: &Tuple,
    ) -> Result<Tuple, DropReason> {
        let first = next_random(self.random);
        let random = next_random(first);
        let to = (service.server_port(server, original.dport), original.protocol);
        let lane = |pool: &Pool| Lane::to(server, to, pool.address);
        let pools = || pools_of(&self.snapshot, service, server, first);
        let free = |pool: &Arc<Pool>| Some(lane(pool).reply(self.lanes.foresee(&lane(pool), pool, random)?));
        let reclaimed = |pool: &Arc<Pool>| {
            let lane = lane(pool);
            let mut flows = self.reclaimable(now, &lane).take(RECLAIMED);
            let (_, id) = flows.find(|(_, id)| self.is_of_range(pool, *id))?;
            Some(self.table.flow(id).reply())
        };
        pools().find_map(free).or_else(|| pools().find_map(reclaimed)).ok_or(DropReason::PoolExhausted)
    }

    /// A flow that has ended gives its port back.
    pub(super) fn leave_port(&mut self, now: Instant, flow: &Flow) {
        if has_port(flow) {
            self.lanes.give(now, flow.mapping, flow.reply().dport);
        }
    }

    /// A flow is about to end: nobody needs to ask for its port any more.
    pub(super) fn unlist(&mut self, id: FlowId) {
        let flow = self.table.flow(id);
        if has_port(flow) {
            self.lanes.note(flow.mapping, id, Standing::Lasting);
        }
    }

    /// Notes how a flow with a port stands after a packet of it.
    pub(super) fn note_standing(&mut self, id: FlowId) {
        let flow = self.table.flow(id);
        if has_port(flow) {
            self.lanes.note(flow.mapping, id, flow.standing());
        }
    }

    pub(super) fn check_lanes(&self) {
        let flows = (0..self.table.places()).filter_map(|place| self.table.at(place));
        let with_port = flows.filter(|id| has_port(self.table.flow(*id))).count();
        self.lanes.check_invariants(with_port, |number| {
            let id = self.table.at(number as usize).expect("a listed flow is in the table");
            let flow = self.table.flow(id);
            let Tuple { src: server, sport: port, dst: pool, dport, protocol } = flow.reply();
            (Lane { pool, server, port, protocol }, dport, flow.standing())
        });
    }
}

/// Whether it has a port of a lane.
fn has_port(flow: &Flow) -> bool {
    flow.owner.method == Method::Fullnat as u8 && flow.mapping != u32::MAX
}

/// The addresses that flows to `server` may have, in an order that `random` decides.
fn pools_of<'a>(
    snapshot: &'a crate::service::Snapshot,
    service: &'a Service,
    server: &Server,
    random: u64,
) -> impl Iterator<Item = &'a Arc<Pool>> + Clone {
    let addresses = &service.spec.pool.addresses;
    let is_v4 = server.address.is_v4();
    let start = (random >> 16) as usize % addresses.len().max(1);
    let order = addresses[start..].iter().chain(&addresses[..start]).filter(move |address| address.is_v4() == is_v4);
    order.filter_map(|address| snapshot.pools.of(*address)).filter(|pool| pool.usage == PoolUse::Fullnat)
}

/// Whether [`Engine::note_standing`] has to be told of a packet that left a flow like this.
#[inline]
pub(super) fn is_noted(flow: &Flow, has_changed: bool) -> bool {
    flow.owner.method == Method::Fullnat as u8 && (has_changed || flow.standing() != Standing::Lasting)
}
