//! What changes about a server while the configuration stays: its health, its marks, how full it is. Shared by all shards and
//! by every snapshot that has the server; atomic, and cheap to read.

use std::hash::Hasher;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::scheduler::Mark;
use crate::time::Instant;
use crate::wire::Addr;

/// A server's state. A new server is up: until a check says otherwise it may serve.
#[derive(Debug)]
pub struct ServerState {
    is_up: AtomicBool,
    is_draining: AtomicBool,
    is_full: AtomicBool,
    /// When it came up after it had been down, in microseconds of the engine's clock; 0: it has been up from the start.
    risen: AtomicU64,
    /// When passive checks took it down, in microseconds of the engine's clock; 0: they have not.
    passive_down: AtomicU64,
    /// An active check has agreed since then.
    is_confirmed: AtomicBool,
    /// An active check looks after it.
    is_checked: AtomicBool,
    /// Connections that failed in a row, as clients' packets tell.
    failures: AtomicU32,
    /// The same since the server was configured.
    failed: AtomicU64,
    /// Whose the last failure of the row was, as a hash of its address; 0: there is none.
    blamer: AtomicU64,
    mark: Mark,
}

impl Default for ServerState {
    fn default() -> ServerState {
        ServerState {
            is_up: AtomicBool::new(true),
            is_draining: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            risen: AtomicU64::new(0),
            passive_down: AtomicU64::new(0),
            is_confirmed: AtomicBool::new(false),
            is_checked: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            failed: AtomicU64::new(0),
            blamer: AtomicU64::new(0),
            mark: Mark::default(),
        }
    }
}

impl ServerState {
    /// Of a server whose changes are marked by `mark`. Whatever [`Server::is_available`](super::Server::is_available) goes by
    /// has to set it.
    pub(crate) fn marked(mark: Mark) -> ServerState {
        ServerState { mark, ..ServerState::default() }
    }

