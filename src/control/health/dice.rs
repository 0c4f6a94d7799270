//! Random times.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Throws numbers that need not be secret, and are others with each start of the gateway.
#[derive(Debug, Default)]
pub struct Dice {
    seed: RandomState,
    thrown: u64,
}

impl Dice {
    /// Between nothing and `whole`.
    pub fn part_of(&mut self, whole: Duration) -> Duration {
        self.thrown += 1;
        let thrown = self.seed.hash_one(self.thrown) >> 32;
        let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(((u128::from(micros) * u128::from(thrown)) >> 32) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_lie_within_and_differ() {
        let mut dice = Dice::default();
        let whole = Duration::from_secs(1);
        let thrown: Vec<Duration> = (0..1000).map(|_| dice.part_of(whole)).collect();
        assert!(thrown.iter().all(|time| *time < whole));
        let mean = thrown.iter().sum::<Duration>() / 1000;
        assert!((400..600).contains(&mean.as_millis()), "{mean:?}");
        assert_eq!(dice.part_of(Duration::ZERO), Duration::ZERO);
    }
}
