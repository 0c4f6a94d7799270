//! `mh`, Maglev hashing: as `sh`, but few clients move when a server comes or goes, and gateways agree.
//!
//! The table of the Maglev paper (Eisenbud et al., NSDI 2016, section 3.4): every server has its own permutation of all
//! entries, from the hash of its address and port, and in turn takes the first entry of it that is still free. A server
//! of a smaller weight misses turns. The hash of the client's address names the entry.
//!
//! The table depends on the set of servers, their weights and the seed alone, not on their order in the configuration:
//! gateways with an equal seed send a client to the same server. Shares are within 1 % of the weights as long as there
//! are at most some 650 servers (entries come whole). When the server of an entry is not available the client's address
//! is hashed anew, so that its clients spread over all others; IPVS refuses the flow unless `mh-fallback` is set, which here
//! takes the flag `strict`. With the flag `port` (`mh-port`) the client's port is hashed as well.

use std::sync::Arc;

use super::hash::SeededHash;
use super::{Flags, Request, Scheduler};
use crate::service::Server;

/// A prime, so that every step from 1 to `ENTRIES` - 1 visits all entries.
const ENTRIES: usize = 65537;

#[derive(Clone, Debug)]
pub(super) struct Maglev {
    hash: SeededHash,
    /// Indexes of servers; empty when no server has a weight. Shared by all forks.
    entries: Arc<[u32]>,
}

impl Maglev {
    pub(super) fn new(servers: &[Arc<Server>], flags: Flags, seed: u64) -> Maglev {
        let hash = SeededHash::new(flags, seed);
        Maglev { hash, entries: populate(servers, hash) }
    }
}

impl Scheduler for Maglev {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.hash.of_client(request, &self.entries, servers)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }

    fn state(&self) -> String {
        self.hash.state("the client's address")
    }
}

/// A server while the table is filled.
struct Candidate {
    index: u32,
    weight: u64,
    /// Grows by the weight each round; a turn costs the greatest weight.
    credit: u64,
    /// The next entry of the permutation.
    next: usize,
    step: usize,
}

