//! `sh`, source hashing: a client address always comes to the same server while the servers stay the same.
//!
//! A table of 256 buckets is dealt out to the servers by weight, round by round, as in Linux
//! (`net/netfilter/ipvs/ip_vs_sh.c`); the hash of the client's address names the bucket. Three things differ:
//!
//! * Weights are divided by their greatest common divisor first, and scaled to the table when their sum is larger than
//!   it. (Dealt out as they are, two weights of 300 would give the first server every bucket.)
//! * When the server of the bucket is not available, the address is hashed anew until one's is. IPVS refuses the flow
//!   unless `sh-fallback` is set; here that takes the flag `strict`.
//! * The hash is keyed with the seed of the configuration, so that clients
//!   cannot aim at one server where `seed` is set to something that they do not know.
//!
//! With the flag `port` (`sh-port`) the client's port is hashed as well.
//!
//! With more servers than buckets some are only ever reached as a fallback: `mh` suits such services, and it also moves
//! far fewer clients when a server comes or goes.

use std::sync::Arc;

use super::hash::{SeededHash, deal};
use super::{Flags, Request, Scheduler};
use crate::service::Server;

#[derive(Clone, Debug)]
pub(super) struct SourceHash {
    hash: SeededHash,
    /// Indexes of servers; empty when no server has a weight.
    buckets: Arc<[u32]>,
}

impl SourceHash {
    pub(super) fn new(servers: &[Arc<Server>], flags: Flags, seed: u64) -> SourceHash {
        SourceHash { hash: SeededHash::new(flags, seed), buckets: deal(servers, |server| server.weight) }
    }
}

impl Scheduler for SourceHash {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.hash.of_client(request, &self.buckets, servers)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }

    fn state(&self) -> String {
        self.hash.state("the client's address")
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{request, servers, spread};
    use super::*;

    #[test]
    fn a_client_stays_and_clients_spread() {
        let list = servers(&[1, 1, 2]);
        let scheduler = SourceHash::new(&list, Flags::default(), 7);
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
        let scheduler = SourceHash::new(&list, Flags::default(), 7);
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
        let scheduler = SourceHash::new(&servers(&weights), Flags::default(), 7);
        let bare = (0..300).find(|index| !scheduler.buckets.contains(index)).expect("300 servers, 256 buckets");
        let only: Vec<u32> = (0..300).map(|index| u32::from(index == bare)).collect();
        assert_eq!(scheduler.pick(&servers(&only), &request(1)), Some(bare as usize));
    }
}
