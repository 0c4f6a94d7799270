//! Servers and requests for the tests of schedulers.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::{Changes, Mark, Request, Scheduler};
use crate::service::{Server, ServerId, ServerLoad, ServerPath, ServerState, ServiceId};
use crate::time::Instant;
use crate::wire::Addr;

/// Idle servers with these weights, at addresses of their own that depend on their place alone.
pub(super) fn servers(weights: &[u32]) -> Vec<Arc<Server>> {
    let changes = Arc::new(Changes::default());
    let server = |(index, &weight): (usize, &u32)| {
        let mark = || Mark::new(&changes, index as u32);
        let address = Addr::from_v4([10, 20, (index >> 8) as u8, index as u8]);
        Arc::new(Server {
            id: ServerId(index as u32),
            service: ServiceId(0),
            name: format!("{address}:8080"),
            address,
            port: Some(8080),
            weight,
            load: Arc::new(ServerLoad::marked(mark())),
            method: crate::service::Method::Nat,
            encapsulation: Default::default(),
            source: None,
            thresholds: (None, None),
            slow_start: None,
            fair_part: 1 << 16,
            path: Arc::new(ServerPath::marked(mark())),
            state: Arc::new(ServerState::marked(mark())),
        })
    };
    weights.iter().enumerate().map(server).collect()
}

/// A request of one of 2^32 clients.
pub(super) fn request(client: u32) -> Request {
    Request {
        now: Instant::ZERO,
        client: Addr::from_v4(Ipv4Addr::from(client).octets()),
        client_port: 40_000,
        vip: Addr::from_v4([203, 0, 113, 10]),
        port: 80,
        is_urgent: false,
    }
}

/// The next `count` picks, fewer when there is none.
pub(super) fn take(scheduler: &dyn Scheduler, servers: &[Arc<Server>], count: u32) -> Vec<usize> {
    (0..count).map_while(|client| scheduler.pick(servers, &request(client))).collect()
}

/// How many of `clients` clients each server gets.
pub(super) fn spread(scheduler: &dyn Scheduler, servers: &[Arc<Server>], clients: u32) -> Vec<usize> {
    let mut counts = vec![0; servers.len()];
    take(scheduler, servers, clients).into_iter().for_each(|index| counts[index] += 1);
    counts
}

/// Gives `server` flows.
pub(super) fn admit(server: &Server, active: usize, inactive: usize) {
    (0..active).for_each(|_| server.load.start(true));
    (0..inactive).for_each(|_| server.load.start(false));
}
