//! Pools and masquerades, compiled; which of their addresses and ids stay while flows use them.
//!
//! # Theory of operation
//!
//! A [`Pool`] is one address: where its ports lead to is decided by shards, each for its own part of the ports
//! ([`owner_of_port`]). It has a [`PoolId`] for as long as a flow uses one of its ports, also when no configuration names it
//! any more; then it is *retired*: what comes for it still finds its flows, and none begins. The same holds for a
//! [`Masquerade`] and its [`ServiceId`], and for who was inside before a reload ([`Former`]). Shards count what they use in the state that both carry from snapshot to snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::former::{self, Former};
use super::{ForwardSpec, Map, MasqueradeSpec, Network, Npt, PortRange, ServiceId, SnapshotSpec};
use crate::service::Method;
use crate::wire::{Addr, Protocol, Tuple};

/// Names an address of a pool for as long as a flow uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u16);

/// What the ports of an address are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolUse {
    /// Flows by [`Method::Fullnat`].
    Fullnat,
    /// Mappings of this masquerade.
    Masquerade(ServiceId),
    /// Nothing but forwarded ports.
    Forward,
}

/// One address of a pool.
#[derive(Debug)]
pub struct Pool {
    pub id: PoolId,
    pub address: Addr,
    pub ports: PortRange,
    pub usage: PoolUse,
    /// Ranges that it had before, and that ports in use may be of.
    former: Vec<PortRange>,
    /// No configuration names it any more.
    pub is_retired: bool,
    pub state: Arc<InUse>,
}

impl Pool {
    /// The ports that may be in use: those that it gives away, and those that it has given away before.
    pub fn ranges(&self) -> impl Iterator<Item = PortRange> {
        std::iter::once(self.ports).chain(self.former.iter().copied())
    }

    /// Whether a reload may let go of it: it was retired by an earlier one, and nothing uses it any more.
    pub fn is_idle(&self) -> bool {
        self.is_retired && self.state.count() == 0
    }

    /// Whether what comes for `port` is for a flow or mapping, where the address is a VIP as well.
    pub fn has(&self, port: u16) -> bool {
        self.ports.contains(port) || self.former.iter().any(|range| range.contains(port))
    }
}

/// How many flows or mappings use something, over all shards.
#[derive(Debug, Default)]
pub struct InUse(AtomicU64);

