//! Where the bytes of a stream go that a helper rewrites.
//!
//! # Theory of operation
//!
//! A [`Stream`] is one direction of a connection. It has two numberings: the *sender's*, and the *receiver's*, in which the
//! same bytes stand elsewhere because text before them was replaced by longer or shorter text. A `Change` says that so
//! many bytes from a place on gave way to a text. All changes together are a function from the one numbering to the other,
//! [`Stream::place`], which never goes back: what the sender sends from `a` to `b`, whole or in pieces, again or for the
//! first time, fills exactly `place(a)` to `place(b)`. So retransmissions need no rule of their own, whatever their
//! boundaries. [`Stream::source`] goes the other way, for acknowledgements: the furthest place that has surely arrived.
//!
//! A change may take bytes and give nothing. That is how part of a line waits for its rest: the part is taken, the sender
//! is acknowledged for it (by whatever the receiver acknowledges next, for there both places are one), and the whole text
//! is given in place of what ends the line. Nothing is ever sent by a timer, and the sender, which still has the end of the
//! line, sees to it that the text arrives.
//!
//! A change is kept until the receiver has acknowledged all that it gave. From then on it is a mere shift: what the
//! sender may still repeat from before it is old to the receiver wherever it falls, as long as it falls before what was
//! acknowledged, and it does.
//!
//! Linux keeps two offsets and the place between them (`net/netfilter/nf_conntrack_seqadj.c`), and rewrites a repeated
//! line by finding it again, which fails for a line that is repeated in other pieces.

/// Changes of a stream that wait for their acknowledgement, at most.
const MAX_CHANGES: usize = 16;

/// So many bytes of the sender's became others.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    /// The first of them, as the sender counts; and how many, 1 or more.
    at: u32,
    taken: u32,
    given: Vec<u8>,
    /// The byte before them.
    before: u8,
}

/// One direction of a connection.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// What the changes before the first one kept have added, in all.
    shift: u32,
    /// In their order.
    changes: Vec<Change>,
}

impl Stream {
    /// Whether its bytes go where their sender put them.
    pub fn is_untouched(&self) -> bool {
        self.shift == 0 && self.changes.is_empty()
    }

    /// How many more changes it can take.
    pub fn room(&self) -> usize {
        MAX_CHANGES.saturating_sub(self.changes.len())
    }

    /// Replaces `taken` bytes from `at` on, behind all that has been changed before. `before` is the byte before them.
    /// Without room they stay as they are.
    pub fn replace(&mut self, at: u32, taken: u32, given: Vec<u8>, before: u8) {
        if taken == 0 {
            return;
        }
        if let Some(last) = self.changes.last_mut()
            && last.given.is_empty()
            && given.is_empty()
            && last.at.wrapping_add(last.taken) == at
        {
            last.taken += taken;
            return;
        }
        if self.room() > 0 {
            self.changes.push(Change { at, taken, given, before });
        }
    }

    /// Where the receiver has what the sender has at `at`.
    pub fn place(&self, at: u32) -> u32 {
        let mut shift = self.shift;
        for change in &self.changes {
            let into = distance(change.at, at);
            if into <= 0 {
                break;
            }
            let (into, given) = (into.unsigned_abs(), change.given.len() as u32);
            if into < change.taken {
                return change.at.wrapping_add(shift).wrapping_add(into.min(given));
            }
            shift = shift.wrapping_add(given).wrapping_sub(change.taken);
        }
        at.wrapping_add(shift)
    }

    /// The furthest place of the sender's before which everything has come, when the receiver has everything before `at`.
    pub fn source(&self, at: u32) -> u32 {
        let mut shift = self.shift;
        for change in &self.changes {
            let into = distance(change.at.wrapping_add(shift), at);
            if into < 0 {
                break;
            }
            let (into, given) = (into.unsigned_abs(), change.given.len() as u32);
            if into < given {
                return change.at.wrapping_add(into.min(change.taken - 1));
            }
            shift = shift.wrapping_add(given).wrapping_sub(change.taken);
        }
        at.wrapping_sub(shift)
    }

    /// A block that the receiver has, as the sender knows it; empty or less when nothing of it is whole.
    pub fn block(&self, left: u32, right: u32) -> (u32, u32) {
        let source = self.source(left);
        let is_within = distance(self.place(source), left) > 0;
        (source.wrapping_add(u32::from(is_within)), self.source(right))
    }

    /// What `bytes`, which the sender has from `at` on, are to the receiver; `None`: the same. They begin at
    /// [`Stream::place`] of `at`.
    pub fn rewritten(&self, at: u32, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut done = 0usize;
        let mut out = Vec::new();
        let mut is_changed = false;
        for change in &self.changes {
            let start = distance(at, change.at);
            let end = start.wrapping_add(change.taken as i32);
            if end <= 0 || start >= bytes.len() as i32 {
                continue;
            }
            is_changed = true;
            let (from, to) = (usize::try_from(start).unwrap_or(0), (end as usize).min(bytes.len()));
            out.extend_from_slice(bytes.get(done..from).unwrap_or_default());
            let first = usize::try_from(-start).unwrap_or(0).min(change.given.len());
            let last = match to == end as usize {
                true => change.given.len(),
                false => usize::try_from(bytes.len() as i32 - start).unwrap_or(0).min(change.given.len()),
            };
            out.extend_from_slice(change.given.get(first..last).unwrap_or_default());
            done = to;
        }
        out.extend_from_slice(bytes.get(done..).unwrap_or_default());
        is_changed.then_some(out)
    }

    /// The byte that the receiver has before all that was taken at `at` and gave nothing.
    pub fn before(&self, at: u32) -> Option<u8> {
        let takes = |change: &&Change| (0..change.taken as i32).contains(&distance(change.at, at));
        self.changes.iter().find(takes).filter(|change| change.given.is_empty()).map(|change| change.before)
    }

    /// The receiver has everything before `at`.
    pub fn acknowledged(&mut self, at: u32) {
        let mut done = 0;
        for change in &self.changes {
            let given = change.given.len() as u32;
            let end = change.at.wrapping_add(self.shift).wrapping_add(given);
            if distance(end, at) < 0 {
                break;
            }
            self.shift = self.shift.wrapping_add(given).wrapping_sub(change.taken);
            done += 1;
        }
        self.changes.drain(..done);
    }
}

/// How far `to` lies ahead of `from` in sequence space; negative when it lies behind.
pub fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}
