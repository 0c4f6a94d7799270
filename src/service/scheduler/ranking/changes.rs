//! Which servers of a service have changed since somebody looked.
//!
//! One [`Changes`] belongs to a service for as long as there is one of that name and VIP, whatever snapshot it is in; each
//! server's load, state and path hold a [`Mark`] to it. Whoever changes what a pick depends on sets the mark *after* the change;
//! whoever picks takes the marks away *before* it looks. Both are read-modify-write operations on one word, with release and
//! acquire, so a change is either seen by the look or leaves its mark for the next one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::tree::Tree;

const WORDS: usize = 64;
/// Servers have places modulo this; two that share one are looked at together.
pub(super) const PLACES: usize = WORDS * 64;

/// The marks of one service's servers, and the tree that goes by them.
#[derive(Debug)]
pub struct Changes {
    /// Whether anybody goes by the marks: nobody sets them otherwise.
    is_watched: AtomicBool,
    /// A bit for each word that is not 0.
    summary: AtomicU64,
    words: [AtomicU64; WORDS],
    claims: AtomicU64,
    tree: Mutex<Tree>,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes {
            is_watched: AtomicBool::new(false),
            summary: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
            claims: AtomicU64::new(0),
            tree: Mutex::default(),
        }
    }
}

impl Changes {
    /// A number of the caller's own, from 1 on. From now on marks are set.
    pub(super) fn claim(&self) -> u64 {
        self.is_watched.store(true, Ordering::SeqCst);
        self.claims.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Marks are taken away only by who holds this.
    pub(super) fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all marks away and tells their places.
    pub(super) fn take(&self, mut place: impl FnMut(usize)) {
        if self.summary.load(Ordering::Relaxed) == 0 {
            return;
        }
        for word in ones(self.summary.swap(0, Ordering::Acquire)) {
            for bit in ones(self.words[word].swap(0, Ordering::Acquire)) {
                place(word * 64 + bit);
            }
        }
    }

    fn set(&self, place: usize) {
        let (word, bit) = (place / 64, place % 64);
        self.words[word].fetch_or(1 << bit, Ordering::Release);
        // Also where the word had marks: whoever made them may not have come to the summary yet.
        self.summary.fetch_or(1 << word, Ordering::Release);
    }
}

fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < 64).then_some(bit as usize)
    })
}

/// One server's place among the [`Changes`] of its service; by default it has none.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    of: Option<Arc<Changes>>,
    place: u16,
}

impl Mark {
    /// `number` should differ from those of the other servers.
    pub(in crate::service) fn new(of: &Arc<Changes>, number: u32) -> Mark {
        Mark { of: Some(of.clone()), place: (number as usize % PLACES) as u16 }
    }

    /// Something about the server has changed.
    #[inline]
    pub(in crate::service) fn set(&self) {
        if let Some(changes) = &self.of
            && changes.is_watched.load(Ordering::Relaxed)
        {
            changes.set(usize::from(self.place));
        }
    }

    pub(super) fn changes(&self) -> Option<&Arc<Changes>> {
        self.of.as_ref()
    }

    pub(super) fn place(&self) -> usize {
        usize::from(self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(changes: &Changes) -> Vec<usize> {
        let mut places = Vec::new();
        changes.take(|place| places.push(place));
        places
    }

    #[test]
    fn marks_are_taken_once() {
        let changes = Arc::new(Changes::default());
        let marks = [4095_u32, 0, 63, 64, 4096 + 70].map(|number| Mark::new(&changes, number));
        marks.iter().for_each(Mark::set);
        assert!(taken(&changes).is_empty(), "nobody watches");
        changes.claim();
        marks.iter().chain(&marks).for_each(Mark::set);
        assert_eq!(taken(&changes), [0, 63, 64, 70, 4095]);
        assert!(taken(&changes).is_empty());
        marks[0].set();
        assert_eq!(taken(&changes), [4095]);
        Mark::default().set();
    }

    #[test]
    fn a_mark_does_not_wait_for_another() {
        let changes = Arc::new(Changes::default());
        changes.claim();
        // Somebody is between the word and the summary.
        changes.words[1].fetch_or(1, Ordering::Release);
        assert!(taken(&changes).is_empty());
        Mark::new(&changes, 65).set();
        assert_eq!(taken(&changes), [64, 65]);
    }

    #[test]
    fn no_mark_is_lost_between_threads() {
        let changes = Arc::new(Changes::default());
        changes.claim();
        let counts: Vec<AtomicU64> = (0..130).map(|_| AtomicU64::new(0)).collect();
        let mut seen = [0; 130];
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        for number in (0..130_u32).cycle().take(40_000) {
                            counts[number as usize].fetch_add(1, Ordering::Relaxed);
                            Mark::new(&changes, number).set();
                        }
                    })
                })
                .collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                changes.take(|place| seen[place] = counts[place].load(Ordering::Relaxed));
            }
        });
        changes.take(|place| seen[place] = counts[place].load(Ordering::Relaxed));
        let counts: Vec<u64> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(seen.to_vec(), counts);
    }
}
