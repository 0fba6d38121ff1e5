//! A checkpoint changes nothing that can be seen, whenever it comes.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use remora_store::sim::SimDisk;
use remora_vfs::attr::{Attr, DirEntry, Ino, NewNode, ROOT_INO, SetAttr, StatFs, Timestamp};
use remora_vfs::conformance::CHECKS;
use remora_vfs::filesystem::{Allocate, Caller, Done, Filesystem, RenameMode, Reply, Seek, XattrMode};
use remora_volume::checkpoint::{Tail, derive_from_log};
use remora_volume::recover::last_commit;
use remora_volume::volume::Volume;

use rig::{VOLUME, content, dir, file, fresh, fsync, names, open_on, options_on, store_on};

const NOW: Timestamp = Timestamp(5);

/// A volume that makes a checkpoint before each of its first operations, and now and then later.
struct Restless(Volume, AtomicU64);

impl Restless {
    fn volume(&self) -> &Volume {
        let n = self.1.fetch_add(1, Ordering::Relaxed);
        if n < 150 || n.is_multiple_of(151) {
            self.0.checkpoint().unwrap();
        }
        &self.0
    }
}

impl Filesystem for Restless {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Reply<Attr> {
        self.volume().lookup(parent, name)
    }
    fn forget(&self, ino: Ino, n: u64) {
        self.volume().forget(ino, n);
    }
    fn getattr(&self, ino: Ino) -> Reply<Attr> {
        self.volume().getattr(ino)
    }
    fn setattr(&self, ino: Ino, change: &SetAttr, now: Timestamp) -> Reply<Attr> {
        self.volume().setattr(ino, change, now)
    }
    fn readlink(&self, ino: Ino) -> Reply<Vec<u8>> {
        self.volume().readlink(ino)
    }
    fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode,
        mode: u16,
        now: Timestamp,
    ) -> Reply<Attr> {
        self.volume().make(caller, parent, name, node, mode, now)
    }
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Timestamp) -> Reply<Attr> {
        self.volume().link(ino, parent, name, now)
    }
    fn unlink(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.volume().unlink(parent, name, now)
    }
    fn rmdir(&self, parent: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.volume().rmdir(parent, name, now)
    }
    fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Timestamp) -> Reply<()> {
        self.volume().rename(from, to, mode, now)
    }
    fn open(&self, ino: Ino) -> Reply<()> {
        self.volume().open(ino)
    }
    fn release(&self, ino: Ino) {
        self.volume().release(ino);
    }
    fn read(&self, ino: Ino, offset: u64, len: usize) -> Reply<Vec<u8>> {
        self.volume().read(ino, offset, len)
    }
    fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Timestamp) -> Reply<()> {
        self.volume().write(ino, offset, data, now)
    }
    fn fsync(&self, ino: Ino, data_only: bool, done: Done) {
        self.volume().fsync(ino, data_only, done);
    }
    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, now: Timestamp) -> Reply<()> {
        self.volume().allocate(ino, how, offset, len, now)
    }
    fn seek(&self, ino: Ino, what: Seek, offset: u64) -> Reply<u64> {
        self.volume().seek(ino, what, offset)
    }
    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64, now: Timestamp) -> Reply<u64> {
        self.volume().copy_range(from, to, len, now)
    }
    fn readdir(&self, ino: Ino, cookie: u64, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Reply<()> {
        self.volume().readdir(ino, cookie, emit)
    }
    fn reference(&self, ino: Ino) -> Reply<()> {
        self.volume().reference(ino)
    }
    fn parent(&self, ino: Ino) -> Reply<Ino> {
        self.volume().parent(ino)
    }
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Reply<Vec<u8>> {
        self.volume().getxattr(ino, name)
    }
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode, now: Timestamp) -> Reply<()> {
        self.volume().setxattr(ino, name, value, mode, now)
    }
    fn listxattr(&self, ino: Ino) -> Reply<Vec<Vec<u8>>> {
        self.volume().listxattr(ino)
    }
    fn removexattr(&self, ino: Ino, name: &[u8], now: Timestamp) -> Reply<()> {
        self.volume().removexattr(ino, name, now)
    }
    fn statfs(&self) -> Reply<StatFs> {
        self.volume().statfs()
    }
}

