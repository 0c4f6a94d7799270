//! Mappings of masquerades: which outside endpoint stands for which inside one.
//!
//! # Theory of operation
//!
//! A *mapping* ties an inside endpoint (address, port, protocol) to an outside one (an address of a pool, a port). It belongs to
//! the shard of the inside address, which gives away ports of its own part only, so that what comes from outside finds it by
//! the port ([`crate::service::owner_of_port`]). All flows of the inside endpoint use it, whoever they go to (RFC 4787 REQ-1,
//! RFC 5382 REQ-1), and no other inside endpoint has the port, whoever that talks to (RFC 4787 REQ-3, RFC 5382 REQ-7). For ICMP
//! queries the identifier takes the place of the port.
//!
//! An inside host has one outside address for as long as it has a mapping (REQ-2). When that has no port left the host is
//! refused, and not moved to another one: behaviour does not change under load (REQ-11).
//!
//! It is made for its first flow and goes with its last one. Flows are of two sorts:
//!
//! * those that the inside host has sent in. They keep the mapping, and the port open for others, where filtering lets them in.
//! * those that somebody outside has begun, and nobody inside has answered. They do not: whoever knows the port could else
//!   keep it for ever (RFC 4787 section 4.3; RFC 7857 section 2.1). New ones come only while there is one of the first sort,
//!   no more than [`MAX_UNANSWERED`] at a time, and what their sender sends does not prolong them.
//!
//! What is expected to begin with a mapping holds it as well. That keeps it, and opens it to nobody else.
//!
//! The port of a mapping that has gone is in *quarantine* for a while, so that what is still on its way to it reaches nobody
//! else.
//!
//! *Forwarded* ports are mappings by configuration. Nobody gets their port from the pool, their inside endpoint goes out by it,
//! and they take what comes at any time. A record is made of one while it has flows.
//!
//! A mapping that the configuration no longer allows (its address is in no pool any more, its inside endpoint is forwarded to now)
//! is *detached*: its flows go on, new ones get another, and none comes in.
//!
//! # Memory
//!
//! A record is 16 bytes, its entry in the index 8, and a port 4: nothing else grows with mappings but the addresses of peers, where
//! filtering asks for them. All is set aside once, and
//! what is not touched costs nothing. Hosts are few beside mappings, and are set aside as they come.
//!
//! What cannot happen: two mappings with one outside endpoint; two attached mappings of one inside endpoint; a mapping that no
//! flow uses and nothing holds after the engine has dealt with a packet; a port that is free, or in quarantine, and has a mapping.
//! [`Mappings::check_invariants`] says so.

mod counts;
mod hosts;
mod numbers;
mod outside;
mod peers;
mod settle;
#[cfg(test)]
mod tests;
mod unsolicited;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher13;

use crate::service::{Masquerade, Pool, PoolId, PoolUse, Pools, owner_of_port};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, Protocol};
pub use counts::MAX_UNANSWERED;
use hosts::{Hosts, NONE};
use numbers::Numbers;
use outside::Outside;
use peers::Peers;
pub use unsolicited::{Unsolicited, UnsolicitedSyns};

/// Ports of a shard in quarantine at a time; beyond that the oldest is let go early.
const MAX_QUARANTINED: usize = 1 << 16;
/// Ports let out of quarantine for each one that is given away.
const RELEASED: usize = 64;

const NIL: u32 = u32::MAX;

/// A protocol by the space that its ports or identifiers are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Tcp = 0,
    Udp = 1,
    Icmp = 2,
}

impl Kind {
    const COUNT: usize = 3;
    pub const ALL: [Kind; Kind::COUNT] = [Kind::Tcp, Kind::Udp, Kind::Icmp];

    /// `None`: a protocol without ports that could be translated.
    pub const fn of(protocol: Protocol) -> Option<Kind> {
        match protocol {
            Protocol::TCP => Some(Kind::Tcp),
            Protocol::UDP => Some(Kind::Udp),
            Protocol::ICMP | Protocol::ICMPV6 => Some(Kind::Icmp),
            _ => None,
        }
    }

    /// As it is between hosts of one family.
    pub const fn protocol(self, is_v4: bool) -> Protocol {
        match (self, is_v4) {
            (Kind::Tcp, _) => Protocol::TCP,
            (Kind::Udp, _) => Protocol::UDP,
            (Kind::Icmp, true) => Protocol::ICMP,
            (Kind::Icmp, false) => Protocol::ICMPV6,
        }
    }
}

