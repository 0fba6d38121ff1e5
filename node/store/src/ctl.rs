//! A small record that is replaced as a whole: two 4 KiB slots in one file.
//!
//! What always holds: a `put` that returned is there after any crash. It writes the older slot, syncs, and then writes the other one
//! too: a crash leaves at least one good slot, and afterwards the loss of either slot to a bad sector takes nothing back. (With
//! one copy, a rotten newest slot would silently turn a promise back to the one before.)

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::fault::DiskFault;
use crate::frame::{u32_at, u64_at};
use crate::layout::{SLOT_VERSION, unfinished_name};

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 4096;
/// Bytes the record may take when encoded.
pub const RECORD_BYTES_MAX: usize = SLOT_BYTES - HEAD_BYTES;

const MAGIC: [u8; 4] = *b"RmCt";
const HEAD_BYTES: usize = 24;
const CRC_AT: usize = 20;

/// Why a record cannot be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Neither slot proves itself. Nothing may be assumed in its place: what was promised is unknown.
    #[error("both slots of {} are damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer version of this program; upgrade.
    #[error("{} has version {found}; this program knows versions up to {SLOT_VERSION}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u16,
    },
    /// The record does not fit a slot, or cannot be encoded.
    #[error("record for {} does not fit a slot", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// An earlier write or sync failed; final.
    #[error("{} closed after a failure: {reason}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// The first failure.
        reason: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskFault),
}

/// A record on disk and in memory.
pub struct Slots<T> {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    state: Mutex<State<T>>,
    record: PhantomData<T>,
}

struct State<T> {
    value: T,
    generation: u64,
    /// Which slot is written first by the next put.
    older: usize,
    failed: Option<String>,
}

impl<T: Serialize + DeserializeOwned + Clone> Slots<T> {
    /// Makes the file with a first record; durable, its name included, when it returns. An existing file is replaced.
    pub fn create(disk: &dyn Disk, path: &Path, value: &T) -> Result<Slots<T>, SlotsError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        disk.create_dir_all(dir).map_err(DiskFault::at("make directory", dir))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let unfinished = path.with_file_name(unfinished_name(&name));
        match disk.remove(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiskFault::at("remove unfinished record", &unfinished)(error).into());
            }
            _ => {}
        }
        let slot = encode(path, 1, value)?;
        let file = disk
            .open(&unfinished, OpenMode::CreateNew)
            .map_err(DiskFault::at("create record", &unfinished))?;
        file.pwrite(0, &[&slot, &slot])
            .and_then(|()| file.sync_data())
            .and_then(|()| disk.rename(&unfinished, path))
            .and_then(|()| disk.sync_dir(dir))
            .map_err(DiskFault::at("write record", path))?;
        Ok(Slots::assemble(path, file, value.clone(), 1, 0))
    }

    /// Opens the file and takes the newest slot that proves itself; repairs the other one.
    ///
    /// # Errors
    /// [`SlotsError::Missing`], [`SlotsError::Damaged`], [`SlotsError::Newer`].
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Slots<T>, SlotsError> {
        let file = disk.open(path, OpenMode::ReadWrite).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => SlotsError::Missing { path: path.to_path_buf() },
            _ => DiskFault::at("open record", path)(source).into(),
        })?;
        let bytes = file.read_vec(0, 2 * SLOT_BYTES).map_err(DiskFault::at("read record", path))?;
        let mut best: Option<(usize, u64, T)> = None;
        let mut generations = [None; 2];
        for (i, slot) in bytes.chunks(SLOT_BYTES).enumerate().take(2) {
            match decode::<T>(slot) {
                Ok((generation, value)) => {
                    generations[i] = Some(generation);
                    if best.as_ref().is_none_or(|best| generation > best.1) {
                        best = Some((i, generation, value));
                    }
                }
                Err(SlotFault::Newer(found)) => {
                    return Err(SlotsError::Newer { path: path.to_path_buf(), found });
                }
                Err(SlotFault::Damaged) => {}
            }
        }
        let (newest, generation, value) = best.ok_or(SlotsError::Damaged { path: path.to_path_buf() })?;
        let slots = Slots::assemble(path, file, value, generation, 1 - newest);
        if generations[0] != generations[1] {
            let slot = encode(path, generation, &slots.state.lock().value)?;
            if generations[1 - newest].is_some() {
                // The put of the newest may have failed: it can be read then, and is not on the disk, and the other one is.
                slots.write(newest, &slot)?;
            }
            slots.write(1 - newest, &slot)?;
        }
        // The name that a killed process gave it may be in memory alone.
        let dir = path.parent().unwrap_or(Path::new("."));
        disk.sync_dir(dir).map_err(DiskFault::at("sync directory", dir))?;
        Ok(slots)
    }

    /// Opens the file, or makes it with a first record if it does not exist.
    pub fn open_or_create(
        disk: &dyn Disk,
        path: &Path,
        first: impl FnOnce() -> T,
    ) -> Result<Slots<T>, SlotsError> {
        match Slots::open(disk, path) {
            Err(SlotsError::Missing { .. }) => Slots::create(disk, path, &first()),
            other => other,
        }
    }

    /// The record.
    pub fn get(&self) -> T {
        self.state.lock().value.clone()
    }

    /// Replaces the record; durable when it returns. After an error the record on disk is the old one or the new one, and the file is
    /// closed for writing.
    ///
    /// # Errors
    /// [`SlotsError::TooLarge`] changes nothing; [`SlotsError::Failed`] is final.
    pub fn put(&self, value: &T) -> Result<(), SlotsError> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.failed {
            return Err(SlotsError::Failed { path: self.path.clone(), reason: reason.clone() });
        }
        let slot = encode(&self.path, state.generation + 1, value)?;
        let first = state.older;
        for i in [first, 1 - first] {
            if let Err(error) = self.write(i, &slot) {
                state.failed = Some(error.to_string());
                return Err(error);
            }
        }
        state.generation += 1;
        state.older = 1 - first;
        state.value = value.clone();
        Ok(())
    }

    fn assemble(path: &Path, file: Arc<dyn DiskFile>, value: T, generation: u64, older: usize) -> Slots<T> {
        let state = Mutex::new(State { value, generation, older, failed: None });
        Slots { path: path.to_path_buf(), file, state, record: PhantomData }
    }

    fn write(&self, i: usize, slot: &[u8]) -> Result<(), SlotsError> {
        self.file
            .pwrite((i * SLOT_BYTES) as u64, &[slot])
            .and_then(|()| self.file.sync_data())
            .map_err(|error| DiskFault::at("write record", &self.path)(error).into())
    }
}

