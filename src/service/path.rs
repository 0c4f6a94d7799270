//! What is known of the way to a server: learned from the network, shared by all shards, kept across reloads.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use super::scheduler::Mark;
use crate::time::Instant;

/// How long a path MTU is believed before a larger one is tried again (RFC 1191 section 6.3; Linux, `mtu_expires`).
const MTU_EXPIRES: Duration = Duration::from_secs(600);

/// The way to one server.
#[derive(Debug, Default)]
pub struct ServerPath {
    /// The MTU in the low 16 bits, 0 for none; above it the microsecond at which it was learned.
    mtu: AtomicU64,
    unreachable: AtomicBool,
    /// The last identification that an outer header to the server had.
    last_id: AtomicU16,
    mark: Mark,
}

impl ServerPath {
    /// Of a server whose changes are marked by `mark`.
    pub(crate) fn marked(mark: Mark) -> ServerPath {
        ServerPath { mark, ..ServerPath::default() }
    }

    /// Bytes that a packet to the server may have, where the path was found to be narrower than `link`.
    #[inline]
    pub fn mtu(&self, now: Instant, link: u16) -> u16 {
        let learned = self.mtu.load(Ordering::Relaxed);
        if learned == 0 {
            return link;
        }
        let since = Instant::from_micros(learned >> 16);
        if now - since >= MTU_EXPIRES { link } else { link.min(learned as u16) }
    }

    /// A router says that no more than `mtu` bytes go through. Only ever lowers what is believed now.
    pub fn learn_mtu(&self, now: Instant, mtu: u16) {
        if mtu <= self.mtu(now, u16::MAX) {
            // 48 bits of microseconds are nine years.
            self.mtu.store(now.micros() << 16 | u64::from(mtu), Ordering::Relaxed);
        }
    }

    /// Takes `count` identifications in a row, for outer headers without DF, and returns the first: all shards take from the
    /// same, so that no two packets in flight have one (RFC 6864 section 4.3).
    pub fn identifications(&self, count: u16) -> u16 {
        self.last_id.fetch_add(count, Ordering::Relaxed).wrapping_add(1)
    }

    /// Whether the server's neighbour entry has failed: nobody answers for its address on the segment.
    #[inline]
    pub fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    pub fn set_unreachable(&self, unreachable: bool) {
        self.unreachable.store(unreachable, Ordering::Relaxed);
        self.mark.set();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_mtu_only_falls_and_is_forgotten_after_ten_minutes() {
        let path = ServerPath::default();
        let at = Instant::from_secs;
        assert_eq!(path.mtu(at(5), 1500), 1500);
        path.learn_mtu(at(5), 1400);
        path.learn_mtu(at(6), 1450);
        assert_eq!((path.mtu(at(604), 1500), path.mtu(at(604), 1280)), (1400, 1280));
        assert_eq!(path.mtu(at(605), 1500), 1500);
        path.learn_mtu(at(606), 1450);
        assert_eq!(path.mtu(at(607), 1500), 1450);
    }
}
