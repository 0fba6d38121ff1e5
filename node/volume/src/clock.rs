//! The clocks of a volume: one that only goes forward, to cut commits by; one that says what time it is, to stamp them.
//!
//! Always holds: no decision about what is durable, or about who may write, is made from either of them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use remora_vfs::attr::Timestamp;

/// Where a volume reads the time.
pub trait Clock: Send + Sync + 'static {
    /// Time since some fixed moment of this process; never goes back.
    fn elapsed(&self) -> Duration;

    /// The time of day.
    fn now(&self) -> Timestamp;
}

/// The clocks of the machine.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}
