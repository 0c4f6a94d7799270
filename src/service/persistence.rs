//! Persistence: a client keeps coming to the server that it came to first.
//!
//! # Theory of operation
//!
//! A service with persistence has a [`Persisted`] table, and services of one group share theirs. It is carried from one
//! snapshot to the next, and shared by all shards; they ask it only when a flow is admitted or has ended, never for a
//! packet of a known flow.
//!
//! An entry names a client (an address without the bits that the netmask leaves out), the server that it came to, and how
//! many flows that were admitted by it there still are. What names the server is its address and, among several at one
//! address, its port: another service of the group knows the same host, perhaps by another method or at another port.
//!
//! An entry lives until the timeout after the client's last new flow. When that time is over and flows are left, it lives
//! for another `REARM`, and so on (Linux, `net/netfilter/ipvs/ip_vs_conn.c`, `ip_vs_conn_expire`: a template that
//! controls connections). A server that takes no new flow (down, drained, full, weight 0) loses the client: it is scheduled
//! anew, and the entry is written over. (In Linux that is `expire_quiescent_template`, off by default; here it is always on.)
//! One exception: where a service has several ports, flows of a session need each other, as FTP's data connections need the
//! server of the control connection. There a client with flows left on a server that is being drained still comes to it.
//!
//! A table is split in parts by the client's hash, each behind its own lock, so that shards do not wait for each other and
//! a part that grows does not hold them up for long. The hash is keyed, since strangers choose the addresses. A part is
//! bounded: when it is full, the entry that has been without flows for longest gives way, or else the one whose last new
//! flow is the oldest. Flows that end after their entry gave way find none, or a newer one of which they are not counted
//! off if it names another server or has been at that server for a shorter time than they: an entry never counts more flows
//! than there are, and never fewer than have come since the client is there.
//!
//! Expiry is exact and never scans: each entry stands in the list of deadlines of its part once, under a time that is
//! no later than its deadline, and is put further ahead when that comes.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::Persistence;
use crate::time::Instant;
use crate::wire::Addr;

/// How long an entry lives on that still has flows when its time is over.
const REARM: Duration = Duration::from_secs(60);
/// Clients of a part, about; and the most parts that there are.
const PART: usize = 4096;
const MAX_PARTS: usize = 64;

const NIL: u32 = u32::MAX;

/// What names a server to all services of a group.
pub type Place = (Addr, Option<u16>);

/// Where a client is at home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub server: Place,
    /// Some of its flows there have not ended.
    pub has_flows: bool,
}

/// One client as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its address, or the first one of its network.
    pub client: Addr,
    pub server: Place,
    /// Flows admitted through the entry that have not ended.
    pub flows: u32,
    /// Until it is forgotten, if it opens nothing.
    pub remaining: Duration,
}

/// The clients of a service or of a group.
#[derive(Debug)]
pub struct Persisted {
    prefix_v4: u8,
    prefix_v6: u8,
    /// Clients of all parts together.
    max: AtomicUsize,
    /// When the next entry is to be looked at, in microseconds, at the earliest; `u64::MAX` without any.
    next: AtomicU64,
    parts: OnceLock<Parts>,
}

#[derive(Debug)]
struct Parts {
    key: Keyed,
    parts: Box<[Mutex<Part>]>,
}

impl Persisted {
    /// A table without clients. It takes some when [`Persisted::prepare`] has told it how many.
    pub fn new(settings: &Persistence) -> Persisted {
        let Persistence { prefix_v4, prefix_v6, .. } = *settings;
        Persisted {
            prefix_v4,
            prefix_v6,
            max: AtomicUsize::new(0),
            next: AtomicU64::new(u64::MAX),
            parts: OnceLock::new(),
        }
    }

    /// Whether clients under `settings` are named as they are here. Their timeout may differ.
    pub fn fits(&self, settings: &Persistence) -> bool {
        (self.prefix_v4, self.prefix_v6) == (settings.prefix_v4, settings.prefix_v6)
    }

    /// Room for `max` clients, at least one a part, from now on; `key` is the secret of the hash, and the first one stays.
    pub fn prepare(&self, key: [u64; 2], max: usize) {
        self.max.store(max.max(1), Ordering::Relaxed);
        self.parts.get_or_init(|| {
            let parts = (max / PART).clamp(1, MAX_PARTS).next_power_of_two();
            Parts { key: Keyed(key), parts: (0..parts).map(|_| Mutex::new(Part::new(Keyed(key)))).collect() }
        });
    }

