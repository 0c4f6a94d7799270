//! The flow table: bounded, keyed by both tuples of a flow.
//!
//! # Theory of operation
//!
//! A flow has two tuples: *original* (what the client sends) and *reply* (what the server sends). Both are in the index;
//! a lookup tells the flow and who sent the packet. Every flow is in one list of [`super::expiry`]; which one follows from
//! its [`Class`], and changes only with it.
//!
//! Memory is set aside once, for the limit, and touched as flows come. Numbers of flows are reused; the table hands out
//! [`FlowId`]s and forgets them at [`FlowTable::remove`]. The caller does not keep one across calls to the engine.
//!
//! What cannot happen: two flows with one tuple ([`FlowTable::insert`] refuses), a flow in no list or in two, a number
//! both free and in use. [`FlowTable::check_invariants`] says so; debug builds ask it after a flow
//! comes or goes, always in a small table and now and then in a large one.

use std::ops::Range;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::expiry::{Expiry, Link, Links, NIL, QUEUES};
use super::index::Index;
use super::shift::Shift;
use super::{Sender, TcpState, tcp};
use crate::time::Instant;
use crate::timeouts::Timeouts;
use crate::wire::checksum::Delta;
use crate::wire::{Addr, Protocol, Rewrite, Tuple};

/// The number of a flow that is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId(u32);

impl FlowId {
    /// Below the number of flows that the table has room for.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// One tracked connection or exchange. Three cache lines: addresses; what every packet reads and writes; the rest.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Flow {
    client: Addr,
    vip: Addr,
    server: Addr,
    /// Where the server's packets go: the client, unless the source was translated as well.
    peer: Addr,

    ports: [u16; 4],
    pub protocol: Protocol,
    pub tcp_state: TcpState,
    pub replied: bool,
    pub assured: bool,
    /// By [`Sender`]: what the translation of its packets does to a sum, for addresses and for ports.
    deltas: [(Delta, Delta); 2],
    /// When the last packet came that kept the flow alive.
    pub seen: Instant,
    /// By [`Sender`].
    pub packets: [u64; 2],
    pub bytes: [u64; 2],

    /// By [`Sender`].
    pub sequence: [Sequence; 2],
    pub created: Instant,
    pub owner: Owner,
    /// A number that the flow table only keeps: the mapping or the port that it uses; `u32::MAX`: none.
    pub mapping: u32,
    link: Link,
    in_use: bool,
}

/// Whose flow it is; numbers that the flow table only keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub service: u32,
    pub server: u32,
    pub method: u8,
    /// The server's packets go to the client past the gateway: nothing is known of them.
    pub one_way: bool,
    pub marks: Marks,
}

/// What else there is to a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(u16);

impl Marks {
    pub const NONE: Marks = Marks(0);
    /// Persistence counts it.
    pub const PERSISTENT: Marks = Marks(1);
    /// The gateway's own probe of a server; it is no load.
    pub const PROBE: Marks = Marks(2);
    /// A helper reads its packets.
    pub const HELPED: Marks = Marks(4);
    /// A helper expected it.
    pub const EXPECTED: Marks = Marks(8);
    /// That it failed has been put down to its server.
    pub const BLAMED: Marks = Marks(16);
    /// Its other end is an address of a pool: what is translated for it comes back in.
    pub const HAIRPIN: Marks = Marks(32);
    /// Its ends count bytes, or time, differently.
    pub const SHIFTED: Marks = Marks(64);
    /// The inside host of its mapping has sent in it: what the mapping counts it as.
    pub const ANSWERED: Marks = Marks(1 << 14);
    /// Its mapping lets in others from the address of its remote end.
    pub const PEER: Marks = Marks(1 << 15);

    #[inline]
    pub const fn has(self, mark: Marks) -> bool {
        self.0 & mark.0 != 0
    }

    /// The words of those that are set, for outputs.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (Marks::PERSISTENT, "persistent"),
            (Marks::PROBE, "probe"),
            (Marks::HELPED, "helped"),
            (Marks::EXPECTED, "expected"),
            (Marks::HAIRPIN, "hairpin"),
            (Marks::SHIFTED, "shifted"),
        ];
        all.into_iter().filter(move |(mark, _)| self.has(*mark)).map(|(_, word)| word)
    }

    #[must_use]
    pub const fn with(self, mark: Marks) -> Marks {
        Marks(self.0 | mark.0)
    }

    #[must_use]
    pub const fn without(self, mark: Marks) -> Marks {
        Marks(self.0 & !mark.0)
    }
}

