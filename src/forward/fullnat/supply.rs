//! The ports of one lane that this shard may give away.
//!
//! A [`PortSet`] takes eight kilobytes for a whole address. A stranger who scans the ports of a service without a fixed one
//! makes a lane for each: while few ports of a large range are taken they are listed instead, so that what a lane takes
//! stays in proportion to its flows.

use crate::forward::ports::{PortSet, Slice, Want};

/// A range of so many ports at most is a [`PortSet`] from the start: 128 bytes.
const SMALL: u32 = 1024;
/// Above so many ports taken the list becomes a set,
const MANY: usize = 256;
/// and below so many the set becomes a list: a lane takes less than 100 bytes for each of its ports.
const FEW: usize = 96;

#[derive(Clone, Debug)]
pub(super) struct Supply {
    slice: Slice,
    ports: Ports,
    /// Ports of a range that was configured before, and that are still taken.
    outside: Vec<u16>,
}

#[derive(Clone, Debug)]
enum Ports {
    /// Those that are taken, in no order.
    Few(Vec<u16>),
    Many(PortSet),
}

impl Supply {
    pub fn new(slice: Slice) -> Supply {
        let ports = if slice.size() <= SMALL { Ports::Many(PortSet::of(slice)) } else { Ports::Few(Vec::new()) };
        Supply { slice, ports, outside: Vec::new() }
    }

    pub fn slice(&self) -> Slice {
        self.slice
    }

    /// Ports that are taken, those outside of the range included.
    pub fn taken(&self) -> usize {
        self.outside.len()
            + match &self.ports {
                Ports::Few(taken) => taken.len(),
                Ports::Many(set) => (set.size() - set.left()) as usize,
            }
    }

    /// A port that is free; `random` decides which. `None`: there is none.
    pub fn foresee(&self, random: u64) -> Option<u16> {
        match &self.ports {
            Ports::Few(taken) => pick(self.slice, taken, random),
            Ports::Many(set) => set.foresee(Want::Any, random),
        }
    }

    /// Takes it.
    pub fn take(&mut self, random: u64) -> Option<u16> {
        let taken = match &mut self.ports {
            Ports::Many(set) => return set.take(Want::Any, random),
            Ports::Few(taken) => taken,
        };
        let port = pick(self.slice, taken, random)?;
        taken.push(port);
        if taken.len() > MANY {
            self.ports = Ports::Many(set_of(self.slice, taken));
        }
        Some(port)
    }

    /// Takes this port; `false`: it is not free, or not one of these.
    pub fn take_this(&mut self, port: u16) -> bool {
        let taken = match &mut self.ports {
            Ports::Many(set) => return set.take_this(port),
            Ports::Few(taken) => taken,
        };
        let is_free = self.slice.place(port).is_some() && !taken.contains(&port);
        if is_free {
            taken.push(port);
            if taken.len() > MANY {
                self.ports = Ports::Many(set_of(self.slice, taken));
            }
        }
        is_free
    }

    pub fn give(&mut self, port: u16) {
        let known = match &mut self.ports {
            Ports::Few(taken) => remove(taken, port),
            Ports::Many(set) => set.give(port),
        };
        if !known {
            remove(&mut self.outside, port);
        }
        if let Ports::Many(set) = &self.ports
            && self.slice.size() > SMALL
            && ((set.size() - set.left()) as usize) < FEW
        {
            self.ports = Ports::Few(set.taken().collect());
        }
    }

    /// From now on ports of another range are given away. Those that are taken stay so.
    pub fn change(&mut self, slice: Slice) {
        let mut taken = std::mem::take(&mut self.outside);
        match &self.ports {
            Ports::Few(few) => taken.extend(few),
            Ports::Many(set) => taken.extend(set.taken()),
        }
        let (inside, outside) = taken.into_iter().partition(|port| slice.place(*port).is_some());
        *self = Supply { outside, ..Supply::new(slice) };
        let inside: Vec<u16> = inside;
        self.ports = match &self.ports {
            Ports::Few(_) if inside.len() <= MANY => Ports::Few(inside),
            _ => Ports::Many(set_of(slice, &inside)),
        };
    }
}

/// A random place, and on from there: at most one place in four is taken.
fn pick(slice: Slice, taken: &[u16], random: u64) -> Option<u16> {
    let places = slice.places();
    let start = (random >> 16) as usize % places.max(1);
    let tried = (0..places.min(taken.len() + 3)).map(|step| (start + step) % places);
    tried.filter_map(|place| slice.port(place)).find(|port| !taken.contains(port))
}

fn remove(list: &mut Vec<u16>, port: u16) -> bool {
    let Some(at) = list.iter().position(|other| *other == port) else { return false };
    list.swap_remove(at);
    true
}

fn set_of(slice: Slice, taken: &[u16]) -> PortSet {
    let mut set = PortSet::of(slice);
    for port in taken {
        set.take_this(*port);
    }
    set
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::service::PortRange;

    fn random(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn all_ports_are_given_away_once_whatever_holds_them() {
        for (range, shards) in [((1024, 1030), 1), ((1025, 1034), 3), ((1024, 65535), 2), ((1, 1400), 1)] {
            let range = PortRange { first: range.0, last: range.1 };
            let slice = Slice::new(range, 0, shards);
            let mut supply = Supply::new(slice);
            let mut seen = BTreeSet::new();
            for n in 0.. {
                let foreseen = supply.foresee(random(n));
                let Some(port) = supply.take(random(n)) else { break };
                assert_eq!(foreseen, Some(port));
                assert!(seen.insert(port) && slice.place(port).is_some(), "{port}");
            }
            assert_eq!(seen.len(), slice.size() as usize);
            assert_eq!(supply.taken(), seen.len());
            for port in &seen {
                supply.give(*port);
            }
            assert_eq!(supply.taken(), 0);
            assert!(supply.take(7).is_some());
        }
    }

    #[test]
    fn what_is_taken_stays_so_when_the_range_changes() {
        let slice = |first, last| Slice::new(PortRange { first, last }, 0, 1);
        for few in [3, 300] {
            let mut supply = Supply::new(slice(2000, 9999));
            let old: BTreeSet<u16> = (0..few).filter_map(|n| supply.take(random(n))).collect();
            supply.change(slice(9000, 9009));
            assert_eq!(supply.taken(), old.len());
            while supply.take(1).is_some() {}
            let all: BTreeSet<u16> = old.iter().copied().chain(9000..=9009).collect();
            assert_eq!(supply.taken(), all.len(), "none was given away twice");
            supply.change(slice(2000, 9999));
            assert_eq!(supply.taken(), all.len());
            for n in 0..2000 {
                let port = supply.take(random(n)).expect("there are more");
                assert!(!all.contains(&port));
                supply.give(port);
            }
            all.iter().for_each(|port| supply.give(*port));
            assert_eq!(supply.taken(), 0);
        }
    }
}
