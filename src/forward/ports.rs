//! The ports of one address that one shard may give away, and which of them are free.
//!
//! A bit a port, and a bit for each word that has a free one: taking a port at random looks at two words, however full the
//! set is. The choice is even over the words that have a free port, and over the free ports within a word (RFC 6056 asks for
//! what a stranger cannot guess, not for more).

use crate::service::{PortRange, owner_of_port};

/// Which ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Any,
    Even,
    Odd,
}

impl Want {
    /// Of the parity of `port` (RFC 4787 REQ-4).
    pub const fn like(port: u16) -> Want {
        if port & 1 == 0 { Want::Even } else { Want::Odd }
    }

    const fn mask(self) -> u64 {
        match self {
            Want::Any => u64::MAX,
            Want::Even => 0x5555_5555_5555_5555,
            Want::Odd => 0xaaaa_aaaa_aaaa_aaaa,
        }
    }
}

/// The ports of a range that one shard owns, by *place*: from 0 on, pair by pair. At the first and the last place there may
/// be a port that is not of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    range: PortRange,
    shard: u16,
    shards: u16,
    /// The number of the first pair of ports that is this shard's, of all pairs.
    first_pair: u16,
    pairs: u16,
}

impl Slice {
    pub fn new(range: PortRange, shard: u16, shards: u16) -> Slice {
        let shards = shards.max(1);
        let low = range.first >> 1;
        // The first pair at or above `low` that is ours.
        let first_pair = u32::from(low) + u32::from((shard + shards - low % shards) % shards);
        let pairs = (u32::from(range.last >> 1) + 1).saturating_sub(first_pair).div_ceil(u32::from(shards));
        Slice { range, shard, shards, first_pair: first_pair as u16, pairs: pairs as u16 }
    }

    pub fn range(self) -> PortRange {
        self.range
    }

    pub fn places(self) -> usize {
        usize::from(self.pairs) * 2
    }

    /// Ports there are.
    pub fn size(self) -> u32 {
        (self.places() - self.gaps().count()) as u32
    }

    /// `None`: it is not of the range.
    pub fn port(self, place: usize) -> Option<u16> {
        let port = (usize::from(self.first_pair) + place / 2 * usize::from(self.shards)) * 2 + place % 2;
        u16::try_from(port).ok().filter(|port| self.range.contains(*port))
    }

    /// `None`: it is none of these.
    pub fn place(self, port: u16) -> Option<usize> {
        if !self.range.contains(port) || owner_of_port(port, self.shards) != self.shard {
            return None;
        }
        let pair = usize::from(((port >> 1) - self.first_pair) / self.shards);
        Some(pair * 2 + usize::from(port & 1))
    }

    /// Places without a port.
    fn gaps(self) -> impl Iterator<Item = usize> {
        let last = self.places().checked_sub(1);
        let ends = [Some(0).filter(|_| last.is_some()), last];
        ends.into_iter().flatten().filter(move |place| self.port(*place).is_none())
    }
}

/// A set of ports to take from and to give back to.
#[derive(Clone, Debug)]
pub struct PortSet {
    slice: Slice,
    /// By the place of a port: set where it is free.
    free: Box<[u64]>,
    /// By word and parity, even first: set where the word has one that is free.
    words: [Box<[u64]>; 2],
    left: u32,
}

impl PortSet {
    /// The ports of `range` that `shard` of `shards` owns, all of them free.
    pub fn new(range: PortRange, shard: u16, shards: u16) -> PortSet {
        PortSet::of(Slice::new(range, shard, shards))
    }

    /// All ports of `slice`, free.
    pub fn of(slice: Slice) -> PortSet {
        let words = slice.places().div_ceil(64);
        let summary = vec![0; words.div_ceil(64)].into_boxed_slice();
        let mut set = PortSet {
            slice,
            free: vec![u64::MAX; words].into_boxed_slice(),
            words: [summary.clone(), summary],
            left: slice.size(),
        };
        if let Some(last) = set.free.last_mut().filter(|_| !slice.places().is_multiple_of(64)) {
            *last = (1 << (slice.places() % 64)) - 1;
        }
        for place in slice.gaps() {
            set.free[place / 64] &= !(1 << (place % 64));
        }
        (0..words).for_each(|word| set.note(word));
        set
    }

    /// Without a port.
    pub fn empty() -> PortSet {
        let slice = Slice { range: PortRange { first: 1, last: 0 }, shard: 0, shards: 1, first_pair: 0, pairs: 0 };
        PortSet { slice, free: Box::default(), words: Default::default(), left: 0 }
    }

    /// Ports that are free.
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Ports there are, free or not.
    pub fn size(&self) -> u32 {
        self.slice.size()
    }

