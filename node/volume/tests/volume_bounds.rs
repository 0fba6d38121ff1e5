//! Checkpoints keep what a volume holds in memory bounded, and writers are slowed down rather than stopped.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod rig;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;
use parking_lot::{Condvar, Mutex};
use remora_dag::block::{Block, BlockSink, BlockSource, SinkError, SourceError};
use remora_store::blocks::Blocks;
use remora_store::sim::SimDisk;
use remora_vfs::attr::{ROOT_INO, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Filesystem;
use remora_volume::journal::blocks::BlockStore;
use remora_volume::state::changes::Changes;
use remora_volume::volume::Volume;

use rig::{file, fsync, names, options_on, store_on};

/// What a checkpoint meets when it puts a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    Shut,
    Broken,
}

/// Blocks that can be put only while the door is open.
struct Doored {
    blocks: Arc<Blocks>,
    door: Mutex<Door>,
    moved: Condvar,
    n_broken: AtomicUsize,
    /// Whether who has the blocks is away.
    is_away: AtomicBool,
}

impl Doored {
    fn over(blocks: Arc<Blocks>) -> Arc<Doored> {
        let (door, moved) = (Mutex::new(Door::Open), Condvar::new());
        let (n_broken, is_away) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Doored { blocks, door, moved, n_broken, is_away })
    }

    fn set(&self, door: Door) {
        *self.door.lock() = door;
        self.moved.notify_all();
    }
}

impl BlockSource for Doored {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(SourceError::NotFound { cid: *cid });
        }
        BlockSource::get(&*self.blocks, cid)
    }

    fn get_range(&self, cid: &Cid, offset: u64, len: usize) -> Result<Bytes, SourceError> {
        BlockSource::get_range(&*self.blocks, cid, offset, len)
    }
}

impl BlockSink for Doored {
    fn put(&self, block: Block) -> Result<(), SinkError> {
        let mut door = self.door.lock();
        while *door == Door::Shut {
            self.moved.wait(&mut door);
        }
        if *door == Door::Broken {
            self.n_broken.fetch_add(1, Ordering::Relaxed);
            return Err(SinkError::Full { cid: *block.cid() });
        }
        BlockSink::put(&*self.blocks, block)
    }
}

impl BlockStore for Doored {
    fn sync(&self) -> io::Result<()> {
        BlockStore::sync(&*self.blocks)
    }
}

/// A volume on which a checkpoint is due with `n` changed inodes, with its threads or without.
fn volume(n: usize, background: bool) -> (Arc<Doored>, Volume) {
    let store = store_on(Arc::new(SimDisk::new(1)));
    let doored = Doored::over(store.blocks.clone());
    let mut options = options_on(&store);
    options.blocks = doored.clone();
    options.changes_max = Changes { inodes: n, names: usize::MAX, ranges: usize::MAX };
    options.background = background;
    (doored, Volume::open(options).unwrap())
}

#[test]
fn a_checkpoint_is_due_when_many_inodes_are_dirty() {
    let (_door, volume) = volume(100, false);
    for i in 0..98 {
        file(&volume, format!("{i}").as_bytes());
    }
    volume.flush().unwrap();
    volume.tick();
    assert_eq!(volume.status().changes.inodes, 99, "the files and their directory");
    assert_eq!(volume.status().base_seq, 0);
    file(&volume, b"one more");
    volume.flush().unwrap();
    volume.tick();
    assert_eq!(volume.status().changes, Changes::default());
    assert!(volume.status().base_seq > 0);
    assert_eq!(names(&volume).len(), 99);
}

#[test]
fn a_checkpoint_that_failed_is_left_alone_for_a_while() {
    let (door, volume) = volume(10, false);
    for i in 0..20 {
        file(&volume, format!("{i}").as_bytes());
    }
    volume.flush().unwrap();
    door.set(Door::Broken);
    volume.tick();
    volume.tick();
    assert_eq!(door.n_broken.load(Ordering::Relaxed), 1);
    door.set(Door::Open);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().changes, Changes::default(), "who asks for one gets it");
}

#[test]
fn a_writer_that_outruns_a_checkpoint_is_slowed_down_and_goes_on_after_it() {
    let (door, volume) = volume(10, true);
    door.set(Door::Shut);
    let mut n = 0;
    while volume.status().n_slowed < 5 {
        let attr = file(&volume, format!("{n}").as_bytes());
        fsync(&volume, attr.ino).unwrap();
        n += 1;
    }
    assert!(volume.status().changes.inodes >= 30, "only far above what is due");
    // What makes room is not slowed down, and nothing is stopped.
    let n_slowed = volume.status().n_slowed;
    for i in 0..5 {
        volume.unlink(ROOT_INO, format!("{i}").as_bytes(), Timestamp(9)).unwrap();
    }
    assert_eq!(volume.status().n_slowed, n_slowed);
    door.set(Door::Open);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().changes, Changes::default());
    let n_slowed = volume.status().n_slowed;
    file(&volume, b"quick");
    assert_eq!(volume.status().n_slowed, n_slowed);
    assert_eq!(names(&volume).len(), n - 5 + 1);
}

#[test]
fn a_write_that_needs_a_block_nobody_has_for_now_is_refused_and_the_volume_goes_on() {
    let store = store_on(Arc::new(SimDisk::new(4)));
    let volume = Volume::open(options_on(&store)).unwrap();
    let sparse = file(&volume, b"sparse");
    volume.write(sparse.ino, 5 << 30, &[1; 100], Timestamp(1)).unwrap();
    volume.write(sparse.ino, 0, &[2; 100], Timestamp(1)).unwrap();
    volume.checkpoint().unwrap();
    volume.close().unwrap();
    drop(volume);
    let doored = Doored::over(store.blocks.clone());
    let mut options = options_on(&store);
    options.blocks = doored.clone();
    let volume = Volume::open(options).unwrap();
    let ino = volume.lookup(ROOT_INO, b"sparse").unwrap().ino;
    doored.is_away.store(true, Ordering::Relaxed);
    for len in [100, 128 << 10, 1 << 20, 3 << 20] {
        assert_eq!(volume.write(ino, 0, &vec![3; len], Timestamp(2)), Err(Errno::EIO), "{len} bytes");
    }
    volume.flush().unwrap();
    assert_eq!(volume.status().failed, None);
    doored.is_away.store(false, Ordering::Relaxed);
    for len in [3 << 20, 1 << 20, 128 << 10, 100] {
        volume.write(ino, 0, &vec![4; len], Timestamp(2)).unwrap();
    }
    fsync(&volume, ino).unwrap();
    assert_eq!(volume.read(ino, 0, 4 << 20).unwrap()[..(3 << 20) + 1], [vec![4; 3 << 20], vec![0]].concat());
}
