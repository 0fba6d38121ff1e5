//! Rename-replace: a new version is written beside a document, synced, renamed over it, and the directory is synced.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::crash::stamp::Sizes;
use crate::crash::verdict::Verdict;

const SIZES: Sizes = Sizes { usual: 5_000, long: 100_000, longest: 400_000 };

/// Documents; version `n` is one of document `n % N_DOCUMENTS`.
pub(super) const N_DOCUMENTS: u64 = 6;

/// Replaced without any sync, so never acknowledged: but always whole.
const LOOSE: &str = "loose";

fn path(dir: &Path, document: u64) -> PathBuf {
    dir.join(format!("document-{document}"))
}

/// Makes versions from `first` on until something fails.
pub(super) fn work(
    dir: &Path,
    first: u64,
    sync: bool,
    tell: &mut dyn FnMut(u64) -> io::Result<()>,
) -> Result<()> {
    for version in first.. {
        let to = path(dir, version % N_DOCUMENTS);
        replace(&to, version, sync)?;
        if sync {
            File::open(dir).and_then(|dir| dir.sync_all()).context("sync the directory")?;
        }
        tell(version).context("tell the witness")?;
        if version % 5 == 0 {
            replace(&dir.join(LOOSE), version, false)?;
        }
    }
    Ok(())
}

fn replace(to: &Path, version: u64, sync: bool) -> Result<()> {
    let new = to.with_extension("new");
    let mut file = File::create(&new).context("create a new version")?;
    file.write_all(&SIZES.stamp(version)).context("write a new version")?;
    if sync {
        file.sync_all().context("sync a new version")?;
    }
    std::fs::rename(&new, to).context("rename over the old version")
}

/// Demands of each document its `acknowledged` version or a later one, and that no file is anything but a whole version.
pub(super) fn check(dir: &Path, acknowledged: &[Option<u64>]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for (document, version) in (0u64..).zip(acknowledged) {
        let path = path(dir, document);
        let found = match version_in(&path)? {
            Found::Version(found) if found % N_DOCUMENTS == document => Some(found),
            Found::Nothing => None,
            _ => {
                verdict.damage.push(format!("{} is no whole version", path.display()));
                continue;
            }
        };
        verdict.lost += u64::from(found < *version);
        verdict.survivors += u64::from(found > *version);
        verdict.next = verdict.next.max(found.map_or(0, |found| found + 1));
    }
    if matches!(version_in(&dir.join(LOOSE))?, Found::Damage) {
        verdict.damage.push(format!("{LOOSE}, renamed without a sync, is no whole version"));
    }
    Ok(verdict)
}

enum Found {
    Nothing,
    Damage,
    Version(u64),
}

fn version_in(path: &Path) -> Result<Found> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        Ok(bytes) => Ok(SIZES.number_of(&bytes).map_or(Found::Damage, Found::Version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_version_is_lost_a_new_one_survives_and_a_cut_one_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let stopped = work(dir.path(), 0, false, &mut |n| {
            if n < 12 { Ok(()) } else { Err(io::Error::other("enough")) }
        });
        assert!(stopped.is_err());
        let mut acknowledged = [Some(6), Some(7), Some(8), Some(9), Some(10), Some(11)];
        let verdict = check(dir.path(), &acknowledged).unwrap();
        assert_eq!((verdict.lost, verdict.survivors, verdict.next), (0, 1, 13));
        assert!(verdict.damage.is_empty(), "{:?}", verdict.damage);
        acknowledged[3] = Some(15);
        assert_eq!(check(dir.path(), &acknowledged).unwrap().lost, 1);
        File::options().write(true).open(path(dir.path(), 2)).unwrap().set_len(20).unwrap();
        assert_eq!(check(dir.path(), &acknowledged).unwrap().damage.len(), 1);
        std::fs::write(dir.path().join(LOOSE), "").unwrap();
        assert_eq!(check(dir.path(), &acknowledged).unwrap().damage.len(), 2);
    }
}
