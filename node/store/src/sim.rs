//! A disk in memory that can lose, tear, flip, fail and be full: for tests here and in the crates above.
//!
//! It keeps, for each file, what is durable and every write that is not yet; for each directory the same with names. [`SimDisk::crash`]
//! answers with the disk as it might be after a power cut: any subset of the un-synced writes, torn at 512 bytes, and any subset of
//! the un-synced changes of names. After a failed sync the written bytes can still be read but will never reach the disk, and the
//! next sync says OK, as Linux does.
//!
//! The same seed and the same calls give the same disk, whatever the machine.

mod file;
mod names;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::sim::file::{Node, SimFile};
use crate::sim::names::Names;

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// `pread`.
    Read,
    /// `pwrite` and `set_len`.
    Write,
    /// `sync_data` and `sync_dir`.
    Sync,
    /// Opening, renaming, removing and making directories.
    Name,
    /// Every call of the kinds above.
    Any,
}

/// A simulated disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    random: Random,
    nodes: BTreeMap<u64, Node>,
    names: Names,
    next_node: u64,
    capacity: Option<u64>,
    /// Counts down the calls of a kind; at zero the call fails.
    fail: Option<(CallKind, u64)>,
    is_lying: bool,
    n_calls: u64,
    n_syncs: u64,
    /// At which call the picture is taken, and of what.
    crash_at: Option<(u64, Ending)>,
    crashed: Option<SimDisk>,
}

/// How a planned picture shows the disk.
#[derive(Clone, Copy)]
enum Ending {
    /// As [`SimDisk::crash`] with this seed.
    PowerCut(u64),
    /// As [`SimDisk::kill`].
    Kill,
}

/// splitmix64: small, and the same everywhere.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        let inner = Inner {
            random: Random(seed),
            nodes: BTreeMap::new(),
            names: Names::default(),
            next_node: 1,
            capacity: None,
            fail: None,
            is_lying: false,
            n_calls: 0,
            n_syncs: 0,
            crash_at: None,
            crashed: None,
        };
        SimDisk { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The disk as the next boot may find it after a power cut now. This disk goes on unharmed, so one run can be cut in many ways.
    pub fn crash(&self, seed: u64) -> SimDisk {
        self.inner.lock().after_crash(seed)
    }

    /// Takes a picture of the disk, as [`SimDisk::crash`] would leave it, when the `n`-th call from now on (the first is 1) begins.
    /// What is acknowledged once [`SimDisk::is_crash_planned`] says no is not in the picture.
    pub fn plan_crash(&self, n: u64, seed: u64) {
        self.plan(n, Ending::PowerCut(seed));
    }

    /// As [`SimDisk::plan_crash`], but as [`SimDisk::kill`] would leave it.
    pub fn plan_kill(&self, n: u64) {
        self.plan(n, Ending::Kill);
    }

    fn plan(&self, n: u64, ending: Ending) {
        let mut inner = self.inner.lock();
        inner.crash_at = Some((inner.n_calls + n, ending));
        inner.crashed = None;
    }

    /// Whether the planned crash is still to come.
    pub fn is_crash_planned(&self) -> bool {
        self.inner.lock().crash_at.is_some()
    }

    /// The picture of the planned crash, if it was taken.
    pub fn crashed(&self) -> Option<SimDisk> {
        self.inner.lock().crashed.take()
    }

    /// The disk as another process finds it after this one was killed: nothing written is lost, nothing more is durable.
    pub fn kill(&self) -> SimDisk {
        self.inner.lock().after_kill()
    }

    /// The `n`-th call of this kind from now on (the first is 1) fails with EIO, once.
    pub fn fail_nth(&self, kind: CallKind, n: u64) {
        self.inner.lock().fail = (n > 0).then_some((kind, n));
    }

    /// Whether the failure that was asked for is still to come.
    pub fn is_failure_pending(&self) -> bool {
        self.inner.lock().fail.is_some()
    }

    /// Room for this many bytes of files; `None` for as many as one likes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.inner.lock().capacity = bytes;
    }

    /// From now on `sync_data` says OK and does nothing: the planted mistake that a checker has to notice.
    pub fn lie_about_syncs(&self) {
        self.inner.lock().is_lying = true;
    }

    /// Syncs that were asked for, of files and directories.
    pub fn n_syncs(&self) -> u64 {
        self.inner.lock().n_syncs
    }

    /// Calls that were made.
    pub fn n_calls(&self) -> u64 {
        self.inner.lock().n_calls
    }

    /// Bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        self.inner.lock().used_bytes()
    }

    /// The bytes of a file as a reader sees them.
    pub fn bytes_of(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.inner.lock();
        let node = inner.names.find(path)?;
        inner.nodes.get(&node).map(|node| node.current.clone())
    }

    /// Replaces a file's bytes, durably; makes the file if it is missing.
    pub fn set_bytes(&self, path: &Path, bytes: &[u8]) {
        let mut inner = self.inner.lock();
        let id = match inner.names.find(path) {
            Some(id) => id,
            None => inner.make_node(path),
        };
        inner.names.sync_dir(path.parent().unwrap_or(Path::new("")));
        inner.nodes.insert(id, Node::durable(bytes.to_vec()));
    }

    /// Flips one bit of a file, on the disk and in every reader's eyes; `false` if it is not that long.
    pub fn flip(&self, path: &Path, bit: u64) -> bool {
        let mut inner = self.inner.lock();
        let Some(id) = inner.names.find(path) else { return false };
        inner.nodes.get_mut(&id).is_some_and(|node| node.flip(bit))
    }

    /// The paths of all files, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.inner.lock().names.files()
    }
}

