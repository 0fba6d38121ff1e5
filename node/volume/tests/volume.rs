//! A mounted volume does what a file system must, and what it says about durability.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod rig;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use remora_store::sim::{CallKind, SimDisk};
use remora_vfs::attr::{ROOT_INO, SetAttr, Timestamp};
use remora_vfs::conformance::run;
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::{Filesystem, RenameMode};
use remora_volume::clock::Clock;
use remora_volume::commit::Commit;
use remora_volume::journal::durability::{CommitFrame, Durability, Replicator};
use remora_volume::op::Op;
use remora_volume::volume::Volume;
use remora_volume::volume::options::Space;

use rig::{content, dir, file, fresh, fsync, names, open_on, options_on, store_on};

const NOW: Timestamp = Timestamp(5);
const MIB: usize = 1 << 20;

/// Bytes that differ from place to place.
fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / 4096) as u8 ^ salt).collect()
}

#[test]
fn a_volume_conforms() {
    let disk = SimDisk::new(1);
    run(&|| Arc::new(open_on(&disk.crash(1))));
}

#[test]
fn a_volume_with_threads_conforms() {
    run(&|| {
        let store = store_on(Arc::new(SimDisk::new(2)));
        let mut options = options_on(&store);
        options.background = true;
        Arc::new(Volume::open(options).unwrap())
    });
}

#[test]
fn what_was_flushed_is_there_after_reopening() {
    let (disk, volume) = fresh(3);
    let attr = file(&volume, b"a");
    volume.write(attr.ino, 0, b"hello", NOW).unwrap();
    dir(&volume, b"d");
    volume.setxattr(attr.ino, b"user.k", b"v", Default::default(), NOW).unwrap();
    let tip = volume.close().unwrap();
    drop(volume);

    let volume = open_on(&disk);
    assert_eq!(volume.tip(), tip);
    assert_eq!(names(&volume), vec![b"a".to_vec(), b"d".to_vec()]);
    assert_eq!(content(&volume, b"a").unwrap(), b"hello");
    assert_eq!(volume.getxattr(attr.ino, b"user.k").unwrap(), b"v");
    assert_eq!(volume.lookup(ROOT_INO, b"a").unwrap().ino, attr.ino);
}

#[test]
fn a_clean_inode_is_durable_at_once() {
    let (disk, volume) = fresh(4);
    let attr = file(&volume, b"a");
    fsync(&volume, attr.ino).unwrap();
    let syncs = disk.n_syncs();
    fsync(&volume, attr.ino).unwrap();
    assert_eq!(disk.n_syncs(), syncs, "nothing is left to sync");
    file(&volume, b"b");
    fsync(&volume, attr.ino).unwrap();
    assert_eq!(disk.n_syncs(), syncs, "another file's changes are not waited for");
    fsync(&volume, ROOT_INO).unwrap();
    assert!(disk.n_syncs() > syncs, "the directory has changed");
}

#[test]
fn whole_chunks_bypass_the_log() {
    let (disk, volume) = fresh(5);
    let attr = file(&volume, b"big");
    let bytes = pattern(5 * MIB + 1234, 1);
    for (i, part) in bytes.chunks(128 << 10).enumerate() {
        volume.write(attr.ino, (i * (128 << 10)) as u64, part, NOW).unwrap();
    }
    assert_eq!(volume.getattr(attr.ino).unwrap().size, bytes.len() as u64);
    assert_eq!(content(&volume, b"big").unwrap(), bytes);
    volume.close().unwrap();
    assert!(volume.status().tail_bytes < 4096, "only references and the rest are logged");
    assert_eq!(content(&open_on(&disk), b"big").unwrap(), bytes);
}