impl InUse {
    pub fn start(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn end(&self) {
        // Below zero it would be in use for ever.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
    }

    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A masquerade, and its number, which flows have in place of a service's.
#[derive(Debug)]
pub struct Masquerade {
    pub id: ServiceId,
    pub spec: MasqueradeSpec,
    /// By family, IPv4 first: the addresses of its pool.
    pub pools: [Vec<PoolId>; 2],
    /// Another prefix instead of a pool; flows are none of its business.
    pub npt: Option<Npt>,
    pub state: Arc<InUse>,
}

/// Which shard may give away `port`, and finds the flows of what comes to it. Ports go by pairs, so that every shard has
/// even and odd ones (RFC 4787 REQ-4).
pub fn owner_of_port(port: u16, shards: u16) -> u16 {
    (port >> 1) % shards.max(1)
}

/// The pools and masquerades of a snapshot.
#[derive(Debug, Default)]
pub struct Pools {
    /// By [`PoolId`]; `None` where an id is free.
    all: Vec<Option<Arc<Pool>>>,
    by_address: Map<Addr, PoolId>,
    /// In the order of the configuration.
    pub live: Vec<Arc<Masquerade>>,
    /// By the number in their ids; `None` where one is free.
    masquerades: Vec<Option<Arc<Masquerade>>>,
    pub(super) former: Former,
    has_npt: bool,
    pub forwards: Vec<ForwardSpec>,
    /// Which of them concern an outside address, and which an inside one.
    forwards_of: Map<Addr, Vec<usize>>,
    forwards_to: Map<Addr, Vec<usize>>,
}

impl Pools {
    /// Those of `spec`, and those of `previous` that are in use, or may still come to be: a shard gives ports away by
    /// `previous` up to the moment it swaps.
    pub fn build(spec: &SnapshotSpec, previous: Option<&Pools>) -> Pools {
        let mut pools = Pools { forwards: spec.forwards.clone(), ..Pools::default() };
        if let Some(previous) = previous {
            pools.keep(previous);
        }
        for masquerade in &spec.masquerades {
            pools.admit_masquerade(masquerade, previous);
        }
        pools.former = previous.map(|previous| Former::after(previous, &pools.live)).unwrap_or_default();
        for service in &spec.services {
            let methods = service.all_methods();
            if methods.contains(&Method::Fullnat) {
                for address in &service.pool.addresses {
                    pools.admit(*address, service.pool.ports, PoolUse::Fullnat, previous);
                }
            }
        }
        for (at, forward) in spec.forwards.iter().enumerate() {
            pools.forwards_of.entry(forward.address).or_default().push(at);
            pools.forwards_to.entry(forward.to).or_default().push(at);
            if pools.of(forward.address).is_none_or(|pool| pool.is_retired) {
                pools.admit(forward.address, forward.ports, PoolUse::Forward, previous);
            }
        }
        for pool in pools.all.iter_mut().flatten().filter_map(Arc::get_mut) {
            // What a service listens at is the service's.
            let address = pool.address;
            let is_service = |range| spec.services.iter().any(|of| of.vip == address && of.ports.overlaps(range));
            pool.former.retain(|range| !is_service(*range));
        }
        pools
    }

    pub fn pool(&self, id: PoolId) -> Option<&Arc<Pool>> {
        self.all.get(usize::from(id.0))?.as_ref()
    }

    /// The pool address that `addr` is, retired ones included.
    #[inline]
    pub fn of(&self, addr: Addr) -> Option<&Arc<Pool>> {
        if self.by_address.is_empty() {
            return None;
        }
        self.pool(*self.by_address.get(&addr)?)
    }

    /// All addresses, retired ones included.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.all.iter().flatten()
    }

    /// All masquerades, retired ones included.
    pub fn masquerades(&self) -> impl Iterator<Item = &Arc<Masquerade>> {
        self.masquerades.iter().flatten()
    }

    /// Whether something is only kept for flows that have ended.
    pub fn has_idle(&self) -> bool {
        let is_live = |masquerade: &Arc<Masquerade>| self.live.iter().any(|live| live.id == masquerade.id);
        self.iter().any(|pool| pool.is_idle())
            || self.masquerades().any(|masquerade| !is_live(masquerade) && masquerade.state.count() == 0)
            || self.former.has_idle()
    }

    /// The masquerade of this number, retired ones included; `None` also for a service's.
    pub fn masquerade(&self, id: ServiceId) -> Option<&Arc<Masquerade>> {
        self.masquerades.get((id.0 & !ServiceId::MASQUERADE.0) as usize)?.as_ref().filter(|_| id.is_masquerade())
    }

    /// The masquerade that a packet from `src` to `dst` goes out by, as long as no service takes it: the narrowest network.
    #[inline]
    pub fn masquerade_for(&self, src: Addr, dst: Addr) -> Option<&Arc<Masquerade>> {
        former::outward(&self.live, src, dst)
    }

    /// Whether a packet from `src` to `dst` went out by a masquerade before some reload, so that it may be of a flow that lives
    /// since then.
    #[inline]
    pub fn was_outward(&self, src: Addr, dst: Addr) -> bool {
        self.former.was_outward(src, dst)
    }

    /// Whether a packet from `src` to `dst` goes out by a masquerade that did not before some reload, so that it may be of a flow
    /// that lives since then, and in which `src` is a stranger.
    #[inline]
    pub fn is_newly_outward(&self, src: Addr, dst: Addr) -> bool {
        !self.former.is_empty() && !self.was_outward(src, dst) && self.masquerade_for(src, dst).is_some()
    }

    /// All networks that are inside, or that flows live of which were.
    pub fn inside_networks(&self) -> impl Iterator<Item = Network> {
        self.masquerades().chain(self.former.iter()).flat_map(|masquerade| masquerade.spec.from.iter().copied())
    }

    /// Whether some prefix is translated.
    #[inline]
    pub fn has_npt(&self) -> bool {
        self.has_npt
    }

    /// The translation whose outside prefix `addr` is of.
    pub fn npt_of(&self, addr: Addr) -> Option<&Npt> {
        let all = self.live.iter().filter_map(|masquerade| masquerade.npt.as_ref());
        all.filter(|npt| npt.outside.contains(addr)).max_by_key(|npt| npt.outside.len)
    }

    /// Whether `addr` is of an inside network.
    pub fn is_inside(&self, addr: Addr) -> bool {
        former::is_inside(&self.live, addr)
    }

    /// Whether there is an address that something is translated to.
    #[inline]
    pub fn has_addresses(&self) -> bool {
        !self.by_address.is_empty()
    }

    /// The inside endpoint that a forwarded port of an outside address leads to.
    #[inline]
    pub fn forward_to(&self, (address, port): (Addr, u16), protocol: Protocol) -> Option<(Addr, u16)> {
        if self.forwards.is_empty() {
            return None;
        }
        let forwards = self.forwards_of.get(&address)?.iter().map(|at| &self.forwards[*at]);
        forwards
            .filter(|forward| forward.protocols.list().contains(&protocol))
            .find_map(|forward| forward.inside_of(port))
    }

    /// The outside endpoint that an inside one goes out by, since its port is forwarded: the first one configured.
    #[inline]
    pub fn forward_from(&self, (address, port): (Addr, u16), protocol: Protocol) -> Option<(Addr, u16)> {
        if self.forwards.is_empty() {
            return None;
        }
        let forwards = self.forwards_to.get(&address)?.iter().map(|at| &self.forwards[*at]);
        forwards
            .filter(|forward| forward.protocols.list().contains(&protocol))
            .find_map(|forward| forward.outside_of(port))
    }

    /// Whether what is sent to `addr` is for mappings.
    #[inline]
    pub fn is_mapped(&self, addr: Addr) -> bool {
        self.of(addr).is_some_and(|pool| pool.usage != PoolUse::Fullnat)
    }

    /// Whether a port of an outside address is one that mappings have, or is forwarded: nobody else's, where the address has
    /// another use as well.
    pub fn leads_inside(&self, tuple: &Tuple) -> bool {
        let has_ports = !tuple.protocol.is_icmp();
        let is_mapped = |pool: &Pool| matches!(pool.usage, PoolUse::Masquerade(_)) && pool.has(tuple.dport);
        has_ports
            && (self.of(tuple.dst).is_some_and(|pool| is_mapped(pool))
                || self.forward_to((tuple.dst, tuple.dport), tuple.protocol).is_some())
    }

    /// Whether ports are forwarded to `addr`.
    #[inline]
    pub fn is_forwarded_to(&self, addr: Addr) -> bool {
        !self.forwards.is_empty() && self.forwards_to.contains_key(&addr)
    }

    fn keep(&mut self, previous: &Pools) {
        for pool in &previous.all {
            let kept = pool.as_ref().filter(|pool| !pool.is_idle()).map(|pool| {
                let Pool { id, address, ports, usage, .. } = **pool;
                let (former, state) = (pool.former.clone(), pool.state.clone());
                Arc::new(Pool { id, address, ports, usage, former, is_retired: true, state })
            });
            self.all.push(kept);
        }
        self.by_address = self.iter().map(|pool| (pool.address, pool.id)).collect();
        let is_live = |old: &Masquerade| previous.live.iter().any(|live| live.id == old.id);
        let used = |old: &&Arc<Masquerade>| is_live(old) || old.state.count() > 0;
        self.masquerades = previous.masquerades.iter().map(|old| old.as_ref().filter(used).cloned()).collect();
    }

    fn admit(&mut self, address: Addr, ports: PortRange, usage: PoolUse, previous: Option<&Pools>) -> PoolId {
        let old = previous.and_then(|previous| previous.of(address));
        let known = self.by_address.get(&address).copied().or_else(|| {
            // Its slot was freed a moment ago, unless another address has it by now.
            old.map(|old| old.id).filter(|id| self.pool(*id).is_none())
        });
        let id = known.unwrap_or_else(|| {
            let free = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
            PoolId(u16::try_from(free).unwrap_or(u16::MAX))
        });
        let at = usize::from(id.0);
        if self.all.len() <= at {
            self.all.resize_with(at + 1, || None);
        }
        let state = self.all[at].as_ref().map(|pool| pool.state.clone());
        let state = state.or_else(|| old.map(|old| old.state.clone())).unwrap_or_default();
        let former = old.filter(|old| old.state.count() > 0).map(|old| {
            let ranges = old.former.iter().copied().chain([old.ports]);
            ranges.filter(|range| *range != ports).collect::<BTreeSet<_>>().into_iter().collect()
        });
        let former = former.unwrap_or_default();
        self.all[at] = Some(Arc::new(Pool { id, address, ports, usage, former, is_retired: false, state }));
        self.by_address.insert(address, id);
        id
    }

    fn admit_masquerade(&mut self, spec: &MasqueradeSpec, previous: Option<&Pools>) {
        let old = previous.and_then(|previous| previous.live.iter().find(|old| old.spec.name == spec.name));
        let number = match old {
            Some(old) => old.id.0 & !ServiceId::MASQUERADE.0,
            None => {
                let is_free = |at: &usize| {
                    self.masquerades.get(*at).is_none_or(Option::is_none)
                        && previous.is_none_or(|p| p.live.iter().all(|m| m.id.number() != *at))
                };
                (0..).find(is_free).unwrap_or(0) as u32
            }
        };
        let id = ServiceId(number | ServiceId::MASQUERADE.0);
        let mut pools = [Vec::new(), Vec::new()];
        for address in &spec.pool.addresses {
            let pool = self.admit(*address, spec.pool.ports, PoolUse::Masquerade(id), previous);
            pools[usize::from(!address.is_v4())].push(pool);
        }
        let state = old.map(|old| old.state.clone()).unwrap_or_default();
        let npt = spec.prefix.and_then(|outside| Npt::new(*spec.from.first()?, outside));
        self.has_npt |= npt.is_some();
        let masquerade = Arc::new(Masquerade { id, spec: spec.clone(), pools, npt, state });
        let at = id.number();
        if self.masquerades.len() <= at {
            self.masquerades.resize_with(at + 1, || None);
        }
        self.masquerades[at] = Some(masquerade.clone());
        self.live.push(masquerade);
    }
}

impl ServiceId {
    /// Set in the ids of masquerades: no service has a number as high.
    pub const MASQUERADE: ServiceId = ServiceId(1 << 31);

