//! The hash behind the schedulers that choose by address, and the tables that two of them go by.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::{Flags, Request, gcd};
use crate::service::Server;
use crate::wire::Addr;

/// New hashes tried before the servers are searched one by one.
const REHASHES: u64 = 16;

/// Entries of a table that is dealt out by [`deal`].
const BUCKETS: usize = 256;

/// Hashes addresses alike on every gateway that has the same seed, and unpredictably for clients who do not know it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeededHash {
    seed: u64,
    flags: Flags,
}

impl SeededHash {
    pub(super) fn new(flags: Flags, seed: u64) -> SeededHash {
        SeededHash { seed, flags }
    }

    /// `salt` gives independent hashes of one address.
    #[inline]
    pub(super) fn of(self, addr: Addr, salt: u64) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.seed, salt);
        hasher.write(addr.octets());
        hasher.finish()
    }

    /// The server that takes the flow of `request` and to which its client comes by way of `table`, a list of indexes of
    /// servers.
    pub(super) fn of_client(self, request: &Request, table: &[u32], servers: &[Arc<Server>]) -> Option<usize> {
        let client = request.client;
        let port = self.flags.port.then_some(request.client_port);
        self.look_up(request, |salt| self.of_endpoint(client, port, salt), table, servers)
    }

    /// The same by the address that the client sent to.
    pub(super) fn of_vip(self, request: &Request, table: &[u32], servers: &[Arc<Server>]) -> Option<usize> {
        self.look_up(request, |salt| self.of(request.vip, salt), table, servers)
    }

    /// While the server of the table's entry takes nothing the address is hashed anew, so that the clients of one server
    /// spread over all others; or with [`Flags::strict`] nobody serves them.
    fn look_up(
        self,
        request: &Request,
        hash: impl Fn(u64) -> u64,
        table: &[u32],
        servers: &[Arc<Server>],
    ) -> Option<usize> {
        let takes = |index: usize| servers.get(index).is_some_and(|server| server.takes(request));
        for attempt in 0..=REHASHES {
            let entry = (hash(attempt) as usize).checked_rem(table.len())?;
            let index = table[entry] as usize;
            if takes(index) {
                return Some(index);
            }
            if self.flags.strict {
                return None;
            }
        }
        // Nearly all servers are unavailable: from a place of the client's own, the next one that is not.
        let start = (hash(REHASHES + 1) as usize).checked_rem(servers.len())?;
        (start..servers.len()).chain(0..start).find(|&index| takes(index))
    }

    #[inline]
    fn of_endpoint(self, addr: Addr, port: Option<u16>, salt: u64) -> u64 {
        let Some(port) = port else { return self.of(addr, salt) };
        let mut hasher = SipHasher13::new_with_keys(self.seed, salt);
        hasher.write(addr.octets());
        hasher.write_u16(port);
        hasher.finish()
    }

    /// The flags in words, for `gatun explain`.
    pub(super) fn state(self, of: &str) -> String {
        let key = if self.flags.port { "the client's address and port" } else { of };
        let otherwise = if self.flags.strict { "nobody else" } else { "another one" };
        format!("by {key}, {otherwise} when that server is unavailable")
    }
}

/// Deals out the buckets to the servers by weight, round by round. Weights are divided by their greatest common divisor
/// first, and scaled to the table when their sum is larger than it. Empty when no server has a weight.
pub(super) fn deal(servers: &[Arc<Server>], weight: impl Fn(&Server) -> u32) -> Arc<[u32]> {
    let divisor = servers.iter().fold(0, |divisor, server| gcd(divisor, weight(server)));
    if divisor == 0 {
        return Arc::new([]);
    }
    let turns = |server: &Server| u64::from(weight(server) / divisor);
    let ends: Vec<u64> = servers
        .iter()
        .scan(0, |end, server| {
            *end += turns(server);
            Some(*end)
        })
        .collect();
    let total = ends.last().copied().unwrap_or(0);
    // Point p of the line [0, total) belongs to the server in whose stretch it lies.
    let owner = |point: u64| ends.partition_point(|&end| end <= point) as u32;
    let buckets = BUCKETS as u64;
    let point = |bucket: u64| if total <= buckets { bucket % total } else { (2 * bucket + 1) * total / (2 * buckets) };
    (0..buckets).map(|bucket| owner(point(bucket))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::servers;
    use super::*;

    fn buckets(weights: &[u32]) -> Vec<usize> {
        let table = deal(&servers(weights), |server| server.weight);
        (0..weights.len()).map(|index| table.iter().filter(|&&owner| owner as usize == index).count()).collect()
    }

    #[test]
    fn buckets_are_dealt_out_by_weight() {
        assert_eq!(buckets(&[1, 1]), [128, 128]);
        assert_eq!(buckets(&[1, 1, 1]), [86, 85, 85]);
        assert_eq!(buckets(&[1, 0, 3]), [64, 0, 192]);
        assert_eq!(buckets(&[300, 300]), [128, 128]);
        assert_eq!(buckets(&[65535, 65534]), [128, 128]);
        assert_eq!(buckets(&[1000, 1, 999]), [128, 0, 128]);
        assert_eq!(buckets(&[0, 0]), [0, 0]);
        assert_eq!(deal(&servers(&[2, 1]), |server| server.weight)[..6], [0, 0, 1, 0, 0, 1]);
    }
}
