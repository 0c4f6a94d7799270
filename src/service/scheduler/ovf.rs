//! `ovf`, overflow: the server with the highest weight, until it has more active flows than its weight; then the next one.
//!
//! As in Linux (`net/netfilter/ipvs/ip_vs_ovf.c`) a server overflows when its active flows are *more* than its weight, the
//! first of several equal weights wins, and flows that are never active (UDP of one question and one answer, half-open TCP)
//! do not count: for a hard limit there is `max_connections`.
//!
//! Unlike there, when every server overflows the flow is not refused: the one with the fewest active flows for its weight
//! takes it.

use std::sync::Arc;

use super::ranking::{Cost, Ranking};
use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct Overflow {
    ranking: Ranking,
}

impl Overflow {
    pub(super) fn new(servers: &[Arc<Server>]) -> Overflow {
        Overflow { ranking: Ranking::new(servers, cost) }
    }
}

/// The heavier the cheaper, while it does not overflow.
fn cost(server: &Server) -> Cost {
    let active = server.load.active();
    if active > u64::from(server.weight) {
        Cost::quotient(active, server.weight).of_class(1)
    } else {
        Cost::by_weight(server.weight)
    }
}

impl Scheduler for Overflow {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.ranking.cheapest(servers, request)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(Overflow { ranking: self.ranking.fork() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn fills_one_server_after_the_other_and_then_all() {
        let list = servers(&[2, 3, 0, 2]);
        let scheduler = Overflow::new(&list);
        let mut picked = Vec::new();
        for _ in 0..12 {
            let index = scheduler.pick(&list, &request(1)).expect("three are available");
            admit(&list[index], 1, 0);
            picked.push(index);
        }
        // Up to weight + 1 each, the heaviest first; then 4/3 < 3/2, and 3/2 = 3/2 < 5/3.
        assert_eq!(picked, [1, 1, 1, 1, 0, 0, 0, 3, 3, 3, 1, 0]);
    }

    #[test]
    fn only_active_flows_count() {
        let list = servers(&[2, 1]);
        admit(&list[0], 2, 100);
        assert_eq!(Overflow::new(&list).pick(&list, &request(1)), Some(0));
    }
}
