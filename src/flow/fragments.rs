//! Fragments that follow their first one.
//!
//! # Theory of operation
//!
//! Ports are in the first fragment only. What is done with it (its [`Fate`]) is noted here, and every later fragment of the
//! same packet gets the same. A later fragment that comes before the first is *held*, up to a bound, and handed back with
//! the fate once that is known. Nothing is put together: fragments leave as fragments.
//!
//! Of each packet it is known which fragments have come (`pieces`): one that overlaps with another condemns the whole packet,
//! and what of it is held.
//!
//! All entries live equally long, so the order of arrival is the order of expiry. When the table or the room for held
//! fragments is full, the oldest entries go: fragments of one packet follow each other closely, and under a flood the
//! oldest are those whose rest will not come.
//!
//! Packets of several hosts leave under one address, so their 16-bit identifications may collide at the receiver (RFC 3022
//! section 4; RFC 6864 section 5.3.1: a NAT must avoid that). Each fragmented IPv4 packet that is translated gets a new one,
//! of those that are its shard's.

use std::collections::{HashMap, VecDeque};

use siphasher::sip::SipHasher13;

use super::Sender;
use super::pieces::{Piece, Pieces};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{Addr, PacketBuf, Protocol, Rewrite, View};

/// What is done with all fragments of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Translate, in IPv4 with a new identification; or without a translation do what the server's method does.
    Forward {
        rewrite: Option<Rewrite>,
        id: Option<u16>,
        server: u32,
        sender: Sender,
        /// The shard that is to decide on what comes of it.
        on: Option<u16>,
    },
    /// Another shard knows.
    Elsewhere(u16),
    Pass,
    /// Send it back where it came from: it is part of an echo request.
    Echo,
    Drop(DropReason),
}

/// What to do with a later fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Later {
    Known(Fate),
    Held,
    Refused,
}

/// What names a fragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: Addr,
    dst: Addr,
    id: u32,
    protocol: Protocol,
}

struct Entry {
    serial: u64,
    fate: Option<Fate>,
    pieces: Pieces,
    held: Vec<PacketBuf>,
}

#[derive(Clone, Copy)]
struct HashKey([u64; 2]);

impl std::hash::BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// The fragmented packets that a shard follows.
pub struct Fragments {
    entries: HashMap<Key, Entry, HashKey>,
    /// Oldest first; one for each entry.
    order: VecDeque<(Instant, Key, u64)>,
    held_bytes: usize,
    serial: u64,
    next_id: u16,
    /// The shard, and how many there are: identifications are shared out among them.
    shard: (u16, u16),
}

/// Bounds for [`Fragments`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub packets: usize,
    pub held_bytes: usize,
}

impl Fragments {
    /// For shard number `shard.0` of `shard.1`.
    pub fn new(key: [u64; 2], shard: (u16, u16)) -> Fragments {
        Fragments {
            entries: HashMap::with_hasher(HashKey(key)),
            order: VecDeque::new(),
            held_bytes: 0,
            serial: 0,
            next_id: key[0] as u16,
            shard: (shard.0, shard.1.max(1)),
        }
    }

    /// Packets followed at the moment.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes held at the moment.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// An identification for a translated IPv4 packet: another one each time, until all that are the shard's have been used.
    pub fn fresh_id(&mut self) -> u16 {
        let (shard, shards) = self.shard;
        let own = (u16::MAX / shards).max(1);
        self.next_id = (self.next_id % own + 1) % own;
        self.next_id.wrapping_mul(shards).wrapping_add(shard)
    }

    /// Sees whether a fragment fits in with the others of its packet. If not, the packet is dropped from here on, for the reason
    /// returned, together with so many fragments that were held. `dropped` counts held fragments that had to make room.
    pub fn check(
        &mut self,
        deadline: Instant,
        view: &View,
        bounds: Bounds,
        dropped: &mut u64,
    ) -> Result<(), (DropReason, u64)> {
        let Some(fragment) = &view.fragment else { return Ok(()) };
        let key = key(view);
        if !self.entries.contains_key(&key) {
            self.insert(deadline, key, None, bounds, dropped);
        }
        let Some(entry) = self.entries.get_mut(&key) else { return Ok(()) };
        if let Some(Fate::Drop(reason @ (DropReason::OverlappingFragment | DropReason::TooManyFragments))) = entry.fate
        {
            return Err((reason, 0));
        }
        let reason = match entry.pieces.note(fragment) {
            Piece::Fits | Piece::Again => return Ok(()),
            Piece::Overlaps => DropReason::OverlappingFragment,
            Piece::TooMany => DropReason::TooManyFragments,
        };
        entry.fate = Some(Fate::Drop(reason));
        entry.pieces = Pieces::default();
        let held = std::mem::take(&mut entry.held);
        self.held_bytes -= held.iter().map(PacketBuf::len).sum::<usize>();
        Err((reason, held.len() as u64))
    }

