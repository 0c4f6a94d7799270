//! Mappings for those who look: lists, and what would become of a packet.

use std::collections::HashMap;
use std::time::Duration;

use super::masquerade::{is_masqueraded, masquerade_of};
use super::{Engine, Sharding, shard_of};
use crate::command::{MappingRecord, PoolRecord};
use crate::forward::masquerade::{Foreseen, Kind, MappingId, Wanted};
use crate::service::{Filtering, ForwardSpec, PoolUse, ServiceId};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, Protocol, Tuple, tcp};

/// In a cursor: what comes after the mappings that have flows.
const FORWARDS: usize = 1 << 40;

/// Flows that are looked at for how long mappings of one slice have left. With more there are, nobody waits for the answer.
const MAX_FLOWS_LOOKED_AT: usize = 1 << 16;

/// What would become of a packet without a flow that a masquerade takes out, or that comes to a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeseenMapping {
    /// `None`: of an address with nothing but forwarded ports.
    pub masquerade: Option<String>,
    pub mapping: Foreseen,
    pub is_from_inside: bool,
    pub filtering: Filtering,
    /// It comes in again.
    pub is_hairpin: bool,
}

/// What the flows of a mapping tell of it.
#[derive(Clone, Copy, Default)]
struct Life {
    remaining: Duration,
    masquerade: Option<ServiceId>,
}

impl Engine {
    /// A slice of the mappings: at most `max` from `cursor` on (0 to start), and where to go on, `None` at the end. Those that
    /// have flows come first, then the forwarded ports and ranges of this shard. What `remaining` says, and which masquerade
    /// they began by, is looked for among the flows, where these are not too many; else it is zero, and what has the address now.
    pub fn mappings(&self, now: Instant, cursor: usize, max: usize) -> (Vec<MappingRecord>, Option<usize>) {
        let mut records = Vec::new();
        let mut cursor = cursor;
        if cursor < FORWARDS {
            let mut numbers = Vec::new();
            while let Some((number, next)) = self.mappings.next_from(cursor).filter(|_| numbers.len() < max) {
                numbers.push(number);
                cursor = next;
            }
            let lives = self.lives(now, &numbers);
            records.extend(numbers.iter().map(|number| self.mapping_record(*number, &lives)));
            if self.mappings.next_from(cursor).is_some() {
                return (records, Some(cursor));
            }
            cursor = FORWARDS;
        }
        while let Some((record, next)) = self.next_forward(cursor - FORWARDS) {
            if records.len() >= max {
                return (records, Some(cursor));
            }
            records.extend(record);
            cursor = FORWARDS + next;
        }
        (records, None)
    }

    /// Inside hosts of this shard that have a mapping.
    pub fn inside_hosts(&self) -> usize {
        self.mappings.inside_hosts()
    }

    /// How much of the addresses that mappings have this shard uses.
    pub(super) fn pools_of_mappings(&self) -> Vec<PoolRecord> {
        let usage = self.mappings.usage().into_iter();
        let usage: HashMap<Addr, ([u64; 3], u16)> =
            usage.map(|(address, ports, fullest)| (address, (ports, fullest))).collect();
        let pools = self.snapshot.pools.iter().filter(|pool| pool.usage != PoolUse::Fullnat);
        let record = |pool: &std::sync::Arc<crate::service::Pool>| {
            let ([in_use, quarantined, size], fullest) = usage.get(&pool.address).copied().unwrap_or_default();
            PoolRecord { shard: self.config.shard, pool: pool.id, in_use, quarantined, size, fullest }
        };
        pools.map(record).collect()
    }

    /// The shard that a packet without a flow is handed to, since its sender is an inside host of that.
    pub(crate) fn foresee_home(&self, tuple: &Tuple) -> Option<u16> {
        let is_translated = self.snapshot.pools.has_addresses() && Kind::of(tuple.protocol).is_some();
        self.home_of(&self.snapshot, tuple).filter(|_| is_translated)
    }

