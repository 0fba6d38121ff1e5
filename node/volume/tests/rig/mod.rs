//! A host with a simulated disk, and a volume opened on it: what the tests of a mounted volume share.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use remora_dag::block::BlockSink;
use remora_store::blocks::{Blocks, BlocksOptions};
use remora_store::disk::Disk;
use remora_store::file_header::FileKind;
use remora_store::index::IndexKind;
use remora_store::log::{Log, LogOptions};
use remora_store::reserve::Reserve;
use remora_store::sim::SimDisk;
use remora_vfs::attr::{Attr, Ino, NewNode, ROOT_INO, Timestamp};
use remora_vfs::filesystem::{Caller, Filesystem, Reply};
use remora_volume::clock::Clock;
use remora_volume::commit::digest_in;
use remora_volume::tree::genesis;
use remora_volume::volume::Volume;
use remora_volume::volume::options::{Base, VolumeOptions};

/// The id of every volume here.
pub const VOLUME: [u8; 16] = [7; 16];

/// The log and the blocks of a volume on a disk.
pub struct Store {
    pub log: Arc<Log>,
    pub blocks: Arc<Blocks>,
    pub base: Base,
}

/// Opens log and blocks on a disk, making them if they are missing.
pub fn store_on(disk: Arc<dyn Disk>) -> Store {
    store_with(disk, 8 << 20, None)
}

/// As [`store_on`], with a log of segments of so many bytes at most (the shorter, the more of it can be dropped), and something set
/// aside for a full disk.
pub fn store_with(disk: Arc<dyn Disk>, segment_bytes_max: u64, reserve: Option<Arc<Reserve>>) -> Store {
    let mut options = BlocksOptions::new(IndexKind::Memory);
    options.reserve = reserve;
    options.is_background = false;
    let blocks = Arc::new(Blocks::open(disk.clone(), Path::new("/data/packs"), options).unwrap());
    let mut options = LogOptions::new(FileKind::VolumeLog, VOLUME);
    options.segment_bytes_first = 64 << 10;
    options.segment_bytes_max = segment_bytes_max;
    options.is_background = false;
    let (log, _) = Log::open(disk, Path::new("/data/log"), options, &mut |_| Ok(())).unwrap();
    let (tree, made) = genesis(0, 0, 0o755, Timestamp(0)).unwrap();
    made.into_iter().for_each(|block| BlockSink::put(&*blocks, block).unwrap());
    blocks.sync().unwrap();
    let tree = *tree.to_block().cid();
    let base = Base { tree, seq: 0, term: 0, digest: digest_in(&tree).unwrap() };
    Store { log: Arc::new(log), blocks, base }
}

/// Time that passes when the test says so.
#[derive(Debug, Default)]
pub struct HandClock(AtomicU64);

impl HandClock {
    /// Lets so many milliseconds pass.
    pub fn pass(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(self.elapsed().as_nanos()).unwrap())
    }
}

/// Options for a volume on a store: no threads, no reserve.
pub fn options_on(store: &Store) -> VolumeOptions {
    let term = store.log.tail().map_or(0, |tail| u64::from(tail.term)) + 1;
    let mut options =
        VolumeOptions::new(VOLUME, term, store.log.clone(), store.blocks.clone(), store.base.clone());
    options.background = false;
    options.reserve_bytes = Some(0);
    options
}

/// Opens the volume on a disk.
pub fn open_on(disk: &SimDisk) -> Volume {
    let store = store_on(Arc::new(disk.clone()));
    Volume::open(options_on(&store)).unwrap()
}

/// A new volume on a new disk.
pub fn fresh(seed: u64) -> (SimDisk, Volume) {
    let disk = SimDisk::new(seed);
    let volume = open_on(&disk);
    (disk, volume)
}

/// Makes a file in the root directory.
pub fn file(volume: &Volume, name: &[u8]) -> Attr {
    let caller = Caller { uid: 0, gid: 0 };
    volume.make(caller, ROOT_INO, name, &NewNode::File, 0o644, Timestamp(1)).unwrap()
}

/// Makes a directory in the root directory.
pub fn dir(volume: &Volume, name: &[u8]) -> Attr {
    let caller = Caller { uid: 0, gid: 0 };
    volume.make(caller, ROOT_INO, name, &NewNode::Directory, 0o755, Timestamp(1)).unwrap()
}

/// An fsync that waits.
pub fn fsync(fs: &dyn Filesystem, ino: Ino) -> Reply<()> {
    let (sender, receiver) = sync_channel(1);
    fs.fsync(ino, false, Box::new(move |reply| sender.send(reply).unwrap()));
    receiver.recv().unwrap()
}

/// All bytes of the file with this name in the root directory; `None` if there is none.
pub fn content(fs: &dyn Filesystem, name: &[u8]) -> Option<Vec<u8>> {
    let attr = fs.lookup(ROOT_INO, name).ok()?;
    fs.forget(attr.ino, 1);
    let bytes = fs.read(attr.ino, 0, attr.size as usize + 1).unwrap();
    assert_eq!(bytes.len() as u64, attr.size, "a file has as many bytes as it says");
    Some(bytes)
}

/// The names in the root directory, sorted.
pub fn names(fs: &dyn Filesystem) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    fs.readdir(ROOT_INO, 0, &mut |entry| {
        names.push(entry.name.clone());
        true
    })
    .unwrap();
    names.sort();
    names
}
