//! `sed`, shortest expected delay: the server at which the new flow has to wait least.
//!
//! The delay is (active flows + 1) / weight, with the new flow counted in, as in Linux (`net/netfilter/ipvs/ip_vs_sed.c`);
//! inactive flows do not count. So the fastest of several idle servers is picked first, where `wlc` picks the first of
//! them. The first of several equals wins.

use std::sync::Arc;

use super::ranking::{Cost, Ranking};
use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct ShortestExpectedDelay {
    ranking: Ranking,
}

impl ShortestExpectedDelay {
    pub(super) fn new(servers: &[Arc<Server>]) -> ShortestExpectedDelay {
        ShortestExpectedDelay { ranking: Ranking::new(servers, cost) }
    }
}

/// The delay to be expected.
pub(super) fn cost(server: &Server) -> Cost {
    Cost::quotient(server.load.active() + 1, server.weight)
}

impl Scheduler for ShortestExpectedDelay {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.ranking.cheapest(servers, request)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(ShortestExpectedDelay { ranking: self.ranking.fork() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn the_fastest_of_idle_servers_is_first_and_the_others_join_in_when_it_is_busy() {
        let list = servers(&[1, 3, 0]);
        let scheduler = ShortestExpectedDelay::new(&list);
        let mut picked = Vec::new();
        for _ in 0..4 {
            let index = scheduler.pick(&list, &request(1)).expect("two are available");
            admit(&list[index], 1, 0);
            picked.push(index);
        }
        // 1/3 < 1/1; 2/3 < 1; 3/3 = 1, and the first of equals wins; 3/3 < 2/1.
        assert_eq!(picked, [1, 1, 0, 1]);
    }

    #[test]
    fn inactive_flows_do_not_count() {
        let list = servers(&[1, 1]);
        admit(&list[0], 0, 500);
        assert_eq!(ShortestExpectedDelay::new(&list).pick(&list, &request(1)), Some(0));
    }
}
