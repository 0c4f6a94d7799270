//! `twos`, the power of two choices: of two servers drawn by lot, the one with the less load for its weight.
//!
//! After M. Mitzenmacher, "The power of two choices in randomized load balancing" (1996), and Linux
//! (`net/netfilter/ipvs/ip_vs_twos.c`): each of the two is drawn with a chance in proportion to its weight among those that
//! take the flow (it may be the same one twice), and the second wins only with less load. Gateways that do not know each
//! other's flows do not all rush to the server that looks least loaded, as they would with `wlc`.
//!
//! The lots come from the seed of the configuration and the number of lots drawn so far: equal seeds, equal lots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wlc::cost;
use super::{Memory, Request, Scheduler};
use crate::service::Server;

/// Lots drawn for one choice before those who take the flow are counted one by one.
const DRAWS: usize = 64;

#[derive(Debug)]
pub(super) struct TwoChoices {
    seed: u64,
    drawn: AtomicU64,
    /// For each server the sum of the weights up to and with it.
    ends: Arc<[u64]>,
    /// For each of as many equal stretches of the line from 0 to the last end as there are servers, the server at whose
    /// weight it begins: the one sought is there or few further on.
    starts: Arc<[u32]>,
}

impl TwoChoices {
    pub(super) fn new(servers: &[Arc<Server>], seed: u64) -> TwoChoices {
        let add = |end: &mut u64, server: &Arc<Server>| {
            *end += u64::from(server.weight);
            Some(*end)
        };
        let ends: Arc<[u64]> = servers.iter().scan(0, add).collect();
        let (total, count) = (ends.last().copied().unwrap_or(0), ends.len() as u64);
        let start = |stretch: u64| ends.partition_point(|&end| end * count <= stretch * total) as u32;
        let starts = (0..count).map(start).collect();
        TwoChoices { seed, drawn: AtomicU64::new(0), ends, starts }
    }

    /// The server in whose stretch of the line from 0 to `total` the point lies.
    fn at(&self, point: u64, total: u64) -> Option<usize> {
        let start = *self.starts.get((point * self.starts.len() as u64 / total) as usize)? as usize;
        let further = self.ends.get(start..)?.iter().position(|&end| point < end)?;
        Some(start + further)
    }

    /// A number below `bound`, which must not be 0.
    fn lot(&self, bound: u64) -> u64 {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let lot = mix(self.seed ^ mix(number));
        ((u128::from(lot) * u128::from(bound)) >> 64) as u64
    }

    /// One server of those that take the request, with a chance in proportion to its weight.
    fn draw(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let total = self.ends.last().copied().filter(|&total| total > 0)?;
        for _ in 0..DRAWS {
            let index = self.at(self.lot(total), total)?;
            if servers.get(index).is_some_and(|server| server.takes(request)) {
                return Some(index);
            }
        }
        // Most take nothing: a lot among those that do.
        let takers = || servers.iter().enumerate().filter(|(_, server)| server.takes(request));
        let total: u64 = takers().map(|(_, server)| u64::from(server.weight)).sum();
        let mut point = if total > 0 { self.lot(total) } else { 0 };
        let mut last = None;
        for (index, server) in takers() {
            last = Some(index);
            if point < u64::from(server.weight) {
                break;
            }
            point -= u64::from(server.weight);
        }
        last
    }
}

impl Scheduler for TwoChoices {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let first = self.draw(servers, request)?;
        let second = self.draw(servers, request).unwrap_or(first);
        let is_less = cost(&servers[second]) < cost(&servers[first]);
        Some(if is_less { second } else { first })
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        let drawn = AtomicU64::new(self.drawn.load(Ordering::Relaxed));
        Box::new(TwoChoices { seed: self.seed, drawn, ends: self.ends.clone(), starts: self.starts.clone() })
    }

    fn state(&self) -> String {
        format!("{} lots drawn", self.drawn.load(Ordering::Relaxed))
    }

    fn memory(&self) -> Memory {
        Memory::Lots(self.drawn.load(Ordering::Relaxed))
    }

    fn inherit(&mut self, memory: Memory) {
        if let Memory::Lots(drawn) = memory {
            self.drawn = AtomicU64::new(drawn);
        }
    }
}

/// Spreads the bits of a counter over a word (the finaliser of splitmix64: Steele, Lea and Flood, OOPSLA 2014).
fn mix(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers, spread, take};
    use super::*;

    #[test]
    fn idle_servers_are_drawn_by_weight() {
        let list = servers(&[1, 2, 0, 5]);
        let counts = spread(&TwoChoices::new(&list, 3), &list, 80_000);
        for (count, want) in counts.iter().zip([10_000_usize, 20_000, 0, 50_000]) {
            assert!(count.abs_diff(want) <= want / 25, "{counts:?}");
        }
    }

    #[test]
    fn the_less_loaded_of_two_wins() {
        let list = servers(&[1, 1]);
        admit(&list[0], 10, 0);
        let counts = spread(&TwoChoices::new(&list, 3), &list, 40_000);
        // The loaded one wins only when it is drawn twice.
        assert!(counts[0].abs_diff(10_000) < 500, "{counts:?}");
    }

    #[test]
    fn flows_that_stay_are_spread_far_better_than_by_one_lot() {
        let list = servers(&[1; 100]);
        let scheduler = TwoChoices::new(&list, 3);
        for client in 0..10_000 {
            admit(&list[scheduler.pick(&list, &request(client)).expect("all are available")], 1, 0);
        }
        let most = list.iter().map(|server| server.load.active()).max();
        // By one lot the fullest of 100 has some 126 (100 + 2.6 sigma); by two the excess is log log n.
        assert!(most.is_some_and(|most| most <= 105), "{most:?}");
    }

    #[test]
    fn a_single_taker_among_many_is_found_and_shares_hold_among_few() {
        let weights: Vec<u32> = (0..500).map(|index| 1 + 2 * u32::from(index == 400)).collect();
        let list = servers(&weights);
        let scheduler = TwoChoices::new(&list, 3);
        for (_, server) in list.iter().enumerate().filter(|(index, _)| ![123, 400].contains(index)) {
            server.state.set_draining(true);
        }
        let counts = spread(&scheduler, &list, 8_000);
        assert!(
            counts[123].abs_diff(2_000) < 200 && counts[123] + counts[400] == 8_000,
            "{} {}",
            counts[123],
            counts[400]
        );
    }

    #[test]
    fn equal_seeds_draw_equal_lots() {
        let list = servers(&[1; 20]);
        let draws = |seed| take(&TwoChoices::new(&list, seed), &list, 50);
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
