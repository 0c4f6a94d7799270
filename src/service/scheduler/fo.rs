//! `fo`, weighted failover: the available server with the highest weight gets everything.
//!
//! The others stand by, in the order of their weights; the first of several equals wins. As in Linux
//! (`net/netfilter/ipvs/ip_vs_fo.c`) a server at its upper threshold counts as unavailable.

use std::sync::Arc;

use super::ranking::{Cost, Ranking};
use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct Failover {
    ranking: Ranking,
}

impl Failover {
    pub(super) fn new(servers: &[Arc<Server>]) -> Failover {
        Failover { ranking: Ranking::new(servers, cost) }
    }
}

/// The heavier the cheaper.
fn cost(server: &Server) -> Cost {
    Cost::by_weight(server.weight)
}

impl Scheduler for Failover {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.ranking.cheapest(servers, request)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(Failover { ranking: self.ranking.fork() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn the_heaviest_available_server_gets_everything() {
        let list = servers(&[1, 5, 9, 9, 0]);
        let scheduler = Failover::new(&list);
        admit(&list[2], 1000, 1000);
        assert_eq!(scheduler.pick(&list, &request(1)), Some(2));
        list[2].state.set_draining(true);
        assert_eq!(scheduler.pick(&list, &request(2)), Some(3));
        list[3].state.set_up(crate::time::Instant::ZERO, false);
        assert_eq!(scheduler.pick(&list, &request(3)), Some(1));
        list[2].state.set_draining(false);
        assert_eq!(scheduler.pick(&list, &request(4)), Some(2));
    }
}
