//! A tournament over the servers of a service: at each node the cheaper one of two goes on, and the root has the cheapest.
//!
//! What a server costs is kept beside it, so that a tournament looks at nothing else. A cost that has changed is played anew on
//! the way from its leaf to the root: ten matches among a thousand servers.

use std::sync::Arc;

use super::changes::PLACES;
use super::{Cost, cost_of};
use crate::service::Server;

const NONE: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Whose tree this is; 0: nobody's.
    pub(super) claim: u64,
    /// Leaves, a power of two; those past the last server cost [`Cost::NEVER`].
    width: usize,
    /// Node 1 is the root, node n has the children 2n and 2n + 1, and the leaves begin at `width`.
    winners: Vec<u32>,
    costs: Vec<Cost>,
    /// By place (modulo its length) one server that has it, and by server the next one.
    first_at: Vec<u32>,
    next_at: Vec<u32>,
}

impl Tree {
    pub(super) fn build(claim: u64, servers: &[Arc<Server>], cost: fn(&Server) -> Cost) -> Tree {
        let width = servers.len().next_power_of_two();
        let mut costs: Vec<Cost> = servers.iter().map(|server| cost_of(server, cost)).collect();
        costs.resize(width, Cost::NEVER);
        let mut first_at = vec![NONE; width.clamp(64, PLACES)];
        let mut next_at = vec![NONE; servers.len()];
        for (index, server) in servers.iter().enumerate() {
            let place = server.load.mark().place() & (first_at.len() - 1);
            next_at[index] = std::mem::replace(&mut first_at[place], index as u32);
        }
        let winners = vec![0; width].into_iter().chain(0..width as u32).collect();
        let mut tree = Tree { claim, width, winners, costs, first_at, next_at };
        for node in (1..width).rev() {
            tree.winners[node] = tree.winner(node);
        }
        tree
    }

    /// How many servers it was made of.
    pub(super) fn len(&self) -> usize {
        self.next_at.len()
    }

    /// The cheapest server, or of equals the first; `None` when all cost [`Cost::NEVER`].
    pub(super) fn cheapest(&self) -> Option<usize> {
        let winner = self.winners[1] as usize;
        (self.costs[winner] != Cost::NEVER).then_some(winner)
    }

    /// Looks anew at the servers of a place.
    pub(super) fn refresh(&mut self, place: usize, servers: &[Arc<Server>], cost: fn(&Server) -> Cost) {
        let mut index = self.first_at[place & (self.first_at.len() - 1)];
        while index != NONE {
            self.set(index as usize, cost_of(&servers[index as usize], cost));
            index = self.next_at[index as usize];
        }
    }

    pub(super) fn set(&mut self, index: usize, cost: Cost) {
        self.costs[index] = cost;
        let mut node = (self.width + index) / 2;
        while node > 0 {
            let winner = self.winner(node);
            // Another one wins as before: further up nothing changes.
            if winner == self.winners[node] && winner as usize != index {
                return;
            }
            self.winners[node] = winner;
            node /= 2;
        }
    }

    fn winner(&self, node: usize) -> u32 {
        let (left, right) = (self.winners[2 * node], self.winners[2 * node + 1]);
        if self.costs[right as usize] < self.costs[left as usize] { right } else { left }
    }
}
