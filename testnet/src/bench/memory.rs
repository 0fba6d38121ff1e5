//! How much memory a daemon takes for a volume of some size.

use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::trees::make_files;
use crate::nodes::cluster;
use crate::process::{self, field};
use crate::workload::noise_file;

/// Files of the volume.
const N_FILES: u64 = 100_000;

/// Bytes of each; together with the large file, a gibibyte.
const FILE_BYTES: usize = 4096;

/// MiB the daemon holds after a volume of 1 GiB with 100,000 files was written, and after it was mounted again and listed.
pub(super) fn daemon_mib(scratch: &Path) -> Result<(u64, u64)> {
    let mut node = cluster(scratch, &["memory"])?.pop().context("one name makes one node")?;
    node.ok(&["volume", "create", "memory"])?;
    let dir = node.mount("memory")?;
    make_files(&dir.join("files"), N_FILES, FILE_BYTES)?;
    noise_file(&dir.join("large"), (1 << 30) - N_FILES * FILE_BYTES as u64, 3, &|_| ())?;
    let written = resident_mib(node.pid().context("the daemon is gone")?)?;
    node.stop()?;
    node.start()?;
    let dir = node.mount("memory")?;
    list(&dir)?;
    let listed = resident_mib(node.pid().context("the daemon is gone")?)?;
    Ok((written, listed))
}

fn list(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            list(&entry.path())?;
        }
    }
    Ok(())
}

/// `VmRSS` of a process.
pub(super) fn resident_mib(pid: u32) -> Result<u64> {
    parse(&process::status(pid)?).context("the daemon's status has no VmRSS")
}

fn parse(status: &str) -> Option<u64> {
    field(status, "VmRSS:").map(|kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn resident_memory_is_read_as_printed() {
        assert_eq!(parse("Name:\tx\nVmRSS:\t  204800 kB\n"), Some(200));
        assert_eq!(parse("Name:\tx\n"), None);
    }
}
