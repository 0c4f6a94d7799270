//! The engine's part in limits on new flows: of one client, of a service, in all.
//!
//! Client is who begins the flow: with masquerades the inside host, or who reaches it from outside. It belongs to one shard (but for
//! those who reach several inside hosts), so its bucket is the shard's alone; those of services and of all are shared by shards
//! ([`crate::service::rate`]). A packet over a limit is dropped without an answer: a SYN comes again.
//!
//! # What strangers can do
//!
//! Clients are kept in a table of a fixed size. A client whose bucket is full again is as good as unknown, so an entry is
//! worth something for a second at most. Who finds no free place takes that of the one whose bucket is nearest to full, of
//! the eight that a keyed hash allows. A stranger who sends from many addresses can make the table forget what others have
//! used, those first who have used least: they may begin more flows than the limit says, never fewer. Who is at its limit is
//! forgotten last.

use siphasher::sip::SipHasher13;

use super::Engine;
use crate::service::{Service, rate};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::Addr;

/// Places that a client may have in one row.
const WAYS: usize = 4;
/// Clients remembered at a time, per shard: of those who have begun flows within the last second.
const CLIENTS: usize = 16_384;
const ROWS: usize = CLIENTS / WAYS;

#[derive(Clone, Copy, Default)]
struct Client {
    who: Addr,
    /// When its bucket is full again, as [`rate::taken`] counts.
    full: u64,
}

/// The buckets of a shard's clients.
pub(super) struct ClientRates {
    /// Row after row; empty until the first limit is set.
    clients: Vec<Client>,
    key: [u64; 2],
}

impl ClientRates {
    /// `key` must be a secret, since strangers choose addresses.
    pub fn new(key: [u64; 2]) -> ClientRates {
        ClientRates { clients: Vec::new(), key }
    }

    /// Takes a token of the client's, if it has one.
    fn take(&mut self, now: Instant, who: Addr, rate: u32) -> bool {
        if self.clients.is_empty() {
            self.clients.resize(CLIENTS, Client::default());
        }
        let places = self.places(who);
        let known = places.into_iter().find(|place| self.clients[*place].who == who);
        let (place, full) = match known {
            Some(place) => (place, self.clients[place].full),
            None => {
                let dispensable = places.into_iter().min_by_key(|place| self.clients[*place].full);
                (dispensable.unwrap_or(places[0]), 0)
            }
        };
        let Some(full) = rate::taken(full, now, rate) else { return false };
        self.clients[place] = Client { who, full };
        true
    }

    fn give_back(&mut self, who: Addr, rate: u32) {
        if let Some(place) = self.find(who) {
            let full = &mut self.clients[place].full;
            *full = full.saturating_sub(rate::price(rate));
        }
    }

    fn has(&self, now: Instant, who: Addr, rate: u32) -> bool {
        let full = self.find(who).map_or(0, |place| self.clients[place].full);
        rate::taken(full, now, rate).is_some()
    }

    fn find(&self, who: Addr) -> Option<usize> {
        let places = self.places(who).into_iter();
        places.into_iter().find(|place| self.clients.get(*place).is_some_and(|client| client.who == who))
    }

    fn places(&self, who: Addr) -> [usize; 2 * WAYS] {
        let hash = SipHasher13::new_with_keys(self.key[0], self.key[1]).hash(who.octets());
        let rows = [hash as u32, (hash >> 32) as u32].map(|half| half as usize % ROWS);
        std::array::from_fn(|way| rows[way / WAYS] * WAYS + way % WAYS)
    }
}

/// A host outside as far as limits go: an IPv4 address, or the /64 of an IPv6 one, all of which a host has to choose from
/// (RFC 4291 section 2.5.1). Inside a masquerade, hosts share such a network, and each counts by itself.
pub(crate) fn outside(client: Addr) -> Addr {
    if client.is_v4() {
        return client;
    }
    let mut octets = *client.octets();
    octets[8..].fill(0);
    Addr::from_v6(octets)
}

