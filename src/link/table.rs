//! The neighbours of the gateway's segment: who has which MAC, and the packets that wait to learn it.
//!
//! # Theory of operation
//!
//! An entry comes to be when a packet is to be sent to an address, and by nothing else: what strangers claim unasked updates
//! entries, but makes none. Its life is that of RFC 4861 section 7.3.2, for IPv4 as well:
//!
//! ```text
//!             asked 3 times in vain                               asked 3 times in vain
//!   Failed ◄─────────────────────── Incomplete        Probe ───────────────────────────► Failed
//!     │ ▲ asked again, once a second    │ answer        ▲ │ answer
//!     │ └───────── for each packet      ▼               │ ▼
//!     └────────── answer ──────────► Reachable        Delay (5 s)
//!                                       │ 30 s          ▲ used
//!                                       ▼               │
//!                                     Stale ────────────┘
//! ```
//!
//! In Reachable, Stale, Delay and Probe the MAC is known and packets go. In Incomplete packets wait: at most
//! [`QUEUE`] an entry, the oldest giving way (RFC 4861 section 7.2.2), and at most so many bytes in all. In Failed there is
//! none and packets are refused at once, so that clients need not wait three seconds each to hear of it; the neighbour is
//! asked on, once a second while there is traffic for it.
//!
//! A change of the MAC that nobody asked for makes the entry Stale: the next packet has it probed.
//!
//! *Kept* entries (routers and servers of the configuration) are watched, whether there are packets for them or not: probed
//! every [`WATCH`] while they answer, and right away when somebody says that they moved; asked for every second while they
//! do not. So it is known soon which server is there, and no client has to find out.
//!
//! # Bounds
//!
//! Kept entries are never evicted. Of all others there are at most [`Bounds::entries`]; a new one beyond that takes the place of the one that has been waiting for an answer for longest, as long as such make
//! up more than a quarter, else of the one that has not been used for longest. So a flood of invented addresses of the
//! segment drives out itself.
//!
//! Each entry has at most one deadline, and `due` holds them in order: letting time pass is no scan.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::ethernet::Mac;
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, PacketBuf};

/// RFC 4861 section 10: REACHABLE_TIME, DELAY_FIRST_PROBE_TIME, RETRANS_TIMER.
pub const REACHABLE: Duration = Duration::from_secs(30);
pub const DELAY: Duration = Duration::from_secs(5);
pub const RETRANS: Duration = Duration::from_secs(1);
/// MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT.
pub const TRIES: u8 = 3;
/// Between two probes of a kept neighbour that answers.
pub const WATCH: Duration = Duration::from_secs(5);
/// An unused entry is forgotten after this.
pub const IDLE: Duration = Duration::from_secs(600);
/// A second ARP answer with another MAC right after the first does not count: two proxies answer at once (Linux,
/// `net/ipv4/arp.c`, LOCKTIME).
pub const LOCK: Duration = Duration::from_secs(1);
/// Packets that wait at one entry.
pub const QUEUE: usize = 8;

/// What is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Incomplete,
    Reachable,
    Stale,
    Delay,
    Probe,
    Failed,
}

impl State {
    pub const fn word(self) -> &'static str {
        match self {
            State::Incomplete => "incomplete",
            State::Reachable => "reachable",
            State::Stale => "stale",
            State::Delay => "delay",
            State::Probe => "probe",
            State::Failed => "failed",
        }
    }
}

/// What a packet for a neighbour is to do.
#[derive(Debug)]
pub enum Way {
    Send(Mac),
    /// It waits in the table now.
    Wait,
    Refuse(DropReason),
}

/// What the table wants of the link.
#[derive(Debug)]
pub enum Wish {
    /// Ask for the neighbour: everybody, or the one host that had it.
    Solicit { addr: Addr, at: Option<Mac> },
    /// A packet that waited, and may go now.
    Send { to: Mac, buf: PacketBuf },
    /// A packet that waited in vain.
    Return { addr: Addr, buf: PacketBuf, reason: DropReason },
}

/// What somebody says of a neighbour's MAC.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub mac: Mac,
    /// It answers a question of ours.
    pub solicited: bool,
    /// A different MAC is to take the place of the known one.
    pub overrides: bool,
    /// But not within [`LOCK`] of when that was learnt.
    pub locked: bool,
}

/// One neighbour, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub addr: Addr,
    pub mac: Option<Mac>,
    pub state: State,
    /// Since it was last confirmed, or if it never was, since it was first asked for.
    pub age: Duration,
    pub queued: usize,
    /// A router or server of the configuration.
    pub kept: bool,
}