#[test]
fn a_chunk_written_at_once_and_over_is_read_back() {
    let (disk, volume) = fresh(6);
    let attr = file(&volume, b"big");
    volume.write(attr.ino, 0, &pattern(2 * MIB, 1), NOW).unwrap();
    volume.write(attr.ino, MIB as u64, &pattern(MIB, 2), NOW).unwrap();
    volume.write(attr.ino, 100, b"inside", NOW).unwrap();
    let mut expected = pattern(2 * MIB, 1);
    expected[MIB..].copy_from_slice(&pattern(MIB, 2));
    expected[100..106].copy_from_slice(b"inside");
    assert_eq!(content(&volume, b"big").unwrap(), expected);
    fsync(&volume, attr.ino).unwrap();
    drop(volume);
    assert_eq!(content(&open_on(&disk.crash(1)), b"big").unwrap(), expected);
}

#[test]
fn a_collected_run_is_seen_by_everyone() {
    let (_disk, volume) = fresh(7);
    let attr = file(&volume, b"run");
    let part = pattern(200 << 10, 3);
    volume.write(attr.ino, 0, &part, NOW).unwrap();
    assert_eq!(volume.lookup(ROOT_INO, b"run").unwrap().size, part.len() as u64);
    volume.write(attr.ino, part.len() as u64, &part, NOW).unwrap();
    volume.rename((ROOT_INO, b"run"), (ROOT_INO, b"ran"), RenameMode::Replace, NOW).unwrap();
    let mut sizes = Vec::new();
    volume
        .readdir(ROOT_INO, 0, &mut |entry| {
            sizes.push(entry.attr.size);
            true
        })
        .unwrap();
    assert_eq!(sizes, vec![2 * part.len() as u64]);
    volume.setattr(attr.ino, &SetAttr { size: Some(10), ..SetAttr::default() }, NOW).unwrap();
    assert_eq!(content(&volume, b"ran").unwrap(), &part[..10]);
}

#[test]
fn a_failed_sync_is_final() {
    let (disk, volume) = fresh(8);
    let attr = file(&volume, b"a");
    fsync(&volume, attr.ino).unwrap();
    volume.write(attr.ino, 0, b"lost", NOW).unwrap();
    disk.fail_nth(CallKind::Sync, 1);
    assert_eq!(fsync(&volume, attr.ino), Err(Errno::EIO));
    assert_eq!(fsync(&volume, attr.ino), Err(Errno::EIO), "the kernel would say OK now");
    assert_eq!(volume.write(attr.ino, 0, b"more", NOW), Err(Errno::EIO));
    assert_eq!(volume.unlink(ROOT_INO, b"a", NOW), Err(Errno::EIO));
    assert_eq!(content(&volume, b"a").unwrap(), b"lost", "reads go on");
    assert!(volume.status().failed.unwrap().contains("sync"));
    assert_eq!(volume.close(), Err(Errno::EIO));
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let store = store_on(Arc::new(SimDisk::new(9)));
    let free = Arc::new(AtomicU64::new(1 << 30));
    let mut options = options_on(&store);
    options.reserve_bytes = Some(1 << 20);
    let shown = free.clone();
    options.space = Arc::new(move || Space { total: 1 << 30, free: shown.load(Ordering::Relaxed) });
    let volume = Volume::open(options).unwrap();
    let (a, b) = (file(&volume, b"a"), file(&volume, b"b"));
    volume.write(a.ino, 0, b"data", NOW).unwrap();
    free.store(100, Ordering::Relaxed);
    // A look at the disk was taken a moment ago and is good for a while.
    let refused = (0..1000).find_map(|i| volume.write(b.ino, i << 20, &[1; MIB], NOW).err());
    assert_eq!(refused, Some(Errno::ENOSPC));
    volume.setattr(b.ino, &SetAttr { size: Some(0), ..SetAttr::default() }, NOW).unwrap();
    assert_eq!(volume.write(a.ino, 4, b"x", NOW), Err(Errno::ENOSPC));
    volume.rename((ROOT_INO, b"a"), (ROOT_INO, b"c"), RenameMode::Replace, NOW).unwrap();
    volume.unlink(ROOT_INO, b"b", NOW).unwrap();
    fsync(&volume, a.ino).unwrap();
    free.store(1 << 30, Ordering::Relaxed);
    volume.write(a.ino, 4, b"more", NOW).unwrap();
    assert_eq!(content(&volume, b"c").unwrap(), b"datamore");
}

