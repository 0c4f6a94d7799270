//! Which server costs least: what most schedulers ask.
//!
//! # Theory of operation
//!
//! Among few servers every one is looked at for each pick. Among more than [`SCANNED`] a tree knows the cheapest ([`tree`]).
//! Loads and states change by themselves, on any shard; each change leaves a mark ([`changes`]), and a pick first looks anew
//! at the marked ones, under the tree's lock. So it answers as a scan at that moment would, whatever has happened in
//! between, and a change costs one or two operations on a shared word.
//!
//! The marks and the tree belong to the service rather than to the scheduler: while a reload is on its way the schedulers of
//! the old and of the new snapshot pick by turns. The tree tells whose it is, and who finds another's builds it anew.
//!
//! A fork ([`Ranking::fork`]) scans: it must leave no trace.

mod changes;
mod tree;

use std::sync::Arc;

pub use changes::{Changes, Mark};
use tree::Tree;

use super::Request;
use crate::service::Server;

/// Servers that are looked at one by one: some 10 ns each.
const SCANNED: usize = 12;
/// Servers that do not take the request, though they are available, before all are looked at one by one.
const PASSED: usize = 8;

/// What a new flow costs at a server: of two, the lower class is cheaper, and in one class the lower quotient of load and
/// weight.
///
/// The quotient is kept with [`FRACTION`] binary places. Weights have 16 bits at most: two different quotients differ by at least
/// 2^-32, so they compare exactly as by the cross multiplication of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost(u128);

/// Binary places of a quotient.
const FRACTION: u32 = 32;
/// Where the class begins.
const CLASS: u32 = 120;

impl Cost {
    /// Of a server that takes no flow.
    const NEVER: Cost = Cost(u128::MAX);

    /// `load / weight`; a weight of 0 is taken for 1, one of more than 65535 for that, and a load has 64 bits at most.
    pub(super) fn quotient(load: u64, weight: u32) -> Cost {
        let weight = weight.clamp(1, u32::from(u16::MAX));
        // The division of 128 bits is slow.
        match load.leading_zeros() {
            FRACTION.. => Cost(u128::from((load << FRACTION) / u64::from(weight))),
            _ => Cost((u128::from(load) << FRACTION) / u128::from(weight)),
        }
    }

    /// Dearer than everything of a lower class; 254 classes.
    pub(super) fn of_class(self, class: u8) -> Cost {
        Cost(self.0 | u128::from(class.min(254)) << CLASS)
    }

    /// The heavier the cheaper.
    pub(super) fn by_weight(weight: u32) -> Cost {
        Cost::quotient(u64::from(u32::MAX - weight), 1)
    }
}

/// The servers of one service by what they cost.
#[derive(Debug)]
pub(super) struct Ranking {
    cost: fn(&Server) -> Cost,
    index: Option<Index>,
}

/// A claim to the tree of a service.
#[derive(Debug)]
struct Index {
    changes: Arc<Changes>,
    claim: u64,
}

impl Ranking {
    /// `servers` are those that [`Ranking::cheapest`] will be given; `cost` must go by nothing but a server's load and what
    /// does not change.
    pub(super) fn new(servers: &[Arc<Server>], cost: fn(&Server) -> Cost) -> Ranking {
        let changes = servers.first().and_then(|server| server.load.mark().changes());
        let changes = changes.filter(|changes| {
            let belongs =
                |server: &Arc<Server>| server.load.mark().changes().is_some_and(|of| Arc::ptr_eq(of, changes));
            servers.len() > SCANNED && servers.iter().all(belongs)
        });
        let index = changes.map(|changes| Index { changes: changes.clone(), claim: changes.claim() });
        Ranking { cost, index }
    }

    /// One that leaves the original alone, for `gatun explain`.
    pub(super) fn fork(&self) -> Ranking {
        Ranking { cost: self.cost, index: None }
    }

    /// The cheapest server of those that take the request, and of equals the first.
    pub(super) fn cheapest(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let Some(index) = &self.index else { return self.scan(servers, request) };
        let mut tree = index.changes.tree();
        if tree.claim == index.claim && tree.len() == servers.len() {
            index.changes.take(|place| tree.refresh(place, servers, self.cost));
        } else {
            index.changes.take(|_| ());
            *tree = Tree::build(index.claim, servers, self.cost);
        }
        self.cheapest_of(&mut tree, servers, request)
    }

    /// The first of the tree that takes the request. Those before it, which warm up and do not serve this client yet, are
    /// taken out of the tournament while it is looked for.
    fn cheapest_of(&self, tree: &mut Tree, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let (mut passed, mut count) = ([0; PASSED], 0);
        let found = loop {
            match tree.cheapest() {
                Some(index) if !servers[index].takes(request) => {
                    if count == PASSED {
                        break self.scan(servers, request);
                    }
                    tree.set(index, Cost::NEVER);
                    passed[count] = index;
                    count += 1;
                }
                found => break found,
            }
        };
        passed[..count].iter().for_each(|&index| tree.set(index, cost_of(&servers[index], self.cost)));
        found
    }

    fn scan(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let takers = servers.iter().enumerate().filter(|(_, server)| server.takes(request));
        // Each cost is read once: loads change under our hands, and a comparison must not change its mind.
        let costs = takers.map(|(index, server)| (index, (self.cost)(server)));
        costs.min_by_key(|(_, cost)| *cost).map(|(index, _)| index)
    }
}

/// What `server` costs, whoever asks.
fn cost_of(server: &Server, cost: fn(&Server) -> Cost) -> Cost {
    if server.is_available() { cost(server) } else { Cost::NEVER }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Of all loads, in particular those of which quotients are hardly apart.
        #[test]
        fn quotients_compare_as_by_cross_multiplication(
            load in prop_oneof![any::<u64>(), 0..1_u64 << 20, Just(u64::MAX)],
            weight in 1..=65535_u32,
            other in prop_oneof![1 => any::<u64>(), 3 => Just(u64::MAX)],
            other_weight in 1..=65535_u32,
            off in 0..3_u64,
        ) {
            // Mostly the load that is nearest to equal.
            let near = (u128::from(load) * u128::from(other_weight) / u128::from(weight)) as u64;
            let other = if other == u64::MAX { near.wrapping_add(off).wrapping_sub(1) } else { other };
            let crossed = (u128::from(load) * u128::from(other_weight)).cmp(&(u128::from(other) * u128::from(weight)));
            prop_assert_eq!(Cost::quotient(load, weight).cmp(&Cost::quotient(other, other_weight)), crossed);
        }
    }

    #[test]
    fn a_class_outweighs_every_load() {
        assert!(Cost::quotient(0, 1).of_class(1) > Cost::quotient(u64::MAX, 1));
        assert!(Cost::NEVER > Cost::quotient(u64::MAX, 1).of_class(u8::MAX));
        assert!(Cost::by_weight(9) < Cost::by_weight(8));
    }
}
