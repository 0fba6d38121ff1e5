//! Checkpoints keep what a volume holds in memory bounded, and writers are slowed down rather than stopped.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod rig;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;
use parking_lot::{Condvar, Mutex};
use remora_dag::block::{Block, BlockSink, BlockSource, SinkError, SourceError};
use remora_store::blocks::Blocks;
use remora_store::sim::SimDisk;
use remora_vfs::attr::{ROOT_INO, Timestamp};
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
}

impl Doored {
    fn set(&self, door: Door) {
        *self.door.lock() = door;
        self.moved.notify_all();
    }
}

impl BlockSource for Doored {
    fn get(&self, cid: &Cid) -> Result<Bytes, SourceError> {
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
    let (door, moved) = (Mutex::new(Door::Open), Condvar::new());
    let doored =
        Arc::new(Doored { blocks: store.blocks.clone(), door, moved, n_broken: AtomicUsize::new(0) });
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