#[test]
fn a_full_log_loses_nothing_and_goes_on_when_there_is_space() {
    let (disk, volume) = fresh(10);
    let attr = file(&volume, b"a");
    fsync(&volume, attr.ino).unwrap();
    disk.set_capacity(Some(disk.used_bytes() + 100));
    let part = pattern(60_000, 4);
    let mut refused = None;
    let mut at = 0;
    while refused.is_none() {
        volume.write(attr.ino, at, &part, NOW).unwrap();
        at += part.len() as u64;
        refused = fsync(&volume, attr.ino).err();
    }
    assert_eq!(refused, Some(Errno::ENOSPC));
    assert_eq!(volume.status().failed, None);
    disk.set_capacity(None);
    fsync(&volume, attr.ino).unwrap();
    drop(volume);
    assert_eq!(content(&open_on(&disk.crash(1)), b"a").unwrap().len() as u64, at);
}

#[test]
fn a_size_limit_is_kept() {
    let store = store_on(Arc::new(SimDisk::new(11)));
    let mut options = options_on(&store);
    options.size_limit = Some(3 << 20);
    let volume = Volume::open(options).unwrap();
    let attr = file(&volume, b"a");
    volume.write(attr.ino, 0, &pattern(2 * MIB, 0), NOW).unwrap();
    assert_eq!(volume.write(attr.ino, 2 << 20, &pattern(2 * MIB, 0), NOW), Err(Errno::ENOSPC));
    volume.write(attr.ino, 0, &pattern(2 * MIB, 9), NOW).unwrap();
    assert_eq!(volume.statfs().unwrap().blocks * 4096, 3 << 20);
}

#[test]
fn writes_that_wait_for_the_rest_of_their_chunk_count_against_the_limit() {
    let store = store_on(Arc::new(SimDisk::new(11)));
    let mut options = options_on(&store);
    options.size_limit = Some(512 << 10);
    let volume = Volume::open(options).unwrap();
    let (a, b) = (file(&volume, b"a"), file(&volume, b"b"));
    let part = pattern(128 << 10, 3);
    for (i, attr) in [(0, a), (0, b), (1, a), (1, b)] {
        volume.write(attr.ino, i * (128 << 10), &part, NOW).unwrap();
    }
    for attr in [a, b] {
        assert_eq!(volume.write(attr.ino, 256 << 10, &part, NOW), Err(Errno::ENOSPC));
        volume.write(attr.ino, 0, &part, NOW).unwrap();
        volume.write(attr.ino, 128 << 10, &part, NOW).unwrap();
    }
    assert_eq!(volume.copy_range((a.ino, 0), (b.ino, 256 << 10), 1000, NOW), Err(Errno::ENOSPC));
    volume.flush().unwrap();
    assert_eq!(volume.status().bytes, 512 << 10);
}

#[test]
fn what_only_the_last_writer_held_open_is_gone() {
    let (disk, volume) = fresh(12);
    let attr = file(&volume, b"a");
    volume.open(attr.ino).unwrap();
    volume.write(attr.ino, 0, b"still here", NOW).unwrap();
    volume.unlink(ROOT_INO, b"a", NOW).unwrap();
    assert_eq!(volume.read(attr.ino, 0, 100).unwrap(), b"still here");
    assert_eq!(volume.status().inodes, 2);
    volume.flush().unwrap();
    drop(volume);
    let volume = open_on(&disk);
    assert_eq!(volume.getattr(attr.ino), Err(Errno::ESTALE));
    assert_eq!(volume.status().inodes, 1);
}

