//! `rr`, round robin: every available server in turn, whatever its weight.
//!
//! As in Linux (`net/netfilter/ipvs/ip_vs_rr.c`) the turn goes on from the server picked last, so that the server behind
//! an unavailable one does not get that one's share on top of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Memory, Request, Scheduler};
use crate::service::Server;

#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// Index of the server whose turn is next, modulo their number.
    next: AtomicUsize,
}

impl Scheduler for RoundRobin {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            let picked = first_available(servers, next, request)?;
            match self.next.compare_exchange_weak(next, picked + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(picked),
                Err(moved) => next = moved,
            }
        }
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(RoundRobin { next: AtomicUsize::new(self.next.load(Ordering::Relaxed)) })
    }

    fn state(&self) -> String {
        match self.next.load(Ordering::Relaxed) {
            0 => "no server picked yet".to_owned(),
            next => format!("server {next} of the list picked last"),
        }
    }

    fn memory(&self) -> Memory {
        Memory::Turn { next: self.next.load(Ordering::Relaxed), level: 0 }
    }

    fn inherit(&mut self, memory: Memory) {
        if let Memory::Turn { next, .. } = memory {
            self.next = AtomicUsize::new(next);
        }
    }
}

/// The first available server at or behind `start`, going round once.
fn first_available(servers: &[Arc<Server>], start: usize, request: &Request) -> Option<usize> {
    let start = start.checked_rem(servers.len())?;
    (start..servers.len()).chain(0..start).find(|&index| servers[index].takes(request))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{request, servers, take};
    use super::*;

    #[test]
    fn goes_round_in_the_order_of_the_configuration() {
        let scheduler = RoundRobin::default();
        assert_eq!(take(&scheduler, &servers(&[1, 5, 1]), 7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn the_share_of_an_unavailable_server_goes_to_all_others() {
        let scheduler = RoundRobin::default();
        assert_eq!(take(&scheduler, &servers(&[1, 0, 1, 1]), 9), [0, 2, 3, 0, 2, 3, 0, 2, 3]);
    }

    #[test]
    fn a_fork_picks_what_the_original_would_and_leaves_it_alone() {
        let (scheduler, list) = (RoundRobin::default(), servers(&[1, 1, 1]));
        take(&scheduler, &list, 2);
        assert_eq!(scheduler.fork().pick(&list, &request(1)), Some(2));
        assert_eq!(scheduler.state(), "server 2 of the list picked last");
        assert_eq!(scheduler.pick(&list, &request(1)), Some(2));
    }

    #[test]
    fn shards_picking_at_once_still_share_evenly() {
        let (scheduler, list) = (RoundRobin::default(), servers(&[1, 1, 1, 1]));
        let mut counts = [0; 4];
        std::thread::scope(|scope| {
            let picker = || take(&scheduler, &list, 1000);
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(picker)).collect();
            for thread in threads {
                thread.join().expect("a picker does not panic").into_iter().for_each(|index| counts[index] += 1);
            }
        });
        assert_eq!(counts, [1000; 4]);
    }
}
