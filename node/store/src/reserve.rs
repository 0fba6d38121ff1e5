//! Bytes of the disk that stay ours when others fill it: a file of allocated space, cut piece by piece when something has to be
//! written that gives back more.
//!
//! What always holds: the file holds nothing, and may be removed at any time; its length is what is allocated. On a file system that
//! cannot allocate there is none.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::fault::is_full;

/// It is given up in this many pieces, none smaller than [`PIECE_BYTES_MIN`].
const PIECES: u64 = 8;
const PIECE_BYTES_MIN: u64 = 4 << 20;

/// Less than this is not worth a call.
const FILL_BYTES_MIN: u64 = 1 << 20;

/// A reserve of bytes on one disk.
pub struct Reserve {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    wanted: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    file: Option<Arc<dyn DiskFile>>,
    bytes: u64,
    /// It was left by an earlier process, and may be a hole.
    is_unproven: bool,
    /// The file system allocates nothing.
    is_refused: bool,
}

impl Reserve {
    /// Takes up what an earlier process left at `path`, as it is: what was set aside is changed by [`Reserve::fill`] first.
    pub fn open(disk: Arc<dyn Disk>, path: &Path, wanted: u64) -> Reserve {
        let mut held = Held::default();
        if wanted == 0 {
            // Most often it is not there.
            let _gone = disk.remove(path);
        } else if let Ok(file) = disk.open(path, OpenMode::ReadWrite) {
            held.bytes = file.len().unwrap_or(0).min(wanted);
            held.is_unproven = true;
            held.file = Some(file);
        }
        Reserve { disk, path: path.to_path_buf(), wanted, held: Mutex::new(held) }
    }

    /// Bytes that are allocated now.
    pub fn bytes(&self) -> u64 {
        self.held.lock().bytes
    }

    /// Allocates what is missing, as far as `keep_free` bytes of the disk stay free beside it.
    pub fn fill(&self, keep_free: u64) {
        let mut held = self.held.lock();
        prove(&mut held);
        let missing = self.wanted - held.bytes;
        if missing == 0 || held.is_refused {
            return;
        }
        let Ok(free) = self.disk.free_bytes(self.dir()) else { return };
        let more = missing.min(free.saturating_sub(keep_free));
        if more < FILL_BYTES_MIN.min(missing) {
            return;
        }
        if let Err(error) = self.extend(&mut held, more) {
            held.is_refused = !is_full(&error);
            tracing::debug!(path = %self.path.display(), %error, "no space is set aside");
        }
    }

    fn extend(&self, held: &mut Held, more: u64) -> io::Result<()> {
        let file = match &held.file {
            Some(file) => file.clone(),
            None => held.file.insert(self.disk.open(&self.path, OpenMode::CreateNew)?).clone(),
        };
        let extended = file.allocate(held.bytes + more);
        match extended {
            Ok(()) => held.bytes += more,
            // What was allocated of it goes back.
            Err(_) => file.set_len(held.bytes)?,
        }
        extended
    }

    /// Gives up a piece; answers whether there was one. Others may take it before the caller does.
    pub fn give(&self) -> bool {
        let mut held = self.held.lock();
        let Some(file) = held.file.clone().filter(|_| held.bytes > 0) else { return false };
        let piece = (self.wanted / PIECES).max(PIECE_BYTES_MIN).min(held.bytes);
        let left = held.bytes - piece;
        // Some file systems reuse space only after what freed it is on disk.
        if let Err(error) = file.set_len(left).and_then(|()| file.sync_data()) {
            tracing::warn!(path = %self.path.display(), %error, "no space can be taken from the reserve");
            return false;
        }
        held.bytes = left;
        tracing::info!(left, "the disk is full: {piece} bytes of the reserve are used");
        true
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

/// Attempts something again and again while the disk is full for it and `relieve` gives up a piece of what is set aside.
///
/// # Errors
/// Of the last attempt.
pub fn from_reserve<T, E>(
    relieve: impl Fn() -> bool,
    is_full: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match attempt() {
            Err(error) if is_full(&error) && relieve() => {}
            other => return other,
        }
    }
}

/// Sees to it that what an earlier process left is allocated: a copy of a data directory may have a hole instead.
fn prove(held: &mut Held) {
    let Some(file) = held.file.clone().filter(|_| std::mem::take(&mut held.is_unproven)) else { return };
    if file.set_len(held.bytes).and_then(|()| file.allocate(held.bytes)).is_err() {
        held.bytes = 0;
    }
}

impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve")
            .field("path", &self.path)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn what_is_set_aside_is_given_up_piece_by_piece_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let reserve = Reserve::open(Arc::new(RealDisk), &path, 10 << 20);
        assert_eq!(reserve.bytes(), 0);
        assert!(!reserve.give(), "there is nothing to give");
        reserve.fill(0);
        if reserve.bytes() == 0 {
            // This file system allocates nothing.
            return;
        }
        assert_eq!((reserve.bytes(), path.metadata().unwrap().len()), (10 << 20, 10 << 20));
        assert!(reserve.give());
        assert_eq!((reserve.bytes(), path.metadata().unwrap().len()), (6 << 20, 6 << 20));
        drop(reserve);
        let left = path.metadata().unwrap().modified().unwrap();
        let reserve = Reserve::open(Arc::new(RealDisk), &path, 10 << 20);
        assert_eq!(reserve.bytes(), 6 << 20);
        assert_eq!(
            path.metadata().unwrap().modified().unwrap(),
            left,
            "a start that is refused changes nothing"
        );
        assert!(reserve.give() && reserve.give() && !reserve.give());
        assert_eq!(path.metadata().unwrap().len(), 0);
    }

    #[test]
    fn nothing_is_set_aside_of_what_is_to_stay_free() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(Arc::new(RealDisk), &dir.path().join("reserve"), 10 << 20);
        reserve.fill(u64::MAX);
        assert_eq!(reserve.bytes(), 0);
    }
}
