//! A disk that somebody else filled: what is deleted in the volume gives back its space, and nothing else is harmed by it.

// A test that cannot go on says so by panicking.
#![allow(clippy::unwrap_used)]

mod rig;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use remora_store::disk::Disk;
use remora_store::reserve::Reserve;
use remora_store::sim::SimDisk;
use remora_vfs::attr::{ROOT_INO, Timestamp};
use remora_vfs::errno::Errno;
use remora_vfs::filesystem::Filesystem;
use remora_volume::journal::durability::{CommitFrame, Durability, Replicator};
use remora_volume::volume::Volume;
use remora_volume::volume::options::Space;

use rig::{HandClock, content, file, fsync, names, open_on, options_on, store_on, store_with};

const NOW: Timestamp = Timestamp(5);
const MIB: usize = 1 << 20;
const RESERVE_BYTES: u64 = 16 << 20;

/// Room for the tree of a small change, and not for a segment of the log.
const ROOM_BYTES: u64 = 40 << 10;

/// Files of a mebibyte in the log.
const N_FILES: u8 = 25;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) * 31 % 251) as u8).collect()
}

/// A volume with files in its tree and in its log, whole chunks and small pieces, of which only `stays` and `new` will be left.
fn scene(seed: u64) -> (SimDisk, Arc<Reserve>, Volume) {
    let disk = SimDisk::new(seed);
    let reserve = Arc::new(Reserve::open(Arc::new(disk.clone()), Path::new("/data/reserve"), RESERVE_BYTES));
    let volume =
        Volume::open(options_on(&store_with(Arc::new(disk.clone()), 4 << 20, Some(reserve.clone()))))
            .unwrap();
    let put = |name: &[u8], len: usize| {
        let attr = file(&volume, name);
        for (i, part) in pattern(len, name.len()).chunks(60_000).enumerate() {
            volume.write(attr.ino, i as u64 * 60_000, part, NOW).unwrap();
        }
    };
    put(b"old", 3 * MIB);
    put(b"stays", 100_000);
    volume.checkpoint().unwrap();
    put(b"newer", 3 * MIB);
    put(b"new", 200_000);
    volume.flush().unwrap();
    reserve.fill(0);
    disk.set_capacity(Some(disk.used_bytes()));
    (disk, reserve, volume)
}

fn remove(volume: &Volume) {
    for name in [b"old".as_slice(), b"newer"] {
        volume.unlink(ROOT_INO, name, NOW).unwrap();
    }
    fsync(volume, ROOT_INO).unwrap();
}

fn check(volume: &Volume) {
    assert_eq!(names(volume), [b"new".to_vec(), b"stays".to_vec()]);
    assert_eq!(content(volume, b"stays").unwrap(), pattern(100_000, 5));
    assert_eq!(content(volume, b"new").unwrap(), pattern(200_000, 3));
}

#[test]
fn a_disk_without_a_free_byte_takes_the_tree_that_frees_it() {
    let (disk, reserve, volume) = scene(1);
    assert_eq!(reserve.bytes(), RESERVE_BYTES);
    remove(&volume);
    let before = volume.status().base_seq;
    volume.checkpoint().unwrap();
    assert!(volume.status().base_seq > before);
    assert!(reserve.bytes() < RESERVE_BYTES, "it was written into what was set aside");
    check(&volume);
    drop(volume);
    check(&open_on(&disk.crash(7)));
}

fn log_bytes(disk: &SimDisk) -> usize {
    let files = disk.files().into_iter().filter(|path| path.starts_with("/data/log"));
    files.filter_map(|path| disk.bytes_of(&path)).map(|bytes| bytes.len()).sum()
}

