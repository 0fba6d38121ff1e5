//! How much of everything a run does.

use std::path::PathBuf;

/// Sizes and counts, equal for all who are compared.
pub(super) struct Scale {
    /// Commits that are timed one by one.
    pub(super) commits: u64,
    /// Size of the large file.
    pub(super) large_mib: u64,
    /// Random reads: some for each page, or what is measured is how a processor's caches get warm.
    pub(super) random_reads: u64,
    /// SQLite transactions.
    pub(super) transactions: u64,
    /// Seconds of pgbench.
    pub(super) pgbench_secs: u64,
    /// Files that are created.
    pub(super) files: u64,
    /// What is unpacked.
    pub(super) archive: PathBuf,
}

/// Files in the archive, at least.
pub(super) fn archive_files(is_short: bool) -> u64 {
    if is_short { 1500 } else { 6000 }
}

impl Scale {
    /// The long form is what the goals are about.
    pub(super) fn new(is_short: bool, archive: PathBuf) -> Scale {
        if is_short {
            Scale {
                commits: 100,
                large_mib: 128,
                random_reads: 50_000,
                transactions: 100,
                pgbench_secs: 3,
                files: 2000,
                archive,
            }
        } else {
            Scale {
                commits: 400,
                large_mib: 512,
                random_reads: 400_000,
                transactions: 400,
                pgbench_secs: 10,
                files: 10_000,
                archive,
            }
        }
    }
}
