//! `lc`, least connections: the server with the least load, whatever its weight.
//!
//! Load is [`crate::service::ServerLoad::overhead`]. The first of several equals wins, as in Linux
//! (`net/netfilter/ipvs/ip_vs_lc.c`): while no flow is alive at all, every pick is the first server.

use std::sync::Arc;

use super::ranking::{Cost, Ranking};
use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct LeastConnections {
    ranking: Ranking,
}

impl LeastConnections {
    pub(super) fn new(servers: &[Arc<Server>]) -> LeastConnections {
        LeastConnections { ranking: Ranking::new(servers, |server| Cost::quotient(server.load.overhead(), 1)) }
    }
}

impl Scheduler for LeastConnections {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.ranking.cheapest(servers, request)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(LeastConnections { ranking: self.ranking.fork() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn the_first_of_equals_wins() {
        let list = servers(&[1, 1, 1]);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(0));
        admit(&list[0], 1, 0);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(1));
        admit(&list[1], 1, 0);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(2));
    }

    #[test]
    fn an_active_flow_weighs_as_much_as_256_inactive_ones() {
        let list = servers(&[1, 1]);
        admit(&list[0], 1, 0);
        admit(&list[1], 0, 255);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(1));
        admit(&list[1], 0, 2);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(0));
    }

    #[test]
    fn weight_does_not_count_but_zero_excludes() {
        let list = servers(&[0, 1, 9]);
        admit(&list[1], 1, 0);
        admit(&list[2], 1, 1);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(1));
    }

    #[test]
    fn a_load_that_ends_counts_no_more() {
        let list = servers(&[1, 1]);
        admit(&list[0], 2, 0);
        admit(&list[1], 1, 0);
        list[0].load.end(true);
        list[0].load.shift(false);
        assert_eq!(LeastConnections::new(&list).pick(&list, &request(1)), Some(0), "one inactive against one active");
    }
}
