//! Expectations: flows that have been announced and have not begun.
//!
//! # Theory of operation
//!
//! An [`Expectation`] says of a packet without a flow that it begins one, and with whom: its source, its destination and
//! its destination port are known, its source port is not. It serves once. All live equally long, so the order in which
//! they come is that in which they expire, and when there are too many the oldest go: what is really wanted begins at once.
//! A control connection has few at a time, so that one client cannot crowd out the others with one connection.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::flow::{FlowId, Owner, Sender};
use crate::time::Instant;
use crate::wire::{Addr, Protocol, Tuple};

/// How long an announced flow may take to begin. FTP's begins with the transfer command, which follows at once, and TFTP's
/// with the first answer. (Linux: 5 min for both, `net/netfilter/nf_conntrack_ftp.c`, `nf_conntrack_tftp.c`.)
pub const LIFETIME: Duration = Duration::from_secs(60);
/// Expectations of one flow at a time; its oldest gives way. Linux allows one for FTP.
const PER_FLOW: usize = 4;

/// The packets that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub protocol: Protocol,
    pub src: Addr,
    pub dst: Addr,
    pub dport: u16,
}

impl Key {
    pub fn of(tuple: &Tuple) -> Key {
        Key { protocol: tuple.protocol, src: tuple.src, dst: tuple.dst, dport: tuple.dport }
    }
}

/// A flow that is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    pub key: Key,
    /// Who will send its first packet.
    pub opener: Sender,
    /// Whose the flow will be.
    pub owner: Owner,
    /// The flow that announced it; it may have ended meanwhile.
    pub by: FlowId,
    pub client: Addr,
    pub vip: Addr,
    pub server: Addr,
    /// What the server knows the client by.
    pub peer: Addr,
    /// The port at the end that does not open the flow: the server's if the client does, the VIP's if the server does.
    /// `None`: the one at which the first packet shows the other side of it.
    pub port: Option<u16>,
    /// The client's own port, if the server opens the flow and knows it by another one.
    pub client_port: Option<u16>,
    /// The mapping of a masquerade that it keeps until it begins, or is forgotten; `u32::MAX`: none.
    pub mapping: u32,
    pub deadline: Instant,
}

impl Expectation {
    /// Original and reply tuple of the flow that begins with a packet of this tuple. Where flows get a port of a pool, one that
    /// the client opens has yet to get it: the reply tuple has the client's.
    pub fn tuples(&self, first: &Tuple) -> (Tuple, Tuple) {
        let Key { protocol, .. } = self.key;
        match self.opener {
            Sender::Client => {
                let sport = self.port.unwrap_or(first.dport);
                let reply = Tuple { src: self.server, dst: self.peer, sport, dport: first.sport, protocol };
                (*first, reply)
            }
            Sender::Server => {
                let dport = self.port.unwrap_or(first.sport);
                let sport = self.client_port.unwrap_or(first.dport);
                let original = Tuple { src: self.client, dst: self.vip, sport, dport, protocol };
                (original, *first)
            }
        }
    }
}

#[derive(Clone, Copy)]
struct HashKey([u64; 2]);

impl std::hash::BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// The expectations of a shard. One comes and goes without a look at the others.
pub struct Expectations {
    by_key: HashMap<Key, u64, HashKey>,
    /// Those of one flow, the oldest first: [`PER_FLOW`] at most, and no entry without any.
    by_flow: HashMap<(FlowId, Addr), Vec<u64>, HashKey>,
    /// By the order in which they came, which is that of their deadlines.
    all: BTreeMap<u64, Expectation>,
    serial: u64,
    /// Mappings that those kept that are no more.
    left: Vec<u32>,
}

