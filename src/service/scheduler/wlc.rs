//! `wlc`, weighted least connections: the server with the least load for its weight. The default.
//!
//! Load is [`crate::service::ServerLoad::overhead`]. Quotients are compared by cross multiplication and the first of
//! several equals wins, as in Linux (`net/netfilter/ipvs/ip_vs_wlc.c`): while no flow is alive at all, every pick is the
//! first server.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Request, Scheduler};
use crate::service::Server;

#[derive(Clone, Copy, Debug)]
pub(super) struct WeightedLeastConnections;

impl Scheduler for WeightedLeastConnections {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let available = servers.iter().enumerate().filter(|(_, server)| server.takes(request));
        // Each server's load is read once: it changes under our hands, and a comparison must not change its mind.
        let loads = available.map(|(index, server)| (index, server.load.overhead(), server.weight));
        loads.min_by(|(_, a, a_weight), (_, b, b_weight)| compare(*a, *a_weight, *b, *b_weight)).map(|(i, ..)| i)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(*self)
    }
}

/// `a / a_weight` against `b / b_weight`.
fn compare(a: u64, a_weight: u32, b: u64, b_weight: u32) -> Ordering {
    (u128::from(a) * u128::from(b_weight)).cmp(&(u128::from(b) * u128::from(a_weight)))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;

    #[test]
    fn the_first_of_equals_wins() {
        let list = servers(&[1, 3, 1]);
        assert_eq!(WeightedLeastConnections.pick(&list, &request(1)), Some(0), "all idle");
        admit(&list[0], 1, 0);
        admit(&list[1], 3, 0);
        admit(&list[2], 1, 0);
        assert_eq!(WeightedLeastConnections.pick(&list, &request(1)), Some(0), "1/1 = 3/3 = 1/1");
    }

    #[test]
    fn flows_that_stay_are_spread_by_weight() {
        let list = servers(&[1, 2, 0, 5]);
        for _ in 0..800 {
            let picked = WeightedLeastConnections.pick(&list, &request(1)).expect("a server is available");
            admit(&list[picked], 1, 0);
        }
        let active: Vec<u64> = list.iter().map(|server| server.load.active()).collect();
        assert_eq!(active, [100, 200, 0, 500]);
    }

    #[test]
    fn quotients_too_large_for_64_bits_are_compared_rightly() {
        assert_eq!(compare(u64::MAX, 65535, u64::MAX - 1, 65535), Ordering::Greater);
        assert_eq!(compare(u64::MAX, 65535, u64::MAX, 65534), Ordering::Less);
    }
}