#[test]
fn the_last_release_of_an_unlinked_file_ends_it() {
    let (_disk, volume) = fresh(13);
    let attr = file(&volume, b"a");
    volume.open(attr.ino).unwrap();
    volume.unlink(ROOT_INO, b"a", NOW).unwrap();
    volume.forget(attr.ino, 1);
    assert!(volume.getattr(attr.ino).is_ok());
    volume.release(attr.ino);
    assert_eq!(volume.getattr(attr.ino), Err(Errno::ESTALE));
}

#[derive(Default)]
struct Sent(parking_lot::Mutex<Vec<CommitFrame>>, AtomicUsize);

impl Replicator for Sent {
    fn commit(&self, frame: CommitFrame) {
        self.0.lock().push(frame);
    }

    fn failed(&self, _reason: &str) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn under_quorum_an_fsync_waits_for_the_keepers() {
    let store = store_on(Arc::new(SimDisk::new(14)));
    let sent = Arc::new(Sent::default());
    let mut options = options_on(&store);
    options.durability = Durability::Quorum;
    options.replicator = sent.clone();
    let volume = Volume::open(options).unwrap();
    let attr = file(&volume, b"a");
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let done = done.clone();
        volume.fsync(
            attr.ino,
            false,
            Box::new(move |reply| {
                assert_eq!(reply, Ok(()));
                done.fetch_add(1, Ordering::Relaxed);
            }),
        );
    }
    assert_eq!(done.load(Ordering::Relaxed), 0);
    let frames = sent.0.lock().clone();
    assert_eq!(frames.len(), 1, "one commit for both");
    volume.acked(frames[0].seq);
    assert_eq!(done.load(Ordering::Relaxed), 2);
    let commit = Commit::decode_verified(&frames[0].cid, frames[0].bytes.clone()).unwrap();
    assert_eq!(commit.tip(), volume.tip());
    volume.fail("a keeper knows a higher term");
    assert_eq!(sent.1.load(Ordering::Relaxed), 1);
    volume.write(attr.ino, 0, b"x", NOW).unwrap_err();
}

#[test]
fn control_ops_are_commits_of_their_own() {
    let store = store_on(Arc::new(SimDisk::new(15)));
    let sent = Arc::new(Sent::default());
    let mut options = options_on(&store);
    options.replicator = sent.clone();
    let volume = Volume::open(options).unwrap();
    file(&volume, b"a");
    let seq = volume.append_control(&Op::Start { term: 1, writer: b"me" }).unwrap();
    file(&volume, b"b");
    volume.flush().unwrap();
    let flags: Vec<u64> =
        sent.0.lock().iter().map(|f| Commit::decode(f.bytes.clone()).unwrap().header.flags).collect();
    assert_eq!((seq, flags), (2, vec![1, 3, 1]));
    assert_eq!(volume.append_control(&Op::Drop { ino: 1 }), Err(Errno::EINVAL));
}

#[test]
fn nothing_comes_before_start_and_orphans_go_when_the_writer_serves() {
    let (disk, volume) = fresh(19);
    let attr = file(&volume, b"held");
    volume.unlink(ROOT_INO, b"held", NOW).unwrap();
    let before = volume.flush().unwrap();
    assert!(volume.getattr(attr.ino).is_ok(), "somebody holds it open");
    let store = store_on(Arc::new(disk.crash(1)));
    let mut options = options_on(&store);
    options.drops_orphans = false;
    let volume = Volume::open(options).unwrap();
    let seq = volume.append_control(&Op::Start { term: 2, writer: b"me" }).unwrap();
    assert_eq!(seq, before.seq + 1);
    assert_eq!(volume.flush().unwrap().seq, seq, "START is all that a candidate leaves");
    assert_eq!(volume.status().inodes, 2);
    volume.drop_orphans().unwrap();
    assert_eq!(volume.status().inodes, 1);
    assert_eq!(volume.flush().unwrap().seq, seq + 1);
}

#[test]
fn a_closed_volume_changes_no_more() {
    let (_disk, volume) = fresh(16);
    let attr = file(&volume, b"a");
    let tip = volume.close().unwrap();
    assert_eq!(tip, volume.tip());
    assert_eq!(volume.write(attr.ino, 0, b"x", NOW), Err(Errno::EIO));
    assert_eq!(volume.durable_seq(), tip.seq);
}

