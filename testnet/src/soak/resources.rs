//! What a daemon takes: memory, open files, threads, disk.

use std::fmt::{self, Display, Formatter};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::nodes::Node;
use crate::process::{self, field};

/// Resident memory of a daemon, at most.
const RSS_MIB_MAX: u64 = 400;
/// Its open files.
const FILES_MAX: u64 = 2000;
/// Its threads; 256 of them may wait for disks and peers.
const THREADS_MAX: u64 = 400;
/// Logs of all volumes of a node. A checkpoint drops what it replaces when a log has grown to 256 MiB.
const LOG_MIB_MAX: u64 = 3 << 10;
/// The disposable index.
const INDEX_MIB_MAX: u64 = 512;

/// One look at one daemon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    pub(super) rss_mib: u64,
    pub(super) files: u64,
    pub(super) threads: u64,
    pub(super) packs_mib: u64,
    pub(super) log_mib: u64,
    pub(super) index_mib: u64,
}

impl Taken {
    /// Looks at the daemon of a node, and at its disk.
    pub(super) fn by(node: &Node) -> Result<Taken> {
        Ok(Taken {
            packs_mib: used(&node.data().join("packs")) >> 20,
            log_mib: used(&node.data().join("volumes")) >> 20,
            index_mib: used(&node.data().join("index")) >> 20,
            ..Taken::live(node)?
        })
    }

    /// Looks at the daemon alone: quick.
    pub(super) fn live(node: &Node) -> Result<Taken> {
        let pid = node.pid().with_context(|| format!("{}'s daemon is gone", node.name))?;
        let status = process::status(pid)?;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).context("list a daemon's files")?.count();
        Ok(Taken {
            rss_mib: field(&status, "VmRSS:").context("no VmRSS")? >> 10,
            files: files as u64,
            threads: field(&status, "Threads:").context("no Threads")?,
            ..Taken::default()
        })
    }

    /// An error that says which bound is passed.
    pub(super) fn check(&self, packs_mib_max: u64) -> Result<()> {
        let bounds = [
            ("MiB of memory", self.rss_mib, RSS_MIB_MAX),
            ("open files", self.files, FILES_MAX),
            ("threads", self.threads, THREADS_MAX),
            ("MiB of packs", self.packs_mib, packs_mib_max),
            ("MiB of logs", self.log_mib, LOG_MIB_MAX),
            ("MiB of index", self.index_mib, INDEX_MIB_MAX),
        ];
        for (what, taken, most) in bounds {
            if taken > most {
                bail!("{taken} {what}, {most} are allowed");
            }
        }
        Ok(())
    }

    /// The greater of two looks, each figure by itself.
    pub(super) fn max(self, other: Taken) -> Taken {
        Taken {
            rss_mib: self.rss_mib.max(other.rss_mib),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
            packs_mib: self.packs_mib.max(other.packs_mib),
            log_mib: self.log_mib.max(other.log_mib),
            index_mib: self.index_mib.max(other.index_mib),
        }
    }
}

impl Display for Taken {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MiB, {} files, {} threads; packs {}, logs {}, index {} MiB",
            self.rss_mib, self.files, self.threads, self.packs_mib, self.log_mib, self.index_mib
        )
    }
}

/// Bytes that the blocks below a directory take; what vanishes meanwhile is not counted.
pub(super) fn used(dir: &Path) -> u64 {
    let Ok(list) = std::fs::read_dir(dir) else { return 0 };
    list.flatten()
        .filter_map(|entry| entry.metadata().ok().map(|meta| (entry.path(), meta)))
        .map(|(path, meta)| if meta.is_dir() { used(&path) } else { meta.blocks() * 512 })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_read_as_printed() {
        let status = "Name:\tremora\nVmRSS:\t  204800 kB\nThreads:\t31\n";
        assert_eq!((field(status, "VmRSS:"), field(status, "Threads:")), (Some(204_800), Some(31)));
    }

    #[test]
    fn a_passed_bound_is_named() {
        let taken = Taken { files: FILES_MAX + 1, ..Taken::default() };
        assert!(taken.check(1).unwrap_err().to_string().contains("open files"));
        Taken::default().check(1).unwrap();
    }
}
