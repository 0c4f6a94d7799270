//! Which server a new flow comes to.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::persistence::{Known, Place};
use super::{Request, Scheduler, Server, Service};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::Addr;

/// Who serves a new flow, and why it.
#[derive(Clone, Copy, Debug)]
pub struct Picked<'a> {
    pub server: &'a Arc<Server>,
    pub way: Way,
}

/// How a server came to be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The scheduler chose it.
    Scheduled,
    /// The client has been there before.
    Remembered,
    /// It is being drained, but the client's session is there.
    Bound,
    /// The sorry server: too few others are up.
    NoQuorum,
    /// The sorry server: no other takes the flow.
    NobodyElse,
}

impl Way {
    /// In a few words for `gatun explain`.
    pub const fn words(self) -> &'static str {
        match self {
            Way::Scheduled => "the scheduler",
            Way::Remembered => "persistence: the client has been there before",
            Way::Bound => "persistence: the client's session is there, though the server is being drained",
            Way::NoQuorum => "the sorry server, since there is no quorum",
            Way::NobodyElse => "the sorry server, since no other takes the flow",
        }
    }

    /// Whether the client is to come to the same server again, where the service has persistence. A session on a server
    /// that is being drained lasts as long as the flows that began before: what comes later must not make it last.
    pub const fn is_kept(self) -> bool {
        matches!(self, Way::Scheduled | Way::Remembered)
    }
}

impl Service {
    /// The server for a new flow. Without quorum it is the sorry server; then the one that persistence remembers, if it still
    /// takes flows; then the scheduler's choice among those that take this one; and the sorry server when there is none.
    /// With persistence the choice is remembered, and when it is `counted` the flow is to be let go again
    /// ([`Service::release`]) when it ends, if its way [`is_kept`](Way::is_kept).
    ///
    /// # Errors
    /// Nobody serves, and why.
    pub fn pick(&self, request: &Request, counted: bool) -> Result<Picked<'_>, DropReason> {
        let picked = match (&self.persisted, &self.spec.persistence) {
            (Some(persisted), Some(settings)) => {
                persisted.claim(request.now, request.client, (settings.timeout, counted), |known| {
                    let picked = self.decide(request, known, &*self.scheduler);
                    (picked, picked.filter(|picked| picked.way.is_kept()).map(|picked| place(picked, known)))
                })
            }
            _ => self.decide(request, None, &*self.scheduler),
        };
        picked.ok_or_else(|| self.why_nobody())
    }

    /// As [`Service::pick`], but nothing moves.
    ///
    /// # Errors
    /// The same.
    pub fn foresee(&self, request: &Request) -> Result<Picked<'_>, DropReason> {
        let known = self.persisted.as_ref().and_then(|persisted| persisted.find(request.now, request.client));
        self.decide(request, known, &*self.scheduler.fork()).ok_or_else(|| self.why_nobody())
    }

    /// A flow of `client` to `server` that was picked as `counted` at `created` and is kept has ended, or was never admitted.
    pub fn release(&self, client: Addr, server: &Server, created: Instant) {
        if let Some(persisted) = &self.persisted {
            persisted.release(client, server.address, created);
        }
    }

    fn decide(&self, request: &Request, known: Option<Known>, scheduler: &dyn Scheduler) -> Option<Picked<'_>> {
        let sorry =
            |way| self.sorry.as_ref().filter(|server| server.is_available()).map(|server| Picked { server, way });
        let home = known.and_then(|known| Some((known, self.server_at(known.server)?)));
        // A drain may itself cost the quorum.
        if let Some((known, server)) = home
            && self.binds(known, server)
        {
            return Some(Picked { server, way: Way::Bound });
        }
        if !self.state.has_quorum()
            && let Some(picked) = sorry(Way::NoQuorum)
        {
            return Some(picked);
        }
        // Who is at home with a server stays there while it warms up.
        if let Some((_, server)) = home.filter(|(_, server)| server.is_available()) {
            return Some(Picked { server, way: Way::Remembered });
        }
        let scheduled = self.schedule(request, scheduler).map(|server| Picked { server, way: Way::Scheduled });
        scheduled.or_else(|| sorry(Way::NobodyElse))
    }

    fn schedule(&self, request: &Request, scheduler: &dyn Scheduler) -> Option<&Arc<Server>> {
        let pick = |request: &Request| scheduler.pick(&self.servers, request);
        let picked = pick(request).or_else(|| {
            // Those that are warming up are better than nobody.
            let warming = self.servers.iter().any(|server| server.slow_start.is_some() && server.is_available());
            if warming { pick(&Request { is_urgent: true, ..*request }) } else { None }
        });
        self.servers.get(picked?)
    }

    /// Whether a client's further flow belongs to what it has begun with a server that is being drained: of a service of
    /// several ports, where the flows of one session need each other (FTP's data connections).
    fn binds(&self, known: Known, server: &Server) -> bool {
        known.has_flows && !self.spec.ports.is_single() && server.is_leaving()
    }

    /// The server at this very address and port, or else, as another service of the group knows it, at this address.
    fn server_at(&self, (address, port): Place) -> Option<&Arc<Server>> {
        let at_address = self.homes.get(&address)?;
        at_address.iter().find(|server| server.port == port).or_else(|| at_address.first())
    }

    /// Why nobody serves, if nobody does.
    pub(crate) fn why_nobody(&self) -> DropReason {
        let only_full = self.servers.iter().any(|server| server.is_only_full());
        let any = self.servers.iter().any(|server| server.is_available());
        if only_full && !any { DropReason::ServersFull } else { DropReason::NoServer }
    }
}

/// What is remembered of a choice. A server that another service of the group knows at another port stays the one that the
/// client came to first.
fn place(picked: Picked<'_>, known: Option<Known>) -> Place {
    let known = known.filter(|_| picked.way == Way::Remembered).map(|known| known.server);
    known.unwrap_or((picked.server.address, picked.server.port))
}

impl Server {
    /// Whether it serves the client of `request` already, while it warms up over `time`: its part of all clients grows to its
    /// fair one.
    pub(super) fn serves(&self, request: &Request, time: Duration) -> bool {
        let share = self.state.share(request.now, time);
        if share >= 1 << 16 {
            return true;
        }
        let mut hasher = SipHasher13::new_with_keys(u64::from(self.id.0), 0);
        hasher.write(request.client.octets());
        hasher.write_u16(request.client_port);
        hasher.finish() & 0xffff < (share * self.fair_part) >> 16
    }
}
