//! `dh`, destination hashing: a destination address always comes to the same server while the servers stay the same.
//!
//! Meant for caches, where a destination should be fetched by one of them only. The destination of all packets of a service
//! is its VIP, so all clients of one service come to one server; several services with equal servers (and one `seed`) are
//! spread over them by their VIPs.
//!
//! A table of 256 buckets is dealt out to the servers in turn, whatever their weights, as in Linux
//! (`net/netfilter/ipvs/ip_vs_dh.c`); the hash of the destination names the bucket. Unlike there, where the flow is refused
//! while the bucket's server is not available, another server is then found as by `sh`. The hash is keyed with the seed of
//! the configuration.

use std::sync::Arc;

use super::hash::{SeededHash, deal};
use super::{Flags, Request, Scheduler};
use crate::service::Server;

#[derive(Clone, Debug)]
pub(super) struct DestinationHash {
    hash: SeededHash,
    /// Indexes of servers; empty when no server has a weight.
    buckets: Arc<[u32]>,
}

impl DestinationHash {
    pub(super) fn new(servers: &[Arc<Server>], seed: u64) -> DestinationHash {
        DestinationHash {
            hash: SeededHash::new(Flags::default(), seed),
            buckets: deal(servers, |server| server.weight.min(1)),
        }
    }
}

impl Scheduler for DestinationHash {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        self.hash.of_vip(request, &self.buckets, servers)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }

    fn state(&self) -> String {
        self.hash.state("the VIP")
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{request, servers};
    use super::*;
    use crate::wire::Addr;

    fn to(vip: u16) -> Request {
        let [high, low] = vip.to_be_bytes();
        Request { vip: Addr::from_v4([203, 0, high, low]), ..request(1) }
    }

    #[test]
    fn all_clients_of_a_destination_come_to_one_server() {
        let list = servers(&[1, 1, 1]);
        let scheduler = DestinationHash::new(&list, 7);
        let first = scheduler.pick(&list, &request(0));
        assert!((1..500).all(|client| scheduler.pick(&list, &request(client)) == first));
    }

    #[test]
    fn destinations_spread_over_the_servers_whatever_the_weights() {
        let list = servers(&[1, 0, 9, 100]);
        let scheduler = DestinationHash::new(&list, 7);
        let mut counts = [0_usize; 4];
        (0..9000).for_each(|vip| counts[scheduler.pick(&list, &to(vip)).expect("three are available")] += 1);
        assert_eq!(counts[1], 0);
        assert!([0, 2, 3].iter().all(|&index| counts[index].abs_diff(3000) < 300), "{counts:?}");
    }

    #[test]
    fn only_the_destinations_of_an_unavailable_server_move() {
        let list = servers(&[1; 4]);
        let scheduler = DestinationHash::new(&list, 7);
        let before: Vec<_> = (0..2000).map(|vip| scheduler.pick(&list, &to(vip))).collect();
        list[2].state.set_draining(true);
        for (vip, before) in before.into_iter().enumerate() {
            let after = scheduler.pick(&list, &to(vip as u16));
            assert!(after == before || before == Some(2) && after.is_some_and(|index| index != 2));
        }
    }
}
