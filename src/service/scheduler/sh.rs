//! `sh`, source hashing: a client address always comes to the same server while the servers stay the same.
//!
//! A table of 256 buckets is dealt out to the servers by weight, round by round, as in Linux
//! (`net/netfilter/ipvs/ip_vs_sh.c`); the hash of the client's address names the bucket. Three things differ:
//!
//! * Weights are divided by their greatest common divisor first, and scaled to the table when their sum is larger than
//!   it. (Dealt out as they are, two weights of 300 would give the first server every bucket.)
//! * When the server of the bucket is not available, the address is hashed anew until one's is. IPVS drops the
//!   packet unless `sh-fallback` is set; here the fallback is always on.
//! * The hash is keyed with the seed of the configuration, so that clients
//!   cannot aim at one server where `seed` is set to something that they do not know.
//!
//! With more servers than buckets some are only ever reached as a fallback: `mh` suits such services, and it also moves
//! far fewer clients when a server comes or goes.

use std::sync::Arc;

use super::hash::SeededHash;
use super::{Request, Scheduler, gcd};
use crate::service::Server;

const BUCKETS: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct SourceHash {
    hash: SeededHash,
    /// Indexes of servers; empty when no server has a weight.
    buckets: Arc<[u32]>,
}

impl SourceHash {
    pub(super) fn new(servers: &[Arc<Server>], seed: u64) -> SourceHash {
        SourceHash { hash: SeededHash::new(seed), buckets: deal(servers) }
    }
}

impl Scheduler for SourceHash {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.hash.look_up(request, &self.buckets, servers)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}

fn deal(servers: &[Arc<Server>]) -> Arc<[u32]> {
    let divisor = servers.iter().fold(0, |divisor, server| gcd(divisor, server.weight));
    if divisor == 0 {
        return Arc::new([]);
    }
    let turns = |server: &Server| u64::from(server.weight / divisor);
    let total: u64 = servers.iter().map(|server| turns(server)).sum();
    // Point p of the line [0, total) belongs to the server in whose stretch it lies.
    let owner = |point: u64| {
        let mut end = 0;
        let at = servers.iter().position(|server| {
            end += turns(server);
            point < end
        });
        at.unwrap_or(0) as u32
    };
    let buckets = BUCKETS as u64;
    let point = |bucket: u64| if total <= buckets { bucket % total } else { (2 * bucket + 1) * total / (2 * buckets) };
    (0..buckets).map(|bucket| owner(point(bucket))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{request, servers, spread};
    use super::*;

    fn buckets(weights: &[u32]) -> Vec<usize> {
        let table = deal(&servers(weights));
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
        assert_eq!(deal(&servers(&[2, 1]))[..6], [0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn a_client_stays_and_clients_spread() {
        let list = servers(&[1, 1, 2]);
        let scheduler = SourceHash::new(&list, 7);
        for client in 0..100 {
            assert_eq!(scheduler.pick(&list, &request(client)), scheduler.pick(&list, &request(client)));
        }
        let counts = spread(&scheduler, &list, 40_000);
        for (count, want) in counts.iter().zip([10_000_usize, 10_000, 20_000]) {
            assert!(count.abs_diff(want) < want / 20, "{counts:?}");
        }
    }

    #[test]
    fn clients_of_an_unavailable_server_spread_over_the_others_and_nobody_else_moves() {
        let list = servers(&[1; 4]);
        let scheduler = SourceHash::new(&list, 7);
        let without = servers(&[1, 1, 0, 1]);
        let mut moved = [0; 4];
        for client in 0..8000 {
            let (before, after) = (scheduler.pick(&list, &request(client)), scheduler.pick(&without, &request(client)));
            if before == Some(2) {
                moved[after.expect("three servers are left")] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert_eq!(moved[2], 0);
        assert!(moved.iter().enumerate().all(|(index, count)| index == 2 || *count > 400), "{moved:?}");
    }

    #[test]
    fn a_server_without_a_bucket_is_the_last_resort() {
        let weights: Vec<u32> = (0..300).map(|_| 1).collect();
        let scheduler = SourceHash::new(&servers(&weights), 7);
        let bare = (0..300).find(|index| !scheduler.buckets.contains(index)).expect("300 servers, 256 buckets");
        let only: Vec<u32> = (0..300).map(|index| u32::from(index == bare)).collect();
        assert_eq!(scheduler.pick(&servers(&only), &request(1)), Some(bare as usize));
    }
}
