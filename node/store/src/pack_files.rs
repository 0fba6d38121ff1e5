//! The open files of packs: a bounded number of them, however many packs there are.
//!
//! What always holds: a pack that is written to, or was since the last sync, keeps its file open, so that no error of the disk is
//! lost with a handle; a pack that is only read may be closed between any two reads and is opened again by the next.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, OpenMode};

/// Instead of a length.
const UNKNOWN: u64 = u64::MAX;

/// The files that are open.
pub(crate) struct PackFiles {
    disk: Arc<dyn Disk>,
    n_max: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    files: HashMap<u64, Entry>,
    /// In the order in which they will be looked at for closing.
    order: VecDeque<u64>,
}

struct Entry {
    file: Arc<dyn DiskFile>,
    is_used: bool,
}

impl PackFiles {
    /// None yet; at most `n_max` besides those that are held open.
    pub(crate) fn new(disk: Arc<dyn Disk>, n_max: usize) -> Arc<PackFiles> {
        Arc::new(PackFiles { disk, n_max: n_max.max(1), open: Mutex::default() })
    }

    /// The file of a pack, opened when it is needed.
    pub(crate) fn lazily(self: &Arc<PackFiles>, number: u64, path: &Path) -> Arc<PackFile> {
        Arc::new(PackFile {
            files: self.clone(),
            number,
            path: path.to_path_buf(),
            held: OnceLock::new(),
            len: AtomicU64::new(UNKNOWN),
        })
    }

    /// Closes the file of a pack that is gone, so that its space is free.
    pub(crate) fn forget(&self, number: u64) {
        let mut open = self.open.lock();
        open.files.remove(&number);
        open.order.retain(|other| *other != number);
    }

    fn get(&self, number: u64, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(entry) = self.open.lock().files.get_mut(&number) {
            entry.is_used = true;
            return Ok(entry.file.clone());
        }
        let file = self.disk.open(path, OpenMode::ReadWrite)?;
        let mut open = self.open.lock();
        if open.files.insert(number, Entry { file: file.clone(), is_used: false }).is_none() {
            open.order.push_back(number);
        }
        while open.files.len() > self.n_max {
            let Some(oldest) = open.order.pop_front() else { break };
            let is_used = open.files.get_mut(&oldest).is_some_and(|entry| std::mem::take(&mut entry.is_used));
            if is_used || oldest == number {
                open.order.push_back(oldest);
            } else {
                open.files.remove(&oldest);
            }
        }
        Ok(file)
    }
}

/// The file of one pack.
pub(crate) struct PackFile {
    files: Arc<PackFiles>,
    number: u64,
    path: PathBuf,
    /// Stays open as long as this lives.
    held: OnceLock<Arc<dyn DiskFile>>,
    /// Its length while nobody writes to it, so that measuring all packs does not open them all; or [`UNKNOWN`].
    len: AtomicU64,
}

impl PackFile {
    /// Keeps the file open from here on: it is written to, or its name will go while others still read it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn hold(&self) -> io::Result<()> {
        let file = self.file()?;
        self.held.get_or_init(|| file);
        Ok(())
    }

    fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        match self.held.get() {
            Some(file) => Ok(file.clone()),
            None => self.files.get(self.number, &self.path),
        }
    }
}

impl DiskFile for PackFile {
    fn pread(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file()?.pread(offset, buf)
    }

    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.file()?.read_vec(offset, len)
    }

    fn will_read(&self, offset: u64, len: u64) {
        if let Ok(file) = self.file() {
            file.will_read(offset, len);
        }
    }

    fn pwrite(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.len.store(UNKNOWN, Ordering::Release);
        self.file()?.pwrite(offset, parts)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        let known = self.len.load(Ordering::Acquire);
        if known != UNKNOWN && self.held.get().is_none() {
            return Ok(known);
        }
        let len = self.file()?.len()?;
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.len.store(UNKNOWN, Ordering::Release);
        self.file()?.set_len(len)
    }
}