enum SlotFault {
    Damaged,
    Newer(u16),
}

fn encode<T: Serialize>(path: &Path, generation: u64, value: &T) -> Result<Vec<u8>, SlotsError> {
    let too_large = || SlotsError::TooLarge { path: path.to_path_buf() };
    let record = postcard::to_stdvec(value).map_err(|_| too_large())?;
    if record.len() > RECORD_BYTES_MAX {
        return Err(too_large());
    }
    let mut out = Vec::with_capacity(SLOT_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&SLOT_VERSION.to_le_bytes());
    out.extend_from_slice(&(record.len() as u16).to_le_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    out.resize(HEAD_BYTES, 0);
    out.extend_from_slice(&record);
    out.resize(SLOT_BYTES, 0);
    let crc = crc32c::crc32c(&out);
    out[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

fn decode<T: DeserializeOwned>(slot: &[u8]) -> Result<(u64, T), SlotFault> {
    if slot.len() != SLOT_BYTES || slot[..4] != MAGIC {
        return Err(SlotFault::Damaged);
    }
    let mut blank = slot.to_vec();
    blank[CRC_AT..HEAD_BYTES].fill(0);
    if crc32c::crc32c(&blank) != u32_at(slot, CRC_AT) {
        return Err(SlotFault::Damaged);
    }
    let version = u16::from_le_bytes([slot[4], slot[5]]);
    if version > SLOT_VERSION {
        return Err(SlotFault::Newer(version));
    }
    let len = usize::from(u16::from_le_bytes([slot[6], slot[7]]));
    let record = slot.get(HEAD_BYTES..HEAD_BYTES + len).ok_or(SlotFault::Damaged)?;
    let value = postcard::from_bytes(record).map_err(|_| SlotFault::Damaged)?;
    Ok((u64_at(slot, 8), value))
}
