//! Hybrid logical clock: timestamps that follow the wall clock and never run backwards against what was seen.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks" (2014).

use serde::{Deserialize, Serialize};

/// How far ahead of our own wall clock another host's timestamp may be, in milliseconds.
pub const DRIFT_MS_MAX: u64 = 60_000;

const COUNTER_BITS: u32 = 16;
const UNIX_MS_MAX: u64 = (1 << (64 - COUNTER_BITS)) - 1;

/// One timestamp: 48 bits of milliseconds since 1970, 16 bits of counter. Ordered by time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The wall-clock part, milliseconds since 1970.
    pub fn unix_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    fn at(unix_ms: u64) -> Self {
        Hlc(unix_ms.min(UNIX_MS_MAX) << COUNTER_BITS)
    }
}

/// A timestamp from a host whose clock is ahead of ours by more than [`DRIFT_MS_MAX`], or ours is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a timestamp is {ahead_ms} ms ahead of this host's clock: check the clocks of both hosts")]
pub struct DriftError {
    /// How far ahead, in milliseconds.
    pub ahead_ms: u64,
}

/// The clock of one host: the highest timestamp it made or saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HybridClock {
    last: Hlc,
}

impl HybridClock {
    /// A new timestamp, higher than every one made or seen before. If the wall clock went back, it counts on from the
    /// last one; the counter overflows into the milliseconds.
    pub fn tick(&mut self, now_unix_ms: u64) -> Hlc {
        self.last = Hlc::at(now_unix_ms).max(Hlc(self.last.0.saturating_add(1)));
        self.last
    }

    /// Takes note of another host's timestamp.
    ///
    /// # Errors
    /// It is too far ahead; the clock is as before. Refuse what carries it.
    pub fn observe(&mut self, seen: Hlc, now_unix_ms: u64) -> Result<(), DriftError> {
        let ahead_ms = seen.unix_ms().saturating_sub(now_unix_ms);
        if ahead_ms > DRIFT_MS_MAX {
            return Err(DriftError { ahead_ms });
        }
        self.last = self.last.max(seen);
        Ok(())
    }

    /// Takes note of a timestamp of our own past, whatever the wall clock says.
    pub fn restore(&mut self, seen: Hlc) {
        self.last = self.last.max(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::{DRIFT_MS_MAX, Hlc, HybridClock};
    use proptest::prelude::{any, prop_assert, proptest};

    proptest! {
        #[test]
        fn ticks_only_go_up(times in proptest::collection::vec(any::<u64>(), 1..50)) {
            let mut clock = HybridClock::default();
            let mut before = Hlc::default();
            for now in times {
                let tick = clock.tick(now >> 20);
                prop_assert!(tick > before);
                before = tick;
            }
        }
    }

    #[test]
    fn a_tick_is_after_what_was_seen_even_if_our_clock_is_behind() {
        let mut clock = HybridClock::default();
        let seen = Hlc(Hlc::at(5_000).0 + 3);
        assert_eq!(clock.observe(seen, 4_000), Ok(()));
        assert!(clock.tick(4_000) > seen);
        assert_eq!(clock.tick(6_000).unix_ms(), 6_000);
    }

    #[test]
    fn a_timestamp_from_the_future_is_refused_and_forgotten() {
        let mut clock = HybridClock::default();
        assert!(clock.observe(Hlc::at(1_000 + DRIFT_MS_MAX), 1_000).is_ok());
        let mut clock = HybridClock::default();
        assert!(clock.observe(Hlc::at(1_001 + DRIFT_MS_MAX), 1_000).is_err());
        assert_eq!(clock.tick(1_000).unix_ms(), 1_000);
    }
}
