//! Method `fullnat`: the destination becomes the server, the source an address and port of a pool, so that the server answers
//! to the gateway whatever its routes are.
//!
//! # Theory of operation
//!
//! A *lane* is an address of a pool, used towards one port of one server by one protocol. Within a lane a port names a
//! flow; the same port may be in use in another lane. A shard gives away ports of its own slice only, so that what comes back
//! to a port comes to the shard that knows it.
//!
//! A port is *free*; or *live*: a flow has it; or in *quarantine*: its flow has ended, and what that flow's ends still send
//! must not meet another one. Quarantine begins when the flow ends, and lasts equally long for all: the order of arrival is the
//! order of release. A lane is forgotten when none of its ports is live or in quarantine.
//!
//! With the timeouts of the RFCs a connection stays in the table for minutes after it is over, and its port with it. So flows
//! that nobody would miss stand in queues ([`Standing`]), by their lane and their last packet. Where a lane has no free port,
//! the oldest of them that has been silent for the quarantine gives its port up at once: first one that is finished, then one
//! that was never answered.
//!
//! What cannot happen: two flows of one lane with one port; a port that is given away while it is in quarantine; a flow in a
//! queue of a lane that it has no port of. [`Lanes::check_invariants`] says so.
//!
//! Bounds: lanes and queues have no more entries than there are flows and ports in quarantine, and of those there are at most
//! as many as the shard may have flows, or 65536. Beyond that no port is given away.

mod queues;
mod supply;
mod usage;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::flow::{FlowId, Standing};
use crate::forward::ports::Slice;
use crate::service::{InUse, Pool, Server};
use crate::time::Instant;
use crate::wire::{Addr, Protocol, Tuple};
use queues::{Ends, Queue, Queues};
use supply::Supply;
pub use usage::Usage;

/// An address of a pool, used towards one port of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    pub pool: Addr,
    pub server: Addr,
    pub port: u16,
    pub protocol: Protocol,
}

impl Lane {
    /// That of flows to this port of `server`.
    pub fn to(server: &Server, (port, protocol): (u16, Protocol), pool: Addr) -> Lane {
        Lane { pool, server: server.address, port, protocol }
    }

    /// The reply tuple of its flow with this port of the pool's.
    pub fn reply(&self, port: u16) -> Tuple {
        Tuple { src: self.server, dst: self.pool, sport: self.port, dport: port, protocol: self.protocol }
    }
}

/// A lane with ports that are live or in quarantine.
struct Used {
    lane: Lane,
    supply: Supply,
    /// That of the pool of the live ones.
    in_use: Arc<InUse>,
    live: u32,
    waiting: u32,
    ends: Ends,
}

impl Used {
    /// As it counts for the address: ports that are live, that are in quarantine, and that there are.
    fn counts(&self) -> [u64; 3] {
        [u64::from(self.live), u64::from(self.waiting), u64::from(self.supply.slice().size())]
    }
}

/// A port in quarantine.
struct Waiting {
    since: Instant,
    lane: u32,
    port: u16,
}

#[derive(Clone, Copy)]
struct HashKey([u64; 2]);

impl std::hash::BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// The lanes of a shard.
pub struct Lanes {
    shard: u16,
    shards: u16,
    used: Vec<Option<Used>>,
    /// Numbers of `used` that are free.
    free: Vec<u32>,
    /// Strangers choose the ports of services that have many.
    numbers: HashMap<Lane, u32, HashKey>,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
    max_waiting: usize,
    queues: Queues,
    /// Of all lanes of an address.
    usage: HashMap<Addr, Usage, HashKey>,
}

impl Lanes {
    /// For `shard` of `shards`, with flows of numbers below `flows`; at most `max_waiting` ports are in quarantine at a time.
    /// `key` must be a secret.
    pub fn new((shard, shards): (u16, u16), key: [u64; 2], flows: usize, max_waiting: usize) -> Lanes {
        Lanes {
            shard,
            shards,
            used: Vec::new(),
            free: Vec::new(),
            numbers: HashMap::with_hasher(HashKey(key)),
            waiting: VecDeque::new(),
            max_waiting,
            queues: Queues::new(flows),
            usage: HashMap::with_hasher(HashKey(key)),
        }
    }

