//! How long a writer may believe in itself and how long keepers refuse others. Politeness only: safety is in the terms.
//!
//! Times are CLOCK_BOOTTIME, which goes on during suspend; each host uses its own and none is ever sent.

use std::ops::Add;

/// A moment of this host's CLOCK_BOOTTIME, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to this; 0 if it is later.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Millis {
    type Output = Millis;

    fn add(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }
}

/// The three times of a lease, in milliseconds. A keeper's is longer than a writer's, by what clocks may differ in rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long after sending a renewal that was answered the writer believes in it.
    pub writer_ms: u64,
    /// How long after receiving a renewal a keeper refuses others.
    pub keeper_ms: u64,
    /// How often the writer renews.
    pub renew_ms: u64,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        LeaseTimes { writer_ms: 10_000, keeper_ms: 12_000, renew_ms: 2_500 }
    }
}
