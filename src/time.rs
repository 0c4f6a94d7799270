//! The engine's clock, as a plain number that its caller hands in.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point in time, in microseconds since an origin that the caller chose (daemon start, first packet of a capture, 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    pub const ZERO: Instant = Instant(0);

    pub const fn from_micros(micros: u64) -> Instant {
        Instant(micros)
    }

    pub const fn from_millis(millis: u64) -> Instant {
        Instant(millis * 1_000)
    }

    pub const fn from_secs(secs: u64) -> Instant {
        Instant(secs * 1_000_000)
    }

    /// Microseconds since the origin.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the origin.
    pub const fn millis(self) -> u64 {
        self.0 / 1_000
    }

    /// The time that has passed since `earlier`; zero when `earlier` lies ahead.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of time (584,000 years).
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;

    fn sub(self, rhs: Instant) -> Duration {
        self.since(rhs)
    }
}