/// What one end of a TCP connection has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// One past the highest sequence number sent; meaningless until `is_known`.
    pub end: u32,
    /// The highest acknowledgement sent; meaningless until `has_acked`.
    pub ack: u32,
    pub is_known: bool,
    pub has_acked: bool,
}

impl Flow {
    pub fn original(&self) -> Tuple {
        let [sport, dport, ..] = self.ports;
        Tuple { src: self.client, dst: self.vip, sport, dport, protocol: self.protocol }
    }

    pub fn reply(&self) -> Tuple {
        let [.., sport, dport] = self.ports;
        Tuple { src: self.server, dst: self.peer, sport, dport, protocol: self.protocol }
    }

    /// What packets from `sender` look like when they arrive.
    pub fn tuple(&self, sender: Sender) -> Tuple {
        match sender {
            Sender::Client => self.original(),
            Sender::Server => self.reply(),
        }
    }

    /// The translation of packets from `sender`.
    #[inline]
    pub fn rewrite(&self, sender: Sender) -> Rewrite {
        let to = match sender {
            Sender::Client => self.reply().reversed(),
            Sender::Server => self.original().reversed(),
        };
        let (addresses, ports) = self.deltas[sender as usize];
        Rewrite { src: to.src, dst: to.dst, sport: to.sport, dport: to.dport, addresses, ports }
    }

    /// Counts a packet of `bytes` from `sender`.
    pub fn count(&mut self, sender: Sender, bytes: usize) {
        self.packets[sender as usize] += 1;
        self.bytes[sender as usize] += bytes as u64;
    }

    /// How long the flow lives without a packet.
    pub fn timeout(&self, timeouts: &Timeouts) -> Duration {
        match self.protocol {
            _ if self.is_probe() => Timeouts::PROBE,
            Protocol::TCP => tcp::timeout(timeouts, self.tcp_state),
            Protocol::UDP => timeouts.udp,
            _ => timeouts.icmp,
        }
    }

    /// Whether the client's packets are all that was seen of a flow whose answers go past the gateway.
    pub fn is_blind(&self) -> bool {
        self.owner.one_way && !self.replied
    }

    /// Whether it is the gateway's own, and no client's.
    #[inline]
    pub fn is_probe(&self) -> bool {
        self.owner.marks.has(Marks::PROBE)
    }

    /// Whether nothing came of it yet: a TCP connection that the server has not answered, or that, where answers are not
    /// seen, the client has not acknowledged; or a packet of another protocol without an answer.
    pub fn is_unanswered(&self) -> bool {
        !self.replied && (self.protocol != Protocol::TCP || self.tcp_state.is_half_open())
    }

    /// Only an established TCP connection is active; everything else counts as inactive, as in IPVS.
    pub fn is_active(&self) -> bool {
        self.protocol == Protocol::TCP && self.tcp_state == TcpState::Established
    }

    /// Whether anybody would miss it.
    pub fn standing(&self) -> Standing {
        match self.class() {
            Class::HalfOpen(_) => Standing::HalfOpen,
            Class::Finished(_) => Standing::Finished,
            Class::Unproven(_) | Class::Open => Standing::Lasting,
        }
    }

    fn class(&self) -> Class {
        match self.protocol {
            // No stranger's flood may decide what is known of a server.
            _ if self.is_probe() => Class::Open,
            Protocol::TCP if self.is_blind() => match self.tcp_state {
                state if state.is_half_open() => Class::HalfOpen(state as usize),
                // That the server answered is not seen, and whoever can forge a SYN can forge what follows it.
                TcpState::Established => Class::Unproven(BLIND),
                // What is seen of the end of a connection is the client's FIN.
                state => Class::Finished(state as usize),
            },
            Protocol::TCP => match self.tcp_state {
                state if state.is_half_open() => Class::HalfOpen(state as usize),
                state @ (TcpState::TimeWait | TcpState::Close | TcpState::LastAck) => Class::Finished(state as usize),
                _ => Class::Open,
            },
            _ if self.assured => Class::Open,
            // One question, one answer: most of DNS. A minute's worth of it must not shut out everything else.
            _ if self.replied => Class::Finished(ANSWERED),
            // Answers are not seen; who asks again had one, or has not given up.
            _ if self.owner.one_way && self.packets[Sender::Client as usize] > 1 => Class::Finished(ANSWERED),
            _ => Class::HalfOpen(UNREPLIED),
        }
    }
}

