//! The hash behind the schedulers that choose by client.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::Request;
use crate::service::Server;
use crate::wire::Addr;

/// New hashes tried before the servers are searched one by one.
const REHASHES: u64 = 16;

/// Hashes addresses alike on every gateway that has the same seed, and unpredictably for clients who do not know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeededHash {
    seed: u64,
}

impl SeededHash {
    pub(super) fn new(seed: u64) -> SeededHash {
        SeededHash { seed }
    }

    /// `salt` gives independent hashes of one address.
    #[inline]
    pub(super) fn of(self, addr: Addr, salt: u64) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.seed, salt);
        hasher.write(addr.octets());
        hasher.finish()
    }

    /// The available server that `client` comes to by way of `table`, a list of indexes of servers. While the one it
    /// comes to is unavailable the address is hashed anew, so that the clients of one server spread over all others.
    pub(super) fn look_up(self, request: &Request, table: &[u32], servers: &[Arc<Server>]) -> Option<usize> {
        let available = |index: usize| servers.get(index).is_some_and(|server| server.takes(request));
        for attempt in 0..=REHASHES {
            let entry = (self.of(request.client, attempt) as usize).checked_rem(table.len())?;
            let index = table[entry] as usize;
            if available(index) {
                return Some(index);
            }
        }
        // Nearly all servers are unavailable: from a place of the client's own, the next one that is not.
        let start = (self.of(request.client, REHASHES + 1) as usize).checked_rem(servers.len())?;
        (start..servers.len()).chain(0..start).find(|&index| available(index))
    }
}
