//! How many new flows a second: token buckets that hold one second's worth, at least one.
//!
//! A bucket is one number, the time at which it is full again (the generic cell rate algorithm, ITU-T I.371): what is
//! taken moves that time ahead, and it may be a second ahead at most. So there is nothing to refill, a rate that a reload
//! changes holds at once, and shards share a bucket without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Instant;

const SECOND: u64 = 1_000_000_000;

/// A bucket that shards share.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When it is full again, in nanoseconds.
    full: AtomicU64,
}

impl Bucket {
    /// Takes a token, if there is one at `rate` a second.
    pub fn take(&self, now: Instant, rate: u32) -> bool {
        let mut full = self.full.load(Ordering::Relaxed);
        while let Some(after) = taken(full, now, rate) {
            match self.full.compare_exchange_weak(full, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(other) => full = other,
            }
        }
        false
    }

    /// Gives back what was taken at this rate.
    pub fn give_back(&self, rate: u32) {
        self.full.fetch_sub(price(rate), Ordering::Relaxed);
    }

    /// Whether [`Bucket::take`] would have one.
    pub fn has(&self, now: Instant, rate: u32) -> bool {
        taken(self.full.load(Ordering::Relaxed), now, rate).is_some()
    }
}

/// A bucket that is full again at `full`, in nanoseconds, after a token is taken at `now`; `None`: there is none.
#[inline]
pub fn taken(full: u64, now: Instant, rate: u32) -> Option<u64> {
    let now = nanos(now);
    let after = full.max(now).saturating_add(price(rate));
    (after - now <= SECOND).then_some(after)
}

/// `now`, as buckets count.
#[inline]
pub fn nanos(now: Instant) -> u64 {
    now.micros().saturating_mul(1000)
}

/// What a token takes to come back.
#[inline]
pub fn price(rate: u32) -> u64 {
    SECOND / u64::from(rate.max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn takes(bucket: &Bucket, now: Instant, rate: u32) -> usize {
        std::iter::repeat_with(|| bucket.take(now, rate)).take_while(|taken| *taken).take(100_000).count()
    }

    #[test]
    fn a_second_is_worth_the_rate_from_the_start() {
        for rate in [1, 2, 3, 7, 100, 1000, 50_000] {
            let bucket = Bucket::default();
            let mut now = Instant::ZERO;
            assert_eq!(takes(&bucket, now, rate), rate as usize);
            assert!(!bucket.has(now, rate));
            now = now + Duration::from_micros(1_000_001 / u64::from(rate) + 1);
            assert_eq!(takes(&bucket, now, rate), 1, "{rate}: one comes back after its time");
            now = now + Duration::from_secs(3600);
            assert_eq!(takes(&bucket, now, rate), rate as usize, "and no more than a second's worth in any time");
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let bucket = Bucket::default();
        let now = Instant::from_secs(5);
        assert_eq!(takes(&bucket, now, 10), 10);
        bucket.give_back(10);
        assert_eq!(takes(&bucket, now, 10), 1);
    }

    #[test]
    fn threads_together_take_no_more() {
        let bucket = Bucket::default();
        let now = Instant::from_secs(1);
        let all: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| takes(&bucket, now, 5000))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(all, 5000);
    }
}