#[test]
fn a_volume_conforms_with_checkpoints_between_operations() {
    // Deriving a clone of a tebibyte looks at each of its million chunks: right, but too slow for a debug build.
    let slow = "copy range keeps holes and ends with the source";
    for (name, check) in CHECKS.iter().filter(|(name, _)| *name != slow) {
        eprintln!("{name}");
        check(&Restless(fresh(1).1, AtomicU64::new(0)));
    }
}

#[test]
fn a_checkpoint_drops_the_log_and_an_idle_volume_makes_none() {
    let (disk, volume) = fresh(2);
    let attr = file(&volume, b"a");
    for i in 0..400u64 {
        volume.write(attr.ino, (i % 3) * 50_000, &[i as u8; 50_000], NOW).unwrap();
    }
    volume.flush().unwrap();
    let used = disk.used_bytes();
    let (tree, upto) = volume.checkpoint().unwrap();
    assert!(disk.used_bytes() < used, "segments are gone");
    assert_eq!(volume.checkpoint().unwrap(), (tree, upto), "nothing has changed since");
    let status = volume.status();
    assert_eq!((status.base, status.base_seq), (tree, upto));
    assert!(status.tail_bytes < 100);
    drop(volume);
    let volume = open_on(&disk.crash(3));
    assert_eq!(volume.status().base, tree);
    assert_eq!(content(&volume, b"a").unwrap().len(), 150_000);
}

#[test]
fn a_keeper_derives_the_same_tree_from_its_own_log() {
    let (disk, volume) = fresh(4);
    let attr = file(&volume, b"a");
    let sub = dir(&volume, b"d");
    volume.write(attr.ino, 3, b"content", NOW).unwrap();
    volume.link(attr.ino, sub.ino, b"again", NOW).unwrap();
    volume.flush().unwrap();
    // The keeper has the log as it was before the writer's checkpoint.
    let keeper = store_on(Arc::new(disk.crash(4)));
    let (tree, upto) = volume.checkpoint().unwrap();
    let first = (keeper.base.tree, keeper.base.seq);
    let tail = Tail { log: &keeper.log, volume: &VOLUME, base: first, upto };
    let (derived, _) = derive_from_log(&tail, &*keeper.blocks, &*keeper.blocks, &|_| true).unwrap();
    assert_eq!(derived.tree_cid, tree);
    let last = last_commit(&store_on(Arc::new(disk.kill())).log).unwrap().unwrap();
    assert_eq!((last.header.base, last.header.base_seq), (tree, upto));
}

#[test]
fn a_snapshot_is_exactly_the_state_when_it_was_taken() {
    let (disk, volume) = fresh(5);
    let attr = file(&volume, b"a");
    volume.write(attr.ino, 0, b"then", NOW).unwrap();
    let (tree, seq) = volume.snapshot_tree().unwrap();
    volume.write(attr.ino, 0, b"now!", NOW).unwrap();
    volume.close().unwrap();
    // A new volume that starts from the snapshot.
    let store = store_on(Arc::new(disk.kill()));
    let other = store_on(Arc::new(SimDisk::new(6)));
    let mut options = options_on(&other);
    options.blocks = store.blocks.clone();
    options.base.tree = tree;
    options.base.seq = seq;
    let clone = Volume::open(options).unwrap();
    assert_eq!(content(&clone, b"a").unwrap(), b"then");
}

