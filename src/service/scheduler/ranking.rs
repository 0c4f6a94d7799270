//! Which server costs least: what most schedulers ask.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Request;
use crate::service::Server;

/// What a new flow costs at a server: of two, the lower class is cheaper, and in one class the lower quotient of `load` and
/// `weight`. Quotients are compared by cross multiplication, as in Linux, but with 128 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    class: u32,
    weight: u32,
    load: u64,
}

impl Cost {
    /// `load / weight`; a weight of 0 is taken for 1.
    pub(super) fn quotient(load: u64, weight: u32) -> Cost {
        Cost { class: 0, weight: weight.max(1), load }
    }

    /// Dearer than everything that is not of a later class.
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranking {
    cost: fn(&Server) -> Cost,
}

impl Ranking {
    pub(super) fn new(cost: fn(&Server) -> Cost) -> Ranking {
        Ranking { cost }
    }

    /// One that leaves the original alone, for `gatun explain`.
    pub(super) fn fork(&self) -> Ranking {
        *self
    }

    /// The cheapest server of those that take the request, and of equals the first.
    pub(super) fn cheapest(&self, servers: &[Arc<Server>], request: &Request) -> Option<usize> {
        let takers = servers.iter().enumerate().filter(|(_, server)| server.takes(request));
        // Each cost is read once: loads change under our hands, and a comparison must not change its mind.
        let costs = takers.map(|(index, server)| (index, (self.cost)(server)));
        costs.min_by(|(_, a), (_, b)| a.compare(b)).map(|(index, _)| index)
    }
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