    /// What would become of a packet without a flow. `None`: it is nothing for a masquerade.
    pub(crate) fn foresee_masqueraded(
        &self,
        tuple: &Tuple,
        tcp_flags: u8,
    ) -> Option<Result<ForeseenMapping, (DropReason, Option<String>)>> {
        let snapshot = &self.snapshot;
        let kind = Kind::of(tuple.protocol)?;
        let starts = tuple.protocol != Protocol::TCP || tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if let Some(masquerade) = masquerade_of(snapshot, tuple) {
            let name = Some(masquerade.spec.name.clone());
            if !starts {
                return Some(Err((DropReason::NoFlow, name)));
            }
            let inside = (tuple.src, tuple.sport);
            let mapping = match snapshot.pools.forward_from(inside, tuple.protocol) {
                Some((address, port)) => {
                    Ok(Foreseen { inside, address, port: Some(port), exists: true, is_forward: true })
                }
                None => self.mappings.foresee(&Wanted { inside, kind, masquerade, pools: &snapshot.pools }),
            };
            let (filtering, is_hairpin) = (masquerade.spec.filtering, snapshot.pools.is_mapped(tuple.dst));
            return Some(match mapping {
                Ok(mapping) => {
                    Ok(ForeseenMapping { masquerade: name, mapping, is_from_inside: true, filtering, is_hairpin })
                }
                Err(reason) => Err((reason, name)),
            });
        }
        let pool = snapshot.pools.of(tuple.dst).filter(|pool| pool.usage != PoolUse::Fullnat)?;
        let masquerade = match pool.usage {
            PoolUse::Masquerade(id) => snapshot.pools.masquerade(id).map(AsRef::as_ref),
            _ => None,
        };
        if self.is_the_hosts(tuple, kind) {
            return None;
        }
        let name = masquerade.map(|masquerade| masquerade.spec.name.clone());
        if !starts {
            return Some(Err((DropReason::NoFlow, name)));
        }
        let (outside, remote) = ((tuple.dst, tuple.dport), (tuple.src, tuple.sport));
        let inside = match snapshot.pools.forward_to(outside, tuple.protocol) {
            Some(inside) => Ok((inside, true)),
            None => self.lets_in(masquerade, kind, outside, remote).map(|id| (self.mappings.inside(id), false)),
        };
        Some(inside.map_err(|reason| (reason, name.clone())).map(|(inside, is_forward)| ForeseenMapping {
            masquerade: name,
            mapping: Foreseen { inside, address: outside.0, port: Some(outside.1), exists: true, is_forward },
            is_from_inside: false,
            filtering: masquerade.filter(|_| !is_forward).map_or(Filtering::Endpoint, |of| of.spec.filtering),
            is_hairpin: snapshot.pools.is_mapped(tuple.src),
        }))
    }

    fn mapping_record(&self, number: MappingId, lives: &HashMap<MappingId, Life>) -> MappingRecord {
        let known = self.mappings.known(number);
        let life = lives.get(&number).copied().unwrap_or_default();
        let of_flows = life.masquerade.filter(|_| !known.is_forward);
        MappingRecord {
            shard: self.config.shard,
            masquerade: of_flows.unwrap_or_else(|| self.masquerade_at(known.outside.0)),
            protocol: known.protocol,
            inside: known.inside,
            outside: known.outside,
            ports: 1,
            flows: known.flows,
            is_forward: known.is_forward,
            remaining: life.remaining,
        }
    }

    fn masquerade_at(&self, address: Addr) -> ServiceId {
        match self.snapshot.pools.of(address).map(|pool| pool.usage) {
            Some(PoolUse::Masquerade(id)) => id,
            _ => ServiceId::FORWARD,
        }
    }

    fn lives(&self, now: Instant, numbers: &[MappingId]) -> HashMap<MappingId, Life> {
        let mut lives: HashMap<MappingId, Life> = numbers.iter().map(|number| (*number, Life::default())).collect();
        if self.table.len() > MAX_FLOWS_LOOKED_AT {
            return lives;
        }
        let mut cursor = 0;
        while let Some((id, next)) = self.table.next_from(cursor) {
            let flow = self.table.flow(id);
            if is_masqueraded(flow)
                && let Some(life) = lives.get_mut(&flow.mapping)
            {
                let remaining = (flow.seen + flow.timeout(&self.snapshot.spec.timeouts)) - now;
                life.remaining = life.remaining.max(remaining);
                // Where flows from before a reload share it with later ones, it is of what has the address now.
                let (of, now) = (ServiceId(flow.owner.service), self.masquerade_at(flow.reply().dst));
                if life.masquerade != Some(now) {
                    life.masquerade = Some(of);
                }
            }
            cursor = next;
        }
        lives
    }

    /// The forward number `at`, counted by protocol, if it is of this shard and no flow tells of it, and where to go on. A `*`
    /// has 65535 ports: a range is one record, whichever of its ports have flows.
    fn next_forward(&self, at: usize) -> Option<(Option<MappingRecord>, usize)> {
        const PROTOCOLS: usize = 2;
        let forward = self.snapshot.pools.forwards.get(at / PROTOCOLS)?;
        let sharding = Sharding { seed: self.config.seed, shards: self.config.shards };
        let is_here = shard_of(forward.to, sharding) == self.config.shard;
        let protocol = forward.protocols.list().get(at % PROTOCOLS).filter(|_| is_here);
        Some((protocol.and_then(|protocol| self.idle_forward(forward, *protocol)), at + 1))
    }

    fn idle_forward(&self, forward: &ForwardSpec, protocol: Protocol) -> Option<MappingRecord> {
        let outside = (forward.address, forward.ports.first);
        let inside = forward.inside_of(outside.1)?;
        let has_record = || Some(self.mappings.forwarded(inside, outside, Kind::of(protocol)?).is_some());
        if forward.ports.is_single() && has_record()? {
            return None;
        }
        Some(MappingRecord {
            shard: self.config.shard,
            masquerade: self.masquerade_at(outside.0),
            protocol,
            inside,
            outside,
            ports: u32::from(forward.ports.last - forward.ports.first) + 1,
            flows: 0,
            is_forward: true,
            remaining: Duration::ZERO,
        })
    }
}