impl Engine {
    /// Whether a client may begin another flow, of `service` if it is a service's; `who`: its address, or [`outside`] of it. What is taken from one bucket is given
    /// back when another one is empty.
    pub(super) fn may_begin(&mut self, now: Instant, who: Addr, service: Option<&Service>) -> Result<(), DropReason> {
        let limits = self.snapshot.spec.limits;
        let of_client = (limits.new_flows_per_client > 0).then_some(limits.new_flows_per_client);
        if of_client.is_some_and(|rate| !self.clients.take(now, who, rate)) {
            return Err(DropReason::ClientRate);
        }
        let of_service =
            service.and_then(|service| Some((&service.state.new_flows, service.spec.new_flows_per_second?)));
        let refused = if of_service.is_some_and(|(bucket, rate)| !bucket.take(now, rate)) {
            DropReason::ServiceRate
        } else if limits.new_flows_per_second > 0 && !self.snapshot.new_flows.take(now, limits.new_flows_per_second) {
            if let Some((bucket, rate)) = of_service {
                bucket.give_back(rate);
            }
            DropReason::TotalRate
        } else {
            return Ok(());
        };
        if let Some(rate) = of_client {
            self.clients.give_back(who, rate);
        }
        Err(refused)
    }

    /// As [`Engine::may_begin`], but nothing is taken.
    pub(crate) fn foresee_rates(&self, now: Instant, who: Addr, service: Option<&Service>) -> Result<(), DropReason> {
        let limits = &self.snapshot.spec.limits;
        let of_service =
            service.and_then(|service| Some((&service.state.new_flows, service.spec.new_flows_per_second?)));
        if limits.new_flows_per_client > 0 && !self.clients.has(now, who, limits.new_flows_per_client) {
            return Err(DropReason::ClientRate);
        }
        if of_service.is_some_and(|(bucket, rate)| !bucket.has(now, rate)) {
            return Err(DropReason::ServiceRate);
        }
        if limits.new_flows_per_second > 0 && !self.snapshot.new_flows.has(now, limits.new_flows_per_second) {
            return Err(DropReason::TotalRate);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(number: u32) -> Addr {
        Addr::from_v4(number.to_be_bytes())
    }

    #[test]
    fn a_full_table_forgets_whom_it_can_do_without_and_denies_nobody() {
        let mut clients = ClientRates::new([1, 2]);
        let (now, rate) = (Instant::from_secs(10), 8);
        let busy = Addr::from_v4([198, 51, 100, 2]);
        for _ in 0..rate {
            assert!(clients.take(now, busy, rate));
        }
        // Ten times as many strangers as there are places: each is let in, and the table stays as large as it is.
        for number in 0..10 * CLIENTS as u32 {
            assert!(clients.take(now, stranger(0x0a00_0000 + number), rate));
        }
        assert_eq!(clients.clients.len(), CLIENTS);
        assert!(clients.clients.iter().all(|client| client.full > rate::nanos(now)), "it is full");
        assert!(!clients.take(now, busy, rate), "who is at its limit stays known");
        let newcomer = Addr::from_v4([198, 51, 100, 3]);
        for _ in 0..rate {
            assert!(clients.take(now, newcomer, rate), "and who is new has all that it may have");
        }
        assert!(!clients.take(now, newcomer, rate));
    }

    #[test]
    fn an_ipv6_host_is_one_client_whatever_its_address() {
        let mut clients = ClientRates::new([1, 2]);
        let address = |network: u8, host: u8| {
            let mut octets = [0x20, 1, 0xd, 0xb8, 0, 0, 0, network, 0, 0, 0, 0, 0, 0, 0, host];
            octets[8] = host;
            Addr::from_v6(octets)
        };
        let now = Instant::from_secs(1);
        let taken: Vec<bool> = (0..4).map(|host| clients.take(now, outside(address(1, host)), 2)).collect();
        assert_eq!(taken, [true, true, false, false]);
        assert!(clients.take(now, outside(address(2, 0)), 2));
        assert!(clients.has(now, outside(address(2, 9)), 2) && !clients.has(now, outside(address(1, 9)), 2));
    }
}