    pub const fn is_masquerade(self) -> bool {
        self.0 & ServiceId::MASQUERADE.0 != 0
    }

    /// In place of a masquerade's, of flows by a forwarded port of an address that is no masquerade's.
    pub const FORWARD: ServiceId = ServiceId(u32::MAX);

    /// The number without what tells a masquerade from a service.
    pub const fn number(self) -> usize {
        (self.0 & !ServiceId::MASQUERADE.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PoolSpec, Snapshot};
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().expect(text))
    }

    fn lan(to: &[&str]) -> SnapshotSpec {
        let pool = PoolSpec { addresses: to.iter().map(|text| addr(text)).collect(), ..PoolSpec::default() };
        let from = vec![super::super::Network { address: addr("10.20.0.0"), len: 24 }];
        let masquerades = vec![MasqueradeSpec { name: "lan".into(), from, pool, ..MasqueradeSpec::default() }];
        SnapshotSpec { masquerades, ..SnapshotSpec::default() }
    }

    #[test]
    fn an_address_in_use_outlives_its_configuration() {
        let first = Snapshot::build(lan(&["203.0.113.100", "203.0.113.101"]), None).expect("it is valid");
        let used = first.pools.of(addr("203.0.113.101")).expect("it is there").clone();
        used.state.start();
        let second = Snapshot::build(lan(&["203.0.113.100"]), Some(&first)).expect("it is valid");
        let kept = second.pools.of(addr("203.0.113.101")).expect("it is kept");
        assert!(kept.is_retired && kept.id == used.id);
        let id = second.pools.live[0].id;
        assert_eq!(id, first.pools.live[0].id);
        used.state.end();
        let third = Snapshot::build(lan(&["203.0.113.100", "203.0.113.102"]), Some(&second)).expect("it is valid");
        assert!(third.pools.of(addr("203.0.113.101")).is_none());
        assert_eq!(third.pools.of(addr("203.0.113.102")).map(|pool| pool.id), Some(used.id), "the id is free");
    }