    /// The server that `client` is to come to, as far as it is known.
    pub fn find(&self, now: Instant, client: Addr) -> Option<Known> {
        let client = self.network(client);
        let part = self.part(client)?;
        part.entry(client).and_then(|entry| entry.known(now))
    }

    /// A new flow of `client`: `choose` is given the server that it is to come to, if that is known, and answers
    /// where it goes and whether that is to be remembered. A flow that is remembered as `counted` is to be let go with
    /// [`Persisted::release`] when it ends. No other flow of the client is decided on meanwhile.
    pub fn claim<T>(
        &self,
        now: Instant,
        client: Addr,
        (timeout, counted): (Duration, bool),
        choose: impl FnOnce(Option<Known>) -> (T, Option<Place>),
    ) -> T {
        let client = self.network(client);
        let Some(mut part) = self.part(client) else { return choose(None).0 };
        let known = part.entry(client).and_then(|entry| entry.known(now));
        let (chosen, server) = choose(known);
        if let Some(server) = server {
            let due = part.remember(client, server, (now, now + timeout), counted, self.max_of_part());
            self.next.fetch_min(due.micros(), Ordering::Relaxed);
        }
        chosen
    }

    /// A counted flow of `client` to `server`, claimed at `created`, has ended.
    pub fn release(&self, client: Addr, server: Addr, created: Instant) {
        let client = self.network(client);
        if let Some(mut part) = self.part(client) {
            part.release(client, server, created);
        }
    }

    /// Forgets clients whose time is over, `budget` of them at most, which it takes off it.
    pub fn expire(&self, now: Instant, budget: &mut usize) {
        if self.next.load(Ordering::Relaxed) > now.micros() {
            return;
        }
        self.next.store(u64::MAX, Ordering::Relaxed);
        for part in self.parts() {
            let mut part = lock(part);
            part.expire(now, budget);
            if let Some(&(due, _)) = part.due.first() {
                self.next.fetch_min(due.micros(), Ordering::Relaxed);
            }
        }
    }

    /// When [`Persisted::expire`] has work, at the earliest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let next = self.next.load(Ordering::Relaxed);
        (next != u64::MAX).then(|| Instant::from_micros(next))
    }

    /// Clients that are remembered, and how many there may be.
    pub fn occupancy(&self) -> (usize, usize) {
        let len = self.parts().iter().map(|part| lock(part).map.len()).sum();
        (len, self.max_of_part() * self.parts().len())
    }

    /// A slice of the table: the clients at up to `max` places from `cursor` on (0 to start), and where to go on, `None` at
    /// the end. Clients that come or go between two calls may be missed or not.
    pub fn entries(&self, now: Instant, cursor: usize, max: usize) -> (Vec<Entry>, Option<usize>) {
        let (mut entries, mut cursor, mut left) = (Vec::new(), cursor, max.max(1));
        // The part in the low bits, the place in it above.
        let parts = self.parts();
        while let Some(number) = cursor.checked_rem(parts.len()) {
            let part = lock(&parts[number]);
            let first = cursor / parts.len();
            let end = part.slots.len().min(first.saturating_add(left));
            entries.extend(part.slots[first.min(end)..end].iter().filter(|slot| slot.in_use).map(|s| s.shown(now)));
            left -= end.saturating_sub(first);
            if end < part.slots.len() {
                return (entries, Some(end * parts.len() + number));
            }
            if number + 1 == parts.len() {
                break;
            }
            cursor = number + 1;
            if left == 0 {
                return (entries, Some(cursor));
            }
        }
        (entries, None)
    }

    /// Clients that each server has; a server is told by its address and port.
    pub fn clients_by_server(&self) -> Vec<(Place, u64)> {
        let mut all: HashMap<Place, u64, Plain> = HashMap::default();
        for part in self.parts() {
            for (server, clients) in &lock(part).clients {
                *all.entry(*server).or_default() += clients;
            }
        }
        all.into_iter().collect()
    }

    /// Panics when the table contradicts itself; for tests.
    pub fn check_invariants(&self) {
        for part in self.parts() {
            let part = lock(part);
            part.check_invariants();
            let first = part.due.first().map_or(u64::MAX, |(due, _)| due.micros());
            assert!(self.next.load(Ordering::Relaxed) <= first, "a deadline is not waited for");
        }
    }

    fn parts(&self) -> &[Mutex<Part>] {
        self.parts.get().map_or(&[], |parts| &parts.parts)
    }

    fn part(&self, client: Addr) -> Option<MutexGuard<'_, Part>> {
        let Parts { key, parts } = self.parts.get()?;
        // The high half: the low one places the client within the part's map.
        let number = (key.hash_one(client) >> 32) as usize & (parts.len() - 1);
        Some(lock(&parts[number]))
    }

    fn max_of_part(&self) -> usize {
        (self.max.load(Ordering::Relaxed) / self.parts().len().max(1)).max(1)
    }

    /// The address without the bits that do not name the client.
    fn network(&self, client: Addr) -> Addr {
        // The IPv4 form has 96 bits in front.
        let kept = if client.is_v4() { 96 + u32::from(self.prefix_v4) } else { u32::from(self.prefix_v6) };
        let mask = u128::MAX.checked_shl(128 - kept.min(128)).unwrap_or(0);
        Addr::from_v6((u128::from_be_bytes(*client.octets()) & mask).to_be_bytes())
    }
}

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

