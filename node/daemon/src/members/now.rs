//! The clocks of the shell; everything that decides takes them as arguments.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as this host believes. For people and for the registry's hybrid clock, never for safety.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds of a clock that never jumps and goes on while the host sleeps: leases are measured with it.
pub(crate) fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let millis = now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000);
    u64::try_from(millis).unwrap_or(0)
}

/// A time as RFC 3339 in UTC, to the second.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let time = UNIX_EPOCH + std::time::Duration::from_secs(unix_ms / 1000);
    humantime::format_rfc3339_seconds(time).to_string()
}
