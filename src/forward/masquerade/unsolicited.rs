//! SYNs from outside that no inside host waits for (RFC 5382 REQ-4): nothing is said of them for a while, since the inside host
//! may be about to open that very connection from its side. If it does not, the sender is told that the port is unreachable.
//!
//! A bounded list in the order of arrival, which is that of deadlines. What does not fit is never answered.

use std::collections::VecDeque;
use std::time::Duration;

use super::{HashKey, Map};
use crate::time::Instant;
use crate::wire::{PacketBuf, Tuple, View};

/// How long nothing is said (RFC 5382 REQ-4: at least 6 s).
const SILENCE: Duration = Duration::from_secs(6);
/// Bytes of the SYN that are kept to be quoted: its headers, whatever options they have.
const QUOTED: usize = 128;

/// A SYN that waits for its answer.
pub struct Unsolicited {
    pub tuple: Tuple,
    pub view: View,
    /// Its first bytes.
    pub packet: PacketBuf,
    due: Instant,
}

/// All of them.
pub struct UnsolicitedSyns {
    waiting: VecDeque<Unsolicited>,
    known: Map<Tuple, ()>,
}

impl UnsolicitedSyns {
    /// `key` must be a secret, since strangers choose tuples.
    pub fn new(key: [u64; 2]) -> UnsolicitedSyns {
        UnsolicitedSyns { waiting: VecDeque::new(), known: Map::with_hasher(HashKey(key)) }
    }

    /// Notes a SYN, unless the same one waits already. `false`: there are `max`.
    pub fn note(&mut self, now: Instant, tuple: &Tuple, view: &View, packet: &[u8], max: usize) -> bool {
        if self.known.contains_key(tuple) {
            return true;
        }
        if self.waiting.len() >= max {
            return false;
        }
        if self.known.capacity() < max {
            self.known.reserve(max - self.known.len());
        }
        self.known.insert(*tuple, ());
        let packet = PacketBuf::from_packet(&packet[..packet.len().min(QUOTED)]);
        self.waiting.push_back(Unsolicited { tuple: *tuple, view: *view, packet, due: now + SILENCE });
        true
    }

    /// One whose time has come.
    pub fn next(&mut self, now: Instant) -> Option<Unsolicited> {
        self.waiting.front().filter(|syn| syn.due <= now)?;
        let syn = self.waiting.pop_front()?;
        self.known.remove(&syn.tuple);
        Some(syn)
    }

    /// Forgets the latest beyond `max`; tells how many.
    pub fn trim(&mut self, max: usize) -> u64 {
        let mut forgotten = 0;
        while self.waiting.len() > max
            && let Some(syn) = self.waiting.pop_back()
        {
            self.known.remove(&syn.tuple);
            forgotten += 1;
        }
        forgotten
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|syn| syn.due)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