impl Expectations {
    /// `key` must be a secret, since strangers choose what is announced.
    pub fn new(key: [u64; 2]) -> Expectations {
        let (by_key, by_flow) = (HashMap::with_hasher(HashKey(key)), HashMap::with_hasher(HashKey(key)));
        Expectations { by_key, by_flow, all: BTreeMap::new(), serial: 0, left: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Expectation> {
        self.all.values()
    }

    /// Those from the number `cursor` on, each with its number, the oldest first. Numbers are never used again.
    pub fn from(&self, cursor: u64) -> impl Iterator<Item = (u64, &Expectation)> {
        self.all.range(cursor..).map(|(serial, expectation)| (*serial, expectation))
    }

    /// What is known of a packet with this tuple.
    pub fn find(&self, now: Instant, tuple: &Tuple) -> Option<&Expectation> {
        let found = self.all.get(self.by_key.get(&Key::of(tuple))?)?;
        (found.deadline > now).then_some(found)
    }

    /// Whether something else than a flow to `server` is expected of these packets.
    pub fn is_taken(&self, now: Instant, key: &Key, server: (Addr, Option<u16>)) -> bool {
        let found = self.by_key.get(key).and_then(|serial| self.all.get(serial));
        found.is_some_and(|found| found.deadline > now && (found.server, found.port) != server)
    }

    /// Whether anything is expected of these packets.
    pub fn is_known(&self, now: Instant, key: &Key) -> bool {
        let found = self.by_key.get(key).and_then(|serial| self.all.get(serial));
        found.is_some_and(|found| found.deadline > now)
    }

    /// Adds one, in place of an older one of the same packets; at most `max` there may be.
    pub fn add(&mut self, expectation: Expectation, max: usize) {
        self.take(&expectation.key);
        let flow = (expectation.by, expectation.client);
        if let Some(of_flow) = self.by_flow.get(&flow)
            && of_flow.len() >= PER_FLOW
            && let Some(&oldest) = of_flow.first()
        {
            self.remove(oldest);
        }
        self.trim(max.max(1) - 1);
        self.serial += 1;
        self.by_key.insert(expectation.key, self.serial);
        self.by_flow.entry(flow).or_default().push(self.serial);
        self.all.insert(self.serial, expectation);
    }

    /// Leaves the latest `max`.
    pub fn trim(&mut self, max: usize) {
        while self.all.len() > max
            && let Some((&oldest, _)) = self.all.first_key_value()
        {
            self.remove(oldest);
        }
    }

    /// Takes one out.
    pub fn take(&mut self, key: &Key) -> Option<Expectation> {
        self.remove(*self.by_key.get(key)?)
    }

    fn remove(&mut self, serial: u64) -> Option<Expectation> {
        let gone = self.all.remove(&serial)?;
        self.by_key.remove(&gone.key);
        if gone.mapping != u32::MAX {
            self.left.push(gone.mapping);
        }
        if let Entry::Occupied(mut of_flow) = self.by_flow.entry((gone.by, gone.client)) {
            of_flow.get_mut().retain(|other| *other != serial);
            if of_flow.get().is_empty() {
                of_flow.remove();
            }
        }
        Some(gone)
    }

    /// Mappings to be given up, one for each that kept one and is no more: once.
    pub fn take_left(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.left)
    }

    /// Forgets those that did not begin in time.
    pub fn expire(&mut self, now: Instant) {
        while let Some((&oldest, expectation)) = self.all.first_key_value()
            && expectation.deadline <= now
        {
            self.remove(oldest);
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.all.first_key_value().map(|(_, oldest)| oldest.deadline)
    }

    /// Panics when the table contradicts itself.
    pub fn check_invariants(&self) {
        assert!(self.left.is_empty(), "mappings that nobody gave up");
        assert_eq!(self.by_key.len(), self.all.len());
        assert!(self.all.iter().all(|(serial, expectation)| self.by_key.get(&expectation.key) == Some(serial)));
        let flow_of = |serial: &u64| self.all.get(serial).map(|expectation| (expectation.by, expectation.client));
        for (flow, serials) in &self.by_flow {
            assert!((1..=PER_FLOW).contains(&serials.len()) && serials.is_sorted());
            assert!(serials.iter().all(|serial| flow_of(serial) == Some(*flow)));
        }
        assert_eq!(self.by_flow.values().map(Vec::len).sum::<usize>(), self.all.len());
    }
}
