//! `wlc`, weighted least connections: the server with the least load for its weight. The default.
//!
//! Load is [`crate::service::ServerLoad::overhead`]. The first of several equals wins, as in Linux
//! (`net/netfilter/ipvs/ip_vs_wlc.c`): while no flow is alive at all, every pick is the first server.

use std::sync::Arc;

use super::ranking::{Cost, Ranking};
use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct WeightedLeastConnections {
    ranking: Ranking,
}

impl WeightedLeastConnections {
    pub(super) fn new(servers: &[Arc<Server>]) -> WeightedLeastConnections {
        WeightedLeastConnections { ranking: Ranking::new(servers, cost) }
    }
}

/// What a flow more costs: the load there is for each unit of weight.
pub(super) fn cost(server: &Server) -> Cost {
    Cost::quotient(server.load.overhead(), server.weight)
}

impl Scheduler for WeightedLeastConnections {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.ranking.cheapest(servers, request)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(WeightedLeastConnections { ranking: self.ranking.fork() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn the_first_of_equals_wins() {
        let list = servers(&[1, 3, 1]);
        assert_eq!(WeightedLeastConnections::new(&list).pick(&list, &request(1)), Some(0), "all idle");
        admit(&list[0], 1, 0);
        admit(&list[1], 3, 0);
        admit(&list[2], 1, 0);
        assert_eq!(WeightedLeastConnections::new(&list).pick(&list, &request(1)), Some(0), "1/1 = 3/3 = 1/1");
    }

    #[test]
    fn flows_that_stay_are_spread_by_weight() {
        let list = servers(&[1, 2, 0, 5]);
        for _ in 0..800 {
            let picked = WeightedLeastConnections::new(&list).pick(&list, &request(1)).expect("a server is available");
            admit(&list[picked], 1, 0);
        }
        let active: Vec<u64> = list.iter().map(|server| server.load.active()).collect();
        assert_eq!(active, [100, 200, 0, 500]);
    }
}