    /// Whether checks let it serve.
    #[inline]
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Whether it is being drained: it gets no new flow, whatever its weight.
    #[inline]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Whether it has as many flows as it may have.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Marks it up or down, on behalf of an active check or the time; tells whether that is a change. Coming up starts its
    /// slow start. Down is said for good even of a server that passive checks have taken down.
    pub fn set_up(&self, now: Instant, up: bool) -> bool {
        let changed = self.is_up.swap(up, Ordering::Relaxed) != up;
        self.is_confirmed.store(!up, Ordering::Relaxed);
        if changed && up {
            self.blamer.store(0, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
            self.passive_down.store(0, Ordering::Relaxed);
            self.risen.store(now.micros().max(1), Ordering::Relaxed);
        }
        self.mark.set();
        changed
    }

    /// When passive checks took it down, if that is why it is down. The control plane polls this: it logs the fall, and
    /// evacuates the server.
    pub fn passive_down_since(&self) -> Option<Instant> {
        let since = self.passive_down.load(Ordering::Relaxed);
        (since != 0).then(|| Instant::from_micros(since))
    }

    /// Whether it is down for no other reason than that passive checks took it down. Strangers may be behind that: it gets no
    /// new flow, but those that it has served go on.
    pub fn is_doubted(&self) -> bool {
        !self.is_up.load(Ordering::Acquire)
            && self.passive_down_since().is_some()
            && !self.is_confirmed.load(Ordering::Relaxed)
    }

    /// Whether an active check looks after it. If so, passive checks only take it down, and when it has been down for
    /// [`Passive::hold`](super::Passive) it is the check that brings it up; otherwise the engine does.
    pub fn set_checked(&self, checked: bool) {
        self.is_checked.store(checked, Ordering::Relaxed);
    }

    pub fn is_checked(&self) -> bool {
        self.is_checked.load(Ordering::Relaxed)
    }

    /// Passive checks take it down; tells since when, `None` if it was down already.
    pub(crate) fn fall_passively(&self, now: Instant) -> Option<Instant> {
        if !self.is_up() {
            return None;
        }
        let since = now.max(Instant::from_micros(1));
        // Before it is down: nobody is to think that a check said so.
        self.passive_down.store(since.micros(), Ordering::Relaxed);
        let fell = self.is_up.swap(false, Ordering::AcqRel);
        if !fell {
            self.passive_down.store(0, Ordering::Relaxed);
        }
        self.mark.set();
        fell.then_some(since)
    }

    /// Sets or clears the drain mark; tells whether that is a change.
    pub fn set_draining(&self, draining: bool) -> bool {
        let changed = self.is_draining.swap(draining, Ordering::Relaxed) != draining;
        self.mark.set();
        changed
    }

    /// How much of its share of new flows it gets at `now`, of 65536.
    #[inline]
    pub fn share(&self, now: Instant, slow_start: Duration) -> u64 {
        let risen = self.risen.load(Ordering::Relaxed);
        if risen == 0 || slow_start.is_zero() {
            return 1 << 16;
        }
        let since = (now - Instant::from_micros(risen)).as_micros();
        ((since << 16) / slow_start.as_micros()).min(1 << 16) as u64
    }

    /// Connections that failed in a row, and since the server was configured.
    pub fn failures(&self) -> (u32, u64) {
        (self.failures.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// A client's connection failed; tells how many in a row that makes. Of a client's failures one after another the first
    /// counts for the row; `None` for the others.
    pub(crate) fn note_failure(&self, client: Addr) -> Option<u32> {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let blamer = blamer(client);
        if self.blamer.swap(blamer, Ordering::Relaxed) == blamer {
            return None;
        }
        Some(self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1))
    }

    /// A client's connection was answered.
    #[inline]
    pub(crate) fn note_success(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.blamer.store(0, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// After its number of flows changed; `flows` reads it. Full at `upper`; no longer so below `lower` (Linux,
    /// `net/netfilter/ipvs/ip_vs_conn.c` and `ip_vs_sched.c`: three quarters of `upper` where `lower` is 0 or not set).
    pub(crate) fn note_flows(&self, flows: impl Fn() -> u64, upper: Option<u32>, lower: Option<u32>) {
        let Some(upper) = upper.map(u64::from) else {
            if self.is_full() {
                self.set_full(false);
            }
            return;
        };
        let has_room = |flows: u64| match lower {
            Some(lower) if lower > 0 => flows < u64::from(lower),
            _ => flows * 4 < upper * 3,
        };
        // Whoever changes the number, then looks at the mark; whoever changes the mark, then looks at the number again: of two
        // shards that do so at the same time one sees what the other did.
        loop {
            fence(Ordering::SeqCst);
            let flows = flows();
            let full = match self.is_full() {
                false => flows >= upper,
                true => flows >= upper || !has_room(flows),
            };
            if full == self.is_full() {
                return;
            }
            self.set_full(full);
        }
    }

    fn set_full(&self, full: bool) {
        self.is_full.store(full, Ordering::Relaxed);
        self.mark.set();
    }
}

/// Names a client among those that fail at a server. With IPv6 a host has the 64 bits behind its prefix to itself (RFC 4291
/// section 2.5.1), so they do not count.
fn blamer(client: Addr) -> u64 {
    let octets = client.octets();
    let mut hasher = SipHasher13::new();
    hasher.write(if client.is_v4() { octets } else { &octets[..8] });
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_while_a_server_is_marked_full_is_seen() {
        let state = ServerState::default();
        let after = |numbers: &'static [u64]| {
            let turn = std::cell::Cell::new(0);
            let flows = || numbers[turn.replace(turn.get() + 1).min(numbers.len() - 1)];
            state.note_flows(flows, Some(8), None);
            state.is_full()
        };
        // All flows end, in another shard that has seen no mark yet.
        assert!(!after(&[8, 0]));
        assert!(after(&[8, 7]));
        assert!(after(&[6]), "three quarters");
        // As many come as it may have.
        assert!(after(&[5, 8]));
        assert!(!after(&[5]));
    }
}
