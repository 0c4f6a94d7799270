//! `nq`, never queue: an idle server if there is one, else as `sed`.
//!
//! Idle is who has no active flow, and the first such server wins whatever its weight, as in Linux
//! (`net/netfilter/ipvs/ip_vs_nq.c`): a flow is rather served at once by a slow server than made to wait for a fast one.

use std::sync::Arc;

use super::ranking::{Cost, Ranking};
use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct NeverQueue {
    ranking: Ranking,
}

impl NeverQueue {
    pub(super) fn new(servers: &[Arc<Server>]) -> NeverQueue {
        NeverQueue { ranking: Ranking::new(servers, cost) }
    }
}

/// The delay to be expected, which at an idle server is none.
fn cost(server: &Server) -> Cost {
    if server.load.active() == 0 { Cost::quotient(0, 1) } else { super::sed::cost(server) }
}

impl Scheduler for NeverQueue {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.ranking.cheapest(servers, request)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(NeverQueue { ranking: self.ranking.fork() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn an_idle_server_is_never_passed_over() {
        let list = servers(&[100, 0, 1, 50]);
        let scheduler = NeverQueue::new(&list);
        let mut picked = Vec::new();
        for _ in 0..5 {
            let index = scheduler.pick(&list, &request(1)).expect("three are available");
            admit(&list[index], 1, 7);
            picked.push(index);
        }
        // Once each, then by sed: 2/100 < 2/50 < 2/1; 3/100 < 2/50.
        assert_eq!(picked, [0, 2, 3, 0, 0]);
    }
}