/// Time that goes on only when it is told to.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn now(&self) -> Timestamp {
        NOW
    }
}

/// Stops the volume at the moment a commit is stamped: whoever holds the pen has its batches and is about to append.
#[derive(Default)]
struct Stopping(OnceLock<Arc<Volume>>);

impl Clock for Stopping {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn now(&self) -> Timestamp {
        if let Some(volume) = self.0.get() {
            volume.fail("another host took the volume over");
        }
        NOW
    }
}

#[test]
fn nothing_is_appended_after_a_volume_stepped_down() {
    let store = store_on(Arc::new(SimDisk::new(17)));
    let clock = Arc::new(Stopping::default());
    let mut options = options_on(&store);
    options.clock = clock.clone();
    let volume = Arc::new(Volume::open(options).unwrap());
    let attr = file(&volume, b"a");
    fsync(&*volume, attr.ino).unwrap();
    let before = store.log.tail().unwrap();
    clock.0.set(volume.clone()).unwrap();
    volume.write(attr.ino, 0, b"late", NOW).unwrap();
    assert_eq!(fsync(&*volume, attr.ino), Err(Errno::EIO));
    assert_eq!(store.log.tail().unwrap(), before, "a stopped writer's commit came behind the others");
    assert_eq!(volume.status().failed.as_deref(), Some("another host took the volume over"));
}

#[test]
fn what_nobody_waits_for_is_synced_by_itself() {
    let store = store_on(Arc::new(SimDisk::new(18)));
    let clock = Arc::new(Hand::default());
    let mut options = options_on(&store);
    options.clock = clock.clone();
    let volume = Volume::open(options).unwrap();
    let at = |ms| {
        clock.0.store(ms, Ordering::Relaxed);
        volume.tick();
        let status = volume.status();
        (status.tip.seq, status.synced_seq, status.base_seq)
    };
    let attr = file(&volume, b"a");
    volume.write(attr.ino, 0, &pattern(100_000, 1), NOW).unwrap();
    assert_eq!(at(50), (0, 0, 0), "still being collected");
    assert_eq!(at(199), (0, 0, 0));
    assert_eq!(at(200), (1, 0, 0), "in the log");
    assert_eq!(at(999), (1, 0, 0));
    assert_eq!(at(1000), (1, 1, 0), "on disk");
    assert_eq!(at(29_000), (1, 1, 0));
    assert_eq!(at(31_000), (2, 2, 1), "a checkpoint, as nobody is disturbed by it");
    assert_eq!(at(99_000), (2, 2, 1), "and then nothing");
    assert_eq!(content(&volume, b"a").unwrap(), pattern(100_000, 1));
}

#[test]
fn nobody_waits_for_the_clock() {
    let store = store_on(Arc::new(SimDisk::new(19)));
    let mut options = options_on(&store);
    options.clock = Arc::new(Hand::default());
    options.background = true;
    let volume = Volume::open(options).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6u8 {
            let volume = &volume;
            scope.spawn(move || {
                let attr = file(volume, &[b'a' + writer]);
                for i in 0..100 {
                    volume.write(attr.ino, i, &[writer], NOW).unwrap();
                    fsync(volume, attr.ino).unwrap();
                }
            });
        }
    });
    assert_eq!(volume.status().pending_bytes, 0);
}

#[test]
fn much_unsynced_data_holds_the_writer_back() {
    let (disk, volume) = fresh(17);
    let attr = file(&volume, b"a");
    let before = disk.n_syncs();
    for i in 0..200u64 {
        // Unaligned, so that it goes inline.
        volume.write(attr.ino, 1 + i * 300_000, &[1; 300_000], NOW).unwrap();
        assert!(volume.status().pending_bytes < 34 << 20);
    }
    assert!(disk.n_syncs() > before);
}