#[test]
fn an_unlinked_open_file_outlives_checkpoints() {
    let (_disk, volume) = fresh(7);
    let attr = file(&volume, b"a");
    volume.open(attr.ino).unwrap();
    volume.write(attr.ino, 0, b"first", NOW).unwrap();
    volume.unlink(ROOT_INO, b"a", NOW).unwrap();
    volume.checkpoint().unwrap();
    assert_eq!(volume.read(attr.ino, 0, 10).unwrap(), b"first");
    volume.write(attr.ino, 5, b" more", NOW).unwrap();
    volume.checkpoint().unwrap();
    assert_eq!(volume.read(attr.ino, 0, 10).unwrap(), b"first more");
    volume.forget(attr.ino, 1);
    volume.release(attr.ino);
    volume.checkpoint().unwrap();
    assert_eq!(volume.status().inodes, 1);
}

#[test]
fn writers_and_readers_go_on_during_checkpoints() {
    let disk = SimDisk::new(8);
    let mut options = options_on(&store_on(Arc::new(disk.clone())));
    options.background = true;
    let volume = Arc::new(Volume::open(options).unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let n_checkpoints = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u8)
            .map(|writer| {
                let volume = volume.clone();
                scope.spawn(move || {
                    let attr = file(&volume, &[b'a' + writer]);
                    for i in 0..300u64 {
                        let bytes = vec![(i + u64::from(writer)) as u8; 3000];
                        volume.write(attr.ino, i * 2500, &bytes, NOW).unwrap();
                        assert_eq!(volume.read(attr.ino, i * 2500, 3000).unwrap(), bytes);
                        let name = format!("{writer}-{}", i % 40);
                        let other = format!("{writer}-{}", (i + 7) % 40);
                        match volume.lookup(ROOT_INO, name.as_bytes()) {
                            Ok(found) => {
                                volume.forget(found.ino, 1);
                                let (from, to) = ((ROOT_INO, name.as_bytes()), (ROOT_INO, other.as_bytes()));
                                volume.rename(from, to, RenameMode::Replace, NOW).unwrap();
                            }
                            Err(_) => {
                                let made = file(&volume, name.as_bytes());
                                volume.write(made.ino, 0, name.as_bytes(), NOW).unwrap();
                                volume.forget(made.ino, 1);
                            }
                        }
                        if i % 50 == 0 {
                            fsync(&*volume, attr.ino).unwrap();
                        }
                    }
                })
            })
            .collect();
        let (volume, is_over) = (volume.clone(), is_over.clone());
        let n_checkpoints = &n_checkpoints;
        let checkpoints = {
            let is_over = is_over.clone();
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    volume.checkpoint().unwrap();
                    n_checkpoints.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        is_over.store(true, Ordering::Relaxed);
        checkpoints.join().unwrap();
    });
    assert!(n_checkpoints.load(Ordering::Relaxed) > 0);
    let live: Vec<_> = names(&*volume).into_iter().map(|n| (content(&*volume, &n), n)).collect();
    let status = volume.status();
    volume.close().unwrap();
    let again = open_on(&disk.kill());
    let replayed: Vec<_> = names(&again).into_iter().map(|n| (content(&again, &n), n)).collect();
    assert!(live == replayed, "what was live is what is replayed");
    assert_eq!(again.status().bytes, status.bytes);
}

#[test]
fn a_file_never_counts_for_more_than_its_size() {
    let (_disk, volume) = fresh(31);
    let ino = file(&volume, b"a").ino;
    // The holes of a chunk in a tree count as data once the file is cut inside it; writing there adds to that.
    volume.write(ino, 1861, &[0; 1862], NOW).unwrap();
    volume.checkpoint().unwrap();
    volume.setattr(ino, &SetAttr { size: Some(1409), ..SetAttr::default() }, NOW).unwrap();
    volume.write(ino, 1 << 20, &[7; 5000], NOW).unwrap();
    volume.checkpoint().unwrap();
    volume.write(ino, 0, &vec![7; 1 << 20], NOW).unwrap();
    assert_eq!(volume.status().bytes, (1 << 20) + 5000);
    volume.setattr(ino, &SetAttr { size: Some(0), ..SetAttr::default() }, NOW).unwrap();
    assert_eq!(volume.status().bytes, 0);
}
