//! The registry: an append-only list of opaque entries, durable when an append returns, compacted by snapshot.
//!
//! Pins, members and the volume catalogue live here as CRDT entries; what they mean is known elsewhere. Appends of several threads
//! share one sync.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::file_header::FileKind;
use crate::frame::{FrameKind, FrameMeta};
use crate::log::{Log, LogError, LogOptions, Recovery, VisitError};

/// An open registry.
pub struct Registry {
    log: Log,
    next_seq: Mutex<u64>,
}

impl Registry {
    /// Opens the registry in `dir`, making it if it is missing, and shows every entry in order.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), VisitError>,
    ) -> Result<(Registry, Recovery), LogError> {
        let options =
            LogOptions { segment_bytes_max: 16 << 20, ..LogOptions::new(FileKind::Registry, [0; 16]) };
        Registry::open_with(disk, dir, options, visit)
    }

    /// As [`Registry::open`], with segments of other sizes.
    pub fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LogOptions,
        visit: &mut dyn FnMut(&[u8]) -> Result<(), VisitError>,
    ) -> Result<(Registry, Recovery), LogError> {
        let (log, recovery) = Log::open(disk, dir, options, &mut |view| visit(view.payload))?;
        let next_seq = log.tail().map_or(1, |tail| tail.seq + 1);
        Ok((Registry { log, next_seq: Mutex::new(next_seq) }, recovery))
    }

    /// Appends an entry; durable when it returns.
    ///
    /// # Errors
    /// [`LogError::Full`] and [`LogError::TooLarge`] leave the registry as it was; [`LogError::Failed`] is final.
    pub fn append(&self, entry: &[u8]) -> Result<(), LogError> {
        self.append_all(&[entry])
    }

    /// Appends entries in order; all durable when it returns. A crash may leave the first of them only.
    ///
    /// # Errors
    /// As [`Registry::append`]; entries before the one refused may have been appended.
    pub fn append_all(&self, entries: &[&[u8]]) -> Result<(), LogError> {
        {
            let mut next_seq = self.next_seq.lock();
            for entry in entries {
                self.log.append(&meta(*next_seq), &[entry])?;
                *next_seq += 1;
            }
        }
        self.log.sync()
    }

    /// Replaces all entries by those of `entries`, atomically and durably. Appends wait meanwhile; the iterator must yield the state at
    /// the time it is run, so it should read that state then.
    ///
    /// # Errors
    /// As [`Registry::append`]; the old entries stay.
    pub fn compact(&self, entries: &mut dyn Iterator<Item = Vec<u8>>) -> Result<(), LogError> {
        let mut next_seq = self.next_seq.lock();
        let mut seq = *next_seq;
        let result = self.log.replace_all(&mut entries.map(|entry| {
            seq += 1;
            (meta(seq - 1), entry)
        }));
        if result.is_ok() {
            *next_seq = seq;
        }
        result
    }

    /// Bytes of the entries on disk; grows until [`Registry::compact`].
    pub fn bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// Why the registry is closed for writing, if it is.
    pub fn failed(&self) -> Option<Arc<str>> {
        self.log.failed()
    }

    /// Marks a clean end.
    pub fn close(&self) -> Result<(), LogError> {
        self.log.close()
    }
}

fn meta(seq: u64) -> FrameMeta {
    FrameMeta { kind: FrameKind::ENTRY, term: 0, seq, codec: 0, digest: [0; 32] }
}