fn populate(servers: &[Arc<Server>], hash: SeededHash) -> Arc<[u32]> {
    let mut candidates = candidates(servers, hash);
    let Some(turn) = candidates.iter().map(|candidate| candidate.weight).max() else {
        return Arc::new([]);
    };
    let mut entries: Vec<Option<u32>> = vec![None; ENTRIES];
    let mut free = ENTRIES;
    while free > 0 {
        for candidate in &mut candidates {
            candidate.credit += candidate.weight;
            if candidate.credit < turn {
                continue;
            }
            candidate.credit -= turn;
            while entries[candidate.next].is_some() {
                candidate.next = (candidate.next + candidate.step) % ENTRIES;
            }
            entries[candidate.next] = Some(candidate.index);
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    entries.into_iter().flatten().collect()
}

/// The servers that have a weight, in an order of their own that does not depend on the configuration's.
fn candidates(servers: &[Arc<Server>], hash: SeededHash) -> Vec<Candidate> {
    // Salts out of the way of those of clients.
    let salt = |which: u64, server: &Server| (which << 32) | 1 << 31 | server.port.map_or(0, u64::from);
    let candidate = |(index, server): (usize, &Arc<Server>)| Candidate {
        index: index as u32,
        weight: u64::from(server.weight),
        credit: 0,
        next: (hash.of(server.address, salt(1, server)) % ENTRIES as u64) as usize,
        step: (hash.of(server.address, salt(2, server)) % (ENTRIES as u64 - 1)) as usize + 1,
    };
    let weighted = servers.iter().enumerate().filter(|(_, server)| server.weight > 0);
    let mut candidates: Vec<Candidate> = weighted.map(candidate).collect();
    candidates.sort_by_key(|candidate| {
        let server = &servers[candidate.index as usize];
        (candidate.next, candidate.step, server.address, server.port)
    });
    candidates
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{request, servers, spread};
    use super::*;

    fn entries_of(scheduler: &Maglev, servers: usize) -> Vec<usize> {
        let mut counts = vec![0; servers];
        scheduler.entries.iter().for_each(|&index| counts[index as usize] += 1);
        counts
    }

    #[test]
    fn shares_are_within_one_percent_of_the_weights() {
        for weights in [&[1, 1, 1][..], &[1, 2, 3, 94], &[5, 0, 5], &[65535, 65535, 1000], &[7; 600]] {
            let list = servers(weights);
            let counts = entries_of(&Maglev::new(&list, Flags::default(), 1), weights.len());
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let want = ENTRIES as f64 * f64::from(*weight) / f64::from(total);
                assert!((*count as f64 - want).abs() <= (want * 0.01).max(1.0), "{weight} of {weights:?}: {count}");
            }
        }
    }

    #[test]
    fn clients_come_in_the_shares_of_the_weights() {
        let list = servers(&[1, 2, 0, 1]);
        let counts = spread(&Maglev::new(&list, Flags::default(), 9), &list, 100_000);
        for (count, want) in counts.iter().zip([25_000_usize, 50_000, 0, 25_000]) {
            assert!(count.abs_diff(want) <= want / 25, "{counts:?}");
        }
    }

    #[test]
    fn few_others_move_when_a_server_leaves() {
        for (count, seed) in [(3_u32, 0), (10, 1), (50, 2)] {
            let all = vec![1; count as usize];
            let mut fewer = all.clone();
            fewer[1] = 0;
            let before = Maglev::new(&servers(&all), Flags::default(), seed);
            let after = Maglev::new(&servers(&fewer), Flags::default(), seed);
            let moved = before.entries.iter().zip(after.entries.iter()).filter(|(a, b)| **a != 1 && a != b).count();
            // The paper's figure 12: beyond the 1/n that must move, a small part of the rest does.
            assert!(moved * 100 < ENTRIES * 4, "{count} servers: {moved} entries of others moved");
        }
    }

    #[test]
    fn gateways_with_one_seed_agree_whatever_the_order_of_servers() {
        let list = servers(&[3, 1, 2]);
        let turned: Vec<_> = [2, 0, 1].map(|index: usize| list[index].clone()).to_vec();
        let (ours, theirs) = (Maglev::new(&list, Flags::default(), 5), Maglev::new(&turned, Flags::default(), 5));
        for client in 0..2000 {
            let ours = ours.pick(&list, &request(client)).map(|index| &list[index].name);
            assert_eq!(ours, theirs.pick(&turned, &request(client)).map(|index| &turned[index].name));
        }
        let other = Maglev::new(&list, Flags::default(), 6);
        let differing = ours.entries.iter().zip(other.entries.iter()).filter(|(a, b)| a != b).count();
        assert!(differing > ENTRIES / 2, "another seed, another table: {differing}");
    }

    #[test]
    fn clients_of_an_unavailable_server_spread_over_the_others_and_nobody_else_moves() {
        let list = servers(&[1; 5]);
        let scheduler = Maglev::new(&list, Flags::default(), 7);
        let without = servers(&[1, 1, 0, 1, 1]);
        let mut moved = [0; 5];
        for client in 0..10_000 {
            let (before, after) = (scheduler.pick(&list, &request(client)), scheduler.pick(&without, &request(client)));
            if before == Some(2) {
                moved[after.expect("four servers are left")] += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert_eq!(moved[2], 0);
        assert!(moved.iter().enumerate().all(|(index, count)| index == 2 || *count > 350), "{moved:?}");
    }

    #[test]
    fn the_last_available_server_is_found() {
        let scheduler = Maglev::new(&servers(&[1; 500]), Flags::default(), 7);
        let mut only = vec![0; 500];
        only[123] = 1;
        let only = servers(&only);
        for client in 0..200 {
            assert_eq!(scheduler.pick(&only, &request(client)), Some(123));
        }
    }

    #[test]
    fn forks_share_the_table() {
        let scheduler = Maglev::new(&servers(&[1, 1]), Flags::default(), 7);
        let fork = scheduler.fork();
        assert_eq!(Arc::strong_count(&scheduler.entries), 2);
        drop(fork);
    }
}