    /// Takes a free port of `pool`; `random` decides which. Returns the number of the lane, which names it as long as one of
    /// its ports is live, and the port. `None`: no port is free.
    pub fn take(&mut self, lane: &Lane, pool: &Pool, random: u64) -> Option<(u32, u16)> {
        self.take_by(lane, pool, |supply| supply.take(random))
    }

    /// Takes this port of `pool`, and returns the number of the lane. `None`: it is not free.
    pub fn take_this(&mut self, lane: &Lane, pool: &Pool, port: u16) -> Option<u32> {
        self.take_by(lane, pool, |supply| supply.take_this(port).then_some(port)).map(|(number, _)| number)
    }

    fn take_by(
        &mut self,
        lane: &Lane,
        pool: &Pool,
        take: impl FnOnce(&mut Supply) -> Option<u16>,
    ) -> Option<(u32, u16)> {
        if self.waiting.len() >= self.max_waiting {
            return None;
        }
        let slice = Slice::new(pool.ports, self.shard, self.shards);
        let number = match self.numbers.get(lane) {
            Some(number) => *number,
            None if slice.size() == 0 => return None,
            None => self.open(lane, slice, pool),
        };
        let used = self.used.get_mut(number as usize)?.as_mut()?;
        if used.supply.slice() != slice {
            let before = used.counts();
            used.supply.change(slice);
            count(&mut self.usage, used, before);
        }
        let Some(port) = take(&mut used.supply) else {
            self.close(number);
            return None;
        };
        if used.live == 0 && !Arc::ptr_eq(&used.in_use, &pool.state) {
            // The pool was dropped and is back.
            used.in_use = pool.state.clone();
        }
        let before = used.counts();
        used.live += 1;
        count(&mut self.usage, used, before);
        used.in_use.start();
        Some((number, port))
    }

    /// The port that [`Lanes::take`] would give.
    pub fn foresee(&self, lane: &Lane, pool: &Pool, random: u64) -> Option<u16> {
        if self.waiting.len() >= self.max_waiting {
            return None;
        }
        let slice = Slice::new(pool.ports, self.shard, self.shards);
        match self.used(lane) {
            Some(used) if used.supply.slice() == slice => used.supply.foresee(random),
            Some(used) => {
                let mut supply = used.supply.clone();
                supply.change(slice);
                supply.foresee(random)
            }
            None => Supply::new(slice).foresee(random),
        }
    }

    /// The flow of a port has ended: its quarantine begins.
    pub fn give(&mut self, now: Instant, number: u32, port: u16) {
        let Some(used) = self.used.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let before = used.counts();
        used.live -= 1;
        used.in_use.end();
        used.waiting += 1;
        count(&mut self.usage, used, before);
        // Who took the time first need not have come first.
        let since = self.waiting.back().map_or(now, |last| last.since.max(now));
        self.waiting.push_back(Waiting { since, lane: number, port });
    }

    /// No packet was sent from the port: it is free again.
    pub fn give_unused(&mut self, number: u32, port: u16) {
        if let Some(used) = self.used.get_mut(number as usize).and_then(Option::as_mut) {
            let before = used.counts();
            used.live -= 1;
            count(&mut self.usage, used, before);
            used.in_use.end();
            used.supply.give(port);
            self.close(number);
        }
    }

    /// Notes how a flow stands after a packet of it.
    pub fn note(&mut self, number: u32, flow: FlowId, standing: Standing) {
        let Some(used) = self.used.get_mut(number as usize).and_then(Option::as_mut) else { return };
        let queue = match standing {
            Standing::Lasting => None,
            Standing::HalfOpen => Some(Queue::HalfOpen),
            Standing::Finished => Some(Queue::Finished),
        };
        self.queues.place(&mut used.ends, flow.number(), queue);
    }

    /// The number of a lane and those of its flows that nobody would miss, by kind, whom to ask first in front.
    pub fn dispensable(&self, lane: &Lane) -> impl Iterator<Item = (u32, impl Iterator<Item = u32>)> {
        let number = self.numbers.get(lane).copied();
        let listed = |used| [Queue::Finished, Queue::HalfOpen].map(|queue| self.queues.list(used, queue));
        let listed = self.used(lane).map(|used| listed(&used.ends));
        listed.into_iter().flatten().filter_map(move |flows| Some((number?, flows)))
    }

