//! `lblcr`, locality-based least connections with replication: as `lblc`, but a busy destination gets further servers.
//!
//! Of the servers of a destination the one with the least load for its weight is picked. When it has more active flows than
//! its weight while the least loaded of all has fewer than half of its own weight, or when none of them is available, the
//! least loaded of all is picked and becomes one of them. A set that has not changed for a day loses its most loaded server
//! (Linux, `net/netfilter/ipvs/ip_vs_lblcr.c`; there any server of less than half its weight lets the set grow).
//!
//! A set has 16 servers at most; a further one takes the place of the most loaded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::homes::{FORGOTTEN, Home, Homes};
use super::lblc::{is_busy, is_half_idle, state};
use super::ranking::Ranking;
use super::{Memory, Request, Scheduler, wlc};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct ReplicatedLocality {
    ranking: Ranking,
    homes: Mutex<Homes>,
}

impl ReplicatedLocality {
    pub(super) fn new(servers: &[Arc<Server>]) -> ReplicatedLocality {
        ReplicatedLocality { ranking: Ranking::new(servers, wlc::cost), homes: Mutex::new(Homes::new()) }
    }

    fn homes(&self) -> MutexGuard<'_, Homes> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler for ReplicatedLocality {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let mut homes = self.homes();
        let Some(home) = homes.find(request.now, request.vip) else {
            let least = self.ranking.cheapest(servers, request)?;
            homes.settle(request.now, request.vip, least);
            return Some(least);
        };
        let member = home
            .members()
            .filter(|&index| servers.get(index).is_some_and(|server| server.takes(request)))
            .min_by_key(|&index| wlc::cost(&servers[index]));
        if home.is_shared() && request.now - home.changed >= FORGOTTEN {
            drop_most_loaded(home, servers, request);
        }
        if let Some(member) = member.filter(|&index| !is_busy(&servers[index])) {
            return Some(member);
        }
        let least = self.ranking.cheapest(servers, request)?;
        if member.is_some() && !is_half_idle(&servers[least]) {
            return member;
        }
        if home.is_full() && !home.members().any(|index| index == least) {
            drop_most_loaded(home, servers, request);
        }
        home.add(request.now, least);
        Some(least)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(ReplicatedLocality { ranking: self.ranking.fork(), homes: Mutex::new(self.homes().clone()) })
    }

    fn state(&self) -> String {
        state(&self.homes())
    }

    fn memory(&self) -> Memory {
        Memory::Homes(self.homes().clone())
    }

    fn inherit(&mut self, memory: Memory) {
        if let Memory::Homes(homes) = memory {
            self.homes = Mutex::new(homes);
        }
    }
}

/// Servers that are unavailable go first: they hold nothing of use.
fn drop_most_loaded(home: &mut Home, servers: &[Arc<Server>], request: &Request) {
    let gone = |index: &usize| servers.get(*index).is_none_or(|server| !server.is_available());
    let most = home.members().find(gone).or_else(|| home.members().max_by_key(|&index| wlc::cost(&servers[index])));
    if let Some(most) = most {
        home.remove(request.now, most);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;
    use crate::time::Instant;

    #[test]
    fn a_busy_destination_gets_further_servers_and_loses_one_after_a_day() {
        let list = servers(&[2, 2, 2]);
        let scheduler = ReplicatedLocality::new(&list);
        let pick_at = |second| scheduler.pick(&list, &Request { now: Instant::from_secs(second), ..request(1) });
        assert_eq!(pick_at(0), Some(0));
        admit(&list[0], 3, 0);
        assert_eq!(pick_at(1), Some(1), "the first is busy");
        admit(&list[1], 2, 0);
        assert_eq!(pick_at(2), Some(1), "the less loaded of the two, and not busy");
        admit(&list[1], 1, 0);
        assert_eq!(pick_at(3), Some(2), "both are busy");
        list[1].load.end(true);
        list[1].load.end(true);
        list[1].load.end(true);
        list[0].load.end(true);
        list[0].load.end(true);
        assert_eq!(pick_at(4), Some(1), "all three serve it, and this one is idle");
        admit(&list[1], 1, 0);
        // A day after the set last changed its most loaded server is out: the first, which is the first of two equals.
        let day = 24 * 60 * 60;
        assert_eq!(pick_at(day / 2), Some(2));
        assert_eq!(pick_at(day + 3), Some(2));
        let set: Vec<_> = scheduler
            .homes()
            .find(Instant::from_secs(day + 3), request(1).vip)
            .map(|h| h.members().collect())
            .unwrap_or_default();
        assert_eq!(set.len(), 2);
        assert!(set.contains(&2));
    }

    #[test]
    fn the_set_is_bounded_and_still_every_idle_server_gets_its_flow() {
        let list = servers(&[1; 40]);
        let scheduler = ReplicatedLocality::new(&list);
        for round in 0..40 {
            let index = scheduler.pick(&list, &request(1)).expect("all are available");
            assert_eq!(index, round);
            admit(&list[index], 2, 0);
        }
        assert!(scheduler.homes().find(Instant::ZERO, request(1).vip).is_some_and(|home| home.is_full()));
    }

    #[test]
    fn unavailable_members_are_passed_over() {
        let list = servers(&[9, 9]);
        let scheduler = ReplicatedLocality::new(&list);
        assert_eq!(scheduler.pick(&list, &request(1)), Some(0));
        list[0].state.set_draining(true);
        assert_eq!(scheduler.pick(&list, &request(1)), Some(1));
        list[1].state.set_draining(true);
        assert_eq!(scheduler.pick(&list, &request(1)), None);
        list[0].state.set_draining(false);
        assert_eq!(scheduler.pick(&list, &request(1)), Some(0), "it is still one of them");
    }
}