/// How dispensable a flow is, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing came of it yet.
    HalfOpen,
    /// It is over, or was one question with one answer.
    Finished,
    Lasting,
}

/// How dispensable a flow is. The number is that of the queue: one for each TCP state, and three more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Evicted first.
    HalfOpen(usize),
    /// Evicted when nothing is half-open.
    Finished(usize),
    /// Evicted when nothing is finished either, the one that has been silent for longest.
    Unproven(usize),
    /// Never evicted.
    Open,
}

/// A flow in the wheel is looked at again after this time at the latest, so that timeouts that a reload shortens hold soon for
/// the flows there are; a million flows make for 3,300 looks a second.
const RECHECK: Duration = Duration::from_secs(300);

/// Flows of the gateway's own probes at a time, beside those of clients.
pub const MAX_PROBES: usize = 1024;

const BLIND: usize = QUEUES - 3;
const UNREPLIED: usize = QUEUES - 2;
const ANSWERED: usize = QUEUES - 1;

/// Why a flow was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// No room, and nothing that may be evicted.
    Full,
    /// This flow has one of the tuples already.
    Taken(FlowId),
}

/// The flows of one shard.
pub struct FlowTable {
    flows: Vec<Flow>,
    /// Numbers below `flows.len()` that are free.
    free: Vec<u32>,
    index: Index,
    expiry: Expiry,
    /// By the number of a flow: what there is of a [`Shift`], as words. Set aside when the first flow is shifted, and not touched
    /// where none is.
    shifts: Vec<[u32; 4]>,
    /// TCP connections that are half-open.
    half_open: usize,
    /// Which of them are probes.
    probes: Vec<u32>,
    key: [u64; 2],
    max: usize,
}

impl FlowTable {
    /// Room for `max` flows of clients, and for `MAX_PROBES` probes; `key` must be a secret, since strangers choose the
    /// tuples.
    pub fn new(max: usize, key: [u64; 2]) -> FlowTable {
        let max = max.clamp(1, (1 << 30) - 1);
        FlowTable {
            flows: Vec::with_capacity(max + MAX_PROBES),
            free: Vec::new(),
            // Two entries a flow, at a load of a half; probes on top of that bring it to three quarters at most.
            index: Index::new((max * 2).max(MAX_PROBES * 4)),
            expiry: Expiry::new(),
            shifts: Vec::new(),
            half_open: 0,
            probes: Vec::new(),
            key,
            max,
        }
    }

    /// The addresses of the memory set aside for flows and for the index.
    pub fn memory(&mut self) -> [Range<usize>; 2] {
        let start = self.flows.as_ptr().addr();
        [start..start + self.flows.capacity() * size_of::<Flow>(), self.index.memory()]
    }

    /// All flows there are, probes included.
    pub fn len(&self) -> usize {
        self.flows.len() - self.free.len()
    }

    /// The flows of probes.
    pub fn probes(&self) -> impl ExactSizeIterator<Item = FlowId> + '_ {
        self.probes.iter().map(|number| FlowId(*number))
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flows of clients that it may hold.
    pub fn max(&self) -> usize {
        self.max
    }

    /// TCP connections that are half-open, probes left out.
    pub fn half_open(&self) -> usize {
        self.half_open
    }

    /// Whether there is no room for another client's flow.
    pub fn is_full(&self) -> bool {
        self.len() - self.probes.len() == self.max
    }

    /// The flow that `tuple` belongs to, and who sent it.
    #[inline]
    pub fn lookup(&self, tuple: &Tuple) -> Option<(FlowId, Sender)> {
        self.find(self.hash(tuple), tuple)
    }

    #[inline]
    fn find(&self, hash: u32, tuple: &Tuple) -> Option<(FlowId, Sender)> {
        let value = self.index.find(hash, |value| {
            let flow = &self.flows[(value >> 1) as usize];
            flow.tuple(sender_of(value)) == *tuple
        })?;
        Some((FlowId(value >> 1), sender_of(value)))
    }

