//! What a new configuration does to mappings.

use super::outside::Outside;
use super::{DETACHED, FORWARD, FREE, HELD, Kind, Mappings};
use crate::service::{PoolUse, Pools, PortRange};
use crate::wire::Addr;

impl Mappings {
    /// Goes by another configuration from now on. An address whose ports are no longer what they were is looked through once;
    /// all others stay as they are.
    pub fn settle(&mut self, pools: &Pools) {
        let mut changed = Vec::new();
        for (number, slot) in self.outsides.iter_mut().enumerate() {
            let Some(outside) = slot else { continue };
            if pools.of(outside.address).is_none() && outside.mappings == 0 && outside.hosts == 0 {
                self.by_address.remove(&outside.address);
                self.quarantine.retain(|port| usize::from(port.address) != number);
                *slot = None;
                continue;
            }
            let (range, forwarded) = configured(outside.address, pools);
            if let Some(kinds) = outside.configure(range, forwarded) {
                kinds.into_iter().for_each(|kind| outside.prepare(kind, self.shard.0, self.shard.1));
                changed.push(number as u16);
            }
        }
        if changed.is_empty() {
            return;
        }
        for (number, record) in self.records.iter().enumerate() {
            if record.has(FREE | FORWARD) || !changed.contains(&record.address) {
                continue;
            }
            if let Some(outside) = &mut self.outsides[usize::from(record.address)] {
                outside.take_this(record.kind, record.outside);
                outside.note(record.kind, record.outside, Some(number as u32));
            }
        }
        for port in self.quarantine.iter().filter(|port| changed.contains(&port.address)) {
            if let Some(outside) = &mut self.outsides[usize::from(port.address)] {
                outside.take_this(port.kind, port.port);
            }
        }
    }

    /// The number of an outside address of `pools`.
    pub(super) fn outside_number(&mut self, address: Addr, pools: &Pools) -> Option<u16> {
        if let Some(number) = self.by_address.get(&address) {
            return Some(*number);
        }
        let outside = fresh(address, pools)?;
        let free = self.outsides.iter().position(Option::is_none);
        let number = match free {
            Some(free) => {
                self.outsides[free] = Some(outside);
                u16::try_from(free).ok()?
            }
            None => {
                let number = u16::try_from(self.outsides.len()).ok().filter(|number| *number != super::NONE)?;
                self.outsides.push(Some(outside));
                number
            }
        };
        self.by_address.insert(address, number);
        Some(number)
    }

    /// Panics when the table contradicts itself; for tests.
    pub fn check_invariants(&self) {
        let key = super::HashKey(self.key);
        let mut inside = super::Map::with_hasher(key);
        let mut outside = super::Map::with_hasher(key);
        let mut hosts = super::Map::with_hasher(key);
        let mut addresses = super::Map::with_hasher(key);
        let mut len = 0;
        for (number, record) in self.records.iter().enumerate().filter(|(_, record)| !record.has(FREE)) {
            len += 1;
            let number = number as u32;
            assert!(!record.is_idle(), "mapping {number} has no flow");
            assert_eq!(record.has(HELD), self.holds.contains_key(&number), "holds of mapping {number}");
            *hosts.entry(record.host).or_insert(0) += 1;
            *addresses.entry(record.address).or_insert(0) += 1;
            let ends = self.known(number);
            let first = outside.insert((ends.outside, record.kind), number);
            assert!(first.is_none() || record.has(FORWARD), "{first:?} and {number} both have {:?}", ends.outside);
            if record.has(DETACHED) {
                continue;
            }
            assert_eq!(self.attached(ends.inside, record.kind), Some(number), "{:?} is not found", ends.inside);
            assert!(inside.insert((ends.inside, record.kind), number).is_none(), "{:?} has two", ends.inside);
            if record.has(FORWARD) {
                assert_eq!(self.forwarded.get(&(record.address, record.kind, record.outside)), Some(&number));
            }
        }
        assert!(self.holds.keys().all(|number| !self.records[*number as usize].has(FREE)), "holds of no mapping");
        assert_eq!((len, inside.len()), (self.len, self.index.len()));
        assert_eq!(hosts.len(), self.hosts.len(), "hosts without a mapping");
        for (number, host) in self.hosts.iter() {
            assert_eq!(hosts.get(&number), Some(&host.mappings), "mappings of {}", host.address);
        }
        for (number, slot) in self.outsides.iter().enumerate() {
            let Some(slot) = slot else { continue };
            assert_eq!(addresses.get(&(number as u16)).copied().unwrap_or(0), slot.mappings, "{}", slot.address);
            let paired = self.hosts.iter().filter(|(_, host)| usize::from(host.outside) == number).count();
            assert_eq!(paired as u32, slot.hosts, "hosts of {}", slot.address);
            let waiting = self.quarantine.iter().filter(|port| usize::from(port.address) == number).count();
            let forwards = self.forwarded.keys().filter(|(address, ..)| usize::from(*address) == number).count();
            assert_eq!((waiting as u32, forwards as u32), (slot.waiting, slot.forwards), "{}", slot.address);
        }
        assert!(self.peers.len() <= self.max && self.quarantine.len() <= super::MAX_QUARANTINED);
        assert!(self.peers.mappings().all(|number| !self.records[number as usize].has(FREE)), "peers of no mapping");
        for port in &self.quarantine {
            let Some(outside) = &self.outsides[usize::from(port.address)] else { panic!("an address that is gone") };
            assert_eq!(outside.mapping(port.kind, port.port), None, "{} in quarantine has a mapping", port.port);
        }
    }
}

/// An outside address of `pools` none of whose ports is in use.
pub(super) fn fresh(address: Addr, pools: &Pools) -> Option<Outside> {
    let mut outside = Outside::new(address, pools.of(address)?.state.clone());
    let (range, forwarded) = configured(address, pools);
    outside.configure(range, forwarded);
    Some(outside)
}

/// The ports of an address that may be given away, and those that are forwarded.
fn configured(address: Addr, pools: &Pools) -> (PortRange, Vec<(Kind, PortRange)>) {
    let pool = pools.of(address).filter(|pool| !pool.is_retired && matches!(pool.usage, PoolUse::Masquerade(_)));
    let Some(pool) = pool else { return (PortRange { first: 1, last: 0 }, Vec::new()) };
    let forwards = pools.forwards.iter().filter(|forward| forward.address == address);
    let kinds = forwards.flat_map(|forward| {
        forward.protocols.list().iter().filter_map(|protocol| Some((Kind::of(*protocol)?, forward.ports)))
    });
    (pool.ports, kinds.collect())
}