/// What a crash keeps of one file's un-synced writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Nothing,
    Some,
}

impl Inner {
    fn after_crash(&self, seed: u64) -> SimDisk {
        let mut random = Random(seed ^ 0x5eed_0ff0_cafe);
        let names = self.names.after_crash(&mut || random.one_in(2));
        let mut nodes = BTreeMap::new();
        for (id, node) in &self.nodes {
            let keep = match random.next() % 4 {
                0 => Keep::All,
                1 => Keep::Nothing,
                _ => Keep::Some,
            };
            nodes.insert(*id, node.after_crash(keep, &mut random));
        }
        let disk = SimDisk::new(random.next());
        {
            let mut fresh = disk.inner.lock();
            fresh.names = names;
            fresh.nodes = nodes;
            fresh.next_node = self.next_node;
            fresh.capacity = self.capacity;
        }
        disk
    }

    fn after_kill(&self) -> SimDisk {
        let disk = SimDisk::new(self.random.0 ^ 0xdead);
        {
            let mut fresh = disk.inner.lock();
            fresh.names = self.names.clone();
            fresh.nodes = self.nodes.clone();
            fresh.next_node = self.next_node;
            fresh.capacity = self.capacity;
        }
        disk
    }

    fn count(&mut self, kind: CallKind) -> io::Result<()> {
        self.n_calls += 1;
        if let Some((at, ending)) = self.crash_at
            && self.n_calls >= at
        {
            self.crash_at = None;
            self.crashed = Some(match ending {
                Ending::PowerCut(seed) => self.after_crash(seed),
                Ending::Kill => self.after_kill(),
            });
        }
        if kind == CallKind::Sync {
            self.n_syncs += 1;
        }
        let Some((wanted, left)) = self.fail else { return Ok(()) };
        if wanted != kind && wanted != CallKind::Any {
            return Ok(());
        }
        self.fail = (left > 1).then_some((wanted, left - 1));
        if left > 1 { Ok(()) } else { Err(io::Error::from_raw_os_error(5)) }
    }

    fn used_bytes(&self) -> u64 {
        let ids = self.names.nodes();
        ids.iter().filter_map(|id| self.nodes.get(id)).map(|node| node.current.len() as u64).sum()
    }

    fn free_bytes(&self) -> u64 {
        self.capacity.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(self.used_bytes()))
    }

    fn make_node(&mut self, path: &Path) -> u64 {
        let id = self.next_node;
        self.next_node += 1;
        self.nodes.insert(id, Node::durable(Vec::new()));
        self.names.link(path, id);
        id
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner.lock();
        inner.count(CallKind::Name)?;
        let id = match (inner.names.find(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(id), _) => id,
            (None, OpenMode::CreateNew) => {
                if !inner.names.has_dir(path.parent().unwrap_or(Path::new(""))) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                if inner.free_bytes() == 0 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                inner.make_node(path)
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { inner: self.inner.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.count(CallKind::Name)?;
        if inner.names.rename(from, to) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.count(CallKind::Name)?;
        if inner.names.unlink(path) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner.lock();
        inner.names.list(dir).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.count(CallKind::Name)?;
        inner.names.make_dir_all(dir);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.count(CallKind::Sync)?;
        inner.names.sync_dir(dir);
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.inner.lock().free_bytes())
    }

    fn salt(&self) -> u32 {
        self.inner.lock().random.next() as u32
    }
}