#[derive(Debug)]
struct Entry {
    mac: Option<Mac>,
    state: State,
    tries: u8,
    confirmed: Instant,
    /// When the MAC was last learnt or changed.
    learnt: Instant,
    used: Instant,
    asked: Instant,
    due: Option<Instant>,
    /// Its place in [`Table::unanswered`].
    unanswered: Option<Instant>,
    kept: bool,
    queue: VecDeque<PacketBuf>,
}

impl Entry {
    /// No answer is awaited.
    fn is_settled(&self) -> bool {
        matches!(self.state, State::Reachable | State::Stale | State::Failed)
    }
}

/// Bounds of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries besides those of the configuration.
    pub entries: usize,
    /// Bytes of waiting packets in all.
    pub queued_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { entries: 1024, queued_bytes: 1 << 20 }
    }
}

/// The table. Its wishes are to be taken with [`Table::poll_wish`] after every call.
#[derive(Debug)]
pub struct Table {
    bounds: Bounds,
    entries: HashMap<Addr, Entry, BuildHasherDefault<SipHasher13>>,
    due: BTreeSet<(Instant, Addr)>,
    /// Entries without a MAC that are not kept, by when they were first asked for.
    unanswered: BTreeSet<(Instant, Addr)>,
    /// Entries that are not kept.
    strangers: usize,
    queued_bytes: usize,
    wishes: VecDeque<Wish>,
}

impl Table {
    pub fn new(bounds: Bounds) -> Table {
        Table {
            bounds,
            entries: HashMap::default(),
            due: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            strangers: 0,
            queued_bytes: 0,
            wishes: VecDeque::new(),
        }
    }

    /// The addresses that are kept from now on; others that were are so no longer. What is not known yet is asked for.
    pub fn keep(&mut self, now: Instant, addrs: &[Addr]) {
        let wanted: HashSet<Addr> = addrs.iter().copied().collect();
        let former: Vec<Addr> =
            self.entries.iter().filter(|(a, e)| e.kept && !wanted.contains(a)).map(|(a, _)| *a).collect();
        for addr in former {
            self.set_kept(now, addr, false);
        }
        while self.strangers > self.bounds.entries {
            self.evict();
        }
        for &addr in addrs {
            if self.entries.contains_key(&addr) {
                self.set_kept(now, addr, true);
            } else {
                self.ask_first(now, addr, true);
            }
        }
    }

    /// What becomes of the packet in `buf`, which is for `addr`. It is copied if it has to wait.
    pub fn look_up(&mut self, now: Instant, addr: Addr, buf: &PacketBuf) -> Way {
        let Some(entry) = self.entries.get_mut(&addr) else {
            if self.strangers >= self.bounds.entries {
                self.evict();
            }
            self.ask_first(now, addr, false);
            return self.enqueue(addr, buf);
        };
        entry.used = now;
        match (entry.state, entry.mac) {
            // A kept one is about to be probed already.
            (State::Stale, Some(mac)) => {
                if !entry.kept {
                    entry.state = State::Delay;
                    self.set_due(addr, Some(now + DELAY));
                }
                Way::Send(mac)
            }
            (State::Reachable | State::Delay | State::Probe, Some(mac)) => Way::Send(mac),
            (State::Incomplete, _) => self.enqueue(addr, buf),
            _ => {
                if now.since(entry.asked) >= RETRANS {
                    entry.asked = now;
                    self.wishes.push_back(Wish::Solicit { addr, at: None });
                }
                Way::Refuse(DropReason::NeighbourUnreachable)
            }
        }
    }

