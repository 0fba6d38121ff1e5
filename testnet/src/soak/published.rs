//! Files published by writing a new one, fsync and rename: a name shows a whole version, none older than acknowledged.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ledger::{RECORD_BYTES, record};
use crate::soak::part::Part;
use crate::soak::turn::{Load, Turn};

/// Names that are published, in turn.
const N_NAMES: u64 = 64;

/// Records of the longest version.
const RECORDS_MAX: u64 = 200;

/// Between versions, in a gentle turn.
const PAUSE: Duration = Duration::from_millis(50);

/// The load.
pub(super) struct Published {
    /// The number of the version that is acknowledged as the last; 0 for none.
    acknowledged: u64,
}

impl Published {
    /// Nothing is published yet.
    pub(super) fn new() -> Published {
        Published { acknowledged: 0 }
    }
}

impl Load for Published {
    fn name(&self) -> &'static str {
        "published"
    }

    fn work(&mut self, dir: &Path, turn: &Turn) -> Result<String> {
        let dir = dir.join("published");
        std::fs::create_dir_all(&dir).context("make the directory of published files")?;
        let before = self.acknowledged;
        let first = (before + 1).to_string();
        let pause = turn.pause(PAUSE).as_millis().to_string();
        let args = ["publish".as_ref(), dir.as_os_str(), first.as_ref(), pause.as_ref()];
        let ended = Part::start(&args, before)?.run_until_over(turn)?;
        self.acknowledged = ended.acknowledged;
        Ok(format!("{} versions", self.acknowledged - before))
    }

    fn check(&mut self, dir: &Path, _was_killed: bool) -> Result<String> {
        let dir = dir.join("published");
        let mut newest = self.acknowledged;
        for slot in 0..N_NAMES {
            let wanted = newest_of(slot, self.acknowledged);
            let path = name(&dir, slot);
            let found = match File::open(&path) {
                Ok(_) => version_in(&path)?,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
                Err(e) => return Err(e).with_context(|| format!("open {}", path.display())),
            };
            ensure!(
                found >= wanted && (found == 0 || found % N_NAMES == slot),
                "{} shows version {found}, {wanted} was acknowledged",
                path.display()
            );
            // The writer is one ahead of what it was told, and so is the version that nobody acknowledged.
            ensure!(found <= self.acknowledged + 1, "{} shows version {found} of the future", path.display());
            newest = newest.max(found);
        }
        self.acknowledged = newest;
        Ok(format!("{newest} published"))
    }
}

/// The newest version up to `last` that goes under this name; 0 for none.
fn newest_of(slot: u64, last: u64) -> u64 {
    let behind = (last % N_NAMES + N_NAMES - slot) % N_NAMES;
    last.saturating_sub(behind)
}

fn name(dir: &Path, slot: u64) -> PathBuf {
    dir.join(format!("name-{slot}"))
}

fn records_of(version: u64) -> u64 {
    version.wrapping_mul(0x9E37_79B9_7F4A_7C15) % RECORDS_MAX + 1
}

/// The version that a whole file holds.
fn version_in(path: &Path) -> Result<u64> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let number = bytes.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let version = number.with_context(|| format!("{} holds {} bytes", path.display(), bytes.len()))?;
    let records = records_of(version);
    ensure!(
        bytes.len() as u64 == records * RECORD_BYTES as u64
            && bytes.chunks(RECORD_BYTES).all(|chunk| chunk == record(version)),
        "{} says version {version}, which is {records} records, and is not ({} bytes)",
        path.display(),
        bytes.len()
    );
    Ok(version)
}

/// The part: publishes versions from `first` on until something fails, printing each that is acknowledged.
pub(super) fn publish(dir: &Path, first: u64, pause: Duration) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for version in first.. {
        let fresh = dir.join("fresh");
        let mut file = File::create(&fresh).context("create a version")?;
        let one = record(version);
        // In pieces of different lengths, as programs write.
        let whole = one.repeat(usize::try_from(records_of(version))?);
        for piece in whole.chunks(usize::try_from(version % 61 + 1)? * 977) {
            file.write_all(piece).context("write a version")?;
        }
        file.sync_all().context("fsync a version")?;
        std::fs::rename(&fresh, name(dir, version % N_NAMES)).context("publish a version")?;
        // What was done to the file before is durable, the name that leads to it included.
        file.sync_all().context("fsync after the rename")?;
        writeln!(out, "{version}").and_then(|()| out.flush()).context("tell the rig")?;
        std::thread::sleep(pause);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_knows_its_newest_version() {
        assert_eq!(newest_of(3, 3), 3);
        assert_eq!(newest_of(3, 66), 3);
        assert_eq!(newest_of(3, 67), 67);
        assert_eq!(newest_of(5, 3), 0);
    }

    #[test]
    fn a_lost_and_a_torn_version_are_caught() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("published");
        std::fs::create_dir(&root).unwrap();
        let mut load = Published { acknowledged: 2 };
        let put = |version: u64, cut: usize| {
            let bytes = record(version).repeat(records_of(version) as usize);
            std::fs::write(name(&root, version % N_NAMES), &bytes[..bytes.len() - cut]).unwrap();
        };
        put(1, 0);
        assert!(load.check(dir.path(), true).is_err(), "version 2 is lost");
        put(2, 1);
        assert!(load.check(dir.path(), true).is_err(), "version 2 is torn");
        put(2, 0);
        put(3, 0);
        load.check(dir.path(), true).unwrap();
        assert_eq!(load.acknowledged, 3, "what nobody acknowledged may be there");
    }
}
