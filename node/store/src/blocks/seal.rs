//! Sealing full packs: their table of contents goes behind their blocks once those are durable.
//!
//! What always holds: a pack gets its seal after its blocks were made durable, and after every full pack before it got a durable one.
//! So a sound trailer proves that the blocks before it are durable, and of all sealed packs only the last may lose its seal in a crash.
//! A pack that cannot be sealed, because the disk is full, waits and is tried again; the index never covers what comes behind it, so
//! that the next open looks at it, too.

use std::sync::Arc;

use crate::blocks::{Append, Shared};
use crate::fault::DiskFault;
use crate::index::{BlockPlace, Covered, Digest};
use crate::pack::{Pack, PackEnd};
use crate::reserve::from_reserve;
use crate::scan::mark_of;

/// A pack that is full and has no seal yet.
pub(super) struct FullPack {
    pub(super) pack: Arc<Pack>,
    /// Where its blocks end.
    pub(super) end: PackEnd,
    /// Its table of contents.
    pub(super) entries: Vec<(Digest, BlockPlace)>,
    /// Blocks written since the store was opened when it was full: all of its own, and more.
    pub(super) n_written: u64,
    /// Whether the first block of the next pack names its last one, or will: that proves it complete without its seal.
    pub(super) is_named: bool,
}

impl FullPack {
    /// Where its blocks end, as a position.
    pub(super) fn mark(&self) -> u64 {
        mark_of(self.pack.number, self.end.at)
    }

    /// All of it, and nothing behind it.
    pub(super) fn covered(&self) -> Covered {
        Covered { pack: self.pack.number, offset: self.end.at, salt: self.pack.salt }
    }
}

impl Append {
    /// What a frame that is written now says to be durable. Never more than what a later open can see to be complete: it would take a
    /// pack that has neither a seal nor a block that names its last one for damaged.
    pub(super) fn claim(&self) -> u64 {
        let unproved = self.full.iter().filter(|full| !full.is_named).map(|full| full.mark());
        unproved.fold(self.synced, u64::min)
    }
}

impl Shared {
    /// Seals what is full and durable, the oldest first; each seal is durable when the next pack gets its own.
    ///
    /// # Errors
    /// The first pack that could not be sealed waits, with those behind it. A sync that fails closes the store for writing.
    pub(super) fn seal_full(&self) -> Result<(), DiskFault> {
        let _one_at_a_time = self.sealing.lock();
        loop {
            let Some(full) = self.append.lock().full.front().cloned() else { return Ok(()) };
            if self.group.failed().is_some() || self.group.durable() < full.n_written {
                return Ok(());
            }
            self.seal(&full)?;
            self.append.lock().full.pop_front();
            // It is only read from here on.
            if let Some(known) = self.packs.write().get_mut(&(full.pack.number as u32)) {
                *known = Arc::new(full.pack.lazily(&self.files));
            }
        }
    }

    /// As [`Shared::seal_full`], for whom it does not matter now. Not sealed is slower to open and not swept, not wrong.
    pub(super) fn seal_full_or_later(&self) {
        told(self.seal_full());
    }

    /// As [`Shared::seal_full_or_later`], with what is set aside for a full disk.
    pub(super) fn seal_full_from_reserve(&self) {
        told(from_reserve(|| self.relieve(), DiskFault::is_full, || self.seal_full()));
    }

    fn seal(&self, full: &FullPack) -> Result<(), DiskFault> {
        let pack = &full.pack;
        if let Err(error) = pack.seal(full.end, full.mark(), &full.entries) {
            self.take_back(pack, full.end.at);
            return Err(DiskFault::at("seal pack", &pack.path)(error));
        }
        let synced = pack.file.sync_data().map_err(DiskFault::at("sync sealed pack", &pack.path));
        synced.inspect_err(|fault| self.group.fail(fault.to_string().into()))
    }
}

fn told(sealed: Result<(), DiskFault>) {
    if let Err(error) = sealed {
        tracing::warn!(%error, "a full pack has no table of contents yet");
    }
}