/// An address, and a port or identifier.
pub type Endpoint = (Addr, u16);

/// The number of a mapping that there is; what [`crate::flow::Flow::mapping`] keeps.
pub type MappingId = u32;

/// A mapping. In a free place: nothing but the next one, in `host`.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    host: u32,
    inside: u16,
    outside: u16,
    /// The number of the outside address.
    address: u16,
    kind: Kind,
    marks: u8,
    /// Flows that inside has sent in, and below them those that it has not: see [`counts`].
    flows: u32,
}

/// A forwarded port.
const FORWARD: u8 = 1;
/// The inside endpoint has another one by now, or will have.
const DETACHED: u8 = 2;
const FREE: u8 = 4;
/// It is kept for more than its flows.
const HELD: u8 = 8;

impl Mapping {
    fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }
}

/// A mapping as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub inside: Endpoint,
    pub outside: Endpoint,
    pub protocol: Protocol,
    pub flows: u32,
    /// Those that keep it besides flows.
    pub holds: u32,
    pub is_forward: bool,
}

/// Who wants a mapping, and by what rules.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub inside: Endpoint,
    pub kind: Kind,
    pub masquerade: &'a Masquerade,
    pub pools: &'a Pools,
}

impl Wanted<'_> {
    /// The addresses of the pool that are of the host's family.
    fn ids(&self) -> &[PoolId] {
        &self.masquerade.pools[usize::from(!self.inside.0.is_v4())]
    }

    fn addresses(&self) -> impl Iterator<Item = &Pool> {
        self.ids().iter().filter_map(|id| self.pools.pool(*id).map(AsRef::as_ref))
    }
}

/// The mapping that an inside endpoint has, or would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen {
    pub inside: Endpoint,
    pub address: Addr,
    /// `None`: one that is chosen at random.
    pub port: Option<u16>,
    /// There is one already; forwarded ports always have one.
    pub exists: bool,
    pub is_forward: bool,
}

struct Quarantined {
    until: Instant,
    address: u16,
    port: u16,
    kind: Kind,
}

/// The mappings of one shard.
pub struct Mappings {
    records: Vec<Mapping>,
    free: u32,
    len: usize,
    max: usize,
    /// Attached mappings by inside endpoint.
    index: Numbers,
    hosts: Hosts,
    outsides: Vec<Option<Outside>>,
    by_address: Map<Addr, u16>,
    /// Forwarded ports that have a record.
    forwarded: Map<(u16, Kind, u16), MappingId>,
    /// How many keep a mapping besides its flows.
    holds: Map<MappingId, u32>,
    quarantine: VecDeque<Quarantined>,
    peers: Peers,
    key: [u64; 2],
    shard: (u16, u16),
}

/// Strangers choose what is looked for.
type Map<K, V> = HashMap<K, V, HashKey>;

#[derive(Clone, Copy)]
struct HashKey([u64; 2]);

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

