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

use std::cmp::Ordering;
use std::sync::Arc;

pub use changes::{Changes, Mark};
use tree::Tree;

use super::Request;
use crate::service::Server;

/// Servers that are looked at one by one: some 10 ns each.
const SCANNED: usize = 12;
/// Servers that do not take the request, though they are available, before all are looked at one by one.
const PASSED: usize = 8;

/// What a new flow costs at a server: of two, the lower class is cheaper, and in one class the lower quotient of `load` and
/// `weight`. Quotients are compared by cross multiplication, as in Linux, but with 128 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    class: u32,
    weight: u32,
    load: u64,
}

impl Cost {
    /// Of a server that takes no flow.
    const NEVER: Cost = Cost { class: u32::MAX, weight: 1, load: 0 };

    fn is_never(&self) -> bool {
        self.class == u32::MAX
    }

    /// `load / weight`; a weight of 0 is taken for 1.
    pub(super) fn quotient(load: u64, weight: u32) -> Cost {
        Cost { class: 0, weight: weight.max(1), load }
    }

    /// Dearer than everything that is not of a later class; not the last one, [`u32::MAX`].
    pub(super) fn of_class(self, class: u32) -> Cost {
        Cost { class, ..self }
    }

    /// The heavier the cheaper.
    pub(super) fn by_weight(weight: u32) -> Cost {
        Cost::quotient(u64::from(u32::MAX - weight), 1)
    }

    pub(super) fn is_less(&self, other: &Cost) -> bool {
        self.compare(other) == Ordering::Less
    }

    pub(super) fn compare(&self, other: &Cost) -> Ordering {
        let product = |load: u64, weight: u32| u128::from(load) * u128::from(weight);
        self.class
            .cmp(&other.class)
            .then_with(|| product(self.load, other.weight).cmp(&product(other.load, self.weight)))
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
        costs.min_by(|(_, a), (_, b)| a.compare(b)).map(|(index, _)| index)
    }
}

/// What `server` costs, whoever asks.
fn cost_of(server: &Server, cost: fn(&Server) -> Cost) -> Cost {
    if server.is_available() { cost(server) } else { Cost::NEVER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_too_large_for_64_bits_are_compared_rightly() {
        let compare = |a, a_weight, b, b_weight| Cost::quotient(a, a_weight).compare(&Cost::quotient(b, b_weight));
        assert_eq!(compare(u64::MAX, 65535, u64::MAX - 1, 65535), Ordering::Greater);
        assert_eq!(compare(u64::MAX, 65535, u64::MAX, 65534), Ordering::Less);
        assert_eq!(compare(2, 4, 1, 2), Ordering::Equal);
    }

    #[test]
    fn a_class_outweighs_every_load() {
        let (dear, cheap) = (Cost::quotient(0, 1).of_class(1), Cost::quotient(u64::MAX, 1));
        assert_eq!(dear.compare(&cheap), Ordering::Greater);
        assert_eq!(Cost::by_weight(9).compare(&Cost::by_weight(8)), Ordering::Less);
    }
}