#[test]
fn a_power_cut_at_any_call_on_a_full_disk_loses_nothing() {
    let mut n_cuts = 0;
    loop {
        let (disk, _reserve, volume) = scene(n_cuts);
        remove(&volume);
        disk.plan_crash(20 * n_cuts + 1, n_cuts);
        volume.checkpoint().unwrap();
        let Some(after) = disk.crashed() else { break };
        n_cuts += 1;
        check(&open_on(&after));
    }
    assert!(n_cuts > 5, "{n_cuts}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_for_now_leaves_state_and_journal_on_one_base() {
    let disk = SimDisk::new(5);
    let store = store_with(Arc::new(disk.clone()), 64 << 10, None);
    let volume = Volume::open(options_on(&store)).unwrap();
    let files: Vec<_> = (b'a'..=b'g').map(|name| file(&volume, &[name])).collect();
    volume.checkpoint().unwrap();
    let mut base = volume.status().base_seq;
    // The blocks of the tree fit, the segment of the log that the commit naming it would begin does not.
    let mut n_recorded = 0;
    let check = |volume: &Volume, upto: usize| {
        for n in 0..7 {
            let expected: Vec<u8> = (n..upto).step_by(7).flat_map(|i| [i as u8; 100]).collect();
            assert_eq!(content(volume, &[b'a' + n as u8]).unwrap(), expected);
        }
    };
    for i in 0..600 {
        disk.set_capacity(None);
        volume.write(files[i % 7].ino, (i / 7 * 100) as u64, &[i as u8; 100], NOW).unwrap();
        volume.flush().unwrap();
        disk.set_capacity(Some(disk.used_bytes() + ROOM_BYTES));
        let made = volume.checkpoint();
        n_recorded += u32::from(made.is_err() && volume.status().base_seq > base);
        base = volume.status().base_seq;
        assert_eq!(volume.status().failed, None);
        check(&volume, i + 1);
    }
    assert!(n_recorded > 0, "the case was never met");
    drop(volume);
    check(&open_on(&disk.crash(2)), 600);
}

/// Accepts everything and never says that anybody has it.
struct Silent;

impl Replicator for Silent {
    fn commit(&self, _frame: CommitFrame) {}
}

#[test]
fn a_full_disk_is_no_answer_to_who_waits_for_keepers_alone() {
    let disk = SimDisk::new(6);
    let store = store_with(Arc::new(disk.clone()), 64 << 10, None);
    let mut options = options_on(&store);
    options.durability = Durability::Quorum;
    options.replicator = Arc::new(Silent);
    let volume = Volume::open(options).unwrap();
    let attr = file(&volume, b"a");
    let replies = Arc::new(Mutex::new(Vec::new()));
    let ask = |what: &'static str| {
        let replies = replies.clone();
        volume.fsync(attr.ino, false, Box::new(move |reply| replies.lock().push((what, reply))));
    };
    ask("on this disk");
    disk.set_capacity(Some(disk.used_bytes()));
    // The segment that is there takes some of them.
    let mut n_taken = 0;
    while replies.lock().is_empty() {
        volume.write(attr.ino, n_taken * 1000, &pattern(1000, 1), NOW).unwrap();
        ask("while it lasts");
        n_taken += 1;
    }
    assert_eq!(*replies.lock(), [("while it lasts", Err(Errno::ENOSPC))]);
    disk.set_capacity(None);
    ask("with space");
    volume.acked(volume.status().tip.seq);
    let replies = replies.lock().clone();
    assert!(n_taken > 2 && replies.len() as u64 == n_taken + 2);
    assert!(replies[1..].iter().all(|(_, reply)| reply.is_ok()), "{replies:?}");
}

/// A volume on a disk without a free byte, with a tail whose tree is longer than what is set aside, and in it something that was deleted.
fn long_tail(seed: u64) -> (SimDisk, Arc<HandClock>, Volume) {
    let disk = SimDisk::new(seed);
    let reserve = Arc::new(Reserve::open(Arc::new(disk.clone()), Path::new("/data/reserve"), RESERVE_BYTES));
    let store = store_with(Arc::new(disk.clone()), 4 << 20, Some(reserve.clone()));
    let clock = Arc::new(HandClock::default());
    let mut options = options_on(&store);
    options.clock = clock.clone();
    options.reserve_bytes = Some(RESERVE_BYTES);
    let (of, aside) = (disk.clone(), reserve.clone());
    options.space = Arc::new(move || {
        let free = of.free_bytes(Path::new("/data")).unwrap() + aside.bytes();
        Space { total: 1 << 30, free: free.min(1 << 30) }
    });
    let volume = Volume::open(options).unwrap();
    for n in 0..N_FILES {
        let attr = file(&volume, &[b'a' + n]);
        for (i, part) in pattern(MIB, usize::from(n)).chunks(60_000).enumerate() {
            volume.write(attr.ino, i as u64 * 60_000, part, NOW).unwrap();
        }
        volume.forget(attr.ino, 1);
        volume.flush().unwrap();
    }
    reserve.fill(0);
    disk.set_capacity(Some(disk.used_bytes()));
    for name in [b"b", b"o"] {
        volume.unlink(ROOT_INO, name, NOW).unwrap();
    }
    volume.open(volume.lookup(ROOT_INO, b"c").unwrap().ino).unwrap();
    volume.unlink(ROOT_INO, b"c", NOW).unwrap();
    fsync(&volume, ROOT_INO).unwrap();
    (disk, clock, volume)
}

fn check_long_tail(volume: &Volume) {
    let left: Vec<Vec<u8>> =
        (0..N_FILES).filter(|n| ![1, 2, 14].contains(n)).map(|n| vec![b'a' + n]).collect();
    assert_eq!(names(volume), left);
    for name in left {
        assert_eq!(content(volume, &name).unwrap(), pattern(MIB, usize::from(name[0] - b'a')));
    }
}

