//! From a hash to the number of a record: open addressing with linear probing, 4 bytes an entry.
//!
//! As the flow table's index, without the hash in the entry: the caller tells hashes from numbers. It is asked only for packets
//! without a flow, so that half of the memory is worth another look at a record.

/// Numbers of records by their hash, at a load of at most one half.
#[derive(Debug, Default)]
pub struct Numbers {
    /// A number + 1; 0: empty.
    slots: Vec<u32>,
    len: usize,
}

impl Numbers {
    /// Room for `max` numbers.
    pub fn new(max: usize) -> Numbers {
        Numbers { slots: vec![0; (max * 2).max(2)], len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_half_full(&self) -> bool {
        self.len * 2 >= self.slots.len()
    }

    /// The number under `hash` for which `is_it` says yes.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            match self.slots[at].checked_sub(1) {
                None => return None,
                Some(number) if is_it(number) => return Some(number),
                Some(_) => at = self.after(at),
            }
        }
    }

    /// The caller keeps to the limit given to [`Numbers::new`] and does not insert a number twice.
    pub fn insert(&mut self, hash: u64, number: u32) {
        let mut at = self.home(hash);
        while self.slots[at] != 0 {
            at = self.after(at);
        }
        self.slots[at] = number + 1;
        self.len += 1;
    }

    /// Takes out `number`, which `hash` leads to; `false`: it is not there. `hash_of` tells the hashes of others.
    pub fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        let mut at = self.home(hash);
        while self.slots[at] != number + 1 {
            if self.slots[at] == 0 {
                return false;
            }
            at = self.after(at);
        }
        self.clear(at, hash_of);
        true
    }

    /// Takes a number out of the first place from `at` on that has one, and moves `at` there; `None` at the end.
    fn drain(&mut self, at: &mut usize, hash_of: impl Fn(u32) -> u64) -> Option<u32> {
        while *at < self.slots.len() {
            if let Some(number) = self.slots[*at].checked_sub(1) {
                self.clear(*at, hash_of);
                return Some(number);
            }
            *at += 1;
        }
        None
    }

    /// Moves later entries of the same run into the gap where that brings them nearer to their home (Knuth 6.4,
    /// algorithm R).
    fn clear(&mut self, mut gap: usize, hash_of: impl Fn(u32) -> u64) {
        self.len -= 1;
        let size = self.slots.len();
        let mut at = gap;
        loop {
            at = self.after(at);
            let Some(number) = self.slots[at].checked_sub(1) else { break };
            let home = self.home(hash_of(number));
            let from_home = (at + size - home) % size;
            if from_home >= (at + size - gap) % size {
                self.slots[gap] = self.slots[at];
                gap = at;
            }
        }
        self.slots[gap] = 0;
    }

    /// Even over all slots, whatever their number.
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }
}

/// Entries that each insertion moves while a [`Growing`] index grows: it is done long before it has to grow again.
const MOVED: usize = 8;

/// The same for a set whose size nobody knows beforehand: it doubles, a few entries at a time.
#[derive(Debug)]
pub struct Growing {
    now: Numbers,
    /// What has not been moved yet; everything below the place is empty.
    before: Numbers,
    at: usize,
}

impl Growing {
    pub fn new() -> Growing {
        Growing { now: Numbers::new(256), before: Numbers::default(), at: 0 }
    }

    pub fn len(&self) -> usize {
        self.now.len() + self.before.len()
    }

    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.now.find(hash, &mut is_it).or_else(|| match self.before.len() {
            0 => None,
            _ => self.before.find(hash, is_it),
        })
    }

    pub fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        if self.now.is_half_full() {
            while self.move_one(&hash_of) {}
            let larger = Numbers::new(self.now.len() * 2);
            (self.before, self.at) = (std::mem::replace(&mut self.now, larger), 0);
        }
        self.now.insert(hash, number);
        for _ in 0..MOVED {
            if !self.move_one(&hash_of) {
                self.before = Numbers::default();
                break;
            }
        }
    }

    pub fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        if !self.now.remove(hash, number, &hash_of) {
            self.before.remove(hash, number, &hash_of);
        }
    }

    fn move_one(&mut self, hash_of: impl Fn(u32) -> u64) -> bool {
        let Some(number) = self.before.drain(&mut self.at, &hash_of) else { return false };
        self.now.insert(hash_of(number), number);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Few homes, some at the array's end, so that runs mix and wrap.
    fn crowded(number: u32) -> u64 {
        u64::from(number % 3).wrapping_sub(1) << 60 | u64::from(number)
    }

    #[test]
    fn what_is_left_is_found_after_each_removal() {
        let mut numbers = Numbers::new(60);
        (0..60).for_each(|n| numbers.insert(crowded(n), n));
        for gone in (0..60).map(|n| n * 37 % 60) {
            assert!(numbers.remove(crowded(gone), gone, crowded));
            assert_eq!(numbers.find(crowded(gone), |n| n == gone), None);
        }
        assert_eq!(numbers.len(), 0);
        assert!(numbers.slots.iter().all(|slot| *slot == 0));
    }

    proptest! {
        #[test]
        fn a_growing_index_is_a_set(changes in proptest::collection::vec((any::<bool>(), 0_u32..2000), 1..4000)) {
            let hash = |n: u32| u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let (mut index, mut model) = (Growing::new(), BTreeSet::new());
            for (is_new, number) in changes {
                if is_new && model.insert(number) {
                    index.insert(hash(number), number, hash);
                } else if !is_new && model.remove(&number) {
                    index.remove(hash(number), number, hash);
                }
                prop_assert_eq!(index.len(), model.len());
            }
            for number in 0..2000 {
                let found = index.find(hash(number), |n| n == number);
                prop_assert_eq!(found.is_some(), model.contains(&number), "{}", number);
            }
        }
    }
}