    /// Admits a flow. The table must not be full: make room first.
    pub fn insert(
        &mut self,
        now: Instant,
        original: Tuple,
        reply: Tuple,
        owner: Owner,
        timeouts: &Timeouts,
    ) -> Result<FlowId, InsertError> {
        let hashes = [self.hash(&original), self.hash(&reply)];
        for (hash, tuple) in hashes.into_iter().zip([&original, &reply]) {
            if let Some((taken, _)) = self.find(hash, tuple) {
                return Err(InsertError::Taken(taken));
            }
        }
        let is_probe = owner.marks.has(Marks::PROBE);
        let is_full = if is_probe { self.probes.len() >= MAX_PROBES } else { self.is_full() };
        if is_full {
            return Err(InsertError::Full);
        }
        let flow = Flow {
            client: original.src,
            vip: original.dst,
            server: reply.src,
            peer: reply.dst,
            ports: [original.sport, original.dport, reply.sport, reply.dport],
            protocol: original.protocol,
            tcp_state: TcpState::None,
            replied: false,
            assured: false,
            deltas: [Rewrite::deltas(&original, &reply.reversed()), Rewrite::deltas(&reply, &original.reversed())],
            seen: now,
            packets: [0; 2],
            bytes: [0; 2],
            sequence: [Sequence::default(); 2],
            created: now,
            owner,
            mapping: u32::MAX,
            link: Link::UNLINKED,
            in_use: true,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.flows[number as usize] = flow;
                number
            }
            None => {
                self.flows.push(flow);
                self.flows.len() as u32 - 1
            }
        };
        if is_probe {
            self.probes.push(number);
        }
        for (hash, sender) in hashes.into_iter().zip([Sender::Client, Sender::Server]) {
            self.index.insert(hash, number << 1 | sender as u32);
        }
        self.link(now, number, timeouts);
        self.check_sometimes();
        Ok(FlowId(number))
    }

    #[inline]
    pub fn flow(&self, id: FlowId) -> &Flow {
        &self.flows[id.0 as usize]
    }

    /// The flow of a number that was kept; it may have ended, and the number be another flow's.
    pub fn known(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id.0 as usize).filter(|flow| flow.in_use)
    }

    /// A packet keeps the flow alive: `change` notes what it brought. Moves the flow between lists if its class changed.
    #[inline]
    pub fn refresh<T>(
        &mut self,
        now: Instant,
        id: FlowId,
        timeouts: &Timeouts,
        change: impl FnOnce(&mut Flow) -> T,
    ) -> T {
        let flow = &mut self.flows[id.0 as usize];
        let before = (flow.class(), flow.tcp_state);
        flow.seen = now;
        let result = change(flow);
        if before.0 != Class::Open || flow.class() != Class::Open || before.1 != flow.tcp_state {
            self.unlink(id.0);
            self.link(now, id.0, timeouts);
        }
        result
    }

    /// As [`FlowTable::refresh`], for a packet that keeps the flow alive only if it makes it another kind of flow.
    pub fn note<T>(&mut self, now: Instant, id: FlowId, timeouts: &Timeouts, change: impl FnOnce(&mut Flow) -> T) -> T {
        let flow = &mut self.flows[id.0 as usize];
        let before = (flow.class(), flow.tcp_state);
        let result = change(flow);
        if before != (flow.class(), flow.tcp_state) {
            flow.seen = now;
            self.unlink(id.0);
            self.link(now, id.0, timeouts);
        }
        result
    }

    /// Sets a mark.
    pub fn mark(&mut self, id: FlowId, mark: Marks) {
        let owner = &mut self.flows[id.0 as usize].owner;
        owner.marks = owner.marks.with(mark);
    }

    /// Takes a mark away.
    pub fn unmark(&mut self, id: FlowId, mark: Marks) {
        let owner = &mut self.flows[id.0 as usize].owner;
        owner.marks = owner.marks.without(mark);
    }

    /// How the ends of a flow with [`Marks::SHIFTED`] count; without it, alike.
    pub fn shift(&self, id: FlowId) -> Shift {
        match self.flow(id).owner.marks.has(Marks::SHIFTED) {
            true => self.shifts.get(id.0 as usize).copied().map(Shift::from_words).unwrap_or_default(),
            false => Shift::default(),
        }
    }

    /// Notes how the ends of a flow count from here on, and marks it.
    pub fn set_shift(&mut self, id: FlowId, shift: Shift) {
        if self.shifts.is_empty() {
            self.shifts = vec![[0; 4]; self.max + MAX_PROBES];
        }
        if let Some(words) = self.shifts.get_mut(id.0 as usize) {
            *words = shift.words();
            self.mark(id, Marks::SHIFTED);
        }
    }

    /// Notes the mapping or port that it uses.
    pub fn set_mapping(&mut self, id: FlowId, mapping: u32) {
        self.flows[id.0 as usize].mapping = mapping;
    }

    /// Counts a packet that does not keep the flow alive.
    pub fn count(&mut self, id: FlowId, sender: Sender, bytes: usize) {
        self.flows[id.0 as usize].count(sender, bytes);
    }

    /// Ends a flow and returns what it was.
    pub fn remove(&mut self, id: FlowId) -> Flow {
        let number = id.0;
        for sender in [Sender::Client, Sender::Server] {
            let hash = self.hash(&self.flow(id).tuple(sender));
            self.index.remove(hash, number << 1 | sender as u32);
        }
        self.unlink(number);
        let flow = &mut self.flows[number as usize];
        flow.in_use = false;
        let gone = flow.clone();
        if gone.is_probe() {
            self.probes.retain(|probe| *probe != number);
        }
        self.free.push(number);
        self.check_sometimes();
        gone
    }

    /// The next flow whose time is over at `now`. Looks at no more than `budget` flows, and takes what it looked at off it.
    pub fn next_expired(&mut self, now: Instant, timeouts: &Timeouts, budget: &mut usize) -> Option<FlowId> {
        for queue in 0..QUEUES {
            if let Some(number) = self.expiry.head(queue)
                && self.deadline(number, timeouts) <= now
            {
                *budget = budget.saturating_sub(1);
                return Some(FlowId(number));
            }
        }
        while *budget > 0 {
            let number = self.expiry.due(now)?;
            *budget -= 1;
            if self.deadline(number, timeouts) <= now {
                return Some(FlowId(number));
            }
            self.unlink(number);
            self.link(now, number, timeouts);
        }
        None
    }

    /// When [`FlowTable::next_expired`] has work, at the earliest.
    pub fn next_deadline(&self, timeouts: &Timeouts) -> Option<Instant> {
        let queues = (0..QUEUES).filter_map(|queue| self.expiry.head(queue)).map(|n| self.deadline(n, timeouts));
        queues.chain(self.expiry.next_due()).min()
    }

    /// The flow that must give way when the table is full: the oldest half-open one, or else the oldest finished one, or
    /// else, of the connections of which only the client's side is seen, the one that has been silent for longest.
    pub fn eviction_candidate(&self) -> Option<FlowId> {
        let oldest = |wanted: fn(Class) -> bool| {
            (0..QUEUES)
                .filter_map(|queue| self.expiry.head(queue))
                .filter(|&n| wanted(self.flows[n as usize].class()))
                .min_by_key(|&n| self.flows[n as usize].seen)
        };
        oldest(|class| matches!(class, Class::HalfOpen(_)))
            .or_else(|| oldest(|class| matches!(class, Class::Finished(_))))
            .or_else(|| oldest(|class| matches!(class, Class::Unproven(_))))
            .map(FlowId)
    }

    /// The first flow from number `cursor` on, and the number to go on from.
    pub fn next_from(&self, cursor: usize) -> Option<(FlowId, usize)> {
        let ahead = self.flows.get(cursor..)?.iter().position(|flow| flow.in_use)?;
        Some((FlowId((cursor + ahead) as u32), cursor + ahead + 1))
    }

    /// One past the highest number that a flow has, or had.
    pub fn places(&self) -> usize {
        self.flows.len()
    }

    /// The flow with this number.
    pub fn at(&self, place: usize) -> Option<FlowId> {
        self.flows.get(place).filter(|flow| flow.in_use).map(|_| FlowId(place as u32))
    }

    fn deadline(&self, number: u32, timeouts: &Timeouts) -> Instant {
        let flow = &self.flows[number as usize];
        flow.seen + flow.timeout(timeouts)
    }

    fn link(&mut self, now: Instant, number: u32, timeouts: &Timeouts) {
        match self.flows[number as usize].class() {
            Class::HalfOpen(queue) | Class::Finished(queue) | Class::Unproven(queue) => {
                self.half_open += usize::from(is_half_open(queue));
                self.expiry.enqueue(&mut FlowLinks(&mut self.flows), number, queue);
            }
            Class::Open => {
                let deadline = self.deadline(number, timeouts).min(now + RECHECK);
                self.expiry.schedule(&mut FlowLinks(&mut self.flows), number, now, deadline);
            }
        }
    }

    fn unlink(&mut self, number: u32) {
        let queue = self.flows[number as usize].link.queue();
        self.half_open -= usize::from(queue.is_some_and(is_half_open));
        self.expiry.unlink(&mut FlowLinks(&mut self.flows), number);
    }

    /// SipHash-1-3 over the tuple: strangers cannot choose tuples that collide.
    #[inline]
    fn hash(&self, tuple: &Tuple) -> u32 {
        let mut bytes = [0u8; 37];
        let hasher = SipHasher13::new_with_keys(self.key[0], self.key[1]);
        let ports = u32::from(tuple.sport) << 16 | u32::from(tuple.dport);
        if tuple.src.is_v4() {
            bytes[..4].copy_from_slice(tuple.src.wire());
            bytes[4..8].copy_from_slice(tuple.dst.wire());
            bytes[8..12].copy_from_slice(&ports.to_ne_bytes());
            bytes[12] = tuple.protocol.0;
            return hasher.hash(&bytes[..13]) as u32;
        }
        bytes[..16].copy_from_slice(tuple.src.octets());
        bytes[16..32].copy_from_slice(tuple.dst.octets());
        bytes[32..36].copy_from_slice(&ports.to_ne_bytes());
        bytes[36] = tuple.protocol.0;
        hasher.hash(&bytes) as u32
    }

    fn check_sometimes(&mut self) {
        // Checking walks the whole table; keep it affordable in tests with many flows.
        if cfg!(debug_assertions) && (self.len() < 64 || self.len().is_multiple_of(1021)) {
            self.check_invariants();
        }
    }

    /// Panics when the table contradicts itself.
    pub fn check_invariants(&mut self) {
        assert!(self.len() - self.probes.len() <= self.max && self.probes.len() <= MAX_PROBES);
        assert!(self.probes().all(|id| self.flows[id.0 as usize].in_use && self.flow(id).is_probe()));
        let probes = self.flows.iter().filter(|flow| flow.in_use && flow.is_probe()).count();
        assert_eq!(probes, self.probes.len(), "probes");
        assert_eq!(self.index.len(), self.len() * 2, "index entries");
        let used: Vec<u32> = (0..self.flows.len() as u32).filter(|&n| self.flows[n as usize].in_use).collect();
        assert_eq!(used.len(), self.len(), "flows in use");
        assert_eq!(self.expiry.check(&mut FlowLinks(&mut self.flows)), used.len(), "flows in lists");
        let half_open = |flow: &&Flow| flow.in_use && flow.link.queue().is_some_and(is_half_open);
        assert_eq!(self.flows.iter().filter(half_open).count(), self.half_open, "half-open connections");
        for number in used {
            let flow = &self.flows[number as usize];
            for sender in [Sender::Client, Sender::Server] {
                assert_eq!(self.lookup(&flow.tuple(sender)), Some((FlowId(number), sender)));
            }
            let queue = match flow.class() {
                Class::HalfOpen(queue) | Class::Finished(queue) | Class::Unproven(queue) => Some(queue),
                Class::Open => None,
            };
            assert_eq!(flow.link.queue(), queue, "list of flow {number}");
        }
    }
}

/// Whether this queue is one of half-open TCP connections: each state has the queue of its number.
fn is_half_open(queue: usize) -> bool {
    TcpState::ALL.get(queue).is_some_and(|state| state.is_half_open())
}

fn sender_of(value: u32) -> Sender {
    if value & 1 == Sender::Client as u32 { Sender::Client } else { Sender::Server }
}

struct FlowLinks<'a>(&'a mut [Flow]);

impl Links for FlowLinks<'_> {
    fn link(&mut self, flow: u32) -> &mut Link {
        debug_assert_ne!(flow, NIL);
        &mut self.0[flow as usize].link
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_takes_three_cache_lines() {
        assert_eq!(std::mem::size_of::<Flow>(), 192);
    }
}