#[test]
fn a_tail_whose_tree_does_not_fit_is_folded_part_by_part() {
    let (disk, clock, volume) = long_tail(11);
    let (end, log) = (volume.status().tip.seq, log_bytes(&disk));
    let opened = volume.status().inodes;
    let mut steps = Vec::new();
    for _ in 0..40 {
        clock.pass(500);
        volume.tick();
        check_long_tail(&volume);
        let status = volume.status();
        assert_eq!(status.failed, None);
        if steps.last() != Some(&status.base_seq) {
            steps.push(status.base_seq);
        }
    }
    assert!(steps[0] < end, "it went in parts: {steps:?} of {end}");
    assert!(*steps.last().unwrap() >= end, "{steps:?} of {end}");
    assert!(log_bytes(&disk) < log / 2, "{} of {log} bytes of log are left", log_bytes(&disk));
    assert_eq!(volume.status().inodes, opened, "what is open without a name stays");
    drop(volume);
    let volume = open_on(&disk.crash(3));
    check_long_tail(&volume);
    assert_eq!(volume.status().inodes, opened - 1, "nobody holds it any more");
}

#[test]
fn a_power_cut_while_a_part_is_folded_loses_nothing() {
    let mut n_cuts = 0;
    loop {
        let (disk, clock, volume) = long_tail(n_cuts);
        disk.plan_crash(1 + 200 * n_cuts, n_cuts);
        for _ in 0..20 {
            clock.pass(500);
            volume.tick();
        }
        let Some(after) = disk.crashed() else { break };
        n_cuts += 1;
        check_long_tail(&open_on(&after));
    }
    assert!(n_cuts > 5, "{n_cuts}");
}

/// A checkpoint of 3 MiB becomes due after `millis` on a disk of which nobody knows that it is full; it has to be made within seconds
/// once there is space.
fn check_is_tried_again(checkpoint_log_bytes: u64, millis: u64) {
    let disk = SimDisk::new(5);
    let store = store_on(Arc::new(disk.clone()));
    let clock = Arc::new(HandClock::default());
    let mut options = options_on(&store);
    options.clock = clock.clone();
    options.checkpoint_log_bytes = checkpoint_log_bytes;
    // Nobody saw it coming: at the last look there was space enough.
    options.space = Arc::new(|| Space { total: 1 << 40, free: 1 << 40 });
    let volume = Volume::open(options).unwrap();
    let attr = file(&volume, b"a");
    for (i, part) in pattern(3 * MIB, 1).chunks(60_000).enumerate() {
        volume.write(attr.ino, i as u64 * 60_000, part, NOW).unwrap();
    }
    volume.flush().unwrap();
    let before = volume.status().base_seq;
    disk.set_capacity(Some(disk.used_bytes()));
    clock.pass(millis);
    volume.tick();
    assert_eq!(volume.status().base_seq, before, "there is no room for the tree");
    disk.set_capacity(None);
    clock.pass(6000);
    volume.tick();
    assert!(volume.status().base_seq > before);
    assert_eq!(content(&volume, b"a").unwrap(), pattern(3 * MIB, 1));
}

#[test]
fn a_checkpoint_that_found_the_disk_full_is_tried_again_within_seconds() {
    check_is_tried_again(1 << 20, 1000);
}

#[test]
fn so_is_one_that_was_due_because_nobody_used_the_volume() {
    check_is_tried_again(1 << 30, 31_000);
}

/// Deletes 3 MiB while so much of the disk is free, with a reserve of 16 MiB; answers whether it is folded within 3 s.
fn is_folded_at_once(free: u64) -> bool {
    let store = store_on(Arc::new(SimDisk::new(3)));
    let clock = Arc::new(HandClock::default());
    let shown = Arc::new(AtomicU64::new(1 << 30));
    let mut options = options_on(&store);
    options.clock = clock.clone();
    options.reserve_bytes = Some(RESERVE_BYTES);
    let free_now = shown.clone();
    options.space = Arc::new(move || Space { total: 1 << 30, free: free_now.load(Ordering::Relaxed) });
    let volume = Volume::open(options).unwrap();
    let attr = file(&volume, b"a");
    volume.write(attr.ino, 0, &pattern(3 * MIB, 1), NOW).unwrap();
    volume.checkpoint().unwrap();
    shown.store(free, Ordering::Relaxed);
    let before = volume.status().base_seq;
    volume.unlink(ROOT_INO, b"a", NOW).unwrap();
    volume.forget(attr.ino, 1);
    for _ in 0..30 {
        clock.pass(100);
        volume.tick();
    }
    volume.status().base_seq > before
}

#[test]
fn what_is_deleted_is_folded_at_once_only_where_space_is_short() {
    assert!(is_folded_at_once(2 * RESERVE_BYTES - 1));
    assert!(is_folded_at_once(0));
    assert!(!is_folded_at_once(2 * RESERVE_BYTES));
}
