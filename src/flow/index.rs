//! From the hash of a tuple to the flow that has it: open addressing with linear probing in one array of 8-byte entries,
//! so that a lookup costs one cache miss here and one in the flow itself.
//!
//! Sized once for the table's limit at a load of at most one half, and never grown. Removal shifts entries back instead
//! of leaving tombstones; an entry holds enough of its hash to know its home.

/// An entry that holds nothing.
const EMPTY: u64 = 0;

/// `(hash, value)` entries; the value is 31 bits, given by the caller, and told apart by its own comparison.
pub(super) struct Index {
    /// Low half: value + 1; high half: hash.
    entries: Vec<u64>,
    mask: usize,
    len: usize,
}

impl Index {
    /// Room for `max` entries.
    pub fn new(max: usize) -> Index {
        let size = (max * 2).next_power_of_two().max(8);
        Index { entries: vec![EMPTY; size], mask: size - 1, len: 0 }
    }

    /// The addresses of the entries.
    pub fn memory(&self) -> std::ops::Range<usize> {
        let start = self.entries.as_ptr().addr();
        start..start + size_of_val(self.entries.as_slice())
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The value under `hash` for which `is_it` says yes.
    #[inline]
    pub fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        loop {
            let entry = self.entries[at];
            if entry == EMPTY {
                return None;
            }
            if (entry >> 32) as u32 == hash && is_it(entry as u32 - 1) {
                return Some(entry as u32 - 1);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// The caller keeps to the limit given to [`Index::new`] and does not insert a value twice.
    pub fn insert(&mut self, hash: u32, value: u32) {
        let mut at = hash as usize & self.mask;
        while self.entries[at] != EMPTY {
            at = (at + 1) & self.mask;
        }
        self.entries[at] = u64::from(hash) << 32 | u64::from(value + 1);
        self.len += 1;
    }

    /// Takes out the entry of `hash` and `value`; does nothing when there is none.
    pub fn remove(&mut self, hash: u32, value: u32) {
        let wanted = u64::from(hash) << 32 | u64::from(value + 1);
        let mut at = hash as usize & self.mask;
        while self.entries[at] != wanted {
            if self.entries[at] == EMPTY {
                return;
            }
            at = (at + 1) & self.mask;
        }
        self.len -= 1;
        self.close_gap(at);
    }

    /// Moves later entries of the same run into the gap where that brings them nearer to their home (Knuth 6.4,
    /// algorithm R).
    fn close_gap(&mut self, mut gap: usize) {
        let mut at = gap;
        loop {
            at = (at + 1) & self.mask;
            let entry = self.entries[at];
            if entry == EMPTY {
                break;
            }
            let home = (entry >> 32) as usize & self.mask;
            let distance = at.wrapping_sub(home) & self.mask;
            if distance >= at.wrapping_sub(gap) & self.mask {
                self.entries[gap] = entry;
                gap = at;
            }
        }
        self.entries[gap] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowded_homes_survive_removal_in_any_order() {
        let mut index = Index::new(64);
        // Three homes next to each other, at the array's end, so that runs mix and wrap.
        let hash = |n: u32| (126 + n % 3) | (n << 16);
        for n in 0..60 {
            index.insert(hash(n), n);
        }
        for gone in (0..60).map(|n| n * 37 % 60) {
            index.remove(hash(gone), gone);
            assert_eq!(index.find(hash(gone), |v| v == gone), None);
            for other in (0..60).filter(|n| n * 13 % 60 > 58) {
                let _ = index.find(hash(other), |v| v == other);
            }
        }
        assert_eq!(index.len(), 0);
        assert!(index.entries.iter().all(|&e| e == EMPTY));
    }

    #[test]
    fn the_rest_is_still_found_after_each_removal() {
        let mut index = Index::new(128);
        let hash = |n: u32| (n % 7) | (n << 8);
        (0..128).for_each(|n| index.insert(hash(n), n));
        for gone in 0..128 {
            index.remove(hash(gone), gone);
            for n in gone + 1..128 {
                assert_eq!(index.find(hash(n), |v| v == n), Some(n), "after removing {gone}");
            }
        }
    }
}
