//! The raw writer: appends numbered records of all lengths and syncs each; now and then a new file begins and an old one goes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::crash::stamp::Sizes;
use crate::crash::verdict::Verdict;

const SIZES: Sizes = Sizes { usual: 3_000, long: 70_000, longest: 1_300_000 };

/// Records of one file.
const FILE_RECORDS: u64 = 256;

/// Files that are kept, the newest one among them.
const FILES_KEPT: u64 = 3;

/// A write is there up to a multiple of this in the file, or in full: the kernel may hand it over page by page.
const PAGE_BYTES: u64 = 4096;

fn path(dir: &Path, file: u64) -> PathBuf {
    dir.join(format!("records-{file}"))
}

fn offset(number: u64) -> u64 {
    let first = number / FILE_RECORDS * FILE_RECORDS;
    (first..number).map(|earlier| SIZES.stamp_bytes(earlier) as u64).sum()
}

/// Appends from record `first` on until something fails.
pub(super) fn work(
    dir: &Path,
    first: u64,
    sync: bool,
    tell: &mut dyn FnMut(u64) -> io::Result<()>,
) -> Result<()> {
    let mut at = offset(first);
    let mut file = open(dir, first, at)?;
    for number in first.. {
        if number % FILE_RECORDS == 0 {
            at = 0;
            file = open(dir, number, at)?;
            let old = (number / FILE_RECORDS).checked_sub(FILES_KEPT);
            if let Some(old) = old.map(|old| path(dir, old)).filter(|old| old.exists()) {
                std::fs::remove_file(old).context("remove an old file")?;
            }
        }
        let bytes = SIZES.stamp(number);
        file.write_all_at(&bytes, at).context("append a record")?;
        at += bytes.len() as u64;
        match number % 2 {
            _ if !sync => {}
            0 => file.sync_data().context("fdatasync")?,
            _ => file.sync_all().context("fsync")?,
        }
        tell(number).context("tell the witness")?;
    }
    Ok(())
}

/// The file that record `number` goes into, without what a crash left behind its last whole record.
fn open(dir: &Path, number: u64, len: u64) -> Result<File> {
    let path = path(dir, number / FILE_RECORDS);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    file.set_len(len).context("cut what was not acknowledged")?;
    Ok(file)
}

/// Demands that records up to `acknowledged` (not included) are there.
pub(super) fn check(dir: &Path, acknowledged: u64) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let newest = acknowledged / FILE_RECORDS;
    let mut number = newest.saturating_sub(FILES_KEPT - 1) * FILE_RECORDS;
    loop {
        let path = path(dir, number / FILE_RECORDS);
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        let (n_whole, rest) = count(&bytes, number);
        let next = number + n_whole;
        let must = acknowledged.min(number + FILE_RECORDS);
        verdict.lost += must.saturating_sub(next);
        if let Some(what) = wrong_with(rest, bytes.len() - rest.len(), next) {
            verdict.damage.push(format!("{}: {what}", path.display()));
        }
        if n_whole < FILE_RECORDS && next >= acknowledged || next < must {
            verdict.next = next;
            verdict.survivors = next.saturating_sub(acknowledged);
            return Ok(verdict);
        }
        number = next;
    }
}

/// Whole records from `first` on, at most one file of them, and the bytes behind them.
fn count(bytes: &[u8], first: u64) -> (u64, &[u8]) {
    let mut rest = bytes;
    for number in first..first + FILE_RECORDS {
        let len = SIZES.stamp_bytes(number);
        if rest.len() < len || rest[..len] != SIZES.stamp(number) {
            return (number - first, rest);
        }
        rest = &rest[len..];
    }
    (FILE_RECORDS, rest)
}

/// What no crash explains in the bytes behind the last whole record, of which `next` would be the first.
fn wrong_with(rest: &[u8], at: usize, next: u64) -> Option<String> {
    if rest.is_empty() {
        return None;
    }
    let stamp = SIZES.stamp(next);
    let at = at as u64;
    if next.is_multiple_of(FILE_RECORDS) && at > 0 {
        return Some(format!("{} bytes behind the last record", rest.len()));
    }
    if rest.len() >= stamp.len() || rest != &stamp[..rest.len()] {
        return Some(format!(
            "{} bytes at {at} that nobody wrote there, instead of record {next}",
            rest.len()
        ));
    }
    let ends_inside_a_page = !(at + rest.len() as u64).is_multiple_of(PAGE_BYTES);
    ends_inside_a_page
        .then(|| format!("record {next} at {at} is torn: {} of {} bytes", rest.len(), stamp.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(n: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut left = n;
        let stopped = work(dir.path(), 0, false, &mut |_| {
            left -= 1;
            if left == 0 { Err(io::Error::other("enough")) } else { Ok(()) }
        });
        assert!(stopped.is_err());
        dir
    }

    #[test]
    fn what_is_there_is_counted_over_files() {
        let dir = written(1000);
        let verdict = check(dir.path(), 1000).unwrap();
        assert_eq!((verdict.lost, verdict.next, verdict.survivors), (0, 1000, 0));
        assert!(verdict.damage.is_empty(), "{:?}", verdict.damage);
        assert_eq!(check(dir.path(), 990).unwrap().survivors, 10);
        assert_eq!(check(dir.path(), 1003).unwrap().lost, 3);
        assert!(!path(dir.path(), 0).exists() && path(dir.path(), 1).exists());
    }

    #[test]
    fn a_file_that_ends_early_has_lost_and_one_with_strange_bytes_is_damaged() {
        let dir = written(10);
        let file = File::options().write(true).open(path(dir.path(), 0)).unwrap();
        file.set_len(offset(9) + 5).unwrap();
        let verdict = check(dir.path(), 10).unwrap();
        assert_eq!((verdict.lost, verdict.next), (1, 9));
        assert_eq!(verdict.damage.len(), 1, "torn inside a page: {:?}", verdict.damage);
        file.set_len(offset(9)).unwrap();
        file.set_len(offset(9) + 100).unwrap();
        assert_eq!(check(dir.path(), 9).unwrap().damage.len(), 1, "zeros that nobody wrote");
        file.write_all_at(b"?", offset(3) + 60).unwrap();
        assert_eq!(check(dir.path(), 9).unwrap().lost, 6);
    }
}