    /// Ports that are not free, in ascending order.
    pub fn taken(&self) -> impl Iterator<Item = u16> + '_ {
        let places = (0..self.slice.places()).filter(|place| !self.is_set(*place));
        places.filter_map(|place| self.slice.port(place))
    }

    /// Whether this port is free; those of others are not.
    pub fn is_free(&self, port: u16) -> bool {
        self.place(port).is_some_and(|place| self.is_set(place))
    }

    /// Takes a free port; `random` decides which. `None`: there is none.
    pub fn take(&mut self, want: Want, random: u64) -> Option<u16> {
        let place = self.pick(want, random)?;
        self.clear(place);
        self.slice.port(place)
    }

    /// What [`PortSet::take`] would give.
    pub fn foresee(&self, want: Want, random: u64) -> Option<u16> {
        self.slice.port(self.pick(want, random)?)
    }

    /// Takes this port; `false`: it is not free, or not one of these.
    pub fn take_this(&mut self, port: u16) -> bool {
        let Some(place) = self.place(port).filter(|place| self.is_set(*place)) else { return false };
        self.clear(place);
        true
    }

    /// Gives a port back. `false`: it is none of these, or was not taken.
    pub fn give(&mut self, port: u16) -> bool {
        let Some(place) = self.place(port).filter(|place| !self.is_set(*place)) else { return false };
        self.set(place);
        true
    }

    fn pick(&self, want: Want, random: u64) -> Option<usize> {
        let word = self.word_with(want, random)?;
        let bits = self.free[word] & want.mask();
        Some(word * 64 + nth_set(bits, (random >> 32) as u32 % bits.count_ones()))
    }

    /// A word with a free port that is wanted.
    fn word_with(&self, want: Want, random: u64) -> Option<usize> {
        let [even, odd] = &self.words;
        let summary = |at: usize| match want {
            Want::Any => even[at] | odd[at],
            Want::Even => even[at],
            Want::Odd => odd[at],
        };
        let count = even.len();
        if count == 0 {
            return None;
        }
        let start = (random & 0xffff) as usize % count;
        // At most 16 of them: 65536 ports are 1024 words.
        let at = (0..count).map(|step| (start + step) % count).find(|at| summary(*at) != 0)?;
        let bits = summary(at);
        Some(at * 64 + nth_set(bits, (random >> 16) as u32 % bits.count_ones()))
    }

    fn is_set(&self, place: usize) -> bool {
        self.free[place / 64] >> (place % 64) & 1 != 0
    }

    fn set(&mut self, place: usize) {
        self.free[place / 64] |= 1 << (place % 64);
        self.left += 1;
        self.note(place / 64);
    }

    fn clear(&mut self, place: usize) {
        self.free[place / 64] &= !(1 << (place % 64));
        self.left -= 1;
        self.note(place / 64);
    }

    fn note(&mut self, word: usize) {
        let free = self.free[word];
        for (words, want) in self.words.iter_mut().zip([Want::Even, Want::Odd]) {
            let bit = 1 << (word % 64);
            if free & want.mask() == 0 { words[word / 64] &= !bit } else { words[word / 64] |= bit }
        }
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.free.len() * 64
    }

    /// Where a port of the set stands among all of them: a number below [`PortSet::places`].
    pub fn place(&self, port: u16) -> Option<usize> {
        self.slice.place(port)
    }
}

/// The place of the set bit number `n`, which must be less than there are.
fn nth_set(bits: u64, n: u32) -> usize {
    let (mut bits, mut n, mut at) = (bits, n, 0);
    for half in [32, 16, 8, 4, 2, 1] {
        let low = (bits & ((1 << half) - 1)).count_ones();
        if n >= low {
            n -= low;
            bits >>= half;
            at += half;
        }
    }
    at as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_place_of_the_nth_bit() {
        for (bits, places) in [(1_u64, vec![0]), (0b1010, vec![1, 3]), (1 << 63 | 1, vec![0, 63])] {
            for (n, place) in places.iter().enumerate() {
                assert_eq!(nth_set(bits, n as u32), *place, "{bits:b} {n}");
            }
        }
        assert_eq!((0..64).map(|n| nth_set(u64::MAX, n)).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_taken_is_not_given_away_again() {
        let mut set = PortSet::new(PortRange { first: 1024, last: 1100 }, 0, 1);
        let mut seen = BTreeSet::new();
        for random in 0_u64.. {
            match set.take(Want::Any, random.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                Some(port) => assert!(seen.insert(port), "{port} twice"),
                None => break,
            }
        }
        assert_eq!(seen, (1024..=1100).collect());
        assert!(!set.take_this(1050));
        assert!(set.give(1050) && !set.give(1050) && !set.give(80));
        assert!(set.take_this(1050) && set.left() == 0);
    }

    #[test]
    fn parity_is_kept_or_there_is_none() {
        let mut set = PortSet::new(PortRange { first: 2001, last: 2004 }, 0, 1);
        let mut even = || set.take(Want::like(4000), 7);
        let first = [even(), even(), even()];
        assert_eq!(first.iter().flatten().collect::<BTreeSet<_>>(), [2002, 2004].iter().collect());
        assert_eq!(first[2], None);
        assert!(set.take(Want::Odd, 7).is_some_and(|port| port % 2 == 1));
    }

    proptest! {
        #[test]
        fn shards_have_all_ports_between_them(first in 1_u16.., size in 0_u16..300, shards in 1_u16..20) {
            let range = PortRange { first, last: first.saturating_add(size) };
            let mut all = BTreeSet::new();
            for shard in 0..shards {
                let mut set = PortSet::new(range, shard, shards);
                prop_assert_eq!(set.left(), set.size());
                while let Some(port) = set.take(Want::Any, u64::from(first)) {
                    prop_assert!(range.contains(port) && owner_of_port(port, shards) == shard);
                    prop_assert!(all.insert(port));
                }
            }
            prop_assert_eq!(all, (range.first..=range.last).collect());
        }
    }
}