type Plain = BuildHasherDefault<SipHasher13>;

#[derive(Clone, Copy, Debug)]
struct Keyed([u64; 2]);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

#[derive(Debug)]
struct Part {
    map: HashMap<Addr, u32, Keyed>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// One for each entry.
    due: BTreeSet<(Instant, u32)>,
    /// By [`List`].
    lists: [Ends; 2],
    clients: HashMap<Place, u64, Plain>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    client: Addr,
    server: Place,
    flows: u32,
    /// When the first of the flows that it counts came, or one before it.
    counted_from: Instant,
    deadline: Instant,
    /// The time under which it stands in the list of deadlines.
    due: Instant,
    prev: u32,
    next: u32,
    in_use: bool,
}

impl Slot {
    fn list(&self) -> List {
        if self.flows == 0 { List::Idle } else { List::Busy }
    }

    fn shown(&self, now: Instant) -> Entry {
        let Slot { client, server, flows, deadline, .. } = *self;
        Entry { client, server, flows, remaining: deadline - now }
    }
}

/// Entries by whether they have flows; each in the order in which they give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// From when their last flow ended, or they came without one.
    Idle,
    /// From their last new flow.
    Busy,
}

impl Slot {
    /// `None` when its time is over.
    fn known(&self, now: Instant) -> Option<Known> {
        let has_flows = self.flows > 0;
        (self.deadline > now || has_flows).then_some(Known { server: self.server, has_flows })
    }
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    head: u32,
    tail: u32,
}

impl Part {
    fn new(key: Keyed) -> Part {
        let ends = Ends { head: NIL, tail: NIL };
        Part {
            map: HashMap::with_hasher(key),
            slots: Vec::new(),
            free: Vec::new(),
            due: BTreeSet::new(),
            lists: [ends; 2],
            clients: HashMap::default(),
        }
    }

    fn entry(&self, client: Addr) -> Option<&Slot> {
        self.map.get(&client).map(|&number| &self.slots[number as usize])
    }

    /// Returns when the entry is to be looked at.
    fn remember(
        &mut self,
        client: Addr,
        server: Place,
        (now, deadline): (Instant, Instant),
        counted: bool,
        max: usize,
    ) -> Instant {
        let number = match self.map.get(&client) {
            Some(&number) => number,
            None => self.insert(client, server, (now, deadline), max),
        };
        self.unlink(number);
        let slot = &mut self.slots[number as usize];
        let before = std::mem::replace(&mut slot.server, server);
        if before != server {
            // Flows to the other server are not this entry's any more.
            slot.flows = 0;
            slot.counted_from = now;
        }
        // The shards' clocks may be a little apart.
        slot.counted_from = slot.counted_from.min(now);
        slot.flows = slot.flows.saturating_add(u32::from(counted));
        slot.deadline = deadline;
        // Only towards now, where a reload made the timeout shorter; ahead it goes when its time comes.
        let due = slot.due.min(deadline);
        let moved = std::mem::replace(&mut slot.due, due);
        if moved != due {
            self.due.remove(&(moved, number));
            self.due.insert((due, number));
        }
        if before != server {
            self.count_off(before);
            *self.clients.entry(server).or_default() += 1;
        }
        self.link(number);
        due
    }