impl Mappings {
    /// For `shard` of `shards` with `max` flows; `key` must be a secret.
    pub fn new(max: usize, shard: u16, shards: u16, key: [u64; 2]) -> Mappings {
        Mappings {
            records: Vec::new(),
            free: NIL,
            len: 0,
            max,
            index: Numbers::default(),
            hosts: Hosts::new(key),
            outsides: Vec::new(),
            by_address: Map::with_hasher(HashKey(key)),
            forwarded: Map::with_hasher(HashKey(key)),
            holds: Map::with_hasher(HashKey(key)),
            quarantine: VecDeque::new(),
            peers: Peers::new(max, key),
            key,
            shard: (shard, shards),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The attached mapping of an inside endpoint, if the configuration still has it so.
    pub fn of_inside(&self, wanted: &Wanted<'_>) -> Option<MappingId> {
        let number = self.attached(wanted.inside, wanted.kind)?;
        self.is_allowed(number, wanted).then_some(number)
    }

    /// The mapping that new flows from outside may come to.
    pub fn at_outside(&self, outside: Endpoint, kind: Kind) -> Option<MappingId> {
        let address = *self.by_address.get(&outside.0)?;
        let number = self.outsides[usize::from(address)].as_ref()?.mapping(kind, outside.1)?;
        (!self.records[number as usize].has(DETACHED)).then_some(number)
    }

    /// The record of a forwarded port, if it has flows.
    pub fn forwarded(&self, inside: Endpoint, outside: Endpoint, kind: Kind) -> Option<MappingId> {
        let address = *self.by_address.get(&outside.0)?;
        let number = *self.forwarded.get(&(address, kind, outside.1))?;
        (self.inside(number) == inside).then_some(number)
    }

    /// The mapping of an inside endpoint; a new one has no flow yet, and must get one, or be [`Mappings::discard`]ed.
    pub fn map(&mut self, now: Instant, wanted: &Wanted<'_>, random: u64) -> Result<MappingId, DropReason> {
        match self.attached_or_detach(wanted) {
            Some(number) => Ok(number),
            None => self.make(now, wanted, None, random),
        }
    }

    /// As [`Mappings::map`], at this outside address alone: the other end of a connection of the inside host's is told of the
    /// port, and knows the address from that connection.
    pub fn map_at(
        &mut self,
        now: Instant,
        wanted: &Wanted<'_>,
        outside: Addr,
        random: u64,
    ) -> Result<MappingId, DropReason> {
        if let Some(number) = self.attached_or_detach(wanted) {
            return if self.outside(number).0 == outside { Ok(number) } else { Err(DropReason::PortCollision) };
        }
        let address = self.outside_number(outside, wanted.pools).filter(|number| self.is_paired(*number, wanted));
        self.make(now, wanted, Some(address.ok_or(DropReason::PoolExhausted)?), random)
    }

    /// The attached mapping of an inside endpoint; one that the configuration does not allow any more is none.
    fn attached_or_detach(&mut self, wanted: &Wanted<'_>) -> Option<MappingId> {
        let number = self.attached(wanted.inside, wanted.kind)?;
        let is_allowed = self.is_allowed(number, wanted);
        if !is_allowed {
            self.detach(number);
        }
        is_allowed.then_some(number)
    }

    /// A mapping of an inside endpoint that has none, at the host's address or at another one.
    fn make(
        &mut self,
        now: Instant,
        wanted: &Wanted<'_>,
        at: Option<u16>,
        random: u64,
    ) -> Result<MappingId, DropReason> {
        self.release(now, RELEASED);
        let host = self.hosts.find(wanted.inside.0);
        if host.is_some_and(|host| self.hosts.host(host).mappings >= wanted.masquerade.spec.max_mappings) {
            return Err(DropReason::SourceLimit);
        }
        if self.len >= self.max {
            return Err(DropReason::TableFull);
        }
        let address = match at {
            Some(address) => {
                self.prepare(address, wanted.kind);
                address
            }
            None => self.address_for(host, wanted)?,
        };
        let outside = self.outsides[usize::from(address)].as_mut();
        let port = outside.and_then(|outside| outside.take(wanted.kind, wanted.inside.1, random));
        let port = port.ok_or(DropReason::PoolExhausted)?;
        let host = host.unwrap_or_else(|| self.hosts.enter(wanted.inside.0));
        if at.is_none() || self.hosts.host(host).outside == NONE {
            self.pair(host, address);
        }
        let number = self.enter(host, wanted.inside.1, (address, port), wanted.kind, 0);
        if let Some(outside) = &mut self.outsides[usize::from(address)] {
            outside.note(wanted.kind, port, Some(number));
        }
        Ok(number)
    }

    /// What [`Mappings::map`] would answer.
    pub fn foresee(&self, wanted: &Wanted<'_>) -> Result<Foreseen, DropReason> {
        let inside = wanted.inside;
        if let Some(number) = self.of_inside(wanted) {
            let Known { outside: (address, port), is_forward, .. } = self.known(number);
            return Ok(Foreseen { inside, address, port: Some(port), exists: true, is_forward });
        }
        let host = self.hosts.find(inside.0);
        if host.is_some_and(|host| self.hosts.host(host).mappings >= wanted.masquerade.spec.max_mappings) {
            return Err(DropReason::SourceLimit);
        }
        let (shard, shards) = self.shard;
        let has_room = |address: &Addr| match self.outside_of(*address) {
            Some(outside) => outside.has_room(wanted.kind, shard, shards),
            None => settle::fresh(*address, wanted.pools).is_some_and(|it| it.has_room(wanted.kind, shard, shards)),
        };
        let paired = self.paired(host, wanted).and_then(|number| self.outsides[usize::from(number)].as_ref());
        let address = match paired {
            Some(outside) => Some(outside.address).filter(has_room),
            None => {
                let all = wanted.addresses().map(|pool| pool.address);
                self.candidates(wanted).into_iter().flatten().chain(all).find(has_room)
            }
        };
        let address = address.ok_or(DropReason::PoolExhausted)?;
        let is_free = self.outside_of(address).is_none_or(|outside| outside.is_free(wanted.kind, inside.1));
        let is_own = wanted.pools.of(address).is_some_and(|pool| pool.ports.contains(inside.1))
            && owner_of_port(inside.1, self.shard.1) == self.shard.0
            && wanted.pools.forward_to((address, inside.1), wanted.kind.protocol(address.is_v4())).is_none();
        let port = Some(inside.1).filter(|_| is_free && is_own);
        Ok(Foreseen { inside, address, port, exists: false, is_forward: false })
    }

    /// The same for a forwarded port.
    pub fn map_forward(
        &mut self,
        inside: Endpoint,
        outside: Endpoint,
        kind: Kind,
        pools: &Pools,
    ) -> Result<MappingId, DropReason> {
        if let Some(number) = self.forwarded(inside, outside, kind) {
            return Ok(number);
        }
        if self.len >= self.max {
            return Err(DropReason::TableFull);
        }
        let address = self.outside_number(outside.0, pools).ok_or(DropReason::NoMapping)?;
        // It led somewhere else before.
        if let Some(old) = self.forwarded.remove(&(address, kind, outside.1)) {
            self.count_forwards(address, -1);
            self.detach(old);
        }
        let is_first = pools.forward_from(inside, kind.protocol(inside.0.is_v4())) == Some(outside);
        let marks = match self.attached(inside, kind) {
            Some(old) if is_first => {
                self.detach(old);
                FORWARD
            }
            None if is_first => FORWARD,
            // Another forwarded port is the one that it goes out by.
            _ => FORWARD | DETACHED,
        };
        let host = self.hosts.find(inside.0).unwrap_or_else(|| self.hosts.enter(inside.0));
        let number = self.enter(host, inside.1, (address, outside.1), kind, marks);
        self.forwarded.insert((address, kind, outside.1), number);
        self.count_forwards(address, 1);
        Ok(number)
    }

    /// A flow goes to `peer`, which the mapping lets in for that; [`Mappings::forget_peer`] when it ends.
    pub fn note_peer(&mut self, number: MappingId, peer: Addr) {
        self.peers.note(number, peer);
    }

    pub fn forget_peer(&mut self, number: MappingId, peer: Addr) {
        self.peers.forget(number, peer);
    }

    pub fn has_peer(&self, number: MappingId, peer: Addr) -> bool {
        self.peers.knows(number, peer)
    }

    /// Lets ports out of quarantine whose time is over, `budget` at most.
    pub fn release(&mut self, now: Instant, budget: usize) {
        for _ in 0..budget {
            if self.quarantine.front().is_none_or(|port| port.until > now) {
                return;
            }
            self.release_one();
        }
    }

    /// A mapping that there is.
    pub fn known(&self, number: MappingId) -> Known {
        let record = &self.records[number as usize];
        let inside = self.inside(number);
        Known {
            inside,
            outside: self.outside(number),
            protocol: record.kind.protocol(inside.0.is_v4()),
            flows: record.answered() + record.unanswered(),
            holds: self.holds.get(&number).copied().unwrap_or(0),
            is_forward: record.has(FORWARD),
        }
    }

    /// The first mapping whose number is not below `cursor`, and where to go on.
    pub fn next_from(&self, cursor: usize) -> Option<(MappingId, usize)> {
        let at = (cursor..self.records.len()).find(|at| !self.records[*at].has(FREE))?;
        Some((at as u32, at + 1))
    }

    pub fn inside(&self, number: MappingId) -> Endpoint {
        let record = &self.records[number as usize];
        (self.hosts.host(record.host).address, record.inside)
    }

    pub fn outside(&self, number: MappingId) -> Endpoint {
        let record = &self.records[number as usize];
        let address = self.outsides[usize::from(record.address)].as_ref().map(|outside| outside.address);
        (address.unwrap_or_default(), record.outside)
    }

    /// How many inside hosts have a mapping.
    pub fn inside_hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Of each outside address: ports with a mapping, ports in quarantine, and all; and how much of those of one protocol is
    /// taken, in thousandths, where most is.
    pub fn usage(&self) -> Vec<(Addr, [u64; 3], u16)> {
        let each = self.outsides.iter().flatten().map(|outside| {
            let [waiting, forwards] = [outside.waiting, outside.forwards].map(u64::from);
            let in_use = outside.taken().saturating_sub(waiting) + forwards;
            (outside.address, [in_use, waiting, outside.size() + forwards], outside.fullest())
        });
        each.collect()
    }

    fn attached(&self, (address, port): Endpoint, kind: Kind) -> Option<MappingId> {
        let host = self.hosts.find(address)?;
        self.index.find(hash(self.key, host, port, kind), |number| {
            let record = &self.records[number as usize];
            (record.host, record.inside, record.kind) == (host, port, kind)
        })
    }

    /// Whether the configuration would still make this mapping.
    fn is_allowed(&self, number: MappingId, wanted: &Wanted<'_>) -> bool {
        let record = &self.records[number as usize];
        let outside = self.outside(number);
        let protocol = record.kind.protocol(outside.0.is_v4());
        if record.has(FORWARD) {
            return wanted.pools.forward_to(outside, protocol) == Some(wanted.inside);
        }
        self.is_paired(record.address, wanted)
            && wanted.pools.of(outside.0).is_some_and(|pool| pool.ports.contains(outside.1))
            && wanted.pools.forward_to(outside, protocol).is_none()
    }

    /// Whether an outside address is one for the masquerade's hosts.
    fn is_paired(&self, address: u16, wanted: &Wanted<'_>) -> bool {
        let outside = self.outsides.get(usize::from(address)).and_then(Option::as_ref);
        let pool = outside.and_then(|outside| wanted.pools.of(outside.address));
        pool.is_some_and(|pool| !pool.is_retired && pool.usage == PoolUse::Masquerade(wanted.masquerade.id))
    }

    /// The outside address of a host's next mapping: the one that it has, or one of the pool's with a port left.
    fn address_for(&mut self, host: Option<u32>, wanted: &Wanted<'_>) -> Result<u16, DropReason> {
        if let Some(address) = self.paired(host, wanted) {
            self.prepare(address, wanted.kind);
            return Ok(address);
        }
        let all = wanted.addresses().map(|pool| pool.address);
        self.candidates(wanted)
            .into_iter()
            .flatten()
            .chain(all)
            .find_map(|address| {
                let number = self.outside_number(address, wanted.pools)?;
                self.prepare(number, wanted.kind);
                self.outsides[usize::from(number)].as_ref().filter(|outside| outside.left(wanted.kind) > 0)?;
                Some(number)
            })
            .ok_or(DropReason::PoolExhausted)
    }

    /// The outside address that goes with a host, if it still may.
    fn paired(&self, host: Option<u32>, wanted: &Wanted<'_>) -> Option<u16> {
        let address = self.hosts.host(host?).outside;
        self.is_paired(address, wanted).then_some(address)
    }

    /// Of two addresses that a host's own leads to, the one with fewer hosts first.
    fn candidates(&self, wanted: &Wanted<'_>) -> [Option<Addr>; 2] {
        let pools = wanted.ids();
        if pools.is_empty() {
            return [None, None];
        }
        let hash = self.hosts.hash(wanted.inside.0);
        let address = |at: u64| wanted.pools.pool(pools[at as usize % pools.len()]).map(|pool| pool.address);
        let two = [address(hash & 0xffff_ffff), address(hash >> 32)];
        let hosts = |address: Option<Addr>| self.outside_of(address?).map(|outside| outside.hosts);
        let [first, second] = two.map(|address| hosts(address).unwrap_or(0));
        // Who comes back had better find the address that it had.
        if first > second + second / 64 + 1 { [two[1], two[0]] } else { two }
    }

    fn outside_of(&self, address: Addr) -> Option<&Outside> {
        self.outsides[usize::from(*self.by_address.get(&address)?)].as_ref()
    }

    /// From now on this is the host's outside address.
    fn pair(&mut self, host: u32, address: u16) {
        let old = std::mem::replace(&mut self.hosts.host_mut(host).outside, address);
        if old == address {
            return;
        }
        if let Some(Some(outside)) = self.outsides.get_mut(usize::from(old)) {
            outside.hosts -= 1;
        }
        if let Some(Some(outside)) = self.outsides.get_mut(usize::from(address)) {
            outside.hosts += 1;
        }
    }

    fn prepare(&mut self, address: u16, kind: Kind) {
        let (shard, shards) = self.shard;
        if let Some(Some(outside)) = self.outsides.get_mut(usize::from(address)) {
            outside.prepare(kind, shard, shards);
        }
    }

    /// Enters a record, and its inside endpoint unless that is another's.
    fn enter(&mut self, host: u32, inside: u16, (address, outside): (u16, u16), kind: Kind, marks: u8) -> MappingId {
        if self.records.capacity() == 0 {
            self.records = Vec::with_capacity(self.max);
            self.index = Numbers::new(self.max);
        }
        let record = Mapping { host, inside, outside, address, kind, marks, flows: 0 };
        let number = match self.free {
            NIL => {
                self.records.push(record);
                self.records.len() as u32 - 1
            }
            free => {
                self.free = self.records[free as usize].host;
                self.records[free as usize] = record;
                free
            }
        };
        if marks & DETACHED == 0 {
            self.index.insert(hash(self.key, host, inside, kind), number);
        }
        self.hosts.host_mut(host).mappings += 1;
        if let Some(outside) = &mut self.outsides[usize::from(address)] {
            outside.mappings += 1;
            outside.state.start();
        }
        self.len += 1;
        number
    }

    /// Takes out a record. Its port is free at `until`; `None`: at once.
    fn remove(&mut self, number: MappingId, until: Option<Instant>) {
        self.detach(number);
        let record = self.records[number as usize];
        let Mapping { host, outside: port, address, kind, .. } = record;
        if let Some(outside) = &mut self.outsides[usize::from(address)] {
            outside.mappings -= 1;
            outside.state.end();
            if !record.has(FORWARD) {
                outside.note(kind, port, None);
            }
        }
        if record.has(FORWARD) {
            if self.forwarded.get(&(address, kind, port)) == Some(&number) {
                self.forwarded.remove(&(address, kind, port));
                self.count_forwards(address, -1);
            }
        } else {
            self.put_in_quarantine(Quarantined { until: until.unwrap_or(Instant::ZERO), address, port, kind });
        }
        let of = self.hosts.host_mut(host);
        of.mappings -= 1;
        if of.mappings == 0 {
            self.pair(host, NONE);
            self.hosts.forget(host);
        }
        let record = &mut self.records[number as usize];
        (record.host, record.marks) = (self.free, FREE);
        self.free = number;
        self.len -= 1;
    }

    /// Takes the inside endpoint from a mapping.
    fn detach(&mut self, number: MappingId) {
        let record = &mut self.records[number as usize];
        if record.has(DETACHED) {
            return;
        }
        record.marks |= DETACHED;
        let Mapping { host, inside, kind, .. } = *record;
        let (key, records) = (self.key, &self.records);
        self.index.remove(hash(key, host, inside, kind), number, |number| {
            let record = &records[number as usize];
            hash(key, record.host, record.inside, record.kind)
        });
    }

    fn count_forwards(&mut self, address: u16, change: i32) {
        if let Some(outside) = &mut self.outsides[usize::from(address)] {
            outside.forwards = outside.forwards.saturating_add_signed(change);
        }
    }

    fn put_in_quarantine(&mut self, port: Quarantined) {
        if port.until == Instant::ZERO {
            if let Some(outside) = &mut self.outsides[usize::from(port.address)] {
                outside.give(port.kind, port.port);
            }
            return;
        }
        if self.quarantine.len() == MAX_QUARANTINED {
            self.release_one();
        }
        if let Some(outside) = &mut self.outsides[usize::from(port.address)] {
            outside.waiting += 1;
        }
        self.quarantine.push_back(port);
    }

    fn release_one(&mut self) {
        let Some(Quarantined { address, port, kind, .. }) = self.quarantine.pop_front() else { return };
        if let Some(outside) = &mut self.outsides[usize::from(address)] {
            outside.waiting -= 1;
            outside.give(kind, port);
        }
    }
}

/// Strangers to the host, and hosts, choose ports.
fn hash(key: [u64; 2], host: u32, port: u16, kind: Kind) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(key[0], key[1]);
    hasher.write_u64(u64::from(host) << 32 | u64::from(port) << 8 | kind as u64);
    hasher.finish()
}