    /// Somebody says where `addr` is. Nothing happens if nobody asked for it yet.
    pub fn learn(&mut self, now: Instant, addr: Addr, claim: Claim) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        let asking = matches!(entry.state, State::Incomplete | State::Failed);
        let solicited = claim.solicited && (asking || now.since(entry.asked) <= RETRANS * u32::from(TRIES));
        match entry.mac {
            Some(known) if known != claim.mac => {
                if !claim.overrides || (claim.locked && now.since(entry.learnt) < LOCK) {
                    // Not believed, but doubted (RFC 4861 section 7.2.5).
                    if entry.state == State::Reachable {
                        entry.state = State::Stale;
                        let due = if entry.kept { now } else { now + IDLE };
                        self.set_due(addr, Some(due));
                    }
                    return;
                }
                entry.learnt = now;
            }
            Some(_) if !solicited => return,
            Some(_) => {}
            None => entry.learnt = now,
        }
        entry.mac = Some(claim.mac);
        entry.tries = 0;
        let (state, due) = match (solicited, entry.kept) {
            (true, false) => (State::Reachable, REACHABLE),
            (true, true) => (State::Reachable, WATCH),
            (false, false) => (State::Stale, IDLE),
            (false, true) => (State::Stale, Duration::ZERO),
        };
        entry.state = state;
        if solicited {
            entry.confirmed = now;
        }
        let waiting = std::mem::take(&mut entry.queue);
        self.set_due(addr, Some(now + due));
        self.set_unanswered(addr, None);
        for buf in waiting {
            self.queued_bytes -= buf.len();
            self.wishes.push_back(Wish::Send { to: claim.mac, buf });
        }
    }

    /// The MAC of a neighbour that can be sent to.
    pub fn mac(&self, addr: Addr) -> Option<Mac> {
        self.entries.get(&addr)?.mac
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(due, addr)) = self.due.first() {
            if due > now {
                break;
            }
            self.due.pop_first();
            if let Some(entry) = self.entries.get_mut(&addr) {
                entry.due = None;
                self.expire(now, addr);
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    pub fn poll_wish(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    /// Kept neighbours that do not answer.
    pub fn missing(&self) -> impl Iterator<Item = Addr> + '_ {
        let missing = self.entries.iter().filter(|(_, entry)| entry.kept && entry.state == State::Failed);
        missing.map(|(addr, _)| *addr)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Everybody, by address.
    pub fn neighbours(&self, now: Instant) -> Vec<Neighbour> {
        let mut list: Vec<Neighbour> = self
            .entries
            .iter()
            .map(|(&addr, entry)| Neighbour {
                addr,
                mac: entry.mac,
                state: entry.state,
                age: now.since(entry.confirmed),
                queued: entry.queue.len(),
                kept: entry.kept,
            })
            .collect();
        list.sort_by_key(|neighbour| (!neighbour.addr.is_v4(), neighbour.addr));
        list
    }

    /// Panics when the table contradicts itself; for tests.
    pub fn check_invariants(&self) {
        let strangers = self.entries.values().filter(|entry| !entry.kept).count();
        assert_eq!(self.strangers, strangers);
        assert!(strangers <= self.bounds.entries, "{strangers} strangers");
        let queued: usize = self.entries.values().flat_map(|entry| &entry.queue).map(PacketBuf::len).sum();
        assert_eq!(self.queued_bytes, queued);
        assert!(queued <= self.bounds.queued_bytes, "{queued} bytes wait");
        let due: BTreeSet<_> = self.entries.iter().filter_map(|(addr, entry)| Some((entry.due?, *addr))).collect();
        assert_eq!(self.due, due);
        for (addr, entry) in &self.entries {
            let known = !matches!(entry.state, State::Incomplete | State::Failed);
            assert_eq!(entry.mac.is_some(), known, "{addr} is {}", entry.state.word());
            assert!(entry.queue.len() <= QUEUE);
            assert!(entry.queue.is_empty() || entry.state == State::Incomplete, "{addr}");
            assert!(entry.due.is_some(), "{addr} is {} for ever", entry.state.word());
            assert_eq!(entry.unanswered.is_some(), !known && !entry.kept, "{addr} is {}", entry.state.word());
        }
        let unanswered: BTreeSet<_> =
            self.entries.iter().filter_map(|(a, entry)| Some((entry.unanswered?, *a))).collect();
        assert_eq!(self.unanswered, unanswered);
    }

    fn expire(&mut self, now: Instant, addr: Addr) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        match entry.state {
            State::Incomplete | State::Probe if entry.tries < TRIES => {
                entry.tries += 1;
                entry.asked = now;
                self.wishes.push_back(Wish::Solicit { addr, at: entry.mac });
                self.set_due(addr, Some(now + RETRANS));
            }
            State::Incomplete | State::Probe => self.fail(now, addr),
            State::Delay => self.probe(now, addr),
            State::Reachable | State::Stale if entry.kept => self.probe(now, addr),
            State::Failed if entry.kept => {
                entry.asked = now;
                self.wishes.push_back(Wish::Solicit { addr, at: None });
                self.set_due(addr, Some(now + RETRANS));
            }
            State::Reachable => {
                entry.state = State::Stale;
                self.set_due(addr, Some(now + IDLE));
            }
            State::Stale | State::Failed if now.since(entry.used) < IDLE => {
                let due = entry.used + IDLE;
                self.set_due(addr, Some(due));
            }
            State::Stale | State::Failed => self.remove(addr, DropReason::NeighbourEvicted),
        }
    }

    fn probe(&mut self, now: Instant, addr: Addr) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        (entry.state, entry.tries, entry.asked) = (State::Probe, 1, now);
        self.wishes.push_back(Wish::Solicit { addr, at: entry.mac });
        self.set_due(addr, Some(now + RETRANS));
    }

    fn fail(&mut self, now: Instant, addr: Addr) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        entry.state = State::Failed;
        let lost = entry.mac.take().is_some() && !entry.kept;
        let due = if entry.kept { RETRANS } else { IDLE };
        let waiting = std::mem::take(&mut entry.queue);
        self.set_due(addr, Some(now + due));
        if lost {
            self.set_unanswered(addr, Some(now));
        }
        for buf in waiting {
            self.queued_bytes -= buf.len();
            self.wishes.push_back(Wish::Return { addr, buf, reason: DropReason::NeighbourUnreachable });
        }
    }

    fn ask_first(&mut self, now: Instant, addr: Addr, kept: bool) {
        let entry = Entry {
            mac: None,
            state: State::Incomplete,
            tries: 1,
            confirmed: now,
            learnt: now,
            used: now,
            asked: now,
            due: None,
            unanswered: None,
            kept,
            queue: VecDeque::new(),
        };
        self.entries.insert(addr, entry);
        if !kept {
            self.strangers += 1;
            self.set_unanswered(addr, Some(now));
        }
        self.set_due(addr, Some(now + RETRANS));
        self.wishes.push_back(Wish::Solicit { addr, at: None });
    }

    fn enqueue(&mut self, addr: Addr, buf: &PacketBuf) -> Way {
        let Some(entry) = self.entries.get_mut(&addr) else { return Way::Refuse(DropReason::NeighbourUnreachable) };
        if entry.queue.len() == QUEUE
            && let Some(oldest) = entry.queue.pop_front()
        {
            self.queued_bytes -= oldest.len();
            self.wishes.push_back(Wish::Return { addr, buf: oldest, reason: DropReason::NeighbourQueueFull });
        }
        if self.queued_bytes + buf.len() > self.bounds.queued_bytes {
            return Way::Refuse(DropReason::NeighbourQueueFull);
        }
        self.queued_bytes += buf.len();
        entry.queue.push_back(buf.compact());
        Way::Wait
    }

    fn evict(&mut self) {
        let oldest = self.unanswered.first().map(|(_, addr)| *addr);
        let victim = oldest.filter(|_| self.unanswered.len() * 4 > self.bounds.entries).or_else(|| {
            // Only hosts that did answer get here: there are not many of these.
            let strangers = self.entries.iter().filter(|(_, entry)| !entry.kept && entry.mac.is_some());
            strangers.min_by_key(|(addr, entry)| (entry.used, **addr)).map(|(addr, _)| *addr)
        });
        if let Some(victim) = victim.or(oldest) {
            self.remove(victim, DropReason::NeighbourEvicted);
        }
    }

    fn remove(&mut self, addr: Addr, reason: DropReason) {
        self.set_due(addr, None);
        self.set_unanswered(addr, None);
        let Some(entry) = self.entries.remove(&addr) else { return };
        if !entry.kept {
            self.strangers -= 1;
        }
        for buf in entry.queue {
            self.queued_bytes -= buf.len();
            self.wishes.push_back(Wish::Return { addr, buf, reason });
        }
    }

    fn set_kept(&mut self, now: Instant, addr: Addr, kept: bool) {
        let Some(entry) = self.entries.get_mut(&addr).filter(|entry| entry.kept != kept) else { return };
        entry.kept = kept;
        let (unanswered, used, settled) = (entry.mac.is_none(), entry.used, entry.is_settled());
        if settled {
            self.set_due(addr, Some(if kept { now } else { now + IDLE }));
        }
        if kept {
            self.strangers -= 1;
            return self.set_unanswered(addr, None);
        }
        self.strangers += 1;
        if unanswered {
            self.set_unanswered(addr, Some(used));
        }
    }

    fn set_unanswered(&mut self, addr: Addr, since: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        if let Some(former) = std::mem::replace(&mut entry.unanswered, since) {
            self.unanswered.remove(&(former, addr));
        }
        if let Some(since) = since {
            self.unanswered.insert((since, addr));
        }
    }

    fn set_due(&mut self, addr: Addr, due: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        if let Some(former) = std::mem::replace(&mut entry.due, due) {
            self.due.remove(&(former, addr));
        }
        if let Some(due) = due {
            self.due.insert((due, addr));
        }
    }
}
