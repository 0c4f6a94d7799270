//! Which bytes of a fragmented packet have come: fragments must not overlap (RFC 5722, RFC 1858, RFC 3128), or what passed
//! here is not what the receiver puts together.
//!
//! A fragment that comes again is harmless. When a packet has come whole its list is begun anew, since in IPv4 another packet
//! may soon have the same identification (RFC 6864 section 3.1); a second copy of all its fragments is as good as that.

use crate::wire::Fragment;

/// What there can be of one packet: 64 KiB at an MTU of 576 come in 119.
pub const MAX_PIECES: usize = 128;

/// The fragments of one packet that have come.
#[derive(Debug, Default)]
pub struct Pieces {
    /// First byte and one past the last one; without overlaps, in order.
    ranges: Vec<(u16, u16)>,
    /// Where the packet ends, once the last fragment has come.
    end: Option<u16>,
}

/// What a fragment is among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Fits,
    /// It was there already.
    Again,
    Overlaps,
    /// There are as many already as are followed.
    TooMany,
}

impl Pieces {
    /// Fragments that are on the list.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn note(&mut self, fragment: &Fragment) -> Piece {
        // The parser has seen that it ends at 65535 at most, and that it has at least one byte.
        let range = (fragment.offset, fragment.offset.saturating_add(fragment.len));
        let at = self.ranges.partition_point(|known| known.0 < range.0);
        if self.ranges.get(at) == Some(&range) {
            let is_same_end = fragment.more != (self.end == Some(range.1));
            return if is_same_end { Piece::Again } else { Piece::Overlaps };
        }
        let before = at.checked_sub(1).map_or(0, |before| self.ranges[before].1);
        let after = self.ranges.get(at).map_or(u16::MAX, |after| after.0);
        let furthest = self.ranges.last().map_or(0, |last| last.1);
        let beyond_end = match self.end {
            Some(end) => range.1 > end || !fragment.more,
            None => !fragment.more && range.1 < furthest,
        };
        if range.0 < before || range.1 > after || beyond_end {
            return Piece::Overlaps;
        }
        if self.ranges.len() == MAX_PIECES {
            return Piece::TooMany;
        }
        self.ranges.insert(at, range);
        if !fragment.more {
            self.end = Some(range.1);
        }
        if self.is_whole() {
            *self = Pieces::default();
        }
        Piece::Fits
    }

    fn is_whole(&self) -> bool {
        let Some(end) = self.end else { return false };
        let bytes: u32 = self.ranges.iter().map(|(from, to)| u32::from(to - from)).sum();
        bytes == u32::from(end)
    }

    #[cfg(test)]
    fn check(&self) {
        assert!(self.ranges.len() <= MAX_PIECES);
        assert!(self.ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(self.ranges.iter().all(|(from, to)| from < to && self.end.is_none_or(|end| *to <= end)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn fragment(offset: u16, len: u16, more: bool) -> Fragment {
        Fragment { id: 1, offset, len, more }
    }

    #[test]
    fn what_overlaps_is_told_from_what_comes_again() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.note(&fragment(0, 1480, true)), Piece::Fits);
        assert_eq!(pieces.note(&fragment(2960, 100, false)), Piece::Fits);
        assert_eq!(pieces.note(&fragment(0, 1480, true)), Piece::Again);
        assert_eq!(pieces.note(&fragment(2960, 100, false)), Piece::Again);
        for (offset, len, more) in [
            (0, 8, true),
            (0, 1472, true),
            (0, 1488, true),
            (1472, 16, true),
            (1480, 1488, true),
            (2960, 8, true),
            (2960, 100, true),
            // Behind the end, or another end.
            (3064, 8, true),
            (3064, 8, false),
            (1480, 8, false),
        ] {
            assert_eq!(pieces.note(&fragment(offset, len, more)), Piece::Overlaps, "{offset} {len} {more}");
        }
        assert_eq!(pieces.note(&fragment(1480, 1480, true)), Piece::Fits);
        // It is whole: the next packet may be cut otherwise.
        assert_eq!(pieces.note(&fragment(0, 800, true)), Piece::Fits);
    }

    #[test]
    fn there_are_no_more_than_that() {
        let mut pieces = Pieces::default();
        for number in 0..MAX_PIECES as u16 {
            assert_eq!(pieces.note(&fragment(16 + number * 16, 8, true)), Piece::Fits);
        }
        assert_eq!(pieces.note(&fragment(8, 8, true)), Piece::TooMany);
        assert_eq!(pieces.note(&fragment(16, 8, true)), Piece::Again);
        assert_eq!(pieces.len(), MAX_PIECES);
        let longest = fragment(65_528, 7, false);
        assert_eq!(Pieces::default().note(&longest), Piece::Fits);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bytes_tell_the_same(fragments in vec((0u16..64, 1u16..12, any::<bool>()), 1..60)) {
            let mut pieces = Pieces::default();
            // Whose bytes they are, by units of 8.
            let mut taken: Vec<Fragment> = Vec::new();
            for (offset, len, more) in fragments {
                let fragment = fragment(offset * 8, len * 8, more);
                let same = |known: &Fragment| (known.offset, known.len, known.more) == (fragment.offset, fragment.len, more);
                let end = |f: &Fragment| u32::from(f.offset) + u32::from(f.len);
                let overlaps = |known: &Fragment| {
                    (u32::from(known.offset) < end(&fragment) && u32::from(fragment.offset) < end(known))
                        || (!known.more && end(&fragment) > end(known))
                        || (!more && end(known) > end(&fragment))
                        || (!more && !known.more)
                };
                let expected = match () {
                    () if taken.iter().any(same) => Piece::Again,
                    () if taken.iter().any(overlaps) => Piece::Overlaps,
                    () => Piece::Fits,
                };
                prop_assert_eq!(pieces.note(&fragment), expected);
                pieces.check();
                if expected == Piece::Fits {
                    taken.push(fragment);
                    let bytes: u32 = taken.iter().map(|f| u32::from(f.len)).sum();
                    if taken.iter().any(|f| !f.more && end(f) == bytes) {
                        taken.clear();
                    }
                }
            }
        }
    }
}