    #[test]
    fn who_was_inside_is_known_while_flows_live() {
        let from = |texts: &[(&str, u8)]| {
            let mut spec = lan(&["203.0.113.100"]);
            spec.masquerades[0].from =
                texts.iter().map(|(text, len)| Network { address: addr(text), len: *len }).collect();
            spec
        };
        let (inside, other, remote) = (addr("10.20.0.2"), addr("10.21.0.2"), addr("198.51.100.2"));
        let first = Snapshot::build(from(&[("10.20.0.0", 24)]), None).expect("it is valid");
        let pool = first.pools.of(addr("203.0.113.100")).expect("it is there").state.clone();
        let states = [first.pools.live[0].state.clone(), pool];
        states.iter().for_each(|state| state.start());
        let is_ruled = |snapshot: &Snapshot| snapshot.pools.inside_networks().any(|network| network.contains(inside));
        // Narrower, gone, elsewhere, and wider.
        let other_network = [("10.21.0.0", 24)];
        for spec in [from(&[("10.20.0.3", 32)]), SnapshotSpec::default(), from(&other_network)] {
            let next = Snapshot::build(spec, Some(&first)).expect("it is valid");
            assert!(next.pools.masquerade_for(inside, remote).is_none() && next.pools.was_outward(inside, remote));
            assert!(is_ruled(&next) && next.tidied().is_none(), "{:?}", next.spec);
            assert_eq!(next.pools.is_newly_outward(other, remote), next.pools.masquerade_for(other, remote).is_some());
            assert!(!next.pools.was_outward(inside, addr("10.20.0.9")), "they were both inside");
            // Another reload, of something else.
            let later = Snapshot::build(SnapshotSpec { mtu: 1400, ..next.spec.clone() }, Some(&next));
            assert!(later.expect("it is valid").pools.was_outward(inside, remote));
            states.iter().for_each(|state| state.end());
            let tidied = next.tidied().expect("nothing needs it");
            assert!(!tidied.pools.was_outward(inside, remote) && !is_ruled(&tidied) && tidied.tidied().is_none());
            states.iter().for_each(|state| state.start());
        }
    }