    /// Releases ports whose quarantine is over, no more than `budget`. Returns how many.
    pub fn expire(&mut self, now: Instant, quarantine: Duration, budget: usize) -> usize {
        let mut released = 0;
        while released < budget
            && let Some(first) = self.waiting.front()
            && first.since + quarantine <= now
        {
            let Waiting { lane, port, .. } = *first;
            self.waiting.pop_front();
            released += 1;
            if let Some(used) = self.used.get_mut(lane as usize).and_then(Option::as_mut) {
                let before = used.counts();
                used.waiting -= 1;
                count(&mut self.usage, used, before);
                used.supply.give(port);
                self.close(lane);
            }
        }
        released
    }

    /// When [`Lanes::expire`] has work, at the earliest.
    pub fn next_deadline(&self, quarantine: Duration) -> Option<Instant> {
        self.waiting.front().map(|first| first.since + quarantine)
    }

    /// What the lanes of each address use, however many these are.
    pub fn usage(&self) -> impl Iterator<Item = (Addr, &Usage)> {
        self.usage.iter().map(|(address, usage)| (*address, usage))
    }

    fn used(&self, lane: &Lane) -> Option<&Used> {
        self.used.get(*self.numbers.get(lane)? as usize)?.as_ref()
    }

    fn open(&mut self, lane: &Lane, slice: Slice, pool: &Pool) -> u32 {
        let (supply, in_use) = (Supply::new(slice), pool.state.clone());
        let used = Used { lane: *lane, supply, in_use, live: 0, waiting: 0, ends: Ends::default() };
        self.usage.entry(lane.pool).or_default().enter(used.counts());
        let number = match self.free.pop() {
            Some(number) => {
                self.used[number as usize] = Some(used);
                number
            }
            None => {
                self.used.push(Some(used));
                self.used.len() as u32 - 1
            }
        };
        self.numbers.insert(*lane, number);
        number
    }

    /// Forgets a lane that nothing is left of.
    fn close(&mut self, number: u32) {
        let slot = &mut self.used[number as usize];
        if let Some(used) = slot.take_if(|used| used.live == 0 && used.waiting == 0) {
            self.numbers.remove(&used.lane);
            self.free.push(number);
            if let Some(usage) = self.usage.get_mut(&used.lane.pool) {
                usage.leave(used.counts());
                if usage.is_empty() {
                    self.usage.remove(&used.lane.pool);
                }
            }
        }
    }

    /// Panics when lanes contradict themselves. `flow`: the lane, port and standing of the flow with this number; `flows`: how
    /// many flows have a port.
    pub fn check_invariants(&self, flows: usize, flow: impl Fn(u32) -> (Lane, u16, Standing)) {
        assert!(self.waiting.len() <= self.max_waiting + flows);
        let mut waiting: HashMap<u32, u32> = HashMap::new();
        for port in &self.waiting {
            *waiting.entry(port.lane).or_default() += 1;
        }
        assert!(self.waiting.iter().is_sorted_by_key(|port| port.since));
        let (mut live, mut lanes) = (0, 0);
        for (number, used) in self.used.iter().enumerate() {
            let Some(used) = used else { continue };
            lanes += 1;
            live += used.live as usize;
            assert_eq!(self.numbers.get(&used.lane), Some(&(number as u32)));
            assert_eq!(waiting.get(&(number as u32)).copied().unwrap_or_default(), used.waiting);
            assert_eq!(used.supply.taken(), (used.live + used.waiting) as usize, "{:?}", used.lane);
            assert!(used.live + used.waiting > 0, "nothing is left of {:?}", used.lane);
            for (queue, standing) in [(Queue::Finished, Standing::Finished), (Queue::HalfOpen, Standing::HalfOpen)] {
                for listed in self.queues.list(&used.ends, queue) {
                    let (lane, _, stands) = flow(listed);
                    assert_eq!((lane, stands), (used.lane, standing));
                }
            }
        }
        assert_eq!((lanes, live), (self.numbers.len(), flows));
        let mut sums: HashMap<Addr, Usage> = HashMap::new();
        self.used.iter().flatten().for_each(|used| sums.entry(used.lane.pool).or_default().enter(used.counts()));
        assert_eq!(sums.len(), self.usage.len());
        assert!(sums.iter().all(|(address, sum)| self.usage.get(address) == Some(sum)), "sums of lanes");
        assert_eq!(self.used.len(), lanes + self.free.len());
    }
}