    /// Panics when it contradicts itself; for tests.
    pub fn check_invariants(&self) {
        let held = self.entries.values().flat_map(|entry| &entry.held).map(PacketBuf::len).sum::<usize>();
        assert_eq!(held, self.held_bytes);
        assert_eq!(self.entries.len(), self.order.len());
        assert!(self.entries.values().all(|entry| entry.pieces.len() <= super::MAX_PIECES));
    }

    /// Notes the fate of a first fragment's packet. Returns the fragments that were held for it, in the order in which
    /// they came; `dropped` counts held fragments that had to make room.
    pub fn first(
        &mut self,
        deadline: Instant,
        view: &View,
        fate: Fate,
        bounds: Bounds,
        dropped: &mut u64,
    ) -> Vec<PacketBuf> {
        let key = key(view);
        match self.entries.get_mut(&key) {
            Some(entry) => {
                entry.fate = Some(fate);
                let held = std::mem::take(&mut entry.held);
                self.held_bytes -= held.iter().map(PacketBuf::len).sum::<usize>();
                held
            }
            None => {
                self.insert(deadline, key, Some(fate), bounds, dropped);
                Vec::new()
            }
        }
    }

    /// The fate known for the packet of a first fragment that came again.
    pub fn fate(&self, view: &View) -> Option<Fate> {
        self.entries.get(&key(view))?.fate
    }

    /// What to do with a later fragment; a copy is kept when its first has not come.
    pub fn later(
        &mut self,
        deadline: Instant,
        view: &View,
        buf: &PacketBuf,
        bounds: Bounds,
        dropped: &mut u64,
    ) -> Later {
        let key = key(view);
        if let Some(fate) = self.entries.get(&key).and_then(|entry| entry.fate) {
            return Later::Known(fate);
        }
        if buf.len() > bounds.held_bytes || bounds.packets == 0 {
            return Later::Refused;
        }
        if !self.entries.contains_key(&key) {
            self.insert(deadline, key, None, bounds, dropped);
        }
        while self.held_bytes + buf.len() > bounds.held_bytes {
            // The packet's own entry may be the oldest and go too: then there is no room for it.
            self.drop_oldest(dropped);
        }
        let Some(entry) = self.entries.get_mut(&key) else { return Later::Refused };
        self.held_bytes += buf.len();
        entry.held.push(buf.compact());
        Later::Held
    }

    /// Forgets what is older than its deadline; returns how many held fragments went with it.
    pub fn expire(&mut self, now: Instant) -> u64 {
        let mut dropped = 0;
        while self.order.front().is_some_and(|(deadline, ..)| *deadline <= now) {
            self.drop_oldest(&mut dropped);
        }
        dropped
    }

    /// Keeps to bounds that may be lower than before; `dropped` counts held fragments that had to go.
    pub fn trim(&mut self, bounds: Bounds, dropped: &mut u64) {
        while self.entries.len() > bounds.packets || self.held_bytes > bounds.held_bytes {
            self.drop_oldest(dropped);
        }
    }

    /// When [`Fragments::expire`] has work, at the earliest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.order.front().map(|(deadline, ..)| *deadline)
    }

    fn insert(&mut self, deadline: Instant, key: Key, fate: Option<Fate>, bounds: Bounds, dropped: &mut u64) {
        if bounds.packets == 0 {
            return;
        }
        while self.entries.len() >= bounds.packets {
            self.drop_oldest(dropped);
        }
        self.serial += 1;
        self.entries.insert(key, Entry { serial: self.serial, fate, pieces: Pieces::default(), held: Vec::new() });
        self.order.push_back((deadline, key, self.serial));
    }

    fn drop_oldest(&mut self, dropped: &mut u64) {
        let Some((_, key, serial)) = self.order.pop_front() else { return };
        if self.entries.get(&key).is_some_and(|entry| entry.serial == serial)
            && let Some(entry) = self.entries.remove(&key)
        {
            self.held_bytes -= entry.held.iter().map(PacketBuf::len).sum::<usize>();
            *dropped += entry.held.len() as u64;
        }
    }
}

fn key(view: &View) -> Key {
    let id = view.fragment.map_or(0, |fragment| fragment.id);
    // RFC 791 section 3.2 counts the protocol in; RFC 8200 section 4.5 does not, and there a later fragment cannot tell:
    // extension headers may stand between the fragment header and the transport header of the first.
    let protocol = if view.src.is_v4() { view.protocol } else { Protocol::default() };
    Key { src: view.src, dst: view.dst, id, protocol }
}
