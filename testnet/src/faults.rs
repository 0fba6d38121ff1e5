//! `remora-testnet faults`: the disk below a node is full, or fails, in the middle of work.

mod failed;
mod full;
mod parts;
mod postgres;
mod untar;

use anyhow::Result;

use crate::exe;
use crate::report::Report;

/// What is run, and how much of it.
#[derive(Clone, Copy)]
pub struct Options {
    /// The disk fills up under pgbench and under an untar.
    pub full_disk: bool,
    /// Writes and flushes of the disk fail.
    pub failed_fsync: bool,
    /// Smaller loads.
    pub is_short: bool,
}

/// Runs what was asked for, or everything. Leaves nothing behind.
pub fn run(options: Options) -> Result<()> {
    exe::check_fuse()?;
    let is_all = !options.full_disk && !options.failed_fsync;
    if options.full_disk || is_all {
        let mut report = Report::new("A full disk");
        untar::run(&mut report, options.is_short)?;
        full::run(&mut report, options.is_short)?;
        report.close();
    }
    if options.failed_fsync || is_all {
        let mut report = Report::new("A disk that fails");
        failed::run(&mut report, options.is_short)?;
        parts::run(&mut report)?;
        report.close();
    }
    Ok(())
}
