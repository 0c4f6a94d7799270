//! `wrr`, weighted round robin: in turn, and as often as the weight says.
//!
//! The interleaving of Linux (`net/netfilter/ipvs/ip_vs_wrr.c`): a threshold walks from the highest weight down to zero
//! in steps of the greatest common divisor of all weights; on each level every server whose weight reaches the threshold
//! is picked once. Weights 4, 3, 2 give AABABCABC, and not AAAABBBCC.
//!
//! Unlike there, levels above the weight of every available server are jumped over, so that a pick takes at most three
//! rounds over the servers whatever the weights are.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Memory, Request, Scheduler, gcd};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct WeightedRoundRobin {
    step: u32,
    top: u32,
    turn: Mutex<Turn>,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Index of the server looked at next; at the end of the list the level goes down.
    next: usize,
    /// Servers of this weight and more are picked.
    level: u32,
}

impl WeightedRoundRobin {
    pub(super) fn new(servers: &[Arc<Server>]) -> WeightedRoundRobin {
        let step = servers.iter().fold(0, |divisor, server| gcd(divisor, server.weight)).max(1);
        let top = servers.iter().map(|server| server.weight).max().unwrap_or(0);
        WeightedRoundRobin { step, top, turn: Mutex::new(Turn { next: 0, level: top }) }
    }

    fn turn(&self) -> Turn {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler for WeightedRoundRobin {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let reachable = || servers.iter().filter(|server| server.takes(request)).map(|server| server.weight).max();
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rounds = 0;
        // The rest of this round and two whole ones; more would mean that availability changes meanwhile.
        for _ in 0..3 * servers.len() {
            if turn.next >= servers.len() {
                let lower = turn.level.saturating_sub(self.step);
                let level = if lower == 0 { self.top } else { lower };
                // A whole round found nobody.
                let level = if rounds > 0 { level.min(reachable()?) } else { level };
                *turn = Turn { next: 0, level };
                rounds += 1;
            }
            let index = turn.next;
            turn.next += 1;
            if servers[index].takes(request) && servers[index].weight >= turn.level {
                return Some(index);
            }
        }
        None
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(WeightedRoundRobin { step: self.step, top: self.top, turn: Mutex::new(self.turn()) })
    }

    fn state(&self) -> String {
        let turn = self.turn();
        let last = match turn.next {
            0 => "no server picked yet".to_owned(),
            next => format!("server {next} of the list picked last"),
        };
        format!("{last}, picking weights from {} on", turn.level)
    }

    fn memory(&self) -> Memory {
        let turn = self.turn();
        Memory::Turn { next: turn.next, level: turn.level }
    }

    fn inherit(&mut self, memory: Memory) {
        if let Memory::Turn { next, level } = memory {
            // Levels are multiples of the step; from one that there is no more the next lower one is the next.
            let level = level / self.step * self.step;
            let level = if level == 0 { self.top } else { level.min(self.top) };
            self.turn = Mutex::new(Turn { next, level });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{request, servers, take};
    use super::*;

    fn sequence(weights: &[u32], picks: u32) -> Vec<usize> {
        let list = servers(weights);
        take(&WeightedRoundRobin::new(&list), &list, picks)
    }

    #[test]
    fn interleaves_as_ipvs_does() {
        assert_eq!(sequence(&[4, 3, 2], 9), [0, 0, 1, 0, 1, 2, 0, 1, 2]);
        assert_eq!(sequence(&[2, 1, 1], 8), [0, 0, 1, 2, 0, 0, 1, 2]);
        assert_eq!(sequence(&[1, 2, 1], 8), [1, 0, 1, 2, 1, 0, 1, 2]);
        assert_eq!(sequence(&[10, 10, 10], 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(sequence(&[200, 100], 6), [0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn weight_zero_is_never_picked() {
        assert_eq!(sequence(&[2, 0, 1], 6), [0, 0, 2, 0, 0, 2]);
        assert!(sequence(&[0, 0], 3).is_empty());
        assert!(sequence(&[], 3).is_empty());
    }

    #[test]
    fn a_heavy_server_that_goes_away_does_not_make_picks_long() {
        let before = servers(&[65535, 1, 1]);
        let scheduler = WeightedRoundRobin::new(&before);
        assert_eq!(scheduler.pick(&before, &request(1)), Some(0));
        // The rest of level 65535 finds nobody, and the next level that does is 1.
        let after = servers(&[0, 1, 1]);
        assert_eq!(take(&scheduler, &after, 4), [1, 2, 1, 2]);
        assert_eq!(scheduler.turn().level, 1);
    }

    #[test]
    fn a_fork_picks_what_the_original_would_and_leaves_it_alone() {
        let list = servers(&[4, 3, 2]);
        let scheduler = WeightedRoundRobin::new(&list);
        take(&scheduler, &list, 3);
        let ahead = take(&*scheduler.fork(), &list, 6);
        assert_eq!(scheduler.state(), "server 2 of the list picked last, picking weights from 3 on");
        assert_eq!(take(&scheduler, &list, 6), ahead);
    }
}