/// A lane that had these counts has others now.
fn count(usage: &mut HashMap<Addr, Usage, HashKey>, used: &Used, before: [u64; 3]) {
    if let Some(usage) = usage.get_mut(&used.lane.pool) {
        usage.change(before, used.counts());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{PortRange, ServerSpec, ServiceSpec, Snapshot, SnapshotSpec};

    const QUARANTINE: Duration = Duration::from_secs(5);

    fn pool(ports: PortRange) -> Arc<Pool> {
        let address = Addr::from_v4([203, 0, 113, 100]);
        let mut service = ServiceSpec { method: crate::service::Method::Fullnat, ..ServiceSpec::default() };
        service.vip = Addr::from_v4([203, 0, 113, 10]);
        service.pool = crate::service::PoolSpec { addresses: vec![address], ports };
        service.servers = vec![ServerSpec { address: Addr::from_v4([10, 20, 0, 11]), ..ServerSpec::default() }];
        let spec = SnapshotSpec { services: vec![service], ..SnapshotSpec::default() };
        Snapshot::build(spec, None).expect("it is valid").pools.of(address).expect("it is there").clone()
    }

    fn lane(port: u16) -> Lane {
        let (pool, server) = (Addr::from_v4([203, 0, 113, 100]), Addr::from_v4([10, 20, 0, 11]));
        Lane { pool, server, port, protocol: Protocol::TCP }
    }

    fn lanes(max_waiting: usize) -> Lanes {
        Lanes::new((0, 1), [1, 2], 1024, max_waiting)
    }

    #[test]
    fn quarantine_has_a_bound() {
        let (pool, now) = (pool(PortRange { first: 1000, last: 1999 }), Instant::from_secs(9));
        let mut lanes = lanes(4);
        let taken: Vec<_> = (0..6).filter_map(|n| lanes.take(&lane(80), &pool, n << 40)).collect();
        taken[..4].iter().for_each(|(number, port)| lanes.give(now, *number, *port));
        assert_eq!((lanes.take(&lane(80), &pool, 1), lanes.foresee(&lane(81), &pool, 1)), (None, None));
        // Those that there were come to an end all the same.
        taken[4..].iter().for_each(|(number, port)| lanes.give(now, *number, *port));
        assert_eq!(pool.state.count(), 0);
        assert_eq!(lanes.expire(now + QUARANTINE, QUARANTINE, 2), 2, "as many as the budget has");
        assert_eq!(lanes.take(&lane(80), &pool, 1), None);
        assert_eq!(lanes.expire(now + QUARANTINE, QUARANTINE, 9), 4);
        assert!(lanes.numbers.is_empty() && lanes.next_deadline(QUARANTINE).is_none(), "nothing is left of the lane");
        assert!(lanes.take(&lane(80), &pool, 1).is_some());
    }

    #[test]
    fn a_lane_takes_little_while_it_has_few_ports() {
        let pool = pool(PortRange { first: 1024, last: 65535 });
        let mut lanes = lanes(1 << 16);
        // A scan of all ports of a server.
        let taken: Vec<_> = (1..=9999).filter_map(|port| lanes.take(&lane(port), &pool, u64::from(port))).collect();
        assert_eq!((taken.len(), lanes.numbers.len(), pool.state.count()), (9999, 9999, 9999));
        assert!(size_of::<Used>() <= 256, "{}", size_of::<Used>());
        for (number, port) in taken {
            lanes.give_unused(number, port);
        }
        assert!(lanes.numbers.is_empty());
        assert_eq!(pool.state.count(), 0);
    }

    #[test]
    fn time_that_was_taken_first_may_come_last() {
        let pool = pool(PortRange { first: 1000, last: 1999 });
        let mut lanes = lanes(4);
        let [first, second] = [1, 2].map(|random| lanes.take(&lane(80), &pool, random << 40).expect("it is free"));
        lanes.give(Instant::from_secs(2), first.0, first.1);
        lanes.give(Instant::from_secs(1), second.0, second.1);
        assert_eq!(lanes.expire(Instant::from_secs(6), QUARANTINE, 9), 0);
        assert_eq!(lanes.expire(Instant::from_secs(7), QUARANTINE, 9), 2);
    }
}
