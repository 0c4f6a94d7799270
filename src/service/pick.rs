//! Which server a new flow comes to.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::{Request, Server, Service};

impl Service {
    /// The server for a new flow: the scheduler's choice among those that take it; the sorry server when there is none, or no
    /// quorum. `None`: nobody serves.
    pub fn pick(&self, request: &Request) -> Option<&Arc<Server>> {
        let sorry = self.sorry.as_ref().filter(|server| server.is_available());
        if !self.state.has_quorum() && sorry.is_some() {
            return sorry;
        }
        self.schedule(request).or(sorry)
    }

    fn schedule(&self, request: &Request) -> Option<&Arc<Server>> {
        let pick = |request: &Request| self.scheduler.pick(&self.servers, request);
        let picked = pick(request).or_else(|| {
            // Those that are warming up are better than nobody.
            let warming = self.servers.iter().any(|server| server.slow_start.is_some() && server.is_available());
            if warming { pick(&Request { is_urgent: true, ..*request }) } else { None }
        });
        self.servers.get(picked?)
    }
}

impl Server {
    /// Whether it serves the client of `request` already, while it warms up over `time`.
    pub(super) fn serves(&self, request: &Request, time: Duration) -> bool {
        let share = self.state.share(request.now, time);
        if share >= 1 << 16 {
            return true;
        }
        let mut hasher = SipHasher13::new_with_keys(u64::from(self.id.0), 0);
        hasher.write(request.client.octets());
        hasher.write_u16(request.client_port);
        hasher.finish() & 0xffff < share
    }
}
