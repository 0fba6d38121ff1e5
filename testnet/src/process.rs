//! What the kernel says of a process.

use anyhow::{Context, Result};

/// `/proc/PID/status` of a daemon.
pub(crate) fn status(pid: u32) -> Result<String> {
    std::fs::read_to_string(format!("/proc/{pid}/status")).context("read a daemon's status")
}

/// The number in the line of a status that begins with `name`, its colon included; memory is in KiB.
pub(crate) fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
