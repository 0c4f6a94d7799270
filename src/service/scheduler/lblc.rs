//! `lblc`, locality-based least connections: a destination stays with one server while that one is not overloaded.
//!
//! Meant for caches. The first flow to a destination goes to the server with the least load for its weight, and later
//! ones go there too. When that server is unavailable, or has more active flows than its weight while the least loaded one
//! has fewer than half of its own weight, the destination moves to the least loaded one (Linux,
//! `net/netfilter/ipvs/ip_vs_lblc.c`; there any server of less than half its weight moves it). The destination of all
//! packets of a service is its VIP, so here a service stays with one server until that one is overloaded.
//!
//! What is remembered, and for how long, stands in `homes.rs`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::homes::Homes;
use super::ranking::Ranking;
use super::{Memory, Request, Scheduler, wlc};
use crate::service::Server;

#[derive(Debug)]
pub(super) struct LocalityLeastConnections {
    ranking: Ranking,
    homes: Mutex<Homes>,
}

impl LocalityLeastConnections {
    pub(super) fn new(servers: &[Arc<Server>]) -> LocalityLeastConnections {
        LocalityLeastConnections { ranking: Ranking::new(servers, wlc::cost), homes: Mutex::new(Homes::new()) }
    }

    fn homes(&self) -> MutexGuard<'_, Homes> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler for LocalityLeastConnections {
    fn pick(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let mut homes = self.homes();
        let home = homes.find(request.now, request.vip).and_then(|home| home.members().next());
        let home = home.filter(|&index| servers.get(index).is_some_and(|server| server.takes(request)));
        if let Some(home) = home.filter(|&index| !is_busy(&servers[index])) {
            return Some(home);
        }
        let least = self.ranking.cheapest(servers, request)?;
        if home.is_some() && !is_half_idle(&servers[least]) {
            return home;
        }
        homes.settle(request.now, request.vip, least);
        Some(least)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(LocalityLeastConnections { ranking: self.ranking.fork(), homes: Mutex::new(self.homes().clone()) })
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

/// Whether a server has enough to do for its destinations to be served elsewhere.
pub(super) fn is_busy(server: &Server) -> bool {
    server.load.active() > u64::from(server.weight)
}

/// Whether a server has so little to do that it may relieve a busy one.
pub(super) fn is_half_idle(server: &Server) -> bool {
    server.load.active() * 2 < u64::from(server.weight)
}

pub(super) fn state(homes: &Homes) -> String {
    match homes.len() {
        1 => "1 destination has a server of its own".to_owned(),
        count => format!("{count} destinations have servers of their own"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{admit, request, servers};
    use super::*;
    use crate::wire::Addr;

    fn to(vip: u8) -> Request {
        Request { vip: Addr::from_v4([203, 0, 113, vip]), ..request(1) }
    }

    #[test]
    fn a_destination_stays_until_its_server_is_busy_and_another_half_idle() {
        let list = servers(&[4, 4, 4]);
        let scheduler = LocalityLeastConnections::new(&list);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(0));
        admit(&list[0], 4, 0);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(0), "as many flows as its weight is not too many");
        admit(&list[0], 1, 0);
        admit(&list[1], 2, 0);
        admit(&list[2], 2, 0);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(0), "nobody is half idle");
        list[2].load.end(true);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(2));
        admit(&list[2], 2, 0);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(2), "it has moved");
        assert_eq!(scheduler.pick(&list, &to(2)), Some(1), "another destination begins with the least loaded");
        assert_eq!(scheduler.state(), "2 destinations have servers of their own");
    }

    #[test]
    fn a_destination_moves_from_an_unavailable_server_and_stays_where_it_went() {
        let list = servers(&[1, 1]);
        let scheduler = LocalityLeastConnections::new(&list);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(0));
        list[0].state.set_draining(true);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(1));
        list[0].state.set_draining(false);
        assert_eq!(scheduler.pick(&list, &to(1)), Some(1));
    }
}
