//! The witness outside the system: what was acknowledged, so that it can be demanded back after a crash.
//!
//! A writer appends numbered, checksummed records to a file on a volume and fsyncs; the number counts as acknowledged only
//! when fsync returned, and is told through a pipe to a process that the crash does not touch. Afterwards the file must hold
//! an unbroken run of records at least as long as the last acknowledged one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::exe;

/// Bytes of one record: 8 of its number, 32 of digest, the rest derived from the number.
pub const RECORD_BYTES: usize = 512;

/// The record with this number.
#[must_use]
pub fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0u8; RECORD_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    for (at, byte) in bytes.iter_mut().enumerate().skip(40) {
        *byte = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (at % 57)) as u8;
    }
    let digest: [u8; 32] =
        Sha256::new().chain_update(&bytes[..8]).chain_update(&bytes[40..]).finalize().into();
    bytes[8..40].copy_from_slice(&digest);
    bytes
}

/// The writer's side, in a process of its own: appends and fsyncs from record `first` on until something fails, printing each
/// acknowledged number on a line.
pub fn write_records(path: &Path, first: u64) -> Result<()> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .context("open the record file")?;
    let mut out = std::io::stdout().lock();
    for number in first.. {
        file.write_all_at(&record(number), number * RECORD_BYTES as u64).context("write a record")?;
        file.sync_data().context("fsync a record")?;
        writeln!(out, "{number}").and_then(|()| out.flush()).context("tell the witness")?;
    }
    Ok(())
}

/// Counts the unbroken run of good records from the start; an error if what follows is neither absent nor an unacknowledged tail.
pub fn read_records(path: &Path) -> Result<u64> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .with_context(|| format!("read {}", path.display()))?;
    let mut count = 0u64;
    for chunk in bytes.chunks(RECORD_BYTES) {
        if chunk != record(count) {
            break;
        }
        count += 1;
    }
    let whole = bytes.len() / RECORD_BYTES;
    ensure!(
        whole as u64 <= count + 1,
        "record {count} of {} is damaged though later ones exist (file of {} bytes)",
        path.display(),
        bytes.len()
    );
    Ok(count)
}

/// A record writer at work, and the count of what it was told is safe.
pub struct Writer {
    child: Child,
    acknowledged: Arc<AtomicU64>,
    listener: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Writer {
    /// Starts a process that appends records to `path`, going on after `already` records.
    pub fn start(path: &Path, already: u64) -> Result<Writer> {
        let mut child = Command::new(exe::path()?)
            .arg("write-records")
            .arg(path)
            .arg(already.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start the record writer")?;
        let lines = BufReader::new(child.stdout.take().context("the writer has no output")?);
        let acknowledged = Arc::new(AtomicU64::new(already));
        let count = Arc::clone(&acknowledged);
        let listener = std::thread::spawn(move || {
            for line in lines.lines() {
                let Ok(number) = line.unwrap_or_default().parse::<u64>() else { break };
                count.store(number + 1, Ordering::SeqCst);
            }
        });
        Ok(Writer { child, acknowledged, listener: Some(listener), path: path.to_path_buf() })
    }

    /// How many records are acknowledged by now.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Whether it ended by itself: something it was told failed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.listener.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The file it writes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the writer if it has not ended, and answers how many records were acknowledged in all.
    pub fn finish(mut self) -> Result<u64> {
        let _gone = self.child.kill();
        self.child.wait().context("wait for the record writer")?;
        if let Some(listener) = self.listener.take() {
            let _joined = listener.join();
        }
        Ok(self.acknowledged())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(records: &[u64], cut: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = records.iter().flat_map(|n| record(*n)).collect();
        std::fs::write(file.path(), &bytes[..bytes.len() - cut]).unwrap();
        file
    }

    #[test]
    fn an_unbroken_run_is_counted_and_a_torn_tail_is_not() {
        assert_eq!(read_records(file_of(&[0, 1, 2], 0).path()).unwrap(), 3);
        assert_eq!(read_records(file_of(&[0, 1, 2], 100).path()).unwrap(), 2);
    }

    #[test]
    fn a_lost_record_in_the_middle_is_caught() {
        assert!(read_records(file_of(&[0, 7, 2, 3], 0).path()).is_err());
    }
}
