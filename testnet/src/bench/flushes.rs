//! How often the disk was told to make its cache durable: what shows that an fsync is one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Which of the numbers in a block device's `stat` counts flushes, from 0.
const FLUSHES_FIELD: usize = 15;

/// The counter of one block device.
pub(super) struct Flushes {
    stat: PathBuf,
}

impl Flushes {
    /// The device below a directory; `None` if it has none that counts (a network or memory file system).
    pub(super) fn below(dir: &Path) -> Option<Flushes> {
        let device = rustix::fs::stat(dir).ok()?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        let flushes = Flushes { stat };
        flushes.count().ok().map(|_| flushes)
    }

    /// How many there were.
    pub(super) fn count(&self) -> Result<u64> {
        let text =
            std::fs::read_to_string(&self.stat).with_context(|| format!("read {}", self.stat.display()))?;
        parse(&text).with_context(|| format!("{} counts no flushes", self.stat.display()))
    }
}

fn parse(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(FLUSHES_FIELD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_sixteenth_number_counts_flushes() {
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 77 17\n"), Some(77));
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11\n"), None);
    }
}