    /// Links it nowhere yet but in the list of deadlines.
    fn insert(&mut self, client: Addr, server: Place, (now, deadline): (Instant, Instant), max: usize) -> u32 {
        // More than one only where a reload lowered the bound; that is made up for little by little.
        for _ in 0..2 {
            if self.map.len() >= max {
                let oldest = self.lists.iter().map(|ends| ends.head).find(|&head| head != NIL);
                oldest.into_iter().for_each(|number| self.forget(number));
            }
        }
        let slot = Slot {
            client,
            server,
            flows: 0,
            counted_from: now,
            deadline,
            due: deadline,
            prev: NIL,
            next: NIL,
            in_use: true,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        self.map.insert(client, number);
        self.due.insert((deadline, number));
        *self.clients.entry(server).or_default() += 1;
        self.link(number);
        number
    }

    fn release(&mut self, client: Addr, server: Addr, created: Instant) {
        let Some(&number) = self.map.get(&client) else { return };
        let slot = &self.slots[number as usize];
        if slot.server.0 != server || slot.flows == 0 || created < slot.counted_from {
            return;
        }
        if slot.flows > 1 {
            self.slots[number as usize].flows -= 1;
            return;
        }
        self.unlink(number);
        self.slots[number as usize].flows = 0;
        self.link(number);
    }

    fn expire(&mut self, now: Instant, budget: &mut usize) {
        while *budget > 0 {
            let Some((_, number)) = self.due.first().copied().filter(|(due, _)| *due <= now) else { return };
            *budget -= 1;
            let slot = &mut self.slots[number as usize];
            if slot.deadline <= now && slot.flows == 0 {
                self.forget(number);
                continue;
            }
            if slot.deadline <= now {
                slot.deadline = now + REARM;
            }
            let before = std::mem::replace(&mut slot.due, slot.deadline);
            let after = slot.due;
            self.due.remove(&(before, number));
            self.due.insert((after, number));
        }
    }

    fn forget(&mut self, number: u32) {
        self.unlink(number);
        let slot = &mut self.slots[number as usize];
        slot.in_use = false;
        let Slot { client, server, due, .. } = *slot;
        self.map.remove(&client);
        self.due.remove(&(due, number));
        self.count_off(server);
        self.free.push(number);
    }

    fn count_off(&mut self, server: Place) {
        if let Some(clients) = self.clients.get_mut(&server) {
            *clients -= 1;
            if *clients == 0 {
                self.clients.remove(&server);
            }
        }
    }

    /// Puts it at the end of the list that it belongs to.
    fn link(&mut self, number: u32) {
        let list = self.slots[number as usize].list() as usize;
        let tail = std::mem::replace(&mut self.lists[list].tail, number);
        match tail {
            NIL => self.lists[list].head = number,
            tail => self.slots[tail as usize].next = number,
        }
        let slot = &mut self.slots[number as usize];
        (slot.prev, slot.next) = (tail, NIL);
    }

    fn unlink(&mut self, number: u32) {
        let slot = &self.slots[number as usize];
        let (list, prev, next) = (slot.list() as usize, slot.prev, slot.next);
        match prev {
            NIL => self.lists[list].head = next,
            prev => self.slots[prev as usize].next = next,
        }
        match next {
            NIL => self.lists[list].tail = prev,
            next => self.slots[next as usize].prev = prev,
        }
    }

    fn check_invariants(&self) {
        let used = self.slots.iter().filter(|slot| slot.in_use).count();
        assert_eq!((self.map.len(), self.due.len()), (used, used), "entries, and their deadlines");
        assert_eq!(self.slots.len() - self.free.len(), used, "free places");
        for (client, number) in &self.map {
            let slot = &self.slots[*number as usize];
            assert!(slot.in_use && slot.client == *client && slot.due <= slot.deadline, "{slot:?}");
            assert!(self.due.contains(&(slot.due, *number)), "{slot:?} has no deadline");
        }
        let mut linked = 0;
        for list in [List::Idle, List::Busy] {
            let (mut prev, mut at) = (NIL, self.lists[list as usize].head);
            while at != NIL {
                let slot = &self.slots[at as usize];
                assert_eq!((slot.list(), slot.prev, slot.in_use), (list, prev, true), "links of {slot:?}");
                (prev, at) = (at, slot.next);
                linked += 1;
            }
            assert_eq!(self.lists[list as usize].tail, prev);
        }
        assert_eq!(linked, used, "entries in lists");
        assert_eq!(self.clients.values().sum::<u64>(), used as u64, "clients by server");
    }
}

#[cfg(test)]
mod tests;