    #[test]
    fn reloads_are_known_up_to_a_bound() {
        let mut snapshot = Snapshot::build(lan(&["203.0.113.100"]), None).expect("it is valid");
        snapshot.pools.live[0].state.start();
        for n in 1..40 {
            let mut spec = lan(&["203.0.113.100"]);
            spec.masquerades[0].from[0].address = addr(&format!("10.{}.0.0", n + 20));
            snapshot = Snapshot::build(spec, Some(&snapshot)).expect("it is valid");
        }
        let remote = addr("198.51.100.2");
        let known = (0..40).filter(|n| snapshot.pools.was_outward(addr(&format!("10.{}.0.2", n + 20)), remote));
        assert_eq!(known.collect::<Vec<_>>(), (23..39).collect::<Vec<_>>());
    }

    #[test]
    fn the_narrowest_network_masquerades() {
        let mut spec = lan(&["203.0.113.100"]);
        let from = vec![super::super::Network { address: addr("10.20.0.128"), len: 25 }];
        let pool = PoolSpec { addresses: vec![addr("203.0.113.101")], ..PoolSpec::default() };
        spec.masquerades.push(MasqueradeSpec { name: "half".into(), from, pool, ..MasqueradeSpec::default() });
        let snapshot = Snapshot::build(spec, None).expect("it is valid");
        let name = |src: &str, dst: &str| {
            snapshot.pools.masquerade_for(addr(src), addr(dst)).map(|masquerade| masquerade.spec.name.as_str())
        };
        assert_eq!(name("10.20.0.1", "198.51.100.2"), Some("lan"));
        assert_eq!(name("10.20.0.129", "198.51.100.2"), Some("half"));
        assert_eq!(name("10.21.0.129", "198.51.100.2"), None);
        assert_eq!(name("10.20.0.1", "10.20.0.129"), None);
    }
}
