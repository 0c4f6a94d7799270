//! What all lanes of one address use together. Strangers can make many lanes, and whoever looks holds up the packets.

/// Thousandths in which is counted how full a lane is.
const FULL: usize = 1000;

/// Sums over lanes, and how many of them are how full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Ports that are live, that are in quarantine, and that there are.
    pub ports: [u64; 3],
    /// Lanes by how much of their ports is taken, in thousandths.
    lanes: Box<[u32]>,
    /// The highest of these that there is.
    fullest: usize,
}

impl Default for Usage {
    fn default() -> Usage {
        Usage { ports: [0; 3], lanes: vec![0; FULL + 1].into_boxed_slice(), fullest: 0 }
    }
}

impl Usage {
    /// How much is taken of the lane of which most is, in thousandths.
    pub fn fullest(&self) -> u16 {
        self.fullest as u16
    }

    /// There is no lane.
    pub fn is_empty(&self) -> bool {
        self.lanes[self.fullest] == 0
    }

    pub(super) fn enter(&mut self, counts: [u64; 3]) {
        for (sum, count) in self.ports.iter_mut().zip(counts) {
            *sum += count;
        }
        let at = fullness(counts);
        self.lanes[at] += 1;
        self.fullest = self.fullest.max(at);
    }

    pub(super) fn leave(&mut self, counts: [u64; 3]) {
        self.take_out(counts);
        self.descend();
    }

    pub(super) fn change(&mut self, before: [u64; 3], after: [u64; 3]) {
        self.take_out(before);
        self.enter(after);
        self.descend();
    }

    fn take_out(&mut self, counts: [u64; 3]) {
        for (sum, count) in self.ports.iter_mut().zip(counts) {
            *sum -= count;
        }
        self.lanes[fullness(counts)] -= 1;
    }

    /// A lane changes by one port at a time: what is to be looked for is near.
    fn descend(&mut self) {
        while self.fullest > 0 && self.lanes[self.fullest] == 0 {
            self.fullest -= 1;
        }
    }
}

fn fullness([live, waiting, size]: [u64; 3]) -> usize {
    ((live + waiting).min(size) * FULL as u64 / size.max(1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_lane_is_known() {
        let mut usage = Usage::default();
        assert!(usage.is_empty());
        usage.enter([0, 0, 10]);
        usage.enter([0, 0, 4000]);
        usage.change([0, 0, 10], [3, 2, 10]);
        usage.change([0, 0, 4000], [2400, 0, 4000]);
        assert_eq!((usage.ports, usage.fullest()), ([2403, 2, 4010], 600));
        usage.change([2400, 0, 4000], [4, 0, 4000]);
        assert_eq!(usage.fullest(), 500);
        // Ports of a former range may be more than there are now.
        usage.change([3, 2, 10], [3, 2, 4]);
        assert_eq!(usage.fullest(), 1000);
        usage.leave([3, 2, 4]);
        assert_eq!((usage.fullest(), usage.is_empty()), (1, false));
        usage.leave([4, 0, 4000]);
        assert_eq!(usage, Usage::default());
        assert!(usage.is_empty());
    }
}
